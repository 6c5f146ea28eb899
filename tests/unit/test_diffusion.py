from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import diffusion

K = 6
SCHEDULE = diffusion.make_schedule(K)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_schedule_is_a_decreasing_survival_that_ends_near_zero():
  for steps in (1, 2, 20, 100):
    s = diffusion.make_schedule(steps)
    assert s.num_steps == steps and s.beta.dtype == np.float32
    assert (np.diff(s.alpha_bar) < 0).all() and 0 < s.alpha_bar[-1] < 0.01
    np.testing.assert_allclose(s.sqrt_alpha_bar**2 + s.sqrt_one_minus_alpha_bar**2, 1, atol=1e-6)
  with pytest.raises(ValueError, match="num_steps"):
    diffusion.make_schedule(0)


def test_true_noise_gives_the_clean_chunk_back():
  x0 = np.clip(draw(0, 5, 4, 7) / 3, -1, 1)
  noise, t = draw(1, 5, 4, 7), np.array([0, 1, 2, 3, 4])
  x = diffusion.q_sample(SCHEDULE, x0, t, noise)
  mean = diffusion.posterior_mean(SCHEDULE, x, t, noise)
  # At t = 0 the posterior is the clean chunk itself; elsewhere the known mixture of x_0 and x_t.
  np.testing.assert_allclose(mean[0], x0[0], atol=1e-5)
  mixture = SCHEDULE.posterior_x0[t][:, None, None] * x0 + SCHEDULE.posterior_xt[t][:, None, None] * x
  np.testing.assert_allclose(mean, mixture, atol=1e-4)


def test_shape_mismatch_raises():
  x = draw(0, 5, 4, 7)
  t = jnp.zeros(5, jnp.int32)
  with pytest.raises(ValueError, match="noise"):
    diffusion.q_sample(SCHEDULE, x, t, x[:1])
  with pytest.raises(ValueError, match="t:"):
    diffusion.q_sample(SCHEDULE, x, t[:1], x)
  with pytest.raises(ValueError, match="eps"):
    diffusion.posterior_mean(SCHEDULE, x, t, x[:, :1])
  with pytest.raises(ValueError, match="x_next"):
    diffusion.transition_log_prob(SCHEDULE, x, x[:1], t, x)
  eps = lambda x, t: x
  for noise, tuned in ((draw(1, K - 1, 5, 4, 7), 2), (draw(1, K, 5, 4, 7), K + 1)):
    with pytest.raises(ValueError, match="noise|num_tuned"):
      diffusion.sample_chain(SCHEDULE, eps, eps, x, noise, num_tuned=tuned)


def reference_chain(eps_base, eps_tuned, x, noise, num_tuned, deterministic, min_std):
  """The chain step by step in NumPy, from the formulas."""
  chain = []
  for i, t in enumerate(range(K - 1, -1, -1)):
    if t == num_tuned - 1:
      chain.append(x)
    bar = SCHEDULE.alpha_bar[t]
    previous = SCHEDULE.alpha_bar[t - 1] if t else 1.0
    beta = SCHEDULE.beta[t]
    eps = np.asarray((eps_base if t >= num_tuned else eps_tuned)(x, t))
    x0 = np.clip((x - np.sqrt(1 - bar) * eps) / np.sqrt(bar), -1, 1)
    mean = (beta * np.sqrt(previous) * x0 + (1 - previous) * np.sqrt(1 - beta) * x) / (1 - bar)
    std = np.sqrt(beta * (1 - previous) / (1 - bar))
    std = (0 if t == 0 else max(std, 1e-3)) if deterministic else max(std, min_std)
    x = mean + std * np.clip(noise[i], -3, 3)
    if t < num_tuned:
      chain.append(x)
  return x, np.stack(chain, -3)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_tuned", [1, 3, K])
def test_chain_against_plain_numpy(num_tuned, deterministic):
  base = lambda x, t: 0.5 * np.tanh(x) + 0.01 * t
  tuned = lambda x, t: 0.3 * x - 0.02 * t
  jbase = lambda x, t: 0.5 * jnp.tanh(x) + 0.01 * t
  x, noise = draw(2, 3, 4, 7), 2 * draw(3, K, 3, 4, 7)  # some draws beyond the clamp
  assert (np.abs(noise) > 3).any()
  sample = lambda x, noise: diffusion.sample_chain(
    SCHEDULE, jbase, tuned, x, noise, num_tuned=num_tuned, min_std=0.2, deterministic=deterministic
  )
  got = jax.jit(sample)(x, noise)
  expected = reference_chain(base, tuned, x, noise, num_tuned, deterministic, 0.2)
  assert got[1].shape == (3, num_tuned + 1, 4, 7)
  np.testing.assert_allclose(got[0], expected[0], atol=2e-5)
  np.testing.assert_allclose(got[1], expected[1], atol=2e-5)


def test_log_prob_by_hand_and_from_the_noise():
  # One element, t = 0, floor 0.5: density of N(mean, 0.5^2) one and a half deviations away is
  # exp(-1.125) / (0.5 sqrt(2 pi)); its log is -1.125 + 0.693147 - 0.918939 = -1.350791.
  x, eps, t = draw(0, 1, 1), draw(1, 1, 1), jnp.int32(0)
  mean = diffusion.posterior_mean(SCHEDULE, x, t, eps)
  got = diffusion.transition_log_prob(SCHEDULE, x, mean + 0.75, t, eps, min_std=0.5)
  np.testing.assert_allclose(got, -1.350791, atol=1e-5)

  eps_fn = lambda x, t: 0.3 * jnp.tanh(x)
  x, noise = draw(2, 2, 4, 7), 2 * draw(3, K, 2, 4, 7)
  t = diffusion.tuned_steps(4)
  assert t.tolist() == [3, 2, 1, 0]

  @jax.jit
  def log_prob(x, noise):
    _, chain = diffusion.sample_chain(SCHEDULE, eps_fn, eps_fn, x, noise, num_tuned=4, min_std=0.3)
    before, after = chain[:, :-1], chain[:, 1:]
    return diffusion.transition_log_prob(SCHEDULE, before, after, t, eps_fn(before, t), min_std=0.2)

  exact = log_prob(x, noise)
  quick = diffusion.noise_log_prob(SCHEDULE, noise, 4, 0.3, 0.2)
  assert exact.shape == quick.shape == (2, 4, 4, 7)
  np.testing.assert_allclose(exact, quick, atol=1e-3)


