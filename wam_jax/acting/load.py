"""Finds a trained policy and the world model that it was trained on."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from wam_jax.acting import models, packed
from wam_jax.acting.monitor import open_monitor
from wam_jax.acting.policy import ActingPolicy, PolicyError, index_of
from wam_jax.acting.policy_table import POLICIES, TRAINED
from wam_jax.host import surroundings
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact, ArtifactError, how_to_remake
from wam_jax.storage.records import read_record
from wam_jax.types import Params


@surroundings.own_settings()
def load_policy(
  path: str | os.PathLike[str] | None = None,
  task: str | None = None,
  which: str | None = None,
  world_model: str | os.PathLike[str] | None = None,
  ddim_steps: int = 0,
) -> ActingPolicy:
  """A trained policy, with the world model that it was trained on.

  Args:
    path: a run's work folder, the folder of a finished ppo or behaviour_cloning artifact, or packed policies
      (a file, or a folder, also as downloaded from a model hub); None: those that come with the package.
    task: one of the policy's; None: its only one.
    which: 'ppo', the last; 'ppo_imagined' or 'ppo_real', of each task the best by dreams or by simulator,
      where PPO was monitored; 'cloned'; None: 'ppo' if it is finished, else 'cloned'.
    world_model: folder of the world model, where it is neither next to the policy nor where the run had it.
    ddim_steps: of a diffusion policy, so many denoising steps by DDIM; 0: all that it was trained with.

  Returns:
    An object with `reset(batch_size=None, seed=0)` and `act(observation) -> action`.

  Raises:
    PolicyError: no finished policy there, no such task, or the world model that it was trained on is not
      to be found.
    ArtifactError, CheckpointError: files that cannot be read.
    ValueError: `which` or `ddim_steps` out of range.
    SurroundingsError: this process was forked after JAX had started.
  """
  given = packed.SHIPPED if path is None else pathlib.Path(path).expanduser()
  if packed.is_packed(given):
    if world_model is not None:
      raise PolicyError("world_model: packed policies bring their own")
    return packed.load_packed(given, task, which, ddim_steps)
  artifact, policy, params, tasks = load_stacked(path, which)
  k = index_of(artifact.path, tasks, task)
  world = find_world_model(artifact, world_model)
  model, model_params = models.load_world_model(world)
  params = jax.tree.map(lambda x: x[k : k + 1], params)
  made_from = {artifact.stage: artifact.fingerprint, "world_model": world.fingerprint}
  policy = models.for_acting(policy, ddim_steps)
  monitored = functools.partial(open_monitor, artifact, tasks[k], k, model, model_params)
  return ActingPolicy(model, model_params, policy, params, tasks[k], made_from, monitored)


def load_stacked(path: Any, which: str | None = None) -> tuple[Artifact, Any, Params, tuple[str, ...]]:
  """(artifact, policy, parameters stacked over tasks, tasks in that order) of `load_policy`'s path."""
  artifact = find_policy(path, which)
  result = read_record(artifact.path, "result.json")
  selected = POLICIES[which].selected if which else ""
  if selected and not (artifact.path / "selected" / selected).is_dir():
    raise PolicyError(f"{artifact.path}: PPO was not monitored (ppo.eval_every): there is no {which}")
  policy, params = models.load_policy(artifact, selected)
  tasks = tuple(next(iter(result.values())))
  if len(tasks) != (stacked := jax.tree.leaves(params)[0].shape[0]):
    told = f"{artifact.path / 'result.json'}: {len(tasks)} tasks, but there are policies of {stacked}"
    raise ArtifactError(f"{told}. {how_to_remake(artifact.path)}")
  return artifact, policy, params, tasks


def find_policy(path: Any, which: str | None = None) -> Artifact:
  """The finished artifact of `load_policy`'s path.

  Raises:
    PolicyError: there is none.
    ValueError: `which` is not one of TRAINED.
  """
  path = pathlib.Path(path).expanduser()
  if which is not None and which not in TRAINED:
    raise ValueError(f"which: expected one of {', '.join(TRAINED)}, got {which!r}")
  stages = list(dict.fromkeys(POLICIES[name].stage for name in TRAINED if which in (None, name)))
  artifact = artifact_lib.read_artifact(path)
  if artifact is not None:
    if artifact.stage not in stages:
      raise PolicyError(f"{path}: this is an artifact of {artifact.stage}, not of {' or '.join(stages)}")
    if not artifact.done:
      raise PolicyError(f"{path}: {artifact.stage} is not finished (DONE is missing)")
    return artifact
  if not path.exists():
    raise PolicyError(
      f"{path}: no finished policy here: no such file or folder. Download what is on a model hub first"
    )
  return _of_run(path, stages, "policy")


def find_world_model_of_run(workdir: Any) -> Artifact:
  """The finished world model in a run's work folder, or that it was given. Raises PolicyError: none."""
  return _of_run(pathlib.Path(workdir).expanduser(), ["world_model"], "world model")


def _of_run(workdir: pathlib.Path, stages: Sequence[str], what: str) -> Artifact:
  """The first finished artifact of these stages in a work folder, or that the run was given."""
  reasons = []
  for stage in stages:
    for folder in [workdir / stage, *artifact_lib.given_folders(workdir, stage)]:
      try:
        return artifact_lib.load_artifact(folder, stage)
      except ArtifactError as error:
        reasons.append(f"  {error}")
  raise PolicyError("\n".join([f"{workdir}: no finished {what} here", *reasons]))


def find_world_model(policy: Artifact, path: Any = None) -> Artifact:
  """The finished world model that a policy was trained on.

  Args:
    policy: artifact of ppo or behaviour_cloning.
    path: where it is; None: next to the policy, or where the run that made the policy had it.

  Raises:
    PolicyError: with what was found instead.
  """
  fingerprint = policy.inputs.get("world_model")
  if fingerprint is None:  # the cloned policy knows its demos' features, and these the world model
    fingerprint = _find(policy, "featurize", policy.inputs["featurize"]).inputs["world_model"]
  return _find(policy, "world_model", fingerprint, path)


def _find(policy: Artifact, stage: str, fingerprint: str, path: Any = None) -> Artifact:
  artifact, reasons = artifact_lib.search_input(policy, stage, fingerprint, path)
  if artifact is not None:
    return artifact
  name = stage.replace("_", " ")
  problem = f"{policy.path}: this policy was trained on the {name} with fingerprint {fingerprint[:12]}, "
  hint = "If the world model is elsewhere, name its folder: load_policy(..., world_model=FOLDER)."
  raise PolicyError("\n".join([problem + "which is not to be found:", *reasons, hint]))
