from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.core import diffusion
from wam_jax.core.actions import executable
from wam_jax.core.backend import compiling_for
from wam_jax.embodiment import CALVIN
from wam_jax.nn.layers import mish
from wam_jax.nn.policies.critic import Critic
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.policies.gaussian import GaussianPolicy
from wam_jax.training import behaviour_cloning as bc
from wam_jax.training.state import make_train_state
from wam_jax.training.tasks import over_tasks, repeat, task_keys, task_metrics, update_over_tasks
from wam_jax.types import Takes

F = 5
POLICY = DiffusionPolicy(F, chunk=3, hidden=16, time_dim=4, denoising_steps=5, fine_tuned_steps=2)
GAUSSIAN = GaussianPolicy(F, chunk=3, hidden=16, sampling_std=0.2, log_prob_std=0.3)


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@functools.cache
def init(policy, seed):
  return jax.jit(policy.init)(jax.random.key(seed))


jitted = functools.cache(jax.jit)


def two_networks():
  return {"base": init(POLICY, 0), "tuned": init(POLICY, 1)}


def test_mish_matches_its_definition_and_stays_finite():
  x = jnp.linspace(-15, 15, 101)
  np.testing.assert_allclose(mish(x), x * np.tanh(np.log1p(np.exp(x))), rtol=1e-4, atol=1e-6)
  for extreme in (-1e4, 1e4):
    assert np.isfinite(jitted(jax.value_and_grad(mish))(np.float32(extreme))).all()


