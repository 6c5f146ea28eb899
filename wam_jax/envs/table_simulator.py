"""The two simulators of CALVIN's scene behind `base.Simulator`: the embedded play table, and CALVIN's own.

A snapshot, and a start, is robot_obs [15] followed by scene_obs [24].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.embodiment import CALVIN
from wam_jax.envs import base, experts, registry
from wam_jax.envs import tasks as task_rules
from wam_jax.envs.table import TaughtTable, join, split


class TableEnvironment(base.Environment):
  """A table as an environment.

  Attributes:
    table: the simulation itself.
  """

  def __init__(self, table: TaughtTable):
    """Takes a table over."""
    self.table, self._task = table, ""
    self._now = table.state()  # asked for several times a step
    self._origin = self._before = self._now[1]

  def reset(self, start: np.ndarray, task: str = "") -> None:
    """See `base.Environment`."""
    self.table.reset(*split(start))
    self._now = self.table.state()
    self.begin(task)

  def begin(self, task: str) -> None:
    """See `base.Environment`."""
    self._task, self._origin = task, self._now[1]

  def step(self, action: np.ndarray) -> None:
    """See `base.Environment`."""
    self.table.step(action)
    self._before, self._now = self._now[1], self.table.state()

  def state(self) -> np.ndarray:
    """robot_obs [15]."""
    return self._now[0]

  def success(self) -> bool:
    """By the task's predicate."""
    return bool(self._task) and bool(task_rules.success(self._task, self._origin, self._now[1]))

  def pictures(self) -> base.Pictures | None:
    """Of CALVIN's own simulator, which draws better while it moves than from a snapshot."""
    draw: Any = getattr(self.table, "pictures", None)
    return None if draw is None else draw()

  def snapshot(self) -> np.ndarray:
    """[39]."""
    return join(*self._now)

  def sample_start(self, task: str, rng: np.random.Generator) -> np.ndarray:
    """See `base.Environment`."""
    start = experts.sample_start(task or None, rng, self.table)
    self._now = self.table.state()  # CALVIN's table was driven there
    return join(*start)

  def expert(
    self, task: str, rng: np.random.Generator, aim_error: float = 0.0, wrist_error: float = 0.0
  ) -> base.Act:
    """See `base.Environment`; the aim error is in m."""
    return experts.make_expert(task, self.table, rng, aim_error, wrist_error)

  def possible(self) -> list[str]:
    """See `base.Environment`."""
    return experts.possible_tasks(registry.load_skills(self.table.name).SKILLS, self._now[1])

  def wander(self, rng: np.random.Generator) -> base.Act:
    """See `base.Environment`."""
    return experts.make_wanderer(self.table, rng)

  def extras(self, action: np.ndarray) -> dict[str, np.ndarray]:
    """The absolute action, the target pose it led to; and the scene before, by which tasks are judged."""
    return {"actions": np.concatenate([*self.table.target_pose(), action[6:]]), "scene_obs": self._before}


class PlayTableSimulator(base.Simulator):
  """The embedded simulator."""

  name, embodiment, threads = "play_table", CALVIN, True

  def __init__(self, settings: Mapping[str, Any]):
    super().__init__(settings)
    skills = registry.load_skills(self.name).SKILLS
    self.tasks = (*skills, *(task for task in task_rules.TASKS if task not in skills))
    self.experts = tuple(name for name, skill in skills.items() if skill.route)

  def make(self) -> TableEnvironment:
    """See `base.Simulator`."""
    from wam_jax.envs.play_table.simulator import PlayTable

    return TableEnvironment(PlayTable())

  def make_renderer(self, image_size: int, workers: int = 0) -> base.Renderer:
    """See `base.Simulator`."""
    from wam_jax.envs.play_table.renderer import make_renderer

    render = make_renderer(image_size, workers)
    return lambda snapshots: render(*split(snapshots))


class CalvinSimulator(PlayTableSimulator):
  """CALVIN's own, one environment in a process."""

  name, threads = "calvin", False
  largest_picture = 84  # of its wrist camera

  @property
  def _place(self) -> tuple[str, str]:
    return self.settings.get("calvin_root", ""), self.settings.get("calvin_scene", "D")

  def make(self) -> TableEnvironment:
    """See `base.Simulator`. Raises calvin.CalvinMissingError: it is not installed."""
    from wam_jax.envs.calvin.simulator import CalvinTable

    return TableEnvironment(CalvinTable(*self._place))

  def make_renderer(self, image_size: int, workers: int = 0) -> base.Renderer:
    """See `base.Simulator`; pictures are at most as large as CALVIN's."""
    from wam_jax.envs.calvin.pool import CalvinRenderer
    from wam_jax.envs.calvin.simulator import PICTURE_SIZES

    return CalvinRenderer(min(image_size, *PICTURE_SIZES.values()), workers, *self._place)

  def make_vector(self, num: int, workers: int, image_size: int) -> base.VectorStepper:
    """See `base.Simulator`."""
    from wam_jax.envs.calvin.pool import CalvinVector

    return CalvinVector(num, workers, image_size, *self._place)

  def describe(self) -> dict[str, Any]:
    """With the versions of its packages and files."""
    from wam_jax.envs.calvin import simulator as calvin_simulator

    return {"name": self.name, **calvin_simulator.describe(*self._place)}
