"""Reads and checks datasets on disk in CALVIN's format.

One folder per split, one `episode_%07d.npz` per frame (or another name, see `frames`), and beside them
`ep_start_end_ids.npy` (first and last frame of each episode, both included) and
`lang_annotations/auto_lang_ann.npy` (windows of frames with a task, their end not included). Play may have no
annotations: a world model needs none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data.converted import MANIFEST, open_reader, stored_shapes
from wam_jax.data.files import (
  COPY_AGAIN,
  IDS_FILE,
  MAX_FILE,
  MAX_ID,
  DatasetError,
  PathLike,
  load_pickled,
  read_ids,
  read_npz,
)
from wam_jax.data.frames import (
  FrameReader,
  Frames,
  JoinedReader,
  ProgressFactory,
  empty,
  frame_path,
  vector_shape,
)
from wam_jax.embodiment import FILE, ROBOT_OBS, SCENE_OBS
from wam_jax.envs import tasks as task_rules
from wam_jax.host.regular_files import read_bytes
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import read_record

ANNOTATION_FILE = "lang_annotations/auto_lang_ann.npy"
START_STATES_FILE = "start_states.npz"
CHECKED_FRAMES = 16  # read per split by the quick check, spread evenly
_STATES = {"robot_obs": ROBOT_OBS, "scene_obs": SCENE_OBS}  # what CALVIN's simulators restore
Spans = tuple[PathLike, np.ndarray]  # a split, and [E, 2] first and last id of spans in it, both included
FAILED = "failed"  # split beside training/ and validation/: annotated windows in which the task failed


@dataclasses.dataclass(frozen=True)
class Annotation:
  """A window of frames in which a task is done.

  Attributes:
    task: its name.
    start: first frame, an index into Frames.
    end: one past the last frame.
  """

  task: str
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class Split:
  """Frames and the windows annotated in them."""

  frames: Frames
  annotations: tuple[Annotation, ...]

  def windows(self, task: str) -> list[tuple[int, int]]:
    """(start, end) of the task's windows in the order of the dataset."""
    return [(a.start, a.end) for a in self.annotations if a.task == task]


# ---------------------------------------------------------------------------------------------
# Reading a split.


def read_episode_ids(folder: PathLike) -> np.ndarray:
  """First and last frame id of each episode of a split, checked.

  Args:
    folder: a split: training/ or validation/.

  Returns:
    [E, 2] int64, both included, ascending and without overlap.

  Raises:
    DatasetError: not a CALVIN folder, or ids of wrong shape, dtype or order.
  """
  folder = pathlib.Path(folder)
  fix = "point to a folder of CALVIN's dataset (the one that holds training/ and validation/, e.g. task_D_D)."
  if not folder.is_dir():
    raise DatasetError(folder, "no such folder.", fix=fix)
  path = folder / IDS_FILE
  if not os.path.lexists(path):
    raise DatasetError(folder, f"not a split of a CALVIN dataset: it has no {IDS_FILE}.", fix=fix)
  return read_ids(path)


def open_split(folder: PathLike, image_size: int, extra: Sequence[Spans] = ()) -> FrameReader:
  """Reader of all frames of a split, and of some spans of others behind them.

  Args:
    folder: a split.
    image_size: S, side of the pictures [pixels].
    extra: (another split, [E, 2] first and last id of each span, both included); each span is an episode.

  Raises:
    DatasetError: as `read_frames`.
  """
  parts = [(folder, read_episode_ids(folder)), *extra]
  readers = [open_reader(part, spans, image_size) for part, spans in parts]
  return readers[0] if len(readers) == 1 else JoinedReader(readers)


def _read_spans(
  folder: pathlib.Path, spans: np.ndarray, image_size: int, workers: int, progress: ProgressFactory | None
) -> Frames:
  """Frames of the spans [E, 2] of ids (both included), each span an episode."""
  return _read_all(open_reader(folder, spans, image_size), workers, progress)


