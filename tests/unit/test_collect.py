"""The collect stage at a size of seconds: what it writes, that chance is in the seed alone, resuming."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.data import calvin, files
from wam_jax.embodiment import ROBOT_OBS, SCENE_OBS
from wam_jax.envs import experts, recording, recording_workers, registry, table, table_simulator
from wam_jax.envs import tasks as task_rules
from wam_jax.envs.play_table import simulator, skills
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import collect

TASKS = ("turn_on_led", "open_drawer")
PLAY_TABLE = {"name": "play_table"}


def _record(job: recording.Job, settings: recording.Settings) -> dict:
  simulator = registry.load(PLAY_TABLE)
  return recording.record(simulator, simulator.make(), job, settings)


def _config(seed: int = 3, workers: int = 1) -> ConfigDict:
  c = config_lib.default_config()
  c.seed, c.tasks = seed, TASKS
  c.env.image_size, c.env.workers = 16, workers
  c.data.source = "embedded"
  c.data.play_frames, c.data.play_episode_frames = 150, 60
  c.data.heldout_play_frames = 70
  c.data.demos_per_task, c.data.heldout_demos_per_task, c.data.heldout_starts_per_task = 2, 1, 3
  c.data.heldout_failed_takes_per_task = 1
  return c


def _run(config: ConfigDict, workdir: pathlib.Path) -> dict:
  collect.run(StageRun(config, {}, workdir, Logger(workdir, "collect")))
  return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(name="collected", scope="module")
def _collected(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("collect")
  return workdir, _run(_config(), workdir)


def test_writes_a_dataset_that_the_reader_takes(collected):
  workdir, summary = collected
  root = calvin.dataset_path(workdir)
  training = calvin.read_split(root / "training", 16, tasks=TASKS)
  validation = calvin.read_split(root / "validation", 16, tasks=TASKS)
  lengths = (training.frames.ends - training.frames.starts).tolist()
  assert lengths[:3] == [60, 60, 30] and len(lengths) == 3 + 4
  assert [a.task for a in training.annotations] == ["turn_on_led"] * 2 + ["open_drawer"] * 2
  assert [a.task for a in validation.annotations] == list(TASKS)
  assert validation.frames.ids[0] == training.frames.num_frames
  assert (validation.frames.ends - validation.frames.starts).tolist()[2:] == [60, 10]  # play, held out
  assert summary["frames"]["heldout_play"] == 70 and summary["episodes"]["heldout_play"] == 2
  assert summary["frames"]["total"] == training.frames.num_frames + validation.frames.num_frames
  assert summary["frames"]["play"] == 150 and summary["start_states"] == 6
  assert (
    training.frames.pictures["rgb_static"].std() > 10 and training.frames.pictures["rgb_gripper"].std() > 10
  )
  assert not (workdir / "states").exists()


def test_failed_takes_fail_and_are_a_split_of_their_own(tmp_path):
  config = _config()
  config.data.failed_takes_per_task, config.data.heldout_failed_takes_per_task = 2, 3
  summary = _run(config, tmp_path)
  root = calvin.dataset_path(tmp_path)
  takes = calvin.read_demos(root / calvin.FAILED, TASKS, image_size=16)
  assert [a.task for a in takes.annotations] == ["turn_on_led"] * 5 + ["open_drawer"] * 5
  for annotation in takes.annotations:
    scene = takes.frames.scene_obs[annotation.start : annotation.end]
    assert not task_rules.success(annotation.task, scene[:1], scene).any()
  validation = calvin.read_split(root / "validation", 16)
  assert takes.frames.ids[0] == validation.frames.ids[-1] + 1
  assert summary["frames"]["failed"] == takes.frames.num_frames and summary["episodes"]["failed"] == 10


def test_demos_end_a_few_frames_after_success(collected):
  split = calvin.read_split(calvin.dataset_path(collected[0]) / "training", 16)
  for annotation in split.annotations:
    scene_obs = split.frames.scene_obs[annotation.start : annotation.end]
    holds = task_rules.success(annotation.task, scene_obs[0], scene_obs)
    assert holds[-1] and not holds[0]
    assert np.flatnonzero(holds)[0] == len(holds) - recording.SUCCESS_FRAMES


def test_demos_are_episodes_and_start_differently(collected):
  split = calvin.read_split(calvin.dataset_path(collected[0]) / "training", 16)
  for annotation in split.annotations:
    assert annotation.start in split.frames.starts and annotation.end in split.frames.ends
  first = split.frames.robot_obs[[a.start for a in split.annotations]]
  assert len(np.unique(first[:, 0])) == len(first)


def test_start_states_are_heldout_and_possible(collected):
  root = calvin.dataset_path(collected[0])
  states = calvin.read_start_states(root, TASKS)
  for task, starts in states.items():
    robot_obs, scene_obs = table.split(starts)
    assert robot_obs.shape == (3, ROBOT_OBS) and scene_obs.shape == (3, SCENE_OBS)
    assert len(np.unique(robot_obs[:, 0])) == 3
    for state in scene_obs:
      assert task in experts.possible_tasks(skills.SKILLS, state)


def test_start_states_of_training_are_the_demos(collected):
  root = calvin.dataset_path(collected[0])
  demos = calvin.read_demos(root / "training", TASKS, image_size=16)
  starts = calvin.read_start_states(root, TASKS, split="training")
  first = np.concatenate([demos.frames.robot_obs, demos.frames.scene_obs], 1)[demos.frames.starts]
  np.testing.assert_allclose(np.concatenate([starts[task] for task in TASKS]), first, atol=1e-5)


def test_noise_moves_the_actions_but_not_the_gripper(collected):
  frames = calvin.read_frames(calvin.dataset_path(collected[0]) / "training", 16)
  assert set(np.unique(frames.action[:, 6])) <= {-1.0, 1.0}
  assert np.abs(frames.action).max() <= 1
  assert frames.action[:, 3].std() > 0.15  # the experts hold the roll: what moves is noise of 0.3


def test_replaying_the_actions_gives_the_recorded_states(collected):
  config, job = _config(), recording.Job("demo", "open_drawer", 1)
  settings = recording.Settings(config.seed, PLAY_TABLE, config.env.max_steps, 60, 150, 0.3, 0.25)
  episode, env = _record(job, settings), simulator.PlayTable()
  env.reset(episode["robot_obs"][0], episode["scene_obs"][0])
  for t, action in enumerate(episode["rel_actions"]):
    robot_obs, scene_obs = env.state()
    # Euler angles of the start went through a rotation once more, hence not to the bit.
    np.testing.assert_allclose(robot_obs, episode["robot_obs"][t], atol=1e-6)
    np.testing.assert_allclose(scene_obs[:6], episode["scene_obs"][t][:6], atol=1e-6)
    env.step(action)


class DrawsItself(simulator.PlayTable):
  """As CALVIN's: pictures of the present moment only, larger than wanted. Here they show the drawer."""

  def pictures(self):
    level = np.uint8(1000 * self.state()[1][task_rules.DRAWER])
    return {"rgb_static": np.full((20, 20, 3), level), "rgb_gripper": np.full((17, 17, 3), 255 - level)}


