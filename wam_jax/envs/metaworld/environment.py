"""Moves in Meta-World's scenes: the package's own environments and scripted policies."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from wam_jax.envs import base
from wam_jax.envs.metaworld import scenes
from wam_jax.envs.metaworld.scenes import NAMES, TASKS
from wam_jax.envs.physics import mujoco  # before the package, which imports it whatever MUJOCO_GL names

from metaworld import policies, sawyer_xyz_env  # isort: skip
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip

warnings.filterwarnings("ignore", r"Constant\(s\) may be too high")  # of policies, whose actions are clipped
_WANDER_LOW, _WANDER_HIGH = np.array([-0.3, 0.45, 0.07]), np.array([0.3, 0.9, 0.35])  # m, of the hand
_WANDER_STEPS = 25  # at most, towards one place


def _reset_mocap_welds(self: Any) -> None:
  """As the package's, which knows the eleven numbers that a weld had before MuJoCo 4."""
  welds = self.model.eq_type == mujoco.mjtEq.mjEQ_WELD
  self.model.eq_data[welds] = 0.0
  self.model.eq_data[welds, 6], self.model.eq_data[welds, 10] = -1.0, 5.0


def _initialize_simulation(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
  """As gymnasium's, without what can only be seen: 3 MB instead of 18, and the same motion to the bit."""
  spec = mujoco.MjSpec.from_file(self.fullpath)
  for geom in spec.geoms:
    if geom.name:  # the package may look it up; a sensor keeps it
      kinds = mujoco.mjtSensor.mjSENS_FRAMEPOS, mujoco.mjtObj.mjOBJ_GEOM
      spec.add_sensor(type=kinds[0], objtype=kinds[1], objname=geom.name)
  spec.compiler.discardvisual = True
  model = spec.compile()
  return model, mujoco.MjData(model)


sawyer_xyz_env.SawyerMocapBase.reset_mocap_welds = _reset_mocap_welds
sawyer_xyz_env.SawyerMocapBase._initialize_simulation = _initialize_simulation


def _make(task: str) -> Any:
  """The package's environment of a task, whose furniture stands where `_last_rand_vec` says."""
  env = ALL_V3_ENVIRONMENTS[TASKS[task].environment]()
  env._set_task_called, env._freeze_rand_vec = True, True
  return env


class MetaWorldEnvironment(base.Environment):
  """One simulation: a task's environment of the package, and more of them as others are asked for."""

  def __init__(self) -> None:
    """Opens nothing before it is asked for."""
    self._environments: dict[str, Any] = {}
    self._task, self._scene, self._success = "", NAMES[0], False
    self._play_steps = 0

  @property
  def _env(self) -> Any:
    if self._scene not in self._environments:  # nothing has been reset yet
      space = self._open(self._scene)._random_reset_space
      self._place(self._scene, (space.low + space.high) / 2)
    return self._environments[self._scene]

  def _open(self, task: str) -> Any:
    if task not in self._environments:
      self._environments[task] = _make(task)
    return self._environments[task]

  def _place(self, task: str, place: np.ndarray) -> Any:
    """The environment of a task with the furniture at [3], and everything else anyhow."""
    env = self._open(task)
    if env._last_rand_vec is None or not np.array_equal(env._last_rand_vec, place):
      env._last_rand_vec = np.array(place)
      env.reset()
    return env

  def _restore(self, task: str, snapshot: np.ndarray) -> None:
    """Continues a snapshot as an episode of a task of the same scene."""
    parts = scenes.split(snapshot)
    env = self._place(task, parts["place"])
    data = env.data
    data.qpos[:], data.qvel[:], data.mocap_pos[0] = parts["qpos"], parts["qvel"], parts["target"]
    data.qacc_warmstart[:] = parts["warmstart"]
    mujoco.mj_forward(env.model, data)
    data.qacc_warmstart[:] = parts["warmstart"]
    self._scene = task
    self._success = self._done(task)

  def _done(self, task: str) -> bool:
    """Whether Meta-World calls the present state of a task's environment a success."""
    env = self._environments[task]
    space = env.sawyer_observation_space
    observation = np.clip(env._get_obs(), space.low, space.high)
    return bool(env.evaluate_state(observation, np.zeros(4, np.float32))[1]["success"])

  def reset(self, start: np.ndarray, task: str = "") -> None:
    """See `base.Environment`; `start` is a snapshot."""
    start = scenes.check_snapshot(start)
    scene = NAMES[int(start[0])]
    if task:
      self._check(task, scene)
    self._restore(task or scene, start)
    self._task, self._play_steps = task, 0 if task else scenes.PLAY_STEPS
    self.ended = False

  def _check(self, task: str, scene: str) -> None:
    if task not in TASKS:
      raise ValueError(f"unknown task {task!r}; known: {', '.join(NAMES)}")
    if TASKS[task].scene != TASKS[scene].scene:
      raise ValueError(f"{task}: its furniture is not in the scene of {scene}, where this start is")

  def step(self, action: np.ndarray) -> None:
    """See `base.Environment`; repeats the action."""
    if self.ended:
      return
    action = np.asarray(action, np.float64)
    if action.shape != (4,) or not np.abs(action).max() <= 1.0:  # written so that NaN fails
      raise ValueError(f"action: must be 4 numbers in [-1, 1], not {action.tolist()}")
    for _ in range(scenes.ACTION_REPEAT):
      self._env.curr_path_length = 0  # how long an episode is, others decide
      info = self._env.step(action)[-1]
      self._success |= bool(info["success"])
    if self._play_steps:
      self._play_steps -= 1
      self.ended = self._play_steps == 0

  def state(self) -> np.ndarray:
    """Position [3] of the hand in m, and how far open the gripper is, from 0 to 1."""
    return np.array(self._env._get_curr_obs_combined_no_goal()[:4], np.float64)

  def success(self) -> bool:
    """See `base.Environment`; as Meta-World counts it, whether its rule has held at some step."""
    return bool(self._task) and self._success

  def snapshot(self) -> np.ndarray:
    """[W], see `scenes.PARTS`."""
    data = self._env.data
    place, number = self._env._last_rand_vec, [float(NAMES.index(self._scene))]
    return np.concatenate([number, place, data.qpos, data.qvel, data.qacc_warmstart, data.mocap_pos[0]])

  def sample_start(self, task: str, rng: np.random.Generator) -> np.ndarray:
    """See `base.Environment`; as Meta-World resets, with the furniture placed at random."""
    task = task or NAMES[int(rng.integers(len(NAMES)))]
    self._check(task, task)
    env = self._open(task)
    space = env._random_reset_space
    env._last_rand_vec = rng.uniform(space.low, space.high)
    env.reset()
    self._scene = task
    return self.snapshot()

  def expert(
    self, task: str, rng: np.random.Generator, aim_error: float = 0.0, wrist_error: float = 0.0
  ) -> base.Act:
    """See `base.Environment`: the package's policy; the aim error is in m, and the hand cannot turn."""
    del wrist_error
    self._check(task, self._scene)
    name = "".join(word.capitalize() for word in task.split("_"))
    policy = getattr(policies, f"Sawyer{name}V3Policy")()
    beside = TASKS[task].aim + rng.normal(0.0, aim_error, 3)

    def act() -> np.ndarray:
      observation = np.array(self._env._get_obs())
      observation[4:7] += beside  # where the policy takes the handle to be
      action = np.clip(policy.get_action(observation).astype(np.float64), -1.0, 1.0)
      if self._success:  # it holds still: the package's policies go on, and let go of a handle
        action[:3] = 0.0
      return action

    return act

  def possible(self) -> list[str]:
    """See `base.Environment`: the tasks of this scene that are not done."""
    now, current, success = self.snapshot(), self._scene, self._success
    out = []
    for task, row in TASKS.items():
      if row.scene == TASKS[current].scene:
        self._restore(task, now)
        out += [] if self._success else [task]
    self._restore(current, now)
    self._success = success
    return out

  def begin(self, task: str) -> None:
    """See `base.Environment`."""
    self._check(task, self._scene)
    self._restore(task, self.snapshot())
    self._task = task

  def wander(self, rng: np.random.Generator) -> base.Act:
    """See `base.Environment`: to random places above the table, each at a speed of its own."""
    place, speed, gripper, steps = np.zeros(3), 0.0, -1.0, 0

    def act() -> np.ndarray:
      nonlocal place, speed, gripper, steps
      if steps == 0 or np.abs(place - self.state()[:3]).max() < 0.02:
        place, speed, steps = rng.uniform(_WANDER_LOW, _WANDER_HIGH), rng.uniform(0.3, 1.0), _WANDER_STEPS
        gripper = float(rng.choice([-1.0, 0.0, 1.0]))
      steps -= 1
      way = 25.0 * (place - self.state()[:3])
      return np.append(speed * way / max(1.0, float(np.abs(way).max())), gripper)

    return act
