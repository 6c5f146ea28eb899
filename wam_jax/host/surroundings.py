"""What a process finds around it that was meant for other work: JAX's variables, a fork of another process.

JAX is asked only where it is imported already.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from wam_jax.host import machine

# Settings of JAX that our arithmetic is written for. Each is a variable JAX_NAME and a context jax.name.
JAX_SETTINGS: dict[str, Any] = {
  "enable_x64": False,
  "numpy_dtype_promotion": "standard",
  "numpy_rank_promotion": "allow",
  "default_prng_impl": "threefry2x32",
  "transfer_guard": "allow",
  "disable_jit": False,  # a picture would take minutes
}
_WORDS = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}


class SurroundingsError(Exception):
  """Something around this process keeps JAX from working; the text names it."""


class _Fork:
  """Of this process: whether it was forked from one whose JAX had started, so that its locks may be held."""

  useless_jax = False


def jax_has_started() -> bool:
  """Whether JAX has opened devices in this process; from then on it does not survive a fork."""
  bridge = sys.modules.get("jax._src.xla_bridge")  # nothing public says so
  return bridge is not None and bridge.backends_are_initialized()


def _after_fork() -> None:
  _Fork.useless_jax = _Fork.useless_jax or jax_has_started()


os.register_at_fork(after_in_child=_after_fork)


def check_fork() -> None:
  """To be called before JAX computes, which would wait for ever in a forked process.

  Raises:
    SurroundingsError: this process was forked after JAX had started.
  """
  if _Fork.useless_jax:
    raise SurroundingsError(
      "this process was forked from one in which JAX was at work already, and would wait for ever. Start it "
      'fresh: AsyncVectorEnv(..., context="spawn"), SubprocVecEnv(..., start_method="spawn"), or '
      'multiprocessing.get_context("spawn")'
    )


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
  """Inside, JAX_SETTINGS hold in this thread, whatever the program around has chosen.

  Raises:
    SurroundingsError: as `check_fork`.
  """
  check_fork()
  import jax

  with contextlib.ExitStack() as stack:
    for name, value in JAX_SETTINGS.items():
      stack.enter_context(getattr(jax, name)(value))
    yield


def other_settings(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
  """Variables that set JAX otherwise than JAX_SETTINGS -> what is used instead."""
  plain = lambda text: _WORDS.get(text.lower(), text.lower())
  variables = {f"JAX_{name.upper()}": value for name, value in JAX_SETTINGS.items()}
  return {
    name: value
    for name, value in variables.items()
    if plain(environ.get(name) or str(value)) != plain(str(value))
  }


def prepare_jax() -> None:
  """Makes JAX's settings and its place for compiled programs ours. For programs, before JAX computes."""
  cache = machine.compilation_cache()
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # A home that cannot be written: without a place nothing is kept, and JAX does not warn of each program.
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = cache if machine.writable(cache) else ""
  if "jax" in sys.modules:  # it has looked at its variables
    sys.modules["jax"].config.update("jax_compilation_cache_dir", cache)
  for variable, value in other_settings().items():
    print(
      f"{variable}={os.environ.pop(variable)} is not used: wam_jax is written for {value}", file=sys.stderr
    )
    if "jax" in sys.modules:
      sys.modules["jax"].config.update(variable.lower(), value)


def open_devices() -> None:
  """Lets JAX open its devices.

  Raises:
    SurroundingsError: it cannot; says by which variable.
  """
  import jax

  check_fork()
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the second of a platform that is known and not there
    reason = (str(error) or "there are none of that kind").splitlines()[0]
    platforms = os.environ.get("JAX_PLATFORMS")
    cause = f"JAX_PLATFORMS={platforms}: " if platforms else ""
    fix = (
      "unset it, or export JAX_PLATFORMS=cpu" if platforms else "python -m wam_jax.doctor looks for the cause"
    )
    raise SurroundingsError(f"{cause}JAX cannot open its devices: {reason}. Fix: {fix}") from error


def start_jax() -> None:
  """`prepare_jax` and `open_devices`, for programs of one process. Raises SurroundingsError."""
  prepare_jax()
  open_devices()
