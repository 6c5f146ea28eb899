"""Data that can be read and yet may teach nothing, looked for in a sample of frames."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from wam_jax.data import calvin, converted
from wam_jax.data.files import PathLike
from wam_jax.data.frames import FrameReader, vector_shape
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.envs import tasks as task_rules

PAIRS = 96  # frames of a sample, each with the one behind it
WINDOWS = 8  # annotated windows of a task, of which the first and the last frame are read
_SIDE = 16  # of pictures, in pixels: noise of a covered camera averages out, motion does not
_FILL = 0.1  # of [-1, 1]: motions that never leave this part look unscaled
# What one unit of an action moves the hand by. Another robot may have its own: only numbers far from CALVIN's
# are doubted. Actions in metres or radians have 1; CALVIN's recordings one unit, the embedded table's, where
# the arm lags behind, a half.
_UNITS = (
  ("translations (numbers 0 to 2)", slice(0, 3), 0.02, "m"),
  ("rotations (numbers 3 to 5)", slice(3, 6), 0.05, "rad"),
)
_TOO_LARGE, _TOO_SMALL = 5.0, 0.02  # times CALVIN's unit


@dataclasses.dataclass(frozen=True)
class Doubt:
  """What looks wrong in a split: the folder, a key of its frames, what is so, and what to do."""

  file: str
  key: str
  rule: str
  fix: str


@dataclasses.dataclass(frozen=True)
class Source:
  """A split in any form.

  Attributes:
    open_reader: of spans [E, 2] and a picture size.
    spans: [E, 2] first and last id of each episode.
    windows: annotated (task, first id, one past the last id).
  """

  open_reader: Callable[[np.ndarray, int], FrameReader]
  spans: np.ndarray
  windows: Sequence[tuple[str, int, int]]


def look(
  folder: PathLike,
  image_size: int,
  *,
  source: Source | None = None,
  tasks: Sequence[str] = (),
  cameras: Sequence[str] | None = None,
  proprio: bool = True,
  workers: int = 0,
) -> list[Doubt]:
  """Looks at a sample of a split for what training accepts without a word.

  Args:
    folder: a split.
    image_size: side that pictures will be shrunk to [pixels].
    source: what the split holds, where it is in neither CALVIN's form nor converted.
    tasks: those whose annotated windows must show success.
    cameras: those that are used; None: all.
    proprio: whether robot_obs is used.
    workers: threads; 0 means one per core.

  Raises:
    DatasetError: a frame of the sample cannot be used, as training would say.
  """
  folder = pathlib.Path(folder)
  source = source or Source(
    functools.partial(converted.open_reader, folder),
    calvin.read_episode_ids(folder),
    calvin.read_raw_annotations(folder),
  )
  spans = source.spans
  lengths = spans[:, 1] - spans[:, 0]  # frames with one behind them
  spans, lengths = spans[lengths > 0], lengths[lengths > 0]
  out: list[Doubt] = []
  if len(spans):
    ends = np.cumsum(lengths)
    picked = np.unique(np.linspace(0, ends[-1] - 1, PAIRS).astype(int))
    episode = np.searchsorted(ends, picked, side="right")
    first = spans[episode, 0] + picked - (ends - lengths)[episode]
    reader = source.open_reader(np.stack([first, first + 1], 1), min(_SIDE, image_size))
    frames, robot = _read(reader, workers), reader.embodiment
    cameras = robot.camera_names if cameras is None else cameras
    pairs = {key: array.reshape(len(first), 2, *array.shape[1:]) for key, array in frames.items()}
    out += _doubt_actions(folder, robot, pairs["rel_actions"][:, 0], pairs["robot_obs"])
    if proprio and robot.state and not np.ptp(pairs["robot_obs"], axis=(0, 1)).any():
      rule = "never changes: it tells a network nothing."
      fix = "write the robot's state, or set --config.world_model.proprio=none."
      out.append(Doubt(str(folder), "robot_obs", rule, fix))
    still = [key for key in cameras if frames[key].astype(float).std(0).max() < 1]
    for key in still:
      others = ",".join(camera for camera in cameras if camera not in still)
      fix = f"record this camera, or set --config.world_model.cameras={others}."
      fix = fix if others else "record the pictures again: no camera shows anything."
      out.append(Doubt(str(folder), key, f"all {len(frames[key])} pictures looked at are the same.", fix))
  return out + _doubt_windows(source, folder, tasks)


def _read(reader: FrameReader, workers: int) -> dict[str, np.ndarray]:
  total, size = len(reader.ids), reader.image_size
  out = {key: np.empty((total, *vector_shape(width))) for key, width in reader.widths.items()}
  out |= {key: np.empty((total, size, size, 3), np.uint8) for key in reader.embodiment.camera_names}
  reader.for_each_block(
    lambda begin, stop: reader.read(begin, stop, {key: array[begin:stop] for key, array in out.items()}),
    workers,
    None,
  )
  return out


def _doubt_actions(
  folder: pathlib.Path, robot: Embodiment, action: np.ndarray, state: np.ndarray
) -> list[Doubt]:
  """Doubts about actions [n, A], with robot_obs [n, 2, state_size] at each and after it."""
  out = []
  still = [i for i in range(robot.action_size) if not np.ptp(action[:, i])]
  if still:
    numbers = ", ".join(f"number {i} ({action[0, i]:g})" for i in still)
    rule = f"never changes in {numbers} of {len(action)} frames looked at: policies will do the same there."
    fix = "go on if the robot cannot do more; else record these motions."
    out.append(Doubt(str(folder), "rel_actions", rule, fix))
  if robot != CALVIN:
    return out
  moved = state[:, 1] - state[:, 0]
  moved[:, 3:6] = (moved[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
  for name, part, unit, word in _UNITS:
    size, distance = (np.linalg.norm(array[:, part], axis=1) for array in (action, moved))
    most = np.abs(action[:, part]).max()
    if not most:
      continue  # reported above
    strong = size >= np.median(size[size > 0])  # a robot may rest most of the time
    ratio = np.median(distance[strong]) / np.median(size[strong])
    fix = (
      f"divide them by CALVIN's unit ({unit:g} {word}), or by your largest motion, so that they fill [-1, 1]."
    )
    if not _TOO_SMALL <= ratio / unit <= _TOO_LARGE and ratio:
      looks = f": they look like {word}, unscaled" if 0.2 < ratio < 5 else ""
      rule = (
        f"one unit of its {name} moves robot_obs by {ratio:.2g} {word}, where CALVIN's unit is {unit:g} "
        f"{word}{looks}. The largest is {most:.2g}."
      )
      out.append(Doubt(str(folder), "rel_actions", rule, fix))
    elif not ratio and most < _FILL:
      rule = f"its {name} are at most {most:.2g} of 1: they look like {word}, unscaled."
      out.append(Doubt(str(folder), "rel_actions", rule, fix))
  return out


def _doubt_windows(source: Source, folder: pathlib.Path, tasks: Sequence[str]) -> list[Doubt]:
  """Tasks that succeed in none of some annotated windows, or from the first frame of all on."""
  of_task = lambda task: [
    (low, high - 1) for name, low, high in source.windows if name == task and high > low
  ]
  windows = {task: of_task(task)[:WINDOWS] for task in tasks}
  ids = np.array([window for part in windows.values() for window in part], int).reshape(-1)
  if not len(ids):
    return []
  reader = source.open_reader(np.stack([ids, ids], 1), 1)  # lists the folder: once for all tasks
  key = "success" if "success" in reader.widths else "scene_obs"
  if key not in reader.widths:
    return []  # featurize says so
  pairs = iter(reader.read_vectors(0, len(ids), (key,))[key].reshape(len(ids) // 2, 2, -1))
  out = []
  for task, part in windows.items():
    own = [pair for _, pair in zip(part, pairs, strict=False)]
    if key == "success":
      ends = [bool(pair[1, 0]) for pair in own]
      if part and all(pair[0, 0] for pair in own):
        rule = (
          f"shows {task} in the first frame of all {len(part)} annotated windows looked at: no frame before."
        )
        fix = "write success from the frame on in which the task is done, and begin takes before it."
        out.append(Doubt(str(folder), key, rule, fix))
    elif task in task_rules.PREDICATES:
      ends = [task_rules.success(task, pair[:1], pair)[1] for pair in own]
    else:
      continue
    if part and not any(ends):
      rule = f"shows {task} at the end of none of the {len(part)} annotated windows looked at."
      fix = "end takes after success, with what the task's predicate waits for (docs/guides/own_data.md)."
      out.append(Doubt(str(folder), key, rule, fix))
  return out
