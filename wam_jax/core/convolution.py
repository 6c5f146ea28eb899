"""Convolutions without padding and their transposes, in a form that is fast on CPUs too.

On a GPU or TPU XLA's own convolution is right ("native"). On a CPU its gradients are slow, and the same
arithmetic as matrix products is several times faster ("matmul"):

- Images are worked through in tiles of 16, so that the windows stay in the cache: strided convolutions all
  layers of a tile at once, transposed ones layer by layer (measured). The layout changes once before and
  once after a stack of layers.
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
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from wam_jax.core.backend import backend

TILE = 16  # images per tile
FORMS = ("native", "matmul")


class Activation(NamedTuple):
  """An elementwise function and its slope as a function of its value."""

  function: Callable[[jax.Array], jax.Array]
  slope: Callable[[jax.Array], jax.Array]


def _elu_slope(value: jax.Array) -> jax.Array:
  return jnp.where(value > 0, 1, value + 1) if backend() == "cpu" else 1 + jnp.minimum(value, 0)


@jax.custom_jvp
def elu(x: jax.Array) -> jax.Array:
  """ELU whose derivative comes from its value, so that neither its input nor a second exp is needed.

  Error below 1e-7 against x > 0 ? x : expm1(x), which is slow on CPUs. On accelerators without comparisons,
  whose results a TPU packs and keeps.
  """
  low = jnp.exp(jnp.minimum(x, 0)) - 1
  return jnp.where(x > 0, x, low) if backend() == "cpu" else jnp.maximum(x, 0) + low


@elu.defjvp
def _elu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  y = elu(primals[0])
  return y, tangents[0] * _elu_slope(y)


ELU = Activation(elu, _elu_slope)


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

  Without padding: out[y, x] = sum_ij in[stride*y + i, stride*x + j] @ kernel[i, j]. Transposed, as PyTorch's
  ConvTranspose2d: out[stride*y + i, ...] += in[y] @ kernel[i], kernels not flipped.

  Args:
    x: [N, Y, X, C].
    layers: (kernel [k, k, C, O], bias [O] or None) of each.
    activations: of each, or None; None: no activations.
    transposed: grow by the stride instead of shrinking.
    stride: in pixels, of all.
    form: "native", "matmul" or None, chosen by the device and N.

  Returns:
    [N, Y', X', O] of the last: Y' = (Y - k) // stride + 1 for one layer, (Y - 1) * stride + k transposed.

  Raises:
    ValueError: shapes that do not belong together, or an unknown form.
  """
  activations = activations or [None] * len(layers)
  _check(x.shape, layers, activations, transposed, stride)
  if form is None:
    form = "matmul" if backend() == "cpu" and x.shape[0] >= TILE else "native"
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
  return _over_tiles(x, steps, transposed, stride) if steps else x


def _check(
  shape: tuple[int, ...], layers: Sequence, activations: Sequence, transposed: bool, stride: int
) -> None:
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


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Their sum, with the dtype of x.

  It is taken in float32, where the gradient of the bias is then added up: over all pixels, bfloat16 would
  lose most of it.
  """
  wide = _wide(x.dtype)
  return (x.astype(wide) + bias.astype(wide)).astype(x.dtype)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
  """What sums over many numbers of a dtype are kept in: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def _finish(x: jax.Array, bias: jax.Array | None, activation: Activation | None) -> jax.Array:
  if bias is not None:
    x = add_bias(x, bias)
  return x if activation is None else activation.function(x)


