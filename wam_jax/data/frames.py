"""Frames of a split in CALVIN's format, one npz each: read in any order, checked.

CALVIN writes `episode_%07d.npz`; other prefixes and numbers of digits are found from the files, as its own
loaders do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wam_jax.core import image as image_lib
from wam_jax.data.files import COPY_AGAIN, IDS_FILE, MAX_ID, DatasetError, PathLike, read_embodiment, read_npz
from wam_jax.embodiment import CALVIN, FILE, SCENE_OBS, Embodiment
from wam_jax.host.machine import available_cores

ProgressFactory = Callable[[int, str], contextlib.AbstractContextManager[Any]]

OPTIONAL: dict[str, int | None] = {"scene_obs": SCENE_OBS, "success": None}  # what a frame may hold besides
ROUNDING = 1e-6  # of a binary number recorded as float32
ACTION_TOLERANCE = 1e-4  # of rel_actions beyond [-1, 1]: rounding in CALVIN's own recording
FLOAT_MAX = float(np.finfo(np.float32).max)
BLOCK = 256  # frames per unit of work: large enough to hide the thread pool, small enough for a smooth bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameVectors:
  """All of a split but its pictures, in order, on the host.

  Attributes:
    action: [N, A] float32 in [-1, 1], of CALVIN rel_actions.
    robot_obs: [N, state_size] float32, what the robot reports.
    starts: [E] int64, first frame of each episode, an index into N.
    ends: [E] int64, one past the last frame of each episode.
    ids: [N] int64, number in the frame's file name.
    embodiment: of the robot in the frames.
    scene_obs: [N, 24] float32, state of CALVIN's furniture and blocks; None where it is not recorded.
    success: [N] bool, the task that the frame belongs to is done; None where it is not recorded.
  """

  action: np.ndarray
  robot_obs: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  ids: np.ndarray
  embodiment: Embodiment = CALVIN
  scene_obs: np.ndarray | None = None
  success: np.ndarray | None = None

  @property
  def num_frames(self) -> int:
    """N."""
    return len(self.action)

  @property
  def is_first(self) -> np.ndarray:
    """[N] bool, true at the first frame of an episode."""
    first = np.zeros(self.num_frames, bool)
    first[self.starts] = True
    return first


_PER_FRAME = ("action", "robot_obs", "scene_obs", "success", "ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames(FrameVectors):
  """All frames of a split.

  Attributes:
    pictures: camera -> [N, S, S, 3] uint8.
  """

  pictures: dict[str, np.ndarray]

  def __post_init__(self) -> None:
    arrays = self.pictures | {name: getattr(self, name) for name in _PER_FRAME}
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
      found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
      raise ValueError(f"cameras, actions and states must have as many frames as each other: {found}")


@dataclasses.dataclass(frozen=True)
class FrameNames:
  """How the files of a split's frames are called: `prefix`, a number of at least so many digits, `.npz`."""

  prefix: str = "episode_"
  digits: int = 7

  def __call__(self, frame_id: int) -> str:
    """Name of one frame's file."""
    return f"{self.prefix}{frame_id:0{self.digits}d}.npz"


CALVIN_NAMES = FrameNames()
_FRAME_NAME = re.compile(r"(?!\.)(.*?)([0-9]+)\.npz")  # no hidden files: macOS puts one next to each frame


def frame_path(folder: PathLike, frame_id: int, names: FrameNames = CALVIN_NAMES) -> pathlib.Path:
  """File of one frame."""
  return pathlib.Path(folder) / names(frame_id)


def ids_of(spans: np.ndarray) -> np.ndarray:
  """[N] int64, all frame ids of the spans [E, 2], both included."""
  return np.concatenate([np.arange(low, high + 1) for low, high in spans])


def list_frames(folder: PathLike) -> tuple[FrameNames, np.ndarray]:
  """How the frames of a folder are called, by most of its npz files, and [n] int64 ids that have a file."""
  numbers: dict[str, list[str]] = {}
  try:
    present = os.listdir(folder)
  except OSError as error:
    rule = f"cannot be read ({error.strerror or error})."
    raise DatasetError(folder, rule, fix="look at its path and permissions.") from None
  for name in present:
    if match := _FRAME_NAME.fullmatch(name):
      numbers.setdefault(match[1], []).append(match[2])
  if not numbers:
    return CALVIN_NAMES, np.zeros(0, np.int64)
  prefix = max(numbers, key=lambda name: (len(numbers[name]), name == CALVIN_NAMES.prefix, name))
  names = FrameNames(prefix, min(map(len, numbers[prefix])))
  ids = (int(number) for number in numbers[prefix] if len(number) == names.digits or number[0] != "0")
  return names, np.array(sorted(frame_id for frame_id in ids if frame_id <= MAX_ID), np.int64)