def test_a_simulator_that_only_draws_the_present_is_recorded_with_pictures(collected, tmp_path, monkeypatch):
  config = _config()
  config.env.name, config.env.calvin_root = "calvin", "somewhere"
  config.data.failed_takes_per_task = 1
  made = []

  def make(simulator):
    made.append(simulator._place)
    return table_simulator.TableEnvironment(DrawsItself())

  monkeypatch.setattr(table_simulator.CalvinSimulator, "make", make)
  monkeypatch.setattr(table_simulator.CalvinSimulator, "make_renderer", lambda *_: pytest.fail("drawn again"))
  summary = _run(config, tmp_path)
  assert made == [("somewhere", "D")]
  assert summary["frames"]["failed"] and {**summary["frames"], "failed": 0, "total": 0} == {
    **collected[1]["frames"],
    "total": 0,
  }
  takes = calvin.read_frames(calvin.dataset_path(tmp_path) / calvin.FAILED, 16)
  assert (takes.pictures["rgb_static"][:, 0, 0, 0] == 255 - takes.pictures["rgb_gripper"][:, 15, 15, 2]).all()
  for split in ("training", "validation"):
    frames = calvin.read_frames(calvin.dataset_path(tmp_path) / split, 16)
    np.testing.assert_array_equal(
      frames.action, calvin.read_frames(calvin.dataset_path(collected[0]) / split, 16).action
    )
    level = (1000 * frames.scene_obs[:, task_rules.DRAWER].astype(np.float64)).astype(np.uint8)
    assert (
      np.abs(frames.pictures["rgb_static"][:, 5, 5, 0].astype(int) - level).max() <= 1 and np.ptp(level) > 100
    )
    assert (
      frames.pictures["rgb_static"][:, 0, 0, 0] == 255 - frames.pictures["rgb_gripper"][:, 15, 15, 2]
    ).all()


