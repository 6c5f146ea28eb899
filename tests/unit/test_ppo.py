from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.core import ppo as ppo_loss
from wam_jax.core.backend import compiling_for
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.policies.gaussian import GaussianPolicy
from wam_jax.training import imagination, ppo, ppo_actor
from wam_jax.types import Latent

F = 10
POLICY = DiffusionPolicy(F, chunk=2, hidden=8, time_dim=4, denoising_steps=4, fine_tuned_steps=2)
GAUSSIAN = GaussianPolicy(F, chunk=2, hidden=8)
CLASSIFIER = SuccessClassifier(F, (8, 6), 8)


def tiny(**changes) -> ConfigDict:
  c = config_lib.default_config().ppo
  c.update(dreams=4, chunks_per_iteration=3, horizon_steps=8, epochs=2, minibatches=2)
  c.update(value_hidden=(8, 8, 8), critic_warmup_iterations=0, bc_weight=0.1)
  c.update(**changes)
  return c


def drift(params, latent, action, key):
  """A world whose state moves with the action: enough for gradients and rewards to differ."""
  deter = 0.9 * latent.deter + params["gain"] * action.sum(-1, keepdims=True)
  deter = deter + 0.01 * jax.random.normal(key, deter.shape)
  return Latent(deter=deter, stoch=latent.stoch, logits=latent.stoch)


WORLD = imagination.World(drift, 2, 3)
WORLD_PARAMS = {"gain": jnp.float32(0.3)}


def dreamer(c, policy=POLICY, classifier=CLASSIFIER):
  return imagination.Dreamer(WORLD, policy, classifier, c.horizon_steps // policy.chunk)


@functools.cache
def warmed_iteration(policy):
  """The config and the compiled iteration of tests in which the actor waits for the critic once."""
  c = tiny(critic_warmup_iterations=1)
  return c, jax.jit(ppo.make_iteration(dreamer(c, policy), c))


def setup(c, seed=0, policy=POLICY):
  @jax.jit
  def make(key):
    keys = jax.random.split(key, 4)
    starts = imagination.StartFrames(jax.random.normal(keys[0], (5, F)), jnp.int32(5))
    classifier = {"network": CLASSIFIER.init(keys[1]), "threshold": jnp.float32(0.0)}
    frozen = ppo.Frozen(base=policy.init(keys[2]), classifier=classifier, starts=starts)
    return frozen, ppo.init_state(policy, c, frozen, keys[3])

  return make(jax.random.key(seed))


def make_sample(frozen, size=6, seed=3):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
  feature = draw(size, F)
  params = {"base": frozen.base, "tuned": frozen.base}
  chain = jax.jit(POLICY.sample_chain)(params, feature, draw(size, 2, 7), draw(4, size, 2, 7))[1]
  log_prob = jax.jit(POLICY.log_prob)(frozen.base, feature, chain)
  old = ppo_loss.mean_log_prob(log_prob) + 0.002 * draw(size, 2)
  return ppo_actor.Sample(
    feature=feature,
    time_left=jnp.ones(size),
    chain=chain,
    log_prob=old,
    advantage=draw(size),
    target=draw(size),
    regulariser=chain[::-1],
  )


def test_clip_range_and_discount():
  got = ppo_loss.clip_range(10, 0.001, 0.01, 3.0)
  k = np.arange(10)
  np.testing.assert_allclose(got, 0.001 + 0.009 * (np.exp(3 * k / 9) - 1) / (np.exp(3) - 1), rtol=1e-5)
  np.testing.assert_allclose(ppo_loss.clip_range(1, 0.001, 0.01, 3.0), [0.01])
  np.testing.assert_allclose(ppo_loss.step_discount(3, 0.9), [0.81, 0.9, 1.0], rtol=1e-6)


def test_clipped_loss_by_hand():
  # Ratios e^0.2, e^-0.2, e^0.2, e^-0.2 with advantages 1, 1, -1, -1 and clip 0.1:
  # max(-r A, -clip(r) A) = -1.1, -0.818731, 1.221403, 0.9.
  new = jnp.array([0.2, -0.2, 0.2, -0.2])
  value, metrics = ppo_loss.clipped_chain_loss(
    new, jnp.zeros(4), jnp.array([1.0, 1, -1, -1]), jnp.full(4, 0.1)
  )
  np.testing.assert_allclose(value, (-1.1 - 0.818731 + 1.221403 + 0.9) / 4, atol=1e-6)
  assert metrics["clip_fraction"] == 1
  np.testing.assert_allclose(metrics["kl"], (np.exp(0.2) + np.exp(-0.2)) / 2 - 1, atol=1e-6)
  for bad in (1, 2, 3):
    args = [new, new, new, new]
    args[bad] = args[bad][:1]
    with pytest.raises(ValueError, match="expected"):
      ppo_loss.clipped_chain_loss(*args)


def test_value_loss_by_hand():
  value, target = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
  np.testing.assert_allclose(ppo_loss.value_loss(value, target), (1 + 4) / 4)
  with pytest.raises(ValueError, match="target"):
    ppo_loss.value_loss(value, target[:1])


def test_mean_log_prob_clamps_each_element():
  x = jnp.array([[-100.0, 1.0], [3.0, -1.0]])
  np.testing.assert_allclose(ppo_loss.mean_log_prob(x, -5, 2), (-5 + 1 + 2 - 1) / 4)


def test_normalise_survives_equal_advantages():
  got = ppo_loss.normalise(jnp.full(5, 3.0))
  assert jnp.isfinite(got).all() and jnp.abs(got).max() < 1e-3


@pytest.mark.parametrize("form", ["frozen_chains", "current_chains"])
def test_actor_gradient_against_finite_differences(form):
  c = tiny(bc_form=form, bc_weight=1.0)
  frozen, _ = setup(c)
  sample = make_sample(frozen)
  if form == "current_chains":
    noise = np.random.default_rng(2).normal(size=(6, 5, 2, 7))
    sample = sample.replace(regulariser=jnp.asarray(noise, jnp.float32))
  with jax.enable_x64(True):
    base, sample = jax.tree.map(lambda x: np.asarray(x, np.float64), (frozen.base, sample))
    network = jax.tree.map(lambda x: 1.1 * x, base)  # apart from the cloned one
    fn = lambda p: ppo_actor.actor_loss(POLICY, c, p, base, sample)[0]
    grad = jax.jit(jax.grad(fn))(network)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), network)
    step = 1e-6
    move = jax.jit(lambda s: fn(jax.tree.map(lambda p, d: p + s * step * d, network, direction)))
    slope = (move(1.0) - move(-1.0)) / (2 * step)
    along = sum(jax.tree.leaves(jax.tree.map(np.vdot, grad, direction)))
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(along, slope, rtol=1e-4)


