"""WAM on LeRobot datasets of any robot: docs/guides/lerobot.md.

  python -m wam_jax.main --config=experiments/lerobot_wam.py:demo \\
    --config.data.path=my_dataset --config.tasks=stack_cups

Trains on what was recorded; no failed takes are expected. Preset small differs from demo only in twice as
many PPO iterations here.
"""

from ml_collections import ConfigDict

from wam_jax import config


def get_config(preset: str = "auto") -> ConfigDict:
  c = config.preset_config(preset, experiment="lerobot_wam")
  c.data.source = "lerobot"
  c.data.update(demos_per_task=50, failed_takes_per_task=0, play_successes_per_task=0)
  c.ppo.failed_starts = 0.0
  return c
