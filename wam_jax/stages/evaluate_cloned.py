"""Success of cloned policies alone, where no PPO follows, for instance on snapshots of a world model.

Same starts, noise and files as stage evaluate.
"""

from __future__ import annotations

from wam_jax.running.stage_run import StageRun
from wam_jax.stages import evaluate


def run(stage: StageRun) -> None:
  """Writes results.json and cloned.npz."""
  evaluate.measure(stage, ("cloned",))
