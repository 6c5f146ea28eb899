"""Many environments at once: physics in threads, pictures in batches."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence

import numpy as np

from wam_jax.embodiment import ACTION, ROBOT_OBS, SCENE_OBS
from wam_jax.envs import base
from wam_jax.host import machine


class VectorEnvironment:
  """`num` environments of one simulator, stepped and drawn together.

  Attributes:
    num: number of environments.
    environments: the single ones, for experts that need to look inside.
  """

  def __init__(
    self, environments: Sequence[base.Environment], renderer: base.Renderer, workers: int = 0
  ) -> None:
    """Takes the environments.

    Args:
      environments: of one simulator.
      renderer: draws their states.
      workers: threads for physics; 0: one per core.

    Raises:
      ValueError: no environments.
    """
    if not environments:
      raise ValueError("environments: expected at least 1, got none")
    self.num = len(environments)
    self.environments = list(environments)
    self._workers = min(workers or machine.available_cores(), self.num)
    self._pool = concurrent.futures.ThreadPoolExecutor(self._workers, "physics")
    self._renderer = renderer
    self._pictures: dict[str, np.ndarray] = {}

  def _for_rows(self, task: Callable[[int], None], indices: np.ndarray) -> None:
    """Calls task(i) for all indices, split among the threads."""

    def run_part(part: np.ndarray) -> None:
      for i in part:
        task(int(i))

    list(self._pool.map(run_part, np.array_split(indices, self._workers)))

  def _rows(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != shape:
      raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    return array

  def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray, active: np.ndarray | None = None) -> None:
    """Restores one state per environment.

    Args:
      robot_obs: [n, 15].
      scene_obs: [n, 24].
      active: [n] bool, environments to restore; rows of the others are not looked at. None: all.
    """
    robot_obs = self._rows("robot_obs", robot_obs, (self.num, ROBOT_OBS))
    scene_obs = self._rows("scene_obs", scene_obs, (self.num, SCENE_OBS))
    rows = (
      np.arange(self.num) if active is None else np.flatnonzero(self._rows("active", active, (self.num,)))
    )
    self._for_rows(lambda i: self.environments[i].reset(robot_obs[i], scene_obs[i]), rows)
    if active is None:
      self._pictures = {}

  def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
    """Executes one action per environment.

    Args:
      actions: [n, 7]; rows that are not active are not looked at.
      active: [n] bool, environments that move; None: all.
    """
    actions = self._rows("actions", actions, (self.num, ACTION))
    active = (
      np.ones(self.num, bool) if active is None else self._rows("active", active, (self.num,)).astype(bool)
    )
    self._for_rows(lambda i: self.environments[i].step(actions[i]), np.flatnonzero(active))

  def state(self) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs [n, 15], scene_obs [n, 24]."""
    states = [environment.state() for environment in self.environments]
    return np.stack([robot for robot, _ in states]), np.stack([scene for _, scene in states])

  def observe(self, active: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """States and pictures.

    Args:
      active: [n] bool, environments to draw; the others keep their last picture. None: all. The first call
        after a reset draws all.

    Returns:
      'rgb_static' and 'rgb_gripper' [n, S, S, 3] uint8, 'robot_obs' [n, 15], 'scene_obs' [n, 24].
    """
    robot_obs, scene_obs = self.state()
    if active is None or not self._pictures:
      self._pictures = self._renderer(robot_obs, scene_obs)
    else:
      drawn = np.flatnonzero(self._rows("active", active, (self.num,)))
      fresh = self._renderer(robot_obs[drawn], scene_obs[drawn])
      # Copies, so that pictures handed out before stay as they are.
      self._pictures = {key: picture.copy() for key, picture in self._pictures.items()}
      for key, picture in fresh.items():
        self._pictures[key][drawn] = picture
    return {**self._pictures, "robot_obs": robot_obs, "scene_obs": scene_obs}
