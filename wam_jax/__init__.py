"""World-action models for robot learning, in JAX and Flax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wam_jax.host import gymnasium_id

if TYPE_CHECKING:
  from wam_jax.acting.load import load_policy
  from wam_jax.running.python_api import make_config, open_run, train

__all__ = ["load_policy", "make_config", "open_run", "train"]
__version__ = "0.1.0"
gymnasium_id.register()


def __getattr__(name: str) -> Any:
  """What brings JAX along is imported when it is first asked for."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  place = "wam_jax.acting.load" if name == "load_policy" else "wam_jax.running.python_api"
  return getattr(importlib.import_module(place), name)
