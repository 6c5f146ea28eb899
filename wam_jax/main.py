"""Runs an experiment.

python -m wam_jax.main --config=experiments/calvin_wam.py[:demo|small|paper] [--config.GROUP.FIELD=VALUE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from wam_jax import config as config_lib
from wam_jax.config import ConfigError, Problem
from wam_jax.stages import runner

EXPERIMENT = "experiments/calvin_wam.py"
# config_flags loads the file; overrides are not its business (sys_argv), see `split_overrides`.
_CONFIG = config_flags.DEFINE_config_file("config", None, f"Experiment file, as {EXPERIMENT}.", sys_argv=[""])
_overrides: list[tuple[str, str]] = []


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--config.a.b=v`, `--config.a.b v`, `--config.flag` and `--noconfig.flag` out of the arguments.

  absl stops at the first that it does not know; `config.apply_overrides` finds all that is wrong.

  Returns:
    The other arguments, and (dotted path, text) pairs.
  """
  rest: list[str] = []
  overrides: list[tuple[str, str]] = []
  fields = config_lib.flatten(config_lib.default_config())
  words = iter(argv)
  for word in words:
    name, equals, value = word.lstrip("-").partition("=")
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


def parse(argv: Sequence[str]) -> list[str]:
  """absl's flag parser, with the config's overrides kept for `main`."""
  rest, _overrides[:] = split_overrides(argv)
  try:
    unparsed = flags.FLAGS(rest)
    if _CONFIG.value is None:
      flags.FLAGS["config"].parse(EXPERIMENT)
    config_lib.flatten(_CONFIG.value)  # a file that could not be read raises only when looked at
    return unparsed
  except (ConfigError, flags.Error) as error:
    sys.exit(_report(error, 2))
  except OSError as error:
    given = next((word.partition("=")[2] for word in rest if word.startswith("--config=")), EXPERIMENT)
    fix = f"{str(error).strip().splitlines()[-1].strip()}; run from the repository, or give the path"
    sys.exit(_report(ConfigError([Problem("--config", given, "an experiment file[:preset]", fix)]), 2))


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    return _report(f"not understood: {' '.join(argv[1:])} (fields are set by --config.GROUP.FIELD=VALUE)", 2)
  logging.set_verbosity(logging.WARNING)  # Orbax reports every step of its work otherwise
  try:
    config = _CONFIG.value
    problems = config_lib.apply_overrides(config, _overrides)
    runner.run(config_lib.finalize(config, problems))
  except ConfigError as error:
    return _report(error, 2)
  except KeyboardInterrupt:
    return _report("interrupted; the same command goes on from here", 130)
  except Exception as error:
    if not type(error).__module__.startswith("wam_jax."):
      raise
    return _report(error, 1)  # our own errors say what to do; a traceback would hide it
  return 0


def _report(error: object, code: int) -> int:
  print(f"\n{error}", file=sys.stderr)
  return code


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