def _read_all(reader: FrameReader, workers: int, progress: ProgressFactory | None) -> Frames:
  total, size = len(reader.ids), reader.image_size
  out = {key: empty((total, *vector_shape(width)), np.float32) for key, width in reader.widths.items()}
  cameras = reader.embodiment.camera_names
  out |= {camera: empty((total, size, size, 3), np.uint8) for camera in cameras}
  reader.for_each_block(
    lambda begin, stop: reader.read(begin, stop, {key: array[begin:stop] for key, array in out.items()}),
    workers,
    progress,
  )
  return Frames(
    pictures={camera: out[camera] for camera in cameras},
    action=out["rel_actions"],
    robot_obs=out["robot_obs"],
    embodiment=reader.embodiment,
    scene_obs=out.get("scene_obs"),
    success=out["success"].astype(bool) if "success" in out else None,
    starts=reader.starts,
    ends=reader.ends,
    ids=reader.ids,
  )


def read_frames(
  folder: PathLike,
  image_size: int = 64,
  workers: int = 0,
  progress: ProgressFactory | None = None,
  extra: Sequence[Spans] = (),
) -> Frames:
  """Reads all frames of a split; larger pictures are shrunk by area averaging, depth is not read.

  Args:
    folder: a split: training/ or validation/.
    image_size: S, side of the square pictures returned [pixels].
    workers: threads; 0 means one per core.
    progress: called with (total, description), gives a context manager with `.update(n)`:
      `Logger.progress`.
    extra: spans of other splits, behind the split's own frames: see `open_split`.

  Returns:
    Frames; actions within rounding of [-1, 1] are clipped.

  Raises:
    DatasetError: names file, key and rule of the first thing wrong.
  """
  return _read_all(open_split(folder, image_size, extra), workers, progress)


def count_frames(folder: PathLike, extra: Sequence[Spans] = ()) -> int:
  """Number of frames of `read_frames`, read off the ids. Errors of `read_episode_ids`."""
  spans = [read_episode_ids(folder), *(spans for _, spans in extra)]
  return int(sum((ids[:, 1] - ids[:, 0] + 1).sum() for ids in spans))


def read_vectors(
  folder: PathLike, key: str, workers: int = 0, progress: ProgressFactory | None = None
) -> np.ndarray:
  """A vector of all frames of a split, [N, width] float32, without their pictures.

  Args:
    folder: a split: training/ or validation/.
    key: robot_obs, or scene_obs where the frames have it.
    workers: threads; 0 means one per core.
    progress: as in `read_frames`.

  Raises:
    DatasetError: a frame is missing or damaged, or has no such vector.
  """
  reader = open_reader(folder, read_episode_ids(folder), 1)
  if key not in reader.widths:
    raise DatasetError(pathlib.Path(folder), f"its frames have no {key}.", key=key)
  out = empty((len(reader.ids), *vector_shape(reader.widths[key])), np.float32)

  def read(begin: int, stop: int) -> None:
    out[begin:stop] = reader.read_vectors(begin, stop, (key,))[key]

  reader.for_each_block(read, workers, progress)
  return out


def annotation_file(folder: PathLike) -> pathlib.Path:
  """File of a split's annotations.

  Returns:
    lang_annotations/auto_lang_ann.npy if there is one; else that of the first other lang_* folder (CALVIN's
    lang_paraphrase-MiniLM-L3-v2 and its sisters: the same windows, with other embeddings of the sentences);
    else that in the split itself, as CALVIN's loaders do; the first again if there is none.
  """
  folder = pathlib.Path(folder)
  first = folder / ANNOTATION_FILE
  if first.is_file():
    return first
  others = [*sorted(folder.glob(f"lang_*/{first.name}")), folder / first.name]
  return next((path for path in others if path.is_file()), first)


