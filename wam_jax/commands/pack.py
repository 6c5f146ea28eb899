"""Packs the policies of a finished run into one small file, with a card that says what they are.

  python -m wam_jax.pack --workdir=runs/calvin_wam_small --out=small.npz

`wam_jax.load_policy("small.npz", task)` and `python -m wam_jax.play --policy=small.npz` read it.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from wam_jax.acting import packed
from wam_jax.acting.policy import POLICIES, PolicyError
from wam_jax.storage.artifact import ArtifactError
from wam_jax.storage.checksums import CheckpointError


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="a run's folder, evaluated")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write, *.npz")
  parser.add_argument("--which", choices=tuple(POLICIES), help="default: ppo if finished, else cloned")
  arguments = parser.parse_args(argv)
  if arguments.out.suffix != ".npz":
    parser.error(f"--out: expected a name that ends with .npz, got {arguments.out}")
  try:
    out = packed.pack(arguments.workdir, arguments.out, arguments.which)
  except (PolicyError, ArtifactError, CheckpointError) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; {out.with_suffix('.md')} says what it is. Try it:")
  print(f"  python -m wam_jax.play --policy={out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
