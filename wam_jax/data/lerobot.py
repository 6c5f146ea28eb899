"""LeRobot datasets (v3, v2.1, v2.0) as splits of ours, without torch and lerobot.

A dataset has no splits of ours: `Selection` says which of its episodes are demos of which task, failed takes,
play, or held out; `plan_splits` makes of them what `convert` and `inspect` take.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.config.fields import FIELDS
from wam_jax.core import image as image_lib
from wam_jax.data import doubts
from wam_jax.data.calvin import FAILED
from wam_jax.data.examples import SplitPlan, chunks_of
from wam_jax.data.files import MAX_ID
from wam_jax.data.frames import FrameReader, vector_keys
from wam_jax.data.lerobot_pictures import Cells, Video
from wam_jax.data.lerobot_tables import (
  HELDOUT,
  LEAVE_OUT,
  PLAY,
  REWARD,
  SUCCESS,
  Episode,
  LeRobotData,
  Selection,
  guarded,
  is_failed,
  label_of,
  open_data,
  task_runs,
  task_windows,
)
from wam_jax.host import machine
from wam_jax.host.dataset_files import DatasetError, PathLike
from wam_jax.host.lerobot_info import picture_size
from wam_jax.host.words import count, split_list, task_name

__all__ = ["LeRobotData", "LeRobotReader", "Selection", "divide", "open_data", "plan_splits"]


class LeRobotReader(FrameReader):
  """Reads frames of LeRobot datasets; their ids count through all episodes that are used."""

  def __init__(self, data: LeRobotData, folder: PathLike, spans: np.ndarray, image_size: int):
    """Takes frames of `data`, without opening a file.

    Args:
      data: where they are.
      folder: how the split is called; it need not exist.
      spans: [E, 2] first and last frame of each episode, both included.
      image_size: S, side of the square pictures [pixels]; 0: as they are stored.

    Raises:
      DatasetError: pictures that are too small.
    """
    self._data = data
    self._open_files: dict[str, Any] = {}
    self._locks = {name: threading.Lock() for name in data.robot.camera_names}
    self._set_frames(folder, spans, image_size, data.robot)
    self.widths = vector_keys(data.robot, () if data.success is None else ("success",))
    self.has_absolute = False
    self._shapes = {}
    infos = {episode.info.root: episode.info for episode in reversed(data.episodes)}.values()
    for info, name in itertools.product(infos, data.robot.camera_names):
      size = picture_size(info.features[info.cameras[name]])
      self._shapes[name] = (*size, 3)
      if min(size) < image_size:
        rule = f"must be pictures of at least {image_size} pixels a side, not {size[0]} x {size[1]}."
        fix = "use a smaller env.image_size or other data."
        raise DatasetError(info.file, rule, key=f"features.{info.cameras[name]}.shape", fix=fix)

  def path(self, frame_id: int) -> pathlib.Path:
    """The table that holds a frame."""
    return self._data.locate(frame_id)[0].table

  def read(self, begin: int, stop: int, out: dict[str, np.ndarray]) -> None:
    """See `FrameReader.read`."""
    ids, side = self.ids[begin:stop], self.image_size
    for key in self.widths:
      out[key][:] = self._vectors(key, ids)
    for name in self.embodiment.camera_names:
      with self._locks[name]:  # videos are read on, not each from its begin
        for row, frame in enumerate(ids.tolist()):
          picture = self._picture(name, frame)
          out[name][row] = image_lib.area_resize(picture, side, side) if side else picture

  def _vectors(self, key: str, ids: np.ndarray) -> np.ndarray:
    columns = {"rel_actions": self._data.action, "robot_obs": self._data.state, "success": self._data.success}
    return np.asarray(columns[key])[ids]

  def _picture(self, name: str, frame: int) -> np.ndarray:
    episode, number = self._data.locate(frame)
    feature, what = episode.info.cameras[name], f"frame {number} of {episode}"
    path, begin = episode.videos.get(feature, (episode.table, 0.0))
    file = self._open_files.get(name)
    if file is None or file.path != path:
      if file is not None:
        file.close()
      size = picture_size(episode.info.features[feature])
      is_video = feature in episode.videos
      file = Video(path, feature, size) if is_video else Cells(episode, feature, size)
      self._open_files[name] = file
    if isinstance(file, Cells):
      return file.at(int(self._data.rows[frame]), what)
    return file.at(begin + float(self._data.times[frame]), 0.5 / episode.info.fps, what)

  def read_vectors(self, begin: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """See `FrameReader.read_vectors`; actions are in [-1, 1]."""
    self.require(keys)
    return {key: self._vectors(key, self.ids[begin:stop]) for key in keys}

  def signature(self) -> str:
    """Changes with the size or time of any file, with what is read of them, and with the borders."""
    data = self._data
    digest = hashlib.sha256(np.stack([self.starts, self.ends]).tobytes())
    digest.update(data.robot.to_json().encode())
    for array in (self.ids, data.action, data.state, data.times, data.success):
      digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    files = {episode.table for episode in data.episodes}
    files |= {path for episode in data.episodes for path, _ in episode.videos.values()}
    for path in sorted(files):
      status = guarded(path, "frames", functools.partial(os.stat, path))
      digest.update(f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Splits.


@dataclasses.dataclass(frozen=True)
class Split:
  """Episodes of a split: its name, [E, 2] first and last frame of each, and windows (task, first, end)."""

  name: str
  spans: np.ndarray
  windows: tuple[tuple[str, int, int], ...]


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
    labelled = bool(label_of(episode.info)) or is_failed(data, episode)
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
  return "; ".join(
    f"{name} ({count(number, 'episode')} of {data.texts[name]!r})" for name, number in counts.items()
  )


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
    if few := [
      task for task in selection.tasks if task in everywhere and task not in annotated.get(name, ())
    ]:
      rule = f"{name} has no demo of {', '.join(few)} that succeeds."
      fix = "record more, or name episodes: --config.data.episodes=TASK:NUMBER, or heldout:NUMBER."
      out.append(DatasetError(file, rule, key=selection.task_column, fix=fix))
  for row, episode in enumerate(data.episodes):
    says = label_of(episode.info) or selection.success_frames or is_failed(data, episode)
    if not says and task_windows(data, selection, row):
      rule = f"nothing says when the task of {episode} is done: there is no {SUCCESS} and no {REWARD}."
      fix = (
        "record one of them, or set data.success_frames: the last so many frames of each demo are success."
      )
      out.append(DatasetError(episode.info.file, rule, key=SUCCESS, fix=fix))
      break
  return out


def source_of(
  data: LeRobotData, folder: PathLike, spans: np.ndarray, windows: Sequence[tuple[str, int, int]]
) -> doubts.Source:
  """A split of the data, to be looked at by `doubts`."""
  return doubts.Source(functools.partial(LeRobotReader, data, folder), spans, windows)


def plan_splits(
  data: LeRobotData, selection: Selection, image_size: int, skip_broken: bool = False
) -> dict[str, SplitPlan]:
  """Split -> its frames cut into chunks, for conversion.

  Raises:
    DatasetError: as `divide`, a video is missing or shorter than its table, or pictures are too small.
  """
  if (count := int(data.ends[-1])) > MAX_ID + 1:
    raise DatasetError(
      selection.path[0],
      f"holds {count:,} frames, more than {MAX_ID + 1:,}, which ids of seven digits can count.",
      fix="name the episodes that are needed: data.episodes",
    )
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
  """All videos are there, as long as the tables by their headers, and no frame is that of two episodes."""
  parts: dict[tuple[pathlib.Path, str], list[tuple[float, float, Episode]]] = {}  # times of frames in videos
  for episode, (low, high) in zip(data.episodes, data.spans().tolist(), strict=True):
    for feature, (path, begin) in episode.videos.items():
      first, last = begin + data.times[[low, high]]
      parts.setdefault((path, feature), []).append((float(first), float(last), episode))
  for (path, feature), spans in parts.items():
    spans.sort(key=lambda span: span[0])
    for (_, end, before), (begin, _, after) in itertools.pairwise(spans):
      if begin < end + 0.5 / after.info.fps:
        rule = f"frames of {before} go on until {end:.4g} s in {path}, where those of {after} begin at "
        rule += f"{begin:.4g} s: a video is shorter than its table, or begins elsewhere."
        fix = LEAVE_OUT.format(after.number)
        raise DatasetError(after.record, rule, key=f"videos/{feature}/from_timestamp", fix=fix)
    _, last, episode = max(spans, key=lambda span: span[1])
    with contextlib.closing(Video(path, feature, picture_size(episode.info.features[feature]))) as video:
      end = video.end
    if end < last + 0.25 / episode.info.fps:
      rule = f"ends at {end:.4g} s, but the last frame of {episode} is at {last:.4g} s: it is shorter "
      rule += "than its table."
      raise DatasetError(path, rule, key=feature, fix=LEAVE_OUT.format(episode.number))


# ---------------------------------------------------------------------------------------------
# Command lines.


_OPTIONS = [field for field in dataclasses.fields(Selection) if field.name not in ("path", "tasks")]


def source_parser(program: str, description: str | None, tasks: str) -> argparse.ArgumentParser:
  """Arguments of a program that reads a dataset in any form: --source, --tasks, and what `Selection` holds.

  Args:
    program: how it is called.
    description: of it.
    tasks: what its --tasks are.
  """
  parser = argparse.ArgumentParser(
    prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--source",
    type=machine.local_path,
    required=True,
    action="append",
    help="folder that holds training/ and validation/, or a LeRobot dataset (several: give it again)",
  )
  parser.add_argument("--tasks", help=tasks)
  group = parser.add_argument_group("LeRobot datasets", "as config.data.NAME, explained in docs/CONFIG.md")
  for field in _OPTIONS:
    kind = split_list if isinstance(field.default, tuple) else type(field.default)
    group.add_argument(f"--{field.name}", default=field.default, type=kind)
  return parser


def selection_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Selection:
  """The selection that a command line names; ends the program if it is wrong."""
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
