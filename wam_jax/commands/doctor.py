"""Says what is installed, what this machine has, and what keeps wam_jax from running on it.

python -m wam_jax.doctor            # for people; each problem is followed by the line that fixes it
python -m wam_jax.doctor --json     # the same for scripts

Exit code 0: the demo can run; 1: it cannot (problems marked !). What is optional never makes it 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import wam_jax
from wam_jax.commands import doctor_jobs
from wam_jax.host import console, machine, surroundings

MEMORY, DISK = 3.4e9, 2e9  # bytes that the demo takes


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is wrong with what, the one line that fixes it, and whether the demo cannot run until then."""

  subject: str
  what: str
  fix: str
  stops_demo: bool = False


@dataclasses.dataclass
class Section:
  """What one check found."""

  name: str
  facts: list[str] = dataclasses.field(default_factory=list)
  problems: list[Problem] = dataclasses.field(default_factory=list)

  def problem(self, *args: Any) -> None:
    """Adds one; arguments of `Problem`."""
    self.problems.append(Problem(*args))


def check_machine(name: str) -> Section:
  """Python, system, cores, memory, the disk of the working folder, and the place for compiled programs."""
  memory, disk, folder = machine.host_bytes(), shutil.disk_usage(".").free, os.getcwd()
  section = Section(name, [f"Python {platform.python_version()} at {sys.executable}", platform.platform()])
  cores = machine.available_cores()
  section.facts += [f"{cores} CPU core{'s' * (cores > 1)}", f"{memory / 1e9:.1f} GB of memory free"]
  section.facts.append(f"{disk / 1e9:.1f} GB of disk free in {folder}")
  if sys.flags.optimize > 1:
    problem = "runs with -OO, which drops the docstrings that TensorFlow Probability needs"
    section.problem("Python", problem, "unset PYTHONOPTIMIZE", True)
  for variable, value in surroundings.other_settings().items():
    problem = f"is {os.environ[variable]}; wam_jax uses {value} all the same"
    section.problem(variable, problem, f"unset {variable}  # or leave it")
  if memory < MEMORY:  # other programs may have ended when the demo needs it
    section.problem("Memory", f"is short: the demo takes {MEMORY / 1e9:g} GB", "end other programs")
  if disk < DISK or not machine.writable(folder):
    problem = f"must take {DISK / 1e9:g} GB from the demo: it is full, or you may not write in it"
    section.problem("The working folder", problem, "cd FOLDER  # or --config.workdir=FOLDER", True)
  if not machine.writable(machine.compilation_cache()):
    problem = f"compiles everything again each time: it cannot write in {machine.compilation_cache()}"
    section.problem("JAX", problem, "export JAX_COMPILATION_CACHE_DIR=FOLDER  # where you may write")
  return section


def check_packages(name: str, seconds: float, extra: str = "") -> Section:
  """Versions against their bounds, and imports: of what wam_jax always needs, or of an optional extra."""
  from packaging.requirements import Requirement

  section, versions, missing = Section(name), {}, {}
  for requirement in map(Requirement, metadata.requires("wam_jax") or []):
    applies = [
      requirement.marker is None or requirement.marker.evaluate({"extra": group}) for group in ("", extra)
    ]
    if applies != [not extra, True]:
      continue
    bounds = ",".join(sorted(map(str, requirement.specifier), reverse=True))
    try:
      version = versions[requirement.name] = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
      missing[requirement.name] = requirement.name + bounds
      continue
    section.facts.append(f"{requirement.name} {version} ({bounds})")
    if not requirement.specifier.contains(version, prereleases=True):
      fix = f"pip install {shlex.quote(requirement.name + bounds)}"
      section.problem(requirement.name, f"is {version}, must be {bounds}", fix, not extra)
  if missing:
    section.problem(", ".join(missing), "not found", f"pip install {shlex.join(missing.values())}", not extra)
  for name, (error, fix) in doctor_jobs.import_errors(versions, seconds).items():
    section.problem(name, f"cannot be imported: {error}", fix, not extra)
  return section


def check_devices(name: str, seconds: float) -> Section:
  """The devices that JAX computes on, and why not on a present accelerator."""
  accelerator = machine.find_accelerator()
  kinds, failure = doctor_jobs.run(doctor_jobs.devices, seconds)
  facts = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
  section = Section(name, [*facts, *filter(None, [accelerator.why_not])])
  if failure:
    fix = "unset JAX_PLATFORMS" if "JAX_PLATFORMS" in os.environ else "export JAX_PLATFORMS=cpu"
    fix = "pip install -e ." if failure.startswith("ModuleNotFoundError") else fix
    section.problem("JAX", f"finds no device: {failure}", fix, True)
  elif accelerator.device and all(kind.startswith("cpu") for kind in kinds):
    fix = f"pip install --force-reinstall 'jax[{'tpu' if accelerator.device == 'TPU' else 'cuda12'}]'"
    section.problem(accelerator.device, "is there, but JAX computes on the CPU", fix)
  elif accelerator.fix:
    section.problem("JAX", "does not use the accelerator that is there", accelerator.fix)
  return section


