"""Convolutions without padding and their transposes, in a form that is fast on CPUs too.

On a GPU or TPU XLA's own convolution is right ("native"). On a CPU its gradients are slow, and the same
arithmetic as matrix products is several times faster ("matmul"):

- Images are worked through in tiles of 16, so that what lies between stays in the cache.
- Within a tile the images are the last axis, [C, Y, X, 16]: 16 float32 numbers fill a vector register and
  a cache line, so that strided slices and interleaving move whole lines whatever the number of channels.
- A convolution gathers its windows (im2col) and takes one product; its transpose takes one product and
  adds up the overlapping windows. Each is the other's gradient. Windows are gathered again in the backward
  pass instead of being kept.
- A transposed convolution of single pixels is one product per kernel position, over all images.

The matmul form has gradients in reverse mode only (`jax.grad`, `jax.vjp`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

TILE = 16  # images per tile
FORMS = ("native", "matmul")

Activation = Callable[[jax.Array], jax.Array]


def strided_conv(x: jax.Array, kernel: jax.Array, stride: int = 2, form: str | None = None) -> jax.Array:
  """Convolution without padding: out[y, x] = sum_ij in[stride*y + i, stride*x + j] @ kernel[i, j].

  Args:
    x: [N, Y, X, C].
    kernel: [k, k, C, O].
    stride: in pixels.
    form: "native", "matmul" or None, chosen by the device and N.

  Returns:
    [N, (Y - k) // stride + 1, (X - k) // stride + 1, O].

  Raises:
    ValueError: shapes that do not belong together, or an unknown form.
  """
  return conv_stack(x, [(kernel, None)], stride=stride, form=form)


def transposed_conv(x: jax.Array, kernel: jax.Array, stride: int = 2, form: str | None = None) -> jax.Array:
  """Transpose of `strided_conv`, as PyTorch's ConvTranspose2d: out[stride*y + i, ...] += in[y] @ kernel[i].

  Args:
    x: [N, Y, X, C].
    kernel: [k, k, C, O], not flipped.
    stride: in pixels.
    form: "native", "matmul" or None, chosen by the device and N.

  Returns:
    [N, (Y - 1) * stride + k, (X - 1) * stride + k, O].

  Raises:
    ValueError: shapes that do not belong together, or an unknown form.
  """
  return conv_stack(x, [(kernel, None)], transposed=True, stride=stride, form=form)


def conv_stack(
  x: jax.Array,
  layers: Sequence[tuple[jax.Array, jax.Array | None]],
  activations: Sequence[Activation | None] | None = None,
  *,
  transposed: bool = False,
  stride: int = 2,
  form: str | None = None,
) -> jax.Array:
  """Convolutions one after another, each followed by its bias and activation.

  Args:
    x: [N, Y, X, C].
    layers: (kernel [k, k, C, O], bias [O] or None) of each.
    activations: function of each, elementwise, or None; None: no activations.
    transposed: `transposed_conv` instead of `strided_conv`.
    stride: in pixels, of all.
    form: "native", "matmul" or None, chosen by the device and N.

  Returns:
    [N, Y', X', O] of the last.

  Raises:
    ValueError: shapes that do not belong together, or an unknown form.
  """
  activations = activations or [None] * len(layers)
  _check(x.shape, layers, activations, transposed, stride)
  if form is None:
    form = "matmul" if jax.default_backend() == "cpu" and x.shape[0] >= TILE else "native"
  if form not in FORMS:
    raise ValueError(f"form {form!r} is not one of {FORMS}")
  steps = list(zip(layers, activations, strict=True))
  if form == "native":
    conv = _native_transposed if transposed else _native
    for (kernel, bias), activation in steps:
      x = _finish(conv(x, kernel, stride), bias, activation)
    return x
  if transposed and x.shape[1:3] == (1, 1):
    (kernel, bias), activation = steps.pop(0)
    pixels = _from_pixels(x[:, 0, 0], kernel.reshape(-1, *kernel.shape[2:]))  # [k*k, N, O]
    x = pixels.transpose(1, 0, 2).reshape(x.shape[0], *kernel.shape[:2], -1)
    x = _finish(x, bias, activation)
  return _over_tiles(x, steps, _tile_transposed if transposed else _tile_conv, stride) if steps else x


def _check(shape: tuple[int, ...], layers: Sequence, activations: Sequence, transposed: bool, stride: int):
  if len(shape) != 4:
    raise ValueError(f"x must be [N, Y, X, C], got {list(shape)}")
  if len(layers) != len(activations):
    raise ValueError(f"{len(layers)} layers and {len(activations)} activations")
  if stride < 1:
    raise ValueError(f"stride must be positive, got {stride}")
  _, height, width, channels = shape
  for i, (kernel, bias) in enumerate(layers):
    found = f"layer {i}: x [N, {height}, {width}, {channels}], kernel {list(kernel.shape)}"
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != channels:
      raise ValueError(f"{found}: kernel must be [k, k, {channels}, O]")
    size, channels = kernel.shape[0], kernel.shape[3]
    if bias is not None and bias.shape != (channels,):
      raise ValueError(f"{found}: bias must be [{channels}], got {list(bias.shape)}")
    if transposed:
      height, width = ((side - 1) * stride + size for side in (height, width))
      continue
    if min(height, width) < size:
      raise ValueError(f"{found}: the kernel is larger than the picture")
    height, width = ((side - size) // stride + 1 for side in (height, width))


def _finish(x: jax.Array, bias: jax.Array | None, activation: Activation | None) -> jax.Array:
  x = x if bias is None else x + bias
  return x if activation is None else activation(x)


_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=_LAYOUT)


def _native_transposed(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  border = kernel.shape[0] - 1
  return lax.conv_general_dilated(
    x,
    kernel[::-1, ::-1],
    (1, 1),
    ((border, border), (border, border)),
    lhs_dilation=(stride, stride),
    dimension_numbers=_LAYOUT,
  )


@jax.custom_vjp
def _from_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[N, C], [P, C, O] -> [P, N, O], a product per position: the large kernel is never transposed."""
  return jnp.einsum("nc,pco->pno", x, kernel)


def _from_pixels_backward(residuals: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  per_position = lax.dot_general(grad, kernel, (((2,), (2,)), ((0,), (0,))))  # [P, N, C]
  return per_position.sum(0), lax.dot_general(
    jnp.broadcast_to(x, (grad.shape[0], *x.shape)), grad, (((1,), (1,)), ((0,), (0,)))
  )


_from_pixels.defvjp(lambda x, kernel: (_from_pixels(x, kernel), (x, kernel)), _from_pixels_backward)


def _over_tiles(x: jax.Array, steps: Sequence, conv: Callable, stride: int) -> jax.Array:
  num = x.shape[0]
  x = jnp.pad(x, ((0, -num % TILE), (0, 0), (0, 0), (0, 0)))

  def one_tile(tile: jax.Array) -> jax.Array:
    tile = tile.transpose(3, 1, 2, 0)
    for (kernel, bias), activation in steps:
      tile = conv(tile, kernel, stride)
      tile = _finish(tile, None if bias is None else bias[:, None, None, None], activation)
    return tile.transpose(3, 1, 2, 0)

  x = lax.map(one_tile, x.reshape(-1, TILE, *x.shape[1:]))
  return x.reshape(-1, *x.shape[2:])[:num]


def _windows(x: jax.Array, size: int, stride: int) -> jax.Array:
  """All windows [k * k * C, Y', X', n] of a tile [C, Y, X, n]."""
  height, width = ((side - size) // stride + 1 for side in x.shape[1:3])

  def shifted(i: int, j: int) -> jax.Array:
    rows = lax.slice_in_dim(x, i, i + stride * (height - 1) + 1, stride, 1)
    return lax.slice_in_dim(rows, j, j + stride * (width - 1) + 1, stride, 2)

  return jnp.concatenate([shifted(i, j) for i in range(size) for j in range(size)], 0)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return lax.dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())))


