"""What can be done on CALVIN's table (scene D) and how, and where its episodes start."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from wam_jax.envs import goals
from wam_jax.envs.steering import CLOSED, OPEN, steer
from wam_jax.envs.table import FINGERS_DOWN, Route, Skill, find_skill, skill_table

if TYPE_CHECKING:
  from wam_jax.envs.calvin.simulator import CalvinTable

WORKSPACE = np.array([-0.25, -0.30, 0.55]), np.array([0.28, -0.10, 0.68])  # m, lowest and highest corner
_TILTED = (math.pi, -0.6, math.pi / 2)  # fingers point down and away from the robot's side, as at the switch
SAFE_HEIGHT = 0.56  # m, above all blocks
LOW_HEIGHT, FREE_Y = 0.52, -0.12
_SLOPE_UP = np.array([0.0, 0.5, 0.866])  # the way the switch moves
_BLOCK_DISTANCE = 0.08  # m between blocks at the start
_START_ATTEMPTS = 100
_DRIVE_STEPS = 60  # at most, from the neutral posture to where an episode starts


def _sample_blocks(rng: np.random.Generator, env: CalvinTable) -> np.ndarray:
  """[18] blocks on the surfaces that the scene names for them, turned at random, apart from each other."""
  surfaces = list(env.surfaces.values())
  blocks = np.zeros((3, 6))
  for row, block in enumerate(blocks):
    while True:
      block[:3] = rng.uniform(*surfaces[int(rng.integers(len(surfaces)))])
      if all(np.linalg.norm(block[:3] - neighbour[:3]) > _BLOCK_DISTANCE for neighbour in blocks[:row]):
        break
    block[5] = rng.uniform(-np.pi, np.pi)
  return blocks.ravel()


def sample_start(
  task: str | None, rng: np.random.Generator, env: CalvinTable
) -> tuple[np.ndarray, np.ndarray]:
  """See `experts.sample_start`: the hand is driven there from the neutral posture; the blocks settle."""
  rule = find_skill(SKILLS, task).task if task is not None else None
  for _ in range(_START_ATTEMPTS):
    scene_obs = goals.sample_furniture(rule, rng)
    scene_obs[6:] = _sample_blocks(rng, env)
    env.reset(None, scene_obs)
    place = rng.uniform(*WORKSPACE)
    euler = np.array(FINGERS_DOWN) + rng.uniform(-0.15, 0.15, 3)
    gripper = OPEN if rng.integers(2) else CLOSED
    for _ in range(_DRIVE_STEPS):
      action = steer(env, place, euler, gripper)
      if np.abs(action[:6]).max() < 0.05:
        break
      env.step(action)
    for _ in range(4):
      env.step(np.append(np.zeros(6), gripper))
    robot_obs, reached = env.state()
    # A hand that stuck, or furniture pushed by a block: another try.
    if np.linalg.norm(robot_obs[:3] - place) < 0.03 and np.abs(reached[:4] - scene_obs[:4]).max() < 0.005:
      return robot_obs, reached
  raise RuntimeError(
    f"no start of {task or 'play'} could be reached in {_START_ATTEMPTS} attempts; is calvin_env changed?"
  )


def _at_the_drawer(rng: np.random.Generator) -> tuple[float, float]:
  """x and z [m] of a hand at the drawer's handle."""
  return 0.18 + rng.uniform(-0.02, 0.02), 0.365 + rng.uniform(-0.004, 0.004)


def _open_drawer(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Down between front and handle, then pull."""
  x, z = _at_the_drawer(rng)
  y = -0.212 - scene_obs[goals.DRAWER]
  return Route([np.array(p) for p in ((x, y, 0.50), (x, y, z), (x, y - 0.24, z))])


def _close_drawer(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Before the handle, then push."""
  x, z = _at_the_drawer(rng)
  y = -0.32 - scene_obs[goals.DRAWER]
  return Route([np.array(p) for p in ((x, y, 0.50), (x, y, z), (x, -0.24, z))])


def _move_slider(side: float, scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Next to the handle, on its right (side 1) or left (-1), then to the other side."""
  handle = 0.04 - scene_obs[goals.SLIDER]
  x, z = handle + side * (0.085 + rng.uniform(0, 0.01)), 0.51 + rng.uniform(-0.004, 0.004)
  y = -0.008 + rng.uniform(-0.004, 0.004)  # deep next to the handle, or a noisy hand slips off
  end = x - side * 0.33
  return Route([np.array(p) for p in ((x, -0.12, 0.60), (x, y, 0.60), (x, y, z), (end, y, z))])


def _turn_on_lightbulb(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From below, then up the slope."""
  under = np.array([0.30 + rng.uniform(-0.01, 0.01), 0.0, 0.480])
  return Route(
    [
      under + np.array([0, -0.12, 0.06]),
      under + np.array([0, -0.08, 0.005]),
      under + _SLOPE_UP * scene_obs[goals.SWITCH],
      under + _SLOPE_UP * 0.12,
    ],
    _TILTED,
  )


def _turn_off_lightbulb(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From above, then down the slope."""
  top = np.array([0.27 + rng.uniform(-0.01, 0.01), 0.036, 0.585])
  return Route(
    [
      top + np.array([0, -0.10, 0.095]),
      top + _SLOPE_UP * (scene_obs[goals.SWITCH] + 0.015),
      top - _SLOPE_UP * 0.05,
    ],
    _TILTED,
  )


def _press_button(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From above; the button stands where it stands."""
  del scene_obs
  above = np.array([-0.12, -0.12, 0.56]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
  return Route([above, above - np.array([0, 0, 0.10])])


SKILLS = skill_table(
  Skill(goals.CALVIN["open_drawer"], _open_drawer),
  Skill(goals.CALVIN["close_drawer"], _close_drawer),
  Skill(goals.CALVIN["move_slider_left"], functools.partial(_move_slider, 1.0)),
  Skill(goals.CALVIN["move_slider_right"], functools.partial(_move_slider, -1.0)),
  Skill(goals.CALVIN["turn_on_lightbulb"], _turn_on_lightbulb),
  Skill(goals.CALVIN["turn_off_lightbulb"], _turn_off_lightbulb),
  Skill(goals.CALVIN["turn_on_led"], _press_button),
  Skill(goals.CALVIN["turn_off_led"], _press_button),
)
