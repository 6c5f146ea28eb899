"""A robot that is not CALVIN's, and a dataset of it on disk."""

from __future__ import annotations

import numpy as np

from wam_jax.data.calvin_writer import FrameWriter
from wam_jax.data.files import read_npz
from wam_jax.data.frames import frame_path
from wam_jax.embodiment import ActionDimension, Camera, Embodiment, StateDimension

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
  """A split of `LENGTHS` frames; `changes` replace what the fourth frame holds, None leaves it out."""
  rng, ends = np.random.default_rng(seed), np.cumsum(LENGTHS)
  spans = [(int(ends[i] - LENGTHS[i]), int(ends[i])) for i in DEMOS]
  n, (low, high) = int(ends[-1]), robot.action_ranges.T
  sizes = {camera.name: camera.size or (16, 16) for camera in robot.cameras}
  with FrameWriter(folder, embodiment=robot) as writer:
    writer.write(
      **{name: rng.integers(0, 256, (n, *size, 3), np.uint8) for name, size in sizes.items()},
      rel_actions=np.where(
        robot.binary,
        low + (high - low) * rng.choice([0.0, 1.0], (n, 1)),
        rng.uniform(low, high, (n, len(low))),
      ),
      robot_obs=rng.normal(3.0, 2.0, (n, robot.state_size)),
      success=np.array([any(first + SUCCESS_FROM <= i < end for first, end in spans) for i in range(n)]),
    )
    writer.commit(LENGTHS, [(TASK, *span) for span in spans], "kitchen")
  for path in [frame_path(folder, 3)] if changes else []:
    frame = read_npz(path) | changes
    np.savez(path, **{key: value for key, value in frame.items() if value is not None})


def write_dataset(root, robot=ARM):
  """A dataset of both splits, with its embodiment.json."""
  for seed, split in enumerate(("training", "validation")):
    write_frames(root / split, robot, seed)
