"""What can be done on the play table and how, and where its episodes start."""

from __future__ import annotations

import functools
import math
import threading
from typing import TYPE_CHECKING

import numpy as np

from wam_jax.embodiment import ROBOT_OBS
from wam_jax.envs import goals
from wam_jax.envs.play_table import scene
from wam_jax.envs.steering import CLOSED, OPEN, wrap_angle
from wam_jax.envs.table import FINGERS_DOWN, Route, Skill, Table, find_skill, skill_table

if TYPE_CHECKING:
  from wam_jax.envs.play_table import simulator

WORKSPACE = np.array([-0.25, -0.30, 0.53]), np.array([0.25, -0.10, 0.70])  # m, lowest and highest corner
_LEVER_TILT = (math.pi - 0.5, 0.0, 2.1)  # at the lever a vertical hand is out of the arm's reach
SAFE_HEIGHT = 0.55  # m, above everything that stands on the desk
LOW_HEIGHT, FREE_Y = 0.50, -0.11

_cache = threading.local()


def _arm() -> simulator.ArmKinematics:
  if not hasattr(_cache, "arm"):
    from wam_jax.envs.play_table import simulator  # not above: it brings MuJoCo along

    _cache.arm = simulator.ArmKinematics()
  return _cache.arm


def _sample_posture(rng: np.random.Generator) -> np.ndarray:
  """robot_obs [15] with the gripper at a random reachable place above the desk."""
  arm = _arm()
  while True:
    position = rng.uniform(*WORKSPACE)
    euler = np.array(FINGERS_DOWN) + rng.uniform(-0.15, 0.15, 3)
    joints = arm.inverse(np.array(scene.ARM_HOME), position, euler, iterations=40)
    reached, reached_euler = arm.forward(joints)
    if np.abs(reached - position).max() < 0.01 and np.abs(wrap_angle(reached_euler - euler)).max() < 0.05:
      break
  gripper = rng.choice([CLOSED, OPEN])
  robot_obs = np.empty(ROBOT_OBS)
  robot_obs[:3], robot_obs[3:6] = reached, reached_euler
  robot_obs[6] = 2 * scene.FINGER_RANGE[1] if gripper == OPEN else 0.0
  robot_obs[7:14], robot_obs[14] = joints, gripper
  return robot_obs


def _sample_blocks(rng: np.random.Generator) -> np.ndarray:
  """[18] blocks lying on the desk, apart from each other, the button and the lever."""
  blocks = np.zeros((3, 6))
  placed: list[np.ndarray] = []
  for block, name in zip(blocks, scene.BLOCKS, strict=True):
    while True:
      place = rng.uniform((-0.38, -0.14), (0.38, -0.04))
      clear = np.linalg.norm(place - scene.BUTTON_XY) > 0.10
      clear &= place[0] < scene.SWITCH_ORIGIN[0] - 0.12  # the hand comes to the lever low over the desk
      if clear and all(np.linalg.norm(place - neighbour) > 0.10 for neighbour in placed):
        break
    placed.append(place)
    block[:2], block[2] = place, scene.DESK_TOP + scene.BLOCK_HALF_SIZE[name][2]
    block[5] = rng.uniform(-np.pi, np.pi)
  return blocks.ravel()


def sample_start(
  task: str | None, rng: np.random.Generator, env: Table | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """See `experts.sample_start`; needs no environment."""
  del env
  scene_obs = goals.sample_furniture(find_skill(SKILLS, task).task if task is not None else None, rng)
  scene_obs[6:] = _sample_blocks(rng)
  return _sample_posture(rng), scene_obs


def _at_the_drawer(rng: np.random.Generator) -> tuple[float, float]:
  """x and z [m] of a hand at the drawer's handle."""
  return scene.DRAWER_ORIGIN[0] + rng.uniform(-0.03, 0.03), 0.349 + rng.uniform(-0.004, 0.004)


def _open_drawer(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Between front and handle, then pull."""
  x, z = _at_the_drawer(rng)
  y = -0.221 - scene_obs[goals.DRAWER]
  return Route([np.array([x, y, 0.48]), np.array([x, y, z]), np.array([x, y - 0.24, z])])


def _close_drawer(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Before the handle, then push."""
  x, z = _at_the_drawer(rng)
  y = -0.295 - scene_obs[goals.DRAWER]
  return Route([np.array([x, y, 0.45]), np.array([x, y, z]), np.array([x, y + 0.26, z])])


def _move_slider(side: float, scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """Next to the handle, on its right (side 1) or left (-1), then to the other side."""
  handle = (
    np.array(scene.SLIDER_ORIGIN) + 0.06 * scene.SLOPE_NORMAL - np.array([scene_obs[goals.SLIDER], 0, 0])
  )
  before = handle + np.array(
    [side * (0.05 + rng.uniform(0, 0.01)), -0.10, 0.012 + rng.uniform(-0.006, 0.006)]
  )
  beside = before.copy()
  beside[1] = handle[1] + rng.uniform(-0.004, 0.004)
  beside -= 0.010 * scene.SLOPE_NORMAL  # deeper than the handle's middle, or a noisy hand slips off
  return Route([before, beside, beside - np.array([side * 0.30, 0, 0])])


def _at_the_lever(scene_obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """[3] m, a place on the lever of the light bulb's switch."""
  position = scene_obs[goals.SWITCH]
  lever = np.array(scene.SWITCH_ORIGIN) + 0.05 * scene.SLOPE_NORMAL + position * scene.SLOPE_UP
  lever[0] += rng.uniform(-0.02, 0.02)
  return lever


# Strokes at the lever go a little deeper than its middle, or a noisy hand slips off.
def _turn_on_lightbulb(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From below, then up the slope."""
  lever, depth = _at_the_lever(scene_obs, rng), 0.008 * scene.SLOPE_NORMAL
  before, under = lever + np.array([0, -0.09, 0]), lever + np.array([0, -0.03, -0.008])
  touching = lever + np.array([0, -0.012, -0.003]) - depth
  return Route([before, under, touching, lever + 0.12 * scene.SLOPE_UP - depth], _LEVER_TILT)


def _turn_off_lightbulb(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From above, then down the slope."""
  lever, depth = _at_the_lever(scene_obs, rng), 0.010 * scene.SLOPE_NORMAL
  above, touching = lever + np.array([0, -0.03, 0.10]), lever + np.array([0, -0.002, 0.035]) - depth
  return Route(
    [above, touching, lever - 0.11 * scene.SLOPE_UP + np.array([0, -0.002, 0]) - depth], _LEVER_TILT
  )


def _press_button(scene_obs: np.ndarray, rng: np.random.Generator) -> Route:
  """From above; the button stands where it stands."""
  del scene_obs
  above = np.array([*scene.BUTTON_XY, 0.54]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
  return Route([above, above - np.array([0, 0, 0.08])])


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
