"""Random parameters without compiling what would initialise them."""

from __future__ import annotations

import jax
import numpy as np


def random_like(make, seed=0, lead=()):
  """Float32 arrays of the shapes that `make(key)` would make, `lead` before each, of its scale or less."""
  rng = np.random.default_rng(seed)
  draw = lambda x: (rng.normal(size=(*lead, *x.shape)) / np.sqrt(x.shape[-2:][0] + 9)).astype(np.float32)
  return jax.tree.map(draw, jax.eval_shape(make, jax.random.key(0)))