_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native_transposed(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Its own gradient spares a TPU copies of large arrays: JAX's reverses the activations."""
  size, _, channels, depth = kernel.shape
  if x.shape[1:3] == (1, 1):  # one product
    matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    return (x[:, 0, 0] @ matrix).reshape(-1, size, size, depth)
  border = size - 1
  return lax.conv_general_dilated(
    x,
    kernel[::-1, ::-1],
    (1, 1),
    ((border, border), (border, border)),
    lhs_dilation=(stride, stride),
    dimension_numbers=_LAYOUT,
  )


def _native_transposed_backward(
  stride: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  x_grad = _native(grad, kernel.swapaxes(2, 3), stride)
  # kernel_grad[i, j, c, o] = sum x[n, y, z, c] grad[n, stride*y + i, stride*z + j, o]: a convolution that
  # adds up over images, with x as its kernel, dilated by the stride.
  kernel_grad = lax.conv_general_dilated(
    grad, x, (1, 1), "VALID", rhs_dilation=(stride, stride), dimension_numbers=("CHWN", "IHWO", "NHWC")
  )
  return x_grad, kernel_grad.transpose(1, 2, 3, 0)


_native_transposed.defvjp(
  lambda x, kernel, stride: (_native_transposed(x, kernel, stride), (x, kernel)), _native_transposed_backward
)


@jax.custom_vjp
def _from_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[N, C], [P, C, O] -> [P, N, O], a product per position: the large kernel is never transposed."""
  return jnp.einsum("nc,pco->pno", x, kernel)


def _from_pixels_backward(residuals: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  x_grad, _ = lax.scan(
    lambda total, pair: (total + pair[0] @ pair[1].T, None), jnp.zeros_like(x), (grad, kernel)
  )
  return x_grad, lax.dot_general(
    jnp.broadcast_to(x, (grad.shape[0], *x.shape)), grad, (((1,), (1,)), ((0,), (0,)))
  )


_from_pixels.defvjp(lambda x, kernel: (_from_pixels(x, kernel), (x, kernel)), _from_pixels_backward)


def _over_tiles(x: jax.Array, steps: Sequence, transposed: bool, stride: int) -> jax.Array:
  num = x.shape[0]
  x = jnp.pad(x, ((0, -num % TILE), (0, 0), (0, 0), (0, 0)))
  # The barriers keep the change of layout a pass of its own: fused with its neighbours it is slower.
  x = lax.optimization_barrier(x.reshape(-1, TILE, *x.shape[1:]).transpose(0, 4, 2, 3, 1))
  zero = lambda kernel: jnp.zeros(kernel.shape[3], kernel.dtype)
  layers = tuple((kernel, zero(kernel) if bias is None else bias) for (kernel, bias), _ in steps)
  how = tuple(_Layer(stride, transposed, activation) for _, activation in steps)
  size = 1 if transposed else len(layers)  # layers that a tile passes at once: measured
  for i in range(0, len(layers), size):
    x = _tiles(x, layers[i : i + size], how[i : i + size])
  x = lax.optimization_barrier(x).transpose(0, 4, 2, 3, 1)
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


def _kernel_grad(windows: jax.Array, small: jax.Array) -> jax.Array:
  """Windows [k * k * C, Y', X', n] times `small` [O, Y', X', n]: [k * k * C, O], float32 at least."""
  contracted = ((1, 2, 3), (1, 2, 3)), ((), ())
  return lax.dot_general(windows, small, contracted, preferred_element_type=_wide(windows.dtype))


def _phases(kernel: jax.Array, stride: int) -> jax.Array:
  """Kernel [k, k, C, O] -> the matrix [m * m * C * stride * stride, O] that `_scatter` takes."""
  size, _, channels, depth = kernel.shape
  blocks = -(-size // stride)
  border = blocks * stride - size
  kernel = jnp.pad(kernel, ((0, border), (0, border), (0, 0), (0, 0)))
  kernel = kernel.reshape(blocks, stride, blocks, stride, channels, depth).transpose(0, 2, 4, 1, 3, 5)
  return kernel.reshape(-1, depth)


def _scatter(x: jax.Array, matrix: jax.Array, size: int, stride: int, height: int, width: int) -> jax.Array:
  """Tile [O, y, x, n], `_phases` of a kernel [k, k, C, O] -> [C, height, width, n]: windows added up.

  Each window splits into m * m blocks of stride * stride pixels. Blocks are added up with a pixel's
  place in its block (the phase) as a channel; interleaving the phases comes last.
  """
  blocks = -(-size // stride)
  last = blocks - 1
  channels = matrix.shape[0] // (blocks * stride) ** 2
  rows, columns, num = x.shape[1] + last, x.shape[2] + last, x.shape[3]
  parts = _product(matrix, x).reshape(blocks, blocks, -1, *x.shape[1:])
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


class _Layer(NamedTuple):
  """What a layer does beside its parameters."""

  stride: int
  transposed: bool
  activation: Activation | None


def _forward_tile(x: jax.Array, kernel: jax.Array, bias: jax.Array, how: _Layer) -> jax.Array:
  """Tile [C, Y, X, n], kernel [k, k, C, O], bias [O] -> [O, Y', X', n]."""
  size, stride = kernel.shape[0], how.stride
  if how.transposed:
    height, width = ((side - 1) * stride + size for side in x.shape[1:3])
    out = _scatter(x, _phases(kernel.swapaxes(2, 3), stride), size, stride, height, width)
  else:
    out = _product(kernel.reshape(-1, kernel.shape[3]).T, _windows(x, size, stride))
  return _finish(out, bias[:, None, None, None], how.activation)


def _backward_tile(
  x: jax.Array, out: jax.Array, grad: jax.Array, kernel: jax.Array, how: _Layer
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of `_forward_tile` from that of its result: of x, kernel as [k * k * C, O] and bias.

  With `transposed` the kernel's channels are swapped: [k * k * O, C].
  """
  size, stride = kernel.shape[0], how.stride
  if how.activation:
    grad *= how.activation.slope(out)
  if how.transposed:
    windows = _windows(grad, size, stride)
    kernel_grad = _kernel_grad(windows, x)
    x_grad = _product(kernel.swapaxes(2, 3).reshape(-1, kernel.shape[2]).T, windows)
  else:
    kernel_grad = _kernel_grad(_windows(x, size, stride), grad)
    x_grad = _scatter(grad, _phases(kernel, stride), size, stride, *x.shape[1:3])
  return x_grad, kernel_grad, grad.sum((1, 2, 3), dtype=_wide(grad.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiles(x: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]], how: Sequence[_Layer]) -> jax.Array:
  """All layers, tile by tile: [G, C, Y, X, n] -> [G, O, Y', X', n] of the last."""
  return lax.map(lambda tile: _outputs(tile, layers, how)[-1], x)


def _outputs(x: jax.Array, layers: Sequence, how: Sequence[_Layer]) -> list[jax.Array]:
  out = [x]
  for (kernel, bias), layer in zip(layers, how, strict=True):
    out.append(_forward_tile(out[-1], kernel, bias, layer))
  return out[1:]


def _tiles_forward(x: jax.Array, layers: Sequence, how: Sequence[_Layer]) -> tuple[jax.Array, tuple]:
  out = lax.map(lambda tile: _outputs(tile, layers, how), x)
  return out[-1], (x, layers, out)


def _tiles_backward(how: Sequence[_Layer], residuals: tuple, grad: jax.Array) -> tuple[jax.Array, tuple]:
  x, layers, out = residuals

  def one_tile(total: list, tiles: tuple) -> tuple[list, jax.Array]:
    *values, grad = tiles
    grads: list[Any] = []
    for i in reversed(range(len(how))):
      grad, *of_layer = _backward_tile(values[i], values[i + 1], grad, layers[i][0], how[i])
      grads.insert(0, of_layer)
    return jax.tree.map(jnp.add, total, grads), grad

  flat = lambda kernel, layer: kernel.swapaxes(2, 3) if layer.transposed else kernel
  shapes = [flat(kernel, layer).shape for (kernel, _), layer in zip(layers, how, strict=True)]
  zero = [
    [jnp.zeros((math.prod(shape[:3]), shape[3]), _wide(x.dtype)), jnp.zeros(len(bias), _wide(x.dtype))]
    for shape, (_, bias) in zip(shapes, layers, strict=True)
  ]
  total, x_grad = lax.scan(one_tile, zero, (x, *out, grad))
  grads = tuple(
    (flat(kernel_grad.reshape(shape), layer).astype(kernel.dtype), bias_grad.astype(bias.dtype))
    for (kernel_grad, bias_grad), shape, (kernel, bias), layer in zip(total, shapes, layers, how, strict=True)
  )
  return x_grad, grads


_tiles.defvjp(_tiles_forward, _tiles_backward)
