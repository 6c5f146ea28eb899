import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import distributions


def gradient(*args):
  return jax.jit(jax.grad(*args))


def test_one_hot_is_exact_and_its_gradient_is_that_of_the_probabilities():
  logits = jax.random.normal(jax.random.key(0), (5, 3, 4))
  noise = distributions.gumbel(jax.random.key(1), logits.shape)
  weight = jax.random.normal(jax.random.key(2), logits.shape)
  sample = distributions.one_hot(logits, noise)
  np.testing.assert_array_equal(np.sort(sample, -1), np.tile([0.0, 0, 0, 1], (5, 3, 1)))
  grad = gradient(lambda x: (distributions.one_hot(x, noise) * weight).sum())(logits)
  expected = gradient(lambda x: (jax.nn.softmax(x) * weight).sum())(logits)
  np.testing.assert_allclose(grad, expected, rtol=1e-6)


def test_mode_and_sample_frequencies():
  logits = jnp.log(jnp.array([[0.2, 0.7, 0.1]]))
  assert int(distributions.one_hot(logits).argmax()) == 1
  many = jnp.broadcast_to(logits, (20_000, 1, 3))
  mean = distributions.one_hot(many, distributions.gumbel(jax.random.key(0), many.shape)).mean((0, 1))
  np.testing.assert_allclose(mean, [0.2, 0.7, 0.1], atol=0.015)


def test_samples_by_inversion():
  logits = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))
  many = jnp.broadcast_to(logits, (20_000, 2, 3))
  sample_one_hot = jax.jit(distributions.sample_one_hot)
  sample = np.asarray(sample_one_hot(many, jax.random.uniform(jax.random.key(0), many.shape[:-1])))
  np.testing.assert_array_equal(np.sort(sample, -1), np.tile([0.0, 0, 1], (20_000, 2, 1)))
  np.testing.assert_allclose(sample.mean(0), jnp.exp(logits), atol=0.015)
  # The edges: classes of no probability are never drawn, first, in the middle or last.
  logits = jnp.log(jnp.array([[0, 0.5, 0, 0.5, 0]]))
  drawn = [int(np.argmax(sample_one_hot(logits, np.float32([u])))) for u in (0.0, 0.49, 0.51, 1.0)]
  assert drawn == [1, 1, 3, 3]
  logits, weight = jax.random.normal(jax.random.key(1), (2, 4, 3, 5))
  uniform = jax.random.uniform(jax.random.key(2), (4, 3))
  grad = gradient(lambda x: (distributions.sample_one_hot(x, uniform) * weight).sum())(logits)
  expected = gradient(lambda x: (jax.nn.softmax(x) * weight).sum())(logits)
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="shape"):
    distributions.sample_one_hot(logits, jnp.zeros((4, 5)))


def test_kl_against_the_sum_by_hand():
  q, p = jax.random.normal(jax.random.key(0), (2, 6, 3, 4))
  log_q, log_p = jax.nn.log_softmax(q), jax.nn.log_softmax(p)
  expected = (jnp.exp(log_q) * (log_q - log_p)).sum((-1, -2))
  np.testing.assert_allclose(distributions.kl_divergence(q, p), expected, rtol=1e-5)
  np.testing.assert_allclose(distributions.balanced_kl(q, p, 0.8), expected, rtol=1e-5)
  np.testing.assert_allclose(distributions.entropy(q), -(jnp.exp(log_q) * log_q).sum((-1, -2)), rtol=1e-5)


def test_balance_divides_the_gradient():
  q, p = jax.random.normal(jax.random.key(0), (2, 3, 4))
  loss = lambda q, p, balance: distributions.balanced_kl(q, p, balance).sum()
  full_q, full_p = gradient(lambda q, p: distributions.kl_divergence(q, p).sum(), (0, 1))(q, p)
  grad_q, grad_p = gradient(loss, (0, 1))(q, p, 0.8)
  np.testing.assert_allclose(grad_q, 0.2 * full_q, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(grad_p, 0.8 * full_p, rtol=1e-4, atol=1e-7)


def test_extreme_logits_stay_finite():
  q = jnp.array([[1e4, -1e4, 0.0]])
  value, grad = jax.jit(jax.value_and_grad(lambda q: distributions.balanced_kl(q, -q, 0.8).sum()))(q)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_shape_mismatch_raises():
  with pytest.raises(ValueError, match="shape"):
    distributions.one_hot(jnp.zeros((2, 3, 4)), jnp.zeros((3, 4)))
  with pytest.raises(ValueError, match="shape"):
    distributions.kl_divergence(jnp.zeros((2, 3, 4)), jnp.zeros((3, 4)))
