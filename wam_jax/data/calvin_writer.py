"""Writes frames in CALVIN's format; nothing half-written is ever taken for whole."""

from __future__ import annotations

import errno
import functools
import io
import os
import pathlib
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wam_jax.data.calvin import ANNOTATION_FILE
from wam_jax.data.files import IDS_FILE, DatasetError, PathLike, read_embodiment
from wam_jax.data.frames import BLOCK, check_vectors, frame_path, num_workers, vector_keys, vector_shape
from wam_jax.embodiment import CALVIN, FILE, Embodiment
from wam_jax.envs.tasks import SENTENCES


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

  Frames go to a hidden sibling folder, which `commit` renames. What an interrupted writer left there
  is removed by the next one.
  """

  def __init__(self, folder: PathLike, first_id: int = 0, workers: int = 0, embodiment: Embodiment = CALVIN):
    """Starts a split.

    Args:
      folder: of the split; must not exist yet.
      first_id: of its first frame.
      workers: threads; 0 means one per core.
      embodiment: of the robot in the frames; written next to the split, if it is not CALVIN's.

    Raises:
      FileExistsError: the folder exists.
      DatasetError: the dataset is of another robot.
    """
    self.embodiment, root = embodiment, pathlib.Path(folder).parent
    others = root.is_dir() and any(root.glob(f"*/{IDS_FILE}"))
    if others and (differences := embodiment.differences(read_embodiment(root))):
      rule = f"holds splits of another robot; this one has {'; '.join(differences)}."
      raise DatasetError(root, rule, fix="write each robot's data into a folder of their own.")
    self.folder = pathlib.Path(folder)
    if self.folder.exists():
      raise FileExistsError(f"{self.folder} exists: a split is written once")
    self._partial = self.folder.with_name(f".{self.folder.name}.partial")
    shutil.rmtree(self._partial, ignore_errors=True)
    self._partial.mkdir(parents=True)
    self._first, self._next = first_id, first_id
    self._pool = ThreadPoolExecutor(num_workers(workers))
    self._template: _NpzTemplate | None = None
    self._shapes: dict[str, tuple[int, ...]] = {}
    self._states: dict[str, list[np.ndarray]] = {}

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
    """
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
    if not n:
      return
    ids = np.arange(self._next, self._next + n)
    checked = {key: block[key].copy() for key in vector_keys(robot) if key in block}
    check_vectors(functools.partial(frame_path, self.folder), ids, checked, robot)
    if self._template is None:
      self._template = _NpzTemplate({key: array[0] for key, array in block.items()})
      self._shapes = {key: array.shape[1:] for key, array in block.items()}
    if any(block[key].shape[1:] != shape for key, shape in self._shapes.items()):
      raise ValueError("all frames of a split must have pictures of one size")
    template = self._template

    def write_rows(begin: int) -> None:
      for row in range(begin, min(begin + BLOCK, n)):
        data = template.fill({key: array[row] for key, array in block.items()})
        with open(frame_path(self._partial, ids[row]), "wb", buffering=0) as file:
          done = file.write(data)
          if done < len(data):  # the disk is full; the next write says so, unless room was made meanwhile
            file.write(memoryview(data)[done:])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    list(self._pool.map(write_rows, range(0, n, BLOCK)))
    for key in ("robot_obs", "scene_obs"):
      if key in block:
        self._states.setdefault(key, []).append(block[key])
    self._next += n

  def commit(
    self,
    lengths: Sequence[int],
    annotations: Sequence[tuple[str, int, int]],
    scene: str,
    extra: dict[str, dict[str, Any]] | None = None,
  ) -> int:
    """Writes ids, annotations and statistics, and gives the folder its name.

    Args:
      lengths: frames of each episode, in the order written.
      annotations: (task, first frame, one past the last) counted from this split's first frame.
      scene: name for scene_info.npy.
      extra: npz file name -> arrays, to be written beside.

    Returns:
      Id after the last frame: the next split's first.

    Raises:
      ValueError: lengths do not add up to the frames written.
    """
    if sum(lengths) != self._next - self._first or not len(lengths) or min(lengths) < 1:
      raise ValueError(
        f"episodes of {sum(lengths)} frames in all, but {self._next - self._first} were written"
      )
    ends = np.cumsum(np.asarray(lengths, np.int64)) + self._first
    folder = self._partial
    np.save(folder / IDS_FILE, np.stack([ends - np.asarray(lengths), ends - 1], 1))
    np.save(folder / "ep_lens.npy", np.asarray(lengths, np.int64))
    save_pickled(folder / "scene_info.npy", {scene: (self._first, self._next - 1)})
    (folder / ANNOTATION_FILE).parent.mkdir()
    windows = [(task, self._first + a, self._first + b) for task, a, b in annotations]
    save_pickled(folder / ANNOTATION_FILE, annotation_content(windows, SENTENCES))
    (folder / "statistics.yaml").write_text(_statistics(self._states))
    if self.embodiment != CALVIN:
      (self.folder.parent / FILE).write_text(self.embodiment.to_json())
    for name, arrays in (extra or {}).items():
      np.savez(folder / name, **arrays)
    os.rename(folder, self.folder)
    return self._next

  def close(self) -> None:
    """Stops the threads and removes what was not committed."""
    self._pool.shutdown()
    shutil.rmtree(self._partial, ignore_errors=True)

  def __enter__(self) -> FrameWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


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
