"""The diffusion policy on features."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from wam_jax.core import diffusion
from wam_jax.embodiment import CALVIN
from wam_jax.nn.layers import ResidualMLP, check_feature, mish
from wam_jax.types import Params


def time_embedding(t: jax.Array, size: int) -> jax.Array:
  """Sinusoidal embedding of denoising steps: sines, then cosines.

  Args:
    t: [...] int32.
    size: even, at least 4.

  Returns:
    [..., size].

  Raises:
    ValueError: size odd or below 4.
  """
  if size < 4 or size % 2:
    raise ValueError(f"size: expected an even number of at least 4, got {size}")
  half = size // 2
  frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / (half - 1))
  angle = t[..., None].astype(jnp.float32) * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class DiffusionMLP(nn.Module):
  """Noise prediction from (noisy chunk, denoising step, feature).

  The first layer acts on the three inputs side by side. It is held as three matrices, so that the
  feature's part is computed once per chunk (`condition`) and the step's part once per call
  (`time_table`), not once per denoising step.

  Attributes:
    chunk: H.
    action: A.
    hidden: width.
    blocks: residual blocks of two layers.
    time_dim: width of the time embedding.
    num_steps: K.
  """

  chunk: int
  action: int
  hidden: int
  blocks: int
  time_dim: int
  num_steps: int

  def setup(self) -> None:
    self.time_first = nn.Dense(2 * self.time_dim)
    self.time_second = nn.Dense(self.time_dim)
    self.chunk_in = nn.Dense(self.hidden, use_bias=False)
    self.time_in = nn.Dense(self.hidden, use_bias=False)
    self.feature_in = nn.Dense(self.hidden)
    self.body = ResidualMLP(self.hidden, self.blocks, self.chunk * self.action)

  def condition(self, feature: jax.Array) -> jax.Array:
    """The feature's part of the first layer: [..., F] -> [..., hidden]."""
    return self.feature_in(feature)

  def time_table(self) -> jax.Array:
    """The time embedding's part of the first layer for every step: [K, hidden]."""
    x = time_embedding(jnp.arange(self.num_steps), self.time_dim)
    return self.time_in(self.time_second(mish(self.time_first(x))))

  def denoise(self, x: jax.Array, time: jax.Array, condition: jax.Array) -> jax.Array:
    """Predicted noise.

    Args:
      x: [..., H, A].
      time: rows of `time_table`, broadcasting to [..., hidden].
      condition: from `condition`, broadcasting to [..., hidden].

    Returns:
      [..., H, A].
    """
    flat = x.reshape(*x.shape[:-2], self.chunk * self.action)
    return self.body(self.chunk_in(flat) + time + condition).reshape(x.shape)

  def __call__(self, x: jax.Array, t: jax.Array, feature: jax.Array) -> jax.Array:
    return self.denoise(x, self.time_table()[t], self.condition(feature))


