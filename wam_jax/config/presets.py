"""Presets: what each changes of the defaults, and which one a machine should take; experiments by name."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from wam_jax.config.checks import ConfigError, Problem, did_you_mean
from wam_jax.config.fields import FIELDS, PRESETS
from wam_jax.host.machine import available_cores, find_accelerator
from wam_jax.host.regular_files import check_file

# Differences of each preset from `default_config`.
_DEMO: dict[str, Any] = {
  "data.source": "embedded",
  "data.play_frames": 24_000,
  "data.play_episode_frames": 512,
  "data.heldout_demos_per_task": 30,
  "data.failed_takes_per_task": 60,
  "data.heldout_failed_takes_per_task": 30,
  "data.wrist_error": 0.1,
  "data.heldout_play_frames": 4_000,
  "judge.horizons": (1, 5, 10, 20, 40),
  "judge.windows": 64,
  "judge.probe_frames": 6_000,
  "data.heldout_starts_per_task": 50,
  "world_model.vision": "patch",
  "world_model.depth": 16,
  "world_model.embed": 384,
  "world_model.deter": 256,
  "world_model.stoch": 16,
  "world_model.classes": 16,
  "world_model.hidden": 256,
  "world_model.inverse_dynamics_hidden": 256,
  "world_model.embedding_image_weight": 1.0,
  "world_model.proprio": "latent",
  "world_model.robot_obs_weight": 1000.0,
  "world_model.failed_takes": True,
  "world_model.memory_frames": 64,
  "world_model.open_loop_share": 0.5,
  "world_model.decode_fraction": 0.25,
  "world_model.batch_size": 16,
  "world_model.sequence_length": 24,
  "world_model.updates": 1_500,
  "world_model.learning_rate": 6e-4,
  "world_model.warmup_updates": 50,
  "world_model.final_learning_rate_scale": 0.1,
  "behaviour_cloning.hidden": 256,
  "behaviour_cloning.batch_size": 128,
  "behaviour_cloning.updates": 3_000,
  "behaviour_cloning.learning_rate": 1e-3,
  "behaviour_cloning.final_learning_rate": 1e-5,
  "classifier.embed": (256, 128),
  "classifier.hidden": 256,
  "classifier.updates": 800,
  "classifier.ensemble": 3,
  "ppo.iterations": 24,
  "ppo.dreams": 50,
  "ppo.horizon": "terminal",
  "ppo.epochs": 4,
  "ppo.minibatches": 2,
  "ppo.start_frames": 0,
  "ppo.failed_starts": 0.3,
  "ppo.prior_temperature": 1.4,
  "ppo.gamma": 0.97,
  "ppo.eval_every": 0,
  "ppo.actor_learning_rate": 1e-4,
  "evaluate.episodes": 50,
  "evaluate.imagined_episodes": 100,
  "training.log_every": 10,
}
PRESET_CHANGES: dict[str, dict[str, Any]] = {
  "demo": _DEMO,
  # The demo with a fifth of the demonstrations, and what play does by itself.
  "small": {
    **_DEMO,
    "data.demos_per_task": 10,
    "data.play_frames": 36_000,
    "data.play_successes_per_task": 100,
    "ppo.iterations": 48,
  },
  "paper": {},
}


def default_config() -> ConfigDict:
  """The `paper` preset: published sizes. The other presets are differences from it."""
  values: dict[str, Any] = {}
  for path, field in FIELDS.items():
    group, _, name = path.rpartition(".")
    (values.setdefault(group, {}) if group else values)[name] = field.default
  return ConfigDict(values)


def own_experiments() -> dict[str, pathlib.Path]:
  """The files of `wam_jax/experiments`, by name."""
  files = sorted((pathlib.Path(__file__).parents[1] / "experiments").glob("[!_]*.py"))
  return {file.stem: file for file in files}


def experiment_file(value: str) -> str:
  """The value of --config, with the path of one of our own experiments where only its name was given.

  Args:
    value: PATH[:preset]. Where there is no such file, experiments/NAME.py or NAME is the experiment that is
      installed with the package, so that commands work outside of a checkout too.
  """
  path, colon, preset = value.partition(":")
  name = path.removeprefix("experiments/").removesuffix(".py")
  packaged = None if os.path.exists(path) else own_experiments().get(name)
  return f"{packaged}{colon}{preset}" if packaged else value


def load_experiment(value: str) -> ConfigDict:
  """Runs an experiment file.

  Args:
    value: PATH[:preset], as `experiment_file` gives it.

  Returns:
    What its `get_config` returns, given the preset if there is one.

  Raises:
    ConfigError: no such file, or it does not parse, raises, exits, or has no `get_config` that returns a
      config. Names file and line.
  """
  path, colon, preset = value.partition(":")
  try:
    check_file(path)
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
    problem = f"{path or 'its path is empty'}: {getattr(error, 'strerror', None) or error}"
    fix = f"give the path of a file, or one of {', '.join(own_experiments())}"
    raise ConfigError(
      [Problem("--config", value, "an experiment file[:preset]", f"{problem}; {fix}")]
    ) from None
  loader = importlib.machinery.SourceFileLoader("experiment", path)
  module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(loader.name, loader, origin=path))
  sys.modules[loader.name] = module
  line: int | None = None
  try:
    loader.exec_module(module)
    line = getattr(getattr(module.get_config, "__code__", None), "co_firstlineno", None)
    config = module.get_config(*([preset] if colon else []))
    if isinstance(config, ConfigDict):
      return config
    returned = "nothing" if config is None else f"a {type(config).__name__}"
    reason = f"get_config returns {returned}, not a ConfigDict"
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:  # it is a program: it can raise anything
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    frames += [error.lineno] if isinstance(error, SyntaxError) and error.filename == path else []
    line = frames[-1] if frames else line
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    reason = " ".join(f"{type(error).__name__}: {text}".split()).rstrip(":")
  where = path if line is None else f"{path}, line {line}"
  rule = "an experiment file, whose get_config(preset) returns a config"
  raise ConfigError([Problem("--config", value, rule, f"mend {where}: {reason}")])


def preset_config(preset: str = "auto", experiment: str = "calvin_wam") -> ConfigDict:
  """The config of a preset, before overrides.

  Args:
    preset: auto, or one of PRESETS.
    experiment: name of the experiment, part of the default work folder.

  Raises:
    ConfigError: unknown preset.
  """
  reason = "asked for"
  if preset == "auto":
    preset, reason = detect_preset()
  if preset not in PRESETS:
    fix = did_you_mean(preset, PRESETS) or f"experiments/{experiment}.py:demo"
    raise ConfigError([Problem("preset", preset, f"one of auto, {', '.join(PRESETS)}", fix)])
  config = default_config()
  config.experiment, config.preset, config.preset_reason = experiment, preset, reason
  config.update_from_flattened_dict(PRESET_CHANGES[preset])
  return config


def detect_preset(
  environ: Mapping[str, str] = os.environ, root: str | os.PathLike[str] = "/"
) -> tuple[str, str]:
  """Chooses a preset from hardware and data, without importing JAX.

  Args:
    environ: environment variables.
    root: where to look for device nodes; for tests.

  Returns:
    (preset, why).
  """
  device, why_not, fix = find_accelerator(environ, root)
  cores = available_cores()
  if not device:
    note = f"{why_not} ({fix})" if fix else why_not
    return "demo", f"{note}; {cores} CPU core{'s' if cores > 1 else ''}"
  calvin_data = environ.get("CALVIN_DATA", "")
  if calvin_data and (pathlib.Path(calvin_data) / "training").is_dir():
    return "paper", f"{device} and CALVIN's data in {calvin_data}"
  return "demo", f"{device}, and no CALVIN data ($CALVIN_DATA names no folder with training/)"
