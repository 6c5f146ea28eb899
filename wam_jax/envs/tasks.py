"""All tasks by name and when each has succeeded, gathered from the simulators' tables of skills.

A task is one row: `SKILLS` in `play_table/skills.py` and `calvin/skills.py`. No JAX and no simulator here:
the config takes its names from this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wam_jax.embodiment import SCENE_OBS
from wam_jax.envs import registry
from wam_jax.envs.goals import (
  BULB,
  BULB_THRESHOLD,
  BUTTON,
  DRAWER,
  FURNITURE_RANGE,
  LED,
  SLIDER,
  SWITCH,
  Moved,
  Switched,
  Task,
)

__all__ = [
  "BULB",
  "BULB_THRESHOLD",
  "BUTTON",
  "DRAWER",
  "FURNITURE_RANGE",
  "LED",
  "PREDICATES",
  "SENTENCES",
  "SLIDER",
  "SWITCH",
  "TASKS",
  "Moved",
  "Switched",
  "success",
]


def _gather() -> dict[str, Task]:
  tasks: dict[str, Task] = {}
  for simulator in registry.TAUGHT:
    for name, skill in registry.load_skills(simulator).SKILLS.items():
      if tasks.setdefault(name, skill.task).goal != skill.task.goal:
        raise ValueError(f"{name}: has another goal in {simulator} than in a simulator before it")
  return tasks


_TASKS = _gather()
PREDICATES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  name: task.goal for name, task in _TASKS.items()
}
SENTENCES = {name: task.sentence for name, task in _TASKS.items() if task.sentence}  # for annotations
# A task that only recordings know, and no simulator, is one line here: PREDICATES["name"] = Moved(...)
TASKS = tuple(PREDICATES)


def success(task: str, start_scene_obs: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
  """Whether `task` holds, relative to the state at the start.

  Args:
    task: one of TASKS.
    start_scene_obs: [..., 24] at the start of the episode.
    scene_obs: [..., 24] now; broadcasts against the start.

  Returns:
    [...] bool.

  Raises:
    ValueError: unknown task, or a last dimension other than 24.
  """
  if task not in PREDICATES:
    raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
  start, now = np.asarray(start_scene_obs), np.asarray(scene_obs)
  for name, array in (("start_scene_obs", start), ("scene_obs", now)):
    if array.shape[-1:] != (SCENE_OBS,):
      raise ValueError(f"{name}: expected [..., {SCENE_OBS}], got {list(array.shape)}")
  return PREDICATES[task](start, now)


def successes(tasks: Sequence[str], start: np.ndarray, now: np.ndarray) -> np.ndarray:
  """`success` of each of n episodes: scene_obs [n, 24] at the start and now -> [n] bool."""
  return np.array(
    [bool(task) and bool(success(task, *pair)) for task, *pair in zip(tasks, start, now, strict=True)]
  )
