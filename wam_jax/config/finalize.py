"""From a preset to the config of a run: overrides, checks, and what is taken from the machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from wam_jax.config.checks import ConfigError, Problem, did_you_mean, shown
from wam_jax.config.fields import FIELDS
from wam_jax.config.presets import (
  default_config,
  experiment_file,
  load_experiment,
  own_experiments,
  preset_config,
)
from wam_jax.config.rules import RULES, check_rule
from wam_jax.config.surroundings import DERIVED


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--config.a.b=v`, `--config.a.b v`, `--config.flag` and `--noconfig.flag` out of the arguments.

  absl stops at the first that it does not know; `config.apply_overrides` finds all that is wrong.

  Returns:
    The other arguments, with --config as the path of a file, and (dotted path, text) pairs.
  """
  rest: list[str] = []
  overrides: list[tuple[str, str]] = []
  fields = flatten(default_config())
  words = iter(argv)
  for word in words:
    name, equals, value = word.lstrip("-").partition("=")
    if word.startswith("-") and name == "config":
      rest.append(f"--config={experiment_file(value if equals else next(words, ''))}")
      continue
    if not word.startswith("-") or not name.startswith(("config.", "noconfig.")):
      rest.append(word)
      continue
    negated, path = name.startswith("no"), name.split(".", 1)[1]
    flag = isinstance(fields.get(path), bool)
    if negated and (equals or not flag):
      path = name  # --noconfig.seed=3 says nothing: `apply_overrides` finds no such field
    elif not equals:
      value = str(not negated) if flag else next(words, "")
    overrides.append((path, value))
  return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, Any]]) -> list[Problem]:
  """Sets fields from command-line text, or from Python's values, in place, as far as possible.

  Args:
    config: changed.
    overrides: (dotted path, text or value) pairs.

  Returns:
    What could not be set: unknown keys with the likely right one, texts that are not of the field's type.
  """
  fields = flatten(config)
  problems = []
  for path, text in overrides:
    if not isinstance(path, str):
      problems.append(Problem(str(path), text, "the name of a field in quotes", "for instance 'seed'"))
      continue
    if path not in fields:
      inside = [name for name in fields if name.startswith(path + ".")]
      group_fields = f"a group, with {', '.join(name[len(path) + 1 :] for name in inside)}" if inside else ""
      better = did_you_mean(path, fields) or "see wam_jax/config/fields.py for all fields"
      problems.append(Problem(path, text, "a field of the config", group_fields or better))
      continue
    # An empty list does not show what belongs in it; its check does.
    empty = fields[path] == () and path in FIELDS
    example = (FIELDS[path].check.item,) if empty else fields[path]
    try:
      value = _plain(text)
      value = _parse(value, example) if isinstance(value, str) else value
      config.update_from_flattened_dict({path: value})
    except (ValueError, SyntaxError, TypeError):
      kind = _type_name(example)
      problems.append(Problem(path, text, kind, f"--config.{path}={shown(fields[path])} is the value it had"))
  return problems


def _parse(text: str, example: Any) -> Any:
  """Reads `text` as the type of `example`. Raises ValueError."""
  if isinstance(example, bool):
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
      raise ValueError(text)
    return words[text.lower()]
  if isinstance(example, int):
    number = float(text.replace("_", ""))  # 1e5 is an integer too
    if not number.is_integer():
      raise ValueError(text)
    return int(text) if text.replace("_", "").lstrip("+-").isdigit() else int(number)
  if isinstance(example, float):
    return float(text)
  if isinstance(example, tuple):
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):  # only both: a folder's name may end with a bracket
      text = text[1:-1]
    items = [item.strip().strip("'\"") for item in text.split(",")]
    return tuple(_parse(item, example[0] if example else "") for item in items if item)
  return text


def _plain(value: Any) -> Any:
  """A value as a config holds it: paths as text, lists and arrays as tuples, NumPy's numbers as Python's."""
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
    return tuple(map(_plain, value))
  return value.item() if isinstance(value, np.generic) else value


def _type_name(value: Any) -> str:
  if isinstance(value, tuple):
    return f"a comma-separated list, each {_type_name(value[0]) if value else 'a word'}"
  names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
  return names[type(value)]


