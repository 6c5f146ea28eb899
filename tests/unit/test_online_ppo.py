from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_params import random_like

from wam_jax import config as config_lib
from wam_jax.core import ppo as ppo_loss
from wam_jax.embodiment import CALVIN
from wam_jax.envs import registry, table, tasks
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.world_model import make_world_model
from wam_jax.stages import online_ppo
from wam_jax.training import ppo
from wam_jax.training import world_model as wm
from wam_jax.training.imagination import StartFrames
from wam_jax.types import features

TASKS = ("open_drawer", "turn_on_led")
E = 3


@pytest.fixture(scope="module")
def world():
  config = config_lib.preset_config("demo")
  config.tasks = TASKS
  config.world_model.update(depth=4, embed=16, deter=8, stoch=2, classes=3, hidden=8)
  config.world_model.inverse_dynamics_hidden = 8
  config.env.update(image_size=16, workers=2)
  config.ppo.update(dreams=E, chunks_per_iteration=5, horizon_steps=12, value_hidden=(8,))
  model = make_world_model(config.world_model, 16)
  return config, model, random_like(lambda key: wm.init_params(model, key))


def make_episodes(world, monkeypatch, start):
  """Episodes that always start from one state of the simulator, and PPO's state."""
  config, model, params = world
  policy = DiffusionPolicy(model.feature_size, hidden=8, time_dim=4, denoising_steps=4, fine_tuned_steps=2)
  base = jax.jit(jax.vmap(policy.init))(jax.random.split(jax.random.key(1), 2))
  states = dict.fromkeys(TASKS, start[None])
  monkeypatch.setattr(online_ppo, "training_starts", lambda config, collect: states)
  starts = StartFrames(jnp.zeros((2, 1, model.feature_size)), jnp.ones(2, jnp.int32))
  none = {"entropy_limit": jnp.zeros(2), "held": jnp.zeros(2, bool)}
  frozen = ppo.Frozen(base=base, classifier=jnp.zeros(2), starts=starts, **none)
  keys = jax.random.split(jax.random.key(2), 2)
  state = jax.jit(jax.vmap(lambda f, k: ppo.init_state(policy, config.ppo, f, k)))(frozen, keys)
  return online_ppo.Episodes(config, None, model, params, policy, base), policy, state


def test_rollout_has_the_form_of_a_dream(world, monkeypatch):
  config, model, _params = world
  start = registry.load("play_table").make().snapshot()
  episodes, policy, state = make_episodes(world, monkeypatch, start)
  ends, rollout, metrics = episodes.rollout(state, jax.random.key(3))
  assert rollout.feature.shape == (2, 5, E, model.feature_size)
  # 12 steps are 3 chunks: then it starts anew, and after 5 chunks 2 are done.
  np.testing.assert_allclose(rollout.time_left[0, :, 0], [1, 2 / 3, 1 / 3, 1, 2 / 3], rtol=1e-6)
  np.testing.assert_array_equal(rollout.truncated[1, :, 1], [False, False, True, False, False])
  assert not rollout.terminated.any() and ends.step.tolist() == [[2] * E] * 2
  assert metrics["ended"].tolist() == [E, E] and metrics["success"].tolist() == [0, 0]
  for k in range(2):
    actor = jax.tree.map(lambda x, k=k: np.asarray(x)[k], state.params["actor"])
    log_prob = jax.jit(policy.log_prob)(actor, rollout.feature[k], rollout.chain[k])
    expected = ppo_loss.mean_log_prob(log_prob, config.ppo.log_prob_min, config.ppo.log_prob_max)
    np.testing.assert_allclose(rollout.log_prob[k], expected, atol=1e-3)
  # The critic at the next chunk's feature is the bootstrap of the one before, inside an episode only.
  np.testing.assert_allclose(rollout.bootstrap_value[:, 0], rollout.value[:, 1], rtol=1e-5)
  assert not np.allclose(rollout.bootstrap_value[:, 2], rollout.value[:, 3])


def test_first_features_are_those_of_the_filtered_start(world, monkeypatch):
  """With noise left out, all environments see the same start, at the beginning and after the horizon."""
  _config, model, params = world
  monkeypatch.setattr(online_ppo.wm, "filter_step", lambda *args: wm_filter(*args[:-1], None))
  simulator = registry.load("play_table")
  environment = simulator.make()
  start = environment.snapshot()
  robot, _ = table.split(start)
  episodes, _, state = make_episodes(world, monkeypatch, start)
  _, rollout, _ = episodes.rollout(state, jax.random.key(3))
  environment.reset(start)
  seen = simulator.make_renderer(16)(environment.snapshot()[None])

  @jax.jit
  def filter_start(params, seen, robot, rest):
    embed = wm.encode_observation(model, params, seen, robot)
    latent = wm.initial_latent(model, params, 1)
    return wm_filter(model, params, latent, embed, rest, jnp.ones(1, bool), None)

  rest = online_ppo.rest_actions(CALVIN, 1)
  latent = filter_start(params, seen, robot[None].astype(np.float32), rest)
  for n in (0, 3):
    expected = np.broadcast_to(features(latent), (2, E, model.feature_size))
    np.testing.assert_allclose(rollout.feature[:, n], expected, atol=1e-5)


wm_filter = wm.filter_step


def test_success_is_the_predicate_since_the_start(world, monkeypatch):
  monkeypatch.setattr(tasks, "success", lambda task, start, now: task == "turn_on_led")
  start = registry.load("play_table").make().snapshot()
  episodes, _, state = make_episodes(world, monkeypatch, start)
  ends, rollout, metrics = episodes.rollout(state, jax.random.key(3))
  assert rollout.terminated[1].all() and not rollout.truncated[1].any() and (rollout.reward[1] == 1).all()
  assert not rollout.terminated[0].any() and (rollout.reward[0] == 0).all()
  assert metrics["success"].tolist() == [0, 1] and ends.step.tolist() == [[2] * E, [0] * E]


def test_comparison_finds_when_the_simulator_catches_up():
  at = lambda step, a, b: {
    "step": step,
    "online/monitor/open_drawer/real_success": a,
    "online/monitor/turn_on_led/real_success": b,
  }
  lines = [at(0, 0.2, 0.9), {"step": 3, "online/kl": 0.1}, at(5, 0.5, 0.7), at(10, 0.7, 0.8)]
  found = online_ppo.compare(TASKS, lines, np.array([0.6, 0.95]), steps_per_iteration=100)
  assert [point["real_steps"] for point in found["curve"]] == [0, 500, 1000]
  assert found["real_steps_to_match"] == {"open_drawer": 1000, "turn_on_led": None}
  table = online_ppo.rows(found)
  assert table[1] == ["open_drawer", "20", "50", "70", "60", "1,000"]
  assert table[2][-2:] == ["95", "not reached"]
  nothing = online_ppo.compare(TASKS, lines, None, steps_per_iteration=100)
  assert online_ppo.rows(nothing)[1][-2:] == ["-", "-"]
