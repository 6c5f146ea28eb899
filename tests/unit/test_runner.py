from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from made_up_run import make_artifact

from wam_jax import config as config_lib
from wam_jax.config import chain
from wam_jax.config.chain import Stage
from wam_jax.host import stopping
from wam_jax.running import plan, runner
from wam_jax.running.plan import StageError, StagePlan
from wam_jax.storage.artifact import read_artifact, write_artifact

ROWS = {
  "collect": Stage("collect", (), ("seed", "data.play_frames")),
  "world_model": Stage("world_model", ("collect",), ("seed", "world_model")),
  "report": Stage("report", ("world_model",), ("report",)),
}


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """Three small stages in place of the real ones; yields the list of those that ran."""
  monkeypatch.chdir(tmp_path)
  calls = []
  for name in ROWS:

    def run(stage, name=name):
      assert set(stage.inputs) == set(ROWS[name].requires)
      assert all(each.done for each in stage.inputs.values())
      calls.append(name)
      workdir = stage.workdir
      if stage.config.experiment == "breaks" and name == "world_model":
        raise KeyboardInterrupt
      (workdir / "result.txt").write_text(name)
      if name == "report":
        (workdir / "report.md").write_text("# Title\n\n| task | n |\n|---|---|\n| led | 3 |\n\n| other |\n")

    module = types.ModuleType(f"wam_jax.stages.{name}")
    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setattr(chain, "STAGES", tuple(ROWS))
  monkeypatch.setattr(chain, "EXTRA_STAGES", ())
  monkeypatch.setattr(chain, "ROWS", ROWS)
  monkeypatch.setattr(runner.surroundings, "prepare_jax", lambda: None)
  return calls


def make(*overrides, experiment="calvin_wam"):
  config = config_lib.preset_config("demo", experiment)
  assert config_lib.apply_overrides(config, overrides) == []
  return config_lib.finalize(config)


def files(folder):
  return {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob("*")}


def test_an_interrupted_notebook_saves_first_and_lives_on():
  before = signal.getsignal(signal.SIGINT)
  reached = []
  with pytest.raises(KeyboardInterrupt, match="saved"), stopping.interruptible(), stopping.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    reached.append(stopping.requested())
  with pytest.raises(KeyboardInterrupt), stopping.interruptible(), stopping.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    reached.append(stopping.requested())
    os.kill(os.getpid(), signal.SIGINT)  # impatient
    reached.append("not here")
  with pytest.raises(KeyboardInterrupt), stopping.interruptible():
    os.kill(os.getpid(), signal.SIGINT)  # there is nothing to save
    reached.append("not here")
  assert reached == [signal.SIGINT] * 2
  assert signal.getsignal(signal.SIGINT) is before and not stopping.requested()


def test_all_then_nothing_left(ran, capsys):
  artifacts = runner.run(make())
  assert ran == list(ROWS) == list(artifacts)
  out = capsys.readouterr().out
  assert "no accelerator" not in out.split("Plan of calvin_wam")[0]  # the plan comes first
  assert "| led | 3 |" in out and "| other |" not in out and "report.html" in out
  record = json.loads(pathlib.Path("runs/calvin_wam_demo/world_model/artifact.json").read_text())
  assert record["seconds"] >= 0 and record["peak_bytes"] > 2**20
  assert record["inputs"] == {"collect": artifacts["collect"].fingerprint}
  before = files("runs")
  again = runner.run(make(("evaluate.episodes", "3")))  # nothing that these stages read
  assert ran == list(ROWS) and files("runs") == before
  assert again["collect"].config == artifacts["collect"].config  # as it was made


def test_plan_changes_nothing(ran, capsys, tmp_path):
  assert runner.run(make(("stage", "plan"))) == {}
  out = capsys.readouterr().out
  assert ran == [] and not list(tmp_path.iterdir())
  for word in ("preset   demo", "asked for", "24,000", "runs/calvin_wam_demo", "about", ":paper"):
    assert word in out


