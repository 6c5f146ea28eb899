"""What a LeRobot dataset says of itself in `meta/`, and the robot that it describes; reads no frames.

Formats v3.0 and v2.0 or v2.1. No package but this one is needed: the config and the plan read this.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.embodiment import FILE, ActionDimension, Camera, Embodiment, EmbodimentError, StateDimension
from wam_jax.host.dataset_files import (
  COPY_AGAIN,
  DatasetError,
  PathLike,
  read_description,
  read_json,
  read_json_lines,
)

INFO, STATS, EPISODE_STATS = "meta/info.json", "meta/stats.json", "meta/episodes_stats.jsonl"
ACTION, STATE = "action", "observation.state"
_CHANNELS = (1, 3, 4)
_DIGITS = re.compile("(0?[1-9]?d)?")  # of a number in a path
_WIDEST = 2**16  # numbers of an action or a state
_DESCRIBE = "describe the robot in a file for --config.data.embodiment (docs/guides/lerobot.md)."


@dataclasses.dataclass(frozen=True)
class LeRobotInfo:
  """`meta/info.json` and the statistics, checked.

  Attributes:
    root: the dataset's folder.
    version: 2 or 3.
    fps: frames per second.
    num_episodes: as the file says.
    num_frames: as the file says.
    features: name -> what it says of it.
    cameras: name of ours -> feature of its pictures.
    paths: of data and videos, as templates.
    chunk_episodes: episodes in a folder, of version 2.
    heldout: ranges of episodes that its splits do not train on.
    failed: ranges of episodes that its split `failed` holds, as our own writer calls it.
    statistics: feature -> {"min", "max", "mean", ...}; empty where there are none.
  """

  root: pathlib.Path
  version: int
  fps: float
  num_episodes: int
  num_frames: int
  features: dict[str, dict[str, Any]]
  cameras: dict[str, str]
  paths: dict[str, str]
  chunk_episodes: int
  heldout: tuple[range, ...]
  failed: tuple[range, ...]
  statistics: dict[str, dict[str, Any]]

  @property
  def file(self) -> pathlib.Path:
    """meta/info.json."""
    return self.root / INFO

  @property
  def statistics_file(self) -> pathlib.Path:
    """Where the statistics are, or would be."""
    of_episodes = not os.path.lexists(self.root / STATS) and os.path.lexists(self.root / EPISODE_STATS)
    return self.root / (EPISODE_STATS if of_episodes else STATS)

  def path(self, kind: str, **numbers: Any) -> pathlib.Path:
    """File of data ("data") or of a video ("video"), by the numbers and names in its template.

    Raises:
      DatasetError: the template names something else, or leads out of the dataset.
    """
    template = self.paths[kind]
    try:
      fields = [part[1:3] for part in string.Formatter().parse(template) if part[1] is not None]
      if any(name not in numbers or not _DIGITS.fullmatch(digits or "") for name, digits in fields):
        raise ValueError(fields)  # also attributes, items, and a billion digits
      relative = template.format(**numbers)
    except (ValueError, LookupError, TypeError):
      rule = f"is {template[:80]!r}, which may name {', '.join(numbers)} only."
      raise DatasetError(self.file, rule, key=f"{kind}_path", fix=COPY_AGAIN) from None
    try:
      return inside(self.root, relative)
    except ValueError as error:
      raise DatasetError(self.file, f"{error}.", key=f"{kind}_path", fix="correct it.") from None

  def width(self, feature: str) -> int:
    """Numbers of a feature that is no picture."""
    return int(np.prod(self.features[feature]["shape"]))


def inside(root: pathlib.Path, relative: str) -> pathlib.Path:
  """A path that a dataset names. Raises ValueError where it leads out of the dataset."""
  path = pathlib.PurePosixPath(relative)
  if path.is_absolute() or ".." in path.parts:
    raise ValueError(f"{relative[:80]!r} leads out of the dataset")
  return root / path


def is_lerobot(folder: PathLike) -> bool:
  """Whether a folder holds a LeRobot dataset."""
  return os.path.lexists(os.path.join(folder, INFO))


def read_info(root: PathLike) -> LeRobotInfo:
  """Reads and checks what a dataset says of itself.

  Raises:
    DatasetError: no such dataset, another version, or a part of info.json is missing or wrong.
  """
  root = pathlib.Path(root)
  file = root / INFO
  if not file.exists():
    fix = "name the folder that holds meta/, data/ and videos/ (download all of a dataset of the hub)."
    raise DatasetError(file, "no such file: not a LeRobot dataset.", fix=fix)
  content = read_json(file)
  version = str(content.get("codebase_version", ""))
  if not re.fullmatch(r"v(2\.[01]|3\.\d+)", version):
    fix = "convert it with lerobot itself: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
    rule = f"is {version[:20] or 'missing'!r}; v3.0, v2.1 and v2.0 are read."
    raise DatasetError(file, rule, key="codebase_version", fix=fix)

  def expect(key: str, holds: bool, rule: str) -> Any:
    if not holds:
      raise DatasetError(file, f"must be {rule}.", key=key, fix=COPY_AGAIN)
    return content.get(key)

  counted = lambda key: type(content.get(key)) is int and 0 < content[key] < 2**31
  fps: Any = content.get("fps")
  expect("fps", type(fps) in (int, float) and 0 < fps < 1e6, "a number above 0")
  expect("total_episodes", counted("total_episodes"), "a whole number above 0")
  expect("total_frames", counted("total_frames"), "a whole number above 0")
  expect("data_path", isinstance(content.get("data_path"), str), "a path of data files")
  features = expect("features", isinstance(content.get("features"), dict), "an object")
  for name, feature in features.items():
    shape = feature.get("shape") if isinstance(feature, dict) else None
    sound = isinstance(shape, list) and all(type(size) is int and 0 < size < 2**31 for size in shape)
    expect(
      f"features.{name}", sound and isinstance(feature.get("dtype"), str), "an object with dtype and shape"
    )
    for part in ("info", "video_info"):
      expect(f"features.{name}.{part}", isinstance(feature.get(part) or {}, dict), "an object")
    narrow = name not in (ACTION, STATE) or math.prod(feature["shape"]) < _WIDEST
    expect(f"features.{name}.shape", narrow, f"of fewer than {_WIDEST} numbers")
  cameras = _cameras(file, features)
  if any(features[key]["dtype"] == "video" for key in cameras.values()):
    expect("video_path", isinstance(content.get("video_path"), str), "a path of videos, as there are some")
  expect("features.action", ACTION in features, "there: what the robot did")
  chunk = expect("chunks_size", version.startswith("v3") or counted("chunks_size"), "a whole number above 0")
  divided = content.get("splits") or {}
  expect("splits", isinstance(divided, dict), "an object")
  apart = [name for name in divided if re.match("val|test|eval", name)]
  return LeRobotInfo(
    root=root,
    version=int(version[1]),
    fps=float(content["fps"]),
    num_episodes=content["total_episodes"],
    num_frames=content["total_frames"],
    features=features,
    cameras=cameras,
    paths={"data": content["data_path"], "video": content.get("video_path") or ""},
    chunk_episodes=chunk or 1,
    heldout=tuple(_range(content, file, name) for name in apart),
    failed=tuple(_range(content, file, name) for name in ("failed",) if name in divided),
    statistics=_statistics(root),
  )


def _range(content: dict[str, Any], file: pathlib.Path, name: str) -> range:
  """Episodes of a split."""
  text, total = str(content["splits"][name]), content["total_episodes"]
  match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, flags=re.ASCII)
  if not match or not int(match[1]) <= int(match[2]) <= total:
    rule = f"must be FIRST:END within 0:{total}, the episodes that there are, not {text[:40]!r}."
    raise DatasetError(file, rule, key=f"splits.{name}", fix=COPY_AGAIN)
  return range(int(match[1]), int(match[2]))


def _cameras(file: pathlib.Path, features: dict[str, dict[str, Any]]) -> dict[str, str]:
  """Name -> feature of pictures in colour; depth maps are left out."""
  found = [
    key
    for key, feature in features.items()
    if feature["dtype"] in ("video", "image")
    and not any((feature.get(part) or {}).get("video.is_depth_map") for part in ("info", "video_info"))
  ]
  if not found:
    fix = "record pictures: a world model is learned from them."
    raise DatasetError(file, "has no feature of dtype video or image.", key="features", fix=fix)
  for key in found:
    if len(features[key]["shape"]) != 3:
      rule = f"must have three sizes, as a picture, not {features[key]['shape']}."
      raise DatasetError(file, rule, key=f"features.{key}.shape", fix=COPY_AGAIN)
  short = [re.sub(r"\W", "_", re.sub(r"^observation\.(images\.)?", "", key), flags=re.ASCII) for key in found]
  names = [f"camera_{name}" if name[:1].isdigit() else name for name in short]
  if len(set(names)) < len(names):
    names = [re.sub(r"\W", "_", key, flags=re.ASCII) for key in found]
  if len(set(names)) < len(names):  # in another script than ours
    names = [f"camera_{number}" for number in range(len(found))]
  return dict(zip(names, found, strict=True))


def picture_size(feature: dict[str, Any]) -> tuple[int, int]:
  """Height and width of a camera's pictures, wherever the channels stand."""
  sizes = feature["shape"]
  height, width = sizes[:2] if sizes[2] in _CHANNELS or sizes[0] not in _CHANNELS else sizes[1:]
  return height, width