def read_raw_annotations(folder: PathLike) -> list[tuple[str, int, int]]:
  """(task, first id, one past the last id) of every annotated window; empty without annotations."""
  path = annotation_file(folder)
  if not os.path.lexists(path):
    return []
  content = load_pickled(path)
  try:
    language, info = content["language"], content["info"]
    tasks, spans = list(language["task"]), [(low, high) for low, high in info["indx"]]
    whole = isinstance(language, dict) and isinstance(info, dict)
  except (LookupError, TypeError, ValueError):
    whole = False
  if not whole or not all(isinstance(task, str) for task in tasks):
    raise DatasetError(
      path, "must hold language.task and info.indx, as CALVIN's annotations do.", fix=COPY_AGAIN
    )
  for span in spans:
    if not all(isinstance(i, int | np.integer) and 0 <= i <= MAX_ID + 1 for i in span):
      raise DatasetError(
        path, f"frame ids must be whole numbers from 0 to {MAX_ID}.", key="info.indx", fix=COPY_AGAIN
      )
  if len(tasks) != len(spans):
    raise DatasetError(
      path,
      f"has {len(tasks)} tasks and {len(spans)} windows; there must be one task for each.",
      key="info.indx",
      fix=COPY_AGAIN,
    )
  return [(str(task), int(low), int(high)) for task, (low, high) in zip(tasks, spans, strict=True)]


def absent_tasks(annotated: Iterable[str], tasks: Iterable[str]) -> list[str]:
  """Those of `tasks` that no window is annotated with."""
  known = set(annotated)
  return [task for task in tasks if task not in known]


def check_tasks(folder: pathlib.Path, annotated: Iterable[str], tasks: Iterable[str]) -> None:
  """Raises unless every task is one of those `annotated` in a split."""
  known = sorted(set(annotated))
  if absent := absent_tasks(known, tasks):
    raise DatasetError(
      annotation_file(folder),
      f"no window of {', '.join(absent)}; it has {', '.join(known) or 'none, so there are no demos'}.",
      key="language.task",
      fix="take these tasks out of config.tasks, or use data with annotations of them. A world model needs "
      "none: run the stages collect, world_model and judge_world_model.",
    )


def locate(
  folder: pathlib.Path, windows: Iterable[tuple[str, int, int]], episodes: np.ndarray
) -> list[Annotation]:
  """Windows of ids as windows of indices into the frames of `episodes` [E, 2], each inside one of them."""
  lengths = episodes[:, 1] - episodes[:, 0] + 1
  shift = np.cumsum(lengths) - lengths - episodes[:, 0]
  out = []
  for task, low, high in windows:
    episode = int(np.searchsorted(episodes[:, 0], low, side="right")) - 1
    if low >= high or episode < 0 or high - 1 > episodes[episode, 1]:
      raise DatasetError(
        annotation_file(folder),
        f"window ({low}, {high}) of {task} does not lie in one episode.",
        key="info.indx",
        fix=COPY_AGAIN,
      )
    out.append(Annotation(task, low + int(shift[episode]), high + int(shift[episode])))
  return out


def read_annotations(folder: PathLike, episodes: np.ndarray, tasks: Iterable[str] = ()) -> list[Annotation]:
  """Annotated windows of a split as indices into its frames.

  Args:
    folder: a split.
    episodes: [E, 2] first and last id of each episode: `read_episode_ids(folder)`.
    tasks: tasks that must occur.

  Returns:
    Windows of all tasks, in the order of the file.

  Raises:
    DatasetError: a task that never occurs, a window that is empty or not in one episode.
  """
  folder = pathlib.Path(folder)
  raw = read_raw_annotations(folder)
  check_tasks(folder, (task for task, _, _ in raw), tasks)
  return locate(folder, raw, episodes)


def read_split(
  folder: PathLike,
  image_size: int = 64,
  workers: int = 0,
  progress: ProgressFactory | None = None,
  tasks: Iterable[str] = (),
) -> Split:
  """Frames and annotations of a split. Arguments and errors of `read_frames` and `read_annotations`."""
  folder = pathlib.Path(folder)
  episodes = read_episode_ids(folder)
  annotations = read_annotations(folder, episodes, tasks)  # first: it is quick, and may fail
  return Split(_read_spans(folder, episodes, image_size, workers, progress), tuple(annotations))


