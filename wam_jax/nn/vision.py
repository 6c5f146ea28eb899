"""Picture encoders and decoders.

Two forms with the same interface. `conv` is LUMOS's: strided convolutions without padding. `patch`
cuts the picture into patches that do not overlap, so that every layer is one matrix product: about
ten times faster on a CPU, where XLA's convolution gradients are slow.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

FIRST_PATCH = 4  # pixels a side of the first patch; later patches are 2
LAST_GRID = 4  # side of the coarsest grid


def normalise(picture: jax.Array) -> jax.Array:
  """uint8 [0, 255] -> float32 [-1, 1], x / 127.5 - 1."""
  return picture.astype(jnp.float32) / 127.5 - 1.0


def denormalise(picture: jax.Array) -> jax.Array:
  """Float in about [-1, 1] -> uint8, the inverse of `normalise` with clipping."""
  return jnp.clip(jnp.round((picture + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
  """[N, Y, X, c] -> [N, Y/block, X/block, block*block*c]."""
  n, y, width, c = x.shape
  x = x.reshape(n, y // block, block, width // block, block, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, y // block, width // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
  """[N, Y, X, block*block*c] -> [N, Y*block, X*block, c], the inverse of `space_to_depth`."""
  n, y, width, c = x.shape
  x = x.reshape(n, y, width, block, block, c // block**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, y * block, width * block, c // block**2)


def _num_halvings(image_size: int) -> int:
  return (image_size // FIRST_PATCH // LAST_GRID).bit_length() - 1


class PatchEncoder(nn.Module):
  """Patches of 4, then of 2 until the grid is 4 x 4; widths depth * (1, 2, 4, ...), ELU."""

  depth: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, S, 3] in [-1, 1] -> [N, X]."""
    halvings = _num_halvings(x.shape[1])
    for i in range(halvings + 1):
      x = space_to_depth(x, FIRST_PATCH if i == 0 else 2)
      x = nn.elu(nn.Dense(self.depth * 2**i, name=f"patch_{i}")(x))
    return x.reshape(x.shape[0], -1)


class PatchDecoder(nn.Module):
  """Mirror of PatchEncoder."""

  depth: int
  image_size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, X] -> [N, S, S, 3], not clipped."""
    halvings = _num_halvings(self.image_size)
    width = self.depth * 2**halvings
    x = nn.elu(nn.Dense(LAST_GRID**2 * width, name="grid")(x)).reshape(-1, LAST_GRID, LAST_GRID, width)
    for i in range(halvings):
      width //= 2
      x = nn.elu(depth_to_space(nn.Dense(4 * width, name=f"patch_{i}")(x), 2))
    return depth_to_space(nn.Dense(FIRST_PATCH**2 * 3, name="pixels")(x), FIRST_PATCH)


class ConvEncoder(nn.Module):
  """LUMOS's encoder: 4 x 4 kernels, stride 2, no padding, ELU after each (64 -> 31 -> 14 -> 6 -> 2)."""

  depth: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, 64, 64, 3] in [-1, 1] -> [N, 2 * 2 * 8 * depth]."""
    i = 0
    while x.shape[1] > 2:
      conv = nn.Conv(self.depth * 2**i, (4, 4), strides=2, padding="VALID", name=f"conv_{i}")
      x, i = nn.elu(conv(x)), i + 1
    return x.reshape(x.shape[0], -1)


class ConvDecoder(nn.Module):
  """LUMOS's decoder: transposed convolutions 5, 5, 6, 6, stride 2, ELU between (1 -> 5 -> 13 -> 30 -> 64)."""

  depth: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, X] -> [N, 64, 64, 3], not clipped."""
    x = x[:, None, None, :]
    widths, kernels = (4 * self.depth, 2 * self.depth, self.depth, 3), (5, 5, 6, 6)
    for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
      conv = nn.ConvTranspose(width, (kernel, kernel), strides=(2, 2), padding="VALID", name=f"conv_{i}")
      x = conv(x if i == 0 else nn.elu(x))
    return x
