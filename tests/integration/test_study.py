"""A study shrunk to seconds, as a user runs it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from integration.test_pipeline import ROOT, SHRUNK, environment
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TASKS = ("turn_on_led",)
SMALLER = {
  "tasks": ",".join(TASKS),
  "world_model.snapshots": "8",
  "data.heldout_starts_per_task": 3,
  "evaluate.episodes": 2,
  "evaluate.random_policy": "false",
  "study.seeds": "10",
  "study.arms": "wam",
}


def run(folder, **overrides):
  settings = SHRUNK | SMALLER | {key.replace("__", "."): value for key, value in overrides.items()}
  settings |= {"workdir": folder / "runs", "study.results": folder / "results", "study.page": folder / "R.md"}

  flags = [f"--config.{path}={value}" for path, value in settings.items()]
  command = [sys.executable, "-m", "wam_jax.main", "--config=experiments/reproduction.py:demo", *flags]
  return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  done = run(folder)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return folder


def read(folder, name):
  path = folder / "results" / "reproduction_demo" / f"{name}.json"
  return json.loads(path.read_text(encoding="utf-8"))


def test_results_are_those_of_the_runs(folder):
  wam = read(folder, "wam_seed10")
  for policy in ("cloned", "ppo"):
    with np.load(folder / "runs" / "seed10" / "wam" / "evaluate" / f"{policy}.npz") as file:
      counted = "".join("01"[int(x)] for x in file["success"][0])
    assert wam["policies"][policy]["success"][TASKS[0]] == counted
    assert 0 <= wam["policies"][policy]["imagined"][TASKS[0]] <= 1
  assert list(wam["by_update"]) == ["8", "12"]
  assert wam["by_update"]["12"] == wam["policies"]["cloned"]["success"]
  assert [point[0] for point in wam["ppo"]["real"]] == [0, 2, 3]
  assert wam["seconds"]["world_model"] > 0


def test_pictures_move(folder):
  for name in ("dreams", "policies"):
    with Image.open(folder / "results" / "reproduction_demo" / f"wam_seed10_{name}.webp") as image:
      assert image.n_frames > 3
  page = (folder / "R.md").read_text(encoding="utf-8")
  assert "wam_seed10_policies.webp" in page and "(`dreamerv2`): no seed" in page


def test_once_more_runs_nothing_and_other_settings_are_refused(folder):
  page = (folder / "R.md").read_text(encoding="utf-8")
  done = run(folder)
  assert done.returncode == 0 and "===" not in done.stdout
  assert (folder / "R.md").read_text(encoding="utf-8") == page
  refused = run(folder, ppo__gamma=0.9)
  assert refused.returncode == 1 and "ppo.gamma" in refused.stderr
  assert pathlib.Path(folder / "results" / "reproduction_demo" / "wam_seed10.json").exists()
