"""Small building blocks shared by the networks."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-3  # LUMOS's layer norms


class NormedSum(nn.Module):
  """ELU(LayerNorm(sum of the inputs)): the sum is taken before the norm, as in LUMOS."""

  @nn.compact
  def __call__(self, *terms: jax.Array) -> jax.Array:
    return nn.elu(nn.LayerNorm(epsilon=NORM_EPSILON, name="norm")(sum(terms[1:], terms[0])))


class MLP(nn.Module):
  """ELU layers and a linear output.

  Attributes:
    hidden: widths of the hidden layers.
    output: width of the output.
  """

  hidden: Sequence[int]
  output: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate(self.hidden):
      x = nn.elu(nn.Dense(width, name=f"hidden_{i}")(x))
    return nn.Dense(self.output, name="output")(x)


class GRU(nn.Module):
  """Gated recurrent unit with PyTorch's equations: the reset gate acts on the hidden term and its bias.

  Attributes:
    size: D.
  """

  size: int

  @nn.compact
  def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """h [..., D], x [..., hidden] -> next h [..., D]."""
    from_x = nn.Dense(3 * self.size, name="input")(x)
    from_h = nn.Dense(3 * self.size, name="recurrent", kernel_init=nn.initializers.orthogonal())(h)
    reset_x, update_x, new_x = jnp.split(from_x, 3, -1)
    reset_h, update_h, new_h = jnp.split(from_h, 3, -1)
    reset, update = nn.sigmoid(reset_x + reset_h), nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + reset * new_h)
    return (1 - update) * new + update * h
