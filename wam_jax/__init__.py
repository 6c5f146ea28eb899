"""World-action models for robot learning, in JAX and Flax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wam_jax.host import gymnasium_id

if TYPE_CHECKING:
  from wam_jax.acting.policy import ActingPolicy

__version__ = "0.1.0"
gymnasium_id.register()


def load_policy(
  path: str | os.PathLike[str] | None = None,
  task: str | None = None,
  which: str | None = None,
  world_model: str | os.PathLike[str] | None = None,
  ddim_steps: int = 0,
) -> ActingPolicy:
  """A trained policy to act with; see `wam_jax.acting.load.load_policy`, which is imported only now.

  Args:
    path: a run's work folder, the folder of a finished ppo or behaviour_cloning artifact, or a packed file;
      None: the policies that come with the package.
    task: one of the policy's; None: its only one.
    which: 'ppo', the last; 'ppo_imagined' or 'ppo_real', of each task the best by dreams or by simulator,
      where PPO was monitored; 'cloned'; None: 'ppo' if it is finished, else 'cloned'.
    world_model: folder of the world model, where it is neither beside the policy nor where the run had it.
    ddim_steps: of a diffusion policy, so many denoising steps by DDIM; 0: all that it was trained with.

  Returns:
    An object with `reset(batch_size=None, seed=0)` and `act(observation) -> action`.

  Raises:
    PolicyError: no such policy, or the world model it was trained on is not to be found.
    ValueError: `which` or `ddim_steps` out of range.
  """
  from wam_jax.acting import load

  return load.load_policy(path, task, which, world_model, ddim_steps)
