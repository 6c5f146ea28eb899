"""Windows of frames as batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wam_jax.data.calvin import Frames
from wam_jax.types import Batch

PROPRIO = 18
REST_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # before an episode's first frame: at rest, gripper open


@struct.dataclass
class FrameStore:
  """All frames of a split on the device, flat, so that windows are gathered inside jit.

  Attributes:
    rgb_static: [N, S, S, 3] uint8.
    rgb_gripper: [N, S, S, 3] uint8.
    proprio: [N, 18] float32, `proprio_features`.
    action: [N, 7] float32.
    prev_action: [N, 7] float32, at rest at an episode's first frame.
    is_first: [N] bool.
  """

  rgb_static: jax.Array
  rgb_gripper: jax.Array
  proprio: jax.Array
  action: jax.Array
  prev_action: jax.Array
  is_first: jax.Array


def proprio_features(robot_obs: np.ndarray) -> np.ndarray:
  """Robot state for networks. Angles become sine and cosine: the roll sits at +-pi and jumps.

  Args:
    robot_obs: [..., 15] tcp xyz [m], Euler angles [rad], gripper width [m], 7 joints [rad], last
      gripper action.

  Returns:
    [..., 18] float32: xyz (3), sines (3), cosines (3), width (1), joints (7), last gripper action (1).

  Raises:
    ValueError: last dimension is not 15.
  """
  robot_obs = np.asarray(robot_obs)
  if robot_obs.shape[-1:] != (15,):
    raise ValueError(f"robot_obs: expected [..., 15], got {list(robot_obs.shape)}")
  angles = robot_obs[..., 3:6]
  parts = (robot_obs[..., :3], np.sin(angles), np.cos(angles), robot_obs[..., 6:])
  return np.concatenate(parts, -1).astype(np.float32)


def _previous(action: np.ndarray, is_first: np.ndarray) -> np.ndarray:
  """Action that led to each frame: [N, 7], at rest where is_first [N]."""
  previous = np.empty_like(action)
  previous[1:] = action[:-1]
  previous[is_first] = REST_ACTION
  return previous


def make_store(frames: Frames) -> FrameStore:
  """Puts a split on the device. On a CPU the pictures keep their memory: do not write to them after.

  Args:
    frames: N frames, at least one.

  Returns:
    FrameStore.
  """
  is_first = frames.is_first
  is_first[0] = True
  put = jax.device_put  # unlike jnp.asarray it takes page-aligned host memory over without a copy
  return FrameStore(
    rgb_static=put(frames.rgb_static),
    rgb_gripper=put(frames.rgb_gripper),
    proprio=put(proprio_features(frames.robot_obs)),
    action=put(frames.action),
    prev_action=put(_previous(frames.action, is_first)),
    is_first=put(is_first),
  )


def sample_batch(store: FrameStore, key: jax.Array, batch_size: int, sequence_length: int) -> Batch:
  """Draws windows uniformly over all starts. Jittable, with both sizes static.

  A window may cross into the next episode, where `is_first` is true. Its own first frame counts as
  first too, with the previous action at rest: what the model sees when it starts to filter there.

  Args:
    store: N frames.
    key: random key.
    batch_size: B.
    sequence_length: T, at most N.

  Returns:
    Batch [B, T, ...], mask true everywhere.

  Raises:
    ValueError: T is longer than the data.
  """
  total = store.action.shape[0]
  if not 0 < sequence_length <= total:
    raise ValueError(f"sequence_length must lie in [1, {total} frames], got {sequence_length}")
  start = jax.random.randint(key, (batch_size, 1), 0, total - sequence_length + 1)
  rows = start + jnp.arange(sequence_length)
  return Batch(
    rgb_static=store.rgb_static[rows],
    rgb_gripper=store.rgb_gripper[rows],
    proprio=store.proprio[rows],
    action=store.action[rows],
    prev_action=store.prev_action[rows].at[:, 0].set(jnp.asarray(REST_ACTION, store.prev_action.dtype)),
    is_first=store.is_first[rows].at[:, 0].set(True),
    mask=jnp.ones(rows.shape, bool),
  )


def episode_batch(frames: Frames, windows: Sequence[tuple[int, int]], length: int) -> Batch:
  """Whole windows side by side, for filtering demos from their first frames.

  Args:
    frames: N frames.
    windows: B pairs (start, end exclusive), indices into the frames.
    length: T; shorter windows are padded at the end.

  Returns:
    Batch [B, T, ...] of NumPy arrays. In the padding mask is false, pictures are black and actions rest.

  Raises:
    ValueError: no windows, or one that is empty, outside the frames, or longer than T.
  """
  if not windows:
    raise ValueError("no windows")
  shape = (len(windows), length)
  size = frames.rgb_static.shape[1:]
  rest = np.tile(np.asarray(REST_ACTION, np.float32), (*shape, 1))
  batch: dict[str, Any] = {
    "rgb_static": np.zeros((*shape, *size), np.uint8),
    "rgb_gripper": np.zeros((*shape, *size), np.uint8),
    "proprio": np.zeros((*shape, PROPRIO), np.float32),
    "action": rest,
    "prev_action": rest.copy(),
    "is_first": np.zeros(shape, bool),
    "mask": np.zeros(shape, bool),
  }
  batch["is_first"][:, 0] = True
  for row, (start, end) in enumerate(windows):
    if not 0 <= start < end <= frames.num_frames or end - start > length:
      raise ValueError(f"window ({start}, {end}) must have 1 to {length} of the {frames.num_frames} frames")
    n = end - start
    batch["rgb_static"][row, :n] = frames.rgb_static[start:end]
    batch["rgb_gripper"][row, :n] = frames.rgb_gripper[start:end]
    batch["proprio"][row, :n] = proprio_features(frames.robot_obs[start:end])
    batch["action"][row, :n] = frames.action[start:end]
    batch["prev_action"][row, 1:n] = frames.action[start : end - 1]
    batch["mask"][row, :n] = True
  return Batch(**batch)
