"""Faults at random moments of every stage: the same command goes on, and ends as if nothing had been.

Half an hour on one core. WAM_FAULT_TABLE=FILE also writes the table that is printed at the end, and adds to
what is there; WAM_FAULT_WHOLE=FOLDER keeps the uninterrupted run and compiled programs for the next time:
with both, a few tests at a time (-k) make up the whole. tests/unit/test_collect.py kills simulators.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from faults import (
  INT,
  KILL,
  LONG,
  TERM,
  TRAINING,
  UPDATES,
  Process,
  Table,
  assert_equal,
  damage,
  fill,
  finish,
  last_update,
  rng_of,
  seconds_of,
  send,
  shake,
  small_disk,
  started_copy,
  steps,
)

from wam_jax.config import STAGES
from wam_jax.host.logger import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KILLS = int(os.environ.get("WAM_FAULT_KILLS", "6"))  # of each stage


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
  folder = os.environ.get("WAM_FAULT_WHOLE")
  return pathlib.Path(folder) if folder else tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def cache(kept):
  return kept / "cache"


@pytest.fixture(scope="module")
def table():
  table = Table()
  yield table
  table.publish()


@pytest.fixture(scope="module")
def whole(kept, cache):
  """An uninterrupted run, and seconds of its stages when everything is compiled."""
  one, two = kept / "run", kept / "again" / "run"
  for workdir in (one, two):
    finish(kept / "logs", cache, workdir, **LONG)
  assert_equal(one, two, STAGES)  # else nothing below means anything
  return one, seconds_of(two)


@pytest.fixture
def workdir(tmp_path):
  yield tmp_path / "run"
  shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("stage", STAGES)
def test_killed(whole, workdir, cache, table, stage):
  run, seconds = whole
  shake(run, workdir, cache, stage, [KILL] * KILLS, seconds[stage], table, rng_of(f"kill {stage}"))


def test_killed_at_any_moment_of_a_whole_run(whole, workdir, cache, table):
  run, seconds = whole
  rng, total = rng_of("kill"), sum(seconds.values())
  for _ in range(5):
    process = Process(workdir.parent / "logs", cache, workdir, **LONG)
    time.sleep(rng.uniform(0, total / 3))
    if process.popen.poll() is None:
      table.tried("kill -9 in a whole run")
      send(process, KILL, rng)
      table.survived("kill -9 in a whole run")
  finish(workdir.parent / "logs", cache, workdir, **LONG)
  assert_equal(run, workdir, STAGES)


def test_killed_just_before_it_was_done(whole, workdir, cache, table):
  run, _ = whole
  shutil.copytree(run, workdir)
  for stage in STAGES:
    (workdir / stage / "DONE").unlink()
  (workdir / "judge_world_model" / "judge.json").unlink()
  (workdir / "evaluate" / "results.json").unlink()
  table.tried("killed between the last file and DONE", len(STAGES))
  finish(workdir.parent / "logs", cache, workdir, **LONG)
  assert_equal(run, workdir, STAGES)
  table.survived("killed between the last file and DONE", 0, len(STAGES))


@pytest.mark.parametrize("stage", STAGES)
def test_signalled(whole, workdir, cache, table, stage):
  run, seconds = whole
  faults = [TERM, INT] * (2 if stage in TRAINING else 1)
  shake(run, workdir, cache, stage, faults, seconds[stage], table, rng_of(f"signal {stage}"))


@pytest.mark.parametrize("stage", TRAINING)
def test_second_signal_ends_at_once(whole, workdir, cache, table, stage):
  run, _ = whole
  fault = f"SIGTERM twice in {stage}"
  started_copy(run, workdir, stage)
  table.tried(fault)
  process = Process(workdir.parent / "logs", cache, workdir, f"stuck:{stage}:1", stage=stage, **LONG)
  process.ends_at_once(workdir / stage)
  finish(workdir.parent / "logs", cache, workdir, stage=stage, **LONG)
  assert_equal(run, workdir, [stage])
  table.survived(fault)


@pytest.mark.parametrize("stage", TRAINING)
def test_weight_that_is_not_a_number(whole, workdir, cache, table, stage):
  run, _ = whole
  after = {"ppo": 2}.get(stage, 8)
  fault = f"a weight of {stage} becomes NaN"
  started_copy(run, workdir, stage)
  table.tried(fault)
  process = Process(workdir.parent / "logs", cache, workdir, f"nan:{stage}:{after}", stage=stage, **LONG)
  assert process.wait() == 1, process.words
  assert "Traceback" not in process.err
  found = re.search(r"update (\d+): (.+)", process.err)  # some stages tell the means of a call only
  assert found and after < int(found[1]) <= after + 4, process.words
  assert str(workdir / stage / "ckpt" / str(after)) in process.err, process.words
  again = finish(workdir.parent / "logs", cache, workdir, stage=stage, **LONG)
  assert again.resumed() == after
  assert_equal(run, workdir, [stage])
  table.survived(fault, 0)


@pytest.mark.parametrize(
  ("stage", "field"),
  [
    ("world_model", "world_model__learning_rate"),
    ("behaviour_cloning", "behaviour_cloning__learning_rate"),
    ("classifier", "classifier__learning_rate"),
    ("ppo", "ppo__actor_learning_rate"),
  ],
)
def test_learning_rate_much_too_high(whole, workdir, cache, table, stage, field):
  run, _ = whole
  fault = f"learning rate 1e30 of {stage}"
  started_copy(run, workdir, stage)
  table.tried(fault)
  process = Process(workdir.parent / "logs", cache, workdir, stage=stage, **LONG | {field: 1e30})
  assert process.wait() == 1, process.words
  assert "Traceback" not in process.err and "update " in process.err, process.words
  kept = steps(workdir / stage)
  said = f"ckpt/{kept[-1]}" if kept else "no checkpoint was written yet"
  assert said in process.err, process.words
  table.survived(fault)


@pytest.mark.parametrize("key", ["robot_obs", "rel_actions"])
def test_frame_that_is_not_a_number(whole, workdir, cache, table, key):
  run, _ = whole
  fault = f"NaN in {key} of a frame"
  started_copy(run, workdir, "world_model")
  frames = sorted((workdir / "collect" / "dataset" / "training").glob("episode_*.npz"))
  frame = rng_of(key).choice(frames)
  with np.load(frame) as file:
    content = {name: file[name] for name in file.files}
  content[key][3] = np.nan
  np.savez(frame, **content)
  table.tried(fault)
  process = Process(workdir.parent / "logs", cache, workdir, stage="world_model", **LONG)
  assert process.wait() == 1
  assert "Traceback" not in process.err and str(frame) in process.err and key in process.err, process.words
  table.survived(fault)


@pytest.mark.parametrize("stage", TRAINING)
def test_clock_that_goes_backwards(whole, workdir, cache, table, stage):
  run, _ = whole
  fault, rng = f"clock set back again and again, kill -9 in {stage}", rng_of(f"clock {stage}")
  started_copy(run, workdir, stage)
  table.tried(fault)
  process = Process(workdir.parent / "logs", cache, workdir, "clock", stage=stage, **LONG)
  assert process.said(rf"\[{stage}\] starts")
  until = rng.uniform(0.2, 0.7) * UPDATES[stage]
  while last_update(workdir, stage) < until or not steps(workdir / stage):
    assert process.popen.poll() is None, process.words
    time.sleep(0.02)
  send(process, KILL, rng)
  reached = last_update(workdir, stage)
  process = Process(workdir.parent / "logs", cache, workdir, "clock", stage=stage, **LONG)
  assert process.wait() == 0, process.words
  assert process.resumed()
  times = [line["time"] for line in read_metrics(workdir / stage)]
  assert min(after - before for before, after in itertools.pairwise(times)) < -86400  # the fault was there
  assert_equal(run, workdir, [stage])
  table.survived(fault, reached - process.resumed())


@pytest.mark.parametrize("stage", ["collect", *TRAINING, "featurize", "evaluate", "report"])
def test_disk_that_is_full(whole, tmp_path, cache, table, stage):
  run, _ = whole
  fault, rng = f"full disk in {stage}", rng_of(f"disk {stage}")
  size = sum(path.stat().st_size for path in (run / stage).rglob("*") if path.is_file())
  before = STAGES[: STAGES.index(stage)]
  logs = tmp_path / "logs"
  with small_disk(tmp_path / "disk", "200m") as disk:
    workdir = disk / "run"
    started_copy(run, workdir, stage)
    lost = None
    leaves = (0, *(int(size * rng.uniform(0.05, 0.7)) for _ in range(2 if stage in TRAINING else 1)))
    for leave in leaves:
      fill(disk, leave)
      table.tried(fault)
      process = Process(logs, cache, workdir, stage=stage, **LONG)
      assert process.wait() == 1, process.words
      assert "Traceback" not in process.err and "the disk is full" in process.err, process.words
      assert str(workdir) in process.err, process.words
      (disk / "ballast").unlink()
      if stage in TRAINING and steps(workdir / stage):
        lost = max(lost or 0, last_update(workdir, stage) - steps(workdir / stage)[-1])
    assert_equal(run, workdir, before)
    finish(logs, cache, workdir, stage=stage, **LONG)
    assert_equal(run, workdir, [stage])
    table.survived(fault, lost, len(leaves))


@pytest.mark.parametrize("stage", TRAINING)
def test_damaged_checkpoint(whole, workdir, cache, table, stage):
  run, _ = whole
  fault, rng = f"damaged checkpoint of {stage}", rng_of(f"damage {stage}")
  started_copy(run, workdir, stage)
  logs, lost = workdir.parent / "logs", 0
  for _ in range(3):
    process = Process(logs, cache, workdir, stage=stage, **LONG)
    newest = max(steps(workdir / stage), default=0)
    while len(steps(workdir / stage)) < 2 or steps(workdir / stage)[-1] == newest:
      assert process.popen.poll() is None, process.words
      time.sleep(0.02)
    send(process, TERM, rng)
    good, bad = steps(workdir / stage)[-2:]
    name = damage(workdir / stage / "ckpt" / str(bad), rng)
    table.tried(fault)
    process = Process(logs, cache, workdir, stage=stage, **LONG)
    assert process.said(r"resumed at update"), process.words
    send(process, KILL, rng)
    assert process.resumed() == good
    assert f"checkpoint of step {bad} is damaged" in process.out and name in process.out, process.words
    assert f"step {good} is used instead, {bad - good} updates are lost" in process.out, process.words
    assert (workdir / stage / "ckpt" / f"{bad}.damaged").exists()
    lost = max(lost, bad - good)
    shutil.rmtree(workdir / stage / "ckpt" / f"{bad}.damaged")
    table.survived(fault, lost)
  finish(logs, cache, workdir, stage=stage, **LONG)
  assert_equal(run, workdir, [stage])
