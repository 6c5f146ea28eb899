"""Reads LeRobot datasets (v3, v2.1, v2.0): tables by pyarrow, videos by PyAV; without torch and lerobot.

A dataset has no splits of ours. `Selection` says which of its episodes are demos of which task, failed takes,
play, or held out; `plan_splits` makes of them what `convert` and `inspect` take.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wam_jax.config.fields import FIELDS
from wam_jax.core import image as image_lib
from wam_jax.data.calvin import FAILED
from wam_jax.data.examples import SplitPlan, chunks_of
from wam_jax.data.frames import FrameReader, check_vectors, vector_keys, vector_shape
from wam_jax.embodiment import Embodiment
from wam_jax.host.dataset_files import COPY_AGAIN, DatasetError, PathLike, read_json_lines
from wam_jax.host.lerobot_info import (
  ACTION,
  INFO,
  STATE,
  STATS,
  LeRobotInfo,
  describes_itself,
  embodiment_of,
  numbers,
  picture_size,
  read_info,
)
from wam_jax.host.regular_files import check_file, read_bytes
from wam_jax.host.words import count, split_list, task_name

SUCCESS, REWARD, TASK = "next.success", "next.reward", "task_index"
PLAY, HELDOUT, UNUSED = "play", "heldout", "unused"
ROLES = (PLAY, HELDOUT, UNUSED, FAILED)  # names in `Selection.episodes` that are no task
_KEYS = {"rel_actions": ACTION, "robot_obs": STATE, "success": SUCCESS}  # ours -> LeRobot's
_CLOSE = 1e-3  # of the range of a number: statistics and data may differ by that
_EXTRA = "pip install 'wam_jax[lerobot]'"
_LEAVE_OUT_ANY = "copy or download it again, or leave the episode out: --config.data.episodes=unused:NUMBER"
_AHEAD = 2.0  # s that a video is read on before it is quicker to seek
_LEAVE_OUT = "download or record it, or leave the episode out: --config.data.episodes=unused:{0}"


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which episodes are what; config fields `data.*` of the same names, where they are explained.

  Attributes:
    path: folders of datasets, one or more; episodes are counted on through them.
    tasks: names of the tasks whose episodes are demos; all others are play.
    episodes: "NAME:FIRST-LAST" or "NAME:NUMBER"; NAME is a task or one of `ROLES`.
    task_column: of the table of frames, which says what task a frame belongs to.
    heldout_share: of the demos of each task, and of play, that go to validation.
    success_reward: next.reward from which on a task is done, where there is no next.success.
    success_frames: last frames of a demo in which the task is done, where there is neither.
    embodiment: file that describes the robot; empty: see `lerobot_info.embodiment_of`.
  """

  path: tuple[str, ...]
  tasks: tuple[str, ...] = ()
  episodes: tuple[str, ...] = ()
  task_column: str = TASK
  heldout_share: float = 0.2
  success_reward: float = 1.0
  success_frames: int = 0
  embodiment: str = ""

  @classmethod
  def of(cls, config: Any) -> Selection:
    """That of a run's config."""
    names = [field.name for field in dataclasses.fields(cls) if field.name != "tasks"]
    return cls(tasks=tuple(config.tasks), **{name: _plain(config.data[name]) for name in names})


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Episode:
  """An episode of a dataset.

  Attributes:
    info: of its dataset.
    index: its number there.
    number: its number among those of all datasets.
    length: frames.
    table: file of its frames.
    record: file that says where it lies.
    videos: feature -> (file, seconds in it at which the episode begins).
  """

  info: LeRobotInfo
  index: int
  number: int
  length: int
  table: pathlib.Path
  record: pathlib.Path
  videos: dict[str, tuple[pathlib.Path, float]]

  def __str__(self) -> str:
    return f"episode {self.index}"


@dataclasses.dataclass(frozen=True)
class LeRobotData:
  """All of datasets but their pictures, checked.

  Attributes:
    robot: of all of them.
    episodes: that are used.
    ends: [E] one past the last frame of each, counted through.
    action: [N, A] float64 in [-1, 1].
    state: [N, state_size] float64.
    success: [N] bool, or None where nothing says it.
    task: [N] name of the task that each frame belongs to.
    texts: name of a task -> how the data say it.
    named: name in `Selection.episodes` -> numbers of episodes.
    times: [N] float64, seconds from the episode's begin.
    rows: [N] row in the episode's table.
  """

  robot: Embodiment
  episodes: tuple[Episode, ...]
  ends: np.ndarray
  action: np.ndarray
  state: np.ndarray
  success: np.ndarray | None
  task: np.ndarray
  texts: dict[str, str]
  named: dict[str, set[int]]
  times: np.ndarray
  rows: np.ndarray

  def spans(self) -> np.ndarray:
    """[E, 2] first and last frame of each episode, both included."""
    lengths = np.diff(self.ends, prepend=0)
    return np.stack([self.ends - lengths, self.ends - 1], 1)

  def locate(self, frame: int) -> tuple[Episode, int]:
    """The episode of a frame, and the frame's number in it."""
    row = int(np.searchsorted(self.ends, frame, side="right"))
    return self.episodes[row], int(frame - (self.ends[row] - self.episodes[row].length))


