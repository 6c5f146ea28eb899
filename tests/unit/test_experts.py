"""Scripted experts, start states, noise, wandering."""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax.embodiment import CALVIN
from wam_jax.envs import experts, recording, table, tasks
from wam_jax.envs.play_table import simulator, skills

STARTS = 4


@pytest.fixture(scope="module")
def env():
  return simulator.PlayTable()


@pytest.mark.parametrize("task", [name for name, skill in skills.SKILLS.items() if skill.route])
def test_expert_succeeds_under_noise(env, task):
  for seed in range(STARTS):
    rng = np.random.default_rng([seed, 11])
    env.reset(*skills.sample_start(task, rng))
    start, act = env.state()[1], experts.make_expert(task, env, rng)
    for _ in range(72):
      action = act()
      assert action is not None, "gave up"
      assert np.abs(action).max() <= 1 and action[6] == -1
      env.step(recording.add_noise(action, rng, 0.3, CALVIN))
      if tasks.success(task, start, env.state()[1]):
        break
    assert tasks.success(task, start, env.state()[1])


@pytest.mark.parametrize("task", [*skills.SKILLS, None])
def test_starts_are_varied_valid_and_unsolved(env, task):
  rng = np.random.default_rng(0)
  robot, things = (
    np.stack(x) for x in zip(*(skills.sample_start(task, rng) for _ in range(12)), strict=True)
  )
  for robot_obs, scene_obs in zip(robot, things, strict=True):
    env.reset(robot_obs, scene_obs)
    got = env.state()
    np.testing.assert_allclose(got[0][[0, 1, 2, 6, 14]], robot_obs[[0, 1, 2, 6, 14]], atol=1e-9)
    np.testing.assert_allclose(got[1][:9], scene_obs[:9], atol=1e-9)
    if task:
      assert not tasks.success(task, scene_obs, got[1])
  assert (np.ptp(robot[:, :3], axis=0) > (0.2, 0.08, 0.06)).all()
  assert set(robot[:, 14]) == {-1.0, 1.0}
  assert np.array_equal(things[:, 4], things[:, 3] > tasks.BULB_THRESHOLD)
  blocks = things[:, 6:].reshape(-1, 3, 6)[..., :2]
  for i, j in ((0, 1), (0, 2), (1, 2)):
    assert np.linalg.norm(blocks[:, i] - blocks[:, j], axis=-1).min() > 0.1
  again = skills.sample_start(task, np.random.default_rng(0))
  assert np.array_equal(again[0], robot[0]) and np.array_equal(again[1], things[0])


def test_lamps_start_in_the_state_that_the_task_changes():
  rng = np.random.default_rng(0)
  for task, index, value in (
    ("turn_on_lightbulb", 4, 0),
    ("turn_off_lightbulb", 4, 1),
    ("turn_on_led", 5, 0),
    ("turn_off_led", 5, 1),
  ):
    assert {skills.sample_start(task, rng)[1][index] for _ in range(10)} == {value}


def test_experts_can_be_chained(env):
  rng = np.random.default_rng(4)
  env.reset(*skills.sample_start("open_drawer", rng))
  for task in ("open_drawer", "turn_on_lightbulb", "close_drawer", "turn_off_lightbulb"):
    robot_obs, scene_obs = env.state()
    if task == "turn_on_lightbulb":
      scene_obs[3:5] = 0.01, 0
      env.reset(robot_obs, scene_obs)
    start, act = env.state()[1], experts.make_expert(task, env, rng)
    for _ in range(90):
      if tasks.success(task, start, env.state()[1]) or (action := act()) is None:
        break
      env.step(action)
    assert tasks.success(task, start, env.state()[1]), task


def test_an_aim_error_displaces_the_whole_path(env):
  reached, solved = [], 0
  for seed in range(8):
    rng = np.random.default_rng([seed, 12])
    env.reset(*skills.sample_start("turn_on_led", rng))
    state, paths = env.state(), []
    for aim_error in (0.0, 0.04):
      env.reset(*state)
      act, path = experts.make_expert("turn_on_led", env, np.random.default_rng(seed), aim_error), []
      for _ in range(72):
        if tasks.success("turn_on_led", state[1], env.state()[1]) or (action := act()) is None:
          break
        env.step(action)
        path.append(env.state()[0][:3])
      paths.append(path[-1])
      solved += bool(aim_error) and tasks.success("turn_on_led", state[1], env.state()[1])
    reached.append(np.linalg.norm(paths[1] - paths[0]))
  assert solved < 6  # without an error all of them, as above
  assert 0.01 < np.median(reached) < 0.15


def test_a_wrist_error_turns_the_hand_for_the_whole_path(env):
  rng = np.random.default_rng(2)
  env.reset(*skills.sample_start("open_drawer", rng))
  state, turned = env.state(), []
  for wrist_error in (0.0, 0.2):
    env.reset(*state)
    act, angles = (
      experts.make_expert("open_drawer", env, np.random.default_rng(5), wrist_error=wrist_error),
      [],
    )
    for _ in range(25):
      env.step(act())
      angles.append(experts.wrap_angle(env.state()[0][3:6] - np.array(table.FINGERS_DOWN)))
    turned.append(np.stack(angles[12:]))
  assert np.abs(turned[0]).max() < 0.05
  assert np.abs(turned[1]).mean(0).max() > 0.1 and turned[1].std(0).max() < 0.05


def test_noise_keeps_bounds_and_gripper():
  rng = np.random.default_rng(0)
  action = np.array([1.0, -1.0, 0.2, 0.0, 0.9, -0.3, -1.0])
  noisy = np.stack([recording.add_noise(action, rng, 0.3, CALVIN) for _ in range(400)])
  assert np.abs(noisy).max() <= 1 and (noisy[:, 6] == -1).all()
  assert 0.26 < noisy[:, 3].std() < 0.34
  assert action[2] == 0.2
  assert np.array_equal(recording.add_noise(action, rng, 0.0, CALVIN), action)


def test_wanderer_drifts_through_the_workspace(env):
  rng = np.random.default_rng(3)
  env.reset(*skills.sample_start(None, rng))
  act = experts.make_wanderer(env, rng)
  path, grippers = [], set()
  for _ in range(200):
    action = act()
    env.step(action)
    path.append(env.state()[0][:3])
    grippers.add(float(action[6]))
  path = np.stack(path)
  assert (np.ptp(path, axis=0) > (0.2, 0.08, 0.08)).all()
  assert np.linalg.norm(np.diff(path, axis=0), axis=-1).max() < 0.06
  assert grippers == {-1.0, 1.0}


def test_unknown_task(env):
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="unknown task 'fly'"):
    skills.sample_start("fly", rng)
  with pytest.raises(ValueError, match="unknown task 'fly'"):
    experts.make_expert("fly", env, rng)
