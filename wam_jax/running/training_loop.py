"""The loop around jitted updates: keys, progress, metrics, checkpoints, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from wam_jax.host import processes, stopping
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.checkpoint import Checkpointer
from wam_jax.training import sharding
from wam_jax.training.calls import call_end

# Whether arrays may travel between host and device unasked inside updates; tests say disallow.
TRANSFERS = os.environ.get("WAM_JAX_TRANSFER_GUARD", "allow")


class TrainingError(Exception):
  """Training cannot go on, for instance because a loss is not finite."""


class NotFiniteError(TrainingError):
  """Raised by an `update` that has left the state it was given alive: that state is saved."""


@dataclasses.dataclass
class Clock:
  """Where the time of training goes, from one metric line to the next.

  Attributes:
    data: seconds spent waiting for data.
    compute: seconds spent in updates, without that.
    checkpoint: seconds that checkpoints kept the updates waiting.
  """

  data: float = 0.0
  compute: float = 0.0
  checkpoint: float = 0.0
  _began: float = dataclasses.field(default_factory=time.monotonic)

  @contextlib.contextmanager
  def count(self, name: str) -> Iterator[None]:
    """Adds the time spent inside."""
    began = time.monotonic()
    try:
      yield
    finally:
      setattr(self, name, getattr(self, name) + time.monotonic() - began)

  def metrics(self, updates: int, frames: int) -> dict[str, float]:
    """Per update; then starts from zero again.

    Args:
      updates: since the last line.
      frames: of an update; 0: not reported.

    Returns:
      `time/update`, `time/data`, `time/compute`, `time/checkpoint` in seconds per update, and
      `speed/updates_per_second`, `speed/frames_per_second`.
    """
    now = time.monotonic()
    elapsed = max(now - self._began, 1e-9)
    out = {name: getattr(self, name) / updates for name in ("data", "compute", "checkpoint")}
    out = {f"time/{name}": value for name, value in (("update", elapsed / updates), *out.items())}
    out["speed/updates_per_second"] = updates / elapsed
    if frames:
      out["speed/frames_per_second"] = updates * frames / elapsed
    self.data = self.compute = self.checkpoint = 0.0
    self._began = now
    return out


def memory_metrics() -> dict[str, float]:
  """GiB that the process and, where the backend tells, its fullest device hold."""
  out = {"memory/process": resident_bytes() / 2**30}
  stats = [device.memory_stats() for device in jax.local_devices() if device.platform != "cpu"]
  device_stats = [memory for memory in stats if memory and "bytes_in_use" in memory]
  if device_stats:
    out["memory/device"] = max(memory["bytes_in_use"] for memory in device_stats) / 2**30
    out["memory/device_peak"] = max(memory.get("peak_bytes_in_use", 0) for memory in device_stats) / 2**30
    if all(memory.get("bytes_limit") for memory in device_stats):
      out["memory/device_share"] = max(
        memory["bytes_in_use"] / memory["bytes_limit"] for memory in device_stats
      )
  return out


def resident_bytes() -> int:
  """Memory that this process holds now; 0 where the system does not tell."""
  try:
    fields = pathlib.Path("/proc/self/statm").read_text().split()
  except OSError:
    return 0
  return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def train_loop(
  stage: StageRun,
  state: Any,
  update: Callable[[Any, jax.Array, int], tuple[Any, dict[str, jax.Array]]],
  *,
  total: int,
  per_call: int,
  key: jax.Array,
  description: str,
  prefix: str,
  mesh: Mesh | None = None,
  frames: int = 0,
  clock: Clock | None = None,
  best: tuple[str, Literal["max", "min"]] = ("loss", "min"),
  watch: Callable[[int, Any], None] | None = None,
  stops: Sequence[int] = (),
) -> Any:
  """Runs updates until `state.step` is `total`, from the newest checkpoint if there is one.

  2N updates equal N updates, an interruption and N more to the bit, because the key of a call is
  `fold_in(key, state.step)` and a checkpoint is only written between calls. SIGTERM and SIGINT are answered
  between calls: all processes save the same step and stop.

  Args:
    stage: its folder takes checkpoints, `ckpt/`, and with `config.profile` a trace, `profile/`; its logger
      gets the metrics, one line per call.
    state: pytree with an integer `step`, scalar or one per task; its buffers may be donated by `update`.
    update: (state, key, num) -> (state, metrics): `num` updates in one dispatch, and metrics either [num],
      one number per update, or their means. `num` is `per_call`, smaller only before `stops` and at the
      end (a static argument).
    total: updates in all.
    per_call: updates per dispatch; also the spacing of metric lines.
    key: random key of this stage and seed.
    description: shown next to the bar.
    prefix: put in front of each metric's name, with a slash.
    mesh: devices of the run. The state is put on all of them; the callbacks and the caller get it on one.
    frames: that an update works on, for the speed.
    clock: that `update` counts its waiting for data with.
    best: metric by which a checkpoint is the best one, which is kept along with the newest.
    watch: called with (step, state) after each call, and before the first update with step 0 (not when a run
      goes on); in the first process, for work between programs.
    stops: updates that a call must end at, so that `watch` sees their state.

  Returns:
    The state after `total` updates.

  Raises:
    TrainingError: a metric is not finite. Says which, at which update, and where the last checkpoint is.
    CheckpointError: no checkpoint is good, they are of another structure, or one cannot be written.
    Stopped: after a signal, when the state is saved.
  """
  config, logger = stage.config, stage.logger
  clock = clock or Clock()
  state = sharding.put(state, mesh)
  first = processes.is_first()
  local = sharding.on_this_process if mesh is not None else lambda state: state
  folder, keep = stage.workdir / "ckpt", config.training.keep_checkpoints
  with Checkpointer(folder, keep, best[1], logger.info) as checkpointer, stopping.deferred():
    if checkpointer.latest_step() is not None:
      back = config.training.restore == "best"
      state = checkpointer.go_back_to_best(state) if back else checkpointer.restore(state)
      logger.info(f"resumed at update {_step(state)} of {total}")
    step = _step(state)
    logger.truncate_after(step or -1, prefix=f"{prefix}/")
    if step == 0 and watch is not None and first:
      watch(step, local(state))
    saved, score = time.monotonic(), None
    profiler = _Profiler(stage.workdir / "profile" if config.profile and first else None, logger)
    clock.metrics(1, 0)  # from here
    tasks = np.size(state.step)
    note = f"{tasks} tasks side by side" if tasks > 1 else ""
    with logger.progress(total, description, initial=step, note=note) as progress, profiler:
      while step < total:
        num = call_end(step, total, per_call, stops) - step
        waited = clock.data
        try:
          call_key = jax.random.fold_in(key, step)
          with clock.count("compute"), profiler.call(), jax.transfer_guard(TRANSFERS):
            state, metrics = update(state, call_key, num)
            metrics = jax.device_get(metrics)
        except NotFiniteError as error:
          checkpointer.save(step, state)
          checkpointer.wait()
          raise TrainingError(
            f"update {step + 1}: {error}; the last good state is {checkpointer.path / str(step)}. The same "
            "command would take the same step again: lower the learning rates (in another workdir), or look "
            "for broken data."
          ) from None
        clock.compute -= clock.data - waited
        step += num
        values = _finite(metrics, step, checkpointer)
        score = values.get(best[0])
        measured = clock.metrics(num, frames) | memory_metrics()
        logger.write(step, {f"{prefix}/{name}": value for name, value in (values | measured).items()})
        progress.update(num)
        if watch is not None and first:
          watch(step, local(state))
        due = step < total and time.monotonic() - saved > 60 * config.training.checkpoint_minutes
        # The clocks and signals of processes differ; the first one's clock counts, and any signal does.
        votes = processes.gather([due, stopping.requested()])
        signum = max(vote[1] for vote in votes)
        if votes[0][0] or signum:
          with clock.count("checkpoint"):
            checkpointer.save(step, state, score)
          saved = time.monotonic()
        if signum and step < total:
          checkpointer.wait()
          raise stopping.Stopped(signum)
    checkpointer.save(step, state, score)
    checkpointer.wait()
  return local(state)


class _Profiler:
  """Records the calls after the first of this process, which compiles; a context that ends the recording."""

  CALLS = 2  # recorded

  def __init__(self, folder: pathlib.Path | None, logger: Logger):
    self._folder, self._logger, self._seen, self._runs = folder, logger, 0, False

  @contextlib.contextmanager
  def call(self) -> Iterator[None]:
    """Around one call."""
    self._seen += 1
    if self._folder is not None and self._seen == 2:
      jax.profiler.start_trace(self._folder)
      self._runs = True
    yield
    if self._seen == 1 + self.CALLS:
      self._stop()

  def _stop(self) -> None:
    if self._runs:
      jax.profiler.stop_trace()
      self._runs = False
      self._logger.info(f"trace of {self._seen - 1} calls: tensorboard --logdir={self._folder}")

  def __enter__(self) -> _Profiler:
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()


def _step(state: Any) -> int:
  """The state's own count; states stacked over tasks hold it once per task."""
  return int(np.ravel(state.step)[0])


