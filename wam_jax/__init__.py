"""World-action models for robot learning, in JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wam_jax.host import gymnasium_id

if TYPE_CHECKING:
  from wam_jax.acting.load import load_policy

__all__ = ["load_policy"]
__version__ = "0.1.0"
gymnasium_id.register()


def __getattr__(name: str) -> Any:
  """`load_policy` brings JAX along, so that it is imported when it is first asked for."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from wam_jax.acting import load

  return getattr(load, name)
