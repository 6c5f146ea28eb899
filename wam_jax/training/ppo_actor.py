"""What PPO's actor learns by: the clipped loss on denoising chains, its regulariser, and their gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from wam_jax.core import ppo as ppo_loss
from wam_jax.core.backend import backend
from wam_jax.types import Metrics, Params, Policy

BLOCK_ROWS = 1000  # network rows, K' per chunk: activations of so many stay in the caches of a CPU or TPU


@struct.dataclass
class Sample:
  """Chunks of an iteration, flat: [N*E, ...].

  Attributes:
    feature: [X, F].
    time_left: [X].
    chain: [X, K'+1, H, A].
    log_prob: [X, K'], when the chain was drawn.
    advantage: [X], normalised.
    target: [X], returns.
    regulariser: by `config.bc_form`: chains [X, K'+1, H, A] that the cloned policy drew at `feature`, or
      noise [X, K+1, H, A] for chains of the policy itself (the first noise, then one of each step), or None.
  """

  feature: jax.Array
  time_left: jax.Array
  chain: jax.Array
  log_prob: jax.Array
  advantage: jax.Array
  target: jax.Array
  regulariser: jax.Array | None


def bc_regulariser(policy: Policy, config: Any, network: Params, base: Params, sample: Sample) -> jax.Array:
  """How unlikely the cloned policy and the one being trained find each other's chains.

  Args:
    policy: what acts.
    config: `config.ppo`. `bc_form` frozen_chains: minus the mean clamped log-probability, under the policy
      being trained, of chains that the cloned one drew. current_chains: the other way round; the gradient
      goes through the drawing of the chains.
    network: parameters being trained.
    base: parameters of the cloned network, without gradient.
    sample: a minibatch.

  Returns:
    Scalar.

  Raises:
    ValueError: the sample has nothing to regularise with, or the form is unknown.

  Source: DiWA (arXiv 2508.03645).
  """
  if sample.regulariser is None:
    raise ValueError("sample.regulariser is None")
  if config.bc_form == "frozen_chains":
    log_prob = policy.log_prob(network, sample.feature, sample.regulariser)
  elif config.bc_form == "current_chains":
    noise = jnp.moveaxis(sample.regulariser, 1, 0)
    base = jax.lax.stop_gradient(base)
    chain = policy.sample_chain({"base": base, "tuned": network}, sample.feature, noise[0], noise[1:])[1]
    log_prob = policy.log_prob(base, sample.feature, chain)
  else:
    raise ValueError(f"unknown bc_form {config.bc_form!r}")
  return -ppo_loss.mean_log_prob(log_prob, config.log_prob_min, config.log_prob_max).mean()


def actor_loss(
  policy: Policy, config: Any, network: Params, base: Params, sample: Sample
) -> tuple[jax.Array, Metrics]:
  """Clipped chain loss and the behaviour-cloning regulariser.

  Args:
    policy: what acts.
    config: `config.ppo`.
    network: parameters being trained.
    base: parameters of the cloned network.
    sample: a minibatch.

  Returns:
    The loss (scalar), and metrics.

  Source: DPPO (arXiv 2409.00588); for the regulariser see `bc_regulariser`.
  """
  bounds = config.log_prob_min, config.log_prob_max
  steps = policy.fine_tuned_steps
  log_prob = ppo_loss.mean_log_prob(policy.log_prob(network, sample.feature, sample.chain), *bounds)
  discount = ppo_loss.step_discount(steps, config.denoising_discount)
  clip = ppo_loss.clip_range(steps, config.clip_min, config.clip_max, config.clip_rate)
  loss, metrics = ppo_loss.clipped_chain_loss(
    log_prob,
    sample.log_prob,
    sample.advantage[:, None] * discount,
    jnp.broadcast_to(clip, log_prob.shape),
  )
  metrics = {"policy_loss": loss, **metrics}
  if config.bc_weight > 0:
    regulariser = bc_regulariser(policy, config, network, base, sample)
    loss = loss + config.bc_weight * regulariser
    metrics["bc_loss"] = regulariser
  return loss, metrics


def _block(num: int, steps: int) -> int:
  """Chunks of a minibatch that the gradient is taken of at a time: a divisor of `num`."""
  if backend() == "gpu":
    return num
  most = max(BLOCK_ROWS // steps, 1)
  block = max(b for b in range(1, min(most, num) + 1) if num % b == 0)
  return block if 4 * block >= most else num  # small blocks would be slower than one large one


def actor_gradient(
  policy: Policy, config: Any, network: Params, base: Params, sample: Sample, block: int | None = None
) -> tuple[Params, Metrics]:
  """Gradient of `actor_loss` and its metrics, as the mean over blocks of chunks.

  Args:
    policy: what acts.
    config: `config.ppo`.
    network: parameters being trained.
    base: parameters of the cloned network.
    sample: a minibatch of X chunks.
    block: chunks at a time, a divisor of X; None: by the device. Everything is a mean over chunks, so
      it changes rounding only.

  Returns:
    Gradient like `network`, and metrics.

  Raises:
    ValueError: `block` does not divide X.
  """
  num = len(sample.feature)
  block = _block(num, policy.fine_tuned_steps) if block is None else block
  if num % block:
    raise ValueError(f"block: expected a divisor of {num}, got {block}")
  gradient = jax.grad(lambda n, s: actor_loss(policy, config, n, base, s), has_aux=True)
  if block == num:
    out: tuple[Params, Metrics] = gradient(network, sample)
    return out
  blocks = jax.tree.map(lambda x: x.reshape(num // block, block, *x.shape[1:]), sample)
  like = jax.eval_shape(gradient, network, jax.tree.map(lambda x: x[0], blocks))
  total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
  add = lambda total, part: (jax.tree.map(jnp.add, total, gradient(network, part)), None)
  out = jax.tree.map(lambda x: x * (block / num), jax.lax.scan(add, total, blocks)[0])
  return out


def kl_to_cloned(policy: Policy, params: Params, feature: jax.Array, key: jax.Array) -> jax.Array:
  """Mean divergence of a policy's denoising steps from the cloned ones.

  Args:
    policy: what acts.
    params: {"base": cloned, "tuned"}.
    feature: [E, F].
    key: random key of the chains.

  Returns:
    Scalar, nats per number of a chunk and denoising step: log-probability of the policy's own chains under
    itself minus that under the cloned one.
  """
  chain = policy.sample_chain(params, feature, *policy.draw_noise(key, feature.shape[:-1]))[1]
  tuned, cloned = (policy.log_prob(params[name], feature, chain) for name in ("tuned", "base"))
  return (tuned - cloned).mean()
