"""Shared settings of the tests."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: less optimisation makes them a third faster.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Keeps the memory of a whole test run at that of its largest module."""
  yield
  jax.clear_caches()
