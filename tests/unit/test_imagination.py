from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_params import random_like

from wam_jax import config as config_lib
from wam_jax.embodiment import CALVIN
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.rssm import CHANGE_SCALE
from wam_jax.nn.world_model import make_world_model
from wam_jax.training import imagination
from wam_jax.training import world_model as wm
from wam_jax.types import Latent, Takes

F = 8  # D = 2, two variables of three classes
H, HORIZON = 2, 3
POLICY = DiffusionPolicy(F, chunk=H, hidden=8, time_dim=4, denoising_steps=3, fine_tuned_steps=2)


def count_up(params, latent, action, key):
  """deter[0] counts control steps; deter[1] keeps the largest motion; grippers must be +-1."""
  size = jnp.maximum(latent.deter[..., 1], jnp.abs(action).max(-1))
  size = jnp.where(jnp.abs(action[..., 6]) == 1, size, jnp.inf)
  deter = jnp.stack([latent.deter[..., 0] + params["speed"], size], -1)
  return Latent(deter=deter, stoch=latent.stoch, logits=latent.stoch)


WORLD = imagination.World(count_up, 2, 3)


class AtTime:
  """Success once the counter has reached the threshold."""

  def score(self, params, feature):
    return feature[..., 0] - params + 0.5

  def success(self, params, feature):
    return self.score(params, feature) > 0


def dreamer(horizon=HORIZON, classifier=None):
  return imagination.Dreamer(WORLD, POLICY, classifier or AtTime(), horizon)


@functools.partial(jax.jit, static_argnums=(1, 2))
def random_actions(key, num, steps):
  return imagination.random_actions(key, num, steps, CALVIN.binary)


def params_of(policy, threshold, speed=1.0):
  return imagination.DreamerParams({"speed": jnp.float32(speed)}, policy, jnp.float32(threshold))


CLAMP = {"log_prob_min": -5.0, "log_prob_max": 2.0}


@functools.cache
def network():
  return jax.jit(POLICY.init)(jax.random.key(0))


def setup(num=3):
  feature = np.random.default_rng(0).normal(size=(4, F)).astype(np.float32)
  feature[:, :2] = 0
  feature[:, 0] = [0, 100, 200, 300]  # the start that a dream came from can be read off
  starts = imagination.StartFrames(jnp.asarray(feature), jnp.int32(1))
  state = imagination.DreamState(feature=jnp.tile(feature[:1], (num, 1)), step=jnp.zeros(num, jnp.int32))
  return {"base": network(), "tuned": network()}, starts, state


def run(threshold, num_chunks, state=None, starts=None, speed=1.0, **options):
  params, own, fresh = setup()
  value = lambda feature, left: feature[..., 0] + 1000 * left
  arguments = value, starts or own, state or fresh, jax.random.key(5)
  options = CLAMP | options | {"num_chunks": num_chunks}
  dream = functools.partial(dreamer().dream, **options)
  value, *rest = arguments
  return jax.jit(lambda params, rest: dream(params, value, *rest))(params_of(params, threshold, speed), rest)


def test_horizon_truncates_and_restarts():
  state, dream, metrics = run(threshold=1e9, num_chunks=4)
  np.testing.assert_array_equal(dream.truncated[:, 0], [False, False, True, False])
  assert not dream.terminated.any() and (dream.reward == 0).all()
  # Features before each chunk: 0, 2, 4 steps, then a fresh start.
  np.testing.assert_array_equal(dream.feature[:, 0, 0], [0, 2, 4, 0])
  np.testing.assert_allclose(dream.time_left[:, 0], [1, 2 / 3, 1 / 3, 1], rtol=1e-6)
  # What follows the truncated chunk is its own last feature, 6 steps, with no time left.
  np.testing.assert_allclose(
    dream.bootstrap_value[:, 0], [2 + 2000 / 3, 4 + 1000 / 3, 6, 2 + 2000 / 3], rtol=1e-5
  )
  np.testing.assert_allclose(dream.value[:, 0], [1000, 2 + 2000 / 3, 4 + 1000 / 3, 1000], rtol=1e-5)
  assert state.step.tolist() == [1, 1, 1] and metrics["imagined_success"] == 0 and metrics["ended"] == 3


