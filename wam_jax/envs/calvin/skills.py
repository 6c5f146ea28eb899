"""How the eight skills are done on CALVIN's table (scene D), and where its episodes start."""

from __future__ import annotations

import math

import numpy as np

from wam_jax.envs.base import FINGERS_DOWN, Skill
from wam_jax.envs.calvin.simulator import CalvinTable
from wam_jax.envs.experts import CLOSED, OPEN, sample_furniture, steer

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
      if all(np.linalg.norm(block[:3] - other[:3]) > _BLOCK_DISTANCE for other in blocks[:row]):
        break
    block[5] = rng.uniform(-np.pi, np.pi)
  return blocks.ravel()


def sample_start(
  task: str | None, rng: np.random.Generator, env: CalvinTable
) -> tuple[np.ndarray, np.ndarray]:
  """See `experts.sample_start`: the hand is driven there from the neutral posture; the blocks settle."""
  for _ in range(_START_ATTEMPTS):
    scene_obs = sample_furniture(task, rng)
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


def drawer(task: str, opened: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  x, z = 0.18 + rng.uniform(-0.02, 0.02), 0.365 + rng.uniform(-0.004, 0.004)
  if task == "open_drawer":  # down between front and handle, then pull
    y = -0.212 - opened
    return Skill([np.array(p) for p in ((x, y, 0.50), (x, y, z), (x, y - 0.24, z))])
  y = -0.32 - opened  # before the handle, then push
  return Skill([np.array(p) for p in ((x, y, 0.50), (x, y, z), (x, -0.24, z))])


def slider(task: str, opened: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  handle, side = 0.04 - opened, 1.0 if task == "move_slider_left" else -1.0
  x, z = handle + side * (0.085 + rng.uniform(0, 0.01)), 0.51 + rng.uniform(-0.004, 0.004)
  y = -0.008 + rng.uniform(-0.004, 0.004)  # deep beside the handle, or a noisy hand slips off
  end = x - side * 0.33
  return Skill([np.array(p) for p in ((x, -0.12, 0.60), (x, y, 0.60), (x, y, z), (end, y, z))])


def lightbulb(task: str, position: float, rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  if task == "turn_on_lightbulb":  # from below, then up the slope
    under = np.array([0.30 + rng.uniform(-0.01, 0.01), 0.0, 0.480])
    before = under + np.array([0, -0.12, 0.06])
    return Skill(
      [before, under + np.array([0, -0.08, 0.005]), under + _SLOPE_UP * position, under + _SLOPE_UP * 0.12],
      _TILTED,
    )
  top = np.array([0.27 + rng.uniform(-0.01, 0.01), 0.036, 0.585])
  return Skill(
    [
      top + np.array([0, -0.10, 0.095]),
      top + _SLOPE_UP * (position + 0.015),
      top - _SLOPE_UP * 0.05,
    ],
    _TILTED,
  )


def button(rng: np.random.Generator) -> Skill:
  """See `experts.Skills`."""
  above = np.array([-0.12, -0.12, 0.56]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
  return Skill([above, above - np.array([0, 0, 0.10])])
