"""The gymnasium environment."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

from wam_jax.envs import experts, tasks
from wam_jax.envs.play_table import gym as play_table_gym
from wam_jax.envs.play_table import skills
from wam_jax.host.gymnasium_id import ENV_ID


def make(**kwargs):
  return gymnasium.make(ENV_ID, image_size=16, **kwargs)


@pytest.fixture(autouse=True)
def small_films(monkeypatch):
  monkeypatch.setattr(play_table_gym, "RENDER_SIZE", 24)


def test_passes_gymnasiums_own_check():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*(m?infinity|too many episode).*")
    env_checker.check_env(make(task="turn_on_led", render_mode="rgb_array").unwrapped)


def test_reward_and_end_at_success_from_a_given_state():
  env = make(task="turn_on_led")
  rng = np.random.default_rng(0)
  robot_obs, scene_obs = skills.sample_start("turn_on_led", rng)
  observation, info = env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
  np.testing.assert_allclose(observation["scene_obs"][:6], scene_obs[:6], atol=1e-9)
  assert info == {"success": False}
  act = experts.make_expert("turn_on_led", env.unwrapped._env, rng)
  rewards, terminated = [], False
  while not terminated:
    observation, reward, terminated, truncated, info = env.step(act().astype(np.float32))
    rewards.append(reward)
    assert not truncated
  assert rewards[-1] == 1 and sum(rewards) == 1 and info["success"]
  assert tasks.success("turn_on_led", scene_obs, observation["scene_obs"])


def test_truncates_and_bad_input():
  env = make(max_steps=3)
  env.reset(seed=1)
  ends = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
  assert ends == [(False, False), (False, False), (False, True)]
  with pytest.raises(ValueError, match=r"action\[1\]"):
    env.unwrapped.step(np.array([0, 2, 0, 0, 0, 0, 1.0]))
  with pytest.raises(ValueError, match="together"):
    env.reset(options={"robot_obs": np.ones(15)})
  with pytest.raises(ValueError, match="unknown task 'fly'"):
    make(task="fly")


def test_render_is_large_enough_to_see_and_shows_the_present():
  env = make(task="open_drawer", render_mode="rgb_array")
  observation, _ = env.reset(seed=3)
  first = env.render()
  assert first.shape == (24, 24, 3) and first.dtype == np.uint8
  assert observation["rgb_static"].shape == (16, 16, 3)
  for _ in range(8):
    env.step(np.array([1, 0, 0, 0, 0, 0, 1], np.float32))
  assert (env.render() != first).any()


LOOKED_FOR = "wam_jax, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium"


@pytest.mark.parametrize("modules", ["wam_jax, gymnasium", "gymnasium, wam_jax", LOOKED_FOR])
def test_the_short_name_is_known_after_the_import_of_both(modules):
  code = f"""
import sys, {modules}
assert {ENV_ID!r} in gymnasium.registry
assert not {{"jax", "mujoco"}} & set(sys.modules)
assert not any(type(finder).__module__.startswith("wam_jax") for finder in sys.meta_path)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


ASYNC = """
import multiprocessing
import sys
import gymnasium
from wam_jax.host import surroundings

name = "wam_jax.envs.play_table.gym:wam_jax/PlayTable-v0"  # in each process without an import before
vector = gymnasium.make_vec(name, num_envs=2, vectorization_mode="async", task="turn_on_led", image_size=16)
assert not surroundings.jax_has_started()
vector.reset(seed=0)
observation, *_ = vector.step(vector.action_space.sample())
assert observation["rgb_static"].shape == (2, 16, 16, 3)
vector.close()

env = gymnasium.make(name, image_size=16)
env.reset(seed=0)
assert surroundings.jax_has_started()

def child():
  try:
    gymnasium.make(name, image_size=16).reset(seed=0)
  except surroundings.SurroundingsError as error:
    sys.exit(3 if "spawn" in str(error) else 4)

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(30)
assert process.exitcode == 3, process.exitcode
"""


def test_asynchronous_vectors_step_and_a_fork_after_jax_has_started_is_told():
  subprocess.run([sys.executable, "-W", "ignore", "-c", ASYNC], timeout=120, check=True)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_from_the_same_state(duplicate):
  env = make(task="turn_on_led", render_mode="rgb_array")
  env.reset(seed=3)
  rng = np.random.default_rng(0)
  actions = rng.uniform(-1, 1, (24, 7)).astype(np.float32)
  for action in actions[:12]:
    env.step(action)
  twin = duplicate(env)
  assert np.array_equal(twin.render(), env.render())
  for action in actions[12:]:
    (observation, *rest), (other, *others) = env.step(action), twin.step(action)
    assert rest == others and all(np.array_equal(observation[key], other[key]) for key in observation)
  assert np.array_equal(env.reset()[0]["scene_obs"], twin.reset()[0]["scene_obs"])  # the next random start