def test_each_cut_dream_is_followed_by_its_own_last_value():
  state = imagination.DreamState(feature=jnp.zeros((3, F)), step=jnp.array([0, 1, 2], jnp.int32))
  after, dream, _ = run(threshold=1e9, num_chunks=10, state=state)
  step = np.rint(HORIZON * (1 - dream.time_left)).astype(int)
  assert (dream.truncated == (step == HORIZON - 1)).all() and dream.truncated.sum() == 10
  reached = dream.feature[..., 0] + 2  # two actions on
  np.testing.assert_allclose(
    dream.bootstrap_value, reached + 1000 * (1 - (step + 1) / HORIZON), rtol=1e-5, atol=1e-3
  )
  assert after.step.tolist() == [1, 2, 0]


def test_success_terminates_also_on_the_last_chunk():
  state, dream, metrics = run(threshold=4, num_chunks=4)
  np.testing.assert_array_equal(dream.terminated[:, 0], [False, True, False, True])
  np.testing.assert_array_equal(dream.reward[:, 0], [0, 1, 0, 1])
  assert not dream.truncated.any()
  assert metrics["imagined_success"] == 1 and metrics["chunks_to_success"] == 2
  assert state.step.tolist() == [0, 0, 0]
  _, dream, _ = run(threshold=2 * HORIZON, num_chunks=HORIZON)
  assert dream.terminated[-1].all() and not dream.truncated.any()


def test_dreams_go_on_over_iterations():
  state, _, _ = run(threshold=1e9, num_chunks=2)
  state, dream, _ = run(threshold=1e9, num_chunks=2, state=state)
  np.testing.assert_array_equal(dream.feature[:, 0, 0], [4, 0])
  np.testing.assert_array_equal(dream.truncated[:, 0], [True, False])


def test_restarts_draw_only_real_start_frames():
  _, starts, _ = setup()
  _, dream, _ = run(threshold=-1, num_chunks=30, starts=starts.replace(count=jnp.int32(3)))
  assert dream.terminated.all()
  assert set(np.unique(dream.feature[1:, :, 0])) == {0, 100, 200}  # the fourth is padding


def test_what_enters_the_world_is_executable_and_the_chain_ends_with_it():
  state, dream, _ = run(threshold=1e9, num_chunks=2)
  assert (state.feature[:, 1] <= 1).all()
  assert dream.chain.shape == (2, 3, 3, H, 7) and dream.log_prob.shape == (2, 3, 2)
  params, _, _ = setup()
  log_prob = np.asarray(jax.jit(POLICY.log_prob)(params["tuned"], dream.feature, dream.chain))
  np.testing.assert_allclose(dream.log_prob, log_prob.clip(-5, 2).mean((-2, -1)), atol=1e-3)


def test_imagined_success_counts_dreams_that_ever_succeed():
  params, _, state = setup()
  feature = state.feature.at[2, 0].set(-50)
  go = lambda threshold, chunks: (
    dreamer(chunks).scores(params_of(params, threshold), feature, jax.random.key(0)) > 0
  )
  assert go(4, 1).tolist() == [False, False, False]
  assert go(4, 3).tolist() == [True, True, False]


def test_random_actions_are_executable_and_uninformed():
  action = np.asarray(random_actions(jax.random.key(0), 20, 13))
  assert action.shape == (20, 13, 7) and (np.abs(action) <= 1).all()
  assert set(np.unique(action[..., 6])) == {-1, 1}
  assert np.abs(action[..., :6].mean()) < 0.1
  held = action[1, :12, :6].reshape(3, 4, 6)
  assert (held == held[:, :1]).all() and not (action[0, 1] == action[0, 0]).all()


def test_unsure_dreams_are_paid_less():
  # The worlds' logits are z: of a start, so that the entropy of a chunk is that of its start's z.
  _, plain, metrics = run(threshold=2, num_chunks=2)
  np.testing.assert_allclose(plain.reward, 1.0)
  entropy = float(metrics["prior_entropy"])
  assert 0 < entropy <= 2 * np.log(3)
  _, paid, metrics = run(threshold=2, num_chunks=2, entropy_limit=entropy - 0.5, entropy_penalty=0.4)
  np.testing.assert_allclose(paid.reward, 1 - 0.4 * 0.5, rtol=1e-4)
  np.testing.assert_allclose(metrics["prior_entropy_above"], 0.5, rtol=1e-4)
  _, paid, _ = run(threshold=2, num_chunks=2, entropy_limit=entropy + 0.5, entropy_penalty=0.4)
  np.testing.assert_allclose(paid.reward, 1.0)


