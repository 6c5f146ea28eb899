"""A split as a few flat files, which windows are read from at the speed of memory.

A window of a split in CALVIN's format is one archive per frame, unpacked and shrunk at every visit.
The cache holds the shrunk pictures one after the other (`rgb_static.npy`, `rgb_gripper.npy`), all else
in `vectors.npz`, and `manifest.json`. It is written beside its place and renamed when whole, so one
that is there is whole; it is made anew when the split's files have changed since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wam_jax.data.calvin import Spans, open_split, read_episode_ids
from wam_jax.data.files import DatasetError, PathLike, read_npz
from wam_jax.data.frames import (
  OPTIONAL,
  FrameReader,
  Frames,
  FrameVectors,
  ProgressFactory,
  empty,
  vector_shape,
)
from wam_jax.embodiment import CALVIN
from wam_jax.host.locks import LockError, NoLocksError, locked
from wam_jax.host.machine import disk_full
from wam_jax.host.regular_files import open_file, read_text
from wam_jax.storage import checksums

VERSION = 1
_VECTORS = ("action", "robot_obs", "starts", "ends", "ids")
_REMAKE = "delete this folder; it is made again."
_OTHER_FOLDER = "set config.data.cache to a folder that can be written to."
_LOAD_BLOCK = 4096  # frames read at a time: 50 MB of pictures of one camera


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameCache(FrameVectors):
  """An open cache. Pictures stay on disk, all else is in memory.

  Attributes:
    path: its folder.
    image_size: S.
  """

  path: pathlib.Path
  image_size: int

  @contextlib.contextmanager
  def reading(self, key: str) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Opens the pictures of one camera.

    Args:
      key: its name.

    Yields:
      read(begin, out): fills out, contiguous uint8 [n, S, S, 3], with frames [begin, begin + n).

    Raises:
      DatasetError: the file is gone or ends too early.
    """
    path = self.path / f"{key}.npy"
    head = len(_header(self.num_frames, self.image_size))
    frame_bytes = self.image_size**2 * 3

    def read(begin: int, out: np.ndarray) -> None:
      view, offset = out.data.cast("B"), head + begin * frame_bytes
      while view:
        got = os.preadv(file.fileno(), [view], offset)  # not a map: mapped pages would count as ours
        if not got:
          raise DatasetError(path, "ends too early.", fix=_REMAKE)
        view, offset = view[got:], offset + got

    try:
      with open_file(path, buffering=0) as file:
        yield read
    except OSError as error:
      raise DatasetError(path, f"cannot be read ({error.strerror}).", fix=_REMAKE) from None

  def load(self, progress: ProgressFactory | None = None) -> Frames:
    """All frames, in page-aligned memory that JAX on a CPU takes over without a copy."""
    shape = (self.num_frames, self.image_size, self.image_size, 3)
    pictures = {}
    cameras = self.embodiment.camera_names
    total = len(cameras) * self.num_frames
    bar = progress(total, "loading frames") if progress else contextlib.nullcontext()
    with bar as shown:
      for key in cameras:
        pictures[key] = empty(shape, np.uint8)
        with self.reading(key) as read:
          for begin in range(0, self.num_frames, _LOAD_BLOCK):
            block = pictures[key][begin : begin + _LOAD_BLOCK]
            read(begin, block)
            if shown is not None:
              shown.update(len(block))
    vectors = {field.name: getattr(self, field.name) for field in dataclasses.fields(FrameVectors)}
    return Frames(pictures=pictures, **vectors)


def cache_path(
  root: PathLike, folder: PathLike, image_size: int, extra: Sequence[Spans] = ()
) -> pathlib.Path:
  """Where in `root` the cache of a split belongs; splits and picture sizes can share a root."""
  folder = pathlib.Path(folder).resolve()
  digest = hashlib.sha256(f"{folder} {image_size}".encode())
  for other, spans in extra:
    digest.update(f" {pathlib.Path(other).resolve()}".encode() + spans.tobytes())
  name = digest.hexdigest()[:8]
  return pathlib.Path(root) / f"{folder.name}-{image_size}-{name}"


def open_cache(
  root: PathLike,
  folder: PathLike,
  image_size: int = 64,
  workers: int = 0,
  progress: ProgressFactory | None = None,
  log: Callable[[str], None] = lambda text: None,
  extra: Sequence[Spans] = (),
) -> FrameCache:
  """Opens the cache of a split, and makes it before if it is absent or out of date.

  Of several processes that ask at the same time one makes it and the others wait.

  Args:
    root: folder for caches; made if it is absent.
    folder: a split: training/ or validation/.
    image_size: S, side of the pictures [pixels].
    workers: threads that read the split; 0 means one per core.
    progress: as in `calvin.read_frames`.
    log: called with lines for the log.
    extra: spans of other splits, behind the split's own frames: see `calvin.open_split`.

  Raises:
    DatasetError: the split breaks a rule, or the disk has no room.
  """
  folder, path = pathlib.Path(folder), cache_path(root, folder, image_size, extra)
  read_episode_ids(folder)  # an error before any folder is made
  with _locked(path, log):
    reader = open_split(folder, image_size, extra)
    manifest = {
      "version": VERSION,
      "split": str(folder.resolve()),
      "files": reader.signature(),
      "frames": len(reader.ids),
      "image_size": image_size,
    }
    robot = reader.embodiment
    if robot != CALVIN:
      manifest["embodiment"] = robot.to_dict()
    problem = _mismatch(path, reader, manifest)
    if problem:
      log(f"frames cache {path}: {problem}; reading {len(reader.ids):,} frames into it")
      _make(path, reader, manifest, workers, progress)
    else:
      log(f"frames cache {path}: {len(reader.ids):,} frames")
  vectors = read_npz(path / "vectors.npz", _VECTORS, tuple(OPTIONAL))
  return FrameCache(path=path, image_size=image_size, embodiment=robot, **vectors)


