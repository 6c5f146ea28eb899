"""Meta-World behind `base.Simulator`. The package is imported when something is made."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wam_jax.envs import base
from wam_jax.envs.metaworld.scenes import NAMES, SAWYER

if TYPE_CHECKING:
  from wam_jax.envs.metaworld.environment import MetaWorldEnvironment


class MetaWorldSimulator(base.Simulator):
  """Eight tasks of Meta-World."""

  name, embodiment, tasks, experts, threads = "metaworld", SAWYER, NAMES, NAMES, True

  def __init__(self, settings: Mapping[str, Any]):
    """See `base.Simulator`."""
    super().__init__(settings)
    self._renderer = settings.get("renderer", "rays")

  def missing(self) -> str:
    """See `base.Simulator`."""
    if importlib.util.find_spec("metaworld") is None:
      return "pip install 'wam_jax[metaworld]'"
    from wam_jax.envs import mujoco_gl

    return (
      f"for env.renderer=gl {mujoco_gl.HOW_TO}" if self._renderer == "gl" and not mujoco_gl.works() else ""
    )

  def make(self) -> MetaWorldEnvironment:
    """See `base.Simulator`."""
    from wam_jax.envs.metaworld.environment import MetaWorldEnvironment

    return MetaWorldEnvironment()

  def make_renderer(self, image_size: int, workers: int = 0) -> base.Renderer:
    """See `base.Simulator`; with `env.renderer`."""
    from wam_jax.envs.metaworld.renderer import MetaWorldRenderer

    return MetaWorldRenderer(image_size, workers, self._renderer)

  def describe(self) -> dict[str, Any]:
    """With the package's version and what draws."""
    return {
      "name": self.name,
      "metaworld": importlib.metadata.version("metaworld"),
      "renderer": self._renderer,
    }
