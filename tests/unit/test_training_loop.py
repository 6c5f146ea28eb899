from __future__ import annotations

import functools
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from wam_jax.host import stopping
from wam_jax.host.logger import Logger, read_metrics
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import Clock, NotFiniteError, TrainingError, train_loop
from wam_jax.types import TrainState


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def update(state, key, num):
  def body(state, key):
    noise = jax.random.normal(key, state.params.shape)
    loss = jnp.sum(jnp.square(state.params))
    return state.replace(step=state.step + 1, params=0.9 * state.params + 0.1 * noise), {"loss": loss}

  state, metrics = jax.lax.scan(body, state, jax.random.split(key, num))
  return state, jax.tree.map(jnp.mean, metrics)


TRAINING = {"checkpoint_minutes": 0.0, "devices": 0, "keep_checkpoints": 2, "restore": "newest"}
CONFIG = ConfigDict({"profile": False, "training": TRAINING})
RARELY = ConfigDict({"profile": False, "training": TRAINING | {"checkpoint_minutes": 1e9}})
MEASURED = ("time", "speed/", "time/", "memory/")


def freely(fn):
  """Numbers may travel to the device inside."""

  def call(*args):
    with jax.transfer_guard("allow"):
      return fn(*args)

  return call


def start():
  return TrainState(step=jnp.int32(0), params=jax.random.normal(jax.random.key(1), (3,)), opt_state=())


def loop(workdir, total, **changes):
  logger = Logger(workdir, "stage")
  stage = StageRun(changes.pop("config", CONFIG), {}, workdir, logger)
  settings = {
    "state": start(),
    "update": update,
    "total": total,
    "per_call": 4,
    "key": jax.random.key(7),
    "description": "training",
    "prefix": "stage",
  }
  try:
    return train_loop(stage, **settings | changes)
  finally:
    logger.close()


def test_interrupted_equals_uninterrupted(tmp_path):
  whole = loop(tmp_path / "whole", 16)

  def interrupt(step, state):
    if step == 8:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    loop(tmp_path / "parts", 16, watch=interrupt)
  before = read_metrics(tmp_path / "parts")
  assert [line["step"] for line in before] == [4, 8]  # the line of step 8 came after the checkpoint of 4
  resumed = loop(tmp_path / "parts", 16)
  np.testing.assert_array_equal(whole.params, resumed.params)
  assert int(resumed.step) == 16
  first, second = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
  measured = lambda name: name.removeprefix("stage/").startswith(MEASURED)
  strip = [
    [{k: v for k, v in line.items() if not measured(k)} for line in lines] for lines in (first, second)
  ]
  assert strip[0] == strip[1] and len(strip[0]) == 4


def test_total_need_not_be_a_multiple_and_finished_runs_nothing(tmp_path):
  seen = []
  state = loop(tmp_path, 10, watch=lambda step, state: seen.append((step, int(state.step))))
  assert int(state.step) == 10 and seen == [(0, 0), (4, 4), (8, 8), (10, 10)]

  def never(state, key, num):
    raise AssertionError("nothing is left to do")

  again = loop(tmp_path, 10, update=never)
  np.testing.assert_array_equal(again.params, state.params)


def test_not_finite_stops_and_names_step_and_term(tmp_path):
  @freely
  def broken(state, key, num):
    state, metrics = update(state, key, num)
    return state, metrics | {"kl": jnp.where(state.step >= 8, jnp.nan, 1.0)}

  with pytest.raises(TrainingError, match="update 8: kl is nan.*ckpt/4"):
    loop(tmp_path, 16, update=broken)


def test_one_number_per_update_names_the_very_update(tmp_path):
  @freely
  def broken(state, key, num):
    state, _ = update(state, key, num)
    steps = state.step - num + 1 + jnp.arange(num)
    loss, kl = jnp.where(steps >= 11, jnp.inf, 1.0), jnp.where(steps >= 10, jnp.nan, 1.0)
    return state, {"loss": loss, "kl": kl}

  with pytest.raises(TrainingError, match=r"update 10: kl is nan; the last good checkpoint is .*ckpt/8"):
    loop(tmp_path, 16, update=broken)


def test_calls_end_at_the_stops(tmp_path):
  seen = []
  loop(tmp_path, 10, stops=(3, 4, 9), watch=lambda step, state: seen.append((step, int(state.step))))
  assert seen == [(0, 0), (3, 3), (4, 4), (8, 8), (9, 9), (10, 10)]


