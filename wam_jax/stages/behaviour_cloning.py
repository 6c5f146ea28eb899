"""Clones the demos: one diffusion policy per task, all tasks side by side."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from wam_jax.data.features import load_features
from wam_jax.io import checkpoint
from wam_jax.io.artifact import Artifact, write_text
from wam_jax.io.logger import Logger
from wam_jax.nn.policy import DiffusionPolicy
from wam_jax.stages.training_loop import train_loop
from wam_jax.train import behaviour_cloning as train
from wam_jax.train.state import make_optimizer, make_train_state
from wam_jax.train.tasks import make_task_update, over_tasks, task_keys
from wam_jax.types import Params

REQUIRES = ("featurize",)
CONFIG = ("seed", "tasks", "behaviour_cloning")


def make_policy(config: Mapping[str, Any], feature_size: int) -> DiffusionPolicy:
  """Policy of a whole config (a ConfigDict or an artifact's plain dict)."""
  cloning, ppo = config["behaviour_cloning"], config["ppo"]
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


def feature_size(network: Params) -> int:
  """F that a stacked noise network was made for."""
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


def _losses(policy: DiffusionPolicy, network: Params, data: train.CloningData, key: jax.Array) -> jax.Array:
  batch_key, loss_key = jax.random.split(key)
  return train.bc_loss(policy, network, *train.sample_batch(data, batch_key, 1024, policy.chunk), loss_key)


def load_policy(artifact: Artifact) -> tuple[DiffusionPolicy, Params]:
  """The cloned policy, and {"base", "tuned"} (the same network) stacked over tasks."""
  network = checkpoint.load_params(artifact.path / "params")
  return make_policy(artifact.config, feature_size(network)), {"base": network, "tuned": network}