def _finite(metrics: dict[str, np.ndarray], step: int, checkpointer: Checkpointer) -> dict[str, float]:
  """Means of the metrics of the call that ended at `step`; raises if one is not finite."""
  failures: dict[str, int] = {}  # metric -> the update that it failed at
  for name, value in metrics.items():
    per_update = np.atleast_1d(value)
    bad = np.flatnonzero(~np.isfinite(per_update))
    if len(bad):
      failures[name] = step - len(per_update) + int(bad[0]) + 1
  if failures:
    update = min(failures.values())
    names = [name for name in failures if failures[name] == update]
    # What is derived from a loss that failed says nothing new.
    names = [name for name in names if name.startswith("loss/") and name != "loss/total"] or names
    terms = ", ".join(f"{name} is {_at(metrics[name], update - step)}" for name in names)
    saved = checkpointer.latest_step()
    note = "no checkpoint was written yet"
    if saved is not None:
      note = f"the last good checkpoint is {checkpointer.path / str(saved)}"
    raise TrainingError(
      f"update {update}: {terms}; {note}. The same command would take the same steps again: lower the "
      "learning rate or grad_clip (in another workdir), or look for broken data."
    )
  return {name: float(np.mean(value)) for name, value in metrics.items()}


def _at(value: np.ndarray, back: int) -> float:
  """Value of the update `back` (at most 0) from the end of a call."""
  return float(np.atleast_1d(value)[back - 1])