# ---------------------------------------------------------------------------------------------
# Tables.


def _parquet() -> Any:
  try:
    import pyarrow.parquet as parquet
  except ImportError:
    raise DatasetError("pyarrow", "is not installed, and reads LeRobot's tables.", fix=_EXTRA) from None
  return parquet


def _guarded(path: pathlib.Path, what: str, read: Callable[[], Any]) -> Any:
  """What `read` gives of a file. Raises DatasetError: it is missing, no file, or damaged."""
  try:
    check_file(path)
    return read()
  except DatasetError:
    raise
  except FileNotFoundError:
    raise DatasetError(path, f"no such file; it holds {what}.", fix="download all of the dataset.") from None
  except Exception as error:  # pyarrow, FFmpeg and Pillow raise as they please
    reason = str(error).partition("\n")[0][:200]
    raise DatasetError(path, f"cannot be read ({reason}); it holds {what}.", fix=COPY_AGAIN) from None


def _read_table(path: pathlib.Path, what: str, columns: Callable[[list[str]], Sequence[str]]) -> Any:
  """Some columns of a parquet file, chosen among the names of all."""

  def read() -> Any:
    file = _parquet().ParquetFile(path)
    return file.read(columns=list(columns(file.schema_arrow.names)), use_threads=False)

  return _guarded(path, what, read)


def _column(table: Any, path: pathlib.Path, key: str, width: int = 0) -> np.ndarray:
  """[n] a column, or [n, width] one of vectors."""
  if key not in table.column_names:
    rule = f"is absent; the table has {', '.join(table.column_names)[:300]}."
    raise DatasetError(path, rule, key=key, fix=COPY_AGAIN)
  column = table.column(key).combine_chunks()
  if column.null_count:
    raise DatasetError(path, f"has no value in {count(column.null_count, 'row')}.", key=key, fix=COPY_AGAIN)
  if hasattr(column, "flatten") and "list" in str(column.type):
    column = column.flatten()
  array = np.asarray(column.to_numpy(zero_copy_only=False))
  if array.size != len(table) * max(width, 1) or (array.dtype.kind not in "biuf" and width):
    rule = f"must have {max(width, 1)} numbers in each row, not {array.size / max(len(table), 1):g}."
    raise DatasetError(path, rule, key=key, fix=COPY_AGAIN)
  return array.reshape(len(table), width) if width else array


def _read_episodes(info: LeRobotInfo, first: int) -> list[Episode]:
  """All episodes of a dataset, by their number; their files need not be there."""
  episodes = _episodes_v3(info, first) if info.version == 3 else _episodes_v2(info, first)
  indices = [episode.index for episode in episodes]
  if sorted(indices) != list(range(info.num_episodes)):
    wrong = next((i for i in indices if not 0 <= i < info.num_episodes or indices.count(i) > 1), None)
    has = f"has episode {wrong}" if wrong is not None else f"has {len(indices)} episodes"
    rule = f"{has}; by {INFO} they go from 0 to {info.num_episodes - 1}, each once."
    raise DatasetError(episodes[0].record if episodes else info.file, rule, key="episode_index", fix=COPY_AGAIN)
  return sorted(episodes, key=lambda episode: episode.index)