def test_interrupted_goes_on(ran):
  with pytest.raises(KeyboardInterrupt):
    runner.run(make(experiment="breaks"))
  folder = pathlib.Path("runs/breaks_demo")
  assert (folder / "collect/DONE").exists() and not (folder / "world_model/DONE").exists()
  assert plan.make_plan(make(experiment="breaks"))["world_model"].action == "resume"
  first = read_artifact(folder / "world_model").seconds
  runner.run(make(("workdir", str(folder))))  # the experiment's name is not part of any fingerprint
  assert ran == ["collect", "world_model", "world_model", "report"]
  assert read_artifact(folder / "world_model").seconds > first


def test_changed_config_names_the_difference_and_touches_nothing(ran):
  runner.run(make())
  before = files("runs")
  with pytest.raises(StageError) as error:
    runner.run(make(("world_model.updates", "70")))
  text = str(error.value)
  updates = config_lib.PRESET_CHANGES["demo"]["world_model.updates"]
  assert f"world_model.updates: {updates} -> 70" in text
  assert "made from another world_model" in text and "rm -r" in text
  lines = text.splitlines()
  assert len(lines) < 9 and "from world_model on" in lines[1]
  command = next(line for line in lines if "keep both" in line).partition("python")[2]
  flags = dict(word[len("--config.") :].split("=") for word in command.split()[3:])
  assert flags == {
    "world_model.updates": "70",
    "inputs.collect": "runs/calvin_wam_demo/collect",
    "workdir": "runs/calvin_wam_demo_2",
  }
  assert ran == list(ROWS) and files("runs") == before


def test_changed_config_of_an_unfinished_stage(ran):
  with pytest.raises(KeyboardInterrupt):
    runner.run(make(experiment="breaks"))
  with pytest.raises(StageError, match="seed: 0 -> 1"):
    runner.run(make(("seed", "1"), experiment="breaks"))


def test_schema_version_counts(ran, monkeypatch):
  runner.run(make())
  monkeypatch.setitem(ROWS, "collect", Stage("collect", (), ("seed", "data.play_frames"), schema=2))
  with pytest.raises(StageError, match="1 -> 2"):
    runner.run(make())


def test_one_stage_needs_its_inputs(ran):
  with pytest.raises(StageError, match=r"--config\.stage=collect"):
    runner.run(make(("stage", "world_model")))
  assert ran == []
  runner.run(make(("stage", "collect")))
  runner.run(make(("stage", "world_model")))
  assert ran == ["collect", "world_model"]


def test_inputs_of_another_run(ran):
  runner.run(make())
  other = make(("workdir", "other"), ("inputs.world_model", "runs/calvin_wam_demo"), ("stage", "report"))
  artifacts = runner.run(other)
  assert ran[3:] == ["report"]
  assert artifacts["world_model"].path == pathlib.Path("runs/calvin_wam_demo/world_model")
  # Another seed makes other data, but the given world model stays what it is.
  plans = plan.make_plan(
    make(("workdir", "other"), ("inputs.world_model", "runs/calvin_wam_demo"), ("seed", "5"))
  )
  assert [each.action for each in plans.values()] == ["run", "use", "skip"]


def test_foreign_files_are_not_touched(ran):
  folder = pathlib.Path("runs/calvin_wam_demo/collect")
  folder.mkdir(parents=True)
  (folder / "thesis.txt").write_text("years of work")
  with pytest.raises(StageError, match="not made by wam_jax"):
    runner.run(make())
  assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.fixture
def terminal(monkeypatch):
  """Lets runs draw their picture; into stdout, which pytest keeps."""
  from wam_jax.host import live_view

  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setattr(live_view, "suits", lambda *_: True)


def test_a_picture_on_a_terminal(ran, terminal, capsys, monkeypatch):
  with pytest.raises(KeyboardInterrupt):
    runner.run(make(experiment="breaks"))
  out = capsys.readouterr().out
  assert "breaks demo, 8 tasks" in out and "[world_model] starts" in out
  last = out[out.rindex("breaks demo") :]
  assert re.search(r"collect +\S*done", last) and re.search(r"world_model +\S*stopped", last)
  assert re.search(r"report +waits", last) and "about 0:10" in last

  whole = make(("workdir", "runs/breaks_demo"))
  runner.run(whole, quiet=True)
  out = capsys.readouterr().out
  assert "8 tasks" not in out and "collect" not in out  # only what it works on
  assert re.search(r"world_model +\S*done", out) and re.search(r"report +\S*done", out)
  runner.run(whole, quiet=True)
  assert capsys.readouterr().out == ""  # nothing to do, nothing to draw