def finalize(config: ConfigDict, problems: Sequence[Problem] = ()) -> ConfigDict:
  """Checks and completes a config: the only place where values are derived.

  Args:
    config: from an experiment file, after overrides; not changed.
    problems: what is already known to be wrong, reported together with the rest.

  Returns:
    A frozen copy. Derived: `workdir`, `data.calvin_path` from $CALVIN_DATA, `env.workers`.

  Raises:
    ConfigError: listing every problem; with the config, if all are about what this machine lacks.
  """
  c = ConfigDict(config.copy_and_resolve_references().to_dict())
  problems = [*problems, *_check_structure(c)]
  values = flatten(c)
  wrong = {problem.path for problem in problems} | (set(FIELDS) - set(values))
  for path, field in FIELDS.items():
    if path not in wrong:
      problems += field.problems(values[path])
  wrong |= {problem.path for problem in problems}
  for rule in RULES:
    if not wrong & {rule.path, *rule.needs}:
      problems += check_rule(rule, [values[path] for path in (rule.path, *rule.needs)])
  sound = not problems  # what else is missing is missing on this machine
  for needs, derive in DERIVED:
    if not wrong & set(needs):
      problems += derive(c) or ()
  if problems:
    raise ConfigError(problems, FrozenConfigDict(c) if sound else None)
  return FrozenConfigDict(c)


def _check_structure(config: ConfigDict) -> list[Problem]:
  """Fields that an experiment file added or removed."""
  fields = flatten(config)
  problems = []
  for path in fields:
    if path not in FIELDS:
      fix = did_you_mean(path, FIELDS) or "remove it, or add a row to wam_jax/config/fields.py"
      problems.append(Problem(path, fields[path], "a field of the config", fix))
  for path in FIELDS:
    if path not in fields:
      problems.append(Problem(path, None, "must be there", "start from wam_jax.config.preset_config"))
  return problems


def device_problems(config: Any, num_devices: int, num_processes: int = 1) -> list[Problem]:
  """What the devices and processes of a run cannot do.

  Args:
    config: from `finalize`.
    num_devices: of all processes.
    num_processes: of the run.
  """
  requested = config.training.devices
  if requested > num_devices:
    rule = f"at most {num_devices}, the devices that there are"
    return [Problem("training.devices", requested, rule, "leave it at 0 to use all of them")]
  if num_processes > 1 and requested not in (0, num_devices):
    rule = f"0 or all {num_devices} devices, with {num_processes} processes"
    return [Problem("training.devices", requested, rule, "leave it at 0, or start fewer processes")]
  if num_processes > 1 and config.stage == "online_ppo":
    rule = "not online_ppo with several processes: its simulators are one machine's"
    return [Problem("stage", config.stage, rule, "start one process")]
  return []


def settings_read(config: Any, reads: Iterable[str]) -> dict[str, Any]:
  """Dotted path -> value of what a result depends on.

  Args:
    config: the run's.
    reads: fields, or groups of them.
  """
  return {
    path: value
    for path, value in flatten(config).items()
    if any(path == name or path.startswith(name + ".") for name in reads)
    if path not in FIELDS or FIELDS[path].silent is None or value != FIELDS[path].silent
  }


# What a command need not repeat: its own parts, and what is taken from the machine.
_NO_FLAGS = ("experiment", "preset", "preset_reason", "stage", "workdir", "env.workers")


def command(config: Any, **changes: Any) -> str:
  """The command of a run, with all fields that differ from its experiment file; of others, from its preset.

  Args:
    config: from `finalize`.
    **changes: path, with __ for each dot -> value, instead of the config's; stage and workdir among them.
  """
  own = own_experiments().get(config.experiment)
  begun = (
    load_experiment(f"{own}:{config.preset}") if own else preset_config(config.preset, config.experiment)
  )
  given = flatten(begun)
  values = {
    path: value
    for path, value in flatten(config).items()
    if path not in _NO_FLAGS and given.get(path) != value
  }
  values |= {path.replace("__", "."): value for path, value in changes.items()}
  file = f"experiments/{config.experiment}.py:{config.preset}" if own else "YOUR_EXPERIMENT.py"
  return " ".join([f"python -m wam_jax.main --config={file}", *(flag(path, values[path]) for path in values)])


def flag(path: str, value: Any) -> str:
  """What sets a field on the command line of a shell."""
  return shlex.quote(f"--config.{path}={shown(tuple(value) if isinstance(value, list) else value)}")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Config -> {dotted path: value}."""
  flat: dict[str, Any] = {}
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict | FrozenConfigDict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
