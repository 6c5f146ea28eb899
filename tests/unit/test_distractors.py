"""Distractors over the pictures: the same episodes with and without, restored states, the noise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.envs import base, distractors, recording, registry
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import collect

LEVELS = (1, 3)
SIZE = 16


def _env(level):
  return {"name": "play_table", "distractors": level}


def _record(level, job):
  settings = recording.Settings(
    seed=5,
    env=_env(level),
    max_steps=72,
    play_episode_frames=60,
    play_frames=60,
    action_noise=0.3,
    failed_attempt_rate=0.25,
  )
  simulator = registry.load(settings.env)
  return recording.record(simulator, simulator.make(), job, settings)


@pytest.mark.parametrize("job", [recording.Job("demo", "open_drawer", 0), recording.Job("play", "", 0)])
@pytest.mark.parametrize("level", LEVELS)
def test_episodes_are_the_same_with_and_without(job, level):
  plain, distracted = _record(0, job), _record(level, job)
  width = plain["snapshot"].shape[1]
  assert plain.keys() == distracted.keys()
  for name in plain.keys() - {"snapshot", "start"}:
    np.testing.assert_array_equal(plain[name], distracted[name], name)
  np.testing.assert_array_equal(plain["snapshot"], distracted["snapshot"][:, :width])
  numbers = distracted["snapshot"][:, width:]
  assert (numbers[:, -1] == np.arange(len(numbers))).all()  # a step of the distractors for each of control
  assert (np.ptp(numbers[:, :-2], axis=0) > 0.1).all()


def test_level_0_is_the_simulator_itself():
  job = recording.Job("start", "turn_on_led", 1)
  plain = registry.load("play_table")
  assert type(registry.load(_env(0))) is type(plain)
  state = _record(0, job)["start"][None]
  for camera, pictures in registry.load(_env(0)).make_renderer(SIZE, 1)(state).items():
    np.testing.assert_array_equal(pictures, plain.make_renderer(SIZE, 1)(state)[camera])


def test_a_restored_state_goes_on_to_the_bit():
  simulator = registry.load(_env(2))
  render, start = (
    simulator.make_renderer(SIZE, 1),
    _record(2, recording.Job("start", "open_drawer", 0))["start"],
  )
  rng = np.random.default_rng(0)
  actions = np.concatenate([rng.uniform(-1, 1, (20, 6)), np.ones((20, 1))], 1)
  first, second = simulator.make(), simulator.make()
  first.reset(start, "open_drawer")
  snapshots = [first.snapshot()]
  for action in actions:
    first.step(action)
    snapshots.append(first.snapshot())
  assert np.ptp([snapshot[39] for snapshot in snapshots]) > 0.1  # what was handed out stays what it was
  second.reset(start, "open_drawer")
  for t, action in enumerate(actions):
    np.testing.assert_array_equal(second.snapshot(), snapshots[t])
    second.step(action)
  # From the middle: physics begin at rest there, distractors go on.
  second.reset(snapshots[10], "open_drawer")
  np.testing.assert_allclose(second.snapshot()[:39], snapshots[10][:39], atol=1e-12)
  np.testing.assert_array_equal(second.snapshot()[39:], snapshots[10][39:])
  for before, after in zip(
    render(snapshots[10][None]).values(), render(second.snapshot()[None]).values(), strict=True
  ):
    np.testing.assert_array_equal(before, after)
  for t in range(11, 21):
    second.step(actions[t - 1])
    np.testing.assert_array_equal(second.snapshot()[39:], snapshots[t][39:])


def test_pictures_do_not_depend_on_their_batch():
  simulator = registry.load(_env(3))
  states = _record(3, recording.Job("play", "", 0))["snapshot"][:7]
  render = simulator.make_renderer(SIZE, 1)
  together = render(states)
  for camera in simulator.embodiment.camera_names:
    assert together[camera].shape == (7, SIZE, SIZE, 3) and together[camera].dtype == np.uint8
    for i in range(7):
      np.testing.assert_array_equal(together[camera][i], render(states[i : i + 1])[camera][0])


def test_a_patch_lies_where_its_numbers_say():
  grey = np.full((1, 32, 32, 3), 100, np.uint8)
  outside = np.full((1, 2, 2), 20.0)
  np.testing.assert_array_equal(distractors.draw_over(grey, outside, np.zeros(1), 1), grey)
  places = outside.copy()
  places[0, 0] = 1.0, -1.0  # right and above: SPREAD from the middle
  drawn = distractors.draw_over(grey, places, np.zeros(1), 1)
  rows, columns = np.nonzero((drawn != grey).any(-1)[0])
  assert rows.mean() + 0.5 == pytest.approx(32 * (0.5 - distractors.SPREAD))
  assert columns.mean() + 0.5 == pytest.approx(32 * (0.5 + distractors.SPREAD))
  expected = 100 + distractors.OPACITY * (distractors.COLOURS[0] - 100)
  np.testing.assert_allclose(drawn[0, 8, 24], expected, atol=0.5)
  covered = (drawn.astype(float) - grey).sum() / (expected - 100).sum()
  assert covered == pytest.approx(
    (32 * distractors.side(1)) ** 2, rel=0.02
  )  # edges between pixels count in part
  dark, bright = (distractors.draw_over(grey, outside, np.array([light]), 3).mean() for light in (-1.0, 1.0))
  assert (dark, bright) == pytest.approx((82, 118), abs=0.5)


@pytest.mark.parametrize("level", LEVELS)
def test_the_process_is_ar1_with_unit_variance(level):
  process = distractors.Distractors(level, 2)
  process.begin(7)
  rows = [process.numbers]
  for _ in range(4000):
    process.step()
    rows.append(process.numbers)
  values = np.array(rows)[:, :-2]
  moving = values[:, :-1]
  assert moving.std() == pytest.approx(1, abs=0.1) and abs(moving.mean()) < 0.15
  lagged = lambda x: float(np.mean(x[1:] * x[:-1]) / np.mean(x**2))
  assert lagged(moving) == pytest.approx(distractors.kept(level), abs=0.02)
  assert lagged(values[:, -1]) == pytest.approx(distractors.LIGHT_KEPT, abs=0.05)
  noise = moving[1:] - distractors.kept(level) * moving[:-1]
  assert abs(lagged(noise)) < 0.02
  correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
  assert np.abs(correlation).max() < 0.08  # patches move independently


def test_starts_differ_in_their_distractors():
  starts = [_record(1, recording.Job("start", "open_drawer", i))["start"] for i in range(3)]
  assert len({start[-2] for start in starts}) == 3
  assert np.unique([start[39] for start in starts]).size == 3


def test_starts_of_another_level_are_refused():
  start = _record(1, recording.Job("start", "open_drawer", 0))["start"]
  for level, other in ((2, start), (1, start[:39])):
    with pytest.raises(ValueError, match=r"another env\.distractors"):
      registry.load(_env(level)).make().reset(other)
  for place, value in ((-1, 0.5), (-2, -1), (40, np.nan)):
    damaged = start.copy()
    damaged[place] = value
    with pytest.raises(ValueError, match="distractors must be finite"):
      registry.load(_env(1)).make().reset(damaged)


def test_what_has_no_renderer_or_snapshots_is_refused(monkeypatch):
  plain = registry.load("play_table")
  bare = plain.make()
  monkeypatch.setattr(bare, "snapshot", lambda: None)
  with pytest.raises(base.NotOffered, match="part of a state"):
    distractors.DistractedEnvironment(bare, 1, 2).snapshot()
  monkeypatch.setattr(type(plain), "make_renderer", lambda *_: None)
  with pytest.raises(base.NotOffered, match="play_table has none"):
    registry.load(_env(1)).make_renderer(SIZE)


@pytest.mark.parametrize("name", ["calvin", "metaworld", "gymnasium:Reacher-v5"])
def test_the_plan_refuses_other_simulators(name):
  config = config_lib.preset_config("demo")
  config.env.name, config.env.distractors = name, 2
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.finalize(config)
  (problem,) = [problem for problem in error.value.problems if problem.path == "env.distractors"]
  assert name in problem.rule and "--config.env.distractors=0" in problem.fix


def test_datasets_from_elsewhere_have_none():
  config = config_lib.preset_config("demo")
  config.data.source, config.env.distractors = "calvin", 1
  with pytest.raises(config_lib.ConfigError, match=r"env\.distractors"):
    config_lib.finalize(config)


def test_collected_frames_and_starts_have_distractors(tmp_path):
  found = {}
  for level in (0, 2):
    c = config_lib.default_config()
    c.seed, c.tasks, c.env.distractors = 3, ("turn_on_led",), level
    c.env.image_size, c.env.workers, c.data.source = SIZE, 1, "embedded"
    c.data.play_frames, c.data.play_episode_frames, c.data.heldout_play_frames = 60, 60, 20
    c.data.demos_per_task, c.data.heldout_demos_per_task, c.data.heldout_starts_per_task = 1, 1, 2
    workdir = tmp_path / str(level)
    collect.run(StageRun(c, {}, workdir, Logger(workdir, "collect")))
    summary = json.loads((workdir / "summary.json").read_text())
    found[level] = (summary["frames"], workdir / "dataset")
  assert found[0][0] == found[2][0]
  for file in sorted((found[0][1] / "training").glob("episode_*.npz")):
    with np.load(file) as plain, np.load(found[2][1] / "training" / file.name) as distracted:
      for key in plain.files:
        assert np.array_equal(plain[key], distracted[key]) == (not key.startswith("rgb_")), key
  with np.load(found[2][1] / "validation" / "start_states.npz") as starts:
    registry.load(_env(2)).make().reset(starts["start"][0], "turn_on_led")