def test_what_is_said_about_signals_stands_above_the_picture(capfd):
  said = []
  with stopping.told_through(said.append):
    stopping._say("saving and ending")
  assert said == ["saving and ending"] and capfd.readouterr().err == ""
  stopping._say("again")
  assert len(said) == 1 and "again" in capfd.readouterr().err


STOPPING = """
import signal, sys, time
from wam_jax.host import stopping
signal.signal(signal.SIGHUP, signal.{hangup})
stopping.GRACE_SECONDS = 3.0
stopping.install()
{body}
"""
READY = 'print("ready", flush=True)'


def stopped(body, signals, hangup="SIG_DFL"):
  """Code of a process that is sent signals once it is ready. SIG_IGN is what nohup sets."""
  code = STOPPING.format(body=body, hangup=hangup)
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  try:
    assert process.stdout.readline() == b"ready\n"
    for each in signals:
      process.send_signal(each)
      time.sleep(0.3)
    return process.wait(20)
  finally:
    process.kill()


def test_a_closed_terminal_stops_a_run_as_other_signals_do_but_not_under_nohup():
  body = f"""
try:
  {READY}
  time.sleep(60)
except stopping.Stopped as stop:
  sys.exit(stop.code)
"""
  assert stopped(body, [signal.SIGHUP]) == 129
  assert stopped(body, [signal.SIGHUP, signal.SIGTERM], "SIG_IGN") == 143


def test_a_closed_terminal_may_say_so_twice_while_what_runs_is_saved():
  body = f"""
try:
  with stopping.deferred():
    {READY}
    while not stopping.requested():
      time.sleep(0.01)
    time.sleep(0.7)
except stopping.Stopped:
  sys.exit(7)  # saved
"""
  assert stopped(body, [signal.SIGHUP, signal.SIGHUP]) == 7
  assert stopped(body, [signal.SIGTERM, signal.SIGHUP]) == 7
  assert stopped(body, [signal.SIGHUP, signal.SIGTERM]) == 143  # at once


@pytest.mark.parametrize("tell", ["lambda text: time.sleep(60)", "lambda text: 1 / 0"])
def test_a_message_that_cannot_be_shown_keeps_no_signal_waiting(tell):
  body = f"""
with stopping.told_through({tell}), stopping.deferred():
  {READY}
  while True:
    time.sleep(0.1)
"""
  assert stopped(body, [signal.SIGTERM]) == 143  # after the grace time
  assert stopped(body, [signal.SIGTERM, signal.SIGINT]) == 130  # at once


def test_what_is_taken_from_elsewhere_is_said_in_the_picture(ran, terminal, capsys):
  runner.run(make())
  capsys.readouterr()
  other = make(("workdir", "other"), ("inputs.world_model", "runs/calvin_wam_demo"), ("stage", "report"))
  runner.run(other)
  out = capsys.readouterr().out
  assert re.search(r"world_model +\S*given.*from runs/calvin_wam_demo/world_model", out)


def test_of_several_processes_none_draws_and_the_first_sends(ran, terminal, wandb, monkeypatch):
  config, actions = make(("training.wandb_project", "robots")), dict.fromkeys(ROWS, "run")
  plans = plan.make_plan(config)
  pathlib.Path(config.workdir).mkdir(parents=True)
  with runner._live_view(config, plans, actions, True, False) as view:
    assert view is not None
  monkeypatch.setattr(runner.processes, "count", lambda: 2)
  for index in (0, 1):
    monkeypatch.setattr(runner.processes, "is_first", lambda index=index: index == 0)
    with (
      runner._live_view(config, plans, actions, True, False) as view,
      runner._tracker_run(config, True) as sent,
    ):
      assert view is None and (sent is not None) == (index == 0)
  assert len(wandb.runs) == 1


