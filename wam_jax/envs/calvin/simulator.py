"""CALVIN's own simulator, from an unmodified checkout of mees/calvin_env: headless, no GL, no tactile sensor.

Nothing of calvin_env is installed or changed: its folder is put on the import path, and what it imports
but does not need without a screen (gym, cv2, git, quaternion) is stood in for while it is imported. PyBullet
keeps its world in the process, so a process holds one table; `snapshot` and `restore` let it take turns on
many episodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from wam_jax.embodiment import ACTION, CAMERAS, CONTROL_HZ, ROBOT_OBS, SCENE_OBS
from wam_jax.envs.calvin.culling import Culling
from wam_jax.host.numbers import real
from wam_jax.host.regular_files import read_bytes

SCENES = ("A", "B", "C", "D")
PICTURE_SIZES = dict(zip(CAMERAS, (200, 84), strict=True))  # sides in pixels
HOW_TO = """CALVIN's simulator and data take three steps:
  pip install 'wam_jax[calvin]' (compiles pybullet but for Python 3.11 on x86-64: apt install g++ python3-dev)
  git clone https://github.com/mees/calvin_env, and --config.env.calvin_root=calvin_env or $CALVIN_ROOT
  dataset/download_data.sh of github.com/mees/calvin, and --config.data.calvin_path=FOLDER or $CALVIN_DATA"""
_MARK = "calvin_env/envs/play_table_env.py"  # by this file a checkout of calvin_env is known
_PACKAGES = {"pybullet": "pybullet", "hydra": "hydra-core", "omegaconf": "omegaconf", "scipy": "scipy"}


class CalvinMissingError(RuntimeError):
  """A part of CALVIN's simulator is missing; the text names it and says what to do."""

  def __init__(self, missing: str):
    self.missing = missing
    super().__init__(f"{missing}\n{HOW_TO}")


def find_checkout(root: str = "") -> pathlib.Path:
  """The checkout of calvin_env, known by one file; no package is looked for.

  Args:
    root: its folder, or that of a checkout of mees/calvin with it inside; empty: $CALVIN_ROOT.

  Raises:
    CalvinMissingError: no folder given, or no checkout there.
  """
  name = os.path.expanduser(root or os.environ.get("CALVIN_ROOT", ""))
  if not name:
    raise CalvinMissingError("no checkout of calvin_env was named.")
  path, inner = pathlib.Path(name), pathlib.Path(name, "calvin_env")
  for folder in (path, inner):  # CALVIN's own README sets $CALVIN_ROOT to the checkout of mees/calvin
    if os.path.isfile(folder / _MARK):
      return folder
  if os.path.isfile(path / ".gitmodules") and os.path.isdir(inner):
    raise CalvinMissingError(
      f"{path} is a checkout of mees/calvin without its submodules: {inner} has no {_MARK}. "
      f"Fetch them: git -C {path} submodule update --init --recursive"
    )
  raise CalvinMissingError(f"{path} is no checkout of calvin_env: it has no {_MARK}.")


def find_root(root: str = "") -> pathlib.Path:
  """`find_checkout` as an absolute path, and every package that it needs imported.

  Raises:
    CalvinMissingError: as `find_checkout`; or a Python package is not installed or cannot be imported.
  """
  path = find_checkout(root)
  for part in ("conf/scene", "data"):
    if not (path / part).exists():
      raise CalvinMissingError(f"{path} is no checkout of calvin_env: it has no {part}.")
  absent = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
  if absent:
    raise CalvinMissingError(f"not installed: {', '.join(absent)}.")
  for module, name in _PACKAGES.items():
    with _told(f"{name} is installed, but cannot be imported"):
      importlib.import_module(module)
  return path.resolve()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
  """Raises whatever an import raises (libraries for another NumPy raise as they please) as our error."""
  try:
    yield
  except Exception as error:
    raise CalvinMissingError(f"{what}: {type(error).__name__}: {error}") from error


def describe(root: str = "", scene: str = "D") -> dict[str, str]:
  """What to repeat a result here by: scene, versions, and a hash of calvin_env's code and data."""
  folder, digest = find_root(root), hashlib.sha256()
  for part in ("calvin_env", "conf", "data"):
    for path in sorted((folder / part).rglob("*")):
      if path.is_file() and path.suffix != ".pyc":
        digest.update(path.relative_to(folder).as_posix().encode() + read_bytes(path))
  versions = {package: metadata.version(package) for package in _PACKAGES.values()}
  return {"scene": scene, "calvin_env_sha256": digest.hexdigest(), **versions}