@pytest.mark.parametrize("form", ["frozen_chains", "current_chains"])
def test_frozen_parameters_get_no_gradient(form):
  """Neither the base network nor the world model moves the loss through a chain that was drawn."""
  c = tiny(bc_form=form)
  frozen, _state = setup(c)
  sample = make_sample(frozen)
  if form == "current_chains":
    sample = sample.replace(regulariser=jnp.ones((6, 5, 2, 7)))

  def fn(params):
    # The chain is drawn inside, as an iteration does; only the tuned network may get a gradient.
    chain = jax.lax.stop_gradient(
      POLICY.sample_chain(
        {"base": params["base"], "tuned": params["tuned"]},
        sample.feature,
        jnp.ones((6, 2, 7)),
        jnp.ones((4, 6, 2, 7)),
      )[1]
    )
    return ppo_actor.actor_loss(POLICY, c, params["tuned"], params["base"], sample.replace(chain=chain))[0]

  grad = jax.jit(jax.grad(fn))({"base": frozen.base, "tuned": frozen.base})
  grad = jax.device_get(grad)
  assert all((g == 0).all() for g in jax.tree.leaves(grad["base"]))
  assert any((g != 0).any() for g in jax.tree.leaves(grad["tuned"]))


def test_regulariser_draws_the_policy_back_to_the_cloned_one():
  """Both forms are least, over a line through the cloned network, at the cloned network itself."""
  c = tiny(log_prob_min=-1e9, log_prob_max=1e9)
  frozen, _ = setup(c)
  sample = make_sample(frozen, size=400)
  rng = np.random.default_rng(4)
  noise = jnp.asarray(rng.normal(size=(400, 5, 2, 7)), jnp.float32)
  cloned = {"base": frozen.base, "tuned": frozen.base}
  draws = noise[:, 0], jnp.moveaxis(noise[:, 1:], 1, 0)
  chain = jax.jit(POLICY.sample_chain)(cloned, sample.feature, *draws)[1]
  leaves, structure = jax.tree.flatten(frozen.base)
  away = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  for form, material in (("frozen_chains", chain), ("current_chains", noise)):
    c.bc_form = form
    sample = sample.replace(regulariser=material)
    at = jax.jit(
      lambda s, c=c, sample=sample: ppo_actor.bc_regulariser(
        POLICY,
        c,
        jax.tree.unflatten(structure, [x + s * d for x, d in zip(leaves, away, strict=True)]),
        frozen.base,
        sample,
      )
    )
    assert at(0.0) < min(at(-0.3), at(0.3)), form
  with pytest.raises(ValueError, match="regulariser"):
    ppo_actor.bc_regulariser(POLICY, c, frozen.base, frozen.base, sample.replace(regulariser=None))