def test_a_run_at_wandb(ran, wandb, monkeypatch):
  """The numbers of all stages, in one run that goes on after an interruption."""
  for name in ROWS:
    module = sys.modules[f"wam_jax.stages.{name}"]

    def run(stage, name=name, before=module.run):
      stage.logger.write(7, {f"{name}/loss": 0.5})
      before(stage)

    monkeypatch.setattr(module, "run", run)
  project = ("training.wandb_project", "robots")
  with pytest.raises(KeyboardInterrupt):
    runner.run(make(project, experiment="breaks"))
  first, whole = wandb.runs[0], ("workdir", "runs/breaks_demo")
  assert first.logged == [
    {"collect/loss": 0.5, "collect/step": 7},
    {"world_model/loss": 0.5, "world_model/step": 7},
  ]
  assert first.exit_code == 1 and first.arguments["config"]["world_model"]["updates"]
  runner.run(make(project, whole))
  second = wandb.runs[1]
  assert second.arguments["id"] == first.arguments["id"] and second.exit_code == 0
  assert [sorted(line) for line in second.logged] == [
    ["world_model/loss", "world_model/step"],
    ["report/loss", "report/step"],
  ]
  runner.run(make(project, whole))
  assert len(wandb.runs) == 2  # nothing to do, nothing to send
  # Without it, no stage is another one.
  assert {each.action for each in plan.make_plan(make(whole)).values()} == {"skip"}


def _hold(workdir, ready, stop):
  with runner.lock(pathlib.Path(workdir)):
    ready.set()
    stop.wait(60)


def test_a_second_process_is_kept_out(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready, stop = context.Event(), context.Event()
  process = context.Process(target=_hold, args=(str(tmp_path / "run"), ready, stop))
  process.start()
  try:
    assert ready.wait(60)
    with pytest.raises(StageError, match="another process"), runner.lock(tmp_path / "run"):
      pass
  finally:
    stop.set()
    process.join(60)
  with runner.lock(tmp_path / "run"):
    pass


def test_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StageError, match="cannot write"), runner.lock(tmp_path / "file" / "run"):
    pass


@pytest.mark.parametrize("stage", chain.ROWS)
def test_every_stage_says_what_it_depends_on(stage):
  spec = chain.ROWS[stage]
  fields = config_lib.flatten(config_lib.default_config())
  for path in spec.reads:
    assert any(field == path or field.startswith(path + ".") for field in fields), path
  # Where results are written and how fast must not change what they are.
  for path in ("workdir", "stage", "env.workers", "env", "preset", "preset_reason", "training"):
    assert path not in spec.reads
  order = list(chain.ROWS)
  assert all(order.index(required) < order.index(stage) for required in spec.requires)


def test_estimate_grows_with_the_work():
  demo, small = (config_lib.preset_config(name) for name in ("demo", "small"))
  for stage in config_lib.STAGES:
    assert plan.estimate(demo, stage) == pytest.approx(chain.ROWS[stage].seconds)
    assert plan.estimate(small, stage) >= plan.estimate(demo, stage)
  small.world_model.updates *= 2
  assert plan.estimate(small, "world_model") == pytest.approx(
    2 * plan.estimate(demo, "world_model"), rel=1e-3
  )
  small.world_model.hidden *= 4
  assert plan.estimate(small, "world_model") > 3 * plan.estimate(demo, "world_model")
  demo.classifier.ensemble *= 2
  assert plan.estimate(demo, "classifier") == pytest.approx(2 * chain.ROWS["classifier"].seconds)


def test_estimate_counts_what_ppo_measures_on_the_way_and_the_simulator():
  demo = config_lib.preset_config("demo")
  config = config_lib.preset_config("demo")
  config.ppo.eval_every, config.ppo.eval_episodes = 4, 10
  policies = 3.2  # of evaluate: cloned, PPO, random, and the expert, which needs no networks
  # Of 24 iterations seven are measured: before the first, and after 4, 8, 12, 16, 20 and 24.
  measured = 7 * 10 / (policies * demo.evaluate.episodes)
  seconds = chain.ROWS["ppo"].seconds + measured * chain.ROWS["evaluate"].seconds
  assert plan.estimate(config, "ppo") == pytest.approx(seconds)
  assert plan.estimate(config, "evaluate") == pytest.approx(chain.ROWS["evaluate"].seconds * 5.2 / policies)
  config.env.name = "calvin"
  assert plan.estimate(config, "evaluate") > 10 * plan.estimate(demo, "evaluate")
  assert plan.estimate(config, "ppo") > seconds


