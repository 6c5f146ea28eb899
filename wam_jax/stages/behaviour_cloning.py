"""Clones the demos: one policy per task, all tasks side by side."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from wam_jax.data.features import load_features
from wam_jax.io import checkpoint
from wam_jax.io.artifact import Artifact, write_text
from wam_jax.io.logger import Logger
from wam_jax.nn.policy import DiffusionPolicy, GaussianPolicy
from wam_jax.stages.training_loop import train_loop
from wam_jax.train import behaviour_cloning as train
from wam_jax.train.state import make_optimizer, make_train_state
from wam_jax.train.tasks import make_task_update, over_tasks, task_keys
from wam_jax.types import Params, Policy

REQUIRES = ("featurize",)
# All of behaviour_cloning but ddim_steps, which only says how the evaluation samples.
CONFIG = (
  "seed",
  "tasks",
  "behaviour_cloning.policy",
  "behaviour_cloning.chunk",
  "behaviour_cloning.hidden",
  "behaviour_cloning.blocks",
  "behaviour_cloning.time_dim",
  "behaviour_cloning.denoising_steps",
  "behaviour_cloning.batch_size",
  "behaviour_cloning.updates",
  "behaviour_cloning.learning_rate",
  "behaviour_cloning.final_learning_rate",
  "behaviour_cloning.warmup_updates",
  "behaviour_cloning.weight_decay",
  "behaviour_cloning.ema_decay",
)


def make_policy(config: Mapping[str, Any], feature_size: int) -> Policy:
  """Policy of a whole config (a ConfigDict or an artifact's plain dict), as it is trained."""
  cloning, ppo = config["behaviour_cloning"], config["ppo"]
  if cloning["policy"] == "gaussian":
    return GaussianPolicy(
      feature_size=feature_size,
      chunk=cloning["chunk"],
      hidden=cloning["hidden"],
      blocks=cloning["blocks"],
      sampling_std=ppo["min_sampling_std"],
      log_prob_std=ppo["min_log_prob_std"],
    )
  return DiffusionPolicy(
    feature_size=feature_size,
    chunk=cloning["chunk"],
    hidden=cloning["hidden"],
    blocks=cloning["blocks"],
    time_dim=cloning["time_dim"],
    denoising_steps=cloning["denoising_steps"],
    fine_tuned_steps=ppo["fine_tuned_steps"],
    min_sampling_std=ppo["min_sampling_std"],
    min_log_prob_std=ppo["min_log_prob_std"],
  )


def for_acting(policy: Policy, ddim_steps: int) -> Policy:
  """The policy as it is evaluated: a diffusion policy that samples in so many DDIM steps (0: as trained)."""
  if isinstance(policy, DiffusionPolicy):
    return dataclasses.replace(policy, ddim_steps=ddim_steps)
  return policy


def feature_size(network: Params) -> int:
  """F that a stacked network was made for."""
  return network["feature_in"]["kernel"].shape[-2]


def run(config: Any, inputs: dict[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Writes `params` (averaged networks, stacked over tasks) and `result.json`.

  Raises:
    ValueError: a task's demos are all shorter than a chunk.
  """
  demos = load_features(inputs["featurize"].path / "train.npz")
  cloning, num_tasks = config.behaviour_cloning, len(demos.tasks)
  policy = make_policy(config, demos.feature.shape[-1])
  data = train.make_data(demos.feature, demos.action, demos.mask, cloning.chunk)
  unseen = load_features(inputs["featurize"].path / "heldout.npz")
  heldout = train.make_data(unseen.feature, unseen.action, unseen.mask, cloning.chunk)
  optimizer = make_optimizer(
    cloning.learning_rate,
    cloning.updates,
    warmup_updates=cloning.warmup_updates,
    final_scale=cloning.final_learning_rate / cloning.learning_rate,
    weight_decay=cloning.weight_decay,
  )
  key = jax.random.fold_in(jax.random.key(config.seed), 3)
  init_key, train_key, test_key = jax.random.split(key, 3)
  state = jax.jit(jax.vmap(lambda k: make_train_state(policy.init(k), optimizer, ema=True)))(
    task_keys(init_key, num_tasks)
  )
  update_task = train.make_update(policy, optimizer, cloning.batch_size, cloning.ema_decay)

  state = train_loop(
    state=state,
    update=make_task_update(update_task, data, demos.tasks),
    total=cloning.updates,
    per_call=config.training.log_every,
    key=train_key,
    workdir=workdir,
    logger=logger,
    description="cloning",
    checkpoint_minutes=config.training.checkpoint_minutes,
    metric_prefix="behaviour_cloning",
  )
  loss_tasks = over_tasks(lambda task, _: _losses(policy, *task))
  result = {}
  for name, split in (("train", data), ("heldout", heldout)):
    losses = jax.device_get(loss_tasks((state.ema_params, split, task_keys(test_key, num_tasks)), None))
    result[f"loss_{name}"] = dict(zip(demos.tasks, losses.tolist(), strict=True))
  logger.write(
    cloning.updates,
    {f"behaviour_cloning/final/{n}": sum(v.values()) / num_tasks for n, v in result.items()},
  )
  checkpoint.save_params(workdir / "params", state.ema_params)
  write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")


def _losses(policy: Policy, network: Params, data: train.CloningData, key: jax.Array) -> jax.Array:
  batch_key, loss_key = jax.random.split(key)
  return policy.cloning_loss(network, *train.sample_batch(data, batch_key, 1024, policy.chunk), loss_key)


def load_policy(artifact: Artifact) -> tuple[Policy, Params]:
  """The cloned policy, and {"base", "tuned"} (the same network) stacked over tasks.

  Raises:
    CheckpointError: made by another version of wam_jax.
  """
  network = checkpoint.load_params(artifact.path / "params")
  return described_policy(artifact, network), {"base": network, "tuned": network}


def described_policy(artifact: Artifact, network: Params) -> Policy:
  """The policy of a stacked network by the config saved beside it.

  Raises:
    CheckpointError: made by another version of wam_jax.
  """
  try:
    return make_policy(artifact.config, feature_size(network))
  except KeyError as error:
    raise checkpoint.CheckpointError(
      f"{artifact.path}: its config has no {error}: made by another version of wam_jax; train it again"
    ) from error
