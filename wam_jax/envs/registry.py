"""Simulators by name. Each is imported when it is first made, so that training needs none."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.envs import base
from wam_jax.envs.vector import VectorEnvironment


class Simulator(NamedTuple):
  """Where the parts of a simulator are, as `module:attribute`.

  Attributes:
    environment: makes one environment.
    renderer: makes a renderer.
    skills: module of its skills; empty: it has no scripted experts.
  """

  environment: str
  renderer: str
  skills: str = ""


_SIMULATORS = {
  "play_table": Simulator(
    "wam_jax.envs.play_table.simulator:PlayTable",
    "wam_jax.envs.play_table.renderer:make_renderer",
    "wam_jax.envs.play_table.skills",
  ),
  "calvin": Simulator(
    "wam_jax.envs.calvin.simulator:CalvinTable",
    "wam_jax.envs.calvin.pool:CalvinRenderer",
    "wam_jax.envs.calvin.skills",
  ),
}
NAMES = tuple(_SIMULATORS)
TAUGHT = tuple(name for name, simulator in _SIMULATORS.items() if simulator.skills)  # with a table of skills


def embodiment(name: str) -> Embodiment:
  """The robot of the simulator `name`. Raises ValueError: unknown name."""
  _find(name)
  return CALVIN  # of all that there are


def _find(name: str) -> Simulator:
  if name not in _SIMULATORS:
    raise ValueError(f"unknown simulator {name!r}; known: {', '.join(NAMES)}")
  return _SIMULATORS[name]


def _load(place: str) -> Any:
  module, _, attribute = place.partition(":")
  loaded = importlib.import_module(module)
  return getattr(loaded, attribute) if attribute else loaded


def _place(name: str, root: str, scene: str) -> dict[str, str]:
  """Arguments that say where a simulator is, for those that are not ours."""
  return {"root": root, "scene": scene} if name == "calvin" else {}


def make_environment(name: str, root: str = "", scene: str = "D") -> base.Environment:
  """One environment of the simulator `name`; CALVIN's only once in a process.

  Args:
    name: one of NAMES.
    root: checkout of calvin_env, for `calvin`; empty: $CALVIN_ROOT.
    scene: A, B, C or D of `calvin`.

  Raises:
    ValueError: unknown name.
    calvin.CalvinMissingError: CALVIN's simulator is not installed.
  """
  out: base.Environment = _load(_find(name).environment)(**_place(name, root, scene))
  return out


def load_skills(name: str) -> base.Skills:
  """What can be done in the simulator `name`, and how. Raises ValueError: unknown, or without experts."""
  place = _find(name).skills
  if not place:
    raise ValueError(f"simulator {name!r} has no scripted experts; those that have: {', '.join(TAUGHT)}")
  out: base.Skills = _load(place)
  return out


def make_renderer(
  name: str, image_size: int = 64, workers: int = 0, root: str = "", scene: str = "D"
) -> base.Renderer:
  """The renderer of the simulator `name`.

  Args:
    name: one of NAMES.
    image_size: height and width in pixels.
    workers: threads, or processes for `calvin`; 0: one per core.
    root: as in `make_environment`.
    scene: as in `make_environment`.

  Raises:
    ValueError: unknown name, or a number out of range.
  """
  out: base.Renderer = _load(_find(name).renderer)(image_size, workers, **_place(name, root, scene))
  return out


def make_vector(
  name: str, num: int, workers: int = 0, image_size: int = 64, root: str = "", scene: str = "D"
) -> base.VectorStepper:
  """`num` environments of the simulator `name`, stepped and drawn together; arguments of `make_renderer`."""
  if name == "calvin":  # one in a process
    from wam_jax.envs.calvin import pool as calvin_pool

    return calvin_pool.CalvinVector(num, workers, image_size, root, scene)
  environments = [make_environment(name) for _ in range(num)]
  return VectorEnvironment(environments, make_renderer(name, image_size, workers), workers)
