"""Where does inverse dynamics help? Both world models on the same episodes under more and more distractors.

  python -m wam_jax.main --config=experiments/distractors.py:demo  # all that is not there yet, and the page
  … --config.study.arms=dial_3,dreamerv2_dial_3 --config.study.seeds=60  # of it, one level and seed
  … --config.stage=plan                                               # says what is there and what is not
  … --config.stage=report                                             # makes only the page

Writes docs/results/distractors_demo/ and docs/DISTRACTORS.md. What was expected before the first run:
docs/results/distractors_demo/design.md. Each arm: `dial_LEVEL` with inverse dynamics, `dreamerv2_dial_LEVEL`
without; they end with cloning.
"""

from ml_collections import ConfigDict

from wam_jax import config
from wam_jax.config.arms import DIAL
from wam_jax.experiments.reproduction import EPISODES, PLANNED


def get_config(preset: str = "auto") -> ConfigDict:
  c = config.preset_config(preset, experiment="distractors")
  c.update_from_flattened_dict(PLANNED)
  c.data.failed_takes_per_task = 0  # nothing here is made of them
  c.data.heldout_starts_per_task = c.evaluate.episodes = EPISODES
  c.world_model.snapshots = (c.world_model.updates // 4,)  # and the same after few updates
  c.study.seeds, c.study.arms = (60, 61, 62), DIAL
  if c.preset == "demo":
    c.study.page = "docs/DISTRACTORS.md"
  return c