def check_present(folder: pathlib.Path, spans: np.ndarray) -> FrameNames:
  """How the frames are called. Raises if one of the spans [E, 2] (both included) has no file."""
  names, present = list_frames(folder)
  borders = np.searchsorted(present, np.stack([spans[:, 0], spans[:, 1] + 1], 1))
  count = int((spans[:, 1] - spans[:, 0] + 1).sum() - (borders[:, 1] - borders[:, 0]).sum())
  if count:
    known = set(present.tolist())
    first, low, high = next(
      (i, low, high) for low, high in spans.tolist() for i in range(low, high + 1) if i not in known
    )
    more = f" ({count} frames are missing in all)" if count > 1 else ""
    others, fix = other_files(folder, names, present)
    rule = f"missing frame: {IDS_FILE} has an episode from {low} to {high}{more}; {others}."
    raise DatasetError(frame_path(folder, first, names), rule, fix=fix)
  return names


def other_files(folder: PathLike, names: FrameNames, present: np.ndarray) -> tuple[str, str]:
  """Where frames are missing: which files there are (`list_frames`), and what to do."""
  if len(present):
    files = f"the files here go from {names(int(present[0]))} to {names(int(present[-1]))}"
    return files, f"download the missing files, or take their episodes out of {IDS_FILE}."
  others = sorted(name for name in os.listdir(folder) if not name.startswith((".", "ep_", "lang_")))[:3]
  files = f"the files here are {', '.join(others)}, ..." if others else "there are no other files"
  return files, f"save each frame as an npz called like {CALVIN_NAMES(0)}, or frame_000000.npz."


def vector_keys(robot: Embodiment, optional: Iterable[str] = OPTIONAL) -> dict[str, int | None]:
  """What a frame's file holds beside pictures: key -> length of its vector, None for a single number."""
  sizes: dict[str, int | None] = {"rel_actions": robot.action_size, "robot_obs": robot.state_size}
  return sizes | {key: OPTIONAL[key] for key in optional}


def check_same_keys(splits: Mapping[pathlib.Path, Iterable[str]]) -> None:
  """Raises DatasetError where the frames of a split hold other keys than those of the first one."""
  first, *others = splits
  for folder in others:
    if different := set(splits[folder]) ^ set(splits[first]):
      key = min(different)
      rule = f"is in the frames of one split only, of {first.name} and {folder.name}."
      raise DatasetError(folder, rule, key=key, fix=f"record {key} in all splits, or in none.")


def vector_shape(width: int | None) -> tuple[int, ...]:
  """Shape in one frame of what `vector_keys` counts."""
  return () if width is None else (width,)


def _picture_shapes(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], robot: Embodiment, image_size: int
) -> dict[str, tuple[int, ...]]:
  """Shapes that all pictures must have: those of the first frame."""
  shapes = {}
  for camera in robot.cameras:
    key, array = camera.name, arrays[camera.name]
    if array.ndim != 3 or array.shape[2] != 3 or min(array.shape[:2]) < image_size:
      raise DatasetError(
        path,
        f"must be a picture [H, W, 3] of at least {image_size} pixels a side, not {list(array.shape)}.",
        key=key,
        fix="use a smaller env.image_size or other data.",
      )
    if camera.size is not None and array.shape[:2] != camera.size:
      raise DatasetError(
        path,
        f"has the shape {list(array.shape)}, but {FILE} says {list(camera.size)}.",
        key=key,
        fix=f"correct the size in {FILE}, or record pictures of that size.",
      )
    shapes[key] = array.shape
  return shapes


def _check_vector(path: pathlib.Path, key: str, array: np.ndarray, width: int | None) -> None:
  kinds, wanted = ("biuf", "true or false, or 1 or 0") if width is None else ("f", f"{width} floats")
  if array.shape != vector_shape(width) or array.dtype.kind not in kinds:
    raise DatasetError(
      path,
      f"must be {wanted}, not {array.dtype} {list(array.shape)}.",
      key=key,
      fix=f"repair or remove the episode of this frame; if all are so, correct {FILE} in the dataset's root.",
    )


