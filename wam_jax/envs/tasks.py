"""The eight CALVIN skills and when each has succeeded.

Source: CALVIN's task oracle: drawer moved by 0.12 m, slider by 0.15 m, bulb
or LED state changed, all relative to the state at the start of the episode.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SLIDER, DRAWER, BUTTON, SWITCH, BULB, LED = range(6)  # indices into scene_obs
FURNITURE_RANGE = {SLIDER: (0.0, 0.28), DRAWER: (0.0, 0.22), BUTTON: (0.0, 0.02), SWITCH: (0.0, 0.088)}  # m
BULB_THRESHOLD = 0.044  # m of the switch above which the bulb is lit


def _moved(index: int, delta: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  if delta > 0:
    return lambda start, now: now[..., index] - start[..., index] >= delta
  return lambda start, now: now[..., index] - start[..., index] <= delta


def _switched(index: int, to: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  return lambda start, now: (np.round(start[..., index]) == 1 - to) & (np.round(now[..., index]) == to)


PREDICATES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "open_drawer": _moved(DRAWER, 0.12),
  "close_drawer": _moved(DRAWER, -0.12),
  "move_slider_left": _moved(SLIDER, 0.15),
  "move_slider_right": _moved(SLIDER, -0.15),
  "turn_on_lightbulb": _switched(BULB, 1),
  "turn_off_lightbulb": _switched(BULB, 0),
  "turn_on_led": _switched(LED, 1),
  "turn_off_led": _switched(LED, 0),
}
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
    if array.shape[-1:] != (24,):
      raise ValueError(f"{name}: expected [..., 24], got {list(array.shape)}")
  return PREDICATES[task](start, now)