@pytest.mark.parametrize(
  ("horizon", "form"),
  [("bootstrap", "frozen_chains"), ("terminal", "current_chains"), ("diwa", "frozen_chains")],
)
def test_iteration_bakes_nothing_in(horizon, form):
  c = tiny(horizon=horizon, bc_form=form)
  frozen, state = setup(c)
  iteration = ppo.make_iteration(dreamer(c), c)
  args = state, frozen, WORLD_PARAMS, jax.random.key(0)
  program, (new, metrics) = jax.make_jaxpr(iteration, return_shape=True)(*args)
  # The schedule's tables, some of them more than once; the networks hold hundreds of numbers.
  assert sum(np.size(x) for x in program.consts) <= 30 * POLICY.denoising_steps
  # Every horizon keeps the structure of the state: it is scanned over and saved.
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert all(x.shape == () for x in metrics.values())


@pytest.mark.parametrize(
  "policy", [POLICY, pytest.param(GAUSSIAN, marks=pytest.mark.slow)], ids=["diffusion", "gaussian"]
)
def test_warm_up_holds_the_actor_and_target_kl_stops_it(policy):
  c, iteration = warmed_iteration(policy)
  frozen, state = setup(c, policy=policy)
  new, _ = iteration(state, frozen, WORLD_PARAMS, jax.random.key(0))
  after, metrics = iteration(new, frozen, WORLD_PARAMS, jax.random.key(1))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.params, after.opt_state, metrics)))
  assert int(after.step) == 2
  same = lambda a, b, part: all(jax.tree.leaves(jax.tree.map(np.array_equal, a.params[part], b.params[part])))
  assert same(state, new, "actor") and not same(state, new, "critic")
  assert not same(new, after, "actor")
  wild = tiny(target_kl=1e-9, actor_learning_rate=1e-2)
  frozen, state = setup(wild, policy=policy)
  _, metrics = jax.jit(ppo.make_iteration(dreamer(wild, policy), wild))(
    state, frozen, WORLD_PARAMS, jax.random.key(0)
  )
  assert metrics["stopped_early"] == 1
  # Of the minibatches in which the actor moved: the first one's ratio is 1, of the others there is none.
  np.testing.assert_allclose(metrics["ratio"], 1, atol=0.2)


