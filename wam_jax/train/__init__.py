"""Jitted training. The package can be called: `wam_jax.train(config)` trains a run, whatever was imported."""

from __future__ import annotations

import sys
import types
from typing import Any

import wam_jax


class _CallablePackage(types.ModuleType):
  """Python makes a package that was imported an attribute, in the place of the function of that name."""

  def __call__(self, config: Any, quiet: bool = False) -> Any:
    """`running.python_api.train`."""
    return wam_jax.__getattr__("train")(config, quiet)


sys.modules[__name__].__class__ = _CallablePackage
