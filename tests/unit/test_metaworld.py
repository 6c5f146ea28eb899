"""Meta-World behind the simulators' interface. Most of it needs the package: extra `metaworld`."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from wam_jax import config as wam_config
from wam_jax.envs import registry
from wam_jax.envs.metaworld.scenes import NAMES, PLAY_STEPS, TASKS, WIDTH
from wam_jax.envs.recording import Job, Settings, record
from wam_jax.experiments import metaworld_wam

needs_package = pytest.mark.skipif(
  importlib.util.find_spec("metaworld") is None, reason="metaworld is not installed: extra metaworld"
)


@pytest.fixture(scope="module")
def simulator():
  return registry.load("metaworld")


@pytest.fixture(scope="module")
def env(simulator):
  return simulator.make()


def begin(env, task, seed=0, steps=0):
  """Starts a task, and lets its expert act for some steps."""
  rng = np.random.default_rng(seed)
  env.reset(env.sample_start(task, rng), task)
  act = env.expert(task, rng)
  for _ in range(steps):
    env.step(act())
  return act


def test_a_missing_package_is_a_problem_of_the_config(monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "metaworld" else find_spec(name)
  )
  with pytest.raises(wam_config.ConfigError) as error:
    wam_config.finalize(metaworld_wam.get_config("demo"))
  assert [(problem.path, problem.fix) for problem in error.value.problems] == [
    ("env.name", "pip install 'wam_jax[metaworld]'")
  ]
  assert error.value.config is not None  # the plan shows what it would cost


@needs_package
def test_config_takes_its_robot_and_tasks(simulator):
  config = wam_config.finalize(metaworld_wam.get_config("demo"))
  assert (config.tasks, config.world_model.cameras) == (NAMES, simulator.embodiment.camera_names)
  draft = metaworld_wam.get_config("demo")
  draft.tasks = ("drawer_opne",)
  with pytest.raises(wam_config.ConfigError, match="drawer_open"):
    wam_config.finalize(draft)


@needs_package
@pytest.mark.parametrize("task", NAMES)
def test_experts(env, task):
  act = begin(env, task)
  assert not env.success()
  for _ in range(72):
    env.step(act())
    if env.success():
      break
  assert env.success()
  for _ in range(10):  # frames that recordings keep
    env.step(act())
  assert env.success()
  assert env._env.model_name.endswith(f"/{TASKS[task].scene}.xml")


@needs_package
@pytest.mark.parametrize("task", NAMES)
def test_states_are_restored_to_the_bit(simulator, env, task):
  act = begin(env, task, seed=1, steps=12)
  snapshot, actions, after = env.snapshot(), [], []
  for _ in range(8):
    actions.append(act())
    env.step(actions[-1])
    after.append(np.concatenate([env.snapshot(), env.state()]))
  other = simulator.make()
  begin(other, "drawer_close", steps=3)  # whatever it did before
  other.reset(snapshot, task)
  np.testing.assert_array_equal(other.snapshot(), snapshot)
  for action, expected in zip(actions, after, strict=True):
    other.step(action)
    np.testing.assert_array_equal(np.concatenate([other.snapshot(), other.state()]), expected)


@needs_package
def test_what_can_only_be_seen_does_not_move_anything(simulator, monkeypatch):
  from gymnasium.envs.mujoco import MujocoEnv
  from metaworld.sawyer_xyz_env import SawyerMocapBase

  def roll():
    env = simulator.make()
    act = begin(env, "door_open")
    return [(env.step(act()), env.snapshot())[1] for _ in range(20)], env._env.model.nbuffer

  small, size = roll()
  monkeypatch.setattr(SawyerMocapBase, "_initialize_simulation", MujocoEnv._initialize_simulation)
  whole, whole_size = roll()
  np.testing.assert_array_equal(small, whole)
  assert size < whole_size / 4


@needs_package
def test_starts_depend_on_the_generator_alone(simulator, env):
  begin(env, "door_open", seed=3, steps=5)
  starts = [e.sample_start("door_open", np.random.default_rng(4)) for e in (env, simulator.make())]
  np.testing.assert_array_equal(*starts)
  assert not np.array_equal(starts[0], env.sample_start("door_open", np.random.default_rng(5)))
  play = {int(env.sample_start("", np.random.default_rng(seed))[0]) for seed in range(30)}
  assert len(play) > 4


@needs_package
def test_tasks_of_a_scene_follow_each_other(env):
  env.reset(env.sample_start("drawer_open", np.random.default_rng(0)))
  assert not env.success()
  assert env.possible() == ["drawer_open"]
  env.begin("drawer_open")
  act = env.expert("drawer_open", np.random.default_rng(0))
  while not env.success():
    env.step(act())
  before = env.snapshot()[1:]
  assert env.possible() == ["drawer_close"]
  env.begin("drawer_close")
  np.testing.assert_array_equal(env.snapshot()[1:], before)
  assert not env.success()
  with pytest.raises(ValueError, match="door_open"):
    env.begin("door_open")


@needs_package
def test_a_new_environment_stands_somewhere(simulator):
  env = simulator.make()
  snapshot = env.snapshot()
  env.reset(snapshot)
  np.testing.assert_array_equal(env.snapshot(), snapshot)
  assert env.state().shape == (4,)


@needs_package
def test_play_moves_on(env):
  start = env.sample_start("", np.random.default_rng(0))
  env.reset(start)
  act = env.wander(np.random.default_rng(0))
  for step in range(PLAY_STEPS):
    assert not env.ended, step
    env.step(act())
  before = env.snapshot()
  env.step(np.ones(4))
  assert env.ended
  np.testing.assert_array_equal(env.snapshot(), before)
  env.reset(start)
  assert not env.ended


def _start(**changes):
  start = np.zeros(WIDTH)
  for index, value in changes.items():
    start[int(index[1:])] = value
  return start


@needs_package
@pytest.mark.parametrize(
  ("start", "task", "named"),
  [
    (np.zeros(3), "", "start"),
    (_start(_5=np.nan), "", "start"),
    (_start(_0=8), "", r"start\[0\]"),
    (_start(_0=0.5), "", r"start\[0\]"),
    (_start(), "open_drawer", "open_drawer.*drawer_open"),
    (_start(), "door_open", "door_open.*drawer_open"),
  ],
)
def test_wrong_starts_are_named(env, start, task, named):
  with pytest.raises(ValueError, match=named):
    env.reset(start, task)


@needs_package
@pytest.mark.parametrize("action", [np.zeros(7), [0, 0, 0, 1.01], [0, np.nan, 0, 0]])
def test_wrong_actions_are_named(env, action):
  with pytest.raises(ValueError, match="action"):
    env.step(action)


@needs_package
def test_pictures_are_a_function_of_the_snapshot(simulator, env):
  snapshots = []
  for task in NAMES:
    begin(env, task, steps=10)
    snapshots.append(env.snapshot())
    np.testing.assert_array_equal(env._env.model.body(TASKS[task].furniture).pos, env.snapshot()[1:4])
  one, three = (simulator.make_renderer(24, workers)(np.stack(snapshots)) for workers in (1, 3))
  for camera in simulator.embodiment.camera_names:
    assert one[camera].shape == (len(NAMES), 24, 24, 3)
    np.testing.assert_array_equal(one[camera], three[camera])
    assert len({picture.tobytes() for picture in one[camera]}) == len(NAMES)


@needs_package
def test_recordings(simulator, env):
  settings = Settings(
    0, {"name": "metaworld"}, 72, 200, 200, 0.1, 0.2, clumsy_attempt_rate=0.5, aim_error=0.05
  )
  play = record(simulator, env, Job("play", "", 0), settings)
  assert play["lengths"].tolist() == [PLAY_STEPS, PLAY_STEPS, 200 - 2 * PLAY_STEPS]
  assert play["snapshot"].shape == (200, WIDTH)
  failed = record(simulator, env, Job("failed", "button_press", 0), settings)
  assert not failed["success"].any()