def test_actor_loss_of_a_gaussian_by_hand():
  """Zero weights but the last bias: the mean is tanh(b), the ratio that of two Gaussians at one chunk."""
  c = tiny(bc_weight=0.0, clip_max=0.2)
  shapes = jax.eval_shape(GAUSSIAN.init, jax.random.key(0))
  network = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  network["body"]["output"]["bias"] = np.full(14, 0.05, np.float32)
  m, s = np.tanh(0.05), 0.1
  # Chunks 0.1 and -0.1 everywhere, drawn from mean 0; each element's log-ratio is
  # (x^2 - (x - m)^2) / (2 s^2) = (2 x m - m^2) / (2 s^2), and so is the mean over the chunk.
  x = np.array([0.1, -0.1])
  log_ratio = (2 * x * m - m**2) / (2 * s**2)
  old = -0.5 * (x / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
  chain = jnp.stack([jnp.zeros((2, 2, 7)), jnp.broadcast_to(x[:, None, None], (2, 2, 7))], 1)
  advantage = np.array([1.0, -1.0])
  sample = ppo_actor.Sample(
    feature=jnp.ones((2, F)),
    time_left=jnp.ones(2),
    chain=chain,
    log_prob=jnp.asarray(old[:, None], jnp.float32),
    advantage=jnp.asarray(advantage),
    target=jnp.zeros(2),
    regulariser=None,
  )
  value, metrics = jax.jit(lambda p: ppo_actor.actor_loss(GAUSSIAN, c, p, p, sample))(network)
  ratio = np.exp(log_ratio)
  clipped = np.clip(ratio, 0.8, 1.2)  # of a single step the range is clip_max
  assert ratio[0] > 1.2 and ratio[1] < 0.8
  expected = np.maximum(-advantage * ratio, -advantage * clipped).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  np.testing.assert_allclose(metrics["ratio"], ratio.mean(), rtol=1e-4)


@pytest.mark.parametrize(
  "policy", [POLICY, pytest.param(GAUSSIAN, marks=pytest.mark.slow)], ids=["diffusion", "gaussian"]
)
def test_reward_that_likes_the_action_raises_it(policy):
  """Learning works end to end: success means a large first coordinate, which the actions push."""
  c = tiny(actor_learning_rate=3e-3, bc_weight=0.0, clip_max=0.1, clip_min=0.1, horizon="terminal", epochs=4)
  c.update(dreams=64, chunks_per_iteration=4)

  class Judge:
    def success(self, params, feature):
      return feature[..., 0] > params

  frozen, _ = setup(c, policy=policy)
  frozen = frozen.replace(classifier=jnp.float32(0.7))
  frozen = frozen.replace(starts=imagination.StartFrames(0.1 * frozen.starts.feature, jnp.int32(5)))
  state = jax.jit(lambda key: ppo.init_state(policy, c, frozen, key))(jax.random.key(1))
  iteration = jax.jit(ppo.make_iteration(dreamer(c, policy, Judge()), c))
  rates = []
  for i in range(30):
    state, metrics = iteration(state, frozen, {"gain": jnp.float32(0.1)}, jax.random.key(i))
    rates.append(float(metrics["imagined_success"]))
  assert np.mean(rates[-5:]) > np.mean(rates[:5]) + 0.15, rates


def test_gradient_in_blocks_equals_that_of_the_whole():
  c = tiny()
  frozen, _ = setup(c)
  sample = make_sample(frozen, size=12)
  whole, blocks = (
    jax.jit(
      lambda network, block=block: ppo_actor.actor_gradient(POLICY, c, network, network, sample, block)
    )(frozen.base)
    for block in (12, 4)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, blocks)
  assert max(np.abs(x).max() for x in jax.tree.leaves(whole[0])) > 1e-2
  with pytest.raises(ValueError, match="divisor of 12"):
    ppo_actor.actor_gradient(POLICY, c, frozen.base, frozen.base, sample, 5)


@pytest.mark.parametrize(
  ("num", "steps", "block"), [(900, 10, 100), (450, 10, 90), (907, 10, 907), (12, 2, 12), (3, 2000, 1)]
)
def test_blocks_divide_the_minibatch(num, steps, block):
  for platform in ("cpu", "tpu"):
    with compiling_for(platform):
      assert ppo_actor._block(num, steps) == block
  with compiling_for("gpu"):
    assert ppo_actor._block(num, steps) == num


def test_first_bad_tensor_is_named():
  c, iteration = warmed_iteration(POLICY)
  frozen, state = setup(c)
  state = state.replace(step=jnp.int32(c.critic_warmup_iterations))  # the actor learns

  def found(state=state, frozen=frozen, gain=0.3):
    _, metrics = iteration(state, frozen, {"gain": jnp.float32(gain)}, jax.random.key(0))
    return ppo.not_finite(["a"], {"first_not_finite": metrics["first_not_finite"][None]})

  assert found() == ""
  assert "feature of a" in found(gain=jnp.nan)
  break_ = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
  # A bad actor makes the first chunk's chain bad, and all features after it.
  assert "chain of a" in found(state=state.replace(params=state.params | {"actor": break_(frozen.base)}))
  critic = state.params | {"critic": break_(state.params["critic"])}
  assert ": value of a" in found(state=state.replace(params=critic))
  scale = state.scale.replace(var=jnp.float32(jnp.nan))
  assert "advantage of a" in found(state=state.replace(scale=scale))
  optimizer = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.opt_state["actor"])
  assert "actor of a" in found(state=state.replace(opt_state=state.opt_state | {"actor": optimizer}))