def _statistics(root: pathlib.Path) -> dict[str, dict[str, Any]]:
  """meta/stats.json, or of version 2.1 those of all episodes together: least, most, mean, std."""
  if os.path.lexists(root / STATS):
    return read_json(root / STATS)
  if not os.path.lexists(root / EPISODE_STATS):
    return {}
  parts = [line.get("stats") for line in read_json_lines(root / EPISODE_STATS)]
  out = {}
  try:
    for key in (ACTION, STATE):
      rows = [part[key] for part in parts if isinstance(part, dict) and key in part]
      if rows:
        counts = np.array([np.ravel(row["count"])[0] for row in rows], float)
        if not (counts > 0).all():
          raise ValueError(counts)
        column = lambda name, rows=rows: np.array([np.ravel(row[name]) for row in rows], float)
        weights, means = counts / counts.sum(), column("mean")
        mean = weights @ means
        out[key] = {
          "min": column("min").min(0).tolist(),
          "max": column("max").max(0).tolist(),
          "mean": mean.tolist(),
          "count": [int(counts.sum())],
        }
        if all("std" in row for row in rows):
          out[key]["std"] = np.sqrt(weights @ (column("std") ** 2 + (means - mean) ** 2)).tolist()
  except (LookupError, TypeError, ValueError, OverflowError):
    raise DatasetError(root / EPISODE_STATS, "holds no statistics of all episodes.", fix=COPY_AGAIN) from None
  return out


