"""A study shrunk to seconds, as a user runs it."""

from __future__ import annotations

import json
import pathlib
import re
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


def run(folder, experiment="reproduction", **overrides):
  settings = SHRUNK | SMALLER | {key.replace("__", "."): value for key, value in overrides.items()}
  settings |= {"workdir": folder / "runs", "study.results": folder / "results", "study.page": folder / "R.md"}

  flags = [f"--config.{path}={value}" for path, value in settings.items()]
  command = [sys.executable, "-m", "wam_jax.main", f"--config=experiments/{experiment}.py:demo", *flags]
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


def test_both_arms_of_a_level_of_the_dial(tmp_path):
  done = run(tmp_path, "distractors", study__arms="dial_2,dreamerv2_dial_2")
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  results = tmp_path / "results" / "distractors_demo"
  pieces = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
  assert [piece["arm"] for piece in pieces] == ["dial_2", "dreamerv2_dial_2"]
  for piece in pieces:
    assert piece["settings"]["env.distractors"] == piece["simulator"]["distractors"] == 2
    assert piece["start_states"] == pieces[0]["start_states"] and set(piece["policies"]) == {"cloned"}
    assert piece["inverse_dynamics_by_update"]["8"]["x"]["linear"] > 0
  data = tmp_path / "runs" / "seed10" / "data_distractors_2" / "collect" / "dataset"
  with np.load(tmp_path / "runs" / "seed10" / "dial_2" / "evaluate_cloned" / "cloned.npz") as episodes:
    with np.load(data / "validation" / "start_states.npz") as starts:
      np.testing.assert_array_equal(episodes["start"][0], starts["start"][:2])
    assert np.ptp(episodes["snapshot"][0, 0, :, 39:-2], axis=0).min() > 0  # they moved in the episode too
  page = (tmp_path / "R.md").read_text(encoding="utf-8")
  assert "| level 2 " in page and "| WAM, dial 2, 8 updates |" in re.sub(" +", " ", page)
