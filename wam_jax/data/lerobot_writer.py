"""Writes any dataset of ours as a LeRobot dataset v3.0, which the lerobot package opens."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from wam_jax.data import calvin, converted
from wam_jax.data.files import DatasetError, PathLike
from wam_jax.data.frames import BLOCK, FrameReader, ProgressFactory, check_same_keys, vector_shape
from wam_jax.data.lerobot_pictures import pyav
from wam_jax.data.lerobot_tables import PLAY, SUCCESS, TASK, parquet
from wam_jax.embodiment import FILE
from wam_jax.envs import tasks as task_rules
from wam_jax.host.dataset_files import foreign, only_writer
from wam_jax.host.lerobot_info import ACTION, INFO, STATE, STATS, is_lerobot
from wam_jax.host.machine import disk_full
from wam_jax.storage import checksums

SCENE = "observation.environment_state"
SPLITS = {"training": "train", "validation": "validation", calvin.FAILED: calvin.FAILED}
PATHS = {
  "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
  "video": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_MEGABYTES = {"data": 100, "video": 200}  # of a file, from which on the next one is begun
_BEGUN = ".lerobot"  # in a folder that is being written; locked
_MADE = {"data", "meta", "videos", FILE}
_CHUNK = 1000  # files in a folder
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_VIDEO = {
  "g": "2",
  "crf": "18",
  "bf": "0",
}  # every other frame can be read without those before it, as lerobot's


class _Statistics:
  """Least, largest, mean, deviation and quantiles of the features of an episode, or of all."""

  def __init__(self) -> None:
    self.values: dict[str, list[np.ndarray]] = {}
    self.histograms: dict[str, np.ndarray] = {}

  def add(self, other: _Statistics) -> None:
    for key, parts in other.values.items():
      self.values.setdefault(key, []).extend(parts)
    for key, counts in other.histograms.items():
      self.histograms[key] = self.histograms.get(key, 0) + counts

  def add_pictures(self, key: str, pictures: np.ndarray) -> None:
    """Of pictures [n, H, W, 3] uint8; their number is in the first column."""
    counts = np.stack([np.bincount(pictures[..., i].reshape(-1), minlength=256) for i in range(3)])
    frames = np.full((3, 1), len(pictures))
    self.histograms[key] = self.histograms.get(key, 0) + np.concatenate([frames, counts], 1)

  def table(self) -> dict[str, dict[str, Any]]:
    """Feature -> name -> list, in LeRobot's shapes."""
    out = {}
    for key, parts in self.values.items():
      values = np.concatenate(parts).astype(np.float64).reshape(sum(map(len, parts)), -1)
      rows = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
      rows |= {f"q{100 * q:02.0f}": np.quantile(values, q, axis=0) for q in _QUANTILES}
      out[key] = {name: row.tolist() for name, row in rows.items()} | {"count": [len(values)]}
    grey = np.arange(256) / 255
    for key, histogram in self.histograms.items():
      counts = histogram[:, 1:]
      shares = counts / counts.sum(1, keepdims=True)
      mean = shares @ grey
      present = counts > 0
      rows = {
        "min": grey[present.argmax(1)],
        "max": grey[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(shares @ grey**2 - mean**2, 0)),
      }
      rows |= {f"q{100 * q:02.0f}": grey[(shares.cumsum(1) < q).sum(1).clip(0, 255)] for q in _QUANTILES}
      out[key] = {name: row.reshape(3, 1, 1).tolist() for name, row in rows.items()}
      out[key]["count"] = [int(histogram[0, 0])]
    return out


