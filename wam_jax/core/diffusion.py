"""Denoising diffusion on action chunks: schedule, chains, chain log-probabilities.

Pure functions. A network enters only as a callable `eps(x, t)`, x [..., H, A] and t an int32
scalar, giving the predicted noise [..., H, A]; its parameters and condition are the caller's.
Denoising step t runs from K - 1 (noisiest) down to 0.

Source: DDPM (arXiv 2006.11239) equations 6, 7 and 15, the cosine schedule of arXiv 2102.09672, the
two-policy chain of DPPO (arXiv 2409.00588) section 4, and DDIM (arXiv 2010.02502) for acting with fewer
steps. The published constants are the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]

NOISE_CLIP = 3.0  # noise draws are clamped to +-3 standard deviations
CHUNK_CLIP = 1.0  # the predicted clean chunk is clamped to the range of actions
DETERMINISTIC_STD = 1e-3
COSINE_OFFSET = 0.008  # s, keeps the first beta away from 0


@struct.dataclass
class Schedule:
  """Tables over denoising steps, each [K] float32, indexed by t.

  Attributes:
    beta: variance of the noise that step t adds.
    alpha_bar: cumulative product of 1 - beta.
    sqrt_alpha_bar, sqrt_one_minus_alpha_bar: coefficients of the forward process.
    sqrt_recip_alpha_bar, sqrt_recipm1_alpha_bar: coefficients of x_0 from x_t and the noise.
    posterior_std: standard deviation of q(x_{t-1} | x_t, x_0).
    posterior_x0, posterior_xt: coefficients of its mean.
  """

  beta: np.ndarray
  alpha_bar: np.ndarray
  sqrt_alpha_bar: np.ndarray
  sqrt_one_minus_alpha_bar: np.ndarray
  sqrt_recip_alpha_bar: np.ndarray
  sqrt_recipm1_alpha_bar: np.ndarray
  posterior_std: np.ndarray
  posterior_x0: np.ndarray
  posterior_xt: np.ndarray

  @property
  def num_steps(self) -> int:
    """K."""
    return self.beta.shape[0]


def make_schedule(num_steps: int) -> Schedule:
  """Cosine schedule.

  Args:
    num_steps: K, at least 1.

  Returns:
    Schedule. Only the betas are computed in float64; the other tables follow in float32, as in
    DPPO, so that they agree entry by entry.

  Raises:
    ValueError: num_steps < 1.

  Source: arXiv 2102.09672 equation 17 at K + 1 equally spaced points. Nothing survives at the last
  one, so the last beta would be 1 and is cut to 0.999.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
  points = np.linspace(0.0, 1.0, num_steps + 1)
  survival = np.cos((points + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
  beta = np.clip(1 - survival[1:] / survival[:-1], 0.0, 0.999).astype(np.float32)
  one = np.float32(1)
  alpha = one - beta
  bar = np.cumprod(alpha, dtype=np.float32)
  previous = np.concatenate([np.ones(1, np.float32), bar[:-1]])
  variance = np.maximum(beta * (one - previous) / (one - bar), np.float32(1e-20))
  return Schedule(
    beta=beta,
    alpha_bar=bar,
    sqrt_alpha_bar=np.sqrt(bar),
    sqrt_one_minus_alpha_bar=np.sqrt(one - bar),
    sqrt_recip_alpha_bar=np.sqrt(one / bar),
    sqrt_recipm1_alpha_bar=np.sqrt(one / bar - one),
    posterior_std=np.sqrt(variance),
    posterior_x0=beta * np.sqrt(previous) / (one - bar),
    posterior_xt=(one - previous) * np.sqrt(alpha) / (one - bar),
  )


def _at(table: np.ndarray, t: jax.Array) -> jax.Array:
  """Entries of a [K] table for t [...], with two axes added to meet a chunk [..., H, A]."""
  return jnp.asarray(table)[t][..., None, None]


def _check_chunk(name: str, value: jax.Array, reference: jax.Array) -> None:
  if value.shape != reference.shape:
    raise ValueError(f"{name}: expected {list(reference.shape)}, got {list(value.shape)}")


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
  """Noisy chunk x_t from a clean one.

  Args:
    schedule: tables of K steps.
    x0: [..., H, A] in [-1, 1].
    t: [...] int32 in [0, K).
    noise: [..., H, A] standard normal.

  Returns:
    [..., H, A].

  Raises:
    ValueError: noise and x0, or t and the leading axes of x0, differ in shape.
  """
  _check_chunk("noise", noise, x0)
  if t.shape != x0.shape[:-2]:
    raise ValueError(f"t: expected {list(x0.shape[:-2])}, got {list(t.shape)}")
  return _at(schedule.sqrt_alpha_bar, t) * x0 + _at(schedule.sqrt_one_minus_alpha_bar, t) * noise


def predict_x0(schedule: Schedule, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
  """Clean chunk that the predicted noise stands for, clamped to +-1.

  Args:
    schedule: tables of K steps.
    x: [..., H, A], x_t.
    t: int32, broadcasting against the leading axes of x.
    eps: [..., H, A], predicted noise.

  Returns:
    [..., H, A].

  Raises:
    ValueError: eps and x differ in shape.
  """
  _check_chunk("eps", eps, x)
  x0 = _at(schedule.sqrt_recip_alpha_bar, t) * x - _at(schedule.sqrt_recipm1_alpha_bar, t) * eps
  return jnp.clip(x0, -CHUNK_CLIP, CHUNK_CLIP)


def posterior_mean(schedule: Schedule, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
  """Mean of x_{t-1} given x_t and the predicted noise, with x_0 clamped to +-1.

  Args:
    schedule: tables of K steps.
    x: [..., H, A], x_t.
    t: int32, broadcasting against the leading axes of x.
    eps: [..., H, A], predicted noise.

  Returns:
    [..., H, A].

  Raises:
    ValueError: eps and x differ in shape.

  Source: arXiv 2006.11239 equations 7 and 15.
  """
  x0 = predict_x0(schedule, x, t, eps)
  return _at(schedule.posterior_x0, t) * x0 + _at(schedule.posterior_xt, t) * x


def step_std(schedule: Schedule, t: jax.Array, min_std: float, deterministic: bool = False) -> jax.Array:
  """Standard deviation of denoising step t.

  Args:
    schedule: tables of K steps.
    t: [...] int32.
    min_std: floor of the stochastic variant, at all steps including the last.
    deterministic: floor 1e-3 instead, and exactly 0 at t = 0.

  Returns:
    [...] float32.
  """
  std = jnp.asarray(schedule.posterior_std)[t]
  if deterministic:
    return jnp.where(t == 0, 0.0, jnp.maximum(std, DETERMINISTIC_STD))
  return jnp.maximum(std, min_std)


def draw_noise(key: jax.Array, num_steps: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Standard normal noise for `sample_chain`: x_init `shape` and one draw per step [K, *shape]."""
  noise = jax.random.normal(key, (num_steps + 1, *shape))
  return noise[0], noise[1:]


def sample_chain(
  schedule: Schedule,
  eps_base: EpsFn,
  eps_tuned: EpsFn,
  x_init: jax.Array,
  noise: jax.Array,
  *,
  num_tuned: int,
  min_std: float = 0.1,
  deterministic: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Denoises a chunk: base network for the first K - K' steps, tuned network for the last K'.

  Args:
    schedule: tables of K steps.
    eps_base: noise prediction for t >= K'.
    eps_tuned: noise prediction for t < K'.
    x_init: [..., H, A] standard normal, not clamped.
    noise: [K, ..., H, A] standard normal, entry i belongs to t = K - 1 - i; clamped to +-3 here.
    num_tuned: K', between 0 and K.
    min_std: floor of the standard deviation (stochastic variant).
    deterministic: variant for evaluation; see `step_std`.

  Returns:
    The chunk [..., H, A] (not clamped), and the chain of the tuned steps [..., K'+1, H, A]: the
    input of step K' - 1 first, the chunk last.

  Raises:
    ValueError: num_tuned outside [0, K], or noise not [K, ..., H, A].
  """
  num_steps = schedule.num_steps
  if not 0 <= num_tuned <= num_steps:
    raise ValueError(f"num_tuned: expected 0 to {num_steps}, got {num_tuned}")
  if noise.shape != (num_steps, *x_init.shape):
    raise ValueError(f"noise: expected {[num_steps, *x_init.shape]}, got {list(noise.shape)}")
  noise = jnp.clip(noise, -NOISE_CLIP, NOISE_CLIP)
  t = jnp.arange(num_steps - 1, -1, -1, dtype=jnp.int32)
  std = step_std(schedule, t, min_std, deterministic)

  def make_step(eps: EpsFn) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def step(x: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
      t, std, noise = inputs
      x = posterior_mean(schedule, x, t, eps(x, t)) + std * noise
      return x, x

    return step

  cut = num_steps - num_tuned
  head, tail = (jax.tree.map(lambda a: a[s], (t, std, noise)) for s in (slice(0, cut), slice(cut, None)))
  # A plain fold: the base steps need not be kept.
  x, _ = jax.lax.scan(lambda x, i: (make_step(eps_base)(x, i)[0], None), x_init, head)
  start = x
  x, chain = jax.lax.scan(make_step(eps_tuned), x, tail)
  return x, jnp.moveaxis(jnp.concatenate([start[None], chain]), 0, -3)


def ddim_steps(num_steps: int, count: int) -> np.ndarray:
  """Steps that a chain of fewer steps visits, from the noisiest: [count] int32, K - 1 first.

  Args:
    num_steps: K.
    count: how many, 1 to K; K gives every step.

  Raises:
    ValueError: count outside [1, K].

  Source: the "trailing" spacing of arXiv 2305.08891: it starts where x is pure noise, as x_init is, and
  spends no network call on the nearly clean end. DPPO's own DDIM has the "leading" one.
  """
  if not 1 <= count <= num_steps:
    raise ValueError(f"ddim_steps: expected 1 to {num_steps}, got {count}")
  return (num_steps * np.arange(count, 0, -1) // count - 1).astype(np.int32)


def sample_ddim(
  schedule: Schedule,
  eps_base: EpsFn,
  eps_tuned: EpsFn,
  x_init: jax.Array,
  *,
  num_tuned: int,
  count: int,
) -> jax.Array:
  """Denoises a chunk in fewer steps, without noise: base network for t >= K', tuned network for t < K'.

  Args:
    schedule: tables of K steps.
    eps_base: noise prediction for t >= K'.
    eps_tuned: noise prediction for t < K'.
    x_init: [..., H, A] standard normal.
    num_tuned: K', between 0 and K.
    count: network calls, 1 to K.

  Returns:
    The chunk [..., H, A], in [-1, 1].

  Raises:
    ValueError: num_tuned outside [0, K], or count outside [1, K].

  Source: arXiv 2010.02502 equation 12 with eta = 0. Where x_0 is clamped, the noise is that which leads
  from the clamped x_0 to x_t (as in DPPO), so that x stays on the forward process.
  """
  if not 0 <= num_tuned <= schedule.num_steps:
    raise ValueError(f"num_tuned: expected 0 to {schedule.num_steps}, got {num_tuned}")
  t = ddim_steps(schedule.num_steps, count)
  survival = np.append(schedule.alpha_bar[t[1:]], np.float32(1))  # alpha_bar after each step
  steps = jnp.asarray(t), jnp.asarray(np.sqrt(survival)), jnp.asarray(np.sqrt(1 - survival))

  def make_step(eps: EpsFn) -> Callable[..., tuple[jax.Array, None]]:
    def step(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
      t, keep, spread = inputs
      x0 = predict_x0(schedule, x, t, eps(x, t))
      noise = x - _at(schedule.sqrt_alpha_bar, t) * x0
      return keep * x0 + spread * noise / _at(schedule.sqrt_one_minus_alpha_bar, t), None

    return step

  cut = int((t >= num_tuned).sum())
  head, tail = (jax.tree.map(lambda a: a[s], steps) for s in (slice(0, cut), slice(cut, None)))
  x, _ = jax.lax.scan(make_step(eps_base), x_init, head)
  return jax.lax.scan(make_step(eps_tuned), x, tail)[0]


def tuned_steps(num_tuned: int) -> jax.Array:
  """t of the transitions of a chain, noisiest first: [K'] int32 from K' - 1 to 0."""
  return jnp.arange(num_tuned - 1, -1, -1, dtype=jnp.int32)


def transition_log_prob(
  schedule: Schedule,
  x: jax.Array,
  x_next: jax.Array,
  t: jax.Array,
  eps: jax.Array,
  min_std: float = 0.1,
) -> jax.Array:
  """Log-density of each element of x_{t-1} under the Gaussian of step t.

  Args:
    schedule: tables of K steps.
    x: [..., H, A], x_t.
    x_next: [..., H, A], x_{t-1}.
    t: int32, broadcasting against the leading axes of x.
    eps: [..., H, A], predicted noise at (x, t).
    min_std: floor of the standard deviation.

  Returns:
    [..., H, A], per element: sum, mean and clamps are the caller's.

  Raises:
    ValueError: x, x_next and eps differ in shape.
  """
  _check_chunk("x_next", x_next, x)
  mean = posterior_mean(schedule, x, t, eps)
  std = step_std(schedule, t, min_std)[..., None, None]
  return -0.5 * jnp.square((x_next - mean) / std) - jnp.log(std) - 0.5 * float(np.log(2 * np.pi))


def noise_log_prob(
  schedule: Schedule, noise: jax.Array, num_tuned: int, sampling_std: float, min_std: float
) -> jax.Array:
  """`transition_log_prob` of a stochastic chain from the noise that drew it, without the network.

  Args:
    schedule: tables of K steps.
    noise: [K, ..., H, A], as given to `sample_chain`.
    num_tuned: K'.
    sampling_std: floor of the standard deviation that the chain was drawn with.
    min_std: floor of the standard deviation of the log-probability.

  Returns:
    [..., K', H, A].
  """
  t = tuned_steps(num_tuned)
  drawn = step_std(schedule, t, sampling_std)
  std = step_std(schedule, t, min_std)
  noise = jnp.clip(jnp.moveaxis(noise[noise.shape[0] - num_tuned :], 0, -3), -NOISE_CLIP, NOISE_CLIP)
  scaled = noise * (drawn / std)[:, None, None]
  return -0.5 * jnp.square(scaled) - jnp.log(std)[:, None, None] - 0.5 * float(np.log(2 * np.pi))
