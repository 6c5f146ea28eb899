"""The play table's physics: determinism, exact restoring, CALVIN's conventions, bad input."""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax.envs import experts, registry, table, tasks
from wam_jax.envs.play_table import scene, simulator, skills
from wam_jax.envs.vector import make_vector

ANGLES_ROBOT = [3, 4, 5]
ANGLES_SCENE = [6 + 6 * block + i for block in range(3) for i in (3, 4, 5)]


@pytest.fixture(scope="module")
def env():
  return simulator.PlayTable()


def random_actions(rng, count):
  return np.concatenate([rng.uniform(-1, 1, (count, 6)), rng.choice([-1.0, 1.0], (count, 1))], 1)


def assert_same_state(got, wanted, angles, tolerance=1e-9):
  difference = got - wanted
  difference[angles] = (difference[angles] + np.pi) % (2 * np.pi) - np.pi
  assert np.abs(difference).max() < tolerance


def run(env, seed):
  rng = np.random.default_rng(seed)
  env.reset(*skills.sample_start(None, rng))
  states = []
  for action in random_actions(rng, 30):
    env.step(action)
    states.append(np.concatenate(env.state()))
  return np.stack(states)


def test_same_reset_and_actions_are_identical_to_the_bit(env):
  first = run(env, 3)
  run(env, 4)  # leaves the environment in another state
  other = simulator.PlayTable()
  assert np.array_equal(run(env, 3), first)
  assert np.array_equal(run(other, 3), first)
  assert not np.array_equal(first[0], first[-1])


def test_reset_restores_states_met_in_random_play(env):
  rng = np.random.default_rng(5)
  for _ in range(6):
    env.reset(*skills.sample_start(None, rng))
    for action in random_actions(rng, int(rng.integers(5, 40))):
      env.step(action)
    robot_obs, scene_obs = env.state()
    copies = robot_obs.copy(), scene_obs.copy()
    env.reset()
    env.reset(robot_obs, scene_obs)
    got = env.state()
    assert_same_state(got[0], robot_obs, ANGLES_ROBOT)
    assert_same_state(got[1], scene_obs, ANGLES_SCENE)
    assert np.array_equal(robot_obs, copies[0]) and np.array_equal(scene_obs, copies[1])
    position, euler = env.target_pose()
    np.testing.assert_allclose(position, robot_obs[:3], atol=1e-9)
    np.testing.assert_allclose(np.cos(euler), np.cos(robot_obs[3:6]), atol=1e-9)


def test_reset_restores_a_block_standing_on_its_end(env):
  robot_obs, scene_obs = env.state()
  for pitch in (np.pi / 2, -np.pi / 2):
    scene_obs[9:12] = 0.0, pitch, 0.7  # gimbal lock
    env.reset(robot_obs, scene_obs)
    again = env.state()
    env.reset(*again)
    matrices = [simulator.euler_to_matrix(state[9:12]) for state in (scene_obs, again[1], env.state()[1])]
    np.testing.assert_allclose(matrices[1], matrices[0], atol=1e-7)
    np.testing.assert_allclose(matrices[2], matrices[1], atol=1e-7)


def test_euler_angles_and_matrices_are_inverse():
  rng = np.random.default_rng(0)
  for euler in rng.uniform([-3.1, -1.5, -3.1], [3.1, 1.5, 3.1], (20, 3)):
    np.testing.assert_allclose(simulator.matrix_to_euler(simulator.euler_to_matrix(euler)), euler, atol=1e-9)


def test_resting_changes_nothing_and_the_lever_stays(env):
  rng = np.random.default_rng(2)
  for switch in (0.02, 0.06):
    robot_obs, scene_obs = skills.sample_start("turn_on_lightbulb", rng)
    scene_obs[3], scene_obs[4] = switch, float(switch > tasks.BULB_THRESHOLD)
    robot_obs[6], robot_obs[14] = 0.08, 1.0
    env.reset(robot_obs, scene_obs)
    for _ in range(60):
      env.step(simulator.RESTING_ACTION)
    robot_after, scene_after = env.state()
    np.testing.assert_allclose(scene_after[:6], scene_obs[:6], atol=2e-3)
    np.testing.assert_allclose(robot_after[:3], robot_obs[:3], atol=2e-3)


def test_an_action_moves_the_target_and_the_gripper_follows(env):
  env.reset()
  robot_obs, _ = env.state()
  start, _ = env.target_pose()
  for _ in range(4):
    env.step(np.array([0.5, -1.0, 1.0, 0, 0, 0.4, -1.0]))
  position, euler = env.target_pose()
  np.testing.assert_allclose(position - start, 4 * 0.02 * np.array([0.5, -1.0, 1.0]), atol=1e-12)
  assert euler[2] - robot_obs[5] == pytest.approx(4 * 0.05 * 0.4)
  for _ in range(15):
    env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
  after, _ = env.state()
  np.testing.assert_allclose(after[:3], position, atol=5e-3)
  assert after[6] < 0.01 and after[14] == -1.0