def _files(workdir: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(workdir)): p.read_bytes()
    for p in sorted((workdir / "dataset").rglob("*.*"))
    if p.is_file() and p.name != "start_states.npz"
  }


def test_one_seed_gives_the_same_bytes_with_any_number_of_workers(collected, tmp_path):
  _run(_config(workers=2), tmp_path / "two")
  assert _files(tmp_path / "two") == _files(collected[0])
  roots = [calvin.dataset_path(workdir) for workdir in (collected[0], tmp_path / "two")]
  here, there = (calvin.read_start_states(root, TASKS) for root in roots)
  np.testing.assert_array_equal(here["open_drawer"], there["open_drawer"])


def test_another_seed_gives_other_frames(collected, tmp_path):
  settings = recording.Settings(4, PLAY_TABLE, 72, 60, 150, 0.3, 0.25)
  other = _record(recording.Job("play", "", 0), settings)
  frames = calvin.read_frames(calvin.dataset_path(collected[0]) / "training", 16)
  assert np.abs(other["robot_obs"] - frames.robot_obs[:60]).max() > 0.05


def test_resumes_where_it_was_killed(collected, tmp_path, monkeypatch):
  draw = collect._draw_split

  def killed(folder, *rest):
    if folder.name == "validation":
      raise KeyboardInterrupt
    return draw(folder, *rest)

  monkeypatch.setattr(collect, "_draw_split", killed)
  with pytest.raises(KeyboardInterrupt):
    _run(_config(), tmp_path)
  assert (tmp_path / "dataset/training").is_dir() and not (tmp_path / "summary.json").exists()
  monkeypatch.setattr(collect, "_draw_split", draw)
  monkeypatch.setattr(recording_workers, "record", lambda *_: pytest.fail("recorded again"))
  _run(_config(), tmp_path)
  assert _files(tmp_path) == _files(collected[0])
  # Killed again, just before the stage was marked as done.
  monkeypatch.setattr(collect, "_draw_split", lambda *_: pytest.fail("drew again"))
  assert _run(_config(), tmp_path)["frames"]
  assert _files(tmp_path) == _files(collected[0])


