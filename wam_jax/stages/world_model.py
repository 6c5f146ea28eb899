"""Trains the world model on all frames of the training split."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from wam_jax.data import calvin, windows
from wam_jax.io import checkpoint
from wam_jax.io.artifact import Artifact
from wam_jax.io.logger import Logger
from wam_jax.nn.world_model import WorldModel, make_world_model
from wam_jax.stages.collect import dataset_path
from wam_jax.stages.training_loop import train_loop
from wam_jax.train import state as train_state
from wam_jax.train import world_model as train
from wam_jax.types import Params

REQUIRES = ("collect",)
CONFIG = ("seed", "world_model", "env.image_size")


def run(config: Any, inputs: dict[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Writes `params`; the networks are described by the config saved beside them."""
  w = config.world_model
  folder = dataset_path(inputs["collect"]) / "training"
  frames = calvin.read_frames(
    folder, image_size=config.env.image_size, workers=config.env.workers, progress=logger.progress
  )
  store = windows.make_store(frames)
  del frames
  model = make_world_model(w, config.env.image_size)
  optimizer = train_state.make_optimizer(
    w.learning_rate,
    w.updates,
    warmup_updates=w.warmup_updates,
    final_scale=w.final_learning_rate_scale,
    weight_decay=w.weight_decay,
    grad_clip=w.grad_clip,
    eps=w.adam_eps,
  )
  init_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
  params = train.init_params(model, init_key, windows.PROPRIO)
  size = sum(x.size for x in jax.tree.leaves(params))
  logger.info(f"world model: {size / 1e6:.1f} M parameters, {store.action.shape[0]:,} frames")
  update = train.make_update(
    model, w, optimizer, lambda store, key: windows.sample_batch(store, key, w.batch_size, w.sequence_length)
  )
  state = train_loop(
    state=train_state.make_train_state(params, optimizer),
    update=lambda state, key, num: update(state, store, key, num),
    total=w.updates,
    per_call=config.training.log_every,
    key=train_key,
    workdir=workdir,
    logger=logger,
    description="world model",
    checkpoint_minutes=config.training.checkpoint_minutes,
    metric_prefix="world_model",
  )
  checkpoint.save_params(workdir / "params", state.params)


def load_world_model(artifact: Artifact) -> tuple[WorldModel, Params]:
  """The model that an artifact describes, and its parameters."""
  model = make_world_model(_Attributes(artifact.config["world_model"]), artifact.config["env"]["image_size"])
  return model, checkpoint.load_params(artifact.path / "params")


class _Attributes(dict):
  __getattr__ = dict.__getitem__
