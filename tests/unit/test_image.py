"""Area averaging against OpenCV's own output, PSNR and SSIM against plain loops."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import image

# Made once with OpenCV 5.0.0: cv2.resize(_picture(7, n), (64, 64), interpolation=cv2.INTER_AREA)
# for n = 200 ("static") and n = 84 ("gripper").
OPENCV = pathlib.Path(__file__).parents[1] / "golden/fixtures/area_resize.npz"


def _picture(seed: int, size: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "size"), [("static", 200), ("gripper", 84)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_area_resize_equals_opencv(name, size, xp):
  ours = np.asarray(image.area_resize(xp.asarray(_picture(7, size)), 64, 64))
  theirs = np.load(OPENCV)[name]
  assert ours.dtype == np.uint8 and ours.shape == (64, 64, 3)
  assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_area_resize_is_the_mean_over_the_covered_area():
  # 5 -> 3 and 4 -> 2: repeat each pixel so that new cells hold whole numbers of copies, then average.
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
  fine = x.repeat(3, axis=1)
  expected = fine.reshape(2, 3, 5, 2, 2, 3).mean((2, 4))
  np.testing.assert_allclose(image.area_resize(x, 3, 2), expected, rtol=1e-5, atol=1e-6)


def test_area_resize_keeps_the_mean_and_jits():
  x = jnp.asarray(np.random.default_rng(1).uniform(size=(84, 84, 3)), jnp.float32)
  small = jax.jit(lambda x: image.area_resize(x, 64, 64))(x)
  np.testing.assert_allclose(small.mean((0, 1)), x.mean((0, 1)), rtol=1e-4)


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 3), (8, 4)), ((4, 4), (2, 2)), ((4, 4, 3), (0, 2))])
def test_area_resize_refuses(shape, size):
  with pytest.raises(ValueError):
    image.area_resize(np.ones(shape, np.float32), *size)


def test_psnr_by_hand():
  # An error of 0.2 everywhere on a range of 2: 10 log10(4 / 0.04) = 20 dB; half the error: +6.02 dB.
  x = jnp.asarray(np.random.default_rng(2).uniform(-1, 0.5, (8, 8, 3)), jnp.float32)
  both = image.psnr(jnp.stack([x, x]), jnp.stack([x + 0.2, x + 0.1]), 2.0)
  np.testing.assert_allclose(both, [20.0, 26.0206], atol=1e-3)
  assert np.isinf(image.psnr(x, x, 2.0))


def _ssim_loops(x: np.ndarray, y: np.ndarray, max_value: float) -> float:
  offset = np.arange(11) - 5
  kernel = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
  kernel /= kernel.sum()
  values = []
  for c in range(x.shape[2]):
    for i in range(x.shape[0] - 10):
      for j in range(x.shape[1] - 10):
        a, b = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
        ma, mb = (kernel * a).sum(), (kernel * b).sum()
        va, vb = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum()
        cov = (kernel * (a - ma) * (b - mb)).sum()
        c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
        values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
  return float(np.mean(values))


@pytest.mark.parametrize("level", [0.0, 200.0])
def test_ssim_equals_loops(level):
  rng = np.random.default_rng(3)
  x = level + rng.uniform(0, 50, (15, 18, 2))
  y = x + rng.normal(0, 8, x.shape)
  ssim = jax.jit(image.ssim)
  np.testing.assert_allclose(ssim(x, y, 255.0), _ssim_loops(x, y, 255.0), atol=1e-4)
  np.testing.assert_allclose(ssim(x, x, 255.0), 1.0, atol=1e-5)


@pytest.mark.parametrize("measure", [image.psnr, image.ssim])
def test_measures_refuse_unequal_shapes(measure):
  with pytest.raises(ValueError, match="equal shape"):
    measure(jnp.ones((16, 16, 3)), jnp.ones((2, 16, 16, 3)), 1.0)
