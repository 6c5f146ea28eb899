"""The wheel: what it holds, and that it works where there is no repository."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

import wam_jax
from wam_jax.config import own_experiments

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
SETUPTOOLS = 77  # of pyproject's build-system
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def call(*command, **kwargs):
  return subprocess.run(
    [str(word) for word in command], capture_output=True, text=True, timeout=550, **kwargs
  )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, built from a copy: builds leave folders behind."""
  if call(*PIP, "--version").returncode:
    pytest.skip("pip is not installed")
  folder = tmp_path_factory.mktemp("build")
  environ = dict(os.environ)
  try:
    enough = int(metadata.version("setuptools").split(".")[0]) >= SETUPTOOLS
  except metadata.PackageNotFoundError:
    enough = False
  if not enough:
    fetched = call(*PIP, "install", "--target", folder / "setuptools", f"setuptools>={SETUPTOOLS}")
    if fetched.returncode:
      pytest.skip(
        f"setuptools {SETUPTOOLS} or newer is not installed, and pip cannot fetch it: {fetched.stderr}"
      )
    environ["PYTHONPATH"] = str(folder / "setuptools")
  source, rubbish = folder / "source", shutil.ignore_patterns("__pycache__", "*.egg-info")
  for name in ("wam_jax", "tests", "benchmarks", "docs", "launch"):
    shutil.copytree(ROOT / name, source / name, ignore=rubbish)
  for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff"):
    shutil.copy(ROOT / name, source)
  (source / "experiments").symlink_to("wam_jax/experiments")
  out = folder / "wheel"
  built = call(
    *PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source, env=environ, cwd=folder
  )
  assert built.returncode == 0, built.stdout + built.stderr
  (file,) = out.glob("*.whl")
  return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """installed(*arguments): runs Python on the installed wheel, in an empty folder, without the repository."""
  target, place = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("elsewhere")
  done = call(*PIP, "install", "--no-deps", "--target", target, wheel)
  assert done.returncode == 0, done.stderr
  environ = {name: text for name, text in os.environ.items() if not name.startswith("CALVIN_")}

  def run(*arguments):
    return call(sys.executable, *arguments, cwd=place, env=environ | {"PYTHONPATH": str(target)})

  found = run("-c", "import wam_jax; print(wam_jax.__file__)")
  assert found.stdout.strip() == str(target / "wam_jax" / "__init__.py")
  return run


def test_what_it_holds(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = {name for name in archive.namelist() if not name.endswith("/")}
    described = f"wam_jax-{wam_jax.__version__}.dist-info"
    about = archive.read(f"{described}/METADATA").decode()
    assert archive.read(f"{described}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
  files = (
    path for path in (ROOT / "wam_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts
  )
  wanted = {path.relative_to(ROOT).as_posix() for path in files}
  assert {name for name in names if not name.startswith(described)} == wanted  # all of it, whatever its kind
  assert "wam_jax/experiments/reproduction.py" in wanted
  assert f"Version: {wam_jax.__version__}\n" in about and "License-Expression: Apache-2.0" in about


def test_the_doctor(installed):
  done = installed("-m", "wam_jax.doctor", "--json")
  report = json.loads(done.stdout)
  assert done.returncode == 0 and report["demo_can_run"], done.stdout + done.stderr
  assert report["wam_jax"] == wam_jax.__version__
  assert any(fact.startswith("jax ") for section in report["sections"] for fact in section["facts"])


def test_a_policy_that_is_not_there(installed):
  code = "import wam_jax; wam_jax.load_policy('no/such/run')"
  done = installed("-c", code)
  assert done.returncode == 1 and "PolicyError" in done.stderr and "no/such/run" in done.stderr


def test_the_gymnasium_environment(installed):
  code = """
import wam_jax, gymnasium
env = gymnasium.make("wam_jax/PlayTable-v0", task="open_drawer", image_size=16)
env.reset(seed=0)
env.action_space.seed(0)
for _ in range(3):
  observation, *_ = env.step(env.action_space.sample())
print(observation["rgb_static"].shape, len(set(observation["rgb_static"].ravel().tolist())) > 5)
"""
  done = installed("-c", code)
  assert done.stdout.split("\n")[-2] == "(16, 16, 3) True", done.stderr


@pytest.mark.parametrize(
  "name", ["experiments/calvin_wam.py:demo", "calvin_dreamerv2:demo", "reproduction:demo"]
)
def test_experiments_from_any_folder(installed, name):
  done = installed("-m", "wam_jax.main", f"--config={name}", "--config.stage=plan")
  assert done.returncode == 0 and "about" in done.stdout, done.stderr


def test_no_such_experiment(installed):
  done = installed("-m", "wam_jax.main", "--config=calvin_wm:demo")
  assert done.returncode == 2 and f"one of {', '.join(own_experiments())}" in done.stderr
