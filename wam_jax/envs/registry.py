"""Simulators by name. Each is imported when it is first asked for, so that training needs none."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from wam_jax.envs import base
from wam_jax.envs.table import Skills
from wam_jax.host.words import printable

# What makes each of `config.env`, or some of it, as `module:attribute`.
_SIMULATORS = {
  "play_table": "wam_jax.envs.table_simulator:PlayTableSimulator",
  "calvin": "wam_jax.envs.table_simulator:CalvinSimulator",
  "metaworld": "wam_jax.envs.metaworld.simulator:MetaWorldSimulator",
}
# Modules of skills of those with CALVIN's scene.
_SKILLS = {"play_table": "wam_jax.envs.play_table.skills", "calvin": "wam_jax.envs.calvin.skills"}
# Fields of config.env that say which simulator it is; the others say how it is used.
IDENTITY = (
  "name",
  "calvin_root",
  "calvin_scene",
  "tasks",
  "pictures",
  "state",
  "success",
  "expert",
  "renderer",
  "distractors",
)
GROUP = "wam_jax.envs"  # of entry points, by which packages name their simulators
NAMES = tuple(_SIMULATORS)
TAUGHT = tuple(_SKILLS)


def load(env: str | Mapping[str, Any]) -> base.Simulator:
  """A simulator; nothing of it is running yet.

  Args:
    env: `config.env`; or its `name`, where all else is as by default.

  Raises:
    ValueError: unknown name, or settings that do not fit it.
    base.NotOffered: it cannot be had here, or lacks what each must offer.
  """
  return _load_once(json.dumps(identity(env), sort_keys=True))


def check_known(env: Mapping[str, Any]) -> None:
  """Keeps a run's files from saying which code is run: they may come from people whom nobody knows.

  Args:
    env: `config.env` as a file has it.

  Raises:
    base.NotOffered: its simulator is code that neither this package nor an installed one names.
  """
  if ":" in str(env.get("name", "")):
    rule = "code that only the run's files name is not run by itself"
    raise base.NotOffered(printable(f"env.name of the run is {env['name']}: {rule}"))


def without_code(env: Mapping[str, Any]) -> dict[str, Any]:
  """`config.env` as a file has it, but for code that it names by the way: CALVIN's is then $CALVIN_ROOT's."""
  return {**env, "expert": "", "calvin_root": ""}


def identity(env: str | Mapping[str, Any]) -> dict[str, Any]:
  """What of `config.env`, or of a name, makes a simulator; plain values."""
  if isinstance(env, str):
    return {"name": env}
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  return {key: plain(env[key]) for key in IDENTITY if key in env}


@functools.lru_cache(maxsize=8)
def _load_once(settings: str) -> base.Simulator:
  env = json.loads(settings)
  simulator = _load_plain(env)
  if level := env.get("distractors"):
    from wam_jax.envs.distractors import DistractedSimulator

    return DistractedSimulator(simulator, level)
  return simulator


def _load_plain(env: Mapping[str, Any]) -> base.Simulator:
  """Without distractors."""
  name = env["name"]
  kind, _, env_id = name.partition(":")
  if kind == "gymnasium":
    from wam_jax.envs.gymnasium_env import GymnasiumSimulator, make_registered

    _look_here()  # ENV_ID may name a module that registers it
    return GymnasiumSimulator(env, make_registered(env_id), _import)
  if place := _SIMULATORS.get(name):
    found = _import(place)
  elif points := importlib.metadata.entry_points(group=GROUP, name=name):
    point = next(iter(points))
    with base.calling(f"{name}: importing {point.value}, its entry point,"):
      found = point.load()
  elif env_id:
    found = _import(name)
  else:
    raise ValueError(f"unknown simulator {name!r}; known: {', '.join(names())}, {OTHERS}")
  if isinstance(found, type) and issubclass(found, base.Simulator):
    if place:
      return found(env)
    with base.calling(f"{name}: making it"):
      return _complete(found(env))
  from wam_jax.envs.gymnasium_env import GymnasiumSimulator

  return GymnasiumSimulator(env, found, _import)


def _complete(simulator: base.Simulator) -> base.Simulator:
  """Of somebody else's; raises NotOffered: it leaves out what each must have."""
  if missing := [name for name in ("name", "embodiment", "tasks") if not hasattr(simulator, name)]:
    raise base.NotOffered(f"{type(simulator).__name__} has no {', '.join(missing)}, which each Simulator has")
  return simulator


OTHERS = "gymnasium:ENV_ID or module:attribute"


def names() -> tuple[str, ...]:
  """Of all simulators that have one: ours, and those of packages installed here."""
  return NAMES + tuple(sorted(importlib.metadata.entry_points(group=GROUP).names))


def _import(place: str) -> Any:
  """What `module:attribute` names, also in the folder that a program was started in.

  Raises base.NotOffered: there is none.
  """
  module, _, attribute = place.partition(":")
  _look_here()
  with base.calling(f"{place}: importing it"):
    loaded = importlib.import_module(module)
    return functools.reduce(getattr, attribute.split("."), loaded) if attribute else loaded


def _look_here() -> None:
  if (here := os.getcwd()) not in sys.path:  # as `python -m` has it, and an installed command has not
    sys.path.append(here)


def load_skills(name: str) -> Skills:
  """What can be done in the scene of the simulator `name`, and how. Raises ValueError: it has none."""
  if name not in _SKILLS:
    raise ValueError(f"simulator {name!r} has no table of skills; those that have: {', '.join(TAUGHT)}")
  out: Skills = _import(_SKILLS[name])
  return out
