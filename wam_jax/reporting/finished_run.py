"""A finished run as it lies on disk: its artifacts, results, settings, and episodes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from wam_jax.acting.episodes import read_episodes
from wam_jax.acting.policy_table import COMPARED
from wam_jax.config import STAGES, chain
from wam_jax.host.regular_files import read_bytes
from wam_jax.host.words import PrintableError
from wam_jax.storage.artifact import (
  Artifact,
  ArtifactError,
  given_folders,
  how_to_remake,
  load_artifact,
  search_input,
)
from wam_jax.storage.records import read_record

# What a page does without: of collect it only tells the time, and older runs have no certificate.
OPTIONAL = {
  "collect": "collect is not where the run had it, its time is not counted",
  "certify": "there is no certificate: stage certify has not run",
}


class RunError(PrintableError):
  """A folder is no finished run, or runs cannot be compared; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    workdir: its folder.
    config: of its last stage.
    inputs: stage -> artifact, in the order of the stages.
    results: content of `results.json`, where no simulator ran, as of `unsimulated.results_of`.
    missing: what a page must do without, in words.
  """

  workdir: pathlib.Path
  config: Any
  inputs: Mapping[str, Artifact]
  results: dict[str, Any]
  missing: tuple[str, ...] = ()

  def judge(self) -> dict[str, Any]:
    """Content of `judge.json`."""
    return read_record(self.inputs["judge_world_model"].path, "judge.json")

  def strips(self) -> dict[str, bytes]:
    """png and webp -> the open-loop prediction as a strip and as an animation, as far as they exist."""
    paths = {kind: self.inputs["judge_world_model"].path / f"strip.{kind}" for kind in ("png", "webp")}
    return {kind: read_bytes(path) for kind, path in paths.items() if path.exists()}

  def episodes(self, policy: str) -> dict[str, np.ndarray] | None:
    """success [K, M] and the start states of a policy's episodes; None if they are not stored."""
    path = self.inputs["evaluate"].path / f"{policy}.npz"
    try:
      return read_episodes(path, ("success", "start"))
    except ArtifactError:
      return None

  def settings(self) -> dict[str, Any]:
    """Dotted path -> value of all that the results depend on; where stages differ, followed by (stage)."""
    out: dict[str, Any] = {}
    for stage, artifact in self.inputs.items():
      for path, value in artifact.part.items():
        out[path if out.get(path, value) == value else f"{path} ({stage})"] = value
    return out


def read_run(workdir: str | os.PathLike[str]) -> Run:
  """Opens a finished run.

  Args:
    workdir: its folder.

  Raises:
    RunError: it is none, or stages that its results were made from cannot be found.
  """
  path = pathlib.Path(workdir).expanduser()
  if not path.is_dir():
    raise RunError(f"{path}: there is no such folder")
  try:
    last = last_stage(path)
    results = _results(last)
  except ArtifactError as error:
    finished = [stage for stage in STAGES if (path / stage / "DONE").exists()]
    state = f"finished there: {', '.join(finished)}" if finished else "no stage is finished there"
    raise RunError(
      f"{path} is no finished run: {error}\n  ({state}; a run is finished when it is evaluated, or without a "
      "simulator has its report: repeat the command that began it)"
    ) from error
  root = last.path.parent
  inputs: dict[str, Artifact] = {}
  lost: list[str] = []
  missing: list[str] = []
  for stage in (stage for stage in STAGES if stage != "report"):
    if stage == "evaluate" and last.stage != stage:
      continue
    artifact: Artifact | None = last
    reasons: list[str] = []
    if stage in last.inputs:
      artifact, reasons = search_input(last, stage, last.inputs[stage])
    elif stage != "evaluate":
      artifact, reasons = _made_on(root, stage, last.inputs)
    if artifact is not None:
      inputs[stage] = artifact
    elif stage in OPTIONAL:
      missing.append(OPTIONAL[stage])
    else:
      lost += [f"  {stage} is not there:", *(f"  {reason}" for reason in reasons)]
  for stage in chain.EXTRA_STAGES:  # made only where settings asked for it
    user = next((artifact for artifact in inputs.values() if stage in artifact.inputs), None)
    if user is None:
      continue
    artifact, _ = search_input(user, stage, user.inputs[stage])
    if artifact is not None:
      inputs[stage] = artifact
    else:
      missing.append(f"{stage} is not where the run had it, its time is not counted")
  inputs = {stage: inputs[stage] for stage in chain.ROWS if stage in inputs}
  if lost:
    raise RunError("\n".join([f"{path}: stages that belong to this run cannot be found", *lost]))
  return Run(root, ConfigDict(last.config), inputs, results, tuple(missing))


def last_stage(path: str | os.PathLike[str]) -> Artifact:
  """The artifact with a run's results.json: its evaluation, or its report, if that was made without one.

  Raises:
    ArtifactError: neither is finished.
  """
  try:
    return load_artifact(path, "evaluate")
  except ArtifactError:
    with contextlib.suppress(ArtifactError):
      report = load_artifact(path, "report")
      if "evaluate" not in report.inputs:
        return report
    raise


def _results(last: Artifact) -> dict[str, Any]:
  """Content of results.json. Raises ArtifactError: policies are missing."""
  results = read_record(last.path, "results.json")
  if last.stage != "evaluate":
    return results
  rows = {name: policy["per_task"] for name, policy in results["policies"].items()}
  names, tasks = dict.fromkeys((*COMPARED, *rows)), results["tasks"]
  lacking = [f"{name} on {task}" for name in names for task in tasks if task not in rows.get(name, ())]
  if lacking:
    text = f"{last.path / 'results.json'}: {', '.join(lacking)} missing"
    raise ArtifactError(f"{text}. {how_to_remake(last.path)}")
  return results


def _made_on(root: pathlib.Path, stage: str, prints: Mapping[str, str]) -> tuple[Artifact | None, list[str]]:
  """The artifact of a stage that evaluate does not read, made from the same as it."""
  reasons = []
  for folder in (root / stage, *given_folders(root, stage)):
    try:
      artifact = load_artifact(folder, stage)
    except ArtifactError as error:
      reasons.append(f"  {error}")
      continue
    if all(prints.get(name, value) == value for name, value in artifact.inputs.items()):
      return artifact, []
    reasons.append(f"  {artifact.path}: of another world model or other data")
  return None, reasons


def labels(runs: Sequence[Run]) -> list[str]:
  """A short name of each run: as many of the last parts of its folder as tell them apart."""
  paths = [run.workdir.resolve().parts for run in runs]
  for count in range(1, max(map(len, paths)) + 1):
    names = ["/".join(path[-count:]) for path in paths]
    if len(set(names)) == len(names):
      return names
  raise RunError(f"{runs[0].workdir}: a run cannot be compared with itself")