def test_finite_at_extremes():
  for scale in (1e-6, 1e6):
    x = scale * draw(4, 2, 4, 7)
    fn = lambda x: diffusion.posterior_mean(SCHEDULE, x, jnp.array([0, K - 1]), 1e3 * x).sum()
    value, grad = jax.jit(jax.value_and_grad(fn))(x)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_ddim_steps_start_at_pure_noise_and_never_repeat():
  assert diffusion.ddim_steps(20, 5).tolist() == [19, 15, 11, 7, 3]
  assert diffusion.ddim_steps(6, 6).tolist() == [5, 4, 3, 2, 1, 0]
  assert diffusion.ddim_steps(20, 3).tolist() == [19, 12, 5]
  for total in (1, 2, 3, 7, 20):
    for count in range(1, total + 1):
      t = diffusion.ddim_steps(total, count)
      assert len(t) == count and t[0] == total - 1 and t[-1] >= 0 and (np.diff(t) < 0).all()
  for bad in (0, 7, -1):
    with pytest.raises(ValueError, match="ddim_steps: expected 1 to 6"):
      diffusion.ddim_steps(6, bad)


def gaussian_noise(schedule, mean, std):
  """The exact noise prediction for chunks from N(mean, std^2): E[noise | x_t]."""

  def eps(x, t):
    bar = jnp.asarray(schedule.alpha_bar)[t]
    return jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * mean) / (bar * std**2 + 1 - bar)

  return eps


@pytest.mark.parametrize("count", [1, 4, K])
def test_ddim_of_a_known_gaussian(count):
  """Each step maps the deviation y = x - sqrt(bar) mean linearly: E[x_0] moves it by sqrt(bar) s^2 / v and
  the noise by sqrt(1 - bar) / v, with v = bar s^2 + 1 - bar, put together with the next step's bar'."""
  mean, std = draw(0, 4, 7) / 10, 0.2
  eps, x = gaussian_noise(SCHEDULE, mean, std), draw(1, 3, 4, 7)
  got = diffusion.sample_ddim(SCHEDULE, eps, eps, x, num_tuned=2, count=count)
  bars = [float(SCHEDULE.alpha_bar[t]) for t in diffusion.ddim_steps(K, count)] + [1.0]
  factor = 1.0
  for bar, after in itertools.pairwise(bars):
    v = bar * std**2 + 1 - bar
    factor *= (np.sqrt(bar * after) * std**2 + np.sqrt((1 - bar) * (1 - after))) / v
  np.testing.assert_allclose(got, mean + factor * (x - np.sqrt(bars[0]) * mean), atol=1e-4)


def test_ddim_follows_the_probability_flow():
  """Many steps: the deviation is rescaled from the deviation of the noisiest step to that of the data."""
  many = diffusion.make_schedule(1000)
  mean, std = draw(0, 4, 7) / 10, 0.2
  eps, x = gaussian_noise(many, mean, std), draw(1, 3, 4, 7)
  got = diffusion.sample_ddim(many, eps, eps, x, num_tuned=500, count=1000)
  np.testing.assert_allclose(got, mean + std * x, atol=5e-3)


@pytest.mark.parametrize("count", [1, 2, 5, K])
def test_ddim_of_a_point_is_the_point_clamped(count):
  point = jnp.linspace(-1.5, 1.5, 28).reshape(4, 7)
  eps, x = gaussian_noise(SCHEDULE, point, 0.0), draw(1, 3, 4, 7)
  got = diffusion.sample_ddim(SCHEDULE, eps, eps, x, num_tuned=2, count=count)
  np.testing.assert_allclose(got, jnp.broadcast_to(jnp.clip(point, -1, 1), got.shape), atol=1e-4)


@pytest.mark.parametrize(("count", "num_tuned"), [(1, 2), (3, 2), (3, 0), (3, K), (K, 4)])
def test_ddim_asks_each_network_at_its_own_steps(count, num_tuned):
  asked = {"base": [], "tuned": []}

  def make(name):
    def eps(x, t):
      jax.debug.callback(lambda t: asked[name].append(int(t)), t, ordered=True)
      return 0.1 * x

    return eps

  args = SCHEDULE, make("base"), make("tuned"), draw(1, 3, 4, 7)
  jax.block_until_ready(diffusion.sample_ddim(*args, num_tuned=num_tuned, count=count))
  jax.effects_barrier()
  steps = diffusion.ddim_steps(K, count).tolist()
  assert asked["base"] == [t for t in steps if t >= num_tuned]
  assert asked["tuned"] == [t for t in steps if t < num_tuned]
  with pytest.raises(ValueError, match="num_tuned"):
    diffusion.sample_ddim(*args, num_tuned=K + 1, count=count)
  with pytest.raises(ValueError, match="ddim_steps"):
    diffusion.sample_ddim(*args, num_tuned=num_tuned, count=K + 1)