def test_the_derivative_of_mish_against_finite_differences_and_its_definition():
  with jax.enable_x64(True):
    x = jnp.linspace(-30.0, 30.0, 121)
    gradient = lambda f: jax.jit(jax.vmap(jax.grad(f)))
    slope = gradient(mish)(x)
    np.testing.assert_allclose(
      slope, jax.jit(lambda x: (mish(x + 1e-6) - mish(x - 1e-6)) / 2e-6)(x), rtol=1e-6, atol=1e-8
    )
    definition = lambda x: x * jnp.tanh(jax.nn.softplus(x))
    np.testing.assert_allclose(slope, gradient(definition)(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient(mish)(x.astype(jnp.float32)), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_sample_shapes_and_that_feature_and_key_matter(lead):
  params, feature = two_networks(), draw(2, *lead, F)
  sample = jax.jit(POLICY.sample, static_argnames="deterministic")
  chunk = sample(params, feature, jax.random.key(3))
  assert chunk.shape == (*lead, 3, 7) and jnp.isfinite(chunk).all()
  assert not jnp.allclose(chunk, sample(params, feature, jax.random.key(4)))
  other = sample(params, -feature, jax.random.key(3), deterministic=True)
  assert not jnp.allclose(other, sample(params, feature, jax.random.key(3), deterministic=True))


def test_each_network_makes_its_own_steps():
  params, feature = two_networks(), draw(2, 4, F)
  noise = POLICY.draw_noise(jax.random.key(0), (4,))
  sample_chain = jitted(POLICY.sample_chain)
  chain = sample_chain(params, feature, *noise)[1]
  same_base = sample_chain({**params, "tuned": params["base"]}, feature, *noise)[1]
  np.testing.assert_array_equal(chain[:, 0], same_base[:, 0])
  assert not jnp.allclose(chain[:, 1], same_base[:, 1])
  # The log-probability of a chain under the network that drew it is that of its noise.
  exact = jitted(POLICY.log_prob)(params["tuned"], feature, chain)
  np.testing.assert_allclose(exact, POLICY.log_prob_of_noise(noise[1]), atol=2e-3)


@pytest.mark.parametrize(("count", "lead"), [(1, (2, 3)), (3, ()), (5, (2, 3))])
def test_ddim_is_how_a_deterministic_sample_is_drawn(count, lead):
  params, feature, key = two_networks(), draw(2, *lead, F), jax.random.key(3)
  fewer = dataclasses.replace(POLICY, ddim_steps=count)

  @jax.jit
  def expected(params):
    eps = lambda name: lambda x, t: POLICY.eps(params[name], x, jnp.full(x.shape[:-2], t, jnp.int32), feature)
    noise = POLICY.draw_noise(key, lead)[0]
    tuned = POLICY.fine_tuned_steps
    return diffusion.sample_ddim(
      POLICY.schedule, eps("base"), eps("tuned"), noise, num_tuned=tuned, count=count
    )

  @functools.partial(jax.jit, static_argnums=0)
  def drawn(policy, params):
    noise = policy.draw_noise(key, lead)
    chains = [policy.sample_chain(params, feature, *noise, variant) for variant in (False, True)]
    return policy.sample(params, feature, key, True), (policy.sample(params, feature, key), chains)

  (got, ours), (other, theirs) = (drawn(policy, params) for policy in (fewer, POLICY))
  assert got.shape == (*lead, 3, 7)
  np.testing.assert_allclose(got, expected(params), atol=1e-4)
  assert not jnp.allclose(got, other, atol=1e-3)
  # Stochastic samples and the chains of PPO are what they were.
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_condition_shared_over_steps_equals_the_plain_network():
  network, feature, x = two_networks()["base"], draw(2, 4, F), draw(3, 4, 3, 7)
  t = jnp.array([0, 1, 3, 4])

  @jax.jit
  def split(network):
    condition = POLICY.module.apply({"params": network}, feature, method="condition")
    table = POLICY.module.apply({"params": network}, method="time_table")
    return POLICY.module.apply({"params": network}, x, table[t], condition, method="denoise")

  plain, split = jitted(POLICY.eps)(network, x, t, feature), split(network)
  np.testing.assert_allclose(plain, split, atol=1e-6)


def test_mismatch_raises():
  params, feature = two_networks(), draw(2, 4, F)
  with pytest.raises(ValueError, match="feature"):
    POLICY.sample(params, feature[:, :-1], jax.random.key(0))
  with pytest.raises(ValueError, match="x:"):
    POLICY.eps(params["base"], draw(3, 4, 2, 7), jnp.zeros(4, jnp.int32), feature)
  with pytest.raises(ValueError, match="chain"):
    POLICY.log_prob(params["base"], feature, draw(3, 4, 2, 3, 7))
  with pytest.raises(ValueError, match="fine_tuned_steps"):
    DiffusionPolicy(F, denoising_steps=5, fine_tuned_steps=6)
  for count in (-1, 6):
    with pytest.raises(ValueError, match="ddim_steps"):
      dataclasses.replace(POLICY, ddim_steps=count)
  with pytest.raises(ValueError, match="feature"):
    dataclasses.replace(POLICY, ddim_steps=2).sample(params, feature[:, :-1], jax.random.key(0), True)
  with pytest.raises(ValueError, match="hidden"):
    Critic((8, 8)).init(jax.random.key(0), feature, jnp.ones(4))


def test_critic_reads_the_time_left_only_when_told():
  feature, clock = draw(2, 4, F), jnp.linspace(0, 1, 4)
  for reads in (False, True):
    critic = Critic((8, 8, 8), time_left=reads)
    params = jax.jit(critic.init)(jax.random.key(0), feature, clock)
    apply = jax.jit(critic.apply)
    value = apply(params, feature, clock)
    assert value.shape == (4,)
    assert np.allclose(value, apply(params, feature, 1 - clock)) != reads


def test_executable():
  chunk = jnp.array([[2.0, -3, 0.5, 0, 0, 0, -1e-3], [0, 0, 0, 0, 0, 1.5, 0.2]])
  expected = [[1, -1, 0.5, 0, 0, 0, -1], [0, 0, 0, 0, 0, 1, 1]]
  np.testing.assert_allclose(executable(chunk, CALVIN.binary), expected)


def demos(tasks=2, num=3, length=9):
  rng = np.random.default_rng(0)
  mask = np.arange(length) < np.array([[9, 7, 3], [5, 2, 0]])[:tasks, :num, None]
  feature = rng.normal(size=(tasks, num, length, F)).astype(np.float32)
  # Each action names the task, demo and time that it belongs to.
  action = np.zeros((tasks, num, length, 7), np.float32)
  action[..., 0], action[..., 1], action[..., 2] = np.indices(mask.shape)
  return feature, action, mask


def test_chunks_never_leave_their_demo():
  feature, action, mask = demos()
  data = bc.make_data(Takes(feature, action, None, mask), 3)
  # Whole chunks of 3: lengths 9, 7, 3 hold 7 + 5 + 1; lengths 5, 2, 0 hold 3.
  assert data.num_starts.tolist() == [13, 3]
  for task in range(2):
    one = jax.tree.map(lambda x, task=task: np.asarray(x)[task], data)
    sample_batch = jax.jit(bc.sample_batch, static_argnums=(2, 3))
    f, chunk = map(np.asarray, sample_batch(one, jax.random.key(task), 200, 3))
    assert f.shape == (200, F) and chunk.shape == (200, 3, 7)
    assert (chunk[..., 0] == task).all() and (chunk[..., 1] == chunk[:, :1, 1]).all()
    assert (np.diff(chunk[..., 2], axis=1) == 1).all()
    d, t = chunk[:, 0, 1].astype(int), chunk[:, 0, 2].astype(int)
    np.testing.assert_array_equal(f, feature[task, d, t])
    assert mask[task, d, t + 2].all()
    assert len({*zip(d.tolist(), t.tolist(), strict=True)}) == data.num_starts[task]
  with pytest.raises(ValueError, match="task 1"):
    bc.make_data(Takes(feature, action, None, mask), 6)
  with pytest.raises(ValueError, match="agree"):
    bc.make_data(Takes(feature, action[:, :2], None, mask), 3)


def test_cloning_learns_and_averages():
  """Two tasks, each with one fixed action: sampling gives it back."""
  feature, action, mask = demos()
  goal = np.array([[0.6] * 7, [-0.4] * 7], np.float32)
  data = bc.make_data(Takes(feature, np.broadcast_to(goal[:, None, None], action.shape), None, mask), 3)
  optimizer = optax.adam(1e-2)
  policy = dataclasses.replace(POLICY, hidden=64)
  update = bc.make_update(policy, optimizer, batch_size=64, ema_decay=0.9)
  begin = jax.jit(jax.vmap(lambda k: make_train_state(policy.init(k), optimizer, ema=True)))
  state = begin(task_keys(jax.random.key(0), 2))
  call = over_tasks(lambda task, num: update(*task, num))
  before = jax.device_get(state.params)
  state, _ = call((state, data, task_keys(jax.random.key(3), 2)), jnp.int32(1))
  jax.tree.map(
    lambda average, old, new: np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, atol=1e-6),
    state.ema_params,
    before,
    jax.device_get(state.params),
  )
  state, first = call((state, data, task_keys(jax.random.key(1), 2)), jnp.int32(4))
  state, last = call((state, data, task_keys(jax.random.key(2), 2)), jnp.int32(400))
  assert state.step.tolist() == [405, 405]
  assert (last["loss"] < 0.5 * first["loss"]).all()
  sample = jax.jit(policy.sample, static_argnums=3)
  for task in range(2):
    network = jax.tree.map(lambda x, task=task: np.asarray(x)[task], state.ema_params)
    chunk = sample({"base": network, "tuned": network}, feature[task, 0, :3], jax.random.key(0), True)
    # The two goals are 1 apart; a network that ignored the task's data would miss by 0.5.
    assert np.abs(chunk - goal[task]).mean() < 0.1
  assert set(task_metrics(("a", "b"), last)) == {
    "loss",
    "grad_norm",
    "a/loss",
    "b/loss",
    "a/grad_norm",
    "b/grad_norm",
  }


def test_over_tasks_does_not_depend_on_threads():
  def step(state, key):
    state = jnp.tanh(state @ state + jax.random.normal(key, state.shape))
    return state, {"mean": state.mean()}

  fn = lambda task, num: repeat(step, *task, num)
  task = draw(0, 3, 8, 8), task_keys(jax.random.key(0), 3)
  results = [over_tasks(fn, threads=n)(task, jnp.int32(4)) for n in (1, 2, 3)]
  for other in results[1:]:
    jax.tree.map(np.testing.assert_array_equal, results[0], other)
  alone = over_tasks(fn)(jax.tree.map(lambda x: x[:1], task), jnp.int32(4))
  np.testing.assert_array_equal(alone[0][0], results[0][0][0])
  with pytest.raises(ValueError, match="leading task axes"):
    over_tasks(fn)((task[0], task[1][:2]), jnp.int32(4))


def test_an_accelerator_computes_the_same_and_overwrites_the_state():
  def update(state, data, key, num):
    step = lambda state, key: (
      jnp.tanh(state @ data + jax.random.normal(key, state.shape)),
      {"mean": data.mean()},
    )
    return repeat(step, state, key, num)

  state, data = draw(0, 3, 8, 8), draw(1, 3, 8, 8)
  task = lambda: (jnp.copy(state), data, task_keys(jax.random.key(0), 3))
  expected = update_over_tasks(update)(task(), jnp.int32(4))
  with compiling_for("tpu"):
    program = update_over_tasks(update)
  given = task()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, program(given, jnp.int32(4))
  )
  assert given[0].is_deleted() and not data.is_deleted()


