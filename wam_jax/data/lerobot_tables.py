"""All of LeRobot datasets (v3, v2.1, v2.0) but their pictures: tables, read by pyarrow and checked."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wam_jax.data.calvin import FAILED
from wam_jax.data.frames import check_vectors
from wam_jax.embodiment import Embodiment
from wam_jax.host.dataset_files import COPY_AGAIN, DatasetError, read_json_lines
from wam_jax.host.lerobot_info import (
  ACTION,
  INFO,
  STATE,
  LeRobotInfo,
  describes_itself,
  embodiment_of,
  numbers,
  read_info,
)
from wam_jax.host.regular_files import check_file
from wam_jax.host.words import count, task_name

SUCCESS, REWARD, TASK = "next.success", "next.reward", "task_index"
PLAY, HELDOUT, UNUSED = "play", "heldout", "unused"
ROLES = (PLAY, HELDOUT, UNUSED, FAILED)  # names in `Selection.episodes` that are no task
_KEYS = {"rel_actions": ACTION, "robot_obs": STATE, "success": SUCCESS}  # ours -> LeRobot's
_CLOSE = 1e-3  # of the range of a number: statistics and data may differ by that
EXTRA = "pip install 'wam_jax[lerobot]'"
LEAVE_OUT_ANY = "copy or download it again, or leave the episode out: --config.data.episodes=unused:NUMBER"
LEAVE_OUT = "download or record it, or leave the episode out: --config.data.episodes=unused:{0}"


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


def parquet() -> Any:
  """pyarrow.parquet. Raises DatasetError: it is not installed."""
  try:
    import pyarrow.parquet as parquet
  except ImportError:
    raise DatasetError("pyarrow", "is not installed; it reads and writes tables.", fix=EXTRA) from None
  return parquet


def guarded(path: pathlib.Path, what: str, read: Callable[[], Any], key: str = "") -> Any:
  """What `read` gives of a file. Raises DatasetError: it is missing, no file, or damaged."""
  try:
    check_file(path)
    return read()
  except DatasetError:
    raise
  except FileNotFoundError:
    rule = f"no such file; it holds {what}."
    raise DatasetError(path, rule, key=key, fix="download all of the dataset.") from None
  except Exception as error:  # pyarrow, FFmpeg and Pillow raise as they please
    reason = str(error).partition("\n")[0][:200]
    rule = f"cannot be read ({reason}); it holds {what}."
    raise DatasetError(path, rule, key=key, fix=COPY_AGAIN) from None


def _read_table(path: pathlib.Path, what: str, columns: Callable[[list[str]], Sequence[str]]) -> Any:
  """Some columns of a parquet file, chosen among the names of all."""

  def read() -> Any:
    file = parquet().ParquetFile(path)
    return file.read(columns=list(columns(file.schema_arrow.names)), use_threads=False)

  return guarded(path, what, read)


def _column(table: Any, path: pathlib.Path, key: str, width: int = 0) -> np.ndarray:
  """[n] a column of any kind, or [n, width] one of so many numbers in each row."""
  if key not in table.column_names:
    rule = f"is absent; the table has {', '.join(table.column_names)[:300]}."
    raise DatasetError(path, rule, key=key, fix=COPY_AGAIN)
  column = table.column(key).combine_chunks()
  if column.null_count:
    raise DatasetError(path, f"has no value in {count(column.null_count, 'row')}.", key=key, fix=COPY_AGAIN)
  kind, lengths = str(column.type), np.ones(len(table), int)
  if kind.startswith(("list<", "large_list<", "fixed_size_list<")):
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    column = column.flatten()
  array = np.asarray(column.to_numpy(zero_copy_only=False))
  texts = not width and all(isinstance(value, str) for value in array)
  if (lengths != max(width, 1)).any() or not (texts or array.dtype.kind in "biuf"):
    rule = f"must have {count(max(width, 1), 'number')} in each row, not {kind}."
    raise DatasetError(path, rule, key=key, fix=COPY_AGAIN)
  return array.reshape(len(table), width) if width else array


def _read_episodes(
  info: LeRobotInfo, first: int, unused: set[int], robot: Embodiment
) -> tuple[list[Episode], int | None]:
  """Episodes of a dataset that are used, in order, with the robot's cameras; opens no file of theirs.

  Returns:
    The episodes, and the frames of all, also of those that are not used; None where one has no length.
  """
  file, rows = _list_v3(info) if info.version == 3 else _list_v2(info)
  indices = [row.get("episode_index") for row in rows]
  numbered = lambda i: type(i) is int and 0 <= i < info.num_episodes
  if indices == list(range(len(indices))) and len(indices) != info.num_episodes:
    rule = f"is {info.num_episodes}, but {file} lists {count(len(indices), 'episode')}."
    fix = "download all of the dataset, or correct it."
    raise DatasetError(info.file, rule, key="total_episodes", fix=fix)
  wrong = [i for i in indices if not numbered(i)]
  wrong = wrong or [i for i, times in collections.Counter(indices).items() if times > 1]
  if wrong or len(indices) != info.num_episodes:
    has = f"has episode {str(wrong[0])[:40]!r}" if wrong else f"has {len(indices)} episodes"
    rule = f"{has}; by {INFO} they go from 0 to {info.num_episodes - 1}, each once."
    raise DatasetError(file, rule, key="episode_index", fix=COPY_AGAIN)
  used = [row for row in rows if first + row["episode_index"] not in unused]
  cameras = [info.cameras[name] for name in robot.camera_names]
  films = [feature for feature in cameras if info.features[feature]["dtype"] == "video"]
  make = _episode_v3 if info.version == 3 else _episode_v2
  episodes = sorted((make(info, file, first, row, films) for row in used), key=lambda episode: episode.index)
  lengths: list[Any] = [row.get("length") for row in rows]
  sound = all(type(length) in (int, float) and 0 <= length < 2**31 for length in lengths)
  return episodes, sum(map(int, lengths)) if sound else None


def _list_v3(info: LeRobotInfo) -> tuple[pathlib.Path, list[dict[str, Any]]]:
  """The first file of the list of episodes, and all its rows."""
  files = sorted((info.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
  if not files:
    path = info.root / "meta/episodes/chunk-000/file-000.parquet"
    raise DatasetError(path, "no such file; it lists the episodes.", fix="download all of the dataset.")
  no_statistics = lambda names: [name for name in names if not name.startswith("stats/")]
  tables = [_read_table(file, "the list of episodes", no_statistics) for file in files]
  return files[0], [row for table in tables for row in table.to_pylist()]


def _list_v2(info: LeRobotInfo) -> tuple[pathlib.Path, list[dict[str, Any]]]:
  file = info.root / "meta/episodes.jsonl"
  return file, read_json_lines(file)


def _number(info: LeRobotInfo, file: pathlib.Path, first: int, row: dict[str, Any], key: str) -> Any:
  """A number of 0 or more in an episode's row, whole if it is no time."""
  value: Any = row.get(key)
  sound = type(value) in (int, float) and 0 <= value < 2**31
  if not sound or not (key.endswith("timestamp") or value == int(value)):
    index = row["episode_index"]
    feature = re.fullmatch("videos/(.*)/.*", key)
    lacks = f"episode {index} has no pictures of {feature[1]}" if feature else f"episode {index} has no {key}"
    rule = f"{lacks}: a number of 0 or more is expected, not {str(value)[:40]!r}."
    raise DatasetError(file, rule, key=key, fix=LEAVE_OUT.format(first + index))
  return value


