"""Pools the evaluations of several runs into one table.

python benchmarks/pool_seeds.py runs/seed0 runs/seed1 runs/seed2

Runs must have the same tasks. Each run has its own world model, demos and start states; their episodes
are put side by side, and the spread of the runs' means is printed beside the pooled interval.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from wam_jax.io.artifact import ArtifactError, load_artifact
from wam_jax.io.logger import duration
from wam_jax.io.tables import markdown_table
from wam_jax.stages import evaluate, report
from wam_jax.stages.plan import STAGES

POLICIES = ("expert", "random", "cloned", "ppo")


def pool(workdirs: Sequence[str]) -> str:
  """Markdown: the pooled table, each run's means, and the time of the stages.

  Args:
    workdirs: folders of finished runs.

  Raises:
    ArtifactError: a run without a finished evaluation, or runs with different tasks.
  """
  artifacts = [load_artifact(workdir, "evaluate") for workdir in workdirs]
  tasks = tuple(artifacts[0].config["tasks"])
  different = [str(a.path) for a in artifacts if tuple(a.config["tasks"]) != tasks]
  if different:
    raise ArtifactError(f"{', '.join(different)}: other tasks than {artifacts[0].path}")
  runs = [_episodes(artifact.path) for artifact in artifacts]
  names = [name for name in POLICIES if all(name in run for run in runs)]
  pooled = {}
  for name in names:
    parts = [run[name] for run in runs]
    pooled[name] = {key: np.concatenate([p[key] for p in parts], axis=1) for key in ("success", "steps")}
    if all("imagined" in p for p in parts):
      pooled[name]["imagined"] = np.mean([p["imagined"] for p in parts], axis=0)
  results = evaluate.summarise(tasks, pooled)
  change = {name: f"{100 * value:+.1f}" for name, value in results["ppo_minus_cloned"].items()}

  means = [["Run", *(evaluate.LABELS.get(name, name) for name in names)]]
  for artifact, run in zip(artifacts, runs, strict=True):
    rates = [f"{100 * run[name]['success'].mean():.1f}" for name in names]
    means.append([f"seed {artifact.config['seed']}", *rates])
  times = [["Stage", *(row[0] for row in means[1:])]]
  for stage in STAGES:
    times.append([stage, *(_seconds(artifact.path.parent, stage) for artifact in artifacts)])
  return "\n".join(
    [
      markdown_table(report.result_rows(results)),
      "",
      (
        f"After PPO minus cloned: {change['difference']} points "
        f"(95 % interval {change['low']} to {change['high']}, paired over the same start states)."
      ),
      "",
      markdown_table(means),
      "",
      markdown_table(times),
    ]
  )


def _episodes(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  found = {}
  for name in POLICIES:
    if (folder / f"{name}.npz").exists():
      with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        found[name] = {key: file[key] for key in ("success", "steps", "imagined") if key in file.files}
  return found


def _seconds(workdir: pathlib.Path, stage: str) -> str:
  try:
    return duration(load_artifact(workdir, stage).seconds)
  except ArtifactError:
    return "-"


if __name__ == "__main__":
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  try:
    print(pool(sys.argv[1:]))
  except ArtifactError as error:
    sys.exit(str(error))
