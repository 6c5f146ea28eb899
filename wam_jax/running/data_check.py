"""What a run's dataset does not allow, and what may teach nothing in it: looked at before hours of work."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from wam_jax.data import calvin, doubts, lerobot
from wam_jax.data.files import DatasetError
from wam_jax.running.plan import StagePlan, wanted_stages
from wam_jax.storage.artifact import Artifact, ArtifactError


def _lines(doubtful: Sequence[doubts.Doubt]) -> list[str]:
  return [f"{doubt.file}, key '{doubt.key}': {doubt.rule} What to do: {doubt.fix}" for doubt in doubtful]


def _few_failed_takes(config: ConfigDict, windows: Iterable[str], where: object) -> list[str]:
  """What keeps failed takes from being learned from and judged by.

  Args:
    config: the run's.
    windows: the task of each failed take.
    where: they are.
  """
  count, found = config.data.failed_takes_per_task, Counter(windows)
  few = {task: found[task] for task in config.tasks if found[task] <= count}
  if not count or not few:
    return []
  least = min(few.values())
  fix = f"{2 * least // 3}" if least > 1 else "0 --config.ppo.failed_starts=0"
  listed = ", ".join(f"{number} of {task}" for task, number in few.items())
  rule = f"data.failed_takes_per_task={count} of each task are learned from, and more have to be held out"
  return [f"{where} has too few failed takes, {listed}: {rule}: --config.data.failed_takes_per_task={fix}"]


def _check_lerobot(config: ConfigDict, pending: set[str]) -> tuple[list[str], list[str]]:
  """Problems and warnings of LeRobot's data, as long as they are to be converted."""
  if "collect" not in pending or not config.data.path:
    return [], []
  selection = lerobot.Selection.of(config)
  tasks = selection.tasks if "featurize" in pending else ()
  problems: list[str] = []
  try:
    data = lerobot.open_data(selection)
    splits = lerobot.divide(data, selection)
    if tasks:
      problems += map(str, lerobot.task_problems(data, selection, splits))
      failed = [task for split in splits if split.name == calvin.FAILED for task, *_ in split.windows]
      problems += _few_failed_takes(config, failed, selection.path[0])
    folder = pathlib.Path(selection.path[0]) / splits[0].name
    warnings = doubts.look(
      folder,
      config.env.image_size,
      source=lerobot.source_of(data, folder, splits[0].spans, splits[0].windows),
      tasks=() if problems else tasks,
      cameras=config.world_model.cameras,
      proprio=config.world_model.proprio != "none",
      workers=config.env.workers,
    )
  except DatasetError as error:
    return [str(error)], []
  return problems, _lines(warnings)


def _check_failed_takes(config: ConfigDict, root: pathlib.Path) -> list[str]:
  """Problems of the failed takes of a dataset in CALVIN's format."""
  folder = root / calvin.FAILED
  if not config.data.failed_takes_per_task:
    return []
  try:
    windows = calvin.read_raw_annotations(folder) if folder.is_dir() else []
  except DatasetError:
    return []
  return _few_failed_takes(config, (task for task, _, _ in windows), folder)


def _success_unknown(folder: pathlib.Path, tasks: Sequence[str]) -> list[str]:
  """Says so where nothing says whether the tasks of a split's demos are done."""
  try:
    calvin.check_success(folder, tasks)
  except DatasetError as error:
    if error.key == "success":
      return [str(error)]
    raise
  return []


def _check_given(config: ConfigDict, collect: Artifact) -> list[str]:
  """`_check_failed_takes` of finished frames; whoever reads them says what is wrong with them."""
  try:
    return _check_failed_takes(config, calvin.dataset_path(collect))
  except (ArtifactError, DatasetError):
    return []


def check_data(config: ConfigDict, plans: Mapping[str, StagePlan]) -> tuple[list[str], list[str]]:
  """Looks at the dataset, if there is work to do with it.

  Args:
    config: from `config.finalize`.
    plans: of the stages asked for and what they need.

  Returns:
    Lines on what keeps stages from running that were asked for, and warnings. Both are empty where a file
    is broken: the collect stage reports that.
  """
  pending = {stage for stage in wanted_stages(config) if plans[stage].action in ("run", "resume")}
  if config.inputs.collect:
    return (_check_given(config, plans["collect"].artifact) if "featurize" in pending else []), []
  root = pathlib.Path(config.data.calvin_path)
  if config.data.source == "lerobot":
    return _check_lerobot(config, pending)
  problems: list[str] = []
  warnings: list[str] = []
  absent: list[str] = []
  try:
    if "featurize" in pending:
      for folder in (root / "training", root / "validation"):
        raw = calvin.read_raw_annotations(folder)
        if lacking := calvin.absent_tasks((task for task, _, _ in raw), config.tasks):
          absent += lacking
          known = ", ".join(sorted({task for task, _, _ in raw})) or "none"
          problems.append(f"{folder} has no annotated window of {', '.join(lacking)}; it has {known}")
        problems += _success_unknown(folder, config.tasks)
      if (
        config.data.play_successes_per_task
        and config.data.play_successes_by == "predicates"
        and "scene_obs" not in calvin.open_split(root / "training", 1).widths
      ):
        rule = f"frames of {root / 'training'} have no scene_obs, by which successes of play are found"
        problems.append(f"{rule}: --config.data.play_successes_by=classifier")
    if pending & {"collect", "world_model"}:
      found = doubts.look(
        root / "training",
        config.env.image_size,
        tasks=config.tasks if "featurize" in pending else (),
        cameras=config.world_model.cameras,
        proprio=config.world_model.proprio != "none",
        workers=config.env.workers,
      )
      warnings = _lines(found)
  except DatasetError:
    return [], []
  if absent:
    annotated = "--config.tasks=TASK,TASK those that are annotated"
    world = "--config.stage=collect, then world_model and judge_world_model: a world model needs none"
    problems += [f"  {annotated}; or {world}."]
  problems += _check_failed_takes(config, root) if "featurize" in pending else []
  return problems, warnings
