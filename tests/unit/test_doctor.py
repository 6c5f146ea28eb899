"""The doctor: a machine on which all is well, and every kind of trouble that it must survive and name."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from wam_jax.commands import doctor, doctor_jobs
from wam_jax.commands.doctor import Section
from wam_jax.host import machine

SECTIONS = ["Machine", "Packages", "JAX devices", "Embedded simulator", "CALVIN", "PyTorch"]
OPTIONAL = ("CALVIN (optional)", "PyTorch (optional, for benchmarks)")


@pytest.fixture
def front(tmp_path, monkeypatch):
  """A folder that comes first on the import path of the doctor's processes, and of this one."""
  folder = tmp_path / "front"
  folder.mkdir()
  monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
  monkeypatch.syspath_prepend(folder)
  return folder


@pytest.fixture
def empty_disk(front):
  """Any folder's disk has room, in the doctor's own process: what the tests leave free here is no matter."""
  source = "import shutil, types\nshutil.disk_usage = lambda folder: types.SimpleNamespace(free=9e12)\n"
  (front / "sitecustomize.py").write_text(source)


@pytest.fixture(autouse=True)
def _no_calvin(monkeypatch):
  for name in ("CALVIN_ROOT", "CALVIN_DATA"):
    monkeypatch.delenv(name, raising=False)


def packages(seconds=120.0):
  section = doctor.check_packages("Packages", seconds)
  return section, {problem.subject: problem for problem in section.problems}


