"""What programs are compiled for, and where small ones run: the one place that says it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_told: list[str] = []  # a plain list: programs are also traced in threads


def backend() -> str:
  """Platform of the programs that are traced now: "cpu", "gpu" or "tpu"."""
  return _told[-1] if _told else jax.default_backend()


def cpu_device() -> jax.Device:
  """The CPU, which small programs are quickest on; another device where JAX_PLATFORMS leaves the CPU out."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return jax.local_devices()[0]


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
  """Inside, `backend` is `platform`, whatever devices there are: for compilation ahead of time.

  Build jitted functions inside. JAX keeps what it has traced of one that was called before.

  Args:
    platform: "cpu", "gpu" or "tpu".
  """
  _told.append(platform)
  try:
    yield
  finally:
    _told.pop()
