"""What a simulator must offer, and nothing about any one of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

FINGERS_DOWN = (math.pi, 0.0, math.pi / 2)  # Euler angles of the hand in most skills

ACTION_TRANSLATION = 0.02  # m of target motion per unit of action
ACTION_ROTATION = 0.05  # rad


class Environment(Protocol):
  """One manipulation scene with CALVIN's conventions.

  Pictures are a function of the state (`render`), so a rollout can be recorded as states and drawn
  afterwards in batches.
  """

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


class Renderer(Protocol):
  """Draws both cameras of many states at once."""

  def __call__(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> dict[str, np.ndarray]:
    """robot_obs [N, 15], scene_obs [N, 24] -> {'rgb_static', 'rgb_gripper'}: [N, S, S, 3] uint8."""
    ...


class VectorStepper(Protocol):
  """`num` environments, stepped and drawn together. `active` [n] bool: only these; None: all."""

  num: int

  def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray, active: np.ndarray | None = None) -> None:
    """Restores robot_obs [n, 15] and scene_obs [n, 24]."""
    ...

  def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
    """Executes actions [n, 7]."""
    ...

  def observe(self, active: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """'rgb_static', 'rgb_gripper' [n, S, S, 3] uint8, 'robot_obs', 'scene_obs'. Not active: old pictures."""
    ...

  def state(self) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs [n, 15], scene_obs [n, 24]."""
    ...


@dataclasses.dataclass(frozen=True)
class Skill:
  """Waypoints [W, 3] of the tcp in m, in the order they are visited, and the hand's Euler angles [3]."""

  waypoints: list[np.ndarray]
  euler: tuple[float, float, float] = FINGERS_DOWN


class TaughtEnvironment(Environment, Protocol):
  """A simulator with scripted experts: it also tells its name and the pose that its controller follows."""

  name: str

  def target_pose(self) -> tuple[np.ndarray, np.ndarray]:
    """Target position [3] in m and Euler angles [3] in rad of the tcp, moved by every action."""
    ...


class Skills(Protocol):
  """What a simulator's module of skills holds (`registry.load_skills`).

  A skill has small variation; its furniture stands at a joint's position in m.

  Attributes:
    WORKSPACE: lowest and highest corner [3] of the free space above the table, in m.
    SAFE_HEIGHT: z [m] above everything that stands on the table.
    LOW_HEIGHT: z [m] below which a hand is among the furniture.
    FREE_Y: y [m] up to which a hand can rise freely.
  """

  WORKSPACE: tuple[np.ndarray, np.ndarray]
  SAFE_HEIGHT: float
  LOW_HEIGHT: float
  FREE_Y: float

  def sample_start(
    self, task: str | None, rng: np.random.Generator, env: Any
  ) -> tuple[np.ndarray, np.ndarray]:
    """See the function of this name below."""
    ...

  def drawer(self, task: str, opened: float, rng: np.random.Generator) -> Skill:
    """open_drawer or close_drawer."""
    ...

  def slider(self, task: str, opened: float, rng: np.random.Generator) -> Skill:
    """move_slider_left or move_slider_right."""
    ...

  def lightbulb(self, task: str, position: float, rng: np.random.Generator) -> Skill:
    """turn_on_lightbulb or turn_off_lightbulb, by the switch."""
    ...

  def button(self, rng: np.random.Generator) -> Skill:
    """turn_on_led and turn_off_led."""
    ...