@dataclasses.dataclass(frozen=True)
class DiffusionPolicy:
  """A diffusion policy: static sizes and pure functions of its parameters.

  Parameters of one network are a Flax dict. The policy's parameters are
  {"base": network, "tuned": network}: `base` makes the first K - K' denoising steps, `tuned` the
  last K'. After cloning both are the same network.

  Attributes:
    feature_size: F.
    chunk: H.
    hidden: width of the network.
    blocks: residual blocks of two layers.
    time_dim: width of the time embedding.
    denoising_steps: K.
    fine_tuned_steps: K'.
    min_sampling_std: floor of the standard deviation when sampling.
    min_log_prob_std: floor of the standard deviation in log-probabilities.
    action: A.
    ddim_steps: network calls of a deterministic `sample`, by DDIM; 0: all K steps of DDPM. Stochastic
      samples and chains, PPO's among them, always take all K.
  """

  feature_size: int
  chunk: int = 4
  hidden: int = 512
  blocks: int = 1
  time_dim: int = 16
  denoising_steps: int = 20
  fine_tuned_steps: int = 10
  min_sampling_std: float = 0.1
  min_log_prob_std: float = 0.1
  action: int = CALVIN.action_size
  ddim_steps: int = 0

  def __post_init__(self) -> None:
    if not 1 <= self.fine_tuned_steps <= self.denoising_steps:
      raise ValueError(
        f"fine_tuned_steps: expected 1 to denoising_steps = {self.denoising_steps}, "
        f"got {self.fine_tuned_steps}"
      )
    if not 0 <= self.ddim_steps <= self.denoising_steps:
      raise ValueError(
        f"ddim_steps: expected 0 to denoising_steps = {self.denoising_steps}, got {self.ddim_steps}"
      )

  @property
  def module(self) -> DiffusionMLP:
    return DiffusionMLP(
      self.chunk, self.action, self.hidden, self.blocks, self.time_dim, self.denoising_steps
    )

  @property
  def schedule(self) -> diffusion.Schedule:
    return diffusion.make_schedule(self.denoising_steps)

  def init(self, key: jax.Array) -> Params:
    """Random parameters of one network."""
    x = jnp.zeros((1, self.chunk, self.action))
    t = jnp.zeros((1,), jnp.int32)
    return self.module.init(key, x, t, jnp.zeros((1, self.feature_size)))["params"]

  def _apply(self, network: Params, *args: jax.Array, method: str) -> jax.Array:
    out: Any = self.module.apply({"params": network}, *args, method=method)
    return out

  def eps(self, network: Params, x: jax.Array, t: jax.Array, feature: jax.Array) -> jax.Array:
    """Predicted noise of one network.

    Args:
      network: parameters of one network.
      x: [..., H, A].
      t: [...] int32.
      feature: [..., F].

    Returns:
      [..., H, A].

    Raises:
      ValueError: a shape that does not fit.
    """
    check_feature(feature, self.feature_size)
    if x.shape != (*feature.shape[:-1], self.chunk, self.action):
      raise ValueError(f"x: expected {[*feature.shape[:-1], self.chunk, self.action]}, got {list(x.shape)}")
    return self._apply(network, x, t, feature, method="__call__")

  def cloning_loss(self, network: Params, feature: jax.Array, chunk: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of the predicted noise.

    Args:
      network: parameters of one network.
      feature: [B, F].
      chunk: [B, H, A] in [-1, 1].
      key: draws t and the noise.

    Returns:
      Scalar.

    Raises:
      ValueError: a shape that does not fit.

    Source: arXiv 2006.11239 equation 14.
    """
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, chunk.shape[:1], 0, self.denoising_steps)
    noise = jax.random.normal(noise_key, chunk.shape)
    x = diffusion.q_sample(self.schedule, chunk, t, noise)
    return jnp.mean(jnp.square(self.eps(network, x, t, feature) - noise))

  def _eps_fn(self, network: Params, feature: jax.Array) -> diffusion.EpsFn:
    table = self._apply(network, method="time_table")
    condition = self._apply(network, feature, method="condition")
    return lambda x, t: self._apply(network, x, table[t], condition, method="denoise")

  def sample_chain(
    self,
    params: Params,
    feature: jax.Array,
    x_init: jax.Array,
    noise: jax.Array,
    deterministic: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """As `types.Policy`; all noise is standard normal."""
    check_feature(feature, self.feature_size)
    return diffusion.sample_chain(
      self.schedule,
      self._eps_fn(params["base"], feature),
      self._eps_fn(params["tuned"], feature),
      x_init,
      noise,
      num_tuned=self.fine_tuned_steps,
      min_std=self.min_sampling_std,
      deterministic=deterministic,
    )

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Noise for `sample_chain` over leading axes `shape`."""
    return diffusion.draw_noise(key, self.denoising_steps, (*shape, self.chunk, self.action))

  def sample(
    self, params: Params, feature: jax.Array, key: jax.Array, deterministic: bool = False
  ) -> jax.Array:
    """As `types.Policy`; see `core.actions.executable` for what is executed.

    The deterministic variant, for evaluation, draws its first noise from the key too; then there is little
    noise, and none at the last step. With `ddim_steps` there is none at all, in so many steps.
    """
    x_init, noise = self.draw_noise(key, feature.shape[:-1])
    if not (deterministic and self.ddim_steps):
      return self.sample_chain(params, feature, x_init, noise, deterministic)[0]
    check_feature(feature, self.feature_size)
    return diffusion.sample_ddim(
      self.schedule,
      self._eps_fn(params["base"], feature),
      self._eps_fn(params["tuned"], feature),
      x_init,
      num_tuned=self.fine_tuned_steps,
      count=self.ddim_steps,
    )

  def log_prob(self, network: Params, feature: jax.Array, chain: jax.Array) -> jax.Array:
    """As `types.Policy`, of the tuned network. Raises ValueError: a shape that does not fit."""
    check_feature(feature, self.feature_size)
    expected = (*feature.shape[:-1], self.fine_tuned_steps + 1, self.chunk, self.action)
    if chain.shape != expected:
      raise ValueError(f"chain: expected {list(expected)}, got {list(chain.shape)}")
    t = diffusion.tuned_steps(self.fine_tuned_steps)
    condition = self._apply(network, feature, method="condition")[..., None, :]
    time = self._apply(network, method="time_table")[t]
    x, x_next = chain[..., :-1, :, :], chain[..., 1:, :, :]
    eps = self._apply(network, x, time, condition, method="denoise")
    return diffusion.transition_log_prob(self.schedule, x, x_next, t, eps, self.min_log_prob_std)

  def log_prob_of_noise(self, noise: jax.Array) -> jax.Array:
    """As `types.Policy`: equal to `log_prob` up to rounding, without running the network."""
    return diffusion.noise_log_prob(
      self.schedule, noise, self.fine_tuned_steps, self.min_sampling_std, self.min_log_prob_std
    )
