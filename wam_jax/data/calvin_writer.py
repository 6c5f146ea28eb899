"""Writes frames in CALVIN's format; nothing half-written is ever taken for whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from wam_jax.data.calvin import ANNOTATION_FILE
from wam_jax.data.files import IDS_FILE, MAX_ID, DatasetError, PathLike, read_embodiment, read_npz
from wam_jax.data.frames import (
  BLOCK,
  check_vectors,
  frame_path,
  list_frames,
  num_workers,
  vector_keys,
  vector_shape,
)
from wam_jax.embodiment import CALVIN, FILE, Embodiment, from_dict
from wam_jax.envs.tasks import SENTENCES
from wam_jax.host import locks
from wam_jax.host.words import count, task_name
from wam_jax.storage import checksums

LOCK = ".lock"  # in the folder of a split that is being written


class _NpzTemplate:
  """Bytes of an uncompressed npz with fixed shapes, into which values and checksums are put."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    body, directory, self._members = bytearray(), bytearray(), []
    for key, array in arrays.items():
      buffer = io.BytesIO()
      np.lib.format.write_array(buffer, np.zeros_like(array), allow_pickle=False)
      content, name = buffer.getvalue(), f"{key}.npy".encode()
      # 33 = 1980-01-01, the archive format's zero: the same frames always give the same bytes.
      common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, len(content), len(content), len(name), 0)
      offset = len(body)
      body += b"PK\x03\x04" + common + name
      begin, value = len(body), len(body) + len(content) - array.nbytes
      body += content
      crc_in_directory = len(directory) + 16
      directory += (
        b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name
      )
      self._members.append((key, offset + 14, crc_in_directory, begin, value, len(body)))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(arrays), len(arrays), len(directory), len(body), 0)
    self._members = [
      (key, crc, len(body) + in_directory, begin, value, stop)
      for key, crc, in_directory, begin, value, stop in self._members
    ]
    self._bytes = bytes(body + directory + end)

  def fill(self, arrays: dict[str, np.ndarray]) -> bytearray:
    """The archive with these values (C order, same shapes and dtypes as at construction)."""
    data = bytearray(self._bytes)
    view = memoryview(data)
    for key, local_crc, directory_crc, begin, value, stop in self._members:
      view[value:stop] = arrays[key].reshape(-1).view(np.uint8).data
      crc = struct.pack("<I", zlib.crc32(view[begin:stop]))
      view[local_crc : local_crc + 4] = crc
      view[directory_crc : directory_crc + 4] = crc
    return data