def test_the_target_does_not_run_away_from_a_blocked_gripper(env):
  env.reset()
  for step in range(60):
    env.step(
      np.array([0, float(step < 6), -float(step >= 6), 0, 0, 0, -1.0])
    )  # over the desk and down onto it
  position, _ = env.target_pose()
  tcp = env.state()[0][:3]
  assert tcp[2] > scene.DESK_TOP - 0.01
  assert np.linalg.norm(position - tcp) < simulator.TARGET_LEASH + 0.03


def test_led_toggles_once_per_press_and_not_at_reset(env):
  rng = np.random.default_rng(1)
  robot_obs, scene_obs = skills.sample_start("turn_on_led", rng)
  env.reset(robot_obs, scene_obs)
  act, led = experts.make_expert("turn_on_led", env, rng), []
  while (action := act()) is not None:
    env.step(action)
    led.append(env.state()[1][5])
  assert led[0] == 0 and led[-1] == 1 and np.abs(np.diff(led)).sum() == 1
  pressed = env.state()
  assert pressed[1][2] > scene.BUTTON_THRESHOLD
  env.reset(*pressed)
  env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
  assert env.state()[1][5] == 1


@pytest.mark.parametrize(
  ("index", "value", "message"),
  [
    (0, 1.01, r"action\[0\] = 1.01.*\[-1, 1\]"),
    (5, -2.0, r"action\[5\] = -2.*\[-1, 1\]"),
    (2, np.nan, r"action\[2\] = nan.*finite"),
    (6, 0.5, r"action\[6\] = 0.5.*exactly \+1 \(open\) or -1"),
    (6, 0.0, r"action\[6\] = 0.*exactly"),
    (6, np.nan, r"action\[6\] = nan"),
  ],
)
def test_bad_actions_are_named_and_change_nothing(env, index, value, message):
  env.reset()
  before = env.state()
  action = np.array([0.1, -0.2, 0.3, 0.0, 0.5, -0.6, 1.0])
  action[index] = value
  with pytest.raises(ValueError, match=message):
    env.step(action)
  assert all(np.array_equal(a, b) for a, b in zip(before, env.state(), strict=True))
  with pytest.raises(ValueError, match=r"action: expected shape \[7\], got \[6\]"):
    env.step(action[:6])


@pytest.mark.parametrize(
  ("which", "index", "value", "message"),
  [
    (0, 3, np.nan, r"robot_obs\[3\] = nan: must be finite"),
    (0, 6, 0.2, r"robot_obs\[6\] = 0.2: the gripper's width must be in \[0, 0.08\]"),
    (0, 10, 1.0, r"robot_obs\[10\] = 1: arm joint 4 must be in"),
    (0, 14, 0.0, r"robot_obs\[14\] = 0: the last gripper action"),
    (0, 2, 0.9, r"robot_obs\[2\] = 0.9: the joints .* another robot"),
    (1, 7, np.inf, r"scene_obs\[7\] = inf: must be finite"),
    (1, 1, 0.3, r"scene_obs\[1\] = 0.3: the drawer must be in \[0, 0.22\]"),
    (1, 5, 0.5, r"scene_obs\[5\] = 0.5: the LED must be 0 or 1"),
  ],
)
def test_bad_states_are_named_and_change_nothing(env, which, index, value, message):
  env.reset()
  before = env.state()
  state = env.state()
  state[which][index] = value
  with pytest.raises(ValueError, match=message):
    env.reset(*state)
  assert all(np.array_equal(a, b) for a, b in zip(before, env.state(), strict=True))


def test_bad_shapes(env):
  robot_obs, scene_obs = env.state()
  with pytest.raises(ValueError, match=r"robot_obs: expected shape \[15\], got \[14\]"):
    env.reset(robot_obs[:14], scene_obs)
  with pytest.raises(ValueError, match=r"scene_obs: expected shape \[24\], got \[1, 24\]"):
    env.reset(robot_obs, scene_obs[None])


def test_vector_environment_equals_single_ones():
  rng = np.random.default_rng(7)
  states = [skills.sample_start(None, rng) for _ in range(3)]
  actions = np.stack([random_actions(rng, 5) for _ in range(3)], 1)
  vector = make_vector(registry.load("play_table"), 3, workers=2, image_size=8)
  vector.reset(np.stack([np.concatenate(s) for s in states]), [""] * 3)
  first = vector.observe()
  active = np.array([True, False, True])
  for action in actions:
    vector.step(action, active)
  robot_obs, scene_obs = table.split(vector.snapshot())
  for i, state in enumerate(states):
    single = simulator.PlayTable()
    single.reset(*state)
    for action in actions[:, i] if active[i] else ():
      single.step(action)
    assert np.array_equal(single.state()[0], robot_obs[i]) and np.array_equal(single.state()[1], scene_obs[i])
  assert np.array_equal(vector.state(), robot_obs)
  partly = vector.observe(active)
  everything = vector.observe()
  for key in ("rgb_static", "rgb_gripper"):
    assert partly[key].shape == (3, 8, 8, 3)
    assert np.array_equal(partly[key][1], first[key][1])
    assert np.array_equal(partly[key], everything[key])
  with pytest.raises(ValueError, match=r"actions: expected shape \[3, 7\]"):
    vector.step(actions[0, :2])


def test_unknown_simulator():
  with pytest.raises(ValueError, match="unknown simulator 'atari'"):
    registry.load("atari")
