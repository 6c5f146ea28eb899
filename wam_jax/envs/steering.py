"""Steers a hand by CALVIN's relative actions: what experts and start states have in common."""

from __future__ import annotations

import numpy as np

from wam_jax.embodiment import ACTION
from wam_jax.envs import table

CLOSED, OPEN = -1.0, 1.0  # the gripper's number in an action


def wrap_angle(angle: np.ndarray) -> np.ndarray:
  """The same angles [rad] in [-pi, pi)."""
  return (angle + np.pi) % (2 * np.pi) - np.pi


def steer(
  env: table.TaughtTable, place: np.ndarray, euler: np.ndarray, gripper: float, speed: float = 1.0
) -> np.ndarray:
  """The action [7] that moves the target pose straight towards another, at a share of full speed."""
  position, angles = env.target_pose()
  move = place - position
  action = np.empty(ACTION)
  action[:3] = speed * move / max(table.ACTION_TRANSLATION, float(np.abs(move).max()))
  action[3:6] = np.clip(speed * wrap_angle(euler - angles) / table.ACTION_ROTATION, -1, 1)
  action[6] = gripper
  return action
