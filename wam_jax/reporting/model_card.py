"""The card of packed policies: data, command, time, success; for a model hub with its metadata."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from wam_jax.acting import packed
from wam_jax.acting.policy_table import POLICIES
from wam_jax.config import STAGES
from wam_jax.host.provenance import without_folders
from wam_jax.host.tables import markdown_table
from wam_jax.host.words import count, duration
from wam_jax.reporting import run_report
from wam_jax.storage.artifact import Artifact, ArtifactError, load_artifact
from wam_jax.storage.records import read_record

_FACTS = {"command": str, "wam_jax": str, "commit": str, "cpu": str, "devices": [str]}


def card(last: Artifact, which: str, path: pathlib.Path) -> str:
  """What is in packed policies: data, command, time, success with intervals.

  Args:
    last: from `finished_run.last_stage`.
    which: policies, of `policy_table.TRAINED`.
    path: of the packed file; or of the folder, whose card also has the front matter that model hubs read.
  """
  name = path.stem if packed.is_file_name(path) else path.resolve().name
  simulated = last.stage == "evaluate"
  starts = {"start_states": {"per_task": int}} if simulated else {}
  results = read_record(last.path, "results.json", provenance=_FACTS, **starts)
  c, facts = last.config, results["provenance"]
  data, w = c["data"], c["world_model"]
  times = {name: seconds for name in STAGES if (seconds := _seconds(last, name))}
  policies = POLICIES[which].card
  embedded = data["source"] == "embedded"
  where = f", simulator `{c['env']['name']}`" if simulated else ", of a robot that no simulator here has"
  play = (
    f"{data['play_frames']:,} frames of play by scripted experts"
    if embedded
    else f"a dataset in {'LeRobot' if data['source'] == 'lerobot' else 'CALVIN'}'s format"
  )
  most = data.get("play_successes_per_task", 0)  # of runs before there were any
  from_play = f", and up to {most} successes of play" if most else ""
  text = "\n".join(
    [
      f"# {name}: policies for {count(len(results['tasks']), 'skill')}, and their world model",
      "",
      (
        f"Policies {policies}, of experiment `{c['experiment']}`, preset `{c['preset']}`, seed "
        f"{c['seed']}; weights in half precision, decoders and critic left out."
      ),
      "",
      (
        f"- Data: {play}{where}; {data['demos_per_task']} demonstrations and "
        f"{data['failed_takes_per_task']} failed takes per skill{from_play}."
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
        if simulated
        else "No simulator has measured these policies. Success in dreams that begin in held-out demos:"
      ),
      "",
      markdown_table(run_report.result_rows(results)),
      "",
      (
        "Meant for trying the package out: on pictures that do not look like this simulator's, these "
        "policies know nothing."
        if simulated
        else "Made for this one robot and its surroundings: on other pictures these policies know nothing."
      ),
      "",
    ]
  )
  return (
    text
    if packed.is_file_name(path)
    else _front_matter(name, which, c, results) + text + _use(results["tasks"][0])
  )


def _front_matter(name: str, which: str, config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  """What model hubs show and search by: licence, tags, success per task with intervals."""
  simulator, policy = config["env"]["name"], config["behaviour_cloning"]["policy"]
  measured = results["policies"].get(which, {"per_task": {}})["per_task"]
  rows = []
  for task, row in measured.items():
    low, high = (round(100 * row[end], 1) for end in ("low", "high"))
    metric = {
      "type": "success_rate",
      "name": f"Success in % (95 % interval {low} to {high}, {row['n']} episodes)",
      "value": round(100 * row["rate"], 1),
      "args": {"low": low, "high": high, "episodes": row["n"]},
    }
    # The hub takes results of one dataset and configuration for one result.
    dataset = {"type": simulator, "name": f"{simulator}, held-out start states", "config": task}
    rows.append({"task": {"type": "robotics", "name": task}, "dataset": dataset, "metrics": [metric]})
  facts = {
    "license": "apache-2.0",
    "library_name": "wam_jax",
    "pipeline_tag": "robotics",
    "tags": [
      "robotics",
      "world-model",
      "jax",
      "flax",
      "reinforcement-learning",
      f"{policy}-policy",
      *([simulator] if results["policies"] else []),
    ],
    **({"model-index": [{"name": name, "results": rows}]} if rows else {}),
  }
  return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def _use(task: str) -> str:
  return f"""
## Use

With wam_jax installed and this folder downloaded:

```python
import wam_jax

policy = wam_jax.load_policy("FOLDER", task="{task}")
policy.reset(seed=0)
action = policy.act(observation)  # every frame; policy.cameras names the pictures
```

`{packed.CONFIG}` describes the networks and holds the checksums. `{packed.WEIGHTS}` has the weights by their
paths in Flax; those of the policies are stacked in the order of `tasks`. The method is that of WAM,
[arXiv 2603.28955](https://arxiv.org/abs/2603.28955).
"""


def _seconds(evaluated: Artifact, stage: str) -> float | None:
  """Time of a stage of the same run, None if it is not to be found."""
  folder = evaluated.config["inputs"].get(stage)
  try:
    return load_artifact(folder or evaluated.path.parent / stage, stage).seconds
  except ArtifactError:
    return None
