"""Runs an experiment.

python -m wam_jax.main --config=experiments/calvin_wam.py[:demo|small|paper] [--config.GROUP.FIELD=VALUE]

Our own experiments are found by that name, or by calvin_wam[:demo], from every folder. --config.stage=plan,
or no argument, shows what would be done. All fields: docs/CONFIG.md (python -m wam_jax.config.reference). On
several hosts the same command runs on each: docs/CLUSTER.md. Exit codes: wam_jax/running/entry.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config import ConfigError
from wam_jax.host import console
from wam_jax.running import entry

EXPERIMENT = "experiments/calvin_wam.py"
_CONFIG = flags.DEFINE_string("config", EXPERIMENT, "Experiment file[:preset]; overrides: `split_overrides`.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "HOST:PORT of the first of several processes; empty: as SLURM, Open MPI or the pod say",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of this run, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Of this process, from 0, with --coordinator.")
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "With the plan: accelerators, as v5e:4x4, that all is compiled for (wam_jax.aot). Minutes."
)
_experiment = ConfigDict()  # what the file gives, and what the command line changes of it; see `parse`
_overrides: list[tuple[str, str]] = []


def parse(argv: Sequence[str]) -> list[str]:
  """absl's flag parser, with the experiment's config and its overrides kept for `main`."""
  global _experiment
  rest, _overrides[:] = config_lib.split_overrides([*argv, "--config.stage=plan"] if len(argv) == 1 else argv)
  try:
    unparsed = flags.FLAGS(rest)
    _experiment = config_lib.load_experiment(config_lib.experiment_file(_CONFIG.value))
    return unparsed
  except (ConfigError, flags.Error) as error:
    sys.exit(entry.report(error, 2))


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    return entry.report(f"not understood: {' '.join(argv[1:])} (a field: --config.GROUP.FIELD=VALUE)", 2)
  logging.set_verbosity(logging.WARNING)  # Orbax reports every step of its work otherwise
  code = entry.run(_config, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if _TOPOLOGY.value and code == 0 and _config().stage == "plan":
    from wam_jax.commands import aot  # JAX, which the plan itself does without

    return aot.report(_config(), _TOPOLOGY.value)
  if len(sys.argv) == 1:
    print(f"\nNothing was started. To start it: python -m wam_jax.main --config={EXPERIMENT}")
  return code


def _config() -> ConfigDict:
  return config_lib.finalize(_experiment, config_lib.apply_overrides(_experiment, _overrides))


if __name__ == "__main__":
  console.run_program(lambda: app.run(main, flags_parser=parse))
