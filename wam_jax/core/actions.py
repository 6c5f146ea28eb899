"""What a robot executes of a sampled action."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def executable(chunk: jax.Array, binary: np.ndarray) -> jax.Array:
  """What is executed of a sampled chunk: clipped to [-1, 1], binary numbers set to their sign.

  Args:
    chunk: [..., A].
    binary: [A] bool, `Embodiment.binary`.

  Returns:
    [..., A]; a binary number of exactly 0 becomes 1 (a gripper opens).
  """
  return jnp.where(binary, jnp.where(chunk < 0, -1.0, 1.0), jnp.clip(chunk, -1, 1))
