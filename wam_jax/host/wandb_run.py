"""Metrics to Weights & Biases too, where `training.wandb_project` asks for it. The only importer of wandb.

One W&B run for each work folder, which keeps its id. What goes wrong here is reported once and stops nothing.
What W&B's environment variables say (WANDB_MODE, WANDB_ENTITY, WANDB_NAME, WANDB_DIR, ...) holds.
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
  """A run of a work folder at W&B; a context that ends it.

  Args:
    project: at W&B.
    workdir: of the run.
    config: of the run, sent along.
    warn: called with the text when W&B does not work, once.
  """

  def __init__(
    self, project: str, workdir: pathlib.Path, config: Mapping[str, Any], warn: Callable[[str], None]
  ):
    self._warn = warn
    self._groups: set[str] = set()
    self._run: Any = None
    try:
      import wandb

      defaults: dict[str, Any] = {"name": str(workdir), "dir": str(workdir)}
      self._run = wandb.init(
        project=project,
        id=_run_id(workdir / ID_FILE),
        resume="allow",
        config=dict(config),
        # console: it would take stdout from the live view, and send its pictures.
        settings={"console": "off", "finish_timeout": FINISH_SECONDS},
        **{key: value for key, value in defaults.items() if f"WANDB_{key.upper()}" not in os.environ},
      )
    except Exception as error:
      self._give_up(error)

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
      groups = {name.partition("/")[0] for name in metrics}
      for group in groups - self._groups:
        self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._groups.add(group)
      self._run.log({**metrics, **{f"{group}/step": step for group in groups}})
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
        run.finish(exit_code=int(kind is not None))
    except Exception as problem:
      self._give_up(problem)

  def _give_up(self, error: Exception) -> None:
    run, self._run = self._run, None
    if run is not None:  # else W&B ends it when Python ends, and may wait
      with contextlib.suppress(Exception):
        run.finish(exit_code=1)
    self._warn(
      f"W&B: {type(error).__name__}: {error}; the run goes on without. WANDB_MODE=offline needs no network"
    )


def _run_id(path: pathlib.Path) -> str:
  """The id that the work folder keeps; makes one if there is none."""
  if path.exists():
    return read_text(path).strip()
  new = secrets.token_hex(8)
  with open_file(path, "w", encoding="utf-8") as file:
    file.write(new + "\n")
  return new