@contextlib.contextmanager
def _stood_in() -> Iterator[None]:
  """Empty modules for what calvin_env imports and a simulation without a screen never calls.

  They take the places of the installed packages too, which may be broken (OpenCV without libGL, GitPython
  without git, builds for another NumPy), and leave them again: the rest of the process has its own.
  """

  def module(name: str, **content: Any) -> types.ModuleType:
    stub = types.ModuleType(name)
    stub.__dict__.update(content)
    return stub

  def no_repository(*_: Any, **__: Any) -> Any:
    head = types.SimpleNamespace(object=types.SimpleNamespace(hexsha="unknown"))
    return types.SimpleNamespace(head=head, index=types.SimpleNamespace(diff=lambda _: []))

  seeding = module("gym.utils.seeding", np_random=lambda seed=None: (np.random.RandomState(seed), seed))
  utils = module("gym.utils", seeding=seeding)
  gym = module("gym", Env=object, Wrapper=object, utils=utils)
  stubs = (gym, utils, seeding, module("cv2"), module("quaternion"), module("git", Repo=no_repository))
  before = {stub.__name__: sys.modules.get(stub.__name__) for stub in stubs}
  sys.modules.update({stub.__name__: stub for stub in stubs})
  try:
    yield
  finally:
    for name, original in before.items():
      if original is None:
        del sys.modules[name]
      else:
        sys.modules[name] = original


def _make_env(folder: pathlib.Path, scene: str) -> Any:
  """calvin_env's own environment."""
  hydra, omegaconf = importlib.import_module("hydra"), importlib.import_module("omegaconf")
  load = lambda name: omegaconf.OmegaConf.load(folder / "conf" / f"{name}.yaml")
  robot = omegaconf.OmegaConf.merge(load("robot/panda"), load("robot/panda_longer_finger"))
  robot.pop("defaults", None)
  config = omegaconf.OmegaConf.create(
    {
      "env": load("env/play_table_env"),
      "scene": load(f"scene/calvin_scene_{scene}"),
      "robot": robot,
      "cameras": {name: load(f"cameras/cameras/{name}") for name in ("static", "gripper")},
      "use_vr": False,
      "data_path": str(folder / "data"),
    }
  )
  importlib.import_module(config.env["_target_"].rpartition(".")[0])  # hydra would hide why it fails
  return hydra.utils.instantiate(
    config.env, show_gui=False, use_vr=False, use_egl=False, use_scene_info=False
  )


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """Everything of a table at one moment: physics inside PyBullet, and what calvin_env keeps in Python."""

  physics: int
  target_pos: np.ndarray
  target_orn: np.ndarray
  gripper_action: int
  buttons: tuple[tuple[Any, Any], ...]
  lights: tuple[int, ...]