def test_bc_gradient_against_finite_differences():
  feature, chunk, key = draw(0, 6, F), np.clip(draw(1, 6, 3, 7), -1, 1), jax.random.key(2)
  with jax.enable_x64(True):
    wide = lambda x: np.asarray(x, np.float64)
    network, args = jax.tree.map(wide, init(POLICY, 0)), (wide(feature), wide(chunk), key)
    fn = lambda p: POLICY.cloning_loss(p, *args)
    grad = jax.jit(jax.grad(fn))(network)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), network)
    move = jax.jit(lambda s: fn(jax.tree.map(lambda p, d: p + s * d, network, direction)))
    slope = (move(1e-6) - move(-1e-6)) / 2e-6
    along = sum(jax.tree.leaves(jax.tree.map(np.vdot, grad, direction)))
    np.testing.assert_allclose(along, slope, rtol=1e-5)


def gaussian_networks():
  return {"base": init(GAUSSIAN, 0), "tuned": init(GAUSSIAN, 1)}


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_gaussian_samples(lead):
  params, feature, key = gaussian_networks(), draw(2, *lead, F), jax.random.key(3)
  mean = np.asarray(jitted(GAUSSIAN.mean)(params["tuned"], feature))
  assert mean.shape == (*lead, 3, 7) and (np.abs(mean) < 1).all() and np.abs(mean).max() > 0.01
  sample = jax.jit(GAUSSIAN.sample, static_argnums=3)
  np.testing.assert_array_equal(sample(params, feature, key, True), mean)
  x_init, noise = map(np.array, GAUSSIAN.draw_noise(key, lead))
  assert not x_init.any()
  noise[(0,) * noise.ndim] = 5.0  # clamped to 3
  chunk, chain = map(np.asarray, jitted(GAUSSIAN.sample_chain)(params, feature, x_init, noise))
  np.testing.assert_allclose(chunk, mean + 0.2 * np.clip(noise[0], -3, 3), atol=1e-6)
  assert chain.shape == (*lead, GAUSSIAN.fine_tuned_steps + 1, 3, 7)
  np.testing.assert_array_equal(chain[..., 1, :, :], chunk)
  log_prob = jitted(GAUSSIAN.log_prob)
  exact = log_prob(params["tuned"], feature, chain)
  assert exact.shape == (*lead, 1, 3, 7)
  np.testing.assert_allclose(exact, GAUSSIAN.log_prob_of_noise(noise), atol=1e-4)
  assert not np.allclose(exact, log_prob(params["base"], feature, chain), atol=1e-2)


