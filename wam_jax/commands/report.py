"""Makes the page of a finished run again, or puts several runs side by side. No stage runs.

python -m wam_jax.report --workdir=runs/calvin_wam_demo
python -m wam_jax.report --workdir=runs/calvin_wam_demo --compare=runs/calvin_dreamerv2_demo --out=both.html
python -m wam_jax.report --workdir=runs/seed20 --compare=runs/seed21,runs/seed22     # of one recipe: mean too
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from wam_jax.host import console, machine, surroundings
from wam_jax.host.words import printable
from wam_jax.reporting.finished_run import Run, RunError, read_run
from wam_jax.storage.artifact import ArtifactError


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--workdir", type=machine.local_path, required=True, metavar="RUN", help="folder of a finished run"
  )
  parser.add_argument("--compare", default="", metavar="RUN2,RUN3", help="folders of runs to put beside it")
  parser.add_argument(
    "--out",
    type=machine.local_path,
    metavar="FILE.html",
    help="default: RUN/report/report.html (RUN/report.html without a report stage); RUN/comparison.html",
  )
  arguments = parser.parse_args(argv)
  if arguments.out is not None and arguments.out.suffix not in (".html", ".htm"):
    parser.error(f"--out: expected a name that ends with .html, got {arguments.out}")
  from wam_jax.reporting import comparison, run_report

  compared = [folder for folder in arguments.compare.split(",") if folder]
  try:
    surroundings.prepare_jax()  # for the pictures, without which there is a page too
    runs = [read_run(folder) for folder in (arguments.workdir, *compared)]
    out = arguments.out or _default(runs[0], bool(compared))
    out.parent.mkdir(parents=True, exist_ok=True)
    text, missing = comparison.write(runs, out) if compared else ("", run_report.rebuild(runs[0], out))
  except (RunError, ArtifactError, OSError) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  if text:
    print(printable(text), end="\n\n")
  for line in missing:
    print(printable(f"Note: {line}"))
  print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
  return 0


def _default(run: Run, compared: bool) -> pathlib.Path:
  if compared:
    return run.workdir / "comparison.html"
  report_folder = run.workdir / "report"
  return (report_folder if (report_folder / "DONE").exists() else run.workdir) / "report.html"


if __name__ == "__main__":
  console.run_program(main)
