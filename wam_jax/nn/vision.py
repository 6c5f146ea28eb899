"""Picture encoders and decoders.

Two forms with the same interface. `conv` is LUMOS's: strided convolutions without padding, for which
`core.convolution` has a form that is fast on CPUs. `patch` cuts the picture into patches that do not
overlap, so that every layer is one matrix product: cheaper still.

Networks compute in `dtype` (None: that of the parameters, float32); decoders return float32 whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax.core import convolution
from wam_jax.core.convolution import ELU, add_bias, elu
from wam_jax.nn.layers import dense

FIRST_PATCH = 4  # pixels a side of the first patch; later patches are 2
LAST_GRID = 4  # side of the coarsest grid

ENCODER_KERNEL = 4
TRUNCATED_STD = 0.87962566  # of a standard normal cut off at two deviations
# Kernels of ConvDecoder by picture size: 1 -> 5 -> 13 -> 30 -> 64 and 1 -> 5 -> 13 -> 29 -> 62 -> 128.
DECODER_KERNELS = {64: (5, 5, 6, 6), 128: (5, 5, 5, 6, 6)}


def normalise(picture: jax.Array) -> jax.Array:
  """uint8 [0, 255] -> float32 [-1, 1], x / 127.5 - 1. A picture of floats counts as normalised already."""
  if jnp.issubdtype(picture.dtype, jnp.floating):
    return picture
  return picture.astype(jnp.float32) / 127.5 - 1.0


def denormalise(picture: jax.Array) -> jax.Array:
  """Float in about [-1, 1] -> uint8, the inverse of `normalise` with clipping."""
  return jnp.clip(jnp.round((picture + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def _sides(size: int) -> list[int]:
  """Numbers of rows of a picture as rows of a quadtree: the coarsest grid, halves, pixels of a patch."""
  return [LAST_GRID, *[2] * _num_halvings(size), FIRST_PATCH]


def _quadtree(picture: jax.Array) -> jax.Array:
  """[N, S, S, c] -> [N, y, x, y', x', ..., c], from the coarsest grid down to the pixels of a patch."""
  n, size, _, c = picture.shape
  sides = _sides(size)
  levels = len(sides)
  x = picture.reshape(n, *sides, *sides, c)
  return x.transpose(0, *[axis for i in range(levels) for axis in (1 + i, 1 + levels + i)], 1 + 2 * levels)


def to_cells(picture: jax.Array) -> jax.Array:
  """Patches of FIRST_PATCH pixels in the order of a quadtree: [N, S, S, c] -> [N, P, FIRST_PATCH**2 * c].

  The four patches of a larger one lie together, down from a grid of LAST_GRID: to join four of them is a
  reshape, and no layer has to move its numbers.
  """
  return _quadtree(picture).reshape(len(picture), -1, FIRST_PATCH**2 * picture.shape[-1])


def _plane_order(axes: int) -> list[int]:
  """Axes of a `_quadtree` in the order of `to_planes`."""
  middle = [axis for last in range(axes - 4, 3, -2) for axis in (last - 1, last)]
  return [axes - 3, axes - 2, axes - 1, *middle, 0, 1, 2]


def to_planes(picture: jax.Array) -> jax.Array:
  """[N, S, S, c] -> [FIRST_PATCH**2 * c, Q, N, LAST_GRID**2]: `to_cells` with the numbers of a patch first.

  Of the order of patches, the finest level comes first. To split each patch in four is then a reshape,
  [4 C, ...] -> [C, 4, ...].
  """
  tree = _quadtree(picture)
  tree = tree.transpose(_plane_order(tree.ndim))
  return tree.reshape(math.prod(tree.shape[:3]), -1, len(picture), LAST_GRID**2)


def from_planes(planes: jax.Array, size: int) -> jax.Array:
  """[FIRST_PATCH**2 * c, Q, N, LAST_GRID**2] -> [N, size, size, c], the inverse of `to_planes`."""
  sides = [side for side in _sides(size) for _ in range(2)]
  num, last = planes.shape[2], len(sides) + 1
  order = _plane_order(last + 1)
  shape = [num, *sides, planes.shape[0] // FIRST_PATCH**2]
  tree = planes.reshape([shape[axis] for axis in order])
  rows, columns = range(1, last, 2), range(2, last, 2)
  picture = tree.transpose([order.index(axis) for axis in (0, *rows, *columns, last)])
  return picture.reshape(num, size, size, -1)


def _num_halvings(image_size: int) -> int:
  return (image_size // FIRST_PATCH // LAST_GRID).bit_length() - 1


class _Linear(nn.Module):
  """Parameters of an `nn.Dense`, kernel [C, O] and bias [O], as it draws them."""

  outputs: int

  @nn.compact
  def __call__(self, inputs: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs, self.outputs))
    bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
    return kernel.astype(dtype or kernel.dtype), bias


class PatchEncoder(nn.Module):
  """Patches of 4, then of 2 until the grid is 4 x 4; widths depth * (1, 2, 4, ...), ELU."""

  depth: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, S, 3] in [-1, 1] -> [N, X]."""
    num, halvings = len(x), _num_halvings(x.shape[1])
    x = to_cells(x)
    for i in range(halvings + 1):
      x = x if i == 0 else x.reshape(num, -1, 4 * x.shape[-1])
      x = elu(dense(x, self.depth * 2**i, self.dtype, f"patch_{i}"))
    return x.reshape(num, -1)


