"""Packs the policies of a finished run into one small file, with a card that says what they are.

  python -m wam_jax.pack --workdir=runs/calvin_wam_small --out=small.npz

`wam_jax.load_policy("small.npz", task)` and `python -m wam_jax.play --policy=small.npz` read it.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from wam_jax.acting import load, packed
from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import POLICIES, TRAINED
from wam_jax.host import console, machine, surroundings
from wam_jax.reporting.model_card import card
from wam_jax.storage.artifact import ArtifactError, load_artifact, write_text
from wam_jax.storage.checksums import CheckpointError


def pack(workdir: str, out: pathlib.Path, which: str | None = None) -> pathlib.Path:
  """Writes the policies of a finished run, and their card next to them.

  Args:
    workdir: the run's folder, evaluated.
    out: file to write, *.npz; the card becomes *.md.
    which: as for `load_policy`.

  Returns:
    `out`.

  Raises:
    PolicyError, ArtifactError, CheckpointError: as `load_policy`; or weights that half precision cannot hold.
  """
  artifact, policy, params, tasks = load.load_stacked(workdir, which)
  policy_name = which or next(name for name in TRAINED if POLICIES[name].stage == artifact.stage)
  evaluated = load_artifact(workdir, "evaluate")
  packed.write_packed(out, artifact, policy_name, tasks, policy, params, load.find_world_model(artifact))
  write_text(out.with_suffix(".md"), card(evaluated, policy_name, out))
  return out


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=machine.local_path, required=True, help="a run's folder, evaluated")
  parser.add_argument("--out", type=machine.local_path, required=True, help="file to write, *.npz")
  parser.add_argument("--which", choices=TRAINED, help="default: ppo if finished, else cloned")
  arguments = parser.parse_args(argv)
  if arguments.out.suffix != ".npz":
    parser.error(f"--out: expected a name that ends with .npz, got {arguments.out}")
  try:
    surroundings.start_jax()
    out = pack(arguments.workdir, arguments.out, arguments.which)
  except (PolicyError, ArtifactError, CheckpointError, surroundings.SurroundingsError) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; {out.with_suffix('.md')} says what it is. Try it:")
  print(f"  python -m wam_jax.play --policy={out}")
  return 0


if __name__ == "__main__":
  console.run_program(main)
