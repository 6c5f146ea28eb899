"""Clipped policy-gradient loss on denoising chains. Pure functions.

Source: DPPO (arXiv 2409.00588) sections 4 and 5. Step index k counts the tuned denoising steps from
the noisiest (0) to the last (K' - 1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean_log_prob(log_prob: jax.Array, low: float = -5.0, high: float = 2.0) -> jax.Array:
  """One log-probability per denoising step from those of its elements.

  Args:
    log_prob: [..., H, A].
    low: clamp of each element; keeps single outliers from deciding a ratio.
    high: the same, above.

  Returns:
    [...], mean over actions and dimensions of the clamped values.
  """
  return jnp.clip(log_prob, low, high).mean((-2, -1))


def clip_range(num_steps: int, low: float, high: float, rate: float) -> jax.Array:
  """Clip range per denoising step, growing exponentially from `low` (noisiest) to `high` (last).

  Args:
    num_steps: K'.
    low: range at k = 0.
    high: range at k = K' - 1; also the value when there is a single step.
    rate: how strongly it bends.

  Returns:
    [K'] float32.
  """
  if num_steps == 1:
    return jnp.full((1,), high)
  share = jnp.arange(num_steps) / (num_steps - 1)
  return low + (high - low) * jnp.expm1(rate * share) / jnp.expm1(rate)


def step_discount(num_steps: int, gamma: float) -> jax.Array:
  """Weight of a chunk's advantage at each denoising step: gamma^(K'-1-k), [K']."""
  return gamma ** jnp.arange(num_steps - 1, -1, -1)


def normalise(advantage: jax.Array) -> jax.Array:
  """Advantages with mean 0 and standard deviation 1 (n - 1) over all axes.

  Args:
    advantage: [...], at least two entries.

  Returns:
    [...].
  """
  return (advantage - advantage.mean()) / (jnp.std(advantage, ddof=1) + 1e-8)


def clipped_chain_loss(
  log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """PPO's clipped surrogate over denoising steps.

  Args:
    log_prob: [...], of each denoising step under the policy being trained.
    old_log_prob: [...], under the policy that drew the chain.
    advantage: [...], normalised and already weighted by `step_discount`.
    clip: [...], clip range of each step.

  Returns:
    The loss (scalar), and metrics: kl (the estimator ratio - 1 - log ratio), clip_fraction, ratio.

  Raises:
    ValueError: shapes differ.
  """
  for name, array in (("old_log_prob", old_log_prob), ("advantage", advantage), ("clip", clip)):
    if array.shape != log_prob.shape:
      raise ValueError(f"{name}: expected {list(log_prob.shape)}, got {list(array.shape)}")
  log_ratio = log_prob - old_log_prob
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
  loss = jnp.maximum(-advantage * ratio, -advantage * clipped).mean()
  metrics = {
    "kl": (ratio - 1 - log_ratio).mean(),
    "clip_fraction": (jnp.abs(ratio - 1) > clip).mean(),
    "ratio": ratio.mean(),
  }
  return loss, metrics


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
  """Half the mean squared error of the critic.

  Args:
    value: [...].
    target: [...], returns.

  Returns:
    Scalar.

  Raises:
    ValueError: shapes differ.
  """
  if value.shape != target.shape:
    raise ValueError(f"target: expected {list(value.shape)}, got {list(target.shape)}")
  return 0.5 * jnp.square(value - target).mean()