def check_vectors(
  path_of: Callable[[int], pathlib.Path], ids: np.ndarray, values: dict[str, np.ndarray], robot: Embodiment
) -> None:
  """Range rules of a block of frames. Brings rel_actions into [-1, 1] and clips rounding, in place.

  Args:
    path_of: from the id of a frame to its file, for errors.
    ids: [n] frame ids.
    values: `vector_keys` -> [n, ...].
    robot: of the frames.
  """

  def first(bad: np.ndarray) -> tuple[int, int]:
    row, column = np.argwhere(bad.reshape(len(bad), -1))[0]
    return int(row), int(column)

  for key, array in values.items():
    bad = ~(np.abs(array) <= FLOAT_MAX)  # also NaN
    if bad.any():
      row, column = first(bad)
      raise DatasetError(
        path_of(ids[row]),
        f"must be finite as float32, but number {column} is {array[row].flat[column]}.",
        key=key,
        fix="repair or remove the episode of this frame.",
      )
  if (success := values.get("success")) is not None:
    bad = (success != 0) & (success != 1)
    if bad.any():
      row, _ = first(bad)
      rule = f"must be true or false, or 1 or 0, but is {success[row]:.6g}."
      raise DatasetError(path_of(ids[row]), rule, key="success", fix="write whether the task is done.")
  recorded = values["rel_actions"]
  action, binary = robot.to_unit(recorded), robot.binary
  either = binary & (np.abs(np.abs(action) - 1) < ROUNDING)
  action = np.where(either, np.sign(action), action)
  bad = ~binary & (np.abs(action) > 1 + ACTION_TOLERANCE)
  if bad.any():
    row, column = first(bad)
    low, high = robot.action[column].range
    raise DatasetError(
      path_of(ids[row]),
      f"must lie in [{low:g}, {high:g}], but number {column} is {recorded[row, column]:.6g}.",
      key="rel_actions",
      fix="scale relative actions by 0.02 m and 0.05 rad, as CALVIN does."
      if robot == CALVIN
      else f"correct the range of {robot.action[column].name} in {FILE}, or the action.",
    )
  bad = binary & (np.abs(action) != 1)
  if bad.any():
    row, column = first(bad)
    name, (low, high) = robot.action[column].name, robot.action[column].range
    what = "the gripper (number 6) must be exactly +1 (open) or -1 (closed)"
    fix = "write np.where(gripper > 0, 1.0, -1.0), for 0 and 1 as for signed numbers; -1.0, 1.0 if 1 closes."
    if robot != CALVIN:
      what = f"{name} (number {column}) must be exactly {low:g} or {high:g}"
      fix = f"write one of these two, or make it continuous in {FILE}."
    rule = f"{what}, but is {recorded[row, column]:.6g}."
    raise DatasetError(path_of(ids[row]), rule, key="rel_actions", fix=fix)
  np.clip(action, -1, 1, out=recorded)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Page-aligned memory, which JAX on a CPU takes over without a copy."""
  count = int(np.prod(shape))
  # Private and in large pages: shared small ones, mmap's default, took four times as long to fill.
  memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  if hasattr(mmap, "MADV_HUGEPAGE"):
    with contextlib.suppress(OSError):  # a kernel without large pages
      memory.madvise(mmap.MADV_HUGEPAGE)
  return np.frombuffer(memory, dtype, count).reshape(shape)


def num_workers(workers: int) -> int:
  """`workers`, or one per usable core if it is 0."""
  return workers or available_cores()


class FrameReader:
  """Reads frames of a split in any order, checked, pictures shrunk by area averaging.

  `converted.ConvertedReader` is the same for the converted form; `converted.open_reader` takes the right one.

  Attributes:
    folder: the split.
    image_size: S.
    ids: [N] int64, number in each frame's file name.
    starts: [E] int64, first frame of each episode, an index into N.
    ends: [E] int64, one past the last frame of each episode.
    embodiment: of the robot in the frames.
    widths: `vector_keys` of the frames: their files may have no scene_obs, and no success.
    has_absolute: whether their files have absolute actions too, as CALVIN's.
  """

  embodiment: Embodiment
  widths: dict[str, int | None]
  has_absolute: bool
  _shapes: dict[str, tuple[int, ...]]  # of pictures as they are stored

  def __init__(self, folder: PathLike, spans: np.ndarray, image_size: int):
    """Looks at the folder and at its first frame.

    Args:
      folder: a split.
      spans: [E, 2] first and last id of each episode: `read_episode_ids(folder)`.
      image_size: S, side of the square pictures [pixels]; 0: as they are stored.

    Raises:
      DatasetError: a frame without a file, or pictures that are too small.
    """
    self._set_frames(folder, spans, image_size, read_embodiment(pathlib.Path(folder).parent))
    self._open(spans)

  def _set_frames(self, folder: PathLike, spans: np.ndarray, image_size: int, robot: Embodiment) -> None:
    self.folder, self.image_size, self.embodiment = pathlib.Path(folder), image_size, robot
    self.ids = ids_of(spans)
    lengths = spans[:, 1] - spans[:, 0] + 1
    self.ends = np.cumsum(lengths)
    self.starts = self.ends - lengths

  def _open(self, spans: np.ndarray) -> None:
    self._names = check_present(self.folder, spans)
    path = self.path(int(self.ids[0]))
    needed = (*self.embodiment.camera_names, *vector_keys(self.embodiment, ()))
    arrays = read_npz(path, needed, (*OPTIONAL, "actions"))
    self.has_absolute = "actions" in arrays
    self._shapes = _picture_shapes(path, arrays, self.embodiment, self.image_size)
    self.widths = vector_keys(self.embodiment, [key for key in OPTIONAL if key in arrays])

  def optional_keys(self, frame_id: int) -> set[str]:
    """Which of the keys that a split may lack a frame has."""
    return set(read_npz(self.path(frame_id), (), tuple(OPTIONAL)))

  @property
  def picture_shapes(self) -> dict[str, tuple[int, ...]]:
    """Camera -> shape of its pictures as `read` gives them."""
    size = self.image_size
    return {key: (size, size, 3) if size else shape for key, shape in self._shapes.items()}

  def path(self, frame_id: int) -> pathlib.Path:
    """File that holds a frame."""
    return frame_path(self.folder, frame_id, self._names)

  def read(self, begin: int, stop: int, out: dict[str, np.ndarray]) -> None:
    """Reads frames [begin, stop) into arrays of n = stop - begin rows.

    Args:
      begin: an index into N.
      stop: one past the last one.
      out: `widths` -> float [n, ...], cameras -> uint8 [n, S, S, 3]; written to. With 'actions' [n, A]
        the absolute ones too, as they are.

    Raises:
      DatasetError: names file, key and rule of the first thing wrong.
    """
    ids, size = self.ids[begin:stop], self.image_size
    widths = self.widths | ({"actions": self.embodiment.action_size} if "actions" in out else {})
    vectors = {key: np.empty((len(ids), *vector_shape(width))) for key, width in widths.items()}
    for row, frame_id in enumerate(ids):
      path = self.path(frame_id)
      arrays = read_npz(path, (*widths, *self.embodiment.camera_names))
      for key, width in widths.items():
        array = arrays[key]
        _check_vector(path, key, array, width)
        vectors[key][row] = array
      for key, shape in self._shapes.items():
        array = arrays[key]
        if array.dtype != np.uint8:
          raise DatasetError(
            path, f"must be uint8, not {array.dtype}.", key=key, fix="store pictures as bytes."
          )
        if array.shape != shape:
          raise DatasetError(
            path,
            f"must have the shape {list(shape)} of the split's first frame, not {list(array.shape)}.",
            key=key,
            fix="repair or remove the episode of this frame.",
          )
        out[key][row] = image_lib.area_resize(array, size, size) if size else array
    check_vectors(self.path, ids, vectors, self.embodiment)
    for key, array in vectors.items():
      out[key][:] = array

  def read_vectors(self, begin: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of `widths` of frames [begin, stop), as they are stored: key -> [n, ...].

    Raises:
      DatasetError: a frame is missing or damaged, or has another shape.
    """
    self.require(keys)
    rows = [read_npz(self.path(frame_id), keys) for frame_id in self.ids[begin:stop]]
    for frame_id, row in zip(self.ids[begin:stop], rows, strict=True):
      for key, array in row.items():
        _check_vector(self.path(frame_id), key, array, self.widths[key])
    return {key: np.stack([row[key] for row in rows]) for key in keys}

  def require(self, keys: Iterable[str]) -> None:
    """Raises DatasetError where the frames have none of a key."""
    for key in keys:
      if key not in self.widths:
        raise DatasetError(self.path(int(self.ids[0])), "is absent.", key=key, fix=f"record {key}.")

  def signature(self) -> str:
    """Changes with the size or time of any frame's file, and with the borders of the episodes."""
    digest = hashlib.sha256(np.stack([self.starts, self.ends]).tobytes())
    found = np.empty((len(self.ids), 3), np.int64)
    folder = os.fspath(self.folder)
    for row, frame_id in enumerate(self.ids.tolist()):
      try:
        stat = os.stat(f"{folder}/{self._names(frame_id)}")  # half a million times: no Path
      except OSError as error:  # a link to nowhere
        raise DatasetError(
          self.path(frame_id), f"cannot be read ({error.strerror}).", fix=COPY_AGAIN
        ) from None
      found[row] = frame_id, stat.st_size, stat.st_mtime_ns
    digest.update(found.tobytes())
    return digest.hexdigest()

  def for_each_block(
    self, work: Callable[[int, int], None], workers: int, progress: ProgressFactory | None
  ) -> None:
    """Calls work(begin, stop) in threads for blocks of at most BLOCK frames that cover all N."""
    total = len(self.ids)
    bar = progress(total, f"reading {self.folder.name}") if progress else contextlib.nullcontext()
    with bar as shown, ThreadPoolExecutor(num_workers(workers)) as pool:
      blocks = [(begin, min(begin + BLOCK, total)) for begin in range(0, total, BLOCK)]
      futures = [pool.submit(work, *block) for block in blocks]
      try:
        for future, (begin, stop) in zip(futures, blocks, strict=True):
          future.result()
          if shown is not None:
            shown.update(stop - begin)
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


