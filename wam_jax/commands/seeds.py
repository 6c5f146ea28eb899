"""Several seeds of one recipe in one table. No stage runs.

python -m wam_jax.seeds --results=results/demo --runs=runs/seed20,runs/seed21   # keeps the runs' numbers
python -m wam_jax.seeds --results=results/demo                                  # the table of all kept there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from wam_jax.host import console, machine
from wam_jax.host.words import printable
from wam_jax.reporting import seeds
from wam_jax.reporting.finished_run import RunError, read_run
from wam_jax.storage.artifact import ArtifactError


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.seeds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--results", required=True, type=machine.local_path, metavar="FOLDER", help="of the JSON files"
  )
  parser.add_argument(
    "--runs", default="", metavar="RUN,RUN2", help="folders of finished runs, to be kept there"
  )
  arguments = parser.parse_args(argv)
  try:
    for folder in [folder for folder in arguments.runs.split(",") if folder]:
      print(f"kept: {seeds.keep(read_run(folder), arguments.results)}")
    results = seeds.read(arguments.results)
  except (RunError, ArtifactError, OSError) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  if not results:
    print(f"\n{arguments.results}: no runs are kept here; name finished ones with --runs", file=sys.stderr)
    return 1
  print(printable(seeds.markdown(results)))
  return 0


if __name__ == "__main__":
  console.run_program(main)
