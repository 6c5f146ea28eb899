"""Does WAM do what the paper says, on the simulator that it says it of? The published recipe but for size.

  python -m wam_jax.main --config=experiments/calvin_reproduction.py:small --config.env.calvin_root=calvin_env
  … --config.study.arms=wam --config.study.seeds=10  # of it, one piece
  … --config.stage=plan                              # says what is there and what is not

Writes docs/results/calvin_reproduction_small/. What was expected before the first run, and which seeds
share frames: design.md there.
"""

from ml_collections import ConfigDict

from wam_jax.config.arms import MAIN
from wam_jax.experiments import reproduction


def get_config(preset: str = "auto") -> ConfigDict:
  c = reproduction.get_config(preset)
  c.experiment, c.env.name, c.study.arms = "calvin_reproduction", "calvin", MAIN
  c.study.page = ""  # next to the results
  # Pictures are dear: no curve of real success over PPO's iterations, which needs 800 more episodes an arm.
  c.ppo.eval_every, c.data.heldout_starts_per_task = 0, reproduction.EPISODES
  return c