def test_a_policy_made_on_another_world_model_is_refused(tmp_path):
  def make(run, stage, part=None, **inputs):
    made = make_artifact(stage, tmp_path / run / stage, part=part, inputs=inputs)
    write_artifact(made, done=True)
    return made

  worlds = {}
  for name in ("mine", "other"):
    worlds[name] = make(name, "world_model", {"of": name})
    world = worlds[name].fingerprint
    features = make(name, "featurize", world_model=world).fingerprint
    make(name, "behaviour_cloning", featurize=features)
    make(name, "classifier", world_model=world, featurize=features)

  def plans(name, *stages):
    given = {s: StagePlan(s, "use", read_artifact(tmp_path / name / s)) for s in stages}
    return {"world_model": StagePlan("world_model", "skip", worlds["mine"])} | given

  config = config_lib.preset_config("demo")
  plan.check_lineage(config, plans("mine", "behaviour_cloning", "classifier"))
  prints = {name: world.fingerprint[:12] for name, world in worlds.items()}
  with pytest.raises(StageError, match=f"behaviour_cloning.*made on {prints['other']}") as error:
    plan.check_lineage(config, plans("other", "behaviour_cloning", "classifier"))
  assert "inputs.classifier" in str(error.value) and f"fingerprint {prints['mine']}" in str(error.value)
  # Without the features that it was cloned from nobody can tell.
  for file in (tmp_path / "other" / "featurize").iterdir():
    file.unlink()
  plan.check_lineage(config, plans("other", "behaviour_cloning"))


def test_a_certificate_made_again_makes_the_report_again(tmp_path):
  """Which shows it, and cannot be given to another run."""
  demo = config_lib.experiment_file("calvin_wam:demo")

  def make(**changes):
    c = config_lib.load_experiment(demo)
    c.update_from_flattened_dict({"workdir": str(tmp_path)} | changes)
    return config_lib.finalize(c)

  for stage in chain.stages_of_run(make()):
    write_artifact(plan.make_plan(make())[stage].artifact, done=True)
  assert {p.action for p in plan.make_plan(make()).values()} == {"skip"}
  changed = make(**{"certify.required_success": 0.9})
  with pytest.raises(StageError, match="keep both: ") as error:
    plan.check_conflicts(changed, plan.make_plan(changed))
  assert "inputs.ppo=" in str(error.value) and "inputs.report=" not in str(error.value)
  shutil.rmtree(tmp_path / "certify")
  assert {p.stage: p.action for p in plan.make_plan(changed).values() if p.action != "skip"} == {
    "certify": "run",
    "report": "resume",
  }
  write_artifact(plan.make_plan(changed)["certify"].artifact, done=True)
  later = (tmp_path / "report" / "DONE").stat().st_mtime + 10
  os.utime(tmp_path / "certify" / "DONE", (later, later))
  alone = make(**{"certify.required_success": 0.9, "stage": "report"})
  assert plan.make_plan(alone)["report"].action == "resume"


@pytest.mark.parametrize(
  ("experiment", "path"),
  [("metaworld_wam", "world_model.updates"), ("lerobot_wam", "data.failed_takes_per_task")],
)
def test_commands_name_what_differs_from_the_experiment_file(experiment, path):
  """Also where it is what the preset has, from which the file differs."""
  config = config_lib.load_experiment(config_lib.experiment_file(f"{experiment}:demo"))
  assert f"--config.{path}=" not in config_lib.command(config)
  preset = config_lib.flatten(config_lib.preset_config("demo"))[path]
  config.update_from_flattened_dict({path: preset})
  assert f"--config.{path}={preset}" in config_lib.command(config).split()