def test_gaussian_log_prob_and_its_gradient_by_hand():
  """With all weights zero but the last bias b, the mean is m = tanh(b) whatever the feature: the
  log-density of x is -0.5 ((x - m) / s)^2 - log s - 0.5 log 2 pi, its derivative by b
  (x - m) / s^2 (1 - m^2)."""
  network = jax.tree.map(np.zeros_like, init(GAUSSIAN, 0))
  bias = np.asarray(draw(4, 21))
  network["body"]["output"]["bias"] = bias
  feature, x = np.asarray(draw(2, F)), np.asarray(draw(3, 3, 7))
  chain = np.stack([np.full_like(x, 9.0), x])  # the first entry is not read
  m, s = np.tanh(bias).reshape(3, 7), 0.3
  got = jitted(GAUSSIAN.log_prob)(network, feature, chain)
  expected = -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-4)
  grad = jax.jit(jax.grad(lambda n: GAUSSIAN.log_prob(n, feature, chain).sum()))(network)
  by_hand = (x - m) / s**2 * (1 - m**2)
  np.testing.assert_allclose(grad["body"]["output"]["bias"].reshape(3, 7), by_hand, rtol=1e-4, atol=1e-4)
  # The loss of cloning x is the mean square, its derivative by b that times -2 s^2 / 21.
  loss = lambda n: GAUSSIAN.cloning_loss(n, feature[None], x[None], jax.random.key(0))
  value, grad = jax.jit(jax.value_and_grad(loss))(network)
  np.testing.assert_allclose(value, np.square(x - m).mean(), rtol=1e-5)
  by_hand = -2 * s**2 / 21 * by_hand
  np.testing.assert_allclose(grad["body"]["output"]["bias"].reshape(3, 7), by_hand, rtol=1e-4, atol=1e-5)


