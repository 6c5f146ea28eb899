"""Runs from Python, as from the command line: settings, training, and what comes of it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from wam_jax import config as config_lib
from wam_jax.acting import load, models
from wam_jax.acting.dreaming import DreamingModel
from wam_jax.acting.policy import ActingPolicy
from wam_jax.config import ConfigError, Problem
from wam_jax.host import stopping, surroundings
from wam_jax.reporting.finished_run import RunError
from wam_jax.running import runner


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """What a run has left in its work folder.

  Attributes:
    workdir: the folder.
  """

  workdir: pathlib.Path

  @functools.cached_property
  def world_model(self) -> DreamingModel:
    """The world model; `imagine(observations, actions)` dreams.

    Raises:
      PolicyError: it is not finished.
      ArtifactError, CheckpointError: files that cannot be read.
    """
    with surroundings.own_settings():
      return DreamingModel(*models.load_world_model(load.find_world_model_of_run(self.workdir)))

  def policy(self, task: str | None = None, which: str | None = None, ddim_steps: int = 0) -> ActingPolicy:
    """The policy of a task; arguments, result and errors of `wam_jax.load_policy`."""
    return load.load_policy(self.workdir, task, which, ddim_steps=ddim_steps)

  @property
  def report(self) -> pathlib.Path | None:
    """The run's page; None without one."""
    page = self.workdir / "report" / "report.html"
    return page if page.exists() else None


def make_config(
  experiment: str | os.PathLike[str] = "experiments/calvin_wam.py", overrides: Mapping[str, Any] | None = None
) -> FrozenConfigDict:
  """The settings of a run, checked as the command line checks them.

  Args:
    experiment: as --config: the path of an experiment file, or the name of one of ours, and :PRESET.
    overrides: dotted path of a field -> its value, or the text that the command line would take.

  Raises:
    ConfigError: lists all that is wrong.
  """
  if not isinstance(experiment, str | os.PathLike):
    rule = "an experiment file[:preset]"
    raise ConfigError([Problem("experiment", experiment, rule, "for instance calvin_wam:demo")])
  if not isinstance(overrides, Mapping | None):
    rule = "a dict: name of a field -> its value"
    raise ConfigError([Problem("overrides", overrides, rule, 'for instance {"ppo.iterations": 30}')])
  config = config_lib.load_experiment(config_lib.experiment_file(os.fspath(experiment)))
  return config_lib.finalize(config, config_lib.apply_overrides(config, (overrides or {}).items()))


def train(config: ConfigDict | FrozenConfigDict, quiet: bool = False) -> TrainedRun:
  """Does what `python -m wam_jax.main` does: runs the stages that are not finished, goes on where it stopped.

  An interruption (Ctrl-C, or a notebook's) saves first, and raises KeyboardInterrupt; the same call goes on.

  Args:
    config: from `make_config`, or an experiment's, which is then checked; `config.stage` says what to do.
    quiet: print neither the plan nor the closing text.

  Raises:
    ConfigError: lists all that is wrong.
    StageError: the work folder holds results of other settings, is in use, or a stage's inputs are missing.
    ArtifactError, DatasetError, TrainingError, GateError and others of wam_jax: what to do about them.
  """
  if not isinstance(config, ConfigDict | FrozenConfigDict):
    raise ConfigError([Problem("config", config, "a config", "make one: wam_jax.make_config(...)")])
  finished = config_lib.finalize(config)
  if finished.study.seeds:
    rule = "empty: a study is many runs, started by python -m wam_jax.main"
    raise ConfigError([Problem("study.seeds", finished.study.seeds, rule, "leave it out, or set seed")])
  with surroundings.own_settings(), stopping.interruptible():
    runner.run(finished, quiet)
  return TrainedRun(pathlib.Path(finished.workdir).absolute())


def open_run(workdir: str | os.PathLike[str]) -> TrainedRun:
  """A run that is finished, or as far as it is; trains nothing.

  Raises:
    RunError: there is no run in this folder.
  """
  path = pathlib.Path(workdir).expanduser().absolute()
  if not any((path / stage / "DONE").exists() for stage in (*config_lib.STAGES, "online_ppo")):
    raise RunError(f"{path}: no stage of a run is finished here; wam_jax.train(config) makes a run")
  return TrainedRun(path)