def _gather(kernel: jax.Array, windows: jax.Array) -> jax.Array:
  return _product(kernel.reshape(-1, kernel.shape[3]).T, windows)


def _kernel_grad(windows: jax.Array, grad: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """windows [k * k * C, Y', X', n], grad [O, Y', X', n] -> [k, k, C, O]."""
  return lax.dot_general(windows, grad, (((1, 2, 3), (1, 2, 3)), ((), ()))).reshape(shape)


def _scatter(x: jax.Array, kernel: jax.Array, stride: int, height: int, width: int) -> jax.Array:
  """Tile [O, y, x, n], kernel [k, k, C, O] -> [C, height, width, n], windows added where they overlap.

  Each window splits into m * m blocks of stride * stride pixels. Blocks are added up with a pixel's
  place in its block (the phase) as a channel; interleaving the phases comes last.
  """
  size, _, channels, depth = kernel.shape
  _, rows, columns, num = x.shape
  blocks = -(-size // stride)
  border = blocks * stride - size
  kernel = jnp.pad(kernel, ((0, border), (0, border), (0, 0), (0, 0)))
  kernel = kernel.reshape(blocks, stride, blocks, stride, channels, depth).transpose(0, 2, 4, 1, 3, 5)
  parts = _product(kernel.reshape(-1, depth), x).reshape(blocks, blocks, -1, rows, columns, num)
  rows, columns = rows + blocks - 1, columns + blocks - 1
  last = blocks - 1
  placed = [
    jnp.pad(parts[i, j], ((0, 0), (i, last - i), (j, last - j), (0, 0)))
    for i in range(blocks)
    for j in range(blocks)
  ]
  phases = sum(placed[1:], placed[0]).reshape(channels, stride, stride, rows, columns, num)
  out = phases.transpose(0, 3, 1, 4, 2, 5).reshape(channels, rows * stride, columns * stride, num)
  out = out[:, :height, :width]
  # Rows that no window reaches.
  return jnp.pad(out, ((0, 0), (0, height - out.shape[1]), (0, width - out.shape[2]), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tile_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Tile [C, Y, X, n], kernel [k, k, C, O] -> [O, Y', X', n]."""
  return _gather(kernel, _windows(x, kernel.shape[0], stride))


def _tile_conv_backward(stride: int, residuals: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  windows = _windows(x, kernel.shape[0], stride)
  return _scatter(grad, kernel, stride, *x.shape[1:3]), _kernel_grad(windows, grad, kernel.shape)


_tile_conv.defvjp(lambda x, kernel, stride: (_tile_conv(x, kernel, stride), (x, kernel)), _tile_conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tile_transposed(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Tile [C, Y, X, n], kernel [k, k, C, O] -> [O, Y', X', n]."""
  height, width = ((side - 1) * stride + kernel.shape[0] for side in x.shape[1:3])
  return _scatter(x, kernel.swapaxes(2, 3), stride, height, width)


def _tile_transposed_backward(stride: int, residuals: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  swapped = kernel.swapaxes(2, 3)
  windows = _windows(grad, kernel.shape[0], stride)
  kernel_grad = _kernel_grad(windows, x, swapped.shape).swapaxes(2, 3)
  return _gather(swapped, windows), kernel_grad


_tile_transposed.defvjp(
  lambda x, kernel, stride: (_tile_transposed(x, kernel, stride), (x, kernel)), _tile_transposed_backward
)
