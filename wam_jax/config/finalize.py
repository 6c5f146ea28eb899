"""From a preset to the config of a run: overrides, checks, and what is taken from the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from wam_jax.config.checks import ConfigError, Problem, did_you_mean, shown
from wam_jax.config.fields import FIELDS
from wam_jax.config.rules import RULES, check_rule
from wam_jax.config.surroundings import DERIVED


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> list[Problem]:
  """Sets fields from command-line text, in place, as far as possible.

  Args:
    config: changed.
    overrides: (dotted path, text) pairs.

  Returns:
    What could not be set: unknown keys with the likely right one, texts that are not of the field's type.
  """
  fields = flatten(config)
  problems = []
  for path, text in overrides:
    if path not in fields:
      inside = [name for name in fields if name.startswith(path + ".")]
      group_fields = f"a group, with {', '.join(name[len(path) + 1 :] for name in inside)}" if inside else ""
      better = did_you_mean(path, fields) or "see wam_jax/config/fields.py for all fields"
      problems.append(Problem(path, text, "a field of the config", group_fields or better))
      continue
    try:
      # An empty list does not show what belongs in it; its check does.
      empty = fields[path] == () and path in FIELDS
      example = (FIELDS[path].check.item,) if empty else fields[path]
      config.update_from_flattened_dict({path: _parse(text, example)})
    except (ValueError, SyntaxError, TypeError):
      kind = _type_name(fields[path])
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
    ConfigError: listing every problem.
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

  for needs, derive in DERIVED:
    if not wrong & set(needs):
      problems += derive(c) or ()
  if problems:
    raise ConfigError(problems)
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


# What is divided over the devices, by the stage that divides it, and what else must divide it.
_DIVIDED = (
  ("world_model.batch_size", "world_model.accumulate"),
  ("behaviour_cloning.batch_size", ""),
  ("classifier.batch_size", ""),
  ("ppo.dreams", ""),
)


def device_problems(config: Any, num_devices: int, num_processes: int = 1) -> list[Problem]:
  """Batches that the devices of a run cannot share evenly.

  Args:
    config: from `finalize`.
    num_devices: of all processes.
    num_processes: of the run.
  """
  requested = config.training.devices
  if requested > num_devices:
    rule = f"at most the {num_devices} devices that there are"
    return [Problem("training.devices", requested, rule, "leave it at 0 to use all of them")]
  if num_processes > 1 and requested not in (0, num_devices):
    rule = f"0 or all {num_devices} devices, with {num_processes} processes"
    return [Problem("training.devices", requested, rule, "leave it at 0, or start fewer processes")]
  devices = requested or num_devices
  fields = flatten(config)
  problems = []
  if num_processes > 1 and config.stage == "online_ppo":
    rule = "not online_ppo with several processes: its simulators are one machine's"
    problems.append(Problem("stage", config.stage, rule, "start one process"))
  for path, factor in _DIVIDED:
    size, unit = fields[path], devices * (fields[factor] if factor else 1)
    if size % unit:
      low, high = size // unit * unit, (size // unit + 1) * unit
      nearest = " or ".join(str(multiple) for multiple in (low, high) if multiple)
      divisor = f"{devices} devices" + (f" times {factor}" if factor and fields[factor] > 1 else "")
      fix = f"--config.{path}={nearest}"
      fewer = max(n for n in range(1, devices + 1) if size % (n * unit // devices) == 0)
      if num_processes == 1:
        fix += f", or --config.training.devices={fewer}"
      problems.append(Problem(path, size, f"a multiple of {unit} ({divisor})", fix))
  return problems


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