def test_leftovers_of_other_settings_are_not_mixed_in(collected, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(collect, "_draw_split", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      _run(_config(seed=5), tmp_path)
  _run(_config(), tmp_path)
  assert _files(tmp_path) == _files(collected[0])


def _workers() -> list[int]:
  """Process ids of our recording workers."""
  found = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError, IndexError):
      parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
      if parent == os.getpid() and b"wam_jax.envs.recording" in (entry / "cmdline").read_bytes():
        found.append(int(entry.name))
  return found


def test_a_killed_worker_is_replaced_and_its_job_done_again(collected, tmp_path, monkeypatch):
  real, killed = recording_workers.record_all, []

  def with_a_murder(jobs, settings, folder, workers, done):
    def and_kill(count):
      done(count)
      if len(killed) < 2:
        killed.append(next(pid for pid in _workers() if pid not in killed))  # it may not be gone yet
        os.kill(killed[-1], signal.SIGKILL)

    return real(jobs, settings, folder, workers, and_kill)

  monkeypatch.setattr(recording_workers, "record_all", with_a_murder)
  summary = _run(_config(workers=2), tmp_path)
  assert summary["worker_restarts"] == 2
  assert _files(tmp_path) == _files(collected[0])


def test_a_worker_that_always_dies_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(recording_workers.sys, "executable", "/bin/false")
  settings = recording.Settings(0, PLAY_TABLE, 72, 10, 10, 0.3, 0.25)
  jobs = [recording.Job("demo", "open_drawer", i) for i in range(2)]
  with pytest.raises(RuntimeError, match=r"a worker died 3 times at demo-open_drawer-0000\d \(exit code 1\)"):
    recording_workers.record_all(jobs, settings, tmp_path, 2, lambda n: None)


def test_a_failing_worker_says_what_failed(tmp_path):
  settings = recording.Settings(0, PLAY_TABLE, 1, 10, 10, 0.3, 0.25)  # one step: no demo can succeed
  jobs = [recording.Job("demo", "open_drawer", i) for i in range(2)]
  with pytest.raises(RuntimeError, match="expert failed 50 times in a row at open_drawer"):
    recording_workers.record_all(jobs, settings, tmp_path, 2, lambda n: None)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_clumsy_attempts_do_not_count_as_the_experts(rate):
  settings = recording.Settings(1, PLAY_TABLE, 72, 300, 300, 0.3, 0.0, 0, rate, 0.05)
  attempts = _record(recording.Job("play", "", 0), settings)
  assert bool(attempts["attempts"]) == (rate == 0.0)


def test_the_hand_is_turned_in_play_and_failed_takes_but_not_in_demos():
  turned = {}
  for wrist_error in (0.0, 0.2):
    settings = recording.Settings(
      1, PLAY_TABLE, 72, 300, 300, 0.0, 0.0, wrist_error=wrist_error, aim_error=0.05
    )
    for kind, task in (("play", ""), ("failed", "turn_on_led"), ("demo", "turn_on_led")):
      robot_obs = _record(recording.Job(kind, task, 0), settings)["robot_obs"]
      turned[kind, wrist_error] = float(np.median(np.abs(robot_obs[10:, 4])))  # no skill turns about y
  assert turned["demo", 0.2] == turned["demo", 0.0] < 0.03
  assert turned["failed", 0.0] < 0.03 and turned["failed", 0.2] > 0.05
  assert turned["play", 0.2] > turned["play", 0.0] + 0.05, turned


def test_play_visits_the_furniture_and_chains_possible_skills():
  settings = recording.Settings(1, PLAY_TABLE, 72, 600, 1800, 0.3, 0.25)
  plays = [_record(recording.Job("play", "", i), settings) for i in range(3)]
  scene_obs = np.stack([play["scene_obs"] for play in plays])
  furniture = [task_rules.SLIDER, task_rules.DRAWER, task_rules.BULB, task_rules.LED]
  moved = np.ptp(scene_obs[..., furniture], axis=1).max(0)  # within an episode
  assert (moved >= (0.15, 0.12, 1, 1)).all()
  assert sum(succeeded for play in plays for _, succeeded in play["attempts"].values()) >= 12


@pytest.mark.parametrize(
  ("index", "value", "possible"),
  [
    (task_rules.DRAWER, 0.0, ("open_drawer", "close_drawer")),
    (task_rules.DRAWER, 0.2, ("close_drawer", "open_drawer")),
    (task_rules.SLIDER, 0.02, ("move_slider_left", "move_slider_right")),
    (task_rules.BULB, 1.0, ("turn_off_lightbulb", "turn_on_lightbulb")),
    (task_rules.LED, 0.0, ("turn_on_led", "turn_off_led")),
  ],
)
def test_possible_tasks(index, value, possible):
  scene_obs = np.random.default_rng(0).uniform(0, 0.2, SCENE_OBS)
  scene_obs[4:6] = 1, 1
  scene_obs[index] = value
  tasks = experts.possible_tasks(skills.SKILLS, scene_obs)
  assert possible[0] in tasks and possible[1] not in tasks


def test_points_to_calvins_own_data(collected, tmp_path):
  config = _config()
  config.data.source, config.data.calvin_path = "calvin", str(collected[0] / "dataset")
  summary = _run(config, tmp_path)
  assert calvin.dataset_path(tmp_path) == (collected[0] / "dataset").resolve()
  assert summary["splits"]["training"]["windows"] == 4 and not (tmp_path / "dataset").exists()
  config.data.calvin_path = str(tmp_path)
  with pytest.raises(files.DatasetError, match="no training/"):
    _run(config, tmp_path / "other")


def test_imports_no_simulator_and_workers_no_jax():
  lines = [
    ("mujoco", "import wam_jax.stages.collect"),
    ("jax", "from wam_jax.envs import recording_workers as w; w.registry.load('play_table').make()"),
    ("jax", "import wam_jax.main, wam_jax.commands.seeds"),  # a plan and a table compute nothing
  ]
  for unwanted, line in lines:
    code = f"import sys; {line}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, unwanted
