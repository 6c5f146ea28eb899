"""Results of a run whose policies no simulator has measured: what dreams from held-out demos say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wam_jax.acting.policy_table import COMPARED, POLICIES
from wam_jax.host.tables import Rows
from wam_jax.host.words import count
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import read_record


def results_of(config: Any, ppo: Artifact) -> dict[str, Any]:
  """In the place of the evaluation's `results.json`, with no policy measured.

  Returns:
    tasks, seed, max_steps, policies (empty), and imagined: policy -> label, per_task (task -> share of
    dreams) and mean.
  """
  imagined = {}
  for name, per_task in imagined_success(ppo).items():
    mean = sum(per_task.values()) / len(per_task)
    imagined[name] = {"label": POLICIES[name].label, "per_task": per_task, "mean": mean}
  settings = {"tasks": list(config.tasks), "seed": config.seed, "max_steps": config.env.max_steps}
  return {**settings, "policies": {}, "imagined": imagined}


def imagined_success(ppo: Artifact) -> dict[str, dict[str, float]]:
  """policy -> task -> share of dreams from held-out demos in which it succeeds. Raises ArtifactError."""
  names = {name: f"imagined_success_{name}" for name in COMPARED}
  content = read_record(ppo.path, "result.json", **{key: {str: (int, float)} for key in names.values()})
  return {name: content[key] for name, key in names.items()}


def rows(results: Mapping[str, Any]) -> Rows:
  """The result table as text, header first, one row per task, the mean last."""
  imagined = results["imagined"]
  cell = lambda share: f"{100 * share:.1f}"
  return [
    ["Success in dreams, %", *(POLICIES[name].heading for name in imagined)],
    *([task, *(cell(x["per_task"][task]) for x in imagined.values())] for task in results["tasks"]),
    ["**Mean**", *(cell(x["mean"]) for x in imagined.values())],
  ]


def notes(config: Any) -> list[str]:
  """What a reader must know to judge the numbers."""
  dreams = count(config.evaluate.imagined_episodes, "dream")
  return [
    (
      "No simulator has measured these policies: there is none for this robot, these tasks or these data. "
      "Every number is of held-out recordings, and of dreams that begin in them."
    ),
    (
      f"Imagined success: share of {dreams} per task, begun at the first frames of held-out demos, that the "
      "success classifier calls solved. It is no real success: a large one may mean that dreams are easier "
      "than the robot's world. The certificate corrects it by what such dreams were off on finished runs."
    ),
  ]
