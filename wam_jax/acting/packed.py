"""All policies of a run in one small file: half-precision weights, of the world model only what acting reads.

Decoders, critic and the inverse-dynamics head are left out. A file of the `small` preset has 14 MB; one comes
with the package. `python -m wam_jax.pack` makes them.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from wam_jax.acting import policy as acting
from wam_jax.acting.policy import ActingPolicy, PolicyError
from wam_jax.config import STAGES
from wam_jax.host.logger import duration
from wam_jax.host.provenance import without_folders
from wam_jax.host.tables import markdown_table
from wam_jax.stages import behaviour_cloning, report, world_model
from wam_jax.storage.artifact import Artifact, ArtifactError, load_artifact, write_text

FORMAT = 1
SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained" / "small.npz"
POLICIES = {  # what the card calls them: a column of its table
  "ppo": "after PPO in imagination",
  "cloned": "cloned",
  "ppo_imagined": "after PPO, of each task the best in dreams",
  "ppo_real": "after PPO, of each task the best in the simulator",
}
# Networks of the world model that acting does without.
UNUSED = ("decoder", "embedding_decoder", "robot_decoder", "inverse_dynamics_head")
META = "meta"  # name in the file of everything that is no weight, as JSON


def pack(workdir: Any, out: pathlib.Path, which: str | None = None) -> pathlib.Path:
  """Writes the policies of a finished run, and their card beside them.

  Args:
    workdir: the run's folder, evaluated.
    out: file to write, *.npz; the card becomes *.md.
    which: as for `acting.load_policy`.

  Returns:
    `out`.

  Raises:
    PolicyError, ArtifactError, CheckpointError: as `acting.load_policy`; or weights that half precision
      cannot hold.
  """
  artifact, policy, policy_params, tasks = acting.load_stacked(workdir, which)
  chosen = which or next(name for name, stage in acting.POLICIES.items() if stage == artifact.stage)
  world = acting.find_world_model(artifact)
  model, model_params = world_model.load_world_model(world)
  evaluated = load_artifact(workdir, "evaluate")
  used = {name: value for name, value in model_params.items() if name not in UNUSED}
  flat = traverse_util.flatten_dict({"world_model": used, "policy": policy_params}, sep="/")
  meta = {
    "format": FORMAT,
    "tasks": list(tasks),
    "which": chosen,
    "feature_size": policy.feature_size,
    "made_from": {artifact.stage: artifact.fingerprint, "world_model": world.fingerprint},
    "statistics": [list(model.robot_obs_mean), list(model.robot_obs_std)],
    "world_model": {"world_model": world.config["world_model"], "env": world.config["env"]},
    "policy": {name: artifact.config[name] for name in ("behaviour_cloning", "ppo")},
  }
  arrays = {name: _halved(name, np.asarray(value)) for name, value in flat.items()}
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_name(out.name + ".tmp")
  with temporary.open("wb") as file:
    np.savez_compressed(file, allow_pickle=False, **{META: np.asarray(json.dumps(meta))}, **arrays)
  temporary.replace(out)
  write_text(out.with_suffix(".md"), card(evaluated, chosen, out))
  return out


def _halved(name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype != np.float32:
    return value
  if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
    raise PolicyError(f"{name}: too large for half precision")
  return value.astype(np.float16)


def load(
  path: pathlib.Path, task: str | None = None, which: str | None = None, ddim_steps: int = 0
) -> ActingPolicy:
  """A policy of a packed file.

  Args:
    path: from `pack`.
    task: one of its tasks; None: its only one.
    which: of `acting.POLICIES`; None: what the file holds.
    ddim_steps: as for `acting.load_policy`.

  Raises:
    PolicyError: not such a file, no such task, or it holds other policies.
    ValueError: `ddim_steps` out of range.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      meta = json.loads(str(file[META]))
      flat = {name: file[name] for name in file.files if name != META}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise PolicyError(f"{path}: not a file of packed policies ({error})") from error
  if meta["format"] != FORMAT:
    raise PolicyError(f"{path}: format {meta['format']}, this version reads {FORMAT}")
  if which not in (None, meta["which"]):
    raise PolicyError(f"{path}: holds the policies {meta['which']}, not {which}")
  k = acting.index_of(path, meta["tasks"], task)
  whole = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in flat.items()}
  params = traverse_util.unflatten_dict(whole, sep="/")
  config = meta["world_model"]
  mean, std = map(tuple, meta["statistics"])
  model = world_model.model_of(config, (mean, std))
  policy = behaviour_cloning.make_policy(meta["policy"], meta["feature_size"])
  policy = behaviour_cloning.for_acting(policy, ddim_steps)
  own = jax.tree.map(lambda x: x[k : k + 1], params["policy"])
  return ActingPolicy(model, params["world_model"], policy, own, meta["tasks"][k], meta["made_from"])


def card(evaluated: Artifact, which: str, path: pathlib.Path) -> str:
  """What is in a packed file: data, command, time, success with intervals.

  Args:
    evaluated: artifact of stage evaluate.
    which: policies, of `acting.POLICIES`.
    path: of the packed file.
  """
  results = json.loads((evaluated.path / "results.json").read_text(encoding="utf-8"))
  c, facts = evaluated.config, results["provenance"]
  data, w = c["data"], c["world_model"]
  times = {name: seconds for name in STAGES if (seconds := _seconds(evaluated, name))}
  policies = POLICIES[which]
  own = data["source"] == "embedded"
  play = (
    f"{data['play_frames']:,} frames of play by scripted experts" if own else "a dataset in CALVIN's format"
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
      markdown_table(report.result_rows(results)),
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
  given = evaluated.config["inputs"].get(stage)
  try:
    return load_artifact(given or evaluated.path.parent / stage, stage).seconds
  except ArtifactError:
    return None