def _episodes_v3(info: LeRobotInfo, first: int) -> list[Episode]:
  files = sorted((info.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
  if not files:
    path = info.root / "meta/episodes/chunk-000/file-000.parquet"
    raise DatasetError(path, "no such file; it lists the episodes.", fix="download all of the dataset.")
  out = []
  for file in files:
    table = _read_table(file, "the list of episodes", lambda names: [n for n in names if n[:6] != "stats/"])
    for row in table.to_pylist():

      def number(key: str, kind: type = int, row: dict[str, Any] = row, file: pathlib.Path = file) -> Any:
        value = row.get(key)
        if type(value) not in (int, kind) or not 0 <= value < 2**31:
          which = f"episode {row.get('episode_index')}"
          part = re.fullmatch("videos/(.*)/.*", key)
          lacks = f"{which} has no pictures of {part[1]}" if part else f"{which} has no {key}"
          fix = _LEAVE_OUT.format(row.get("episode_index"))
          raise DatasetError(file, f"{lacks}: a number of 0 or more is expected.", key=key, fix=fix)
        return value

      index = number("episode_index")
      videos = {}
      for feature in info.cameras.values():
        if info.features[feature]["dtype"] == "video":
          place = {part: number(f"videos/{feature}/{part}") for part in ("chunk_index", "file_index")}
          path = info.path("video", video_key=feature, **place)
          videos[feature] = (path, float(number(f"videos/{feature}/from_timestamp", float)))
      place = {part: number(f"data/{part}") for part in ("chunk_index", "file_index")}
      length = number("length")
      out.append(Episode(info, index, first + index, length, info.path("data", **place), file, videos))
  return out


def _episodes_v2(info: LeRobotInfo, first: int) -> list[Episode]:
  file, out = info.root / "meta/episodes.jsonl", []
  for row in read_json_lines(file):
    index, length = row.get("episode_index"), row.get("length")
    if type(index) is not int or type(length) is not int or min(index, length) < 0:
      raise DatasetError(file, f"has no episode_index and length in {row}.", key="length", fix=COPY_AGAIN)
    place = {"episode_chunk": index // info.chunk_episodes, "episode_index": index}
    videos = {
      feature: (info.path("video", video_key=feature, **place), 0.0)
      for feature in info.cameras.values()
      if info.features[feature]["dtype"] == "video"
    }
    out.append(Episode(info, index, first + index, length, info.path("data", **place), file, videos))
  return out


def _task_texts(info: LeRobotInfo) -> dict[int, str]:
  """task_index -> the task in words."""
  if info.version == 2:
    file = info.root / "meta/tasks.jsonl"
    return {row.get("task_index", -1): str(row.get("task", "")) for row in read_json_lines(file)}
  file = info.root / "meta/tasks.parquet"
  table = _read_table(file, "the tasks", lambda names: names)
  text = next((key for key in table.column_names if key != TASK), TASK)
  return dict(zip(_column(table, file, TASK).tolist(), map(str, _column(table, file, text)), strict=True))


# ---------------------------------------------------------------------------------------------
# All but the pictures.


def open_data(selection: Selection) -> LeRobotData:
  """Reads and checks all of datasets but their pictures.

  Raises:
    DatasetError: names file, key and rule of the first thing wrong.
  """
  infos = [read_info(folder) for folder in selection.path]
  robot = embodiment_of(infos, selection.embodiment)
  episodes: list[Episode] = []
  for info in infos:
    episodes += _read_episodes(info, len(episodes))
  named = _named_episodes(selection, len(episodes), infos[0].file)
  unused = named.get(UNUSED, set())
  episodes = [episode for episode in episodes if episode.number not in unused and episode.length]
  if not episodes:
    raise DatasetError(infos[0].file, "has no episode that is used.", key="total_episodes", fix="name fewer.")
  columns = _read_columns(infos, episodes, selection)
  data = LeRobotData(
    robot=robot,
    episodes=tuple(episodes),
    ends=np.cumsum([episode.length for episode in episodes]),
    action=columns[ACTION],
    state=columns[STATE],
    success=columns["success"] if selection.success_frames or any(map(_label, infos)) else None,
    task=columns["task"],
    texts=columns["texts"],
    named=named,
    times=columns["timestamp"],
    rows=columns["row"],
  )
  _check_times(data)
  _check_statistics(data, infos, selection.embodiment)
  _check_numbers(data)
  if data.success is not None:
    _complete_labels(data, selection, data.success)
  return data


def _label(info: LeRobotInfo) -> str:
  """The feature that says whether the task is done; empty: none does."""
  return next((key for key in (SUCCESS, REWARD) if key in info.features), "")


def _is_failed(data: LeRobotData, episode: Episode) -> bool:
  """Whether an episode was named a failed take, here or by its dataset."""
  return episode.number in data.named.get(FAILED, ()) or any(episode.index in part for part in episode.info.failed)


def _complete_labels(data: LeRobotData, selection: Selection, success: np.ndarray) -> None:
  """Writes labels where the data have none: the last frames of demos, and none of failed takes."""
  for row, (episode, (low, high)) in enumerate(zip(data.episodes, data.spans().tolist(), strict=True)):
    if _is_failed(data, episode):
      success[low : high + 1] = False
    elif not _label(episode.info):
      for _, first, end in task_windows(data, selection, row):
        success[max(first, end - selection.success_frames) : end] = True


def _named_episodes(selection: Selection, total: int, file: pathlib.Path) -> dict[str, set[int]]:
  """Name -> numbers of episodes, by `Selection.episodes`."""
  out: dict[str, set[int]] = {}
  for entry in selection.episodes:
    name, _, text = entry.rpartition(":")
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if not match or not name:
      raise DatasetError(file, f"data.episodes={entry!r} must be NAME:NUMBER or NAME:FIRST-LAST.", fix="correct it.")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < total:
      rule = f"data.episodes={entry} names episodes that are not there: they go from 0 to {total - 1}."
      raise DatasetError(file, rule, key="total_episodes", fix="name episodes of the data.")
    out.setdefault(task_name(name), set()).update(range(first, last + 1))
  return out


def _read_columns(infos: list[LeRobotInfo], episodes: list[Episode], selection: Selection) -> dict[str, Any]:
  """Column -> array of all frames in the order of the episodes; "task", "texts" and "row" beside them."""
  parts: dict[str, list[np.ndarray]] = {}
  texts: dict[str, str] = {}
  column = selection.task_column
  by_index = {info.root: _task_texts(info) for info in infos} if column == TASK else {}
  loaded: tuple[pathlib.Path, dict[str, np.ndarray]] | None = None
  for episode in episodes:
    info, path = episode.info, episode.table
    if loaded is None or loaded[0] != path:
      loaded = path, _read_file(info, path, selection)
    columns = loaded[1]
    rows = np.flatnonzero(columns["episode_index"] == episode.index)
    if len(rows) != episode.length or (np.diff(rows) != 1).any():
      rule = f"has {len(rows)} rows of {episode}, where {episode.record} says {episode.length} in a row."
      raise DatasetError(path, rule, key="episode_index", fix=COPY_AGAIN)
    part = {key: array[rows] for key, array in columns.items() if key != "episode_index"}
    part["row"] = rows
    part["task"] = np.array(
      [_name_of(value, column, by_index.get(info.root), episode, texts) for value in part["task"]], object
    )
    for key, array in part.items():
      parts.setdefault(key, []).append(array)
  return {**{key: np.concatenate(arrays) for key, arrays in parts.items()}, "texts": texts}


def _read_file(info: LeRobotInfo, path: pathlib.Path, selection: Selection) -> dict[str, np.ndarray]:
  """Columns of a table of frames, vectors as float64 [n, width]; "task" is what `task_column` holds."""
  task_column, label = selection.task_column, _label(info)
  needed = {ACTION, STATE, "timestamp", "episode_index", task_column, label}
  table = _read_table(path, "frames", lambda names: [name for name in names if name in needed])
  if task_column not in table.column_names:
    others = ", ".join(key for key in info.features if info.features[key]["dtype"] not in ("video", "image"))
    fix = f"set data.task_column to one of {others}."
    raise DatasetError(path, "is no column of the frames.", key=task_column, fix=fix)
  state = STATE in info.features
  out = {
    "episode_index": _column(table, path, "episode_index"),
    "timestamp": _column(table, path, "timestamp").astype(np.float64),
    "task": _column(table, path, task_column),
    ACTION: _column(table, path, ACTION, info.width(ACTION)).astype(np.float64),
    STATE: _column(table, path, STATE, info.width(STATE)).astype(np.float64) if state else np.zeros((len(table), 0)),
  }
  least = 0.5 if label == SUCCESS else selection.success_reward
  labels = _column(table, path, label, 1)[:, 0] if label else np.full(len(table), -np.inf)
  out["success"] = labels.astype(np.float64) >= least
  strange = ~np.isin(out["episode_index"], np.arange(info.num_episodes))
  if strange.any():
    rule = f"row {int(strange.argmax())} is of episode {out['episode_index'][strange.argmax()]}; "
    rule += f"by {INFO} they go from 0 to {info.num_episodes - 1}."
    raise DatasetError(path, rule, key="episode_index", fix=COPY_AGAIN)
  return out


def _name_of(
  value: Any, column: str, by_index: dict[int, str] | None, episode: Episode, texts: dict[str, str]
) -> str:
  """Name of the task that a frame belongs to; remembers how the data say it in `texts`."""
  if by_index is not None:
    if value not in by_index:
      rule = f"task {value} of {episode} is not among the tasks of the dataset ({', '.join(map(str, by_index))})."
      raise DatasetError(episode.table, rule, key=column, fix=COPY_AGAIN)
    text = by_index[value]
  else:
    text = value if isinstance(value, str) else f"{column} {value}"
  name = task_name(text)
  texts.setdefault(name, text)
  return name


def _check_times(data: LeRobotData) -> None:
  """Within an episode frames follow each other at the frame rate, within half a frame."""
  step = 1 / data.robot.control_hz
  for episode, (low, high) in zip(data.episodes, data.spans().tolist(), strict=True):
    gaps = np.diff(data.times[low : high + 1])
    bad = ~(np.abs(gaps - step) <= step / 2)
    if bad.any():
      frame = int(bad.argmax())
      before, after = data.times[low + frame : low + frame + 2]
      how = "run backwards" if after <= before else f"are not {step:.4g} s apart, the time of a frame"
      rule = f"times of {episode} {how}: {before:.6g} s in frame {frame}, {after:.6g} s in frame {frame + 1}."
      fix = f"record it again, or leave it out: --config.data.episodes=unused:{episode.number}"
      raise DatasetError(episode.table, rule, key="timestamp", fix=fix)


def _check_statistics(data: LeRobotData, infos: Sequence[LeRobotInfo], description: str) -> None:
  """Statistics that ranges were taken from must be those of the data."""
  for info in infos:
    mine = np.repeat([e.info is info for e in data.episodes], [e.length for e in data.episodes])
    whole = sum(e.info is info for e in data.episodes) == info.num_episodes
    if describes_itself(info, description) or not whole or not mine.any():
      continue
    for key, values in ((ACTION, data.action[mine]), (STATE, data.state[mine])):
      if key not in info.statistics or not values.size:
        continue
      least, most = values.min(0), values.max(0)
      for name, actual in (("min", least), ("max", most), ("mean", values.mean(0))):
        told = numbers(info, key, name)
        off = np.abs(told - actual) > _CLOSE * (most - least) + 1e-6 * np.abs(actual)
        if off.any():
          column = int(off.argmax())
          rule = f"does not match the data: {told[column]:.6g} of number {column}, which is {actual[column]:.6g} there."
          fix = "compute the statistics again, or describe the robot in --config.data.embodiment=FILE."
          raise DatasetError(info.root / STATS, rule, key=f"{key}.{name}", fix=fix)


def _check_numbers(data: LeRobotData) -> None:
  """Range rules of all frames; brings actions into [-1, 1], in place."""
  bad: list[int] = []

  def table_of(frame: int) -> pathlib.Path:
    bad.append(frame)
    return data.locate(frame)[0].table

  values = {"rel_actions": data.action, "robot_obs": data.state}
  try:
    check_vectors(table_of, np.arange(len(data.action)), values, data.robot)
  except DatasetError as error:
    episode, frame = data.locate(bad[-1])
    fix = f"correct the range in {STATS} or in --config.data.embodiment=FILE, or leave the episode out: "
    fix += f"--config.data.episodes=unused:{episode.number}"
    rule = f"in frame {frame} of {episode} it {error.rule}"
    raise DatasetError(error.file, rule, key=_KEYS[error.key], fix=fix) from None


# ---------------------------------------------------------------------------------------------
# Pictures.


class _Video:
  """Frames of a video by their time; goes on where it stopped where that is near."""

  def __init__(self, path: pathlib.Path, feature: str, size: tuple[int, int]):
    try:
      import av
    except ImportError:
      raise DatasetError("av", "is not installed, and reads videos (PyAV).", fix=_EXTRA) from None
    self.path, self._feature = path, feature
    self._container = _guarded(path, f"pictures of {feature}", lambda: av.open(str(path)))
    streams = self._container.streams.video
    if not streams:
      raise DatasetError(path, "has no video in it.", key=feature, fix=COPY_AGAIN)
    self._stream = streams[0]
    self._stream.thread_type = "AUTO"
    found = (self._stream.height, self._stream.width)
    if found != size:
      rule = f"has pictures of {found[0]} x {found[1]}, where {INFO} says {size[0]} x {size[1]}."
      raise DatasetError(path, rule, key=feature, fix=COPY_AGAIN)
    self._frames: Iterator[Any] = iter(())
    self._frame, self._at = None, np.inf  # the frame read last, and its time

  @property
  def end(self) -> float:
    """Time at which its last frame ends, by its header [s]; infinite where that does not say."""
    stream = self._stream
    if stream.duration is None or stream.time_base is None:
      return np.inf
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)

  def at(self, time: float, half: float, what: str) -> np.ndarray:
    """[H, W, 3] uint8, the picture at a time, within half a frame [s]; errors name `what` needs it."""
    short = f"ends before {time:.4g} s, where {what} has a frame: it is shorter than its table."
    try:
      return self._find(time, half, what)
    except StopIteration:
      raise DatasetError(self.path, short, key=self._feature, fix=COPY_AGAIN) from None
    except DatasetError:
      raise
    except Exception as error:  # FFmpeg's
      rule = f"damaged near {time:.4g} s, in {what} ({str(error)[:200]})."
      raise DatasetError(self.path, rule, key=self._feature, fix=COPY_AGAIN) from None

  def _find(self, time: float, half: float, what: str) -> np.ndarray:
    if not self._at - half <= time <= self._at + _AHEAD:
      self._container.seek(max(int((time - half) / self._stream.time_base), 0), stream=self._stream)
      self._frames, self._at = self._container.decode(self._stream), -np.inf
    while self._at < time - half:
      before, self._at = self._at, np.inf  # should reading fail
      self._frame = next(self._frames)
      self._at = float(self._frame.pts * self._stream.time_base)
    if self._at > time + half:
      near = f"those next to it are at {before:.4g} and {self._at:.4g} s"
      rule = f"has no frame within half a frame of {time:.4g} s, where {what} has one; {near}."
      raise DatasetError(self.path, rule, key=self._feature, fix=_LEAVE_OUT_ANY)
    return self._frame.to_ndarray(format="rgb24")


class _Table:
  """Pictures in a table, as files in its cells; keeps the group of rows that was read last."""

  def __init__(self, episode: Episode, feature: str, size: tuple[int, int]):
    self.path, self._root, self._feature, self._size = episode.table, episode.info.root, feature, size
    self._file = _guarded(self.path, "frames", lambda: _parquet().ParquetFile(self.path))
    if feature not in self._file.schema_arrow.names:
      raise DatasetError(self.path, f"is absent in the table of {episode}.", key=feature, fix=COPY_AGAIN)
    groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
    self._ends, self._group, self._cells = np.cumsum(groups), -1, []

  def at(self, row: int, what: str) -> np.ndarray:
    """[H, W, 3] uint8, the picture in a row; errors name `what` needs it."""
    group = int(np.searchsorted(self._ends, row, side="right"))
    if group != self._group:
      read = lambda: self._file.read_row_group(group, columns=[self._feature], use_threads=False)
      self._cells, self._group = _guarded(self.path, "pictures", read).column(0).to_pylist(), group
    cell = self._cells[row - int(self._ends[group]) + len(self._cells)]
    content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None and name is None:
      rule = f"{what} has no picture."
      raise DatasetError(self.path, rule, key=self._feature, fix=_LEAVE_OUT_ANY)
    return _guarded(self.path, f"the picture of {what}", lambda: self._decode(content, name, what))

  def _decode(self, content: bytes | None, name: str | None, what: str) -> np.ndarray:
    from PIL import Image

    picture = Image.open(io.BytesIO(read_bytes(self._root / str(name)) if content is None else content))
    if picture.size != self._size[::-1]:  # before it is unpacked
      rule = f"the picture of {what} has {picture.height} x {picture.width} pixels; {INFO} says "
      rule += f"{self._size[0]} x {self._size[1]}."
      raise DatasetError(self.path, rule, key=self._feature, fix=COPY_AGAIN)
    return np.asarray(picture.convert("RGB"))


class LeRobotReader(FrameReader):
  """Reads frames of LeRobot datasets; their ids count through all episodes that are used."""

  def __init__(self, data: LeRobotData, folder: PathLike, spans: np.ndarray, image_size: int):
    """Takes frames of `data`, without opening a file.

    Args:
      data: where they are.
      folder: how the split is called; it need not exist.
      spans: [E, 2] first and last frame of each episode, both included.
      image_size: S, side of the square pictures [pixels].

    Raises:
      DatasetError: pictures that are too small.
    """
    self._data = data
    self._open_files: dict[str, Any] = {}
    self._locks = {name: threading.Lock() for name in data.robot.camera_names}
    self._set_frames(folder, spans, image_size, data.robot)
    self.widths = vector_keys(data.robot, () if data.success is None else ("success",))
    self.has_absolute = False
    info = data.episodes[0].info
    for name in data.robot.camera_names:
      size = picture_size(info.features[info.cameras[name]])
      if min(size) < image_size:
        rule = f"must be pictures of at least {image_size} pixels a side, not {size[0]} x {size[1]}."
        fix = "use a smaller env.image_size or other data."
        raise DatasetError(info.file, rule, key=f"features.{info.cameras[name]}.shape", fix=fix)

  def path(self, frame_id: int) -> pathlib.Path:
    """The table that holds a frame."""
    return self._data.locate(frame_id)[0].table

  def read(self, begin: int, stop: int, out: dict[str, np.ndarray]) -> None:
    """See `FrameReader.read`."""
    ids = self.ids[begin:stop]
    for key in self.widths:
      out[key][:] = self._vectors(key, ids)
    for name in self.embodiment.camera_names:
      with self._locks[name]:  # videos are read on, not each from its begin
        for row, frame in enumerate(ids.tolist()):
          picture = self._picture(name, frame)
          out[name][row] = image_lib.area_resize(picture, self.image_size, self.image_size)

  def _vectors(self, key: str, ids: np.ndarray) -> np.ndarray:
    columns = {"rel_actions": self._data.action, "robot_obs": self._data.state, "success": self._data.success}
    return np.asarray(columns[key])[ids]

  def _picture(self, name: str, frame: int) -> np.ndarray:
    episode, number = self._data.locate(frame)
    feature, what = episode.info.cameras[name], f"frame {number} of {episode}"
    path, begin = episode.videos.get(feature, (episode.table, 0.0))
    file = self._open_files.get(name)
    if file is None or file.path != path:
      size = picture_size(episode.info.features[feature])
      is_video = feature in episode.videos
      file = _Video(path, feature, size) if is_video else _Table(episode, feature, size)
      self._open_files[name] = file
    if isinstance(file, _Table):
      return file.at(int(self._data.rows[frame]), what)
    return file.at(begin + float(self._data.times[frame]), 0.5 / episode.info.fps, what)

  def read_vectors(self, begin: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """See `FrameReader.read_vectors`; actions are in [-1, 1]."""
    self.require(keys)
    return {key: self._vectors(key, self.ids[begin:stop]) for key in keys}

  def signature(self) -> str:
    """Changes with the size or time of any file of the data, with what is read of them, and with the borders."""
    data = self._data
    digest = hashlib.sha256(np.stack([self.starts, self.ends]).tobytes())
    digest.update(data.robot.to_json().encode())
    for array in (self.ids, data.action, data.state, data.times, data.success):
      digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    files = {episode.table for episode in data.episodes}
    files |= {path for episode in data.episodes for path, _ in episode.videos.values()}
    for path in sorted(files):
      status = _guarded(path, "frames", lambda path=path: os.stat(path))
      digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Splits.


def task_runs(data: LeRobotData, row: int) -> list[tuple[str, int, int]]:
  """(task, first frame, one past the last) of each run of frames of one task in an episode."""
  low, high = data.spans()[row].tolist()
  names = data.task[low : high + 1]
  cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
  return [(str(names[a]), low + a, low + b) for a, b in zip(cuts, cuts[1:], strict=False)]


@dataclasses.dataclass(frozen=True)
class Split:
  """Episodes of a split: its name, [E, 2] first and last frame of each, and windows (task, first, end)."""

  name: str
  spans: np.ndarray
  windows: tuple[tuple[str, int, int], ...]


def task_windows(data: LeRobotData, selection: Selection, row: int) -> list[tuple[str, int, int]]:
  """(task, first frame, one past the last) of an episode in which one of the tasks is done or tried."""
  number, (low, high) = data.episodes[row].number, data.spans()[row].tolist()
  if number in data.named.get(PLAY, ()):
    return []
  tasks = [name for name in data.named if name not in ROLES and number in data.named[name]]
  runs = [(task, low, high + 1) for task in tasks] or task_runs(data, row)
  return [run for run in runs if run[0] in selection.tasks]


def divide(data: LeRobotData, selection: Selection) -> list[Split]:
  """Training, validation and, if there are any, failed takes.

  Raises:
    DatasetError: no episode is left for training or for validation.
  """
  kinds: dict[str, list[int]] = {}  # what is held out in proportion: takes of each task, and play
  held: set[int] = set()
  takes: list[int] = []
  windows = [task_windows(data, selection, row) for row in range(len(data.episodes))]
  for row, episode in enumerate(data.episodes):
    labelled = bool(_label(episode.info)) or _is_failed(data, episode)
    tried = windows[row]
    if labelled and data.success is not None:
      windows[row] = [window for window in tried if data.success[window[1] : window[2]].any()]
    if tried and not windows[row]:
      takes.append(row)
      windows[row] = tried
      continue
    kinds.setdefault(windows[row][0][0] if windows[row] else PLAY, []).append(row)
    named = episode.number in data.named.get(HELDOUT, ())
    if named or any(episode.index in part for part in episode.info.heldout):
      held.add(row)
  if not held:
    for rows in kinds.values():
      number = min(max(round(selection.heldout_share * len(rows)), 1), len(rows) - 1)
      held |= set(rows[len(rows) - number :])
  trained = [row for rows in kinds.values() for row in rows if row not in held]
  parts = {"training": sorted(trained), "validation": sorted(held), FAILED: takes}
  for name in ("training", "validation"):
    if not parts[name]:
      rule = f"no episode is left for {name}, of {len(data.episodes)}."
      fix = "record more, or name some: --config.data.episodes=heldout:NUMBER"
      raise DatasetError(data.episodes[0].info.file, rule, key="total_episodes", fix=fix)
  return [
    Split(name, data.spans()[rows], tuple(window for row in rows for window in windows[row]))
    for name, rows in parts.items()
    if rows
  ]


def known_tasks(data: LeRobotData) -> str:
  """What tasks the data know, and how many episodes of each, for people."""
  counts: dict[str, int] = {}
  for row in range(len(data.episodes)):
    for name in {name for name, _, _ in task_runs(data, row)}:
      counts[name] = counts.get(name, 0) + 1
  return "; ".join(f"{name} ({count(number, 'episode')} of {data.texts[name]!r})" for name, number in counts.items())


def task_problems(data: LeRobotData, selection: Selection, splits: Sequence[Split]) -> list[DatasetError]:
  """Why policies of the tasks cannot be learned from the data; a world model can."""
  file, out = data.episodes[0].info.file, []
  annotated = {split.name: {task for task, *_ in split.windows} for split in splits}
  everywhere = set().union(*annotated.values())
  if absent := [task for task in selection.tasks if task not in everywhere]:
    rule = f"no episode is of {', '.join(absent)}; the data have {known_tasks(data)}."
    fix = "set --config.tasks to these, or --config.data.episodes=TASK:FIRST-LAST."
    out.append(DatasetError(file, rule, key=selection.task_column, fix=fix))
  for name in ("training", "validation"):
    if few := [task for task in selection.tasks if task in everywhere and task not in annotated.get(name, ())]:
      rule = f"{name} has no demo of {', '.join(few)} that succeeds."
      fix = "record more, or name episodes: --config.data.episodes=TASK:NUMBER, or heldout:NUMBER."
      out.append(DatasetError(file, rule, key=selection.task_column, fix=fix))
  for row, episode in enumerate(data.episodes):
    says = _label(episode.info) or selection.success_frames or _is_failed(data, episode)
    if not says and task_windows(data, selection, row):
      rule = f"nothing says when the task of {episode} is done: there is no {SUCCESS} and no {REWARD}."
      fix = "record one of them, or set data.success_frames: the last so many frames of each demo are success."
      out.append(DatasetError(episode.info.file, rule, key=SUCCESS, fix=fix))
      break
  return out


def plan_splits(
  data: LeRobotData, selection: Selection, image_size: int, skip_broken: bool = False
) -> dict[str, SplitPlan]:
  """Split -> its frames cut into chunks, for conversion.

  Raises:
    DatasetError: as `divide`, a video is missing or shorter than its table, or pictures are too small.
  """
  _check_videos(data)
  plans = {}
  for split in divide(data, selection):
    folder = pathlib.Path(selection.path[0]) / split.name
    reader = LeRobotReader(data, folder, split.spans, image_size)
    chunks = chunks_of(split.spans, split.spans)
    plans[split.name] = SplitPlan(
      folder, image_size, skip_broken, split.spans, split.windows, chunks, (), reader, data.texts
    )
  return plans


def _check_videos(data: LeRobotData) -> None:
  """All videos are there and, by their headers, as long as the tables."""
  needed: dict[tuple[pathlib.Path, str], tuple[float, Episode]] = {}
  for episode, end in zip(data.episodes, data.ends.tolist(), strict=True):
    for feature, (path, begin) in episode.videos.items():
      last = begin + float(data.times[end - 1])
      if last >= needed.get((path, feature), (-1.0, episode))[0]:
        needed[path, feature] = (last, episode)
  for (path, feature), (last, episode) in needed.items():
    video = _Video(path, feature, picture_size(episode.info.features[feature]))
    if video.end < last + 0.25 / episode.info.fps:
      rule = f"ends at {video.end:.4g} s, but the last frame of {episode} is at {last:.4g} s: it is shorter than its table."
      raise DatasetError(path, rule, key=feature, fix=_LEAVE_OUT.format(episode.number))


# ---------------------------------------------------------------------------------------------
# Command lines.


_OPTIONS = [field for field in dataclasses.fields(Selection) if field.name not in ("path", "tasks")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what `Selection` holds, but folders and tasks, to a program's arguments."""
  group = parser.add_argument_group("LeRobot datasets", "as config.data.NAME, explained in docs/CONFIG.md")
  for field in _OPTIONS:
    kind = split_list if isinstance(field.default, tuple) else type(field.default)
    group.add_argument(f"--{field.name}", default=field.default, type=kind)


def selection_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Selection:
  """The selection that a command line names, with its "source" and "tasks"; ends the program if it is wrong."""
  values = {field.name: getattr(options, field.name) for field in _OPTIONS}
  for name, value in values.items():
    for problem in FIELDS[f"data.{name}"].problems(value):
      parser.error(f"--{name}={value}: must be {problem.rule}")
  tasks = tuple(map(task_name, split_list(options.tasks or "")))
  return Selection(tuple(map(str, options.source)), tasks, **values)


def one_source(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
  """The only folder that is named; ends the program if there are more, or what LeRobot's alone have."""
  given = [field.name for field in _OPTIONS if getattr(options, field.name) != field.default]
  if len(options.source) > 1 or given:
    what = f"--{given[0]}" if given else "several --source"
    parser.error(f"{options.source[0]} is no LeRobot dataset, which alone takes {what}")
  return str(options.source[0])
