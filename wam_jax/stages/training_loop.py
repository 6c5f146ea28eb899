"""The loop around jitted updates: keys, progress, metrics, checkpoints, resuming."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wam_jax.io.checkpoint import Checkpointer
from wam_jax.io.logger import Logger


class TrainingError(Exception):
  """Training cannot go on, for instance because a loss is not finite."""


def train_loop(
  *,
  state: Any,
  update: Callable[[Any, jax.Array, int], tuple[Any, dict[str, jax.Array]]],
  total: int,
  per_call: int,
  key: jax.Array,
  workdir: pathlib.Path,
  logger: Logger,
  description: str,
  checkpoint_minutes: float,
  metric_prefix: str,
  on_metrics: Callable[[int, dict[str, float]], None] | None = None,
  batch_done: Callable[[int, Any], None] | None = None,
) -> Any:
  """Runs updates until `state.step` is `total`, from the newest checkpoint if there is one.

  2N updates equal N updates, an interruption and N more to the bit, because the key of a call is
  `fold_in(key, state.step)` and a checkpoint is only written between calls.

  Args:
    state: pytree with an integer `step`, scalar or one per task; its buffers may be donated by `update`.
    update: (state, key, num) -> (state, metrics): `num` updates in one dispatch and the means of
      scalar metrics over them. `num` is `per_call`, smaller only in the last call (a static argument).
    total: updates in all.
    per_call: updates per dispatch; also the spacing of metric lines.
    key: random key of this stage and seed.
    workdir: the stage's folder; checkpoints go to `ckpt/`.
    logger: gets the metrics, one line per call.
    description: shown beside the bar.
    checkpoint_minutes: time between checkpoints.
    metric_prefix: put in front of each metric's name, with a slash.
    on_metrics: called with (step, metrics) after each call.
    batch_done: called with (step, state) after each call, for work between programs.

  Returns:
    The state after `total` updates.

  Raises:
    TrainingError: a metric is not finite; the last checkpoint is from before.
    CheckpointError: the checkpoint there is of another structure.
  """
  with Checkpointer(pathlib.Path(workdir) / "ckpt") as checkpointer:
    if checkpointer.latest_step() is not None:
      state = checkpointer.restore(state)
      logger.info(f"resumed at update {_step(state)} of {total}")
    step = _step(state)
    logger.truncate_after(step, prefix=f"{metric_prefix}/")
    saved = time.monotonic()
    with logger.progress(total, description, initial=step) as progress:
      while step < total:
        num = min(per_call, total - step)
        state, metrics = update(state, jax.random.fold_in(key, step), num)
        step += num
        values = _finite({name: float(value) for name, value in jax.device_get(metrics).items()}, step)
        logger.write(step, {f"{metric_prefix}/{name}": value for name, value in values.items()})
        progress.update(num)
        if on_metrics is not None:
          on_metrics(step, values)
        if batch_done is not None:
          batch_done(step, state)
        if step < total and time.monotonic() - saved > 60 * checkpoint_minutes:
          checkpointer.save(step, state)
          saved = time.monotonic()
    checkpointer.save(step, state)
  return state


def _step(state: Any) -> int:
  """The state's own count; states stacked over tasks hold it once per task."""
  return int(np.ravel(state.step)[0])


def _finite(values: dict[str, float], step: int) -> dict[str, float]:
  for name, value in values.items():
    if not math.isfinite(value):
      raise TrainingError(f"{name} is {value} at update {step}; the last checkpoint is from before that")
  return values