class CalvinTable:
  """CALVIN's table as a `table.TaughtTable`. One per process."""

  name = "calvin"
  control_hz = CONTROL_HZ

  def __init__(self, root: str = "", scene: str = "D") -> None:
    """Loads the scene.

    Args:
      root: checkout of calvin_env; empty: $CALVIN_ROOT.
      scene: one of SCENES.

    Raises:
      CalvinMissingError: something is not installed or missing.
      ValueError: unknown scene.
    """
    if scene not in SCENES:
      raise ValueError(f"unknown scene {scene!r}; known: {', '.join(SCENES)}")
    folder = find_root(root)
    if str(folder) not in sys.path:
      sys.path.insert(0, str(folder))
    with _stood_in(), _told(f"{folder} cannot be loaded"):
      self._env = _make_env(folder, scene)
    static = next(camera for camera in self._env.cameras if camera.name == "static")
    culling = Culling(
      importlib.import_module("pybullet"),
      self._env.robot.robot_uid,
      (static.viewMatrix, static.projectionMatrix),
    )
    for camera in self._env.cameras:
      vars(sys.modules[type(camera).__module__])["p"] = culling  # calvin_env's name for pybullet
    self._env.scene.reset()
    self._fresh = self.snapshot()

  def reset(self, robot_obs: np.ndarray | None = None, scene_obs: np.ndarray | None = None) -> None:
    """Restores a state, at rest. None means the neutral one. Raises ValueError on NaN or shape."""
    robot_obs = None if robot_obs is None else real("robot_obs", robot_obs)
    scene_obs = None if scene_obs is None else real("scene_obs", scene_obs)
    sizes = {"robot_obs": (robot_obs, ROBOT_OBS), "scene_obs": (scene_obs, SCENE_OBS)}
    for name, (array, size) in sizes.items():
      if array is not None and (np.shape(array) != (size,) or not np.isfinite(array).all()):
        raise ValueError(f"{name}: expected {size} finite numbers, got {np.array(array)}")
    self.restore(self._fresh)  # else velocities of the episode before remain
    robot, scene = self._env.robot, self._env.scene
    if scene_obs is not None:
      scene.reset(scene_obs)
    robot.reset(robot_obs)
    # calvin_env leaves the last gripper action of the episode before.
    robot.gripper_action = 1 if robot_obs is None or robot_obs[14] >= 0 else -1
    self._env.p.stepSimulation(physicsClientId=self._env.cid)  # as calvin_env does

  def step(self, action: np.ndarray) -> None:
    """One relative action [7] in [-1, 1], gripper exactly +1 or -1, for 1/30 s. Draws nothing."""
    action = real("action", action)
    if action.shape != (ACTION,) or not np.isfinite(action).all() or abs(action[6]) != 1:
      raise ValueError(f"action: expected 7 finite numbers, the last one +1 or -1, got {action}")
    self._env.robot.apply_action(action)
    for _ in range(self._env.action_repeat):
      self._env.p.stepSimulation(physicsClientId=self._env.cid)
    self._env.scene.step()

  def state(self) -> tuple[np.ndarray, np.ndarray]:
    """(robot_obs [15], scene_obs [24]), float64."""
    observation = self._env.get_state_obs()
    return np.array(observation["robot_obs"], np.float64), np.array(observation["scene_obs"], np.float64)

  def target_pose(self) -> tuple[np.ndarray, np.ndarray]:
    """Target position [3] in m and Euler angles [3] in rad of the tcp, moved by every action."""
    robot = self._env.robot
    return np.array(robot.target_pos, np.float64), np.array(robot.target_orn, np.float64)

  @property
  def surfaces(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Where the scene lets blocks start: name -> lowest and highest corner [3] in m."""
    boxes = self._env.scene.surfaces
    return {str(name): (np.array(low), np.array(high)) for name, (low, high) in boxes.items()}

  def pictures(self) -> dict[str, np.ndarray]:
    """'rgb_static' [200, 200, 3] and 'rgb_gripper' [84, 84, 3] uint8, of this very moment.

    The wrist camera hangs on a link whose pose PyBullet updates one physics step late: while the arm moves,
    pictures after `reset` to a recorded state differ from those of the recording by that step.
    """
    rgb, _ = self._env.get_camera_obs()
    return {key: np.asarray(rgb[key], np.uint8) for key in CAMERAS}

  def snapshot(self) -> Snapshot:
    """This moment, to be given to `restore`, and to `discard` when it is not needed any more."""
    robot, scene = self._env.robot, self._env.scene
    return Snapshot(
      physics=self._env.p.saveState(),
      target_pos=robot.target_pos.copy(),
      target_orn=robot.target_orn.copy(),
      gripper_action=robot.gripper_action,
      buttons=tuple(
        (b.state, getattr(b, "prev_is_pressed", None)) for b in (*scene.buttons, *scene.switches)
      ),
      lights=tuple(light.get_state() for light in scene.lights),
    )

  def restore(self, snapshot: Snapshot) -> None:
    """Goes on from a snapshot of this table."""
    robot, scene = self._env.robot, self._env.scene
    self._env.p.restoreState(stateId=snapshot.physics)
    robot.target_pos, robot.target_orn = snapshot.target_pos.copy(), snapshot.target_orn.copy()
    robot.gripper_action = snapshot.gripper_action
    for button, (state, pressed) in zip((*scene.buttons, *scene.switches), snapshot.buttons, strict=True):
      button.state = state
      if pressed is not None:
        button.prev_is_pressed = pressed
    for light, state in zip(scene.lights, snapshot.lights, strict=True):
      if light.get_state() != state:
        light.reset(state)

  def discard(self, snapshot: Snapshot) -> None:
    """Frees a snapshot."""
    self._env.p.removeState(snapshot.physics)


# ---------------------------------------------------------------------------------------------
# Inside a process of `calvin_pool`. No JAX here.


@dataclasses.dataclass(frozen=True)
class MakeTable:
  """Makes a `CalvinTable` inside a process."""

  root: str = ""
  scene: str = "D"

  def __call__(self) -> CalvinTable:
    return CalvinTable(self.root, self.scene)


class _Turns:
  """One table that takes turns on several episodes, by number."""

  def __init__(self, table: Any) -> None:
    self.table, self._now = table, -1
    self._waiting: dict[int, Any] = {}

  def _leave(self) -> None:
    if self._now >= 0:
      self._waiting[self._now] = self.table.snapshot()
      self._now = -1

  def _enter(self, episode: int) -> None:
    if episode != self._now:
      self._leave()
      snapshot = self._waiting.pop(episode)
      self.table.restore(snapshot)
      self.table.discard(snapshot)
      self._now = episode

  def reset(self, episode: int, robot_obs: np.ndarray, scene_obs: np.ndarray) -> Any:
    if episode != self._now:
      self._leave()
    if episode in self._waiting:
      self.table.discard(self._waiting.pop(episode))
    self.table.reset(robot_obs, scene_obs)
    self._now = episode
    return self._moment()

  def step(self, episode: int, action: np.ndarray) -> Any:
    self._enter(episode)
    self.table.step(action)
    return self._moment()

  def _moment(self) -> Any:
    # Pictures now, as when recording: after a turn of others the wrist camera would be a physics step ahead.
    return *self.table.state(), self.table.pictures()


def serve(connection: Any, make: Callable[[], Any]) -> None:
  """Life of a process: answers lists of calls until the other end closes. Prints nothing."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # PyBullet and calvin_env print as they please
  warnings.simplefilter("ignore")
  try:
    turns = _Turns(make())
    connection.send((True, None))
    while True:
      method, calls = connection.recv()
      connection.send((True, [getattr(turns, method)(*call) for call in calls]))
  except (EOFError, KeyboardInterrupt):
    pass
  except Exception as error:
    connection.send((False, f"{type(error).__name__}: {error}"))
