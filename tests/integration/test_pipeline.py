"""The shipped configuration shrunk to seconds, every stage, as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import wam_jax
from wam_jax.acting import policy as acting
from wam_jax.commands import pack, play
from wam_jax.commands import report as report_command
from wam_jax.config import STAGES, chain
from wam_jax.data import calvin
from wam_jax.data.calvin import dataset_path
from wam_jax.data.features import load_features
from wam_jax.host.logger import Logger, read_metrics
from wam_jax.reporting import curves, media, run_report
from wam_jax.reporting.finished_run import RunError, read_run
from wam_jax.running import ppo_setup
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import ppo as ppo_stage
from wam_jax.storage.artifact import load_artifact
from wam_jax.storage.saved_params import load_params
from wam_jax.training import imagination

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ("open_drawer", "turn_on_led")
SHRUNK = {
  "tasks": ",".join(TASKS),
  "env.image_size": 32,
  "data.play_frames": 256,
  "data.play_episode_frames": 128,
  "data.play_successes_per_task": 2,
  "data.demos_per_task": 3,
  "data.heldout_demos_per_task": 1,
  "data.heldout_starts_per_task": 2,
  "data.failed_takes_per_task": 1,
  "data.heldout_failed_takes_per_task": 1,
  "ppo.failed_starts": 0.5,
  "ppo.min_discrimination": 0,  # so few updates tell nothing apart
  "ppo.prior_temperature": 1.5,
  "data.heldout_play_frames": 40,
  "judge.horizons": "1,5,50",
  "judge.windows": 3,
  "judge.probe_frames": 200,
  "world_model.depth": 8,
  "world_model.embed": 32,
  "world_model.deter": 16,
  "world_model.stoch": 4,
  "world_model.classes": 4,
  "world_model.hidden": 16,
  "world_model.inverse_dynamics_hidden": 16,
  "world_model.batch_size": 4,
  "world_model.sequence_length": 8,
  "world_model.updates": 12,
  "world_model.warmup_updates": 2,
  "behaviour_cloning.hidden": 32,
  "behaviour_cloning.batch_size": 16,
  "behaviour_cloning.updates": 8,
  "behaviour_cloning.warmup_updates": 1,
  "classifier.embed": "16,8",
  "classifier.hidden": 16,
  "classifier.batch_size": 16,
  "classifier.updates": 8,
  "classifier.enforce_gate": "false",  # so few updates cannot tell success
  "ppo.iterations": 3,
  "ppo.dreams": 4,
  "ppo.epochs": 1,
  "ppo.value_hidden": "16",
  "ppo.eval_every": 2,
  "ppo.eval_episodes": 1,
  "evaluate.episodes": 1,
  "evaluate.imagined_episodes": 4,
  "report.animation_size": 48,
  "training.log_every": 4,
}


def command(workdir, **overrides):
  settings = SHRUNK | {"workdir": workdir} | {key.replace("__", "."): v for key, v in overrides.items()}
  flags = [f"--config.{path}={value}" for path, value in settings.items()]
  return [sys.executable, "-m", "wam_jax.main", "--config=experiments/calvin_wam.py:demo", *flags]


def environment(**changes):
  return os.environ | {"JAX_PLATFORMS": "cpu"} | changes


def run(workdir, **overrides):
  return subprocess.run(
    command(workdir, **overrides),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=540,
    check=False,
  )


def files(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pipeline") / "run"
  return workdir, run(workdir)


def test_ppo_learns_in_the_warmed_world_only(finished, tmp_path, monkeypatch):
  workdir, _ = finished
  worlds = {}

  def make_world(model, temperature=1.0):
    worlds[temperature] = imagination.make_world(model, temperature=temperature)
    return worlds[temperature]

  class Learns(Exception):
    pass

  def make_iteration(dreamer, *rest):
    raise Learns(dreamer.world)

  monkeypatch.setattr(ppo_setup, "make_world", make_world)
  monkeypatch.setattr(ppo_stage.ppo, "make_iteration", make_iteration)
  inputs = {stage: load_artifact(workdir / stage, stage) for stage in chain.ROWS["ppo"].requires}
  config = ConfigDict(load_artifact(workdir / "ppo", "ppo").config)
  with pytest.raises(Learns) as stopped:
    ppo_stage.run(StageRun(config, inputs, tmp_path, None))
  assert set(worlds) == {1.0, 1.5}
  assert stopped.value.args[0] is worlds[1.5]


@pytest.mark.parametrize("left", [TASKS[:1], pytest.param(TASKS, marks=pytest.mark.slow)])
def test_ppo_leaves_what_dreams_do_not_tell_apart(left, finished, tmp_path, monkeypatch):
  workdir, _ = finished
  monkeypatch.setattr(ppo_stage.classifier_stage, "not_told_apart", lambda *_: dict.fromkeys(left, 0.0))
  inputs = {stage: load_artifact(workdir / stage, stage) for stage in chain.ROWS["ppo"].requires}
  config = ConfigDict(load_artifact(workdir / "ppo", "ppo").config)
  config.ppo.eval_every = 0
  ppo_stage.run(StageRun(config, inputs, tmp_path, Logger(tmp_path, "ppo")))
  params = load_params(tmp_path / "params")
  pairs = zip(*(jax.tree.leaves(params[name]) for name in ("base", "tuned")), strict=True)
  same = np.all([[np.array_equal(a[k], b[k]) for k in range(len(TASKS))] for a, b in pairs], 0)
  assert same.tolist() == [task in left for task in TASKS]
  assert list(json.loads((tmp_path / "result.json").read_text())["left_as_cloned"]) == list(left)


def test_every_stage(finished):
  workdir, process = finished
  assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-5000:]
  out = process.stdout
  assert out.startswith("Plan of calvin_wam")
  for stage in STAGES:
    assert (workdir / stage / "DONE").exists(), stage
    record = json.loads((workdir / stage / "artifact.json").read_text())
    assert record["seconds"] > 0 and record["peak_bytes"] > 2**27
  for task in TASKS:
    assert task in out.split("Result")[-1]
  assert str(workdir / "report" / "report.html") in out
  assert "<html" in (workdir / "report" / "report.html").read_text()[:2000]
  assert (workdir / "report" / "report.md").exists() and (workdir / "report" / "report.json").exists()
  results = json.loads((workdir / "evaluate" / "results.json").read_text())
  assert all(task in json.dumps(results) for task in TASKS)
  certificate = json.loads((workdir / "certify" / "certificate.json").read_text())
  assert set(certificate["verdicts"]) == set(TASKS)
  assert "## Certificate" in (workdir / "report" / "report.md").read_text()


def test_from_python_as_the_readme_says(finished, tmp_path, monkeypatch):
  """On the finished run, which the same settings find done."""
  workdir, _ = finished
  before = files(workdir)
  make_config = wam_jax.make_config

  def shrunk(experiment, overrides):
    make_config(experiment, overrides)  # they would do
    return make_config(experiment, SHRUNK | {"workdir": workdir})

  monkeypatch.setattr(wam_jax, "make_config", shrunk)
  (code,) = (text for text in (ROOT / "README.md").read_text().split("```") if "make_config" in text)
  names: dict = {}
  exec(compile(code.removeprefix("python"), "README.md", "exec"), names)
  assert files(workdir) == before and names["run"].report == workdir / "report" / "report.html"
  assert names["action"].shape == (7,) and names["pictures"]["rgb_static"].shape == (21, 32, 32, 3)
  policy = wam_jax.load_policy(workdir, TASKS[0])
  np.testing.assert_array_equal(policy.act(names["observation"]), names["action"])
  assert wam_jax.open_run(workdir).policy(TASKS[1]).task == TASKS[1]
  with pytest.raises(RunError, match=str(tmp_path)):
    wam_jax.open_run(tmp_path)


def test_metrics_are_there(finished):
  workdir, process = finished
  assert process.returncode == 0
  lines = read_metrics(workdir / "world_model")
  assert [line["step"] for line in lines] == [4, 8, 12]
  assert all(np.isfinite(value) for line in lines for value in line.values())
  assert list((workdir / "world_model" / "tensorboard").iterdir())
  for stage in ("behaviour_cloning", "classifier", "ppo"):
    assert read_metrics(workdir / stage), stage


def test_ppo_is_monitored_and_the_best_policies_are_evaluated(finished):
  workdir, _ = finished
  lines = [line for line in read_metrics(workdir / "ppo") if "ppo/monitor/gap" in line]
  assert [line["step"] for line in lines] == [0, 2, 3]
  assert lines[0]["ppo/monitor/kl_to_cloned"] == 0  # before the first iteration
  for line in lines:
    imagined, real = line["ppo/monitor/imagined_success"], line["ppo/monitor/real_success"]
    assert line["ppo/monitor/gap"] == pytest.approx(imagined - real)
    assert line["ppo/monitor/score/p05"] <= line["ppo/monitor/score/p95"]
  selection = json.loads((workdir / "ppo" / "selection.json").read_text())
  assert selection["first_start"] == 1 and set(selection["selected"]) == {"imagined", "real"}
  best = max(line[f"ppo/monitor/{TASKS[0]}/imagined_success"] for line in lines)
  assert selection["selected"]["imagined"][TASKS[0]]["score"] == pytest.approx(best)
  results = json.loads((workdir / "evaluate" / "results.json").read_text())
  assert {"ppo_imagined", "ppo_real"} <= set(results["policies"])
  assert "Best imagined" in (workdir / "report" / "report.md").read_text()


def test_report_draws_every_curve_of_the_world_model(finished):
  workdir, _ = finished
  inputs = {name: load_artifact(workdir / name, name) for name in STAGES[:-1]}
  results = json.loads((workdir / "evaluate" / "results.json").read_text())
  series = {chart["title"]: len(chart["series"]) for chart in curves.curves(inputs, results)}
  assert series["World model: picture loss"] == 2
  assert series["World model: KL, nats"] == 1
  assert series["World model: inverse dynamics, squared error"] == 7
  assert series["World model: PSNR of reconstructions, dB"] == 1


def test_repeated_does_nothing(finished):
  workdir, first = finished
  assert first.returncode == 0
  before = files(workdir)
  again = run(workdir)
  assert again.returncode == 0, again.stderr[-3000:]
  assert files(workdir) == before
  assert again.stdout.split("Result")[-1] == first.stdout.split("Result")[-1]


def test_changed_config_names_the_difference(finished):
  workdir, first = finished
  assert first.returncode == 0
  before = files(workdir)
  changed = run(workdir, world_model__updates=13)
  assert changed.returncode == 1 and "Traceback" not in changed.stderr
  assert "world_model.updates: 12 -> 13" in changed.stderr
  assert "made from another world_model" in changed.stderr
  assert str(workdir / "world_model") in changed.stderr and "--config.workdir" in changed.stderr
  assert files(workdir) == before


@pytest.mark.slow
def test_play_labelled_by_the_classifier_is_cloned(finished, tmp_path):
  workdir, first = finished
  assert first.returncode == 0
  made = ("collect", "world_model", "featurize", "classifier")
  given = {f"inputs__{stage}": workdir for stage in made}
  for stage in ("label_play", "behaviour_cloning"):
    labelled = run(tmp_path, stage=stage, data__play_successes_by="classifier", **given)
    assert labelled.returncode == 0, labelled.stderr[-3000:]
  windows = json.loads((tmp_path / "label_play" / "windows.json").read_text())["tasks"]
  play = load_features(tmp_path / "label_play" / "play.npz")
  episodes = calvin.read_episode_ids(dataset_path(load_artifact(workdir, "collect")) / "training")
  assert set(windows) == set(TASKS)
  for k, task in enumerate(TASKS):
    assert 0 < len(windows[task]) <= SHRUNK["data.play_successes_per_task"]
    scores = [score for _, _, score in windows[task]]
    assert scores == sorted(scores, reverse=True)
    for row, (begin, last, _) in enumerate(windows[task]):
      inside = (episodes[:, 0] <= begin) & (last <= episodes[:, 1])
      assert (episodes[inside, 1] - episodes[inside, 0] + 1).tolist() == [128]  # play, no demo
      assert play.mask[k, row].sum() == last - begin + 1
      assert play.success[k, row].any() and not play.success[k, row, 0]
  params = [load_params(folder / "behaviour_cloning" / "params") for folder in (workdir, tmp_path)]
  assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, params), strict=True))
  refused = run(tmp_path, stage="label_play")
  assert refused.returncode == 2 and "play_successes_by=classifier" in refused.stderr


@pytest.mark.slow
def test_killed_and_repeated_equals_uninterrupted(finished, tmp_path):
  workdir, first = finished
  assert first.returncode == 0
  settings = {
    "inputs__collect": workdir,
    "stage": "world_model",
    "training__checkpoint_minutes": 0,
    "world_model__updates": 120,
  }
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert run(whole, **settings).returncode == 0
  process = subprocess.Popen(
    command(parts, **settings), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
  )
  saved = parts / "world_model" / "ckpt"
  deadline = time.monotonic() + 120
  while not (saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert not (parts / "world_model" / "DONE").exists()
  resumed = run(parts, **settings)
  assert resumed.returncode == 0 and "resumed at update" in resumed.stdout
  one, two = (load_params(folder / "world_model" / "params") for folder in (whole, parts))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  steps = [[line["step"] for line in read_metrics(folder / "world_model")] for folder in (whole, parts)]
  assert steps[0] == steps[1]


@pytest.mark.slow
def test_ppo_in_the_simulator_beside_that_in_imagination(finished):
  workdir, first = finished
  assert first.returncode == 0
  online = run(workdir, stage="online_ppo", online__iterations=3, online__eval_every=3)
  assert online.returncode == 0, online.stderr[-3000:]
  assert "real steps to match" in online.stdout
  found = json.loads((workdir / "online_ppo" / "online.json").read_text())
  # 4 dreams of 18 chunks of 4 actions in each iteration.
  assert [point["real_steps"] for point in found["curve"]] == [0, 3 * 4 * 18 * 4]
  assert set(found["imagination"]) == set(TASKS)
  lines = [line for line in read_metrics(workdir / "online_ppo") if "online/kl" in line]
  assert [line["step"] for line in lines] == [1, 2, 3]
  cloned = load_params(workdir / "behaviour_cloning" / "params")
  tuned = load_params(workdir / "online_ppo" / "params")["tuned"]
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), cloned, tuned)
  assert 0 < max(jax.tree.leaves(moved)) < 0.1


@pytest.mark.slow
def test_world_models_compared_in_a_finished_run(finished):
  workdir, first = finished
  assert first.returncode == 0
  before = (workdir / "judge_world_model" / "judge.json").read_bytes()
  compared = run(workdir, stage="judge_world_model", judge__compare=workdir)
  assert compared.returncode == 0, compared.stderr[-3000:]
  assert "difference" in compared.stdout and "calvin_wam (run) 2" in compared.stdout
  assert (workdir / "judge_world_model" / "comparison.md").exists()
  assert (workdir / "judge_world_model" / "judge.json").read_bytes() == before


def test_page_of_a_finished_run_made_anew(finished, tmp_path, capsys):
  workdir, first = finished
  assert first.returncode == 0
  assert report_command.main([f"--workdir={workdir}", f"--out={tmp_path / 'page.html'}"]) == 0
  assert "Note" not in capsys.readouterr().out
  made, again = (
    (folder / name).read_text()
    for folder, name in ((workdir / "report", "report.html"), (tmp_path, "page.html"))
  )
  shown = len(list((workdir / "report" / "rollouts").glob("*.webp")))
  assert again.count('src="data:image/webp') == made.count('src="data:image/webp') == 1 + shown
  assert shown >= len(TASKS) and again.count(">dream: ") == shown
  started = json.loads((workdir / "evaluate" / "results.json").read_text())["provenance"]["date"]
  assert started in again


def test_packed_policies_act_as_those_of_the_run(finished, tmp_path, capsys):
  finished, _ = finished
  out = tmp_path / "tiny.npz"
  assert pack.main([f"--workdir={finished}", f"--out={out}"]) == 0
  card = out.with_suffix(".md").read_text(encoding="utf-8")
  assert "256 frames of play" in card and "| **Mean**" in card and str(finished.parent) not in card
  assert pack.main([f"--workdir={finished}", f"--out={tmp_path / 'hub'}"]) == 0
  assert (
    wam_jax.load_policy(tmp_path / "hub", TASKS[0]).made_from == wam_jax.load_policy(out, TASKS[0]).made_from
  )
  assert (tmp_path / "hub" / "README.md").read_text(encoding="utf-8").count("success_rate") == len(TASKS)
  rng = np.random.default_rng(0)
  for task in TASKS:
    packed, whole = wam_jax.load_policy(out, task), wam_jax.load_policy(finished, task)
    assert packed.made_from == whole.made_from
    for _ in range(6):
      seen = {camera: rng.integers(0, 256, (64, 64, 3), np.uint8) for camera in whole.cameras}
      seen["robot_obs"] = rng.normal(size=15)
      np.testing.assert_allclose(packed.act(seen), whole.act(seen), atol=0.02)
  animation = tmp_path / "led.webp"
  flags = [f"--policy={out}", "--task=turn_on_led", f"--out={animation}", "--max_steps=6", "--size=64"]
  assert play.main(flags) == 0
  assert "0 of 1 succeeded" in capsys.readouterr().out
  with Image.open(animation) as image:
    assert image.n_frames == 4
  assert play.main([f"--policy={out}", "--task=close_drawer", f"--out={animation}"]) == 1
  assert "open_drawer, turn_on_led" in capsys.readouterr().err
  best = wam_jax.load_policy(finished, "open_drawer", "ppo_imagined")
  assert best.made_from == wam_jax.load_policy(finished, "open_drawer").made_from
  (tmp_path / "cut.npz").write_bytes(out.read_bytes()[:1000])
  with pytest.raises(acting.PolicyError, match=r"cut\.npz"):
    wam_jax.load_policy(tmp_path / "cut.npz", "open_drawer")


def test_bad_config_stops_before_anything_runs(tmp_path):
  bad = run(tmp_path / "run", world_modle__updates=3, ppo__horizon_steps=73)
  assert bad.returncode == 2 and "Traceback" not in bad.stderr
  assert "did you mean world_model.updates?" in bad.stderr and "ppo.horizon_steps = 73" in bad.stderr
  assert not (tmp_path / "run").exists()


def test_plan_only(tmp_path):
  plan = run(tmp_path / "run", stage="plan")
  assert plan.returncode == 0 and "256" in plan.stdout and "about" in plan.stdout
  assert not (tmp_path / "run").exists()


def test_dreams_belong_to_the_episodes_shown(finished, tmp_path):
  """Dreams of the same start and actions; a run of an older version, without them, is shown all the same."""
  workdir, first = finished
  assert first.returncode == 0
  config = read_run(workdir).config
  with np.load(workdir / "evaluate" / "rollouts.npz") as file:
    arrays = dict(file)
  with np.load(workdir / "evaluate" / "ppo.npz") as file:
    row, episode = TASKS.index(arrays["task"][0]), arrays["episode"][0]
    np.testing.assert_array_equal(arrays["action"][0], file["action"][row, episode])
    assert len(arrays["dream_success"]) == sum(len(np.unique(outcomes)) for outcomes in file["success"])
  lengths = [len(media.shown_times(n)) for n in arrays["steps"]]
  assert arrays["dream"].shape[0] == sum(lengths) and arrays["dream"].dtype == np.uint8
  assert (arrays["dream"][0] != arrays["dream"][lengths[0] - 1]).any()
  older = tmp_path / "older.npz"
  np.savez(older, **{name: x[:1] for name, x in arrays.items() if "dream" not in name and name != "action"})
  facts, animations, grid = run_report.draw_rollouts(config, older)
  assert facts[0]["shown"] == ["static", "wrist"] and "dream_success" not in facts[0]
  assert len(animations) == 1 and len(grid) == lengths[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_simulator_of_ones_own(tmp_path, monkeypatch, capsys):
  """The guide's environment, from its own demos to the report, and on to real PPO and an animation."""
  guide = (ROOT / "docs" / "guides" / "own_simulator.md").read_text(encoding="utf-8")
  (tmp_path / "reacher.py").write_text(re.findall(r"```python\n(.*?)```", guide, re.S)[0])
  workdir = tmp_path / "run"
  changes = {"env__name": "reacher:Reacher", "tasks": "Reacher", "judge__horizons": "1,5", "env__workers": 1}
  changes |= {
    "data__play_successes_by": "classifier",
    "world_model__proprio": "sincos",
    "online__iterations": 6,
    "ppo__critic_warmup_iterations": 1,
  }
  for stage in ("all", "online_ppo"):
    done = subprocess.run(
      command(workdir, stage=stage, **changes),
      cwd=tmp_path,
      env=environment(PYTHONPATH=str(ROOT)),
      capture_output=True,
      text=True,
      timeout=540,
      check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((workdir / "evaluate" / "results.json").read_text())
  assert results["simulator"] == {"name": "reacher:Reacher"}
  assert results["policies"]["expert"]["per_task"]["Reacher"]["rate"] == 1
  assert (workdir / "report" / "report.html").exists() and (workdir / "online_ppo" / "online.json").exists()
  assert load_artifact(workdir / "ppo", "ppo").embodiment.camera_names == ("camera",)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  flags = [f"--policy={workdir}", "--max_steps=6", "--size=64"]
  assert play.main(flags) == 1  # a run's files do not say which code is run
  assert "--simulator=reacher:Reacher" in capsys.readouterr().err
  assert play.main([*flags, "--simulator=reacher:Reacher"]) == 0
  assert "of 1 succeeded" in capsys.readouterr().out and (tmp_path / "episode.webp").exists()
