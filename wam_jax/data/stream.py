"""Windows of frames for training on more data than the device holds: which source to use, and the stream.

Frames that fit stay on the device (`windows.FrameStore`). Frames that do not are read from a
`FrameCache` by grain's threads while the updates before are computed. What an update sees depends on
its number alone, so that a run may stop, go on elsewhere, and change its source between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from wam_jax.core.backend import cpu_device
from wam_jax.data.files import DatasetError, PathLike
from wam_jax.data.frames import empty
from wam_jax.data.frames_cache import FrameCache
from wam_jax.data.windows import Sampler, previous_actions
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host.machine import host_bytes
from wam_jax.training.calls import call_end
from wam_jax.types import Batch

RESIDENCIES = ("auto", "device", "stream")
PIECE_BYTES = 128 * 2**20  # pictures handed over at a time; a few pieces are in memory at once
AHEAD_BYTES = 384 * 2**20  # pictures read ahead
# Memory of an update per byte of its pictures, by the dtype of the computation: convolutions of `paper`,
# nothing recomputed. In float32 measured on a CPU; in bfloat16 the compiler for a TPU v5e needs 33.
ACTIVATION_FACTORS = {"float32": 165, "bfloat16": 40}

Starts = Callable[[int], np.ndarray]  # update number -> [B] first frame of each of its windows


# ---------------------------------------------------------------------------------------------
# Which source.


def estimate_bytes(num_frames: int, image_size: int, robot: Embodiment = CALVIN) -> int:
  """Memory of a FrameStore of N frames: pictures, robot state, action, the one before, a flag."""
  numbers = robot.state_size + 2 * robot.action_size
  return num_frames * (len(robot.cameras) * image_size**2 * 3 + numbers * 4 + 1)


def training_bytes(
  num_parameters: int,
  batch_size: int,
  length: int,
  image_size: int,
  cameras: int = len(CALVIN.cameras),
  dtype: str = "float32",
) -> int:
  """Upper estimate of what training needs beside the frames.

  Parameters, gradients and Adam's moments, and the activations of one update: in float32 those of `paper`'s
  convolutions took 164 times the update's picture bytes, those of `demo`'s patches 30 times.
  """
  pictures = batch_size * length * cameras * image_size**2 * 3
  return 4 * 4 * num_parameters + ACTIVATION_FACTORS[dtype] * pictures


def available_bytes() -> tuple[int, str]:
  """Memory free for this process where JAX computes, and what memory that is."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() if device.platform != "cpu" else None
  if stats and "bytes_limit" in stats:
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0)), f"free on the {device.device_kind}"
  return host_bytes(), "free on this machine"


def choose_source(
  num_frames: int,
  image_size: int,
  robot: Embodiment = CALVIN,
  *,
  residency: str = "auto",
  limit_gb: float = 0.0,
  reserve: int = 0,
  processes: int = 1,
) -> tuple[str, str]:
  """Whether frames stay on the device or are streamed.

  Args:
    num_frames: N.
    image_size: S.
    robot: in the frames.
    residency: `config.data.residency`: auto, device or stream.
    limit_gb: `config.data.memory_limit_gb`, GB (1e9 bytes) for frames and training together; 0: what is free.
    reserve: bytes that must stay free for training, `training_bytes`.
    processes: of the run. With several, auto streams: each then reads its own windows only.

  Returns:
    ('device' | 'stream', a line for the log that says why).

  Raises:
    ValueError: unknown residency.
  """
  if residency not in RESIDENCIES:
    raise ValueError(f"residency must be one of {', '.join(RESIDENCIES)}, not {residency!r}")
  if processes > 1 and residency == "auto":
    return (
      "stream",
      f"{num_frames:,} frames are streamed from disk: {processes} processes read their own windows",
    )
  needed = estimate_bytes(num_frames, image_size, robot)
  if limit_gb:
    room, what = int(limit_gb * 1e9), "allowed by data.memory_limit_gb"
  else:
    room, what = available_bytes()
  fits = needed + reserve <= room
  source = ("device" if fits else "stream") if residency == "auto" else residency
  place = "stay on the device" if source == "device" else "are streamed from disk"
  verb = "fit" if fits else "do not fit"
  why = (
    f"{needed / 1e9:.2f} GB of frames and {reserve / 1e9:.2f} GB for training {verb} in the "
    f"{room / 1e9:.2f} GB {what}"
  )
  asked = "" if residency == "auto" else f"asked for by data.residency={residency}; "
  return source, f"{num_frames:,} frames {place}: {asked}{why}"


