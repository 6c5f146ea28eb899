"""Simulators by name. Each is imported when it is first made, so that training needs none."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wam_jax.envs import base

if TYPE_CHECKING:
  from wam_jax.envs import vector

# name -> module and attribute of the environment, module and attribute of the renderer
_SIMULATORS = {
  "play_table": (
    "wam_jax.envs.play_table.simulator:PlayTable",
    "wam_jax.envs.play_table.renderer:make_renderer",
  ),
}
NAMES = tuple(_SIMULATORS)


def _load(name: str, part: int):
  if name not in _SIMULATORS:
    raise ValueError(f"unknown simulator {name!r}; known: {', '.join(NAMES)}")
  module, attribute = _SIMULATORS[name][part].split(":")
  return getattr(importlib.import_module(module), attribute)


def make_environment(name: str) -> base.Environment:
  """One environment of the simulator `name`. Raises ValueError for an unknown name."""
  return _load(name, 0)()


def make_renderer(name: str, image_size: int = 64, workers: int = 0) -> base.Renderer:
  """The renderer of the simulator `name`.

  Args:
    name: one of NAMES.
    image_size: height and width in pixels.
    workers: threads; 0: one per core.

  Raises:
    ValueError: unknown name, or a number out of range.
  """
  return _load(name, 1)(image_size, workers)


def make_vector(name: str, num: int, workers: int = 0, image_size: int = 64) -> vector.VectorEnvironment:
  """`num` environments of the simulator `name`, stepped and drawn together."""
  from wam_jax.envs import vector

  return vector.VectorEnvironment(name, num, workers, image_size)
