"""Small building blocks shared by the networks.

`dtype`, where a network has one, is that of the computation; parameters are float32 always. Norms and the
recurrent state stay in float32 whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def dense(x: jax.Array, outputs: int, dtype: Any, name: str) -> jax.Array:
  """`nn.Dense` in a `nn.compact` method: [..., C] -> [..., O], whose bias is added as `add_bias` does."""
  y = nn.Dense(outputs, dtype=dtype, promote_dtype=bias_in_float32, name=name)(x)
  return y if dtype is None else y.astype(dtype)


def bias_in_float32(*arrays: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
  """`promote_dtype` of an `nn.Dense` whose result is then float32 at least, like its bias."""
  x, kernel, bias = arrays
  x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=dtype, inexact=inexact)
  return [x, kernel, bias.astype(jnp.promote_types(x.dtype, jnp.float32))]


class NormedSum(nn.Module):
  """ELU(LayerNorm(sum of the inputs)): the sum is taken before the norm, as in LUMOS.

  Attributes:
    epsilon: added to the variance; LUMOS has 1e-3.
  """

  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, *terms: jax.Array) -> jax.Array:
    total = sum(terms[1:], terms[0])
    return nn.elu(
      nn.LayerNorm(epsilon=self.epsilon, dtype=jnp.promote_types(total.dtype, jnp.float32), name="norm")(
        total
      )
    )


class MLP(nn.Module):
  """ELU layers and a linear output.

  Attributes:
    hidden: widths of the hidden layers.
    output: width of the output.
    dtype: of the computation.
  """

  hidden: Sequence[int]
  output: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate(self.hidden):
      x = nn.elu(dense(x, width, self.dtype, f"hidden_{i}"))
    return dense(x, self.output, self.dtype, "output")


class GRU(nn.Module):
  """Gated recurrent unit with PyTorch's equations: the reset gate acts on the hidden term and its bias.

  Attributes:
    size: D.
    memory_frames: the update gate's biases are drawn so that the units begin with memories of up to so many
      frames (chrono initialisation, arXiv 1804.11188, section 2); 0: no biases, memories of about 2 frames.
    dtype: of the matrix products; gates and state are of the state's own dtype.
  """

  size: int
  memory_frames: int = 0
  dtype: Any = None

  def _bias(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """[3 D]: zero, but for the update gate's where units are to begin with a long memory."""
    bias = jnp.zeros(shape, dtype)
    if not self.memory_frames:
      return bias
    frames = jax.random.uniform(key, (self.size,), dtype, 1.0, self.memory_frames)
    return bias.at[self.size : 2 * self.size].set(jnp.log(frames))

  @nn.compact
  def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """h [..., D], x [..., hidden] -> next h [..., D]."""
    orthogonal = nn.initializers.orthogonal()
    from_x = nn.Dense(3 * self.size, dtype=self.dtype, name="input", bias_init=self._bias)(x).astype(h.dtype)
    from_h = nn.Dense(3 * self.size, dtype=self.dtype, name="recurrent", kernel_init=orthogonal)(h)
    return gru_gates(h, from_x, from_h.astype(h.dtype))


def gru_gates(h: jax.Array, from_x: jax.Array, from_h: jax.Array) -> jax.Array:
  """Next h [..., D] from h and the products with input and state [..., 3D]: reset, update, new."""
  reset_x, update_x, new_x = jnp.split(from_x, 3, -1)
  reset_h, update_h, new_h = jnp.split(from_h, 3, -1)
  reset, update = nn.sigmoid(reset_x + reset_h), nn.sigmoid(update_x + update_h)
  new = jnp.tanh(new_x + reset * new_h)
  return (1 - update) * new + update * h


def _mish_factor(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """tanh(softplus(x)) and its derivative, from a single exponential."""
  e = jnp.exp(jnp.minimum(x, 20.0))  # above 20 the factor is 1 in float32
  s = e * (e + 2)
  return s / (s + 2), 4 * e * (e + 1) / jnp.square(s + 2)


@jax.custom_jvp
def mish(x: jax.Array) -> jax.Array:
  """x * tanh(softplus(x)), arXiv 1908.08681; its derivative is written out, which leaves fewer passes."""
  return x * _mish_factor(x)[0]


@mish.defjvp
def _mish_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  (x,), (change,) = primals, tangents
  factor, slope = _mish_factor(x)
  return x * factor, change * (factor + x * slope)


class ResidualMLP(nn.Module):
  """Pre-activation residual blocks on a given first layer, then a linear output.

  Attributes:
    hidden: width.
    blocks: number of blocks of two layers.
    outputs: size of the output.
  """

  hidden: int
  blocks: int
  outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.blocks):
      y = nn.Dense(self.hidden, name=f"block{i}_first")(mish(x))
      x = x + nn.Dense(self.hidden, name=f"block{i}_second")(mish(y))
    return nn.Dense(self.outputs, name="output")(x)


def check_feature(feature: jax.Array, size: int) -> None:
  """Raises ValueError unless the feature is [..., size]."""
  if feature.shape[-1] != size:
    raise ValueError(f"feature: expected [..., {size}], got {list(feature.shape)}")
