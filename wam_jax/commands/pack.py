"""Packs the policies of a finished run, and a card of them, into a folder for a model hub or one file.

  python -m wam_jax.pack --workdir=runs/calvin_wam_small --out=small        a folder: weights, settings, card
  python -m wam_jax.pack --workdir=runs/calvin_wam_small --out=small.npz    a file, with its card next to it

`wam_jax.load_policy("small", task)` and `python -m wam_jax.play --policy=small` read either.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from wam_jax.acting import load, packed
from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import POLICIES, TRAINED
from wam_jax.host import console, machine, surroundings
from wam_jax.reporting.finished_run import last_stage
from wam_jax.reporting.model_card import card
from wam_jax.storage.artifact import ArtifactError
from wam_jax.storage.checksums import CheckpointError


def pack(workdir: str, out: pathlib.Path, which: str | None = None) -> pathlib.Path:
  """Writes the policies of a finished run, and their card.

  Args:
    workdir: the run's folder, evaluated, or finished without a simulator.
    out: *.npz: a file to write, its card becomes *.md; any other name: a new folder.
    which: as for `load_policy`.

  Returns:
    `out`.

  Raises:
    PolicyError, ArtifactError, CheckpointError: as `load_policy`; or weights that half precision cannot hold,
      or a folder that is there already.
  """
  artifact, policy, params, tasks = load.load_stacked(workdir, which)
  policy_name = which or next(name for name in TRAINED if POLICIES[name].stage == artifact.stage)
  world, text = load.find_world_model(artifact), card(last_stage(workdir), policy_name, out)
  packed.write_packed(out, artifact, policy_name, tasks, policy, params, world, text)
  return out


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=machine.local_path, required=True, help="a finished run's folder")
  parser.add_argument("--out", type=machine.local_path, required=True, help="folder to make, or file *.npz")
  parser.add_argument("--which", choices=TRAINED, help="default: ppo if finished, else cloned")
  arguments = parser.parse_args(argv)
  try:
    surroundings.start_jax()
    out = pack(arguments.workdir, arguments.out, arguments.which)
  except (PolicyError, ArtifactError, CheckpointError, surroundings.SurroundingsError, OSError) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  weights, text = (
    (out, out.with_suffix(".md")) if out.is_file() else (out / packed.WEIGHTS, out / packed.CARD)
  )
  print(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB; {text} says what it is.")
  last = last_stage(arguments.workdir)
  if last.stage == "evaluate" and ":" not in last.config["env"]["name"]:  # else its settings are not packed
    print(f"Try it:\n  python -m wam_jax.play --policy={shlex.quote(str(out))}")
  else:
    print(f"Load it: wam_jax.load_policy({str(out)!r}, task=...)")
  return 0


if __name__ == "__main__":
  console.run_program(main)