@contextlib.contextmanager
def _locked(path: pathlib.Path, log: Callable[[str], None]) -> Iterator[None]:
  with contextlib.ExitStack() as stack:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locked(path.with_name(f".{path.name}.lock"), wait=True))
    except NoLocksError as error:
      log(f"frames cache {path}: {error}. Until then start no second run that makes it.")
    except (OSError, LockError) as error:
      reason = error.strerror if isinstance(error, OSError) else error
      raise DatasetError(path, f"the frames cache cannot be written: {reason}.", fix=_OTHER_FOLDER) from None
    yield


def _header(num_frames: int, image_size: int) -> bytes:
  """First bytes of a file of pictures: it is an npy file."""
  buffer = io.BytesIO()
  shape = (num_frames, image_size, image_size, 3)
  np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
  return buffer.getvalue()


def _picture_bytes(num_frames: int, image_size: int) -> int:
  return len(_header(num_frames, image_size)) + num_frames * image_size**2 * 3


def _mismatch(path: pathlib.Path, reader: FrameReader, manifest: dict[str, object]) -> str:
  """Why the cache at `path` cannot be used for a split with this manifest; '' if it can."""
  try:
    found = json.loads(read_text(path / "manifest.json"))
  except FileNotFoundError:
    return "none there yet"
  except (OSError, ValueError, RecursionError):
    return "its manifest is damaged"
  if found != manifest:
    return "the split's files have changed since it was made"
  size = _picture_bytes(len(reader.ids), reader.image_size)
  for key in reader.embodiment.camera_names:
    file = path / f"{key}.npy"
    if not file.is_file() or file.stat().st_size != size:
      return f"{file.name} has not the {size:,} bytes that it must have"
  return "" if (path / "vectors.npz").is_file() else "vectors.npz is absent"


def _make(
  path: pathlib.Path,
  reader: FrameReader,
  manifest: dict[str, object],
  workers: int,
  progress: ProgressFactory | None,
) -> None:
  """Reads the split once and writes it in blocks; the memory it needs does not grow with the pictures."""
  total, size = len(reader.ids), reader.image_size
  needed = len(reader.embodiment.cameras) * _picture_bytes(total, size)
  partial = path.with_name(f".{path.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  try:
    if path.exists():
      shutil.rmtree(path)
    partial.mkdir()
    _fill(partial, reader, workers, progress)
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    checksums.sync_files(partial)
    os.rename(partial, path)
  except OSError as error:
    free = shutil.disk_usage(path.parent).free
    room = f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB were free"
    full = disk_full(error)
    raise DatasetError(
      path,
      f"the frames cache cannot be written: {room if full else error.strerror}.",
      fix="set config.data.cache to a folder on a disk with more room." if full else _OTHER_FOLDER,
    ) from None
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: pathlib.Path, reader: FrameReader, workers: int, progress: ProgressFactory | None) -> None:
  total, size = len(reader.ids), reader.image_size
  head, frame_bytes = _header(total, size), size**2 * 3
  widths, cameras = reader.widths, reader.embodiment.camera_names
  vectors = {key: np.empty((total, *vector_shape(width)), np.float32) for key, width in widths.items()}
  with contextlib.ExitStack() as stack:
    files = {key: stack.enter_context(open(partial / f"{key}.npy", "wb", buffering=0)) for key in cameras}
    for file in files.values():
      if hasattr(os, "posix_fallocate"):  # a disk that is too small says so now and not in an hour
        os.posix_fallocate(file.fileno(), 0, _picture_bytes(total, size))
      file.write(head)

    def copy(begin: int, stop: int) -> None:
      block = {key: np.empty((stop - begin, size, size, 3), np.uint8) for key in cameras}
      reader.read(begin, stop, {**{key: array[begin:stop] for key, array in vectors.items()}, **block})
      for key, pictures in block.items():
        view, offset = pictures.data.cast("B"), len(head) + begin * frame_bytes
        while view:
          done = os.pwrite(files[key].fileno(), view, offset)
          view, offset = view[done:], offset + done

    reader.for_each_block(copy, workers, progress)
  arrays: dict[str, Any] = {key: array for key, array in vectors.items() if key != "rel_actions"}
  if "success" in arrays:
    arrays["success"] = arrays["success"].astype(bool)
  np.savez(
    partial / "vectors.npz",
    action=vectors["rel_actions"],
    **arrays,
    starts=reader.starts,
    ends=reader.ends,
    ids=reader.ids,
  )
