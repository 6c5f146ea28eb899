"""The gymnasium environment."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

from wam_jax.envs import experts, tasks
from wam_jax.envs.play_table import gym as play_table_gym
from wam_jax.envs.play_table import skills


def make(**kwargs):
  return gymnasium.make(play_table_gym.ENV_ID, image_size=16, **kwargs)


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
