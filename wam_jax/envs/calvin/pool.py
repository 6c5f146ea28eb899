"""Many episodes on CALVIN's simulator: a process per core, each taking turns on its share of the episodes.

A process that dies or hangs is replaced, and its episodes are done again from their starts with the actions
they had: simulations repeat themselves (to about 1e-3 m), so that an evaluation goes on where it was.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from wam_jax.core import image as image_lib
from wam_jax.embodiment import ACTION, CAMERAS, ROBOT_OBS, SCENE_OBS
from wam_jax.envs.calvin.simulator import PICTURE_SIZES, MakeTable, find_root, serve
from wam_jax.envs.table import join, split
from wam_jax.envs.tasks import successes
from wam_jax.host import machine
from wam_jax.host.numbers import whole

_ATTEMPTS = 3  # at one command, before giving up
_PATIENCE = 300.0  # seconds without an answer after which a process counts as dead


class _DeadError(Exception):
  """A process has died or does not answer."""


class CalvinVector:
  """`num` episodes on CALVIN's simulator, stepped and drawn together; as `envs.vector.VectorEnvironment`.

  Attributes:
    num: number of episodes.
    restarts: processes that were replaced so far.
  """

  def __init__(
    self,
    num: int,
    workers: int = 0,
    image_size: int = 64,
    root: str = "",
    scene: str = "D",
    make: Callable[[], Any] | None = None,
  ) -> None:
    """Starts the processes.

    Args:
      num: how many episodes.
      workers: processes; 0: one per core.
      image_size: height and width of the pictures, shrunk by area averaging.
      root: checkout of calvin_env; empty: $CALVIN_ROOT.
      scene: A, B, C or D.
      make: makes the table inside a process, instead of CALVIN's.

    Raises:
      ValueError: num below 1, or pictures larger than CALVIN's.
      RuntimeError: a table cannot be made; the text says why.
    """
    if num < 1:
      raise ValueError(f"num = {num}: must be at least 1")
    image_size = whole("image_size", image_size, 1, min(PICTURE_SIZES.values()))
    if make is None:
      find_root(root)  # the error should come from here
    self.num, self.restarts = num, 0
    self._make, self._image_size = make or MakeTable(root, scene), image_size
    self._context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    count = min(workers or machine.available_cores(), num)
    self._owned = [list(range(w, num, count)) for w in range(count)]
    self._robot_obs = np.zeros((num, ROBOT_OBS))
    self._scene_obs, self._origin = np.zeros((num, SCENE_OBS)), np.zeros((num, SCENE_OBS))
    self._tasks = [""] * num
    self._start: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._actions: list[list[np.ndarray]] = [[] for _ in range(num)]
    shape = (num, image_size, image_size, 3)
    self._pictures = {camera: np.zeros(shape, np.uint8) for camera in CAMERAS}
    self._workers: list[tuple[Any, Any]] = [self._launch() for _ in range(count)]
    try:
      for w in range(count):
        self._answer(w)
    except _DeadError as error:
      self.close()
      raise RuntimeError(f"CALVIN's simulator did not start: {error}") from None
    except BaseException:
      self.close()
      raise

  def _launch(self) -> tuple[Any, Any]:
    connection, worker_end = self._context.Pipe()
    process = self._context.Process(target=serve, args=(worker_end, self._make), daemon=True)
    process.start()
    worker_end.close()
    return process, connection

  def _answer(self, worker: int) -> Any:
    """What a process says. Raises _DeadError, or RuntimeError for an error inside the simulator."""
    process, connection = self._workers[worker]
    try:
      if not connection.poll(_PATIENCE):
        raise _DeadError(f"no answer within {_PATIENCE:.0f} s")
      good, content = connection.recv()
    except (EOFError, OSError):
      process.join(5)
      raise _DeadError(f"its process ended with exit code {process.exitcode}") from None
    if not good:
      raise RuntimeError(f"CALVIN's simulator: {content}")
    return content

  def _send(self, worker: int, method: str, calls: list[tuple]) -> None:
    with contextlib.suppress(OSError):  # it is dead, as its answer will tell
      self._workers[worker][1].send((method, calls))

  def _replace(self, worker: int) -> None:
    """A new process whose episodes stand where the old one's stood."""
    process, connection = self._workers[worker]
    process.kill()
    connection.close()
    self.restarts += 1
    self._workers[worker] = self._launch()
    self._answer(worker)
    for episode in self._owned[worker]:
      if episode in self._start:
        self._send(worker, "reset", [(episode, *self._start[episode])])
        self._answer(worker)
        if self._actions[episode]:
          self._send(worker, "step", [(episode, action) for action in self._actions[episode]])
          self._answer(worker)

  def _call(self, method: str, episodes: Iterable[int], arguments: Callable[[int], tuple]) -> dict[int, Any]:
    """Calls a method for some episodes, all processes side by side: episode -> answer."""
    requested = set(episodes)
    share = [[e for e in owned if e in requested] for owned in self._owned]
    calls = [[(e, *arguments(e)) for e in part] for part in share]
    busy = [w for w, part in enumerate(calls) if part]
    for w in busy:
      self._send(w, method, calls[w])
    out: dict[int, Any] = {}
    for w in busy:
      answer = self._answer_or_replace(w, method, calls[w])
      out.update(zip(share[w], answer, strict=True))
    return out

  def _answer_or_replace(self, worker: int, method: str, calls: list[tuple]) -> Any:
    for attempt in range(1, _ATTEMPTS + 1):
      try:
        return self._answer(worker)
      except _DeadError as error:
        if attempt == _ATTEMPTS:
          raise RuntimeError(
            f"CALVIN's simulator died {_ATTEMPTS} times at the same place ({error}), at one of the episodes "
            f"{[call[0] for call in calls]}"
          ) from None
        with contextlib.suppress(_DeadError):  # asked again, and counted, in the next round
          self._replace(worker)
          self._send(worker, method, calls)
    raise AssertionError

  def _rows(self, name: str, array: np.ndarray, width: int) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != (self.num, width):
      raise ValueError(f"{name}: expected shape {[self.num, width]}, got {list(array.shape)}")
    return array

  def _chosen(self, active: np.ndarray | None) -> list[int]:
    if active is None:
      return list(range(self.num))
    if np.shape(active) != (self.num,):
      raise ValueError(f"active: expected shape {[self.num]}, got {list(np.shape(active))}")
    return np.flatnonzero(active).tolist()

  def _keep(self, moments: dict[int, Any]) -> None:
    for episode, (robot_obs, scene_obs, pictures) in moments.items():
      self._robot_obs[episode], self._scene_obs[episode] = robot_obs, scene_obs
      for camera, picture in pictures.items():
        self._pictures[camera][episode] = image_lib.area_resize(picture, self._image_size, self._image_size)

  def reset(self, starts: np.ndarray, tasks: Sequence[str], active: np.ndarray | None = None) -> None:
    """Restores one state per episode: starts [n, 39], n tasks; of `active` [n] only."""
    robot_obs, scene_obs = split(self._rows("starts", starts, ROBOT_OBS + SCENE_OBS))
    episodes = self._chosen(active)
    for episode in episodes:
      self._start[episode] = (robot_obs[episode].copy(), scene_obs[episode].copy())
      self._actions[episode] = []
      self._tasks[episode] = tasks[episode]
    self._keep(self._call("reset", episodes, lambda e: self._start[e]))
    self._origin[episodes] = self._scene_obs[episodes]

  def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
    """Executes one action per episode: [n, 7]; of `active` [n] only."""
    actions = self._rows("actions", actions, ACTION)
    episodes = self._chosen(active)
    self._keep(self._call("step", episodes, lambda e: (actions[e],)))
    for episode in episodes:  # only now: a process that died at this step repeats the ones before
      self._actions[episode].append(actions[episode].copy())

  def state(self) -> np.ndarray:
    """robot_obs [n, 15]."""
    return self._robot_obs.copy()

  def snapshot(self) -> np.ndarray:
    """[n, 39]."""
    return join(self._robot_obs, self._scene_obs)

  def success(self) -> np.ndarray:
    """[n] bool, by the tasks' predicates."""
    return successes(self._tasks, self._origin, self._scene_obs)

  def observe(self, active: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """States and pictures, those of each episode's last step; `active` [n] makes no difference.

    Returns:
      'rgb_static' and 'rgb_gripper' [n, S, S, 3] uint8, 'robot_obs' [n, 15].
    """
    del active
    return {camera: pictures.copy() for camera, pictures in self._pictures.items()} | {
      "robot_obs": self.state()
    }

  def close(self) -> None:
    """Ends the processes; they also end when nothing holds this object any more."""
    for process, connection in self._workers:
      connection.close()
      process.kill()
    self._workers = []


class CalvinRenderer:
  """Draws recorded states on CALVIN's simulator, as a `base.Renderer`; see `CalvinTable.pictures`."""

  def __init__(
    self,
    image_size: int = 64,
    workers: int = 0,
    root: str = "",
    scene: str = "D",
    make: Callable[[], Any] | None = None,
  ) -> None:
    """Args: as of `CalvinVector`."""
    count = workers or machine.available_cores()
    self._vector = CalvinVector(count, count, image_size, root, scene, make)

  def __call__(self, snapshots: np.ndarray) -> dict[str, np.ndarray]:
    """[N, 39] -> 'rgb_static', 'rgb_gripper' [N, S, S, 3] uint8."""
    parts: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}
    num = self._vector.num
    for begin in range(0, len(snapshots), num):
      rows = np.minimum(np.arange(begin, begin + num), len(snapshots) - 1)
      self._vector.reset(snapshots[rows], [""] * num)
      pictures = self._vector.observe()
      for key, part in parts.items():
        part.append(pictures[key][: len(snapshots) - begin])
    return {key: np.concatenate(part) for key, part in parts.items()}