def read_demos(
  folder: PathLike,
  tasks: Sequence[str],
  limit: int | None = None,
  image_size: int = 64,
  workers: int = 0,
  progress: ProgressFactory | None = None,
) -> Split:
  """Only the annotated windows of some tasks, each as an episode of its own.

  Args:
    folder: a split.
    tasks: tasks to read, task by task in this order.
    limit: at most so many windows of each task, the first ones of the file.
    image_size: S, side of the square pictures returned [pixels].
    workers: threads; 0 means one per core.
    progress: as in `read_frames`.

  Returns:
    Split whose episode e is its annotation e; of each frame it says whether the task is done.

  Raises:
    DatasetError: as `read_split`, or nothing says of a frame whether its task is done.
  """
  folder = pathlib.Path(folder)
  names, spans = demo_spans(folder, tasks, limit)
  frames = with_success(folder, _read_spans(folder, spans, image_size, workers, progress), names)
  return as_split(names, frames)


def as_split(tasks: Sequence[str], frames: Frames) -> Split:
  """Frames whose episode e is a window of tasks[e]."""
  spans = zip(tasks, frames.starts, frames.ends, strict=True)
  return Split(frames, tuple(Annotation(task, int(start), int(end)) for task, start, end in spans))


def with_success(folder: pathlib.Path, frames: Frames, tasks: Sequence[str]) -> Frames:
  """Frames that say of each whether its episode's task is done.

  Args:
    folder: the split, named in errors.
    frames: recorded with `success`, or with CALVIN's scene, whose predicates then say it, relative to each
      episode's first frame.
    tasks: of each episode.

  Raises:
    DatasetError: neither, or a task that has no predicate.
  """
  if frames.success is not None:
    return frames
  _check_told(frame_path(folder, int(frames.ids[0])), frames.scene_obs is not None, tasks)
  assert frames.scene_obs is not None
  success = np.zeros(frames.num_frames, bool)
  for task, start, end in zip(tasks, frames.starts, frames.ends, strict=True):
    scene = frames.scene_obs[start:end]
    success[start:end] = task_rules.success(task, scene[:1], scene)
  return dataclasses.replace(frames, success=success)


def _check_told(file: pathlib.Path, has_scene: bool, tasks: Iterable[str]) -> None:
  """Raises DatasetError if frames without `success` do not say whether the tasks are done; names `file`."""
  without = sorted({task for task in tasks if task not in task_rules.PREDICATES})
  if has_scene and not without:
    return
  missing = f"of {without[0]} scene_obs says nothing" if has_scene else "they have no scene_obs either"
  raise DatasetError(
    file,
    f"nothing says whether the task is done: frames have no success, and {missing}.",
    key="success",
    fix="write true or false into every frame of the split: is the task of its demo done? In play false.",
  )


def check_success(folder: PathLike, tasks: Sequence[str]) -> None:
  """Looks at the first frame of the first annotated window of each task, as `with_success` will at all.

  Raises:
    DatasetError: nothing says whether the task is done; or annotations or frames are broken.
  """
  folder = pathlib.Path(folder)
  first: dict[str, int] = {}
  for task, low, _ in read_raw_annotations(folder):
    first.setdefault(task, low)
  for task in (task for task in tasks if task in first):
    reader = open_reader(folder, np.array([[first[task], first[task]]]), 1)
    if "success" not in reader.widths:
      _check_told(reader.path(first[task]), "scene_obs" in reader.widths, [task])


def demo_spans(
  folder: PathLike, tasks: Sequence[str], limit: int | None = None
) -> tuple[list[str], np.ndarray]:
  """Where the annotated windows of some tasks are: tasks [E], and [E, 2] first and last id, both included.

  Arguments and errors of `read_demos`.
  """
  folder = pathlib.Path(folder)
  raw = read_raw_annotations(folder)
  check_tasks(folder, (task for task, _, _ in raw), tasks)
  chosen = [item for task in tasks for item in [w for w in raw if w[0] == task][:limit]]
  locate(folder, chosen, read_episode_ids(folder))
  return [task for task, _, _ in chosen], np.array([(low, high - 1) for _, low, high in chosen], np.int64)