class FrameWriter:
  """Writes a split frame by frame; it appears under its own name only when whole.

  Frames go to a hidden sibling folder, `partial_folder`, which `commit` renames. No error deletes frames that
  are written: what an interrupted recording left there is kept until a writer with `go_on` takes it over. Two
  writers of one split are kept apart by a lock, where the file system has locks.
  """

  def __init__(
    self,
    folder: PathLike,
    first_id: int = 0,
    workers: int = 0,
    embodiment: Embodiment = CALVIN,
    go_on: bool = False,
  ):
    """Starts a split, or goes on with one.

    Args:
      folder: of the split; must not exist yet.
      first_id: of its first frame.
      workers: threads; 0 means one per core.
      embodiment: of the robot in the frames; written next to the split, if it is not CALVIN's.
      go_on: keep the frames that an interrupted writer left, if there are any, and write on after them.

    Raises:
      FileExistsError: the folder exists, another writer is at work there, or frames of an interrupted one are
        there and `go_on` is false.
      DatasetError: the dataset is of another robot, or a frame that was left cannot be gone on from.
      EmbodimentError: the embodiment breaks a rule of its file.
    """
    # As it will be read: what cannot be written down is refused now, not after hours of recording.
    self.folder, self.embodiment = pathlib.Path(folder), from_dict(embodiment.to_dict())
    if self.folder.exists():
      raise FileExistsError(f"{self.folder} exists: a split is written once")
    self._check_robot()
    self._partial = partial_folder(self.folder)
    self._first, self._next = first_id, first_id
    self._template: _NpzTemplate | None = None
    self._shapes: dict[str, tuple[int, ...]] = {}
    self._states: dict[str, list[np.ndarray]] = {}
    try:
      self._partial.mkdir(parents=True)
    except FileExistsError:
      if not go_on:
        raise FileExistsError(
          f"{self._partial} is there: a recording that was not committed, or still runs. "
          "FrameWriter(..., go_on=True) goes on after its frames; delete the folder if they are not needed"
        ) from None
    self._lock = contextlib.ExitStack()
    try:
      with contextlib.suppress(locks.NoLocksError):
        self._lock.enter_context(locks.locked(self._partial / LOCK, wait=False))
    except locks.TakenError:
      raise FileExistsError(f"{self._partial}: another writer is at work there; wait for it") from None
    try:
      self._take_over()
    except BaseException:
      self._unlock()
      raise
    self._pool = futures.ThreadPoolExecutor(num_workers(workers))

  @property
  def num_frames(self) -> int:
    """Frames written so far, those that were gone on from included."""
    return self._next - self._first

  def _check_robot(self) -> None:
    """Raises DatasetError if the dataset that the split belongs to is of another robot."""
    root = self.folder.parent
    if not os.path.lexists(root / FILE) and not any(
      path for path in root.glob(f"*/{IDS_FILE}") if not path.parent.name.startswith(".")
    ):
      return
    robot = read_embodiment(root)
    if robot != self.embodiment:
      differences = self.embodiment.differences(robot) or ["pictures of another size"]
      rule = f"holds data of another robot; this one has {'; '.join(differences)}."
      raise DatasetError(
        root, rule, fix=f"write each robot's data, and its {FILE}, into a folder of their own."
      )

  def _unlock(self) -> None:
    """Lets go of the folder, and leaves nothing of the lock in it."""
    (self._partial / LOCK).unlink(missing_ok=True)
    self._lock.close()

  def _take_over(self) -> None:
    """Counts the frames that are there as written, if they are whole and follow each other."""
    _, ids = list_frames(self._partial)
    if (ids != self._first + np.arange(len(ids))).any():
      rule = (
        f"holds {len(ids)} frames from {ids[0]} to {ids[-1]}; they must follow each other from {self._first}."
      )
      raise DatasetError(
        self._partial, rule, fix="go on with the same first_id, or move other frames elsewhere."
      )
    for frame_id in ids.tolist():
      path = frame_path(self._partial, frame_id)
      try:
        frame = read_npz(path)
      except DatasetError as error:
        fix = "move it and the frames after it elsewhere, then go on."
        raise DatasetError(path, error.rule, key=error.key, fix=fix) from None
      try:
        self._count(self._checked({key: array[None] for key, array in frame.items()}))
      except ValueError as error:  # also DatasetError
        fix = "go on with the embodiment that it was recorded with."
        raise DatasetError(path, getattr(error, "rule", f"{error}."), fix=fix) from None

  def write(self, **frames: np.ndarray) -> None:
    """Appends n frames.

    Args:
      **frames: rel_actions [n, A] in the robot's ranges (CALVIN's: [-1, 1], gripper exactly +1 or -1);
        robot_obs [n, state_size]; of each camera [n, H, W, 3] uint8. They may also have success [n], whether
        the task is done; scene_obs [n, 24], CALVIN's scene; and actions [n, A], absolute: CALVIN's are the
        target pose (xyz [m], Euler [rad]) and gripper that the relative action leads to. All calls have the
        same keys.

    Raises:
      ValueError: keys, shapes or dtypes do not fit.
      DatasetError: a value that the reader would refuse.
      OSError: the disk is full, or cannot be written; none of these frames is written.
    """
    block = self._checked(frames)
    n, first = len(block["rel_actions"]), self._next
    if not n:
      return
    if self._template is None or not self._shapes:
      self._template = _NpzTemplate({key: array[0] for key, array in block.items()})
    template = self._template

    def write_rows(begin: int) -> None:
      for row in range(begin, min(begin + BLOCK, n)):
        data = template.fill({key: array[row] for key, array in block.items()})
        with open(frame_path(self._partial, first + row), "wb", buffering=0) as file:
          done = file.write(data)
          if done < len(data):  # the disk is full; the next write says so, unless room was made meanwhile
            file.write(memoryview(data)[done:])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    parts = [self._pool.submit(write_rows, begin) for begin in range(0, n, BLOCK)]
    try:
      for part in parts:
        part.result()
    except Exception:
      futures.wait(parts)  # then none of this call's frames is there, and the call can be repeated
      for frame_id in range(first, first + n):
        frame_path(self._partial, frame_id).unlink(missing_ok=True)
      raise
    self._count(block)

  def _checked(self, frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The frames as they are stored. Raises as `write`."""
    robot = self.embodiment
    widths = {"actions": robot.action_size} | vector_keys(robot)
    needed, keys = {"rel_actions", "robot_obs", *robot.camera_names}, set(frames)
    if not needed <= keys <= needed | set(widths) or (self._shapes and keys != set(self._shapes)):
      expected = sorted(self._shapes or needed)
      raise ValueError(f"frames: expected {', '.join(expected)}, got {', '.join(sorted(keys))}")
    present = {key: width for key, width in widths.items() if key in frames}
    try:
      block = {key: np.array(frames[key], np.float64, order="C") for key in present}
    except (ValueError, TypeError) as error:
      raise ValueError(f"frames: {', '.join(present)} must be arrays of numbers ({error})") from None
    n = len(block["rel_actions"])
    for key, size in present.items():
      if block[key].shape != (n, *vector_shape(size)):
        raise ValueError(f"{key}: expected {[n, *vector_shape(size)]}, got {list(block[key].shape)}")
    for camera in robot.cameras:
      key, picture = camera.name, np.ascontiguousarray(frames[camera.name])
      wanted = (n, *(camera.size or picture.shape[1:3]), 3)
      if picture.dtype != np.uint8 or picture.ndim != 4 or picture.shape != wanted:
        shape = f"[{n}, {', '.join(map(str, camera.size or 'HW'))}, 3]"
        raise ValueError(f"{key}: expected uint8 {shape}, got {picture.dtype} {list(picture.shape)}")
      block[key] = picture
    ids = np.arange(self._next, self._next + n)
    if n and not 0 <= ids[0] <= ids[-1] <= MAX_ID:
      raise ValueError(f"frames {ids[0]} to {ids[-1]}: numbers of frames go from 0 to {MAX_ID}")
    checked = {key: block[key].copy() for key in vector_keys(robot) if key in block}
    check_vectors(functools.partial(frame_path, self.folder), ids, checked, robot)
    if any(block[key].shape[1:] != shape for key, shape in self._shapes.items()):
      raise ValueError("all frames of a split must have pictures of one size")
    return block

  def _count(self, block: dict[str, np.ndarray]) -> None:
    """Takes note of frames that are on the disk."""
    self._shapes = {key: array.shape[1:] for key, array in block.items()}
    for key in ("robot_obs", "scene_obs"):
      if key in block:
        self._states.setdefault(key, []).append(block[key])
    self._next += len(block["rel_actions"])

  def commit(
    self,
    lengths: Sequence[int],
    annotations: Sequence[tuple[str, int, int]],
    scene: str,
    extra: dict[str, dict[str, Any]] | None = None,
  ) -> int:
    """Writes ids, annotations and statistics, and gives the folder its name.

    Whatever it raises, all frames are kept, and it can be called again.

    Args:
      lengths: frames of each episode, in the order written.
      annotations: (task, first frame, one past the last) counted from this split's first frame, each in one
        episode.
      scene: name for scene_info.npy.
      extra: npz file name -> arrays, to be written beside.

    Returns:
      Id after the last frame: the next split's first.

    Raises:
      ValueError: lengths do not add up to the frames written, or a window is not in one episode.
      FileExistsError: something else has got the split's name meanwhile.
      DatasetError: the dataset has become another robot's meanwhile.
    """
    if problem := _commit_problem(self.num_frames, lengths, annotations, scene, extra or {}):
      raise ValueError(f"{problem}{self._kept}")
    if self.folder.exists():
      raise FileExistsError(f"{self.folder} exists: a split is written once{self._kept}")
    self._check_robot()
    ends = np.cumsum(np.asarray(lengths, np.int64)) + self._first
    folder = self._partial
    np.save(folder / IDS_FILE, np.stack([ends - np.asarray(lengths), ends - 1], 1))
    np.save(folder / "ep_lens.npy", np.asarray(lengths, np.int64))
    save_pickled(folder / "scene_info.npy", {scene: (self._first, self._next - 1)})
    (folder / ANNOTATION_FILE).parent.mkdir(exist_ok=True)
    windows = [(str(task), self._first + int(a), self._first + int(b)) for task, a, b in annotations]
    save_pickled(folder / ANNOTATION_FILE, annotation_content(windows, SENTENCES))
    (folder / "statistics.yaml").write_text(_statistics(self._states))
    for name, arrays in (extra or {}).items():
      np.savez(folder / name, **arrays)
    if self.embodiment != CALVIN:
      checksums.write_text(self.folder.parent / FILE, self.embodiment.to_json())
    (folder / LOCK).unlink(missing_ok=True)
    os.rename(folder, self.folder)
    return self._next

  @property
  def _kept(self) -> str:
    """Where frames are that were not committed, and what to do; empty if there are none."""
    if not self.num_frames or not self._partial.exists():
      return ""
    kept = f"what was written ({count(self.num_frames, 'frame')}) is kept in {self._partial}"
    return f"; {kept}: commit again, after this program with FrameWriter(..., go_on=True)"

  def close(self) -> None:
    """Stops the threads; frames that were not committed are kept."""
    self._pool.shutdown()
    self._unlock()
    if not self.num_frames:
      with contextlib.suppress(OSError):  # gone, as it was committed, or what a failed `write` left is in it
        self._partial.rmdir()

  def __enter__(self) -> FrameWriter:
    return self

  def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
    self.close()
    if (kept := self._kept) and error is None:
      warnings.warn(f"{self.folder} was not committed{kept}", RuntimeWarning, stacklevel=2)
    elif error is not None and kept not in str(error):
      error.add_note(f"{self.folder} was not committed{kept}")


def partial_folder(folder: PathLike) -> pathlib.Path:
  """Where a split's frames are until it is committed."""
  folder = pathlib.Path(folder)
  return folder.with_name(f".{folder.name}.partial")


def _commit_problem(
  num_frames: int, lengths: object, annotations: object, scene: object, extra: Mapping[str, object]
) -> str:
  """What is wrong with the arguments of `commit`; empty if nothing is."""
  sizes = _array(lengths)
  if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not len(sizes) or (sizes < 1).any():
    return f"lengths: must be whole numbers above 0, one for each episode, not {str(lengths)[:80]}"
  if sizes.sum() != num_frames:
    return f"lengths: episodes of {sizes.sum()} frames in all, but {num_frames} were written"
  if not isinstance(annotations, Sequence):
    return f"annotations: must be a list of (task, first frame, one past the last), not {annotations!r:.80}"
  ends = np.cumsum(sizes)
  for row, window in enumerate(annotations):
    sound = isinstance(window, Sequence) and len(window) == 3 and isinstance(window[0], str)
    span = _array(window[1:] if sound else ())
    if span.shape != (2,) or span.dtype.kind not in "iu" or not task_name(window[0]):
      return f"annotations[{row}]: must be (task, first frame, one past the last), not {str(window)[:80]}"
    first, end = span.tolist()
    episode = min(int(np.searchsorted(ends, first, side="right")), len(ends) - 1)
    begin, stop = int(ends[episode] - sizes[episode]), int(ends[episode])
    if not begin <= first < end <= stop:
      where = f"episode {episode} goes from {begin} to {stop} of {num_frames}"
      return f"annotations[{row}]: frames {first} to {end} of {window[0]} do not lie in one episode; {where}"
  if not isinstance(scene, str):
    return f"scene: must be a name, not {str(scene)[:80]}"
  for name in extra:
    if not isinstance(name, str) or pathlib.PurePath(name).name != name or not name.endswith(".npz"):
      return f"extra: {name!r} must be the name of an npz file"
  return ""


def _array(values: object) -> np.ndarray:
  """Values as an array; of objects where they have no common type or shape."""
  try:
    return np.asarray(values)
  except (ValueError, OverflowError):
    return np.empty(0, object)


def annotation_content(windows: Sequence[tuple[str, int, int]], texts: Mapping[str, str]) -> dict[str, Any]:
  """What a file of annotations holds.

  Args:
    windows: (task, first id, one past the last id).
    texts: task -> the same in words, where it is not its name.
  """
  return {
    "language": {
      "ann": [texts.get(task, task.replace("_", " ")) for task, _, _ in windows],
      "task": [task for task, _, _ in windows],
      "emb": np.zeros((len(windows), 1, 384), np.float32),  # no language model here: a placeholder
    },
    "info": {"episodes": [], "indx": [(low, high) for _, low, high in windows]},
  }


def save_pickled(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes an npy file that `files.load_pickled` reads, as CALVIN's annotations are."""
  holder = np.empty((), object)
  holder[()] = content
  np.save(path, holder, allow_pickle=True)


def _statistics(states: dict[str, list[np.ndarray]]) -> str:
  """Mean and standard deviation in the layout of CALVIN's statistics.yaml."""
  lines = []
  for key, parts in states.items():
    values = np.concatenate(parts)
    lines += [f"{key}:", "- _target_: calvin_agent.utils.transforms.NormalizeVector"]
    for name, numbers in (("mean", values.mean(0)), ("std", values.std(0))):
      lines += [f"  {name}:", *(f"  - {float(number)!r}" for number in numbers)]
  return "\n".join(lines) + "\n"