# ---------------------------------------------------------------------------------------------
# Which windows.


def check_windows(folder: PathLike, starts: np.ndarray, ends: np.ndarray, length: int) -> str:
  """Checks that a split is long enough for windows.

  Args:
    folder: the split, named in errors.
    starts: [E] first frame of each episode.
    ends: [E] one past the last frame of each episode.
    length: T, frames of a window.

  Returns:
    A line for the log if some episodes are shorter than a window, or ''.

  Raises:
    DatasetError: the split is shorter than a window.
  """
  lengths = np.asarray(ends) - np.asarray(starts)
  total = int(lengths.sum())
  if total < length:
    fix = "use a shorter world_model.sequence_length, or more data."
    raise DatasetError(folder, f"has {total} frames, too few for one window of {length}.", fix=fix)
  short = lengths < length
  if not short.any():
    return ""
  share = lengths[short].sum() / total
  return (
    f"{folder}: {int(short.sum())} of {len(lengths)} episodes ({share:.1%} of the frames) are shorter than a "
    f"window of {length} frames: windows there cross their ends"
  )


def starts_on_host(sampler: Sampler, key_of: Callable[[jax.Array], jax.Array]) -> Starts:
  """Windows of an update for the threads that read them: those that `sampler.sample` takes on the device.

  Args:
    sampler: which windows an update sees.
    key_of: update number -> the key that the sampler gets; can be jitted.

  Returns:
    Function of the update's number alone.
  """
  host = cpu_device()
  draw = jax.jit(lambda update: sampler.starts(key_of(update), update))

  def starts(update: int) -> np.ndarray:
    with jax.default_device(host):
      return np.asarray(jax.device_get(draw(jax.device_put(np.int32(update)))))

  return starts


# ---------------------------------------------------------------------------------------------
# The stream.


class _Pieces:
  """grain's random-access source: piece i holds the updates from borders[i] to borders[i + 1], stacked."""

  def __init__(
    self,
    cache: FrameCache,
    starts: Starts,
    batch_size: int,
    rows: slice,
    length: int,
    borders: np.ndarray,
  ):
    self._cache, self._starts, self._batch_size, self._length = cache, starts, batch_size, length
    self._own = rows
    self._borders, self._is_first = borders, cache.is_first
    self._is_first[0] = True

  def __len__(self) -> int:
    return len(self._borders) - 1

  def __getitem__(self, index: int) -> Batch:
    cache, updates = self._cache, range(*self._borders[index : index + 2].tolist())
    start = np.stack([self._starts(update) for update in updates])
    last = cache.num_frames - self._length
    if start.shape[1:] != (self._batch_size,) or start.min() < 0 or start.max() > last:
      raise ValueError(
        f"updates {updates}: expected {self._batch_size} starts of windows in [0, {last}], got {start}"
      )
    start = start[:, self._own]
    rows = start[..., None] + np.arange(self._length)  # [num, B, T]
    is_first = self._is_first[rows]
    batch: dict[str, Any] = {
      "robot_obs": cache.robot_obs[rows],
      "action": cache.action[rows],
      "prev_action": previous_actions(cache.embodiment, cache.action, rows, is_first),
      "is_first": is_first,
      "mask": np.ones(rows.shape, bool),
    }
    batch["pictures"] = {}
    for key in cache.embodiment.camera_names:
      batch["pictures"][key] = out = empty((*rows.shape, cache.image_size, cache.image_size, 3), np.uint8)
      with cache.reading(key) as read:
        for at in np.ndindex(start.shape):
          read(int(start[at]), out[at])
    return Batch(**batch)


