"""WAM on the eight CALVIN skills.

  python -m wam_jax.main --config=experiments/calvin_wam.py            # preset chosen from the machine
  python -m wam_jax.main --config=experiments/calvin_wam.py:demo       # 2 CPU cores, 12 minutes or more
  python -m wam_jax.main --config=experiments/calvin_wam.py:paper      # published sizes

Published success after PPO: 92.8 % (mean over the skills, arXiv 2603.28955).
"""

from ml_collections import ConfigDict

from wam_jax import config


def get_config(preset: str = "auto") -> ConfigDict:
  return config.preset_config(preset, experiment="calvin_wam")
