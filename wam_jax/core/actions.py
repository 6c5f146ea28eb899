"""What a robot executes of a sampled action."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def executable(chunk: jax.Array) -> jax.Array:
  """What is executed of a sampled chunk: motion clipped to [-1, 1], gripper set to its sign.

  Args:
    chunk: [..., 7].

  Returns:
    [..., 7]; a gripper value of exactly 0 opens.
  """
  gripper = jnp.where(chunk[..., 6:] < 0, -1.0, 1.0)
  return jnp.concatenate([jnp.clip(chunk[..., :6], -1, 1), gripper], -1)
