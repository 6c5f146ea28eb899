"""One-hot latent variables: sampling with straight-through gradients and the balanced KL.

The only module that imports distrax.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

if sys.flags.optimize > 1:
  raise ImportError(
    "python -OO (PYTHONOPTIMIZE=2) drops the docstrings that TensorFlow Probability joins when it is "
    "imported: unset PYTHONOPTIMIZE, or set it to 1"
  )
import distrax


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Noise that turns `one_hot` into a sample; drawn outside scans, where it is one call."""
  return jax.random.gumbel(key, shape)


def one_hot(logits: jax.Array, noise: jax.Array | None = None) -> jax.Array:
  """One-hot sample (or mode) whose gradient is that of the probabilities.

  Args:
    logits: [..., S, C] float.
    noise: [..., S, C] standard Gumbel noise for an exact sample, or None for the mode.

  Returns:
    [..., S, C], exactly one-hot in the forward pass.

  Raises:
    ValueError: noise of another shape.

  Source: straight-through estimator of DreamerV2 (arXiv 2010.02193), section 2.2.
  """
  if noise is not None and noise.shape != logits.shape:
    raise ValueError(f"noise {list(noise.shape)} must have the shape of logits {list(logits.shape)}")
  scores = logits if noise is None else logits + noise
  hard = jax.nn.one_hot(_first_of_largest(scores), logits.shape[-1], dtype=logits.dtype)
  return _straight_through(hard, jax.nn.softmax(logits, -1))


def _straight_through(hard: jax.Array, probs: jax.Array) -> jax.Array:
  # Added as an exact zero, so that rounding leaves the forward value one-hot.
  return hard + (probs - jax.lax.stop_gradient(probs))


def sample_one_hot(logits: jax.Array, uniform: jax.Array) -> jax.Array:
  """Like `one_hot`, by inversion: one random number and no logarithm per variable.

  Args:
    logits: [..., S, C] float.
    uniform: [..., S] in [0, 1).

  Returns:
    [..., S, C], exactly one-hot, with the gradient of the probabilities.

  Raises:
    ValueError: uniform of another shape.
  """
  if uniform.shape != logits.shape[:-1]:
    raise ValueError(f"uniform {list(uniform.shape)} must have the shape {list(logits.shape[:-1])}")
  size = logits.shape[-1]
  weight, _ = _weights(logits)
  # A product with a triangle: XLA's own running sum is slow on CPUs.
  still = jax.lax.stop_gradient(weight)
  reached = still @ jnp.triu(jnp.ones((size, size), logits.dtype))
  index = (reached <= uniform[..., None] * reached[..., -1:]).sum(-1)
  # Rounding may carry the number past the last class that can be drawn.
  last = jnp.where(still > 0, jnp.arange(size), 0).max(-1)
  probs = weight / weight.sum(-1, keepdims=True)
  return _straight_through(jax.nn.one_hot(jnp.minimum(index, last), size, dtype=logits.dtype), probs)


def _weights(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Probabilities times a factor, and the logits they belong to; written once, so that XLA shares them."""
  shifted = logits - logits.max(-1, keepdims=True)
  return jnp.exp(shifted), shifted


def _first_of_largest(scores: jax.Array) -> jax.Array:
  """argmax over the last axis, in two plain reductions: XLA's own is slow on CPUs."""
  scores = jax.lax.stop_gradient(scores)
  size = scores.shape[-1]
  largest = scores == scores.max(-1, keepdims=True)
  return jnp.where(largest, jnp.arange(size), size).min(-1)


def entropy(logits: jax.Array) -> jax.Array:
  """Entropy in nats, summed over variables: [..., S, C] -> [...]."""
  weight, shifted = _weights(logits)
  total = weight.sum(-1)
  return (jnp.log(total) - (weight * shifted).sum(-1) / total).sum(-1)


def kl_divergence(posterior: jax.Array, prior: jax.Array) -> jax.Array:
  """KL(posterior || prior) in nats, summed over variables: logits [..., S, C] -> [...]."""
  if posterior.shape != prior.shape:
    raise ValueError(f"posterior {list(posterior.shape)} and prior {list(prior.shape)} must have one shape")
  q = distrax.OneHotCategorical(logits=posterior)
  return q.kl_divergence(distrax.OneHotCategorical(logits=prior)).sum(-1)


def balanced_kl(posterior: jax.Array, prior: jax.Array, balance: float) -> jax.Array:
  """KL that trains the prior with weight `balance` and the posterior with the rest.

  Args:
    posterior: [..., S, C] logits q.
    prior: [..., S, C] logits p.
    balance: in [0, 1], share of the gradient that goes to the prior.

  Returns:
    [...], the value of KL(q || p) whatever the balance.

  Source: DreamerV2, algorithm 2: balance * KL(sg q || p) + (1 - balance) * KL(q || sg p).
  """
  to_prior = kl_divergence(jax.lax.stop_gradient(posterior), prior)
  to_posterior = kl_divergence(posterior, jax.lax.stop_gradient(prior))
  return balance * to_prior + (1 - balance) * to_posterior
