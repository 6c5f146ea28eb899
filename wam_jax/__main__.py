"""All programs of the package under one name.

python -m wam_jax PROGRAM [ARGUMENTS], or wam_jax PROGRAM [ARGUMENTS]
"""

from __future__ import annotations

import ast
import difflib
import pathlib
import runpy
import sys
from typing import NoReturn

from wam_jax.host.console import run_program

# Program -> the module that holds it, and what is added to its arguments.
PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
  "train": ("main", ()),
  "plan": ("main", ("--config.stage=plan",)),
  "play": ("commands.play", ()),
  "report": ("commands.report", ()),
  "seeds": ("commands.seeds", ()),
  "export": ("commands.export", ()),
  "pack": ("commands.pack", ()),
  "inspect": ("data.inspect", ()),
  "convert": ("data.convert", ()),
  "doctor": ("commands.doctor", ()),
  "aot": ("commands.aot", ()),
}
EXAMPLES = """Examples:
  wam_jax doctor                                               what works on this machine
  wam_jax play --task=open_drawer                              a trained policy at work
  wam_jax plan --config=experiments/calvin_wam.py:demo         what a run would do and how long it takes
  wam_jax train --config=experiments/calvin_wam.py:demo        the run
  wam_jax train --config=experiments/calvin_wam.py:demo --config.seed=1 --config.workdir=runs/seed1
"""


def _about(program: str) -> str:
  """The first line of a program's documentation, which is read without importing it."""
  if program == "plan":
    return "Shows what an experiment would do and how long it would take."
  file = pathlib.Path(__file__).parent.joinpath(*PROGRAMS[program][0].split(".")).with_suffix(".py")
  text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
  return text.partition("\n\n")[0].replace("\n", " ")


def usage() -> str:
  """The programs, a line each."""
  lines = ["usage: wam_jax PROGRAM [ARGUMENTS], or python -m wam_jax PROGRAM [ARGUMENTS]", ""]
  lines += [f"  {program:<8} {_about(program)}" for program in PROGRAMS]
  return "\n".join([*lines, "", "wam_jax PROGRAM --help says more of one.", "", EXAMPLES])


def main() -> int:
  """Runs a program as `python -m wam_jax.NAME` does, or shows them all. Returns the exit code."""
  program, *arguments = sys.argv[1:] or ["--help"]
  if program in ("--help", "-h", "help"):
    print(usage())
    return 0
  if program not in PROGRAMS:
    close = difflib.get_close_matches(program, PROGRAMS, n=1)
    better = f"did you mean {close[0]}? " if close else ""
    print(f"wam_jax {program}: no such program; {better}There are {', '.join(PROGRAMS)}.", file=sys.stderr)
    return 2
  module, more = PROGRAMS[program]
  sys.argv = [sys.argv[0], *arguments, *more]
  runpy.run_module(f"wam_jax.{module}", run_name="__main__", alter_sys=True)
  return 0


def program() -> NoReturn:
  """The command `wam_jax`."""
  run_program(main)


if __name__ == "__main__":
  program()
