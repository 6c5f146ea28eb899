"""The comparison arm: `calvin_wam` with the inverse-dynamics loss switched off, nothing else changed.

  python -m wam_jax.main --config=experiments/calvin_dreamerv2.py

Published success after PPO: 79.8 % (mean over the skills, arXiv 2603.28955).
"""

from ml_collections import ConfigDict

from wam_jax import config


def get_config(preset: str = "auto") -> ConfigDict:
  c = config.preset_config(preset, experiment="calvin_dreamerv2")
  c.world_model.inverse_dynamics_weight = 0.0
  return c