def read_windows(
  folder: PathLike,
  windows: np.ndarray,
  image_size: int = 64,
  workers: int = 0,
  progress: ProgressFactory | None = None,
) -> Frames:
  """Only some windows of a split, each as an episode of its own.

  Args:
    folder: a split.
    windows: [W, 2] first and last frame id of each, both included.
    image_size: S, side of the square pictures returned [pixels].
    workers: threads; 0 means one per core.
    progress: as in `read_frames`.

  Returns:
    Frames whose episode w is window w.

  Raises:
    DatasetError: as `read_frames`.
  """
  return _read_spans(pathlib.Path(folder), np.asarray(windows), image_size, workers, progress)


def read_start_states(
  root: PathLike, tasks: Sequence[str], limit: int | None = None, split: str = "validation"
) -> dict[str, np.ndarray]:
  """What a simulator can start episodes from: recorded states, or seeds.

  Args:
    root: a dataset: the folder that holds training/ and validation/.
    tasks: names.
    limit: at most so many starts of each task.
    split: whose starts; those of validation are held out.

  Returns:
    task -> [M, W] float64: those of start_states.npz in the split, or else the first frames of its annotated
    windows, of CALVIN's scene robot_obs [15] and scene_obs [24] together.

  Raises:
    DatasetError: no such split, a task without starts, a NaN, wrong shapes, frames that no simulator can
      start from.
  """
  folder = check_root(root) / split
  path = folder / START_STATES_FILE
  stored = os.path.lexists(path)
  if stored:
    names, starts = _stored_starts(path)
    states = {task: starts[np.flatnonzero(names == task)[:limit]] for task in tasks}
  else:
    raw = read_raw_annotations(folder)
    check_tasks(folder, (task for task, _, _ in raw), tasks)
    first = {task: [low for name, low, _ in raw if name == task][:limit] for task in tasks}
    ids = np.concatenate(list(first.values()))
    reader = open_reader(folder, np.stack([ids, ids], 1), 1)
    if "scene_obs" not in reader.widths:
      raise DatasetError(
        reader.path(int(ids[0])),
        "a simulator starts from recorded states of the scene, which these frames lack.",
        key="scene_obs",
        fix=f"run the stages up to ppo, which need no simulator, or write {path}.",
      )
    vectors = reader.read_vectors(0, len(ids), tuple(_STATES))
    cuts = np.cumsum([len(part) for part in first.values()])[:-1]
    states = dict(zip(first, np.split(_joined(vectors), cuts), strict=True))
  for task, starts in states.items():
    if not len(starts):
      raise DatasetError(path, f"no start state of {task}.", key="task", fix="run the collect stage again.")
    if not np.isfinite(starts).all():
      rule = f"start states of {task} must be finite."
      raise DatasetError(path if stored else folder, rule, key="start", fix=COPY_AGAIN)
  return {task: np.array(starts, np.float64) for task, starts in states.items()}


def _joined(states: Mapping[str, np.ndarray]) -> np.ndarray:
  return np.concatenate([states[key] for key in _STATES], -1)


