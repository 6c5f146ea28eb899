"""Advantages and the running scale of rewards. Pure functions, time-major [N, E]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

HORIZONS = ("bootstrap", "terminal", "diwa")


def _check_shapes(shape: tuple[int, ...], **arrays: jax.Array) -> None:
  for name, array in arrays.items():
    if array.shape != shape:
      raise ValueError(f"{name}: expected {list(shape)}, got {list(array.shape)}")


def gae(
  reward: jax.Array,
  value: jax.Array,
  next_value: jax.Array,
  terminated: jax.Array,
  truncated: jax.Array,
  gamma: float,
  lam: float,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation.

  Args:
    reward: [N, E].
    value: [N, E], value of the state the step was taken in.
    next_value: [N, E], value of the state the step led to, *before* any restart: of the episode's
      own last state where it ended.
    terminated: [N, E] bool; cuts bootstrap and recursion.
    truncated: [N, E] bool; cuts the recursion only. Both set counts as terminated.
    gamma: discount per step.
    lam: decay of the estimator.

  Returns:
    Advantages [N, E] and returns (advantage + value) [N, E].

  Raises:
    ValueError: shapes differ.

  Source: arXiv 1506.02438 equation 16; truncation as in arXiv 1712.00378.
  """
  _check_shapes(reward.shape, value=value, next_value=next_value, terminated=terminated, truncated=truncated)
  delta = reward + gamma * next_value * (1 - terminated.astype(value.dtype)) - value
  carry_on = gamma * lam * (1 - (terminated | truncated).astype(value.dtype))

  def step(advantage: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    delta, decay = inputs
    advantage = delta + decay * advantage
    return advantage, advantage

  _, advantage = jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, carry_on), reverse=True)
  return advantage, advantage + value


def horizon_advantages(
  horizon: str,
  reward: jax.Array,
  value: jax.Array,
  bootstrap_value: jax.Array,
  terminated: jax.Array,
  truncated: jax.Array,
  last_value: jax.Array,
  gamma: float,
  lam: float,
) -> tuple[jax.Array, jax.Array]:
  """`gae` with the chosen meaning of the horizon.

  Args:
    horizon: `bootstrap`: the value of the dream's own last feature follows a truncated step.
      `terminal`: the horizon is an end like success is; nothing follows.
      `diwa`: truncation is ignored, so that the first feature of the next dream follows; the leak
      of DiWA's code, kept for comparison.
    reward, value, terminated, truncated: as in `gae`.
    bootstrap_value: [N, E], `next_value` of `gae`.
    last_value: [E], value of the state after the last step, after any restart; `diwa` only.
    gamma: discount per step.
    lam: decay of the estimator.

  Returns:
    Advantages [N, E] and returns [N, E].

  Raises:
    ValueError: unknown horizon, or shapes differ.
  """
  if horizon == "bootstrap":
    return gae(reward, value, bootstrap_value, terminated, truncated, gamma, lam)
  if horizon == "terminal":
    return gae(reward, value, bootstrap_value, terminated | truncated, truncated, gamma, lam)
  if horizon == "diwa":
    next_value = jnp.concatenate([value[1:], last_value[None]])
    return gae(reward, value, next_value, terminated, jnp.zeros_like(truncated), gamma, lam)
  raise ValueError(f"unknown horizon {horizon!r}; known: {', '.join(HORIZONS)}")


@struct.dataclass
class RewardScale:
  """Running standard deviation of the discounted return.

  Attributes:
    ret: [E], discounted return of each environment's current episode.
    mean: scalar.
    var: scalar.
    count: scalar, number of returns seen.
  """

  ret: jax.Array
  mean: jax.Array
  var: jax.Array
  count: jax.Array


def init_reward_scale(num_envs: int, dtype: jnp.dtype = jnp.float32) -> RewardScale:
  """Start of the running statistic for E environments."""
  return RewardScale(
    ret=jnp.zeros(num_envs, dtype),
    mean=jnp.zeros((), dtype),
    var=jnp.ones((), dtype),
    count=jnp.asarray(1e-4, dtype),
  )


def scale_rewards(
  state: RewardScale, reward: jax.Array, first: jax.Array, gamma: float, clip: float = 10.0
) -> tuple[jax.Array, RewardScale]:
  """Divides rewards by the running standard deviation of the discounted return.

  Args:
    state: statistic so far.
    reward: [N, E].
    first: [N, E] bool, true at the first step of an episode: its return restarts there.
    gamma: discount per step.
    clip: bound of the scaled reward.

  Returns:
    Scaled rewards [N, E] (not centred), and the statistic with these rewards in it.

  Raises:
    ValueError: shapes differ.

  Source: DPPO's running scale. Like there, batches are merged with `count` (Chan et al. 1979) while
  the variance divides by count - 1.
  """
  _check_shapes(reward.shape, first=first)
  _check_shapes(reward.shape[1:], ret=state.ret)

  def step(ret: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    reward, first = inputs
    ret = jnp.where(first, 0.0, gamma * ret) + reward
    return ret, ret

  ret, returns = jax.lax.scan(step, state.ret, (reward, first))
  number = returns.size
  total = state.count + number
  delta = returns.mean() - state.mean
  squares = state.var * state.count + returns.var() * number
  squares += jnp.square(delta) * state.count * number / total
  state = RewardScale(
    ret=ret,
    mean=state.mean + delta * number / total,
    var=squares / (total - 1),
    count=total,
  )
  return jnp.clip(reward / jnp.sqrt(state.var + 1e-8), -clip, clip), state
