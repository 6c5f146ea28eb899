"""Simulators of CALVIN's scene: what a table and its module of skills hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from wam_jax.embodiment import ROBOT_OBS
from wam_jax.envs.goals import Task

FINGERS_DOWN = (math.pi, 0.0, math.pi / 2)  # Euler angles of the hand in most skills

ACTION_TRANSLATION = 0.02  # m of target motion per unit of action
ACTION_ROTATION = 0.05  # rad


def split(snapshots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[..., 39] -> robot_obs [..., 15], scene_obs [..., 24]."""
  robot_obs, scene_obs = np.split(np.asarray(snapshots), [ROBOT_OBS], -1)
  return np.ascontiguousarray(robot_obs), np.ascontiguousarray(scene_obs)


def join(robot_obs: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
  """Inverse of `split`."""
  return np.concatenate([robot_obs, scene_obs], -1)


class Table(Protocol):
  """One manipulation scene with CALVIN's conventions."""

  control_hz: int

  def reset(self, robot_obs: np.ndarray | None = None, scene_obs: np.ndarray | None = None) -> None:
    """Restores a state exactly; None means the neutral one. Raises ValueError on NaN or shape."""
    ...

  def step(self, action: np.ndarray) -> None:
    """Executes one relative action [7] in [-1, 1], gripper exactly +1 or -1, for 1/control_hz s."""
    ...

  def state(self) -> tuple[np.ndarray, np.ndarray]:
    """(robot_obs [15], scene_obs [24]), float64."""
    ...


@dataclasses.dataclass(frozen=True)
class Route:
  """Waypoints [W, 3] of the tcp in m, in the order they are visited, and the hand's Euler angles [3]."""

  waypoints: list[np.ndarray]
  euler: tuple[float, float, float] = FINGERS_DOWN


@dataclasses.dataclass(frozen=True)
class Skill:
  """A row of a simulator's table of skills: a task, and how it is done there.

  Attributes:
    task: name, goal and start.
    route: (scene_obs [24], generator) -> the way of the hand, with small variation. None: the simulator can
      start the task and see that it is done, but has no expert for it.
  """

  task: Task
  route: Callable[[np.ndarray, np.random.Generator], Route] | None = None


def skill_table(*rows: Skill) -> dict[str, Skill]:
  """Rows by name, in their order. A row's place is part of the seed of its recordings: append only."""
  table = {row.task.name: row for row in rows}
  if len(table) != len(rows):
    raise ValueError(f"a task has two rows: {', '.join(row.task.name for row in rows)}")
  return table


def find_skill(skills: Mapping[str, Skill], task: str) -> Skill:
  """The row of a task. Raises ValueError: the simulator does not know it."""
  if task not in skills:
    raise ValueError(f"unknown task {task!r}; known: {', '.join(skills)}")
  return skills[task]


class TaughtTable(Table, Protocol):
  """A table with scripted experts: it also tells its name and the pose that its controller follows."""

  name: str

  def target_pose(self) -> tuple[np.ndarray, np.ndarray]:
    """Target position [3] in m and Euler angles [3] in rad of the tcp, moved by every action."""
    ...


class Skills(Protocol):
  """What a simulator's module of skills holds (`registry.load_skills`). It imports no simulator by itself.

  Attributes:
    SKILLS: `skill_table` of what can be done there.
    WORKSPACE: lowest and highest corner [3] of the free space above the table, in m.
    SAFE_HEIGHT: z [m] above everything that stands on the table.
    LOW_HEIGHT: z [m] below which a hand is among the furniture.
    FREE_Y: y [m] up to which a hand can rise freely.
  """

  SKILLS: Mapping[str, Skill]
  WORKSPACE: tuple[np.ndarray, np.ndarray]
  SAFE_HEIGHT: float
  LOW_HEIGHT: float
  FREE_Y: float

  def sample_start(
    self, task: str | None, rng: np.random.Generator, env: Any
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `experts.sample_start`."""
    ...