class PatchDecoder(nn.Module):
  """Mirror of PatchEncoder. Frames and places come last (`to_planes`): measured to be quicker on CPUs."""

  depth: int
  image_size: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, X] -> [N, S, S, 3], not clipped."""
    num, halvings = len(x), _num_halvings(self.image_size)
    width = self.depth * 2**halvings
    x = elu(dense(x, LAST_GRID**2 * width, self.dtype, "grid"))
    x = x.reshape(-1, width).T  # [width, N * LAST_GRID**2]

    def layer(name: str, x: jax.Array, parts: int, width: int) -> jax.Array:
      """[C, M] -> [width, parts * M]; the layer's outputs are [parts, width], as its parameters have them."""
      kernel, bias = _Linear(parts * width, name=name)(len(x), self.dtype)
      kernel = kernel.reshape(-1, parts, width).swapaxes(1, 2).reshape(kernel.shape)
      bias = bias.reshape(parts, width).T.reshape(-1, 1)
      return add_bias(jnp.tensordot(kernel, x, ((0,), (0,))), bias).reshape(width, -1)

    for i in range(halvings):
      width //= 2
      x = elu(layer(f"patch_{i}", x, 4, width))
    x = layer("pixels", x, 1, FIRST_PATCH**2 * 3)
    x = from_planes(x.reshape(len(x), -1, num, LAST_GRID**2), self.image_size)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class _Kernels(nn.Module):
  """Parameters of one convolution: kernel [k, k, C, O] and bias [O].

  Attributes:
    shape: of the kernel.
    fan: kernel positions that meet in one number of the result; from them comes the initial scale,
      that of LeCun.
  """

  shape: Sequence[int]
  fan: float

  @nn.compact
  def __call__(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
    scale = (self.fan * self.shape[2]) ** -0.5
    init = nn.initializers.truncated_normal(scale / TRUNCATED_STD)
    kernel = self.param("kernel", init, tuple(self.shape))
    bias = self.param("bias", nn.initializers.zeros, (self.shape[3],))
    return kernel.astype(dtype or kernel.dtype), bias.astype(dtype or bias.dtype)


class ConvEncoder(nn.Module):
  """LUMOS's encoder: 4 x 4 kernels, stride 2, no padding, ELU after each, until the grid is 2 x 2.

  64 -> 31 -> 14 -> 6 -> 2, or 128 -> 63 -> 30 -> 14 -> 6 -> 2; widths depth * (1, 2, 4, ...).

  Attributes:
    depth: width of the first layer.
    dtype: of the computation.
  """

  depth: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, S, 3] in [-1, 1] -> [N, X].

    Raises:
      ValueError: pictures that are not 64 x 64 or 128 x 128.
    """
    _check_size(x.shape[1])
    channels, layers = x.shape[3], []
    for i in range(len(DECODER_KERNELS[x.shape[1]])):
      width = self.depth * 2**i
      shape = (ENCODER_KERNEL, ENCODER_KERNEL, channels, width)
      layers.append(_Kernels(shape, ENCODER_KERNEL**2, name=f"conv_{i}")(self.dtype))
      channels = width
    x = convolution.conv_stack(x.astype(layers[0][0].dtype), layers, [ELU] * len(layers))
    return x.reshape(x.shape[0], -1)


class ConvDecoder(nn.Module):
  """LUMOS's decoder: transposed convolutions of a single pixel, stride 2, ELU between.

  Kernels 5, 5, 6, 6 for 64 x 64 (1 -> 5 -> 13 -> 30 -> 64), 5, 5, 5, 6, 6 for 128 x 128
  (1 -> 5 -> 13 -> 29 -> 62 -> 128); widths depth * (..., 4, 2, 1), then 3.

  Attributes:
    depth: width of the last layer but one.
    image_size: S, 64 or 128.
    dtype: of the computation.
  """

  depth: int
  image_size: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, X] -> float32 [N, S, S, 3], not clipped.

    Raises:
      ValueError: pictures that are not 64 x 64 or 128 x 128.
    """
    _check_size(self.image_size)
    kernels = DECODER_KERNELS[self.image_size]
    widths = [self.depth * 2**i for i in reversed(range(len(kernels) - 1))] + [3]
    channels, layers = x.shape[1], []
    for i, (width, size) in enumerate(zip(widths, kernels, strict=True)):
      fan = 1.0 if i == 0 else (size / 2) ** 2  # a single pixel: windows do not overlap
      layers.append(_Kernels((size, size, channels, width), fan, name=f"conv_{i}")(self.dtype))
      channels = width
    x = convolution.conv_stack(
      x[:, None, None, :].astype(layers[0][0].dtype),
      layers,
      [ELU] * (len(layers) - 1) + [None],
      transposed=True,
    )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_size(image_size: int) -> None:
  if image_size not in DECODER_KERNELS:
    raise ValueError(f"conv vision works on pictures of 64 or 128 pixels a side, not {image_size}")
