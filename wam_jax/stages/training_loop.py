"""The loop around jitted updates: keys, progress, metrics, checkpoints, resuming."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wam_jax.io.checkpoint import Checkpointer
from wam_jax.io.logger import Logger


class TrainingError(Exception):
  """Training cannot go on, for instance because a loss is not finite."""


class NotFiniteError(TrainingError):
  """Raised by an `update` that has left the state it was given alive: that state is saved."""


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
  started: Callable[[int, Any], None] | None = None,
  batch_done: Callable[[int, Any], None] | None = None,
  stops: Sequence[int] = (),
) -> Any:
  """Runs updates until `state.step` is `total`, from the newest checkpoint if there is one.

  2N updates equal N updates, an interruption and N more to the bit, because the key of a call is
  `fold_in(key, state.step)` and a checkpoint is only written between calls.

  Args:
    state: pytree with an integer `step`, scalar or one per task; its buffers may be donated by `update`.
    update: (state, key, num) -> (state, metrics): `num` updates in one dispatch, and metrics either [num],
      one number per update, or their means. `num` is `per_call`, smaller only before `stops` and at the
      end (a static argument).
    total: updates in all.
    per_call: updates per dispatch; also the spacing of metric lines.
    key: random key of this stage and seed.
    workdir: the stage's folder; checkpoints go to `ckpt/`.
    logger: gets the metrics, one line per call.
    description: shown beside the bar.
    checkpoint_minutes: time between checkpoints.
    metric_prefix: put in front of each metric's name, with a slash.
    on_metrics: called with (step, metrics) after each call.
    started: called with (0, state) before the first update; not when a run goes on.
    batch_done: called with (step, state) after each call, for work between programs.
    stops: updates that a call must end at, so that `batch_done` sees their state.

  Returns:
    The state after `total` updates.

  Raises:
    TrainingError: a metric is not finite. Says which, at which update, and where the last checkpoint is.
    CheckpointError: the checkpoint there is of another structure.
  """
  with Checkpointer(pathlib.Path(workdir) / "ckpt") as checkpointer:
    if checkpointer.latest_step() is not None:
      state = checkpointer.restore(state)
      logger.info(f"resumed at update {_step(state)} of {total}")
    step = _step(state)
    logger.truncate_after(step or -1, prefix=f"{metric_prefix}/")
    if step == 0 and started is not None:
      started(step, state)
    saved = time.monotonic()
    with logger.progress(total, description, initial=step) as progress:
      while step < total:
        num = min(per_call, *(stop - step for stop in (*stops, total) if stop > step))
        try:
          state, metrics = update(state, jax.random.fold_in(key, step), num)
        except NotFiniteError as error:
          checkpointer.save(step, state)
          raise TrainingError(
            f"update {step + 1}: {error}; the last good state is {checkpointer.path / str(step)}. The same "
            "command would take the same step again: lower the learning rates (in another workdir), or look "
            "for broken data."
          ) from None
        step += num
        values = _finite(jax.device_get(metrics), step, checkpointer)
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


def _finite(metrics: dict[str, np.ndarray], step: int, checkpointer: Checkpointer) -> dict[str, float]:
  """Means of the metrics of the call that ended at `step`; raises if one is not finite."""
  first: dict[str, int] = {}  # metric -> the update that it failed at
  for name, value in metrics.items():
    per_update = np.atleast_1d(value)
    bad = np.flatnonzero(~np.isfinite(per_update))
    if len(bad):
      first[name] = step - len(per_update) + int(bad[0]) + 1
  if first:
    update = min(first.values())
    names = [name for name in first if first[name] == update]
    # What is derived from a loss that failed says nothing new.
    names = [name for name in names if name.startswith("loss/") and name != "loss/total"] or names
    terms = ", ".join(f"{name} is {_at(metrics[name], update - step)}" for name in names)
    saved = checkpointer.latest_step()
    kept = "no checkpoint was written yet"
    if saved is not None:
      kept = f"the last good checkpoint is {checkpointer.path / str(saved)}"
    raise TrainingError(
      f"update {update}: {terms}; {kept}. The same command would take the same steps again: lower the "
      "learning rate or grad_clip (in another workdir), or look for broken data."
    )
  return {name: float(np.mean(value)) for name, value in metrics.items()}


def _at(value: np.ndarray, back: int) -> float:
  """Value of the update `back` (at most 0) from the end of a call."""
  return float(np.atleast_1d(value)[back - 1])
