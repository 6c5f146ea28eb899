"""The play table's name in gymnasium, known there after `import wam_jax`, which does not import gymnasium."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

ENV_ID = "wam_jax/PlayTable-v0"
ENTRY_POINT = "wam_jax.envs.play_table.gym:PlayTableEnv"


def register() -> None:
  """Makes ENV_ID known to gymnasium: now, or when a program imports it."""
  if sys.modules.get("gymnasium") is None:
    sys.meta_path.insert(0, _WhenImported())
    return
  import gymnasium

  if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=ENTRY_POINT)


class _WhenImported:
  """Finds gymnasium as all others do, and registers once its module has run."""

  def find_spec(
    self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
  ) -> importlib.machinery.ModuleSpec | None:
    """The module's spec; None, to be found by others, of any other module."""
    if name != "gymnasium":
      return None
    others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
    spec = next((spec for spec in others if spec is not None), None)
    if spec is not None and spec.loader is not None:
      run = spec.loader.exec_module

      def run_and_register(module: ModuleType) -> None:
        run(module)
        if self in sys.meta_path:
          sys.meta_path.remove(self)
        register()

      spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
    return spec
