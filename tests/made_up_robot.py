"""A robot that is not CALVIN's, and a dataset of it on disk."""

from __future__ import annotations

import numpy as np

from wam_jax.data.calvin import ANNOTATION_FILE
from wam_jax.data.calvin_writer import save_pickled
from wam_jax.data.files import IDS_FILE
from wam_jax.data.frames import frame_path
from wam_jax.embodiment import FILE, ActionDimension, Camera, Embodiment, StateDimension

ARM = Embodiment(
  cameras=(Camera("top", (24, 32)), Camera("side", (20, 16)), Camera("wrist")),
  action=(
    *(ActionDimension(f"joint_{i}", range=(-90.0, 45.0), rest=-22.5) for i in range(3)),
    ActionDimension("grip", "binary", (0.0, 1.0), 1.0),
    *(ActionDimension(f"joint_{i}") for i in range(3, 5)),
  ),
  state=(
    *(StateDimension(f"joint_{i}") for i in range(5)),
    StateDimension("turn", "angle"),
    StateDimension("height", "scaled", 10.0),
    StateDimension("closed", "binary"),
    StateDimension("load"),
  ),
  control_hz=15.0,
)
TASK = "stack_cups"  # that no simulator knows
LENGTHS, DEMOS = (20, 9, 8), (1, 2)  # frames of the episodes, and those that are demos
SUCCESS_FROM = 6  # frames of a demo until the task is done


def write_frames(folder, robot=ARM, seed=0, **changes):
  """A split of `LENGTHS` frames; `changes` replace what all frames hold, None leaves it out."""
  rng, folder = np.random.default_rng(seed), folder
  (folder / ANNOTATION_FILE).parent.mkdir(parents=True)
  ends = np.cumsum(LENGTHS)
  np.save(folder / IDS_FILE, np.stack([ends - LENGTHS, ends - 1], 1))
  spans = [(int(ends[i] - LENGTHS[i]), int(ends[i])) for i in DEMOS]
  content = {"language": {"task": [TASK] * len(spans)}, "info": {"indx": spans}}
  save_pickled(folder / ANNOTATION_FILE, content)
  sizes = {camera.name: camera.size or (16, 16) for camera in robot.cameras}
  low, high = robot.action_ranges.T
  for i in range(ends[-1]):
    action = np.where(robot.binary, rng.choice([0.0, 1.0]), rng.uniform(low, high))
    frame = {
      **{name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in sizes.items()},
      "rel_actions": action,
      "robot_obs": rng.normal(3.0, 2.0, robot.state_size),
      "success": any(first + SUCCESS_FROM <= i < end for first, end in spans),
    } | changes
    np.savez(frame_path(folder, i), **{key: value for key, value in frame.items() if value is not None})


def write_dataset(root, robot=ARM):
  """A dataset of both splits, with its embodiment.json."""
  for seed, split in enumerate(("training", "validation")):
    write_frames(root / split, robot, seed)
  (root / FILE).write_text(robot.to_json())
