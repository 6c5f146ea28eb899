"""Simulators by name. Each is imported when it is first asked for, so that training needs none."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from wam_jax.envs import base
from wam_jax.envs.table import Skills

# What makes each of `config.env`, or some of it, as `module:attribute`.
_SIMULATORS = {
  "play_table": "wam_jax.envs.table_simulator:PlayTableSimulator",
  "calvin": "wam_jax.envs.table_simulator:CalvinSimulator",
  "metaworld": "wam_jax.envs.metaworld.simulator:MetaWorldSimulator",
}
# Modules of skills of those with CALVIN's scene.
_SKILLS = {"play_table": "wam_jax.envs.play_table.skills", "calvin": "wam_jax.envs.calvin.skills"}
_IDENTITY = ("name", "calvin_root", "calvin_scene")
NAMES = tuple(_SIMULATORS)
TAUGHT = tuple(_SKILLS)


def load(env: str | Mapping[str, Any]) -> base.Simulator:
  """A simulator; nothing of it is running yet.

  Args:
    env: `config.env`; or its `name`, where all else is as by default.

  Raises:
    ValueError: unknown name.
  """
  return _load_once(tuple(sorted(identity(env).items())))


def identity(env: str | Mapping[str, Any]) -> dict[str, Any]:
  """What of `config.env`, or of a name, makes a simulator; plain values."""
  return {"name": env} if isinstance(env, str) else {key: env[key] for key in _IDENTITY if key in env}


@functools.lru_cache(maxsize=8)
def _load_once(settings: tuple[tuple[str, Any], ...]) -> base.Simulator:
  env = dict(settings)
  place = _SIMULATORS.get(env["name"])
  if place is None:
    raise ValueError(f"unknown simulator {env['name']!r}; known: {', '.join(NAMES)}")
  out: base.Simulator = _import(place)(env)
  return out


def _import(place: str) -> Any:
  module, _, attribute = place.partition(":")
  loaded = importlib.import_module(module)
  return getattr(loaded, attribute) if attribute else loaded


def load_skills(name: str) -> Skills:
  """What can be done in the scene of the simulator `name`, and how. Raises ValueError: it has none."""
  if name not in _SKILLS:
    raise ValueError(f"simulator {name!r} has no table of skills; those that have: {', '.join(TAUGHT)}")
  out: Skills = _import(_SKILLS[name])
  return out
