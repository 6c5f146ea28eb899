"""Configuration: fields, presets, checks, and the chain of stages. No JAX here.

A config is made by an experiment file (`wam_jax/experiments/*.py`), changed on the command line
(`--config.world_model.updates=500`), and then checked and completed once by `finalize`.
"""

from wam_jax.config.chain import STAGES
from wam_jax.config.checks import ConfigError, Problem
from wam_jax.config.finalize import (
  apply_overrides,
  command,
  device_problems,
  finalize,
  flag,
  flatten,
  settings_read,
  split_overrides,
)
from wam_jax.config.presets import (
  PRESET_CHANGES,
  default_config,
  detect_preset,
  experiment_file,
  load_experiment,
  own_experiments,
  preset_config,
)
from wam_jax.config.surroundings import robot_of_data
from wam_jax.envs.tasks import TASKS

__all__ = [
  "PRESET_CHANGES",
  "STAGES",
  "TASKS",
  "ConfigError",
  "Problem",
  "apply_overrides",
  "command",
  "default_config",
  "detect_preset",
  "device_problems",
  "experiment_file",
  "finalize",
  "flag",
  "flatten",
  "load_experiment",
  "own_experiments",
  "preset_config",
  "robot_of_data",
  "settings_read",
  "split_overrides",
]
