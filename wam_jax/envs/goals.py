"""What can be done in CALVIN's scene: goals in terms of `scene_obs`, and the tasks that simulators share.

Source: CALVIN's task oracle: drawer moved by 0.12 m, slider by 0.15 m, bulb or LED state changed, all
relative to the state at the start of the episode.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from wam_jax.embodiment import SCENE_OBS

SLIDER, DRAWER, BUTTON, SWITCH, BULB, LED = range(6)  # indices into scene_obs
FURNITURE_RANGE = {SLIDER: (0.0, 0.28), DRAWER: (0.0, 0.22), BUTTON: (0.0, 0.02), SWITCH: (0.0, 0.088)}  # m
BULB_THRESHOLD = 0.044  # m of the switch above which the bulb is lit
_SHORT_OF_END = 0.01  # m that a hand may leave between furniture and its end stop


class Goal(abc.ABC):
  """Success as a function of the scene at the start and now."""

  @abc.abstractmethod
  def __call__(self, start: np.ndarray, now: np.ndarray) -> np.ndarray:
    """scene_obs [..., 24] at the start and now -> [...] bool; false where nothing has changed."""

  def possible(self, scene_obs: np.ndarray) -> bool:
    """Whether it can still come true from scene_obs [24]: play tries nothing else."""
    del scene_obs
    return True

  def prepare(self, scene_obs: np.ndarray) -> None:  # noqa: B027
    """Changes a random scene_obs [24], in place, where the goal holds already."""


@dataclasses.dataclass(frozen=True)
class Moved(Goal):
  """A joint of the furniture has moved by so much, in m, to the sign's side."""

  joint: int
  by: float

  def __call__(self, start: np.ndarray, now: np.ndarray) -> np.ndarray:
    moved = now[..., self.joint] - start[..., self.joint]
    return moved >= self.by if self.by > 0 else moved <= self.by

  def possible(self, scene_obs: np.ndarray) -> bool:
    low, high = FURNITURE_RANGE[self.joint]
    reached = np.array(scene_obs)
    reached[self.joint] = high - _SHORT_OF_END if self.by > 0 else low + _SHORT_OF_END
    return bool(self(scene_obs, reached))


@dataclasses.dataclass(frozen=True)
class Switched(Goal):
  """A lamp that was in the other state is now in this one, 1 or 0."""

  lamp: int
  to: int

  def __call__(self, start: np.ndarray, now: np.ndarray) -> np.ndarray:
    return (np.round(start[..., self.lamp]) == 1 - self.to) & (np.round(now[..., self.lamp]) == self.to)

  def possible(self, scene_obs: np.ndarray) -> bool:
    return bool(np.round(scene_obs[self.lamp]) == 1 - self.to)

  def prepare(self, scene_obs: np.ndarray) -> None:
    scene_obs[self.lamp] = float(1 - self.to)


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be done, whoever does it.

  Attributes:
    name: of the task in configs, recordings and reports.
    goal: says when it is done.
    start: (joint, lowest, highest), where the furniture may stand [m] at the start: anywhere from which the
      task can still be done, with a little to spare. None: anywhere.
    sentence: for annotations; empty: the name.
  """

  name: str
  goal: Goal
  start: tuple[int, float, float] | None = None
  sentence: str = ""


def _by_name(*tasks: Task) -> Mapping[str, Task]:
  return {task.name: task for task in tasks}


# Tasks of more than one simulator. One that a single simulator knows can be written in that one's table.
CALVIN = _by_name(
  Task("open_drawer", Moved(DRAWER, 0.12), (DRAWER, 0.0, 0.09), "pull the drawer open"),
  Task("close_drawer", Moved(DRAWER, -0.12), (DRAWER, 0.13, 0.22), "push the drawer shut"),
  Task("move_slider_left", Moved(SLIDER, 0.15), (SLIDER, 0.0, 0.12), "slide the door to the left"),
  Task("move_slider_right", Moved(SLIDER, -0.15), (SLIDER, 0.16, 0.28), "slide the door to the right"),
  Task("turn_on_lightbulb", Switched(BULB, 1), (SWITCH, 0.0, 0.034), "switch the light bulb on"),
  Task("turn_off_lightbulb", Switched(BULB, 0), (SWITCH, 0.054, 0.088), "switch the light bulb off"),
  Task("turn_on_led", Switched(LED, 1), sentence="press the button so that the LED lights up"),
  Task("turn_off_led", Switched(LED, 0), sentence="press the button so that the LED goes dark"),
)


def sample_furniture(task: Task | None, rng: np.random.Generator) -> np.ndarray:
  """scene_obs [24] whose furniture is where `task` can start, or anywhere; its blocks are zero."""
  scene_obs = np.zeros(SCENE_OBS)
  for joint in (SLIDER, DRAWER, SWITCH):
    low, high = FURNITURE_RANGE[joint]
    # Closed and open ends are more frequent than chance would have them, as they are in use.
    scene_obs[joint] = np.clip(rng.uniform(low - 0.2 * (high - low), high + 0.2 * (high - low)), low, high)
  if task is not None and task.start is not None:
    joint, low, high = task.start
    scene_obs[joint] = rng.uniform(low, high)
  scene_obs[BULB] = float(scene_obs[SWITCH] > BULB_THRESHOLD)
  scene_obs[LED] = float(rng.integers(2))
  if task is not None:
    task.goal.prepare(scene_obs)
  return scene_obs