@pytest.mark.parametrize("stage", ["featurize", "classifier", "label_play", "behaviour_cloning", "ppo"])
def test_what_was_learned_for_other_tasks_is_refused(tmp_path, stage):
  config = config_lib.preset_config("demo")
  given = lambda tasks: {
    "world_model": StagePlan(
      "world_model", "use", make_artifact("world_model", tmp_path, {"tasks": ["fly"]})
    ),
    stage: StagePlan(stage, "use", make_artifact(stage, tmp_path / stage, {"tasks": tasks})),
  }
  plan.check_lineage(config, given(list(config.tasks)))
  turned = config.tasks[::-1]
  with pytest.raises(StageError, match=f"(?s)inputs.{stage}=.*: {','.join(turned)}\n.*same order") as error:
    plan.check_lineage(config, given(turned))
  assert "inputs.world_model" not in str(error.value)


@pytest.mark.parametrize(
  ("stage", "name", "own"),
  [
    ("behaviour_cloning", "policy", "gaussian"),
    ("behaviour_cloning", "blocks", 3),
    ("behaviour_cloning", "denoising_steps", 7),
    ("ppo", "fine_tuned_steps", 3),
  ],
)
def test_given_policies_of_other_networks_are_refused(tmp_path, stage, name, own):
  """More blocks than the config's would be left out without a word, and no weight is shaped by the steps."""
  config = config_lib.preset_config("demo")
  given = make_artifact(stage, tmp_path, {stage: {name: own}})
  plans = {stage: StagePlan(stage, "use", given)}
  with pytest.raises(StageError, match=f"(?s)inputs.{stage}={given.path}: .*--config.{stage}.{name}={own}"):
    plan.check_lineage(config, plans)
  config[stage][name] = own
  plan.check_lineage(config, plans)


def test_the_way_back_to_old_settings_names_all_of_them(tmp_path):
  """Also a field that fingerprints leave out at that value, and that the user's command sets."""

  def planned(**changes):
    config = config_lib.load_experiment(config_lib.experiment_file("calvin_wam:demo"))
    changes = {"workdir": str(tmp_path), "stage": "collect"} | changes
    config.update_from_flattened_dict(changes)
    return plan.make_plan(config_lib.finalize(config))["collect"]

  write_artifact(planned(**{"data.play_frames": 30_000}).artifact, done=True)
  found = planned(**{"env.distractors": 2})
  assert found.action == "conflict"
  assert found.old == {"data.play_frames": 30_000, "env.distractors": 0}


def test_policies_after_ppo_that_began_elsewhere_are_refused(tmp_path):
  """Their gain would be measured from cloned policies that they never were."""
  config = config_lib.preset_config("demo")
  cloned = make_artifact("behaviour_cloning", tmp_path / "cloned")
  plans = lambda fingerprint: {
    "behaviour_cloning": StagePlan("behaviour_cloning", "run", cloned),
    "ppo": StagePlan(
      "ppo", "use", make_artifact("ppo", tmp_path / "ppo", inputs={"behaviour_cloning": fingerprint})
    ),
  }
  plan.check_lineage(config, plans(cloned.fingerprint))
  with pytest.raises(
    StageError, match=f"(?s)inputs.ppo=.* other cloned .*0ther, not {cloned.fingerprint[:12]}"
  ):
    plan.check_lineage(config, plans("0ther"))


def test_a_stage_by_itself_is_shown_what_is_finished_beside_it(ran, monkeypatch):
  """A report made again has the certificate, which it does not need."""
  monkeypatch.setitem(ROWS, "world_model", Stage("world_model", (), ("seed", "world_model")))
  monkeypatch.setitem(ROWS, "report", Stage("report", ("world_model",), ("report",), shows=("collect",)))
  for stage in ("collect", "world_model"):
    runner.run(make(("stage", stage)))
  alone = make(("stage", "report"))
  assert list(plan.make_plan(alone)) == ["collect", "world_model", "report"]
  (pathlib.Path(alone.workdir) / "collect" / "DONE").unlink()
  assert list(plan.make_plan(alone)) == ["world_model", "report"]
