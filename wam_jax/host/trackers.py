"""Metrics to Weights & Biases or trackio too, where the config asks for it. The only importer of both.

One run for each work folder, which keeps its id. What goes wrong here is reported once and stops nothing.
What environment variables say (WANDB_MODE, WANDB_ENTITY, WANDB_NAME, WANDB_DIR, TRACKIO_DIR, ...) holds.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from wam_jax.host.regular_files import open_file, read_text

ID_FILE = "wandb_id.txt"  # in the work folder
# For the rest of the data at the end, if W&B does not answer. Shorter than what a stopped run is given; what
# was not sent stays in the work folder, for `wandb sync`.
FINISH_SECONDS = 8.0


class WandbRun:
  """A run of a work folder at W&B; a context that ends it. `TrackioRun` is the same at trackio.

  Args:
    project: at W&B.
    workdir: of the run.
    config: of the run, sent along.
    warn: called with the text when W&B does not work, once.
  """

  title, hint = "W&B", "WANDB_MODE=offline needs no network"

  def __init__(
    self, project: str, workdir: pathlib.Path, config: Mapping[str, Any], warn: Callable[[str], None]
  ):
    self._warn = warn
    self._groups: set[str] = set()
    self._run: Any = None
    try:
      self._run = self._open(project, workdir, dict(config), _run_id(workdir / ID_FILE))
    except Exception as error:
      self._give_up(error)

  def _open(self, project: str, workdir: pathlib.Path, config: dict[str, Any], run_id: str) -> Any:
    import wandb

    defaults: dict[str, Any] = {"name": str(workdir), "dir": str(workdir)}
    return wandb.init(
      project=project,
      id=run_id,
      resume="allow",
      config=config,
      # console: it would take stdout from the live view, and send its pictures.
      settings={"console": "off", "finish_timeout": FINISH_SECONDS},
      **{key: value for key, value in defaults.items() if f"WANDB_{key.upper()}" not in os.environ},
    )

  def _log(self, step: int, metrics: Mapping[str, float]) -> None:
    groups = {name.partition("/")[0] for name in metrics}
    for group in groups - self._groups:
      self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
      self._groups.add(group)
    self._run.log({**metrics, **{f"{group}/step": step for group in groups}})

  def _finish(self, run: Any, failed: bool) -> None:
    run.finish(exit_code=int(failed))

  def send(self, step: int, metrics: Mapping[str, float]) -> None:
    """Sends metrics of one step.

    Args:
      step: of the stage; the groups of metrics (`world_model/...`) count their steps each from 0.
      metrics: as they stand in `metrics.jsonl`. A stage that goes on from a checkpoint repeats the steps
        since; W&B keeps both, because what it was sent cannot be taken back.
    """
    if self._run is None:
      return
    try:
      self._log(step, metrics)
    except Exception as error:
      self._give_up(error)

  def __enter__(self) -> WandbRun:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    run, self._run = self._run, None
    try:
      if run is not None:
        self._finish(run, kind is not None)
    except Exception as problem:
      self._give_up(problem)

  def _give_up(self, error: Exception) -> None:
    run, self._run = self._run, None
    if run is not None:  # else W&B ends it when Python ends, and may wait
      with contextlib.suppress(Exception):
        self._finish(run, True)
    self._warn(f"{self.title}: {type(error).__name__}: {error}; the run goes on without. {self.hint}")


class TrackioRun(WandbRun):
  """A run of a work folder at trackio, which keeps it on this machine if it is not told otherwise."""

  title, hint = "trackio", "TRACKIO_DIR names a folder that it may write to"

  def _open(self, project: str, workdir: pathlib.Path, config: dict[str, Any], run_id: str) -> Any:
    import trackio

    name = f"{workdir} {run_id[:6]}"  # by which it finds the run again
    return trackio.init(project=project, name=name, config=config, resume="allow", embed=False)

  def _log(self, step: int, metrics: Mapping[str, float]) -> None:
    self._run.log(dict(metrics), step=step)  # each metric over its own steps

  def _finish(self, run: Any, failed: bool) -> None:
    run.finish()


TRACKERS = {"wandb": WandbRun, "trackio": TrackioRun}  # package -> its runs


def _run_id(path: pathlib.Path) -> str:
  """The id that the work folder keeps; makes one if there is none."""
  if path.exists():
    return read_text(path).strip()
  new = secrets.token_hex(8)
  with open_file(path, "w", encoding="utf-8") as file:
    file.write(new + "\n")
  return new