class JoinedReader(FrameReader):
  """Frames of several readers one after the other, as if they were one split.

  `folder` is the first one's; `ids` may occur twice, as each split has its own.
  """

  def __init__(self, readers: Sequence[FrameReader]):
    """Joins readers of one picture size, at least one."""
    self._readers = tuple(readers)
    self._ends = np.cumsum([len(reader.ids) for reader in readers])
    offsets = self._ends - [len(reader.ids) for reader in readers]
    first = readers[0]
    self.folder, self.image_size, self.embodiment = first.folder, first.image_size, first.embodiment
    for reader in readers:
      if differences := first.embodiment.differences(reader.embodiment):
        rule = f"{first.folder} and {reader.folder} are of different robots: {'; '.join(differences)}."
        raise DatasetError(reader.folder, rule, fix="train on one robot's data at a time.")
    kept = [key for key in OPTIONAL if all(key in reader.widths for reader in readers)]
    self.widths = vector_keys(first.embodiment, kept)
    self.has_absolute = all(reader.has_absolute for reader in readers)
    self.ids = np.concatenate([reader.ids for reader in readers])
    self.starts = np.concatenate([r.starts + offset for r, offset in zip(readers, offsets, strict=True)])
    self.ends = np.concatenate([r.ends + offset for r, offset in zip(readers, offsets, strict=True)])

  def _parts(self, begin: int, stop: int) -> list[tuple[FrameReader, int, int, slice]]:
    """(reader, its first frame, one past its last, rows among [begin, stop)): together these frames."""
    parts = []
    for reader, end in zip(self._readers, self._ends.tolist(), strict=True):
      offset = end - len(reader.ids)
      low, high = max(begin, offset), min(stop, end)
      if low < high:
        parts.append((reader, low - offset, high - offset, slice(low - begin, high - begin)))
    return parts

  def read(self, begin: int, stop: int, out: dict[str, np.ndarray]) -> None:
    """See `FrameReader.read`."""
    for reader, low, high, rows in self._parts(begin, stop):
      part = {key: array[rows] for key, array in out.items()}
      unread = {
        key: np.empty((high - low, *vector_shape(width)))
        for key, width in reader.widths.items()
        if key not in out
      }
      reader.read(low, high, part | unread)

  def read_vectors(self, begin: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """See `FrameReader.read_vectors`."""
    parts = [reader.read_vectors(low, high, keys) for reader, low, high, _ in self._parts(begin, stop)]
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}

  def signature(self) -> str:
    """See `FrameReader.signature`."""
    signatures = " ".join(reader.signature() for reader in self._readers)
    return hashlib.sha256(signatures.encode()).hexdigest()