def _stored_starts(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Tasks [M] and starts [M, W] of a start_states.npz; older ones hold robot_obs and scene_obs."""
  arrays = dict(read_npz(path, ("task",), ("start",)))
  if "start" not in arrays:
    arrays |= read_npz(path, tuple(_STATES))
  names = arrays.pop("task")
  if names.ndim != 1 or names.dtype.kind != "U":
    rule = f"must be names [states], not {names.dtype} {list(names.shape)}."
    raise DatasetError(path, rule, key="task", fix=COPY_AGAIN)
  for key, array in arrays.items():
    width = _STATES.get(key, array.shape[-1] if array.ndim else 0)
    if array.shape != (len(names), width) or array.dtype.kind != "f":
      rule = f"must be floats [{len(names)}, {width or 'W'}], not {array.dtype} {list(array.shape)}."
      raise DatasetError(path, rule, key=key, fix=COPY_AGAIN)
  return names, arrays["start"] if "start" in arrays else _joined(arrays)


def has_start_states(root: PathLike) -> bool:
  """Whether a dataset has what `read_start_states` reads, by its file or by the first held-out frame.

  Raises:
    DatasetError: there is no such dataset, or it has no frame.
  """
  folder = check_root(root) / "validation"
  if os.path.lexists(folder / START_STATES_FILE):
    return True
  return "scene_obs" in (stored_shapes(folder, int(read_episode_ids(folder)[0, 0])) or {"scene_obs"})


# ---------------------------------------------------------------------------------------------
# Checking.


def check_root(root: PathLike) -> pathlib.Path:
  """Returns `root` as a path if it holds both splits.

  Raises:
    DatasetError: no such folder, or no training/ or validation/ in it.
  """
  root = pathlib.Path(root)
  if not os.path.isdir(root):  # Path.is_dir raises where a folder above cannot be read
    rule = "no such folder, or one that you may not read."
    raise DatasetError(root, rule, fix="set config.data.calvin_path to a CALVIN dataset.")
  for split in ("training", "validation"):
    if not os.path.isdir(root / split):
      raise DatasetError(
        root,
        f"not a CALVIN dataset: it has no {split}/.",
        fix="point to the folder that holds training/ and validation/, e.g. task_D_D.",
      )
  return root


def signature(root: PathLike) -> str:
  """Changes with what a dataset holds: its episodes, annotated windows, start states and robot. Hexadecimal.

  Frames themselves are not looked at. Empty where the dataset cannot be read.
  """
  root, digest = pathlib.Path(root), hashlib.sha256()
  splits = [root / name for name in ("training", "validation", FAILED)]
  files = [root / FILE, root / MANIFEST]
  files += [path for split in splits for path in (split / IDS_FILE, split / START_STATES_FILE)]
  files += [annotation_file(split) for split in splits]
  try:
    if not (splits[0] / IDS_FILE).is_file():
      return ""
    for path in files:
      content = read_bytes(path, MAX_FILE) if path.is_file() else b""
      digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
  except OSError:
    return ""
  return digest.hexdigest()


def check_dataset(root: PathLike, tasks: Sequence[str], image_size: int = 64) -> dict[str, dict[str, Any]]:
  """Quick check of a dataset: ids, annotations, that all files are there, and a sample of frames.

  Args:
    root: folder that holds training/ and validation/.
    tasks: those that later stages want annotated in both.
    image_size: side that pictures will be shrunk to [pixels].

  Returns:
    split -> {'frames', 'episodes', 'windows'}: counts; {'without'}: tasks that no window is annotated with.

  Raises:
    DatasetError: names file, key and rule of the first thing wrong.
  """
  root = check_root(root)
  out: dict[str, dict[str, Any]] = {}
  for split in ("training", "validation"):
    folder = root / split
    spans = read_episode_ids(folder)
    annotations = read_annotations(folder, spans)
    ids = open_reader(folder, spans, image_size).ids  # all frames are there
    picked = ids[np.unique(np.linspace(0, len(ids) - 1, min(CHECKED_FRAMES, len(ids))).astype(int))]
    _read_spans(folder, np.stack([picked, picked], 1), image_size, 1, None)
    out[split] = {"frames": len(ids), "episodes": len(spans), "windows": len(annotations)}
    out[split]["without"] = absent_tasks((window.task for window in annotations), tasks)
  return out


def dataset_path(artifact: Artifact | pathlib.Path) -> pathlib.Path:
  """Root of the dataset (holds training/ and validation/) that a collect artifact stands for.

  Args:
    artifact: of the collect stage, or its folder.

  Returns:
    The collected dataset, or the folder that data.calvin_path named.

  Raises:
    ArtifactError: dataset.json is damaged.
    DatasetError: the folder named is gone.
  """
  path = artifact if isinstance(artifact, pathlib.Path) else artifact.path
  pointer = path / "dataset.json"
  if os.path.lexists(pointer):
    return check_root(read_record(path, "dataset.json")["root"])
  return check_root(path / "dataset")
