"""How the eight skills are done on the play table, and where its episodes start."""

from __future__ import annotations

import math
import threading

import numpy as np

from wam_jax.embodiment import ROBOT_OBS
from wam_jax.envs import base
from wam_jax.envs.base import FINGERS_DOWN, Skill
from wam_jax.envs.experts import CLOSED, OPEN, sample_furniture, wrap_angle
from wam_jax.envs.play_table import scene, simulator

WORKSPACE = np.array([-0.25, -0.30, 0.53]), np.array([0.25, -0.10, 0.70])  # m, lowest and highest corner
_LEVER_TILT = (math.pi - 0.5, 0.0, 2.1)  # at the lever a vertical hand is out of the arm's reach
SAFE_HEIGHT = 0.55  # m, above everything that stands on the desk
LOW_HEIGHT, FREE_Y = 0.50, -0.11

_cache = threading.local()


def _arm() -> simulator.ArmKinematics:
  if not hasattr(_cache, "arm"):
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
      if clear and all(np.linalg.norm(place - other) > 0.10 for other in placed):
        break
    placed.append(place)
    block[:2], block[2] = place, scene.DESK_TOP + scene.BLOCK_HALF_SIZE[name][2]
    block[5] = rng.uniform(-np.pi, np.pi)
  return blocks.ravel()


def sample_start(
  task: str | None, rng: np.random.Generator, env: base.Environment | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """See `experts.sample_start`; needs no environment."""
  del env
  scene_obs = sample_furniture(task, rng)
  scene_obs[6:] = _sample_blocks(rng)
  return _sample_posture(rng), scene_obs


def drawer(task: str, opened: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  x = scene.DRAWER_ORIGIN[0] + rng.uniform(-0.03, 0.03)
  z = 0.349 + rng.uniform(-0.004, 0.004)
  if task == "open_drawer":  # between front and handle, then pull
    y = -0.221 - opened
    return Skill([np.array([x, y, 0.48]), np.array([x, y, z]), np.array([x, y - 0.24, z])])
  y = -0.295 - opened  # before the handle, then push
  return Skill([np.array([x, y, 0.45]), np.array([x, y, z]), np.array([x, y + 0.26, z])])


def slider(task: str, opened: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  handle = np.array(scene.SLIDER_ORIGIN) + 0.06 * scene.SLOPE_NORMAL - np.array([opened, 0, 0])
  side = 1.0 if task == "move_slider_left" else -1.0
  before = handle + np.array(
    [side * (0.05 + rng.uniform(0, 0.01)), -0.10, 0.012 + rng.uniform(-0.006, 0.006)]
  )
  beside = before.copy()
  beside[1] = handle[1] + rng.uniform(-0.004, 0.004)
  beside -= 0.010 * scene.SLOPE_NORMAL  # deeper than the handle's middle, or a noisy hand slips off
  return Skill([before, beside, beside - np.array([side * 0.30, 0, 0])])


def lightbulb(task: str, position: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  lever = np.array(scene.SWITCH_ORIGIN) + 0.05 * scene.SLOPE_NORMAL + position * scene.SLOPE_UP
  lever[0] += rng.uniform(-0.02, 0.02)
  # Strokes go a little deeper than the lever's middle, or a noisy hand slips off.
  if task == "turn_on_lightbulb":  # from below, then up the slope
    depth = 0.008 * scene.SLOPE_NORMAL
    before, under = lever + np.array([0, -0.09, 0]), lever + np.array([0, -0.03, -0.008])
    touching = lever + np.array([0, -0.012, -0.003]) - depth
    return Skill([before, under, touching, lever + 0.12 * scene.SLOPE_UP - depth], _LEVER_TILT)
  depth = 0.010 * scene.SLOPE_NORMAL
  above, touching = lever + np.array([0, -0.03, 0.10]), lever + np.array([0, -0.002, 0.035]) - depth
  return Skill(
    [above, touching, lever - 0.11 * scene.SLOPE_UP + np.array([0, -0.002, 0]) - depth], _LEVER_TILT
  )


def button(rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  above = np.array([*scene.BUTTON_XY, 0.54]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
  return Skill([above, above - np.array([0, 0, 0.08])])
