"""Meta-World: its robot and eight of its tasks, without the package, so that plans can ask.

Source: Yu et al. 2019, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement
Learning"; the package `metaworld`. Each task has a scene, in which Meta-World places the furniture at random;
success is as Meta-World counts it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from wam_jax.embodiment import ActionDimension, Camera, Embodiment, StateDimension

ACTION_REPEAT = 3  # Meta-World's 80 steps per second are many for chunks of four actions
PLAY_STEPS = 96  # after which play goes on in another scene

_POSITIONS = 10  # seven joints of the arm, two of the fingers, one of the furniture: in each of the scenes
# What a snapshot holds, in this order, and how many numbers: the task's place in TASKS, where the furniture
# stands, joints, their speeds, from where MuJoCo's solver starts, and where the hand is pulled.
PARTS = {"task": 1, "place": 3, "qpos": _POSITIONS, "qvel": _POSITIONS, "warmstart": _POSITIONS, "target": 3}
WIDTH = sum(PARTS.values())


@dataclasses.dataclass(frozen=True)
class Task:
  """A task of Meta-World.

  Attributes:
    environment: its name there.
    scene: file of its scene; tasks of one scene can follow each other.
    furniture: the body of the scene that Meta-World places.
    aim: m, how far from the handle the package's policy is to take it to be.
  """

  environment: str
  scene: str
  furniture: str
  aim: tuple[float, float, float] = (0.0, 0.0, 0.0)


# A row's place is part of snapshots and of the seed of recordings: append only.
TASKS = {
  "drawer_open": Task("drawer-open-v3", "sawyer_drawer", "drawer"),
  "drawer_close": Task("drawer-close-v3", "sawyer_drawer", "drawer"),
  "window_open": Task("window-open-v3", "sawyer_window_horizontal", "window"),
  "window_close": Task("window-close-v3", "sawyer_window_horizontal", "window"),
  "faucet_open": Task("faucet-open-v3", "sawyer_faucet", "faucetBase"),
  "button_press": Task("button-press-v3", "sawyer_button_press", "box"),
  "handle_press": Task("handle-press-v3", "sawyer_handle_press", "box"),
  # Else the hand comes down on the wrong side of the handle, from one start in sixteen.
  "door_open": Task("door-open-v3", "sawyer_door_pull", "door", (0.02, 0.0, 0.0)),
}
NAMES = tuple(TASKS)

SAWYER = Embodiment(
  cameras=(Camera("corner2"), Camera("gripperPOV")),
  # Motion of the hand's target by 1 cm in each of Meta-World's steps; effort of the fingers, -1 opens.
  action=(*(ActionDimension(name) for name in ("x", "y", "z")), ActionDimension("gripper", rest=-1.0)),
  # Where Meta-World says the hand is; how far open the fingers are, from 0 to 1.
  state=(
    *(StateDimension(f"hand {axis}", "scaled", 10.0) for axis in "xyz"),
    StateDimension("gripper opening", "scaled"),
  ),
  control_hz=80.0 / ACTION_REPEAT,
)


def split(snapshot: np.ndarray) -> dict[str, np.ndarray]:
  """The parts of a snapshot [W] by name."""
  pieces = np.split(snapshot, np.cumsum(list(PARTS.values()))[:-1])
  return dict(zip(PARTS, pieces, strict=True))


def check_snapshot(snapshot: np.ndarray) -> np.ndarray:
  """A snapshot [W] as float64. Raises ValueError: wrong shape, not finite, no such task."""
  snapshot = np.asarray(snapshot, np.float64)
  if snapshot.shape != (WIDTH,) or not np.isfinite(snapshot).all():
    raise ValueError(
      f"start: must be {WIDTH} finite numbers, a state of Meta-World, not {list(snapshot.shape)}"
    )
  if snapshot[0] not in range(len(TASKS)):
    raise ValueError(f"start[0] = {snapshot[0]:g}: must be a task's number, from 0 to {len(TASKS) - 1}")
  return snapshot
