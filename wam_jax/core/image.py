"""Pictures: area averaging, PSNR and SSIM."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=32)
def area_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
  """For each of `target` cells the source cells it covers and the shares of each.

  Returns:
    (indices [taps, target] int, weights [taps, target] float32); weights of a cell sum to one.
  """
  low = np.arange(target) * source / target
  high = (np.arange(target) + 1) * source / target
  first = np.floor(low + 1e-9).astype(np.int64)
  taps = int((np.ceil(high - 1e-9) - first).max())
  indices = first + np.arange(taps)[:, None]
  overlap = np.minimum(high, indices + 1) - np.maximum(low, indices)
  weights = np.clip(overlap, 0, None) * target / source
  return np.minimum(indices, source - 1), weights.astype(np.float32)


def area_resize(image: Any, height: int, width: int) -> Any:
  """Shrinks pictures by area averaging: each new pixel is the mean of the area that it covers.

  Equal to OpenCV's INTER_AREA within one grey level, also where the factor is no whole number
  (200 -> 64 is 3.125).

  Args:
    image: [..., H, W, C] uint8 or float, NumPy or JAX.
    height: new height, at most H.
    width: new width, at most W.

  Returns:
    [..., height, width, C], same kind of array and dtype; uint8 is rounded to the nearest even.

  Raises:
    ValueError: fewer than three dimensions, or a size that would enlarge the picture.
  """
  if image.ndim < 3:
    raise ValueError(f"image: expected [..., H, W, C], got {list(image.shape)}")
  rows, columns = image.shape[-3:-1]
  if not (0 < height <= rows and 0 < width <= columns):
    raise ValueError(f"area_resize only shrinks: {rows}x{columns} to {height}x{width}")
  if (rows, columns) == (height, width):
    return image
  xp: Any = np if isinstance(image, np.ndarray) else jnp
  is_integer = xp.issubdtype(image.dtype, xp.integer)
  out = image.astype(xp.float32) if is_integer else image
  # Rows first: their pixels lie side by side in memory, so this pass over the large picture is cheap.
  for axis, source, target in ((-3, rows, height), (-2, columns, width)):
    if source == target:
      continue
    indices, weights = area_taps(source, target)
    shape = [1] * out.ndim
    shape[axis] = target
    total = 0.0
    for index, weight in zip(indices, weights, strict=True):
      total = total + xp.take(out, index, axis=axis) * weight.reshape(shape)
    out = total
  if is_integer:
    out = xp.clip(xp.rint(out), 0, 255)
  return out.astype(image.dtype)


def _check_pair(x: jax.Array, y: jax.Array) -> None:
  if x.shape != y.shape or x.ndim < 3:
    raise ValueError(f"two pictures [..., H, W, C] of equal shape expected, got {x.shape} and {y.shape}")


def psnr(x: jax.Array, y: jax.Array, max_value: float) -> jax.Array:
  """Peak signal-to-noise ratio of each picture.

  Args:
    x: [..., H, W, C] float.
    y: [..., H, W, C], same range as x.
    max_value: width of the value range: 255 for uint8, 2 for [-1, 1].

  Returns:
    [...] in dB; infinite where the pictures are equal.

  Raises:
    ValueError: shapes differ.
  """
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  _check_pair(x, y)
  error = jnp.mean(jnp.square(x - y), (-3, -2, -1))
  return 10.0 * (2.0 * jnp.log10(max_value) - jnp.log10(error))


def ssim(x: jax.Array, y: jax.Array, max_value: float, window: int = 11, sigma: float = 1.5) -> jax.Array:
  """Structural similarity of each picture, mean over channels and over windows inside the picture.

  Source: Wang et al. 2004, equation 13 with K1 0.01, K2 0.03 and an 11x11 Gaussian window.

  Args:
    x: [..., H, W, C] float.
    y: [..., H, W, C], same range as x.
    max_value: width of the value range: 255 for uint8, 2 for [-1, 1].
    window: side of the Gaussian window [pixels].
    sigma: its standard deviation [pixels].

  Returns:
    [...] in [-1, 1], one where the pictures are equal.

  Raises:
    ValueError: shapes differ, or pictures smaller than the window.
  """
  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  _check_pair(x, y)
  if min(x.shape[-3:-1]) < window:
    raise ValueError(f"pictures of {x.shape[-3]}x{x.shape[-2]} are smaller than the {window}-pixel window")
  offset = np.arange(window) - (window - 1) / 2
  kernel = np.exp(-0.5 * np.square(offset / sigma))
  kernel = (kernel / kernel.sum()).astype(np.float32)

  def blur(image: jax.Array) -> jax.Array:
    for axis in (-3, -2):
      size = image.shape[axis] - window + 1
      shifted = [jax.lax.slice_in_dim(image, start, start + size, axis=axis) for start in range(window)]
      image = jnp.tensordot(jnp.asarray(kernel), jnp.stack(shifted), 1)
    return image

  # Shifting both pictures changes no variance but keeps float32 from cancelling on bright ones.
  centre = jnp.mean(x, (-3, -2), keepdims=True)
  dx, dy = x - centre, y - centre
  mean_dx, mean_dy = blur(dx), blur(dy)
  var_x = blur(jnp.square(dx)) - jnp.square(mean_dx)
  var_y = blur(jnp.square(dy)) - jnp.square(mean_dy)
  covariance = blur(dx * dy) - mean_dx * mean_dy
  mean_x, mean_y = mean_dx + centre, mean_dy + centre
  c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
  luminance = (2 * mean_x * mean_y + c1) / (jnp.square(mean_x) + jnp.square(mean_y) + c1)
  structure = (2 * covariance + c2) / (var_x + var_y + c2)
  return jnp.mean(luminance * structure, (-3, -2, -1))