def numbers(info: LeRobotInfo, feature: str, name: str) -> np.ndarray:
  """[width] float64: a statistic of a feature.

  Raises:
    DatasetError: it is missing or has another number of values.
  """
  try:
    values = np.array(info.statistics[feature][name], float).reshape(-1)
  except (LookupError, TypeError, ValueError, OverflowError):
    values = np.array([np.nan])
  if values.shape != (info.width(feature),) or not np.isfinite(values).all():
    rule = f"must be {info.width(feature)} finite numbers, one for each of {feature}."
    raise DatasetError(info.statistics_file, rule, key=f"{feature}.{name}", fix=_DESCRIBE)
  return values


def describes_itself(info: LeRobotInfo, description: str = "") -> bool:
  """Whether ranges and names come from a file that describes the robot, not from info.json and statistics."""
  return bool(description) or os.path.lexists(info.root / FILE)


def _dimension_names(feature: dict[str, Any], what: str) -> list[str]:
  """Names of the numbers of a feature: a list, or one in an object, as older versions have it."""
  size = int(np.prod(feature["shape"]))
  names: Any = feature.get("names")
  if isinstance(names, dict):
    names = next(iter(names.values()), None)
  sound = isinstance(names, list) and all(isinstance(name, str) and 0 < len(name) < 100 for name in names)
  return names if sound and len(set(names)) == len(names) == size else [f"{what}_{i}" for i in range(size)]


