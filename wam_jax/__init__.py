"""World-action models for robot learning, in JAX and Flax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from wam_jax.stages.acting import ActingPolicy

__version__ = "0.1.0"


def load_policy(
  path: str | os.PathLike[str],
  task: str | None = None,
  which: str | None = None,
  world_model: str | os.PathLike[str] | None = None,
) -> ActingPolicy:
  """A trained policy to act with; see `wam_jax.stages.acting.load_policy`, which is imported only now.

  Args:
    path: a run's work folder, or the folder of a finished ppo or behaviour_cloning artifact.
    task: one of the policy's; None: its only one.
    which: 'ppo' or 'cloned'; None: the ppo stage's if it is finished, else the cloned one.
    world_model: folder of the world model, where it is neither beside the policy nor where the run had it.

  Returns:
    An object with `reset(batch_size=None, seed=0)` and `act(observation) -> action`.

  Raises:
    PolicyError: no such policy, or the world model it was trained on is not to be found.
  """
  from wam_jax.stages import acting

  return acting.load_policy(path, task, which, world_model)
