"""Writes a policy, its world model's encoder and filter included, as files that run without wam_jax.

python -m wam_jax.export --workdir=RUN --task=open_drawer --out=FOLDER [--platforms=cpu,cuda,tpu] [--batch=1]

FOLDER then holds two functions serialised by `jax.export` (start.jaxexport, step.jaxexport), their parameters
(params.npz), a description (policy.json) and a program that runs them with jax, flatbuffers and
numpy (run_policy.py). The functions are

  start(params, seed int32) -> state
  step(params, state, observation) -> (state, action [B, A])

where params, state and observation are dicts of arrays. One step is one frame.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from wam_jax.acting import load
from wam_jax.acting.export import PLATFORMS, ExportError, export_policy
from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import TRAINED
from wam_jax.host import console, machine, surroundings
from wam_jax.host.words import printable
from wam_jax.storage.artifact import ArtifactError
from wam_jax.storage.checksums import CheckpointError


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--workdir", type=machine.local_path, required=True, help="a run's folder, or that of a finished policy"
  )
  parser.add_argument("--task", help="one of the policy's; may be left out if it has one only")
  parser.add_argument("--out", type=machine.local_path, required=True, help="folder to make")
  parser.add_argument("--which", choices=TRAINED, help="default: ppo if finished, else cloned")
  parser.add_argument(
    "--world_model", type=machine.local_path, help="folder of the world model, if it was moved"
  )
  parser.add_argument(
    "--platforms", help=f"comma-separated, of {','.join(PLATFORMS)}; default: this machine's"
  )
  parser.add_argument("--ddim_steps", type=int, default=0, help="denoising steps, by DDIM; default: all")
  parser.add_argument("--batch", type=int, default=1, help="robots side by side")
  arguments = parser.parse_args(argv)
  if arguments.batch < 1:
    parser.error(f"--batch: expected at least 1, got {arguments.batch}")
  platforms = arguments.platforms.split(",") if arguments.platforms else None
  try:
    surroundings.start_jax()
    try:
      policy = load.load_policy(
        arguments.workdir, arguments.task, arguments.which, arguments.world_model, arguments.ddim_steps
      )
    except ValueError as error:
      parser.error(str(error))
    out = export_policy(policy, arguments.out, platforms, arguments.batch)
  except (
    PolicyError,
    ExportError,
    ArtifactError,
    CheckpointError,
    surroundings.SurroundingsError,
    OSError,
  ) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  size = sum(path.stat().st_size for path in out.iterdir())
  made = printable(f"{policy.task} ({', '.join(policy.made_from)})")
  print(f"{made} written to {out}, {size / 1e6:.0f} MB. Try it:")
  print(f"  python {shlex.quote(str(out / 'run_policy.py'))}")
  return 0


if __name__ == "__main__":
  console.run_program(main)