class _Files:
  """Numbers of the files of one kind, which are written one after the other."""

  def __init__(self, root: pathlib.Path, kind: str, **names: str):
    self._root, self._kind, self._names, self._number = root, kind, names, -1
    self.path = root

  def next(self) -> pathlib.Path:
    """The next file's path, its folder made."""
    self._number += 1
    self.path = self._root / PATHS[self._kind].format(**self.place, **self._names)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    return self.path

  @property
  def place(self) -> dict[str, int]:
    return {"chunk_index": self._number // _CHUNK, "file_index": self._number % _CHUNK}

  @property
  def is_full(self) -> bool:
    return self._number < 0 or os.path.getsize(self.path) > _MEGABYTES[self._kind] * 2**20


class _Video:
  """Pictures of a camera as films of several episodes each."""

  def __init__(self, root: pathlib.Path, feature: str, size: Sequence[int], fps: float):
    self.files = _Files(root, "video", video_key=feature)
    self._size, self._fps, self._frames = size, fps, 0
    self._container: Any = None

  def begin(self) -> float:
    """Begins an episode, in the next file where this one is full. Returns its time in the file [s]."""
    if self.files.is_full:
      self.close()
      self._container = pyav().open(str(self.files.next()), "w", format="mp4")
      rate = Fraction(self._fps).limit_denominator(1000)
      self._stream = self._container.add_stream("libx264", rate=rate, options=_VIDEO)
      self._stream.height, self._stream.width, self._stream.pix_fmt = *self._size, "yuv420p"
      self._frames = 0
    return self._frames / self._fps

  def write(self, pictures: np.ndarray) -> None:
    make = pyav().VideoFrame
    for picture in pictures:
      self._container.mux(self._stream.encode(make.from_ndarray(picture, format="rgb24")))
    self._frames += len(pictures)

  def close(self) -> None:
    if self._container is not None:
      self._container.mux(self._stream.encode())
      self._container.close()
      self._container = None


@dataclasses.dataclass(frozen=True)
class _Split:
  """A split to be written: its reader, windows, and whether success can be told."""

  name: str
  reader: FrameReader
  windows: list[tuple[str, int, int]]

  @property
  def labelled(self) -> bool:
    judged = all(task in task_rules.PREDICATES for task, _, _ in self.windows)
    return "success" in self.reader.widths or ("scene_obs" in self.reader.widths and judged)

  def num_shared(self) -> int:
    """Number of windows that have frames in common with a later one."""
    owners = np.full(len(self.reader.ids), -1)
    spans = [np.searchsorted(self.reader.ids, window[1:]) for window in self.windows]
    for number, (low, high) in enumerate(spans):
      owners[low:high] = number
    left = np.bincount(owners[owners >= 0], minlength=len(spans))
    return sum(bool(left[number] < high - low) for number, (low, high) in enumerate(spans))


def write_lerobot(
  source: PathLike,
  out: PathLike,
  *,
  image_size: int = 0,
  progress: ProgressFactory | None = None,
  log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes a dataset of ours, CALVIN's or converted, as a LeRobot dataset; it appears when it is whole.

  Episodes keep their order: training, validation, failed takes; `splits` of info.json says which is which.
  The task of a frame is that of its annotated window, else "play". Actions are in the robot's units. Pictures
  become H.264 (4:2:0, which changes colours a little), or PNG where their sides are odd.

  Args:
    source: folder that holds training/ and validation/, perhaps failed/.
    out: folder to be made.
    image_size: side that pictures are shrunk to [pixels]; 0: as they are stored.
    progress: as in `calvin.read_frames`.
    log: called with lines of text.

  Returns:
    What info.json holds.

  Raises:
    DatasetError: the source breaks a rule, `out` is there already, or something else as `out`.partial, or
      another process is writing there.
  """
  source, out = pathlib.Path(source), pathlib.Path(os.path.abspath(out))
  if is_lerobot(source):
    raise DatasetError(source, "is a LeRobot dataset already.", fix="use it as it is.")
  calvin.check_root(source)
  if os.path.lexists(out):
    raise DatasetError(out, "is there already.", fix="choose another --out.")
  splits = []
  for name in SPLITS:
    if (source / name).is_dir():
      spans = calvin.read_episode_ids(source / name)
      reader = converted.open_reader(source / name, spans, image_size)
      splits.append(_Split(name, reader, calvin.read_raw_annotations(source / name)))
  check_same_keys({split.reader.folder: set(split.reader.widths) - {"success"} for split in splits})
  for split in splits:
    if shared := split.num_shared():
      log(
        f"{shared} of {len(split.windows)} annotated windows of {split.name} share frames with a later one, "
        "to which these frames go: a frame of a LeRobot dataset has one task."
      )
  parquet(), pyav()  # before anything is written
  partial = out.with_name(f"{out.name}.partial")
  try:
    left = set(os.listdir(partial)) if partial.is_dir() else set()
    if os.path.lexists(partial) and (not partial.is_dir() or (left and _BEGUN not in left)):
      raise foreign(partial)
    with only_writer(partial, _BEGUN, log):
      for name in left & _MADE:
        remove = shutil.rmtree if (partial / name).is_dir() else os.unlink
        remove(partial / name)
      writer = _Writer(partial, splits)
      try:
        info = writer.write(progress)
      except OSError:
        writer.abandon_table()
        raise
      (partial / _BEGUN).unlink()
      os.rename(partial, out)
  except OSError as error:
    full = disk_full(error)
    reason = "no room left on the disk" if full else error.strerror or str(error)
    fix = f"{'make room' if full else 'mend that'}, or choose another --out, and give the command again."
    raise DatasetError(partial, f"cannot be written ({reason}).", fix=fix) from None
  return info


class _Writer:
  """Writes all files of a dataset into a folder."""

  def __init__(self, root: pathlib.Path, splits: Sequence[_Split]):
    self._root, self._splits, reader = root, splits, splits[0].reader
    self._robot, self._fps = reader.embodiment, reader.embodiment.control_hz
    self._labelled = all(split.labelled for split in splits)
    self._keys = {key: width for key, width in reader.widths.items() if key != "success"}
    self._features = self._make_features(reader)
    self._videos = {
      name: _Video(root, key, feature["shape"][:2], self._fps)
      for name, key in self._cameras.items()
      if (feature := self._features[key])["dtype"] == "video"
    }
    self._data = _Files(root, "data")
    self._tasks: list[str] = []

  @property
  def _cameras(self) -> dict[str, str]:
    return {name: f"observation.images.{name}" for name in self._robot.camera_names}

  def _make_features(self, reader: FrameReader) -> dict[str, Any]:
    names = {
      "rel_actions": list(self._robot.action_names),
      "robot_obs": [dimension.name for dimension in self._robot.state],
    }
    out: dict[str, Any] = {}
    for key, width in self._keys.items():
      if width:
        out[_FEATURES[key]] = {"dtype": "float32", "shape": [width], "names": names.get(key)}
    if self._labelled:
      out[SUCCESS] = {"dtype": "bool", "shape": [1], "names": None}
    for name, key in self._cameras.items():
      shape = list(reader.picture_shapes[name])
      even = shape[0] % 2 == shape[1] % 2 == 0
      out[key] = {
        "dtype": "video" if even else "image",
        "shape": shape,
        "names": ["height", "width", "channels"],
      }
      if even:
        out[key]["info"] = {
          "video.height": shape[0],
          "video.width": shape[1],
          "video.codec": "h264",
          "video.pix_fmt": "yuv420p",
          "video.is_depth_map": False,
          "video.fps": self._fps,
          "video.channels": 3,
          "has_audio": False,
        }
    out["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", TASK):
      out[key] = {"dtype": "int64", "shape": [1], "names": None}
    return out

  def write(self, progress: ProgressFactory | None) -> dict[str, Any]:
    """Writes everything. Returns what info.json holds."""
    import pyarrow as pa

    everything, index, splits = _Statistics(), 0, {}
    rows: list[dict[str, Any]] = []
    for split in self._splits:
      first, reader = len(rows), split.reader
      bar = progress(len(reader.ids), f"writing {split.name}") if progress else contextlib.nullcontext()
      with bar as shown:
        for begin, stop in zip(reader.starts.tolist(), reader.ends.tolist(), strict=True):
          rows.append(self._write_episode(split, begin, stop, len(rows), index, everything))
          index += stop - begin
          if shown is not None:
            shown.update(stop - begin)
      splits[SPLITS[split.name]] = f"{first}:{len(rows)}"
    self._close_table()
    for video in self._videos.values():
      video.close()
    meta = self._root / "meta/episodes/chunk-000"
    meta.mkdir(parents=True)
    parquet().write_table(pa.Table.from_pylist(rows), meta / "file-000.parquet")
    parquet().write_table(self._task_table(pa), self._root / "meta/tasks.parquet")
    checksums.write_json(self._root / STATS, everything.table())
    info = {
      "codebase_version": "v3.0",
      "robot_type": "unknown",
      "total_episodes": len(rows),
      "total_frames": index,
      "total_tasks": len(self._tasks),
      "chunks_size": _CHUNK,
      "data_files_size_in_mb": _MEGABYTES["data"],
      "video_files_size_in_mb": _MEGABYTES["video"],
      "fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
      "splits": splits,
      "data_path": PATHS["data"],
      "video_path": PATHS["video"] if self._videos else None,
      "features": self._features,
    }
    checksums.write_text(self._root / FILE, self._robot.to_json())
    checksums.write_json(self._root / INFO, info)
    return info

  def _write_episode(
    self, split: _Split, begin: int, stop: int, number: int, index: int, everything: _Statistics
  ) -> dict[str, Any]:
    """Writes frames [begin, stop) of a split as an episode. Returns its row of meta/episodes."""
    statistics, length, reader = _Statistics(), stop - begin, split.reader
    starts = {name: video.begin() for name, video in self._videos.items()}
    columns: dict[str, Any] = {}
    pngs: dict[str, list[dict[str, Any]]] = {name: [] for name in self._cameras if name not in self._videos}
    for block in self._blocks(reader, begin, stop):
      for key, array in block.items():
        if key not in self._cameras:
          columns.setdefault(key, []).append(array)
          continue
        statistics.add_pictures(self._cameras[key], array)
        if key in self._videos:
          self._videos[key].write(array)
        else:
          pngs[key] += [{"bytes": _png(picture), "path": None} for picture in array]
    vectors = {key: np.concatenate(parts) for key, parts in columns.items()}
    names, success = _labels(split, reader.ids[begin:stop], vectors)
    vectors["rel_actions"] = self._robot.from_unit(vectors["rel_actions"])
    table: dict[str, np.ndarray] = {
      _FEATURES[key]: vectors[key].astype(np.float32) for key, width in self._keys.items() if width
    }
    if self._labelled:
      table[SUCCESS] = success
    for name in names:
      if name not in self._tasks:
        self._tasks.append(name)
    frame = np.arange(length)
    table |= {
      "timestamp": (frame / self._fps).astype(np.float32),
      "frame_index": frame,
      "episode_index": np.full(length, number),
      "index": index + frame,
      TASK: np.array([self._tasks.index(name) for name in names]),
    }
    statistics.values = {key: [array] for key, array in table.items()}
    self._append(table, {self._cameras[name]: cells for name, cells in pngs.items()})
    everything.add(statistics)
    row: dict[str, Any] = {"episode_index": number, "tasks": list(dict.fromkeys(map(_text, names)))}
    row |= {"length": length, "dataset_from_index": index, "dataset_to_index": index + length}
    row |= {f"data/{key}": value for key, value in self._data.place.items()}
    for name, video in self._videos.items():
      place = f"videos/{self._cameras[name]}"
      row |= {f"{place}/{key}": value for key, value in video.files.place.items()}
      row |= {
        f"{place}/from_timestamp": starts[name],
        f"{place}/to_timestamp": starts[name] + length / self._fps,
      }
    for key, values in statistics.table().items():
      row |= {f"stats/{key}/{name}": value for name, value in values.items()}
    return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

  @staticmethod
  def _blocks(reader: FrameReader, begin: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for low in range(begin, stop, BLOCK):
      high = min(low + BLOCK, stop)
      out: dict[str, np.ndarray] = {
        key: np.empty((high - low, *vector_shape(width))) for key, width in reader.widths.items()
      }
      out |= {name: np.empty((high - low, *shape), np.uint8) for name, shape in reader.picture_shapes.items()}
      reader.read(low, high, out)
      yield out

  def _append(self, table: dict[str, np.ndarray], pictures: dict[str, list[dict[str, Any]]]) -> None:
    """Writes rows of a table, into the next file where this one is full."""
    import pyarrow as pa

    arrays = {
      key: pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
      if array.ndim > 1
      else pa.array(array)
      for key, array in table.items()
    }
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays |= {key: pa.array(cells, cell) for key, cells in pictures.items()}
    rows = pa.table(arrays)
    if self._data.is_full:
      self._close_table()
      self._table = parquet().ParquetWriter(self._data.next(), rows.schema)
    self._table.write_table(rows)

  _table: Any = None

  def abandon_table(self) -> None:
    """Lets go of a table that cannot be written; its destructor would try again, and print a traceback."""
    if self._table is not None:
      self._table.is_open = False

  def _close_table(self) -> None:
    if self._table is not None:
      self._table.close()

  def _task_table(self, pa: Any) -> Any:
    """Tasks as lerobot reads them by pandas: the text is the index."""
    index = "__index_level_0__"
    table = pa.table({TASK: np.arange(len(self._tasks)), index: list(map(_text, self._tasks))})
    columns = [
      {"name": TASK, "field_name": TASK, "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
      {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    about = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


_FEATURES = {"rel_actions": ACTION, "robot_obs": STATE, "scene_obs": SCENE}


def _text(task: str) -> str:
  """A task in words that `task_name` makes the task of again."""
  return task.replace("_", " ")


def _labels(split: _Split, ids: np.ndarray, vectors: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
  """Task of each frame of an episode, and [n] bool whether it is done: recorded, or by predicates."""
  names = [PLAY] * len(ids)
  recorded = vectors.get("success")
  success = np.zeros(len(ids), bool) if recorded is None else recorded.astype(bool)
  for task, low, high in split.windows:
    if not ids[0] <= low < high <= ids[-1] + 1:
      continue
    part = slice(low - int(ids[0]), high - int(ids[0]))
    names[part] = [task] * (high - low)
    scene = vectors.get("scene_obs")
    if recorded is None and scene is not None:  # a frame that two windows share belongs to the later one
      known = task in task_rules.PREDICATES
      success[part] = task_rules.success(task, scene[part][:1], scene[part]) if known else False
  return names, success


def _png(picture: np.ndarray) -> bytes:
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "png")
  return buffer.getvalue()