def test_familiar_entropy_is_a_quantile_of_what_counts():
  feature = np.zeros((1, 101, F), np.float32)
  feature[0, :, 2] = np.linspace(0, 5, 101)  # the first class of z: the larger, the surer
  mask = np.ones((1, 101), bool)
  mask[0, :50] = False
  takes = Takes(jnp.asarray(feature), jnp.zeros((1, 101, 7)), jnp.zeros_like(mask), jnp.asarray(mask))
  got = jax.jit(WORLD.familiar_entropy)({"speed": 1.0}, takes)
  logits = np.zeros((51, 3))  # of those that count
  logits[:, 0] = np.linspace(2.5, 5, 51)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  entropy = np.log(3) - (p * np.log(p)).sum(1)
  np.testing.assert_allclose(got, np.quantile(entropy, imagination.FAMILIAR_SHARE), rtol=1e-5)


def test_dream_scores_keep_the_largest():
  class Odd(AtTime):
    def score(self, params, feature):
      return jnp.where(feature[:, 0] == params, 7.0, -feature[:, 0])

  params, _, state = setup()
  feature = state.feature.at[1, 0].set(1)  # 3, 5, 7 steps
  got = dreamer(3, Odd()).scores(params_of(params, 4), feature, jax.random.key(0))
  assert got.tolist() == [7.0, -3.0, 7.0]


def test_tasks_are_scored_with_their_own_parameters():
  params, _, state = setup()
  stack = lambda *trees: jax.tree.map(lambda *x: np.stack(x), *trees)
  other = jax.tree.map(lambda x: 1.3 * x, params)
  feature = jnp.stack([state.feature, state.feature.at[:, 0].set(10)])
  keys = jax.random.split(jax.random.key(0))
  task = stack(params, other), jnp.array([3.0, 100.0]), feature, keys
  got = dreamer().score_tasks()(task, {"speed": jnp.float32(2)})
  alone = [
    dreamer().scores(params_of(policy, threshold, 2.0), feature[k], keys[k])
    for k, (policy, threshold) in enumerate(((params, 3.0), (other, 100.0)))
  ]
  np.testing.assert_allclose(got, jnp.stack(alone), rtol=1e-6)
  assert (got[0] > 0).all() and (got[1] < 0).all()


def test_make_starts_takes_early_frames_without_success():
  rng = np.random.default_rng(0)
  feature = rng.normal(size=(2, 2, 5, F)).astype(np.float32)
  mask = np.ones((2, 2, 5), bool)
  mask[1, 1] = False
  success = np.zeros_like(mask)
  success[0, 0, 1] = True  # frame 0 only, although it does not hold later
  starts = imagination.make_starts(Takes(feature, None, success, mask), frames=3)
  assert starts.count.tolist() == [1 + 3, 3]
  np.testing.assert_array_equal(starts.feature[0, :4], np.concatenate([feature[0, 0, :1], feature[0, 1, :3]]))
  success[1, 0, 0] = True
  with pytest.raises(ValueError, match="task 1"):
    imagination.make_starts(Takes(feature, None, success, mask))


def test_a_share_of_dreams_starts_in_failed_takes():
  feature = np.ones((2, 3, 4, F), np.float32)
  mask = np.ones((2, 3, 4), bool)
  mask[0, 1:] = False
  starts = imagination.make_starts(Takes(feature, None, np.zeros_like(mask), mask))
  failed = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1) + 10 + 0 * feature
  starts = imagination.add_failed_starts(starts, Takes(failed, None, None, mask), share=0.25)
  assert starts.failed_count.tolist() == [4, 12]
  draw_starts = jax.jit(imagination.draw_starts, static_argnums=2)
  draws = np.asarray(draw_starts(starts, jax.random.split(jax.random.key(0)), 4000))
  np.testing.assert_allclose((draws[..., 0] >= 10).mean(1), 0.25, atol=0.03)
  assert set(np.unique(draws[0, :, 0])) == {1, 10, 11, 12, 13}
  assert len(np.unique(draws[1, :, 0])) == 13
  mask[1] = False
  with pytest.raises(ValueError, match="task 1: no failed take"):
    imagination.add_failed_starts(starts, Takes(failed, None, None, mask), share=0.25)


def test_world_parameters_are_arguments():
  """The same program serves another world model: nothing of it is a constant."""
  params, starts, state = setup()
  arguments = lambda f, t: t, starts, state, jax.random.key(0)
  fn = lambda wp, p: (
    dreamer()
    .dream(imagination.DreamerParams(wp, p, jnp.float32(1e9)), *arguments, num_chunks=2, **CLAMP)[0]
    .feature
  )
  jitted = jax.jit(fn)
  slow, fast = (jitted({"speed": jnp.float32(s)}, params) for s in (1, 3))
  np.testing.assert_allclose(fast[:, 0], 3 * slow[:, 0])
  assert jitted._cache_size() == 1


