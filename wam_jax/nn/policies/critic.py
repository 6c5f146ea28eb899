"""The critic on features."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen as nn

from wam_jax.nn.layers import ResidualMLP


class Critic(nn.Module):
  """Value of a feature, and optionally of the share of the horizon left.

  Attributes:
    hidden: widths, all equal, an odd number: a first layer, then residual blocks of two.
    time_left: take the time left as a further input.
  """

  hidden: Sequence[int]
  time_left: bool = False

  @nn.compact
  def __call__(self, feature: jax.Array, time_left: jax.Array) -> jax.Array:
    """feature [..., F], time_left [...] in [0, 1] -> [...]."""
    if len(self.hidden) % 2 == 0 or len(set(self.hidden)) != 1:
      raise ValueError(f"hidden: expected an odd number of equal widths, got {tuple(self.hidden)}")
    x = nn.Dense(self.hidden[0], name="input")(feature)
    if self.time_left:
      # Centred and scaled up: one input among hundreds would be learnt slowly.
      clock = 4 * time_left[..., None] - 2
      x = x + nn.Dense(self.hidden[0], use_bias=False, name="time_in")(clock)
    return ResidualMLP(self.hidden[0], len(self.hidden) // 2, 1, name="body")(x)[..., 0]