def test_the_loss_is_named_and_not_what_follows_from_it(tmp_path):
  @freely
  def broken(state, key, num):
    state, _ = update(state, key, num)
    bad = jnp.where(state.step - num + 1 + jnp.arange(num) >= 6, jnp.nan, 1.0)
    return state, {"loss/total": bad, "loss/kl": bad, "loss/image": jnp.ones(num), "optimizer/grad_norm": bad}

  with pytest.raises(TrainingError, match="update 6: loss/kl is nan; the last"):
    loop(tmp_path, 16, update=broken)


def test_update_that_gives_up_leaves_its_last_good_state(tmp_path):
  def fails(state, key, num):
    if int(state.step) == 8:
      raise NotFiniteError("not finite: chain of open_drawer")
    return update(state, key, num)

  with pytest.raises(
    TrainingError, match="update 9: not finite: chain of open_drawer; the last good"
  ) as error:
    loop(tmp_path, 12, update=fails, config=RARELY)
  assert str(tmp_path / "ckpt" / "8") in str(error.value)
  assert (tmp_path / "ckpt" / "8").is_dir()
  resumed = loop(tmp_path, 12)
  np.testing.assert_array_equal(resumed.params, loop(tmp_path / "whole", 12).params)


def test_hidden_transfers_are_refused_under_test(tmp_path):
  def careless(state, key, num):
    state, metrics = update(state, key, num)
    return state.replace(params=state.params + np.float32([1, 2, 3])), metrics

  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    loop(tmp_path, 8, update=careless)


def test_time_and_memory_are_measured(tmp_path):
  clock = Clock()

  def waits(state, key, num):
    with clock.count("data"):
      time.sleep(0.2)
    return update(state, key, num)

  loop(tmp_path, 8, update=waits, clock=clock, frames=5)
  for line in read_metrics(tmp_path):
    assert 0.05 <= line["stage/time/data"] < 0.1 < 0.2 + line["stage/time/compute"]
    parts = [line[f"stage/time/{name}"] for name in ("data", "compute", "checkpoint")]
    assert min(parts) >= 0 and sum(parts) <= line["stage/time/update"]
    assert line["stage/speed/frames_per_second"] == pytest.approx(5 * line["stage/speed/updates_per_second"])
    assert 0.05 < line["stage/memory/process"] < 100


def test_profile_records_calls_after_the_first(tmp_path):
  profiled = ConfigDict({"profile": True, "training": TRAINING})
  loop(tmp_path, 8, config=profiled)  # two calls
  (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
  assert trace.stat().st_size > 1000


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
  """Whole processes are signalled in tests/integration."""
  whole = loop(tmp_path / "whole", 16)
  came = []
  monkeypatch.setattr(stopping, "requested", lambda: signal.SIGTERM if came else 0)
  with pytest.raises(stopping.Stopped, match="SIGTERM") as stopped:
    loop(tmp_path / "parts", 16, config=RARELY, watch=lambda step, _: came.extend([step] * (step == 8)))
  assert stopped.value.code == 143
  assert [line["step"] for line in read_metrics(tmp_path / "parts")] == [4, 8]
  came.clear()
  resumed = loop(tmp_path / "parts", 16)
  np.testing.assert_array_equal(resumed.params, whole.params)
  assert [line["step"] for line in read_metrics(tmp_path / "parts")] == [4, 8, 12, 16]


def test_goes_on_from_the_best_checkpoint_when_asked(tmp_path):
  """The loss falls to its least at 8 and rises; from there another seed takes another way."""

  @freely
  def shaped(state, key, num):
    state, metrics = update(state, key, num)
    return state, metrics | {"loss": jnp.abs(state.step - 8).astype(jnp.float32)}

  loop(tmp_path, 16, update=shaped)
  assert sorted(int(p.name) for p in (tmp_path / "ckpt").glob("[0-9]*")) == [8, 12, 16]
  best = ConfigDict({"profile": False, "training": TRAINING | {"restore": "best"}})
  seen = []
  loop(tmp_path, 20, update=shaped, config=best, watch=lambda step, state: seen.append(step))
  assert seen == [12, 16, 20]
  left = sorted(p.name for p in (tmp_path / "ckpt").iterdir() if p.name.endswith(".left"))
  assert left == ["12.left", "16.left"]
  seen.clear()
  loop(tmp_path, 24, update=shaped, config=best, watch=lambda step, state: seen.append(step))
  assert seen == [24]  # once
  assert [line["step"] for line in read_metrics(tmp_path)] == [4, 8, 12, 16, 20, 24]


def test_a_stage_with_only_its_last_checkpoint_goes_on_from_it(tmp_path):
  """Killed before it was marked as done, and asked for the best."""
  whole = loop(tmp_path, 8, config=RARELY)
  best = ConfigDict({"profile": False, "training": TRAINING | {"restore": "best"}})
  again = loop(tmp_path, 8, config=best)
  np.testing.assert_array_equal(again.params, whole.params)