def test_gaussian_mismatch_raises():
  params, feature = gaussian_networks(), draw(2, 4, F)
  noise = GAUSSIAN.draw_noise(jax.random.key(0), (4,))
  with pytest.raises(ValueError, match="feature"):
    GAUSSIAN.sample(params, feature[:, :-1], jax.random.key(0))
  with pytest.raises(ValueError, match="x_init and noise"):
    GAUSSIAN.sample_chain(params, feature, noise[0], noise[1][0])
  with pytest.raises(ValueError, match="chain"):
    GAUSSIAN.log_prob(params["base"], feature, draw(3, 4, 1, 3, 7))
  with pytest.raises(ValueError, match="chunk"):
    GAUSSIAN.cloning_loss(params["base"], feature, draw(3, 1, 3, 7), jax.random.key(0))


def test_gaussian_cloning_learns_a_linear_map():
  rng = np.random.default_rng(0)
  feature = rng.normal(size=(2, 6, 20, F)).astype(np.float32)
  matrix = rng.normal(size=(2, F, 7)).astype(np.float32) / 15
  action = np.einsum("kmtf,kfa->kmta", feature, matrix)
  assert np.abs(action).max() < 1
  data = bc.make_data(Takes(feature, action, None, np.ones(feature.shape[:3], bool)), 1)
  policy = dataclasses.replace(GAUSSIAN, chunk=1, hidden=32)
  optimizer = optax.adam(1e-2)
  update = bc.make_update(policy, optimizer, batch_size=64, ema_decay=0.9)
  begin = jax.jit(jax.vmap(lambda k: make_train_state(policy.init(k), optimizer, ema=True)))
  state = begin(task_keys(jax.random.key(0), 2))
  call = over_tasks(lambda task, num: update(*task, num))
  state, _ = call((state, data, task_keys(jax.random.key(1), 2)), jnp.int32(500))
  for task in range(2):
    network = jax.tree.map(lambda x, task=task: np.asarray(x)[task], state.ema_params)
    chunk = jitted(policy.mean)(network, feature[task].reshape(-1, F))[:, 0]
    error = np.square(chunk - action[task].reshape(-1, 7)).mean()
    assert error < 0.02 * action[task].var(), error  # it explains 98 %
