"""The card of a file of packed policies: data, command, time, success."""

from __future__ import annotations

import pathlib

from wam_jax.acting.policy_table import POLICIES
from wam_jax.config import STAGES
from wam_jax.host.provenance import without_folders
from wam_jax.host.tables import markdown_table
from wam_jax.host.words import duration
from wam_jax.reporting import run_report
from wam_jax.storage.artifact import Artifact, ArtifactError, load_artifact
from wam_jax.storage.records import read_record

_FACTS = {"command": str, "wam_jax": str, "commit": str, "cpu": str, "devices": [str]}


def card(evaluated: Artifact, which: str, path: pathlib.Path) -> str:
  """What is in a packed file: data, command, time, success with intervals.

  Args:
    evaluated: artifact of stage evaluate.
    which: policies, of `policy_table.TRAINED`.
    path: of the packed file.
  """
  results = read_record(evaluated.path, "results.json", start_states={"per_task": int}, provenance=_FACTS)
  c, facts = evaluated.config, results["provenance"]
  data, w = c["data"], c["world_model"]
  times = {name: seconds for name in STAGES if (seconds := _seconds(evaluated, name))}
  policies = POLICIES[which].card
  embedded = data["source"] == "embedded"
  play = (
    f"{data['play_frames']:,} frames of play by scripted experts"
    if embedded
    else "a dataset in CALVIN's format"
  )
  return "\n".join(
    [
      f"# {path.stem}: policies for {len(results['tasks'])} skills, and their world model",
      "",
      (
        f"Policies {policies}, of experiment `{c['experiment']}`, preset `{c['preset']}`, seed "
        f"{c['seed']}; weights in half precision, decoders and critic left out."
      ),
      "",
      (
        f"- Data: {play}, simulator `{c['env']['name']}`; {data['demos_per_task']} demonstrations and "
        f"{data['failed_takes_per_task']} failed takes per skill."
      ),
      (
        f"- World model: weight {w['inverse_dynamics_weight']:g} of inverse dynamics, {w['updates']:,} "
        f"updates of {w['batch_size']} x {w['sequence_length']} frames of {c['env']['image_size']} "
        "pixels."
      ),
      f"- Command: `{without_folders(facts['command'])}`, wam_jax {facts['wam_jax']}"
      + (f", commit {facts['commit'][:10]}" if facts["commit"] else "")
      + ".",
      f"- Machine: {facts['cpu']}, {', '.join(facts['devices'])}; "
      + ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items())
      + ".",
      "",
      (
        f"Success in the simulator from {results['start_states']['per_task']} held-out start states per "
        "skill, of the weights in single precision:"
      ),
      "",
      markdown_table(run_report.result_rows(results)),
      "",
      (
        "Meant for trying the package out: on pictures that do not look like this simulator's, these "
        "policies know nothing."
      ),
      "",
    ]
  )


def _seconds(evaluated: Artifact, stage: str) -> float | None:
  """Time of a stage of the same run, None if it is not to be found."""
  folder = evaluated.config["inputs"].get(stage)
  try:
    return load_artifact(folder or evaluated.path.parent / stage, stage).seconds
  except ArtifactError:
    return None
