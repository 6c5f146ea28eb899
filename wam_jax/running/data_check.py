"""What a run's dataset does not allow, and what may teach nothing in it: looked at before hours of work."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from wam_jax.data import calvin, doubts
from wam_jax.data.files import DatasetError
from wam_jax.running.plan import StagePlan, wanted_stages


def check_data(config: ConfigDict, plans: Mapping[str, StagePlan]) -> tuple[list[str], list[str]]:
  """Looks at CALVIN's dataset, if there is work to do with it.

  Args:
    config: from `config.finalize`.
    plans: of its stages.

  Returns:
    Lines on what keeps stages from running that were asked for, and warnings. Both are empty where a file
    is broken: the collect stage reports that.
  """
  if config.inputs.collect:
    return [], []
  pending = {stage for stage in wanted_stages(config) if plans[stage].action in ("run", "resume")}
  root = pathlib.Path(config.data.calvin_path)
  problems: list[str] = []
  warnings: list[str] = []
  try:
    if "featurize" in pending:
      for folder in (root / "training", root / "validation"):
        raw = calvin.read_raw_annotations(folder)
        if absent := calvin.absent_tasks((task for task, _, _ in raw), config.tasks):
          known = ", ".join(sorted({task for task, _, _ in raw})) or "none"
          problems.append(f"{folder} has no annotated window of {', '.join(absent)}; it has {known}")
    if pending & {"collect", "world_model"}:
      found = doubts.look(
        root / "training",
        config.env.image_size,
        tasks=config.tasks if "featurize" in pending else (),
        cameras=config.world_model.cameras,
        proprio=config.world_model.proprio != "none",
        workers=config.env.workers,
      )
      warnings = [f"{doubt.file}, key '{doubt.key}': {doubt.rule} What to do: {doubt.fix}" for doubt in found]
  except DatasetError:
    return [], []
  if problems:
    annotated = "--config.tasks=TASK,TASK those that are annotated"
    world = "--config.stage=collect, then world_model and judge_world_model: a world model needs none"
    problems += [f"  {annotated}; or {world}."]
  return problems, warnings
