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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wam_jax.data.calvin import ANNOTATION_FILE
from wam_jax.data.files import IDS_FILE, PathLike
from wam_jax.data.frames import BLOCK, check_vectors, frame_path, num_workers, vector_keys
from wam_jax.embodiment import ACTION, CALVIN, CAMERAS
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


_KEYS = vector_keys(CALVIN, ("scene_obs",))


class FrameWriter:
  """Writes a split frame by frame; it appears under its own name only when whole.

  Frames go to a hidden sibling folder, which `commit` renames. What an interrupted writer left there
  is removed by the next one.
  """

  def __init__(self, folder: PathLike, first_id: int = 0, workers: int = 0):
    """Starts a split.

    Args:
      folder: of the split; must not exist yet.
      first_id: of its first frame.
      workers: threads; 0 means one per core.

    Raises:
      FileExistsError: the folder exists.
    """
    self.folder = pathlib.Path(folder)
    if self.folder.exists():
      raise FileExistsError(f"{self.folder} exists: a split is written once")
    self._partial = self.folder.with_name(f".{self.folder.name}.partial")
    shutil.rmtree(self._partial, ignore_errors=True)
    self._partial.mkdir(parents=True)
    self._first, self._next = first_id, first_id
    self._pool = ThreadPoolExecutor(num_workers(workers))
    self._template: _NpzTemplate | None = None
    self._states: dict[str, list[np.ndarray]] = {"robot_obs": [], "scene_obs": []}

  def write(
    self,
    *,
    actions: np.ndarray,
    rel_actions: np.ndarray,
    robot_obs: np.ndarray,
    scene_obs: np.ndarray,
    rgb_static: np.ndarray,
    rgb_gripper: np.ndarray,
  ) -> None:
    """Appends n frames.

    Args:
      actions: [n, 7] target pose (xyz [m], Euler [rad]) and gripper that the relative action leads to.
      rel_actions: [n, 7] in [-1, 1], gripper exactly +1 or -1.
      robot_obs: [n, 15].
      scene_obs: [n, 24].
      rgb_static: [n, S, S, 3] uint8.
      rgb_gripper: [n, S, S, 3] uint8.

    Raises:
      ValueError: shapes or dtypes do not fit.
      DatasetError: a value that the reader would refuse.
    """
    block = {"actions": actions, "rel_actions": rel_actions, "robot_obs": robot_obs, "scene_obs": scene_obs}
    block = {key: np.array(value, np.float64, order="C") for key, value in block.items()}
    n = len(block["actions"])
    for key, size in {"actions": ACTION, **_KEYS}.items():
      if block[key].shape != (n, size):
        raise ValueError(f"{key}: expected [{n}, {size}], got {list(block[key].shape)}")
    for key, picture in zip(CAMERAS, (rgb_static, rgb_gripper), strict=True):
      if picture.dtype != np.uint8 or picture.ndim != 4 or len(picture) != n or picture.shape[3] != 3:
        raise ValueError(f"{key}: expected uint8 [{n}, S, S, 3], got {picture.dtype} {list(picture.shape)}")
      block[key] = np.ascontiguousarray(picture)
    if not n:
      return
    ids = np.arange(self._next, self._next + n)
    check_vectors(functools.partial(frame_path, self.folder), ids, {key: block[key] for key in _KEYS}, CALVIN)
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
    for key, parts in self._states.items():
      parts.append(block[key])
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
    save_pickled(
      folder / ANNOTATION_FILE,
      {
        "language": {
          "ann": [SENTENCES.get(task, task.replace("_", " ")) for task, _, _ in annotations],
          "task": [task for task, _, _ in annotations],
          "emb": np.zeros((len(annotations), 1, 384), np.float32),  # no language model here: a placeholder
        },
        "info": {"episodes": [], "indx": [(self._first + a, self._first + b) for _, a, b in annotations]},
      },
    )
    (folder / "statistics.yaml").write_text(_statistics(self._states))
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