def check_table(name: str, seconds: float) -> Section:
  """The embedded simulator: its physics, and then physics and pictures through gymnasium."""
  section = Section(name)
  for job, package in ((doctor_jobs.step_table, "mujoco"), (doctor_jobs.step_gymnasium, "gymnasium")):
    facts, failure = doctor_jobs.run(job, seconds)
    section.facts += facts
    if failure:
      section.problem(package, f"made no step: {failure}", f"pip install --force-reinstall {package}", True)
  return section


def check_calvin(name: str, seconds: float) -> Section:
  """CALVIN's packages, simulator and dataset."""
  section = check_packages(name, seconds, "calvin")
  facts, failure = doctor_jobs.run(doctor_jobs.step_calvin, seconds)
  section.facts += facts
  fix = "git clone https://github.com/mees/calvin_env && export CALVIN_ROOT=$PWD/calvin_env"
  reported = any(words in failure for words in ("not installed", "is installed, but"))
  if failure and facts:
    module = re.search(r"No module named '(\w+)", failure)
    section.problem("calvin_env", f"made no step: {failure}", f"pip install {module[1]}" if module else fix)
  elif failure and not reported:
    problem = (
      f"names no simulator: {failure.partition(': ')[2]}" if "CALVIN_ROOT" in os.environ else "is not set"
    )
    section.problem("$CALVIN_ROOT", problem, fix)
  dataset = os.path.expanduser(os.environ.get("CALVIN_DATA", ""))
  files = [f"{dataset}/{split}/ep_start_end_ids.npy" for split in ("training", "validation")]
  if dataset and all(map(os.path.isfile, files)):
    section.facts.append(f"dataset in {dataset}")
  else:
    fix = "export CALVIN_DATA=FOLDER  # made by dataset/download_data.sh of github.com/mees/calvin"
    problem = f"names no dataset, with {' and '.join(files)}" if dataset else "is not set"
    section.problem("$CALVIN_DATA", problem, fix)
  return section


def examine(seconds: float) -> Iterator[Section]:
  """All checks, each process with so much time. A check that fails itself is a problem too."""
  checks: dict[str, tuple[Any, ...]] = {
    "Machine": (check_machine,),
    "Packages": (check_packages, seconds),
    "JAX devices": (check_devices, seconds),
    "Embedded simulator": (check_table, seconds),
    "CALVIN (optional)": (check_calvin, seconds),
    "PyTorch (optional, for benchmarks)": (check_packages, seconds, "torch"),
  }
  broken: list[str] = []
  for name, (check, *args) in checks.items():
    if broken and check in (check_devices, check_table):
      yield Section(name, [f"not tried: mend {broken[0]} first"])
      continue
    try:
      section = check(name, *args)
    except Exception as error:
      reason = f"was not checked: {doctor_jobs.first_line(error)}"
      fix = "cd FOLDER" if isinstance(error, OSError) else "pip install --force-reinstall -e ."
      section = Section(name, [], [Problem("This", reason, fix, check not in (check_packages, check_calvin))])
    stopping = {
      word for problem in section.problems if problem.stops_demo for word in problem.subject.split(", ")
    }
    broken += sorted(stopping & {*doctor_jobs.FIRST, "JAX"})
    yield section


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the report; returns the exit code."""
  parser = argparse.ArgumentParser(
    "python -m wam_jax.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--seconds", type=float, default=120.0, help="for each process that tries something")
  args = parser.parse_args(argv)
  sections = []
  for section in examine(args.seconds):
    sections.append(section)
    if not args.json:
      text = f"{section.name}: {', '.join(section.facts)}"
      print(textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False), flush=True)
      for problem in section.problems:
        print(
          f"  {'!' if problem.stops_demo else '-'} {problem.subject} {problem.what}\n      {problem.fix}",
          flush=True,
        )
  stopping = [problem.subject for section in sections for problem in section.problems if problem.stops_demo]
  if args.json:
    report = {"wam_jax": wam_jax.__version__, "demo_can_run": not stopping, "sections": sections}
    print(json.dumps(report, indent=2, default=vars))
  else:
    print(f"\nThe demo cannot run: {', '.join(stopping)} (!)" if stopping else "\nThe demo can run.")
  return 1 if stopping else 0


if __name__ == "__main__":
  console.run_program(main)
