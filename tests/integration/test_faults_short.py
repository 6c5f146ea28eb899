"""A few faults of each kind; tests/slow/test_faults.py has many, in every stage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faults import (
  INT,
  KILL,
  TERM,
  Process,
  Table,
  assert_equal,
  damage,
  fill,
  finish,
  rng_of,
  seconds_of,
  send,
  shake,
  small_disk,
  started_copy,
  steps,
)

STAGE = "world_model"
SETTINGS = {"training__checkpoint_minutes": 0, "world_model__updates": 32}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  folder = tmp_path_factory.mktemp("whole")
  for stage in ("collect", STAGE):
    finish(folder / "logs", cache, folder / "run", stage=stage, **SETTINGS)
  return folder / "run"


@pytest.fixture
def start(whole, cache, tmp_path):
  """(settings, fault) -> a process at the stage, everything before it done."""
  started_copy(whole, tmp_path / "run", STAGE)

  def begin(broken="", **settings):
    return Process(tmp_path / "logs", cache, tmp_path / "run", broken, stage=STAGE, **SETTINGS | settings)

  return begin


@pytest.mark.slow
def test_killed_and_signalled_equals_uninterrupted(whole, cache, tmp_path):
  table, seconds = Table(), seconds_of(whole)[STAGE] / 2  # it compiled then
  faults, rng = [KILL, TERM, INT, KILL], rng_of("short")
  shake(whole, tmp_path / "run", cache, STAGE, faults, seconds, table, rng, SETTINGS)
  assert sum(tried for tried, _, _ in table.rows.values()) == len(faults)
  assert all(tried == survived for tried, survived, _ in table.rows.values())


@pytest.mark.slow
def test_second_signal_ends_at_once(start, tmp_path):
  start(f"stuck:{STAGE}:1").ends_at_once(tmp_path / "run" / STAGE)


@pytest.mark.slow
def test_weight_that_is_not_a_number_then_a_damaged_checkpoint(whole, start, tmp_path):
  folder = tmp_path / "run" / STAGE
  process = start(f"nan:{STAGE}:8")
  assert process.wait() == 1 and "Traceback" not in process.err, process.words
  assert "update 9: loss/" in process.err and str(folder / "ckpt" / "8") in process.err, process.words
  assert steps(folder) == [4, 8]
  name = damage(folder / "ckpt" / "8", rng_of("short"))
  process = start()
  assert process.wait() == 0, process.words
  assert process.resumed() == 4 and "checkpoint of step 8 is damaged" in process.out
  assert name in process.out and "step 4 is used instead, 4 updates are lost" in process.out, process.words
  (folder / "ckpt" / "8.damaged").rename(tmp_path / "8.damaged")
  assert_equal(whole, tmp_path / "run", [STAGE])


@pytest.mark.slow
def test_frame_that_is_not_a_number(start, tmp_path):
  frame = sorted((tmp_path / "run" / "collect" / "dataset" / "training").glob("episode_*.npz"))[77]
  with np.load(frame) as file:
    content = {name: file[name] for name in file.files}
  content["robot_obs"][3] = np.nan
  np.savez(frame, **content)
  process = start()
  assert process.wait() == 1 and "Traceback" not in process.err
  assert str(frame) in process.err and "robot_obs" in process.err, process.words


@pytest.mark.slow
def test_full_disk(whole, cache, tmp_path):
  with small_disk(tmp_path / "disk", "100m") as disk:
    workdir = disk / "run"
    started_copy(whole, workdir, STAGE)
    fill(disk, 1_000_000)
    run = lambda: Process(tmp_path / "logs", cache, workdir, stage=STAGE, **SETTINGS)
    process = run()
    assert process.wait() == 1 and "Traceback" not in process.err, process.words
    assert "the disk is full" in process.err and str(workdir / STAGE) in process.err, process.words
    (disk / "ballast").unlink()
    assert run().wait() == 0
    assert_equal(whole, workdir, ["collect", STAGE])


@pytest.mark.slow
def test_clock_that_goes_backwards(whole, start, tmp_path):
  process = start("clock")
  process.until(lambda: steps(tmp_path / "run" / STAGE))
  send(process, TERM, rng_of("short"))
  process = start("clock")
  assert process.wait() == 0 and process.resumed(), process.words
  times = [json.loads(line)["time"] for line in (tmp_path / "run" / STAGE / "metrics.jsonl").open()]
  assert times != sorted(times)  # the fault was there
  assert_equal(whole, tmp_path / "run", [STAGE])
