"""WAM on eight tasks of Meta-World.

  pip install 'wam_jax[metaworld]'
  python -m wam_jax.main --config=experiments/metaworld_wam.py:demo

Each task has a scene of its own; one world model learns all of them: docs/guides/metaworld.md. Preset small
differs from demo only in twice as many PPO iterations here.
"""

from ml_collections import ConfigDict

from wam_jax import config
from wam_jax.envs.metaworld.scenes import NAMES, PLAY_STEPS, SAWYER

# A frame takes seven times as long as the embedded simulator's: fewer of them. Eight scenes need more codes
# than one table does. Hands that move at random press the handle in one of twenty episodes.
DEMO = {
  "data.play_frames": 20_000,
  "data.play_episode_frames": 5 * PLAY_STEPS,
  "data.heldout_play_frames": 3_000,
  "data.demos_per_task": 30,
  "data.play_successes_per_task": 0,
  "data.heldout_demos_per_task": 10,
  "data.failed_takes_per_task": 20,
  "data.heldout_failed_takes_per_task": 10,
  "data.heldout_starts_per_task": 20,
  "world_model.stoch": 32,
  "world_model.classes": 32,
  "world_model.embed": 512,
  "world_model.updates": 5_000,
  "classifier.max_false_positives": 0.15,
  "evaluate.episodes": 20,
}


def get_config(preset: str = "auto") -> ConfigDict:
  c = config.preset_config(preset, experiment="metaworld_wam")
  c.env.name, c.data.source, c.tasks = "metaworld", "embedded", NAMES
  c.world_model.cameras = SAWYER.camera_names
  c.data.aim_error = 0.05  # m: furniture of Meta-World is large
  if c.preset != "paper":
    c.update_from_flattened_dict(DEMO)
  return c