def _episode_v3(
  info: LeRobotInfo, file: pathlib.Path, first: int, row: dict[str, Any], films: Sequence[str]
) -> Episode:
  number = functools.partial(_number, info, file, first, row)
  videos = {}
  for feature in films:
    place = {part: int(number(f"videos/{feature}/{part}")) for part in ("chunk_index", "file_index")}
    path = info.path("video", video_key=feature, **place)
    begin, end = (f"videos/{feature}/{part}_timestamp" for part in ("from", "to"))
    videos[feature] = (path, float(number(begin)))
    seconds = float(number(end)) - videos[feature][1] if end in row else np.inf
    if seconds < (number("length") - 0.5) / info.fps:
      rule = (
        f"the video of episode {row['episode_index']} has {seconds:.4g} s: it is shorter than its table, "
      )
      rule += f"of {number('length')} frames."
      raise DatasetError(file, rule, key=end, fix=LEAVE_OUT.format(first + row["episode_index"]))
  place = {part: int(number(f"data/{part}")) for part in ("chunk_index", "file_index")}
  index, table = row["episode_index"], info.path("data", **place)
  return Episode(info, index, first + index, int(number("length")), table, file, videos)


def _episode_v2(
  info: LeRobotInfo, file: pathlib.Path, first: int, row: dict[str, Any], films: Sequence[str]
) -> Episode:
  index, length = row["episode_index"], int(_number(info, file, first, row, "length"))
  place = {"episode_chunk": index // info.chunk_episodes, "episode_index": index}
  videos = {feature: (info.path("video", video_key=feature, **place), 0.0) for feature in films}
  return Episode(info, index, first + index, length, info.path("data", **place), file, videos)


def _task_texts(info: LeRobotInfo) -> dict[int, str]:
  """task_index -> the task in words."""
  if info.version == 2:
    file = info.root / "meta/tasks.jsonl"
    rows = [(row.get(TASK), row.get("task")) for row in read_json_lines(file)]
  else:
    file = info.root / "meta/tasks.parquet"
    table = _read_table(file, "the tasks", lambda names: names)
    text = next((key for key in table.column_names if key != TASK), TASK)
    rows = list(zip(_column(table, file, TASK).tolist(), _column(table, file, text).tolist(), strict=True))
  out: dict[int, str] = {}
  for number, task in rows:
    if type(number) is not int or number in out or not isinstance(task, str):
      rule = f"must be a whole number for each task in words, each once, not {str((number, task))[:80]}."
      raise DatasetError(file, rule, key=TASK, fix=COPY_AGAIN)
    out[number] = task
  return out


# ---------------------------------------------------------------------------------------------
# All but the pictures.


def open_data(selection: Selection) -> LeRobotData:
  """Reads and checks all of datasets but their pictures.

  Raises:
    DatasetError: names file, key and rule of the first thing wrong.
  """
  infos = [read_info(folder) for folder in selection.path]
  roots = [os.path.realpath(folder) for folder in selection.path]
  if again := [folder for i, folder in enumerate(selection.path) if roots[i] in roots[:i]]:
    raise DatasetError(again[0], "is named twice in data.path.", fix="name each dataset once.")
  robot = embodiment_of(infos, selection.embodiment)
  named = _named_episodes(selection, sum(info.num_episodes for info in infos), infos[0].file)
  episodes: list[Episode] = []
  first = 0
  totals = []
  for info in infos:
    used, total = _read_episodes(info, first, named.get(UNUSED, set()), robot)
    episodes += used
    totals.append(total)
    first += info.num_episodes
  if not any(episode.length for episode in episodes):
    raise DatasetError(infos[0].file, "has no episode that is used.", key="total_episodes", fix="name fewer.")
  columns = _read_columns(infos, episodes, selection)
  for info, total in zip(infos, totals, strict=True):
    if total not in (None, info.num_frames):  # the list of episodes agrees with the tables
      rule = f"is {info.num_frames}, but the episodes have {total} frames together."
      raise DatasetError(info.file, rule, key="total_frames", fix=f"correct it, or {COPY_AGAIN}")
  episodes = [episode for episode in episodes if episode.length]
  data = LeRobotData(
    robot=robot,
    episodes=tuple(episodes),
    ends=np.cumsum([episode.length for episode in episodes]),
    action=columns[ACTION],
    state=columns[STATE],
    success=columns["success"] if selection.success_frames or any(map(label_of, infos)) else None,
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


def label_of(info: LeRobotInfo) -> str:
  """The feature that says whether the task is done; empty: none does."""
  return next((key for key in (SUCCESS, REWARD) if key in info.features), "")


def is_failed(data: LeRobotData, episode: Episode) -> bool:
  """Whether an episode was named a failed take, here or by its dataset."""
  return episode.number in data.named.get(FAILED, ()) or any(
    episode.index in part for part in episode.info.failed
  )


def _complete_labels(data: LeRobotData, selection: Selection, success: np.ndarray) -> None:
  """Writes labels where the data have none: the last frames of demos, and none of failed takes."""
  for row, (episode, (low, high)) in enumerate(zip(data.episodes, data.spans().tolist(), strict=True)):
    if is_failed(data, episode):
      success[low : high + 1] = False
    elif not label_of(episode.info):
      for _, first, end in task_windows(data, selection, row):
        success[max(first, end - selection.success_frames) : end] = True


def _named_episodes(selection: Selection, total: int, file: pathlib.Path) -> dict[str, set[int]]:
  """Name -> numbers of episodes, by `Selection.episodes`."""
  out: dict[str, set[int]] = {}
  for entry in selection.episodes:
    name, _, text = entry.rpartition(":")
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if not match or not name:
      raise DatasetError(
        file, f"data.episodes={entry!r} must be NAME:NUMBER or NAME:FIRST-LAST.", fix="correct it."
      )
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
  task_column, label = selection.task_column, label_of(info)
  needed = {ACTION, STATE, "timestamp", "episode_index", task_column, label}
  table = _read_table(path, "frames", lambda names: [name for name in names if name in needed])
  if task_column not in table.column_names:
    others = ", ".join(key for key in info.features if info.features[key]["dtype"] not in ("video", "image"))
    fix = f"set data.task_column to one of {others}."
    raise DatasetError(path, "is no column of the frames.", key=task_column, fix=fix)
  state = STATE in info.features
  out = {
    "episode_index": _column(table, path, "episode_index", 1)[:, 0],
    "timestamp": _column(table, path, "timestamp", 1)[:, 0].astype(np.float64),
    "task": _column(table, path, task_column),
    ACTION: _column(table, path, ACTION, info.width(ACTION)).astype(np.float64),
    STATE: _column(table, path, STATE, info.width(STATE)).astype(np.float64)
    if state
    else np.zeros((len(table), 0)),
  }
  least = 0.5 if label == SUCCESS else selection.success_reward
  labels = _column(table, path, label, 1)[:, 0] if label else np.full(len(table), -np.inf)
  labels = labels.astype(np.float64)
  if (bad := np.isnan(labels)).any():
    raise DatasetError(path, f"row {int(bad.argmax())} must be a number, not NaN.", key=label, fix=COPY_AGAIN)
  out["success"] = labels >= least
  strange = ~((out["episode_index"] >= 0) & (out["episode_index"] < info.num_episodes))
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
      rule = (
        f"task {value} of {episode} is not among the tasks of the dataset ({', '.join(map(str, by_index))})."
      )
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
    if data.times[low] < -step / 2:
      rule = f"times of {episode} begin at {data.times[low]:.6g} s; they count from 0."
      raise DatasetError(episode.table, rule, key="timestamp", fix=LEAVE_OUT.format(episode.number))
    gaps = np.diff(data.times[low : high + 1])
    bad = ~(np.abs(gaps - step) <= step / 2)
    if bad.any():
      frame = int((gaps <= 0).argmax() if (gaps <= 0).any() else bad.argmax())
      before, after = data.times[low + frame : low + frame + 2]
      how = "run backwards" if after <= before else f"are not {step:.4g} s apart, the time of a frame"
      rule = f"times of {episode} {how}: {before:.6g} s in frame {frame}, {after:.6g} s in frame {frame + 1}."
      fix = f"record it again, or leave it out: --config.data.episodes=unused:{episode.number}"
      raise DatasetError(episode.table, rule, key="timestamp", fix=fix)


def _check_statistics(data: LeRobotData, infos: Sequence[LeRobotInfo], description: str) -> None:
  """Statistics that ranges were taken from must be those of the data."""
  for info in infos:
    mine = np.repeat([e.info is info for e in data.episodes], [e.length for e in data.episodes])
    whole = int(mine.sum()) == info.num_frames
    if describes_itself(info, description) or not whole or not mine.any():
      continue
    for key, values in ((ACTION, data.action[mine]), (STATE, data.state[mine])):
      if key not in info.statistics or not values.size or not np.isfinite(values).all():
        continue  # `_check_numbers` names it
      least, most = values.min(0), values.max(0)
      mean, std = values.mean(0), values.std(0)
      checks = (
        ("min", least, 1e-4 * np.abs(least)),
        ("max", most, 1e-4 * np.abs(most)),
        ("mean", mean, 1e-4 * np.abs(mean)),
        # Perhaps that of a sample, and from lerobot's running sums of squares in float32.
        ("std", std, std / len(values) + 1e-3 * np.abs(values).max(0)),
      )
      for name, actual, rounding in checks:
        if name == "std" and name not in info.statistics[key]:
          continue
        told = numbers(info, key, name)
        off = np.abs(told - actual) > _CLOSE * (most - least) + rounding
        if off.any():
          column = int(off.argmax())
          told_and_true = f"{told[column]:.6g} of number {column}, which is {actual[column]:.6g} there"
          rule = f"does not match the data: {told_and_true}."
          fix = "compute the statistics again, or describe the robot in --config.data.embodiment=FILE."
          raise DatasetError(info.statistics_file, rule, key=f"{key}.{name}", fix=fix)


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
    fix = f"correct the range in {episode.info.statistics_file} or in --config.data.embodiment=FILE, "
    fix += f"or leave the episode out: --config.data.episodes=unused:{episode.number}"
    rule = f"in frame {frame} of {episode} it {error.rule}"
    raise DatasetError(error.file, rule, key=_KEYS[error.key], fix=fix) from None


# ---------------------------------------------------------------------------------------------
# Tasks.


def task_runs(data: LeRobotData, row: int) -> list[tuple[str, int, int]]:
  """(task, first frame, one past the last) of each run of frames of one task in an episode."""
  low, high = data.spans()[row].tolist()
  names = data.task[low : high + 1]
  cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
  return [(str(names[a]), low + a, low + b) for a, b in itertools.pairwise(cuts)]


def task_windows(data: LeRobotData, selection: Selection, row: int) -> list[tuple[str, int, int]]:
  """(task, first frame, one past the last) of an episode in which one of the tasks is done or tried."""
  number, (low, high) = data.episodes[row].number, data.spans()[row].tolist()
  if number in data.named.get(PLAY, ()):
    return []
  tasks = [name for name in data.named if name not in ROLES and number in data.named[name]]
  runs = [(task, low, high + 1) for task in tasks] or task_runs(data, row)
  return [run for run in runs if run[0] in selection.tasks]