def _piece_borders(
  first: int, total: int, per_call: int, stops: Sequence[int], per_piece: int
) -> tuple[np.ndarray, set[int]]:
  """Updates at which pieces begin (and the last one ends), and those at which calls do."""
  pieces, calls, step = [first], {first}, first
  while step < total:
    end = call_end(step, total, per_call, stops)
    pieces += [*range(step + per_piece, end, per_piece), end]
    calls.add(step := end)
  return np.array(pieces, np.int64), calls


def updates_per_piece(per_call: int, update_bytes: int) -> int:
  """Largest divisor of `per_call` whose pictures stay within PIECE_BYTES, at least 1."""
  divisors = (n for n in range(1, per_call + 1) if per_call % n == 0)
  return max(n for n in divisors if n == 1 or n * update_bytes <= PIECE_BYTES)


class WindowStream:
  """Windows of consecutive updates, read ahead by grain's threads.

  They are what `windows.gather` gives: `begin_afresh` or `carry_on` come after it. A call of the training
  loop takes its updates in pieces of at most PIECE_BYTES of pictures: 50 updates of `paper` at once would
  be 3 GB.

  Attributes:
    per_piece: updates of a piece; the last piece of a shorter call may have fewer.
  """

  def __init__(
    self,
    cache: FrameCache,
    starts: Starts,
    length: int,
    *,
    first_update: int,
    total: int,
    per_call: int,
    stops: Sequence[int] = (),
    rows: slice = slice(None),
    put: Callable[[Batch], Any] = jax.device_put,
    threads: int = 2,
  ):
    """Starts to read.

    Args:
      cache: N frames.
      starts: which windows an update sees.
      length: T, at most N.
      first_update: number of the first update to come, counted from 0.
      total: updates of the whole run.
      per_call: updates of a call, as in `train_loop`.
      stops: updates that a call must end at, as in `train_loop`.
      rows: of the B windows, those to read.
      put: run on each piece by the thread that read it; puts it on the device.
      threads: that read; 0: no reading ahead.

    Raises:
      DatasetError: fewer frames than a window has.
    """
    import grain.python as grain  # here: importing it takes 0.2 s, and few runs stream

    check_windows(cache.path, cache.starts, cache.ends, length)
    batch_size = len(starts(first_update))
    update_bytes = batch_size * length * len(cache.embodiment.cameras) * cache.image_size**2 * 3
    self.per_piece = updates_per_piece(per_call, update_bytes)
    self._borders, self._calls = _piece_borders(first_update, total, per_call, stops, self.per_piece)
    self._piece = 0
    self._iterator: Any = None
    if len(self._borders) > 1:
      ahead = int(np.clip(AHEAD_BYTES // (self.per_piece * update_bytes), 1, 8)) if threads else 0
      options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
      pieces = _Pieces(cache, starts, batch_size, rows, length, self._borders)
      self._iterator = iter(grain.MapDataset.source(pieces).map(put).to_iter_dataset(options))
      self._iterator.start_prefetch()

  def take(self, num: int) -> Iterator[Batch]:
    """The windows of the next call.

    Args:
      num: its updates.

    Yields:
      Batch [n, B, T, ...] as `put` returns it, the n adding up to `num`.

    Raises:
      DatasetError: the cache can no longer be read.
      ValueError: not a call that the arguments at construction lead to, or the stream is closed.
    """
    step = int(self._borders[self._piece])
    if num and step + num not in self._calls:
      raise ValueError(f"no call of {num} updates was announced at update {step}")
    while self._borders[self._piece] < step + num:
      if self._iterator is None:
        raise ValueError("the stream is closed")
      piece = next(self._iterator)
      self._piece += 1
      yield piece

  def close(self) -> None:
    """Stops reading ahead; a piece that is being read is read to its end and dropped."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def __enter__(self) -> WindowStream:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