def _dimension(name: str, low: float, high: float) -> ActionDimension:
  """A continuous number of an action; at rest it is 0, or what comes nearest."""
  return ActionDimension(name, range=(low, high), rest=min(max(0.0, low), high))


def _derived(info: LeRobotInfo) -> Embodiment:
  """The robot by info.json; the range of a number of its action is what the data hold of it."""
  low, high = numbers(info, ACTION, "min"), numbers(info, ACTION, "max")
  still = low == high  # a number that never changes: any range will do
  limits = zip((low - still).tolist(), (high + still).tolist(), strict=True)
  names = _dimension_names(info.features[ACTION], ACTION)
  state = _dimension_names(info.features[STATE], "state") if STATE in info.features else []
  return Embodiment(
    cameras=tuple(Camera(name, picture_size(info.features[key])) for name, key in info.cameras.items()),
    action=tuple(_dimension(name, *pair) for name, pair in zip(names, limits, strict=True)),
    state=tuple(StateDimension(name) for name in state),
    control_hz=info.fps,
  )


def _joined(robots: Sequence[Embodiment]) -> Embodiment:
  """A robot whose ranges hold those of all, which are the same otherwise."""
  limits = np.array([robot.action_ranges for robot in robots])
  low, high = limits[..., 0].min(0).tolist(), limits[..., 1].max(0).tolist()
  return dataclasses.replace(robots[0], action=tuple(map(_dimension, robots[0].action_names, low, high)))


def embodiment_of(infos: Sequence[LeRobotInfo], description: str = "") -> Embodiment:
  """The robot of datasets: all must be of the same.

  Args:
    infos: of one dataset or more.
    description: an embodiment.json; empty: the one in the dataset's root, else names and sizes are those of
      info.json, and the range of each number of an action goes from its least to its largest value in the
      statistics.

  Raises:
    DatasetError: datasets of different robots, a description that does not fit, no statistics.
  """
  if description:
    robots = [read_description(description)]
  else:
    robots = [_own(info) for info in infos]
  derived = not any(describes_itself(info, description) for info in infos)
  bare = lambda robot: dataclasses.replace(robot, action=tuple(map(ActionDimension, robot.action_names)))
  for info, robot in zip(infos[1:], robots[1:], strict=False):
    first, other = (bare(robots[0]), bare(robot)) if derived else (robots[0], robot)
    if differences := first.differences(other):
      rule = f"is of another robot than {infos[0].root}, which has {'; '.join(differences)}."
      raise DatasetError(info.file, rule, key="features", fix="train on one robot's data at a time.")
  robot = _joined(robots) if derived else robots[0]
  for info in infos:
    _check_fits(info, robot, description or str(infos[0].root / FILE))
  return robot


def _own(info: LeRobotInfo) -> Embodiment:
  try:
    return read_description(info.root / FILE) if describes_itself(info) else _derived(info)
  except EmbodimentError as error:
    raise DatasetError(info.file, f"{error}.", key="features", fix=_DESCRIBE) from None


def _check_fits(info: LeRobotInfo, robot: Embodiment, description: str) -> None:
  """A description must be of the numbers and pictures that there are."""
  state = info.width(STATE) if STATE in info.features else 0
  wrong = ""
  if robot.action_size != info.width(ACTION):
    wrong = f"action: has {robot.action_size} numbers, the data {info.width(ACTION)}"
  elif robot.state_size != state:
    wrong = f"state: has {robot.state_size} numbers, the data {state}"
  elif robot.control_hz != info.fps:
    wrong = f"control_hz: is {robot.control_hz:g}, the data have {info.fps:g} frames per second"
  for camera in robot.cameras:
    if camera.name not in info.cameras:
      wrong = f"cameras.{camera.name}: the data have {', '.join(info.cameras)}"
    elif camera.size not in (None, size := picture_size(info.features[info.cameras[camera.name]])) and (
      size[0] != size[1]  # square ones may have been squeezed from that size
    ):
      wrong = f"cameras.{camera.name}.size: is {list(camera.size or ())}, that of the data {list(size)}"
  if wrong:
    raise DatasetError(description, f"{wrong} ({info.file}).", fix="correct it: it must describe these data.")