def small_world_model(proprio="none"):
  """A world model of a few units, its parameters and six features."""
  config = config_lib.default_config().world_model
  config.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=5, hidden=10)
  config.update(inverse_dynamics_hidden=8, compute_dtype="float32", proprio=proprio)
  model = make_world_model(config, 16)
  params = random_like(lambda key: wm.init_params(model, key))
  code = jax.nn.one_hot(jax.random.randint(jax.random.key(1), (6, 3), 0, 5), 5).reshape(6, -1)
  parts = [jax.random.normal(jax.random.key(2), (6, 12)), code]
  if model.carries_robot:
    parts.append(jax.random.normal(jax.random.key(6), (6, model.robot_size)))
    rng = np.random.default_rng(7)  # the dynamics' last layers are zero at the start
    noise = lambda x: (0.05 * rng.normal(size=x.shape)).astype(np.float32)
    params["rssm"]["robot_dynamics"] = jax.tree.map(noise, params["rssm"]["robot_dynamics"])
  return model, jax.device_put(params), jnp.concatenate(parts, -1)


@pytest.mark.parametrize(("proprio", "temperature"), [("none", 1.0), ("none", 2.5), ("latent", 2.5)])
def test_steps_by_rows_equal_the_networks_own(proprio, temperature):
  """Ten steps of both forms from the same frames: the same codes, states up to rounding."""
  model, params, feature = small_world_model(proprio)
  action = random_actions(jax.random.key(3), 6, 10)
  own, rows = (
    jax.jit(imagination.make_world(model, by_rows, temperature).imagine_actions)(
      params, feature, action, jax.random.key(4)
    )
    for by_rows in (False, True)
  )
  assert own.shape == (6, 10, model.feature_size)
  np.testing.assert_array_equal(own[..., 12:27], rows[..., 12:27])
  np.testing.assert_allclose(own, rows, atol=1e-5)


def test_the_temperature_warms_the_prior():
  """Codes are drawn from softmax(logits / temperature); the logits themselves stay the world model's."""
  model, params, feature = small_world_model()
  params = jax.tree.map(lambda x: 3 * x, params)  # sure of something
  draws = 4000
  latent = imagination.make_world(model).latent(jnp.repeat(feature[:1], draws, 0))
  action = jnp.zeros((draws, 7))
  worlds = {t: imagination.make_world(model, temperature=t) for t in (1.0, 2.5)}
  step = lambda world: world.imagine_step(world.arrange(params), latent, action, jax.random.key(5))
  steps = {t: jax.jit(functools.partial(step, world))() for t, world in worlds.items()}
  np.testing.assert_array_equal(steps[1.0].logits, steps[2.5].logits)
  for temperature, step in steps.items():
    wanted = jax.nn.softmax(step.logits[0] / temperature, -1)
    np.testing.assert_allclose(step.stoch.reshape(draws, 3, 5).mean(0), wanted, atol=0.03)
  assert np.abs(jax.nn.softmax(steps[1.0].logits[0]) - wanted).max() > 0.1


def test_the_robot_moves_in_dreams_and_the_prior_reads_it():
  """Its change is always that of its state, from the start frame on; its state matters to what follows."""
  model, params, feature = small_world_model("latent")
  world = imagination.make_world(model)
  latent = world.latent(feature)
  np.testing.assert_array_equal(latent.robot, feature[:, 27:])
  action = random_actions(jax.random.key(3), 6, 5)
  dream = jax.jit(lambda feature: world.imagine_actions(params, feature, action, jax.random.key(4)))
  dreamt = np.asarray(dream(feature))
  state = np.append(feature[:, None, 27:45], dreamt[..., 27:45], 1)
  moved = np.diff(state, axis=1)
  np.testing.assert_allclose(dreamt[..., 45:], CHANGE_SCALE * moved, atol=1e-4)
  assert np.abs(moved).max(-1).min() > 0.01
  other = dream(feature.at[:, 27:45].add(1.0))
  assert np.abs(other[:, 0, :12] - dreamt[:, 0, :12]).max() > 1e-3  # read by the recurrent unit
  params["rssm"]["from_robot"] = jax.tree.map(np.zeros_like, params["rssm"]["from_robot"])
  step = jax.jit(
    lambda latent: world.imagine_step(world.arrange(params), latent, action[:, 0], jax.random.key(4))
  )
  here, there = step(latent), step(latent.replace(robot=latent.robot + 1))
  np.testing.assert_array_equal(here.deter, there.deter)
  assert np.abs(here.logits - there.logits).max() > 1e-3  # and by the prior itself
