"""Datasets converted by `data.convert`: read like those in CALVIN's format, but many times as fast.

A converted root holds what CALVIN's does (training/, validation/, their ids and annotations), but the frames
of all splits lie in a TFDS dataset, `calvin_play/1.0.0/`, as examples of consecutive frames:

  convert.json                   what was converted, how, and what every file must be; written last
  training/examples.npy          [K, 2] first and last frame id of each example, in their order
  calvin_play/1.0.0/*.array_record-*
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wam_jax.core import image as image_lib
from wam_jax.data.files import DatasetError, PathLike, read_npy, read_npz
from wam_jax.data.frames import (
  OPTIONAL,
  FrameReader,
  check_vectors,
  frame_path,
  list_frames,
  vector_keys,
  vector_shape,
)
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host.regular_files import read_bytes, read_text

MANIFEST, EXAMPLES = "convert.json", "examples.npy"
VERSION = 1
TFDS_FOLDER = "calvin_play/1.0.0"
TFDS_SPLITS = {"training": "train", "validation": "validation", "failed": "failed"}
_CALVIN_VECTORS = ("rel_actions", "actions", "robot_obs", "scene_obs")
_VECTORS = {*_CALVIN_VECTORS, "success"}
_CONVERT_AGAIN = "convert the dataset again: python -m wam_jax.data.convert"


def is_converted(folder: PathLike) -> bool:
  """Whether a split lies in a converted dataset."""
  return os.path.lexists(pathlib.Path(folder).parent / MANIFEST)


def open_reader(folder: PathLike, spans: np.ndarray, image_size: int) -> FrameReader:
  """Reader of a split in either form; arguments and errors of `FrameReader`."""
  return (ConvertedReader if is_converted(folder) else FrameReader)(folder, spans, image_size)


def present(folder: PathLike, ids: np.ndarray) -> np.ndarray:
  """[n] bool: which frames of a split, in either form, have a place in its files."""
  if not is_converted(folder):
    return np.isin(ids, list_frames(folder)[1])
  return example_of(_read_table(folder), ids) >= 0


def stored_shapes(folder: PathLike, frame_id: int) -> dict[str, list[int]] | None:
  """Shapes of all arrays of a frame as it is stored, in either form; None if it cannot be read."""
  if not is_converted(folder):
    try:
      path = frame_path(folder, frame_id, list_frames(folder)[0])
      return {key: list(array.shape) for key, array in read_npz(path).items()}
    except DatasetError:
      return None
  try:
    return ConvertedReader(folder, np.array([[frame_id, frame_id]]), 1).shapes()
  except DatasetError:
    return None


def _read_table(folder: PathLike) -> np.ndarray:
  """[K, 2] int64, first and last frame id of each example of a split, K at least 1."""
  path = pathlib.Path(folder) / EXAMPLES
  table = read_npy(path)
  if table.ndim != 2 or table.shape[1:] != (2,) or table.dtype != np.int64 or not len(table):
    raise DatasetError(path, "must be int64 [examples, 2].", fix=_CONVERT_AGAIN)
  if (table < 0).any() or (table[:, 1] < table[:, 0]).any() or (table[1:, 0] <= table[:-1, 1]).any():
    raise DatasetError(path, "examples must follow each other without overlap.", fix=_CONVERT_AGAIN)
  return table


def example_of(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """[n] number of the example of `table` [K, 2] that holds each frame, -1 where there is none."""
  example = np.searchsorted(table[:, 0], ids, side="right") - 1
  held = (example >= 0) & (ids <= table[np.maximum(example, 0), 1])
  return np.where(held, example, -1)


def read_manifest(root: PathLike) -> dict[str, Any]:
  """What `convert.json` says. Raises DatasetError if it is damaged or of another version."""
  path = pathlib.Path(root) / MANIFEST
  try:
    manifest: dict[str, Any] = json.loads(read_text(path))
    version = manifest["version"]
    for split in manifest["splits"].values():
      _check_shards(split["shards"])
    _check_count(manifest["image_size"])
    if (
      not {"rel_actions", "robot_obs"}
      <= set(manifest.setdefault("vectors", list(_CALVIN_VECTORS)))
      <= _VECTORS
    ):
      raise ValueError(manifest["vectors"])
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise DatasetError(path, "damaged: not the manifest of a conversion.", fix=_CONVERT_AGAIN) from None
  if version != VERSION:
    raise DatasetError(path, f"is of version {version}, this program reads {VERSION}.", fix=_CONVERT_AGAIN)
  return manifest


def _check_count(number: Any) -> None:
  if type(number) is not int or not 0 < number < 2**63:
    raise ValueError(number)


def _check_shards(shards: Any) -> None:
  """Raises ValueError or the like where shards are not described as `convert` does."""
  for shard in shards:
    _check_count(shard["examples"])
    _check_count(shard["bytes"])
    if shard["file"] != pathlib.Path(shard["file"]).name:  # it lies in TFDS_FOLDER and nowhere else
      raise ValueError(shard["file"])
  if not 0 < sum(shard["examples"] for shard in shards) < 2**63:
    raise ValueError(shards)


@functools.cache
def example_features(robot: Embodiment = CALVIN, vectors: tuple[str, ...] = _CALVIN_VECTORS) -> Any:
  """How an example is stored; see `tfds_builder` for what it holds. Imports tensorflow-datasets.

  Args:
    robot: in the frames.
    vectors: keys of all but pictures.
  """
  import tensorflow_datasets as tfds

  widths = vector_keys(robot) | {"actions": robot.action_size}

  def tensor(dtype: Any, *shape: int | None) -> Any:
    return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")

  return tfds.features.FeaturesDict(
    {
      **{key: tensor(np.uint8, None, None, 3) for key in robot.camera_names},
      # Without robot_obs of a robot that has no state: empty arrays cannot be read back.
      **{key: tensor(np.float64, *vector_shape(widths[key])) for key in vectors if widths[key] != 0},
      "frame_id": tensor(np.int64),
      "episode": np.int64,
      "window_task": tfds.features.Sequence(tfds.features.Text()),
      "window": tensor(np.int64, 2),
    }
  )


class Shard:
  """One file of examples, opened when it is first read."""

  def __init__(self, path: pathlib.Path, examples: int, size: int, features: Callable[[], Any]) -> None:
    self.path, self._examples, self._size, self._features = path, examples, size, features
    self._reader: Any = None
    self._lock = threading.Lock()

  def _open(self) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    with self._lock:
      if self._reader is None:
        if not self.path.is_file() or self.path.stat().st_size != self._size:
          raise DatasetError(self.path, f"must be there and have {self._size:,} bytes.", fix=_CONVERT_AGAIN)
        reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0")  # one example at a time
        if reader.num_records() != self._examples:
          raise DatasetError(self.path, f"must have {self._examples} examples.", fix=_CONVERT_AGAIN)
        self._reader = reader
      return self._reader

  def read(self, index: int) -> dict[str, Any]:
    """One example, decoded: key -> array. Raises DatasetError: the file is gone or damaged."""
    try:
      (data,) = self._open().read([index])
      out: dict[str, Any] = self._features().deserialize_example_np(data)
    except DatasetError:
      raise
    except Exception as error:  # array_record and protobuf raise as they please
      raise DatasetError(
        self.path, f"damaged at example {index} ({type(error).__name__}).", fix=_CONVERT_AGAIN
      ) from None
    return out


class ConvertedReader(FrameReader):
  """Reads frames of a split of a converted dataset."""

  def _open(self, spans: np.ndarray) -> None:
    root = self.folder.parent
    manifest = read_manifest(root)
    if self.folder.name not in manifest["splits"]:
      raise DatasetError(root / MANIFEST, f"has no split {self.folder.name}.", fix=_CONVERT_AGAIN)
    self.stored_size = int(manifest["image_size"])
    if self.stored_size < self.image_size:
      raise DatasetError(
        root,
        f"was converted to pictures of {self.stored_size} pixels a side, fewer than the {self.image_size} "
        "that are wanted.",
        fix="use a smaller env.image_size, or convert again with a larger --image_size.",
      )
    self._shapes = dict.fromkeys(self.embodiment.camera_names, (self.stored_size, self.stored_size, 3))
    shards = manifest["splits"][self.folder.name]["shards"]
    robot, vectors = self.embodiment, tuple(manifest["vectors"])
    features = functools.partial(example_features, robot, vectors)
    self._shards = [
      Shard(root / TFDS_FOLDER / s["file"], s["examples"], s["bytes"], features) for s in shards
    ]
    self.widths = vector_keys(robot, [key for key in OPTIONAL if key in vectors])
    self.has_absolute = "actions" in vectors
    self._shard_ends = np.cumsum([s["examples"] for s in shards])
    path, table = self.folder / EXAMPLES, _read_table(self.folder)
    if len(table) != self._shard_ends[-1]:
      raise DatasetError(path, f"must have {self._shard_ends[-1]} rows.", fix=_CONVERT_AGAIN)
    self._table = table
    example = example_of(table, self.ids)
    if (example < 0).any():
      absent = int(self.ids[int(np.argmax(example < 0))])
      raise DatasetError(path, f"frame {absent} is in no example.", fix=_CONVERT_AGAIN)

  def path(self, frame_id: int) -> pathlib.Path:
    """The file that the frame was converted from, by CALVIN's names."""
    return frame_path(self.folder, frame_id)

  def shapes(self) -> dict[str, list[int]]:
    """Shapes of the arrays of the first frame."""
    (_, _, example), *_ = self._parts(0, 1)
    keys = (*self.embodiment.camera_names, *self.widths, *(("actions",) if self.has_absolute else ()))
    return {key: list(example[key].shape[1:]) for key in keys}

  def _parts(self, begin: int, stop: int) -> Iterator[tuple[slice, slice, dict[str, Any]]]:
    """(rows among [begin, stop), rows inside the example, the example) that together are these frames."""
    ids = self.ids[begin:stop]
    example = example_of(self._table, ids)
    # A new part where the example changes or frames do not follow each other.
    cuts = np.flatnonzero((np.diff(example) != 0) | (np.diff(ids) != 1)) + 1
    number, loaded = -1, {}
    for low, high in zip([0, *cuts], [*cuts, len(ids)], strict=True):
      if example[low] != number:
        number = int(example[low])
        loaded = self._example(number)
      inside = int(ids[low] - self._table[number, 0])
      yield slice(low, high), slice(inside, inside + high - low), loaded

  def _example(self, number: int) -> dict[str, Any]:
    """Example `number`, checked to hold the frames that the table says, in the shapes that it must have."""
    which = int(np.searchsorted(self._shard_ends, number, side="right"))
    shard = self._shards[which]
    example = shard.read(number - int(self._shard_ends[which - 1] if which else 0))
    first, last = self._table[number].tolist()
    ids = np.asarray(example["frame_id"])
    example |= {key: np.zeros((len(ids), 0)) for key, width in self.widths.items() if width == 0}
    picture = (len(ids), self.stored_size, self.stored_size, 3)
    shapes = {key: (len(ids), *vector_shape(width)) for key, width in self.widths.items()}
    if self.has_absolute:
      shapes["actions"] = (len(ids), self.embodiment.action_size)
    shapes |= dict.fromkeys(self.embodiment.camera_names, picture)
    wrong = [key for key, shape in shapes.items() if np.shape(example[key]) != shape]
    if len(ids) != last - first + 1 or (ids != first + np.arange(len(ids))).any():
      wrong = ["frame_id"]
    if wrong:
      rule = f"its example of frames {first} to {last} is of other frames or has other shapes."
      raise DatasetError(shard.path, rule, key=wrong[0], fix=_CONVERT_AGAIN)
    return example

  def read(self, begin: int, stop: int, out: dict[str, np.ndarray]) -> None:
    """See `FrameReader.read`."""
    for rows, inside, example in self._parts(begin, stop):
      for key in self.embodiment.camera_names:
        pictures = example[key][inside]
        if self.image_size not in (0, self.stored_size):
          pictures = np.stack([image_lib.area_resize(p, self.image_size, self.image_size) for p in pictures])
        out[key][rows] = pictures
      vectors = {key: np.array(example[key][inside]) for key in self.widths}
      check_vectors(self.path, self.ids[begin:stop][rows], vectors, self.embodiment.in_units)
      for key, array in vectors.items():
        out[key][rows] = array

  def read_vectors(self, begin: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """See `FrameReader.read_vectors`."""
    self.require(keys)
    parts = [{key: example[key][inside] for key in keys} for _, inside, example in self._parts(begin, stop)]
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}

  def signature(self) -> str:
    """See `FrameReader.signature`."""
    digest = hashlib.sha256(np.stack([self.starts, self.ends]).tobytes())
    digest.update(read_bytes(self.folder.parent / MANIFEST))
    return digest.hexdigest()
