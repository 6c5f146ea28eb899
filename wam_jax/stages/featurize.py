"""Filters the demos through the frozen world model, once, for cloning and the classifier."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.models import load_world_model
from wam_jax.data import calvin, play_successes, windows
from wam_jax.data.calvin import dataset_path
from wam_jax.data.features import DemoFeatures, save_features
from wam_jax.data.frames import Frames
from wam_jax.nn.world_model import WorldModel
from wam_jax.running.stage_run import StageRun
from wam_jax.training import world_model as wm
from wam_jax.types import Batch, Params, features

DEMOS_PER_CALL = 16


def run(stage: StageRun) -> None:
  """Writes `train.npz` and `heldout.npz` (`data.features.DemoFeatures`), with failed takes `failed.npz` and
  `heldout_failed.npz`, and with successes of play that predicates find `play.npz`."""
  config, inputs, workdir = stage.config, stage.inputs, stage.workdir
  model, params = load_world_model(inputs["world_model"])
  params = jax.device_put(params)
  root = dataset_path(inputs["collect"])
  key = jax.random.fold_in(jax.random.key(config.seed), 2)
  splits = (
    ("train", "training", config.data.demos_per_task),
    ("heldout", "validation", config.data.heldout_demos_per_task),
  )

  def featurized(name: str, folder: str, limit: int, key: jax.Array) -> DemoFeatures:
    demos = calvin.read_demos(
      root / folder, config.tasks, limit=limit, image_size=model.image_size, workers=config.env.workers
    )
    with stage.logger.progress(len(demos.annotations), f"features of {name} demos") as progress:
      return filter_demos(model, params, demos, config.tasks, key, progress)

  for i, (name, folder, limit) in enumerate(splits):
    save_features(workdir / f"{name}.npz", featurized(name, folder, limit, jax.random.fold_in(key, i)))
  count, heldout = config.data.failed_takes_per_task, config.data.heldout_failed_takes_per_task
  if count:
    takes = featurized("failed", calvin.FAILED, count + heldout, jax.random.fold_in(key, len(splits)))
    save_features(workdir / "failed.npz", takes.rows(slice(count)))
    save_features(workdir / "heldout_failed.npz", takes.rows(slice(count, None)))
  if config.data.play_successes_per_task and config.data.play_successes_by == "predicates":
    names, frames = _play_successes(stage, root / "training", model.image_size)
    windows_of_play = calvin.as_split(names, frames)
    with stage.logger.progress(len(names), "features of play's successes") as progress:
      play_key = jax.random.fold_in(key, len(splits) + 1)
      takes = filter_demos(model, params, windows_of_play, config.tasks, play_key, progress)
    save_features(workdir / "play.npz", takes)


def _play_successes(stage: StageRun, folder: pathlib.Path, image_size: int) -> tuple[list[str], Frames]:
  """Tasks of the windows of play in which one got done, and their frames, each window an episode."""
  config, workers = stage.config, stage.config.env.workers
  names, spans = play_successes.find_successes(
    folder, config.tasks, config.data.play_successes_per_task, workers
  )
  stage.logger.info(
    f"done in play: {', '.join(f'{task} {names.count(task)} times' for task in config.tasks)}"
  )
  frames = calvin.read_windows(folder, spans, image_size, workers)
  frames = dataclasses.replace(frames, success=None)  # what was recorded may be of another skill
  return names, calvin.with_success(folder, frames, names)


def make_filter(model: WorldModel) -> Callable[[Params, Batch, jax.Array], jax.Array]:
  """Compiled: (parameters, windows [B, T, ...], key of the posterior's samples) -> features [B, T, F]."""
  return jax.jit(lambda params, batch, key: features(wm.filter_windows(model, params, batch, key)[1]))


def filter_demos(
  model: WorldModel,
  params: Params,
  demos: calvin.Split,
  tasks: tuple[str, ...],
  key: jax.Array,
  progress: Any = None,
) -> DemoFeatures:
  """Features of annotated windows, each filtered from its own first frame.

  Args:
    model: the networks.
    params: the frozen world model's.
    demos: at least one window of each task; their frames say whether it is done.
    tasks: K names.
    key: for the posterior's samples.
    progress: gets `update(n)`.

  Returns:
    DemoFeatures [K, M, T, ...], padded to the longest window and to the largest number of demos of a task.
  """
  labels = demos.frames.success
  if labels is None:
    raise ValueError("demos: frames without success")
  spans = {task: demos.windows(task) for task in tasks}
  length = max(end - start for task_spans in spans.values() for start, end in task_spans)
  most = max(len(task_spans) for task_spans in spans.values())
  shape = (len(tasks), most, length)
  feature = np.zeros((*shape, model.feature_size), np.float32)
  action = windows.rest_actions(demos.frames.embodiment, *shape)
  success, mask = np.zeros(shape, bool), np.zeros(shape, bool)

  filtered = make_filter(model)
  rows = [(k, m, window) for k, task in enumerate(tasks) for m, window in enumerate(spans[task])]
  for first in range(0, len(rows), DEMOS_PER_CALL):
    part = rows[first : first + DEMOS_PER_CALL]
    padded = part + [part[-1]] * (DEMOS_PER_CALL - len(part))  # one shape, one compilation
    batch = windows.episode_batch(demos.frames, [window for _, _, window in padded], length)
    out = filtered(params, jax.tree.map(jnp.asarray, batch), jax.random.fold_in(key, first))
    for row, (k, m, (start, end)) in enumerate(part):
      n = end - start
      feature[k, m, :n] = np.asarray(out[row, :n])
      action[k, m, :n] = batch.action[row, :n]
      success[k, m, :n] = labels[start:end]
      mask[k, m, :n] = True
    if progress is not None:
      progress.update(len(part))
  return DemoFeatures(feature=feature, action=action, success=success, mask=mask, tasks=tuple(tasks))
