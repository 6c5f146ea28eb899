"""Windows of frames as batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wam_jax.data.frames import Frames
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.training import sharding
from wam_jax.types import Batch

FIELDS = ("pictures", "robot_obs", "action", "prev_action", "is_first")


@struct.dataclass
class FrameStore:
  """All frames of a split on the device, flat, so that windows are gathered inside jit.

  Pictures are flat too: an accelerator lays [N, S, S, 3] out with N innermost, and a call that takes frames
  from it copies all of it first.

  Attributes:
    pictures: camera -> [N, S * S * 3] uint8.
    robot_obs: [N, state_size] float32.
    action: [N, A] float32.
    prev_action: [N, A] float32, at rest at an episode's first frame.
    is_first: [N] bool.
  """

  pictures: dict[str, jax.Array]
  robot_obs: jax.Array
  action: jax.Array
  prev_action: jax.Array
  is_first: jax.Array


def rest_actions(robot: Embodiment, *shape: int) -> np.ndarray:
  """A robot's action at rest, [*shape, A] float32: before an episode's first frame."""
  return np.tile(robot.rest_action, (*shape, 1))


def previous_actions(
  robot: Embodiment, action: np.ndarray, rows: np.ndarray, is_first: np.ndarray
) -> np.ndarray:
  """Actions that led to frames; the only place that shifts actions.

  Args:
    robot: whose actions they are.
    action: [N, A], taken at each frame.
    rows: [...] indices into N; of frame 0 only where it is a first one.
    is_first: [...] bool, of these frames.

  Returns:
    [..., A], at rest where is_first.
  """
  previous = action[rows - 1]
  previous[is_first] = robot.rest_action
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
    pictures={camera: put(array.reshape(len(array), -1)) for camera, array in frames.pictures.items()},
    robot_obs=put(np.asarray(frames.robot_obs, np.float32)),
    action=put(frames.action),
    prev_action=put(
      previous_actions(frames.embodiment, frames.action, np.arange(frames.num_frames), is_first)
    ),
    is_first=put(is_first),
  )


def gather(store: FrameStore, start: jax.Array, sequence_length: int) -> Batch:
  """Windows of frames as they are: start [B] -> Batch [B, T, ...], mask true everywhere."""
  rows = start[:, None] + jnp.arange(sequence_length)
  fields = {name: getattr(store, name) for name in FIELDS}
  batch = Batch(**jax.tree.map(lambda array: array[rows], fields), mask=jnp.ones(rows.shape, bool))

  def unfold(flat: jax.Array) -> jax.Array:
    side = math.isqrt(flat.shape[-1] // 3)
    return flat.reshape(*rows.shape, side, side, 3)

  return batch.replace(pictures=jax.tree.map(unfold, batch.pictures))


def begin_afresh(batch: Batch, robot: Embodiment) -> Batch:
  """Makes each window's first frame count as an episode's first, with the previous action at rest.

  That is what the model sees when it starts to filter in mid-episode.
  """
  rest = jnp.asarray(robot.rest_action, batch.prev_action.dtype)
  return batch.replace(
    prev_action=batch.prev_action.at[:, 0].set(rest), is_first=batch.is_first.at[:, 0].set(True)
  )


def carry_on(batch: Batch, start: jax.Array, step: jax.Array, resets: jax.Array) -> Batch:
  """Marks where the carried state of a window is not that of the frames before it, and resets.

  Args:
    batch: windows [B, T].
    start: [B], first frame of each, from `carried_starts`.
    step: update, from 0.
    resets: [B, T] bool, frames before which the state is set to zero.

  Returns:
    The batch with more `is_first`. As in LUMOS, the previous action stays what it was.
  """
  jumped = (start < batch.is_first.shape[1]) | (step == 0)
  is_first = (batch.is_first | resets).at[:, 0].set(batch.is_first[:, 0] | resets[:, 0] | jumped)
  return batch.replace(is_first=is_first)


def carried_starts(step: Any, num_frames: int, batch_size: int, sequence_length: int) -> Any:
  """First frames of the windows of update `step` when each row walks through the data.

  Row b begins at b/B of the data; each update moves it on by one window; at the end it goes to the
  beginning, a little shifted.

  Args:
    step: integer, or an array of them [...].
    num_frames: N.
    batch_size: B.
    sequence_length: T.

  Returns:
    [..., B] integers in [0, N - T], NumPy's or JAX's as `step` is.
  """
  rows = np.arange(batch_size, dtype=np.int32) * (num_frames // batch_size)
  return (rows + step[..., None] * sequence_length) % (num_frames - sequence_length + 1)


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Which windows an update sees: a function of its number and key alone. All methods can be jitted.

  Attributes:
    num_frames: N.
    batch_size: B.
    sequence_length: T, at most N.
    carry_state: each row walks through the data, and its state goes on from window to window (LUMOS).
      Otherwise windows are drawn uniformly over all starts, and each starts afresh. In both a window may
      cross into the next episode, where `is_first` is true.
    reset_probability: with `carry_state`, that the state is set to zero before a frame; LUMOS has 0.01.
    padding: windows after the B that do not count, so that devices share the rows evenly
      (`training.world_model_training.make_update`). The B are the same whatever follows them.
    embodiment: of the robot in the frames.
  """

  num_frames: int
  batch_size: int
  sequence_length: int
  carry_state: bool = False
  reset_probability: float = 0.0
  padding: int = 0
  embodiment: Embodiment = CALVIN

  @property
  def rows(self) -> int:
    """Windows of a batch, with the padding."""
    return self.batch_size + self.padding

  def __post_init__(self) -> None:
    if not 0 < self.sequence_length <= self.num_frames:
      raise ValueError(
        f"sequence_length must lie in [1, {self.num_frames} frames], got {self.sequence_length}"
      )

  def starts(self, key: jax.Array, step: jax.Array) -> jax.Array:
    """First frame of each window of update `step`: [B + padding] in [0, N - T]."""
    if self.carry_state:
      starts = carried_starts(step, self.num_frames, self.batch_size, self.sequence_length)
    else:
      starts = jax.random.randint(key, (self.batch_size,), 0, self.num_frames - self.sequence_length + 1)
    return sharding.repeat_rows(starts, self.rows)

  def finish(self, batch: Batch, key: jax.Array, step: jax.Array) -> Batch:
    """Marks in the windows of update `step`, as they are on disk, where the state begins anew."""
    if not self.carry_state:
      return begin_afresh(batch, self.embodiment)
    shape = self.batch_size, self.sequence_length
    resets = jax.random.bernoulli(jax.random.fold_in(key, 1), self.reset_probability, shape)
    return carry_on(batch, self.starts(key, step), step, sharding.repeat_rows(resets, self.rows))

  def sample(self, store: FrameStore, key: jax.Array, step: jax.Array) -> Batch:
    """Windows of update `step` from frames on the device: Batch [B + padding, T, ...], mask true."""
    return self.finish(gather(store, self.starts(key, step), self.sequence_length), key, step)


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
  shape, robot = (len(windows), length), frames.embodiment
  batch: dict[str, Any] = {
    "pictures": {
      camera: np.zeros((*shape, *array.shape[1:]), np.uint8) for camera, array in frames.pictures.items()
    },
    "robot_obs": np.zeros((*shape, robot.state_size), np.float32),
    "action": rest_actions(robot, *shape),
    "prev_action": rest_actions(robot, *shape),
    "is_first": np.zeros(shape, bool),
    "mask": np.zeros(shape, bool),
  }
  batch["is_first"][:, 0] = True
  for row, (start, end) in enumerate(windows):
    if not 0 <= start < end <= frames.num_frames or end - start > length:
      raise ValueError(f"window ({start}, {end}) must have 1 to {length} of the {frames.num_frames} frames")
    n = end - start
    for camera, pictures in frames.pictures.items():
      batch["pictures"][camera][row, :n] = pictures[start:end]
    batch["robot_obs"][row, :n] = frames.robot_obs[start:end]
    batch["action"][row, :n] = frames.action[start:end]
    batch["prev_action"][row, :n] = previous_actions(
      robot, frames.action, np.arange(start, end), batch["is_first"][row, :n]
    )
    batch["mask"][row, :n] = True
  return Batch(**batch)
