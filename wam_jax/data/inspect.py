"""Says what a dataset holds, before anyone trains on it.

python -m wam_jax.data.inspect --source=task_D_D            # ids, annotations, files, and a sample of frames
python -m wam_jax.data.inspect --source=task_D_D --frames=0 # every frame
python -m wam_jax.data.inspect --source=task_D_D --json     # the same for scripts
python -m wam_jax.data.inspect --source=my_lerobot_dataset --tasks=stack_cups

Says which stages the data allow, and warns of what may teach nothing. Exit code 0: it found no problem with
these tasks (--tasks= asks for none: a world model on play alone); 1: it found some, and lists them all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.config import chain
from wam_jax.data import calvin, converted, doubts, lerobot
from wam_jax.data.files import COPY_AGAIN, IDS_FILE, DatasetError, PathLike, read_embodiment
from wam_jax.data.frames import (
  FrameReader,
  frame_path,
  ids_of,
  list_frames,
  other_files,
  vector_keys,
  vector_shape,
)
from wam_jax.embodiment import CALVIN, SCENE_OBS, Embodiment
from wam_jax.envs.tasks import TASKS
from wam_jax.host import console
from wam_jax.host.lerobot_info import is_lerobot
from wam_jax.host.words import count, printable, split_list

SPLITS = ("training", "validation", calvin.FAILED)
SAMPLE = 256  # frames read per split unless told otherwise
LISTED = 10  # problems of one kind that are listed; the rest is counted

# What the numbers of a frame are, for people.
_PARTS = {
  "rel_actions": {"motion": slice(0, 6), "gripper": slice(6, 7)},
  "robot_obs": {
    "x": slice(0, 1),
    "y": slice(1, 2),
    "z": slice(2, 3),
    "angles": slice(3, 6),
    "width": slice(6, 7),
    "joints": slice(7, 14),
    "gripper": slice(14, 15),
  },
  "scene_obs": {
    name: slice(i, i + 1) for i, name in enumerate(("slider", "drawer", "button", "switch", "bulb", "led"))
  }
  | {"blocks": slice(6, SCENE_OBS)},
}

Problems = list[dict[str, str]]


def inspect_dataset(
  root: PathLike,
  *,
  tasks: Sequence[str] = TASKS,
  frames: int = SAMPLE,
  image_size: int = 64,
  workers: int = 0,
) -> dict[str, Any]:
  """Looks at everything that training relies on, and goes on after each problem.

  Args:
    root: folder that holds training/ and validation/.
    tasks: those that must be annotated in both.
    frames: how many to read per split, spread evenly; 0: all.
    image_size: side that pictures will be shrunk to [pixels].
    workers: threads; 0 means one per core.

  Returns:
    {"source", "form", "splits": {name: what `_inspect_split` gives}, "problems": [{"file", "key", "rule",
    "fix", "stops": the first stage that cannot run}], "warnings": [the same without "stops"], "stages": those
    that the data allow, "simulated": whether a simulator can start from them, "trainable": whether there are
    no problems}.
  """
  root = pathlib.Path(root)
  problems: Problems = []
  report = _empty_report(str(root), problems)
  present = [name for name in SPLITS if os.path.isdir(root / name)]
  for name in present:
    report["splits"][name] = _inspect_split(root / name, tasks, frames, image_size, workers, problems)
  _note(problems, calvin.check_root, root)
  # CALVIN's simulators restore its robot and scene; others start from what the file of starts holds.
  robot = _note(problems, read_embodiment, root) or CALVIN
  scenes = [split["keys"] for split in report["splits"].values() if split["keys"]]
  report["simulated"] = (root / "validation" / calvin.START_STATES_FILE).is_file() or (
    not robot.differences(CALVIN) and all("scene_obs" in keys for keys in scenes)
  )
  if "validation" in present and report["simulated"]:
    _inspect_starts(root, tasks, report["splits"]["validation"], problems)
  if any(split["frames"] for split in report["splits"].values()):
    report["form"] = "CALVIN: one npz per frame"
    if os.path.lexists(root / converted.MANIFEST):
      report["form"] = "converted from CALVIN's: TFDS, array_record"
  if not any(problem["stops"] == "collect" for problem in problems):
    found = _note(problems, doubts.look, root / "training", image_size, tasks=tasks, workers=workers)
    report["warnings"] = [dataclasses.asdict(doubt) for doubt in found or ()]
  report["trainable"], report["stages"] = not problems, _allowed(problems, tasks, report["simulated"])
  return report


def inspect_lerobot(
  selection: lerobot.Selection, *, frames: int = SAMPLE, image_size: int = 64, workers: int = 0
) -> dict[str, Any]:
  """The same of LeRobot datasets, divided into splits as training would.

  Args:
    selection: which episodes are what.
    frames: see `inspect_dataset`.
    image_size: see `inspect_dataset`.
    workers: see `inspect_dataset`.

  Returns:
    As `inspect_dataset`; also "tasks", what tasks the data know, in words.
  """
  problems: Problems = []
  report = _empty_report(", ".join(selection.path), problems) | {
    "form": "LeRobot",
    "simulated": False,
    "tasks": "",
  }
  data = _note(problems, lerobot.open_data, selection)
  plans = _note(problems, lerobot.plan_splits, data, selection, image_size) if data else None
  if data is not None:
    report["tasks"] = lerobot.known_tasks(data)
  for name, plan in (plans or {}).items():
    lengths = plan.spans[:, 1] - plan.spans[:, 0] + 1
    out = _empty_split() | {"frames": int(lengths.sum()), "episodes": len(plan.spans)}
    out["ids"], out["episode_lengths"] = [int(plan.spans[0, 0]), int(plan.spans[-1, 1])], _spread(lengths)
    out["windows"] = _count_windows(plan.windows, selection.tasks)
    out["keys"] = sorted([*data.robot.camera_names, *plan.vector_keys])
    stored = lerobot.LeRobotReader(data, plan.folder, plan.spans, 0).picture_shapes
    out["pictures"] = {name: list(shape) for name, shape in stored.items()}
    out["names"] = _dimension_names(data.robot)
    ids = ids_of(plan.spans)
    picked = ids if not frames else ids[np.unique(np.linspace(0, len(ids) - 1, frames).astype(int))]
    reader = lerobot.LeRobotReader(data, plan.folder, np.stack([picked, picked], 1), image_size)
    _read_frames(reader, workers, out, problems)
    report["splits"][name] = out
  if plans:
    for error in lerobot.task_problems(data, selection, lerobot.divide(data, selection)):
      problems.append(_problem(error, "featurize"))
    if not problems:
      plan = plans["training"]
      source = lerobot.source_of(data, plan.folder, plan.spans, plan.windows)
      options: dict[str, Any] = {"source": source, "tasks": selection.tasks, "workers": workers}
      found = _note(problems, doubts.look, plan.folder, image_size, **options)
      report["warnings"] = [dataclasses.asdict(doubt) for doubt in found or ()]
  report["trainable"], report["stages"] = not problems, _allowed(problems, selection.tasks, False)
  return report


def _empty_report(source: str, problems: Problems) -> dict[str, Any]:
  return {"source": source, "form": "", "splits": {}, "problems": problems, "warnings": []}


def _empty_split() -> dict[str, Any]:
  out: dict[str, Any] = {"frames": 0, "episodes": 0, "missing": 0, "windows": {}, "read": 0, "broken": 0}
  return out | {"ids": [], "episode_lengths": {}, "keys": [], "pictures": {}, "ranges": {}}


def _dimension_names(robot: Embodiment) -> dict[str, list[str]]:
  return {"rel_actions": list(robot.action_names), "robot_obs": [dimension.name for dimension in robot.state]}


def _problem(error: DatasetError, stops: str) -> dict[str, str]:
  return {"file": str(error.file), "key": error.key, "rule": error.rule, "fix": error.fix, "stops": stops}


def _allowed(problems: Problems, tasks: Sequence[str], simulated: bool) -> list[str]:
  """Stages of a whole run that none of the problems stops."""
  stopped = {problem["stops"] for problem in problems} | (set() if tasks else {"featurize"})
  for stage in chain.STAGES:  # in order: a stage that is stopped stops those that are made from it
    if stopped & set(chain.ROWS[stage].requires):
      stopped.add(stage)
  stopped |= set() if simulated else {"evaluate"}  # which is left out: the report does without
  return [stage for stage in chain.STAGES if stage not in stopped]


def _note(problems: Problems, check: Any, *args: Any, stops: str = "collect", **kwargs: Any) -> Any:
  """What `check` returns; None after noting its DatasetError, which stops a stage."""
  try:
    return check(*args, **kwargs)
  except DatasetError as error:
    problem = _problem(error, stops)
    same = lambda known: all(known[key] == problem[key] for key in ("file", "key", "rule", "fix"))
    if not any(map(same, problems)):
      problems.append(problem)
    return None


def _spread(values: np.ndarray) -> dict[str, int]:
  return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _inspect_split(
  folder: pathlib.Path,
  tasks: Sequence[str],
  frames: int,
  image_size: int,
  workers: int,
  problems: Problems,
) -> dict[str, Any]:
  """{"frames", "episodes", "ids", "episode_lengths", "missing", "windows": {task: {"count", "lengths"}},
  "keys", "pictures": {key: shape}, "read", "broken", "ranges": {key: {"low", "high"}}}; what could not be
  found out is empty or 0."""
  out, known = _empty_split(), len(problems)
  spans = _note(problems, calvin.read_episode_ids, folder)
  if spans is None:
    return out
  lengths = spans[:, 1] - spans[:, 0] + 1
  out["frames"], out["episodes"] = int(lengths.sum()), len(spans)
  out["ids"], out["episode_lengths"] = [int(spans[0, 0]), int(spans[-1, 1])], _spread(lengths)
  out["windows"] = _inspect_windows(folder, spans, tasks, problems)

  ids = ids_of(spans)
  there = _note(problems, converted.present, folder, ids)
  if there is None:
    return out
  out["missing"] = int((~there).sum())
  if out["missing"]:
    gaps = ids[~there]
    names, present = list_frames(folder)
    others, fix = other_files(folder, names, present)
    listed = ", ".join(map(str, gaps[:LISTED].tolist())) + (", ..." if len(gaps) > LISTED else "")
    problems.append(
      {
        "file": str(frame_path(folder, gaps[0], names)),
        "key": "",
        "rule": f"{len(gaps)} of {len(ids)} frames that {IDS_FILE} names have no file: {listed}; {others}.",
        "fix": fix,
        "stops": "collect",
      }
    )
  ids = ids[there]
  if len(ids):
    picked = ids if not frames else ids[np.unique(np.linspace(0, len(ids) - 1, frames).astype(int))]
    _inspect_frames(folder, picked, image_size, workers, out, problems)
  if len(problems) == known and folder.name != calvin.FAILED:
    _note(problems, calvin.check_success, folder, tasks, stops="featurize")
  return out


def _inspect_windows(
  folder: pathlib.Path, spans: np.ndarray, tasks: Sequence[str], problems: Problems
) -> dict[str, Any]:
  """Annotated windows by task, the wanted ones first."""
  raw = _note(problems, calvin.read_raw_annotations, folder)
  if raw is None:
    return {}
  if folder.name != calvin.FAILED:  # takes that failed may be of some tasks, or of none
    _note(problems, calvin.check_tasks, folder, [task for task, _, _ in raw], tasks, stops="featurize")
  bad = [window for window in raw if not _lies_in_one_episode(folder, window, spans)]
  if bad:
    listed = ", ".join(f"({low}, {high}) of {task}" for task, low, high in bad[:LISTED])
    more = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    problems.append(
      {
        "file": str(calvin.annotation_file(folder)),
        "key": "info.indx",
        "rule": f"not in one episode: {listed}{more}.",
        "fix": COPY_AGAIN,
        "stops": "collect",
      }
    )
  return _count_windows(raw, tasks)


def _count_windows(raw: Sequence[tuple[str, int, int]], tasks: Sequence[str]) -> dict[str, Any]:
  """Task -> number and lengths of its windows, the wanted ones first."""
  order = {task: position for position, task in enumerate(tasks)}
  found = sorted({task for task, _, _ in raw}, key=lambda t: (order.get(t, len(order)), t))
  windows = {task: np.array([high - low for name, low, high in raw if name == task]) for task in found}
  return {task: {"count": len(sizes), "lengths": _spread(sizes)} for task, sizes in windows.items()}


def _lies_in_one_episode(folder: pathlib.Path, window: tuple[str, int, int], spans: np.ndarray) -> bool:
  try:
    calvin.locate(folder, [window], spans)
  except DatasetError:
    return False
  return True


def _inspect_frames(
  folder: pathlib.Path,
  ids: np.ndarray,
  image_size: int,
  workers: int,
  out: dict[str, Any],
  problems: Problems,
) -> None:
  """Reads single frames: adds "keys", "pictures", "read", "broken" and "ranges" to `out`."""
  robot = _note(problems, read_embodiment, folder.parent) or CALVIN
  first = next(
    (arrays for i in ids[:LISTED] if (arrays := converted.stored_shapes(folder, int(i))) is not None), None
  )
  if first is not None:
    out["keys"] = sorted(first)
    out["pictures"] = {key: first[key] for key in robot.camera_names if key in first}
  if robot != CALVIN:
    out["names"] = _dimension_names(robot)
  found: Problems = []
  reader = None
  for skipped in range(min(LISTED, len(ids))):  # all pictures must have the shape of the first good ones
    reader = _note(found, converted.open_reader, folder, np.stack([ids, ids], 1)[skipped:], image_size)
    if reader is not None:
      break
  if reader is None:
    problems += found
    out["read"] = out["broken"] = len(found)
    return
  _read_frames(reader, workers, out, problems, skipped, found)


def _read_frames(
  reader: FrameReader,
  workers: int,
  out: dict[str, Any],
  problems: Problems,
  skipped: int = 0,
  found: Sequence[dict[str, str]] = (),
) -> None:
  """Reads all frames of a reader: adds "read", "broken" and "ranges" to `out`.

  Args:
    reader: of the frames.
    workers: threads.
    out: see `_inspect_split`.
    problems: appended to.
    skipped: frames before them that could not be read.
    found: problems of those.
  """
  ids, robot, image_size, folder = reader.ids, reader.embodiment, reader.image_size, reader.folder
  found = list(found)
  good = np.zeros(len(ids), bool)
  widths = reader.widths
  vectors = {key: np.full((len(ids), *vector_shape(width)), np.nan) for key, width in widths.items()}

  def read(begin: int, stop: int) -> None:
    picture = {key: np.empty((1, image_size, image_size, 3), np.uint8) for key in robot.camera_names}
    for row in range(begin, stop):
      values = {key: array[row : row + 1] for key, array in vectors.items()}
      good[row] = _note(found, _read_one, reader, row, values | picture) is not None

  reader.for_each_block(read, workers, None)
  out["read"], out["broken"] = skipped + len(ids), skipped + int((~good).sum())
  problems += sorted(found, key=lambda p: p["file"])[:LISTED]
  if len(found) > LISTED:
    rule = f"{len(found) - LISTED} more frames are broken, of {len(ids)} that were read."
    fix = "copy or download them again."
    problems.append({"file": str(folder), "key": "", "rule": rule, "fix": fix, "stops": "collect"})
  if good.any():
    out["ranges"] = {
      key: {"low": array[good].min(0).tolist(), "high": array[good].max(0).tolist()}
      for key, array in vectors.items()
      if widths[key]
    }


def _read_one(reader: FrameReader, row: int, out: dict[str, np.ndarray]) -> bool:
  reader.read(row, row + 1, out)
  return True


def _inspect_starts(
  root: pathlib.Path, tasks: Sequence[str], split: dict[str, Any], problems: Problems
) -> None:
  """Adds "start_states", {task: count}: what an evaluation would start from."""
  starts = (root / "validation" / calvin.START_STATES_FILE).is_file()
  known = [task for task in tasks if starts or task in split["windows"]]
  states = None
  if split["frames"] and known:
    states = _note(problems, calvin.read_start_states, root, known, stops="evaluate")
  split["start_states"] = {task: len(starts) for task, starts in (states or {}).items()}


# ---------------------------------------------------------------------------------------------
# For people.


def format_report(report: dict[str, Any]) -> str:
  """The report of `inspect_dataset` as text."""
  lines = [f"{report['source']}: {report['form'] or 'no dataset that can be read'}"]
  for name, split in report["splits"].items():
    lines += ["", f"{name}/", *_split_lines(split)]
  lines += ["", f"Tasks of the data: {report['tasks']}"] if report.get("tasks") else []
  lines.append("")
  for number, problem in enumerate(report["problems"], 1):
    key = f", key '{problem['key']}'" if problem["key"] else ""
    lines += [
      f"Problem {number}: {problem['file']}{key}: {problem['rule']}",
      f"  What to do: {problem['fix']}",
    ]
  for number, warning in enumerate(report["warnings"], 1):
    lines += [
      f"Warning {number}: {warning['file']}, key '{warning['key']}': {warning['rule']}",
      f"  What to do: {warning['fix']}",
    ]
  return "\n".join([*lines, _verdict(report)])


def _verdict(report: dict[str, Any]) -> str:
  stages, problems = report["stages"], len(report["problems"])
  warned = f" {count(len(report['warnings']), 'warning')}: see above." if report["warnings"] else ""
  if stages == list(chain.STAGES):
    return f"It can be trained on.{warned}"
  if "collect" not in stages:
    return f"It cannot be trained on: {count(problems, 'problem')}."
  kind = (
    "A world model can be trained and judged on it" if "featurize" not in stages else "It can be trained on"
  )
  without = [stage for stage in chain.STAGES if stage not in stages]
  reason = count(problems, "problem") if problems else "no tasks were asked for"
  if not problems and not report["simulated"] and "featurize" in stages:
    reason = "no simulator has this robot and scene"
  return f"{kind}: stages {', '.join(stages)}; not {', '.join(without)} ({reason}).{warned}"


def _split_lines(split: dict[str, Any]) -> list[str]:
  def spread(s: dict[str, int]) -> str:
    return f"{s['least']} to {s['most']}, median {s['median']}"

  if not split["frames"]:
    return ["  nothing that can be read"]
  first, last = split["ids"]
  of_lengths = f"episodes of {spread(split['episode_lengths'])}"
  lines = [
    f"  frames    {split['frames']:,} in {split['episodes']:,} {of_lengths}; ids {first} to {last}",
    f"  files     {split['missing']:,} missing; {split['read']:,} read, {split['broken']:,} of them broken",
  ]
  sizes = [f"{key} {' x '.join(map(str, shape))}" for key, shape in split["pictures"].items()]
  used = (*vector_keys(CALVIN), *split["pictures"])
  unused = [key for key in split["keys"] if key not in used]
  lines.append(
    f"  pictures  {', '.join(sizes) or 'none'}" + (f"; not used: {', '.join(unused)}" if unused else "")
  )
  names = split.get("names", {})
  parts = lambda key: (
    {name: slice(i, i + 1) for i, name in enumerate(names[key])} if key in names else _PARTS[key]
  )
  for key, limits in split["ranges"].items():
    bounds = [
      f"{name} {min(limits['low'][part]):.3g} to {max(limits['high'][part]):.3g}"
      for name, part in parts(key).items()
    ]
    lines.append(f"  {key:<11} {', '.join(bounds)}")
  if split["windows"]:
    width = max(map(len, split["windows"]))
    starts = split.get("start_states", {})
    for task, found in split["windows"].items():
      line = f"  {task:<{width}}  {found['count']:>5,} windows of {spread(found['lengths'])} frames"
      lines.append(line + (f"; {starts[task]:,} start states" if task in starts else ""))
  return lines


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the report. Returns the exit code."""
  tasks = "tasks that must be annotated, comma-separated; CALVIN's if not given"
  parser = lerobot.source_parser("python -m wam_jax.data.inspect", __doc__, tasks)
  parser.add_argument("--frames", type=int, default=SAMPLE, help="frames to read per split; 0: all")
  parser.add_argument("--image_size", type=int, default=64, help="side that pictures will be shrunk to")
  parser.add_argument("--json", action="store_true", help="print JSON instead of text")
  options = parser.parse_args(arguments)
  if options.frames < 0 or options.image_size < 1:
    parser.error("--frames must be 0 or more, --image_size 1 or more")
  sizes = {"frames": options.frames, "image_size": options.image_size}
  if is_lerobot(options.source[0]):
    report = inspect_lerobot(lerobot.selection_of(parser, options), **sizes)
  else:
    wanted = TASKS if options.tasks is None else split_list(options.tasks)
    report = inspect_dataset(lerobot.one_source(parser, options), tasks=wanted, **sizes)
  print(json.dumps(report, indent=2) if options.json else printable(format_report(report)))
  return 0 if report["trainable"] else 1


if __name__ == "__main__":
  console.run_program(main)