def test_a_healthy_machine(empty_disk):
  command = [sys.executable, "-m", "wam_jax.doctor"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  lines, words = done.stdout.splitlines(), " ".join(done.stdout.split())
  heads = [line.partition(":")[0] for line in lines if line[:1].strip() and ":" in line]
  assert [head.split(" (")[0] for head in heads] == SECTIONS
  assert f"jax {metadata.version('jax')}" in words and lines[-1] == "The demo can run."
  assert "made a step and its pictures" in words and "cpu (cpu)" in words
  assert "$CALVIN_ROOT" in words  # named, and the exit code is 0 all the same
  for line, after in itertools.pairwise(lines):
    assert not line.startswith("  - ") or after.startswith(" " * 6)


def fake(monkeypatch, **problems):
  """Checks that find these problems at once, `(section's check, (…))`."""

  def check(which):
    def found(name, *_):
      section = Section(name, ["a fact"])
      if which in problems:
        section.problem(*problems[which])
      return section

    return found

  for which in ("machine", "packages", "devices", "table", "calvin"):
    monkeypatch.setattr(doctor, f"check_{which}", check(which))


def test_json_holds_what_people_are_told(monkeypatch, capsys):
  fake(monkeypatch, table=("mujoco", "made no step", "pip install mujoco", True), calvin=("x", "y", "z"))
  assert doctor.main(["--json"]) == 1
  report = json.loads(capsys.readouterr().out)
  assert report["demo_can_run"] is False
  assert [section["name"].split(" (")[0] for section in report["sections"]] == SECTIONS
  problem = {"subject": "mujoco", "what": "made no step", "fix": "pip install mujoco", "stops_demo": True}
  assert report["sections"][3] == {"name": "Embedded simulator", "facts": ["a fact"], "problems": [problem]}
  assert doctor.main([]) == 1
  out = capsys.readouterr().out
  assert "  ! mujoco made no step\n      pip install mujoco\n" in out and "  - x y\n      z\n" in out
  assert out.endswith("The demo cannot run: mujoco (!)\n")


def test_what_is_optional_does_not_stop_the_demo(monkeypatch, capsys):
  fake(monkeypatch, calvin=("$CALVIN_ROOT", "is not set", "git clone"), machine=("Memory", "is short", "end"))
  assert doctor.main([]) == 0
  assert capsys.readouterr().out.endswith("The demo can run.\n")


def test_without_jax_nothing_is_tried_with_it(monkeypatch):
  fake(monkeypatch, packages=("chex, jax", "not installed", "pip install", True))
  sections = {section.name: section for section in doctor.examine(1.0)}
  assert sections["JAX devices"].facts == sections["Embedded simulator"].facts
  assert sections["JAX devices"].facts == ["not tried: mend jax first"]
  assert sections["CALVIN (optional)"].facts == ["a fact"]


def test_a_check_that_fails_itself(monkeypatch):
  fake(monkeypatch)

  def no_place(name):
    raise OSError("no such place\nand more")

  def no_packaging(name, seconds, extra=""):
    raise ImportError("half an installation")

  monkeypatch.setattr(doctor, "check_machine", no_place)
  monkeypatch.setattr(doctor, "check_packages", no_packaging)
  first, second, *others = doctor.examine(1.0)
  assert first.problems[0].what == "was not checked: OSError: no such place" and len(others) == 4
  assert first.problems[0].stops_demo and "cd FOLDER" in first.problems[0].fix
  assert not second.problems[0].stops_demo and "pip install" in second.problems[0].fix


def test_an_environment_in_which_nothing_is_installed(front, empty_disk):
  for name in ("jax", "packaging"):
    (front / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
  done = subprocess.run([sys.executable, "-m", "wam_jax.doctor"], capture_output=True, text=True, timeout=300)
  assert done.returncode == 1 and "The demo cannot run: JAX (!)" in done.stdout and not done.stderr
  assert (
    "JAX finds no device: ModuleNotFoundError: No module named 'jax'\n      pip install -e ." in done.stdout
  )
  assert "packaging" in done.stdout and "not tried: mend JAX first" in done.stdout


def test_a_broken_package_and_those_that_need_it(front):
  (front / "distrax.py").write_text("raise ValueError('broken on purpose\\nsecond line')")
  (front / "flax").mkdir()
  (front / "flax" / "__init__.py").write_text("import no_such_package")
  (front / "chex.py").write_text("raise SystemExit(3)")
  section, found = packages()
  assert set(found) == {"distrax", "flax", "chex"} and all(one.stops_demo for one in found.values())
  assert found["flax"].what == "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
  assert found["flax"].fix == f"pip install flax=={metadata.version('flax')}"  # fetches what is missing
  assert "broken on purpose" in found["distrax"].what and "second" not in found["distrax"].what
  assert found["distrax"].fix == "mend chex first"
  assert found["chex"].fix.startswith("pip install --force-reinstall --no-deps chex==")
  assert len(section.facts) > 15


def test_versions_out_of_bounds_and_missing(front, monkeypatch):
  monkeypatch.setattr(doctor_jobs, "import_errors", lambda versions, seconds: {})
  folder = front / "optax-0.1.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.1\n")
  version = metadata.version

  def without_two(name):
    if name in ("grain", "tqdm"):
      raise metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.setattr(metadata, "version", without_two)
  _, found = packages()
  assert set(found) == {"optax", "grain, tqdm"} and all(one.stops_demo for one in found.values())
  assert found["optax"].what.startswith("is 0.1, must be >=")
  assert found["optax"].fix.startswith("pip install 'optax>=")
  assert found["grain, tqdm"].fix.startswith("pip install 'grain>=") and "'tqdm>=" in found["grain, tqdm"].fix


def test_only_an_extras_own_packages_are_asked_for_with_it(monkeypatch):
  monkeypatch.setattr(doctor_jobs, "import_errors", lambda versions, seconds: {"torch": ("broken", "mend")})
  section = doctor.check_packages("PyTorch", 1.0, "torch")
  words = section.facts + [problem.subject for problem in section.problems]
  assert {word.split()[0] for word in words} == {"torch"}
  assert not any(problem.stops_demo for problem in section.problems)


def test_the_marks_of_requirements_are_read(monkeypatch):
  texts = ["here>=1; python_version > '3'", "elsewhere; sys_platform == 'amiga'", "extra; extra == 'torch'"]
  monkeypatch.setattr(metadata, "requires", lambda name: texts)
  monkeypatch.setattr(doctor_jobs, "import_errors", lambda versions, seconds: {})
  assert [one.subject for one in doctor.check_packages("", 1.0).problems] == ["here"]
  assert [one.subject for one in doctor.check_packages("", 1.0, "torch").problems] == ["extra"]


@pytest.mark.parametrize(
  ("source", "seconds", "what"),
  [
    ("import time\ntime.sleep(1000)", 5.0, "no end after 5 s"),
    pytest.param(
      "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 100.0, "SIGSEGV", marks=pytest.mark.slow
    ),
    pytest.param("import os\nos._exit(7)", 100.0, "exit code 7", marks=pytest.mark.slow),
  ],
)
def test_jax_hangs_or_ends_the_process(front, source, seconds, what):
  (front / "jax.py").write_text(source)
  _, found = packages(seconds)
  assert set(found) == {"jax"} and what in found["jax"].what and found["jax"].stops_demo


def test_no_device(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "nothing")
  section = doctor.check_devices("JAX devices", 100.0)
  (problem,) = section.problems
  assert problem.stops_demo and "finds no device" in problem.what and problem.fix == "unset JAX_PLATFORMS"


@pytest.mark.parametrize(
  ("accelerator", "kinds", "fix"),
  [
    (machine.Accelerator("", "GPU found, but no support", "pip install x"), ["cpu (cpu)"], "pip install x"),
    (machine.Accelerator("NVIDIA GPU", "", ""), ["cpu (cpu)"], "'jax[cuda12]'"),
    (machine.Accelerator("TPU", "", ""), ["cpu (cpu)"], "'jax[tpu]'"),
    (machine.Accelerator("NVIDIA GPU", "", ""), ["gpu (H100)", "gpu (H100)"], ""),
    (machine.Accelerator("", "no accelerator found", ""), ["cpu (cpu)"], ""),
  ],
)
def test_an_accelerator_that_is_not_used(monkeypatch, accelerator, kinds, fix):
  monkeypatch.setattr(machine, "find_accelerator", lambda: accelerator)
  monkeypatch.setattr(doctor_jobs, "run", lambda job, seconds: (kinds, ""))
  section = doctor.check_devices("JAX devices", 1.0)
  assert bool(section.problems) == bool(fix) and section.facts[0] == f"{len(kinds)} x {kinds[0]}"
  assert not fix or (fix in section.problems[0].fix and not section.problems[0].stops_demo)


def test_calvin_folders_that_hold_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv("CALVIN_ROOT", str(tmp_path))
  monkeypatch.setenv("CALVIN_DATA", str(tmp_path))
  found = {one.subject: one for one in doctor.check_calvin("CALVIN", 100.0).problems}
  assert f"{tmp_path} is no checkout" in found["$CALVIN_ROOT"].what
  assert f"{tmp_path}/training/" in found["$CALVIN_DATA"].what
  assert not any(one.stops_demo for one in found.values())
  for split in ("training", "validation"):
    (tmp_path / split).mkdir()
    (tmp_path / split / "ep_start_end_ids.npy").touch()
  section = doctor.check_calvin("CALVIN", 100.0)
  assert f"dataset in {tmp_path}" in section.facts
  assert "$CALVIN_DATA" not in {one.subject for one in section.problems}


def test_a_small_or_closed_machine(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, "host_bytes", lambda: 1e9)
  monkeypatch.setattr(machine, "writable", lambda folder: False)
  found = {one.subject: one for one in doctor.check_machine("Machine").problems}
  assert set(found) == {"Memory", "The working folder", "JAX"}
  assert [one.subject for one in found.values() if one.stops_demo] == ["The working folder"]


@pytest.mark.parametrize(("free", "found"), [(1.9e9, ["The working folder"]), (2.1e9, [])])
def test_a_full_disk(monkeypatch, free, found):
  monkeypatch.setattr(machine, "host_bytes", lambda: 1e12)
  monkeypatch.setattr(machine, "writable", lambda folder: True)
  monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
  problems = doctor.check_machine("Machine").problems
  assert [one.subject for one in problems if one.stops_demo] == found


def test_writable(tmp_path):
  (tmp_path / "file").touch()
  assert machine.writable(str(tmp_path)) and machine.writable(str(tmp_path / "a" / "b"))
  assert not machine.writable(str(tmp_path / "file")) and not machine.writable(str(tmp_path / "file" / "a"))


def test_what_packages_print_is_no_answer(front):
  (front / "noisy.py").write_text("print('{\"error\": 1}', end='', flush=True)")
  answers, failure = doctor_jobs.run(doctor_jobs.import_all, 100.0, "noisy", "json")
  assert answers == ["noisy", ["noisy", ""], "json", ["json", ""]] and not failure
