"""The Gaussian policy on features: the simple alternative to the diffusion policy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from wam_jax.core import diffusion
from wam_jax.embodiment import CALVIN
from wam_jax.nn.layers import ResidualMLP, check_feature
from wam_jax.types import Params


class GaussianMLP(nn.Module):
  """Mean of a chunk from a feature, within +-1.

  Attributes:
    chunk: H.
    action: A.
    hidden: width.
    blocks: residual blocks of two layers.
  """

  chunk: int
  action: int
  hidden: int
  blocks: int

  @nn.compact
  def __call__(self, feature: jax.Array) -> jax.Array:
    """[..., F] -> [..., H, A]."""
    x = nn.Dense(self.hidden, name="feature_in")(feature)
    x = ResidualMLP(self.hidden, self.blocks, self.chunk * self.action, name="body")(x)
    return jnp.tanh(x).reshape(*feature.shape[:-1], self.chunk, self.action)


@dataclasses.dataclass(frozen=True)
class GaussianPolicy:
  """A Gaussian policy of fixed standard deviation: the simple alternative to `DiffusionPolicy`.

  For PPO it is a chain of a single denoising step, K' = 1: [nothing, chunk]. The parameters are
  {"base": network, "tuned": network} as there; only `tuned` acts.

  Attributes:
    feature_size: F.
    chunk: H.
    hidden: width of the network.
    blocks: residual blocks of two layers.
    sampling_std: standard deviation of stochastic samples, in action units.
    log_prob_std: standard deviation in log-probabilities.
    action: A.
  """

  feature_size: int
  chunk: int = 4
  hidden: int = 512
  blocks: int = 1
  sampling_std: float = 0.1
  log_prob_std: float = 0.1
  action: int = CALVIN.action_size

  @property
  def fine_tuned_steps(self) -> int:
    """K': the one step there is."""
    return 1

  @property
  def module(self) -> GaussianMLP:
    return GaussianMLP(self.chunk, self.action, self.hidden, self.blocks)

  def init(self, key: jax.Array) -> Params:
    """Random parameters of one network."""
    return self.module.init(key, jnp.zeros((1, self.feature_size)))["params"]

  def mean(self, network: Params, feature: jax.Array) -> jax.Array:
    """Most probable chunk of one network: [..., F] -> [..., H, A] within +-1.

    Raises:
      ValueError: a feature of another size.
    """
    check_feature(feature, self.feature_size)
    out: Any = self.module.apply({"params": network}, feature)
    return out

  def cloning_loss(self, network: Params, feature: jax.Array, chunk: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of the mean: the negative log-likelihood up to scale, as the deviation is fixed.

    Arguments as of `types.Policy`; the key is not used. Raises ValueError: a shape that does not fit.
    """
    mean = self.mean(network, feature)
    if chunk.shape != mean.shape:
      raise ValueError(f"chunk: expected {list(mean.shape)}, got {list(chunk.shape)}")
    return jnp.mean(jnp.square(mean - chunk))

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Noise for `sample_chain` over leading axes `shape`: zeros (nothing to start from), and one draw."""
    shape = (*shape, self.chunk, self.action)
    return jnp.zeros(shape), jax.random.normal(key, (1, *shape))

  def sample_chain(
    self,
    params: Params,
    feature: jax.Array,
    x_init: jax.Array,
    noise: jax.Array,
    deterministic: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """As `types.Policy`: x_init is only handed on, as the chain's first entry; deterministic is the mean.

    The noise [1, ..., H, A] is clamped to +-3. Raises ValueError: a shape that does not fit.
    """
    mean = self.mean(params["tuned"], feature)
    if x_init.shape != mean.shape or noise.shape != (1, *mean.shape):
      raise ValueError(
        f"x_init and noise: expected {list(mean.shape)} and {[1, *mean.shape]}, "
        f"got {list(x_init.shape)} and {list(noise.shape)}"
      )
    draw = jnp.clip(noise[0], -diffusion.NOISE_CLIP, diffusion.NOISE_CLIP)
    chunk = mean if deterministic else mean + self.sampling_std * draw
    return chunk, jnp.stack([x_init, chunk], -3)

  def sample(
    self, params: Params, feature: jax.Array, key: jax.Array, deterministic: bool = False
  ) -> jax.Array:
    """Chunk of actions [..., H, A], as `DiffusionPolicy.sample`; the deterministic one is the mean."""
    return self.sample_chain(params, feature, *self.draw_noise(key, feature.shape[:-1]), deterministic)[0]

  def log_prob(self, network: Params, feature: jax.Array, chain: jax.Array) -> jax.Array:
    """As `types.Policy`, of the tuned network. Raises ValueError: a shape that does not fit."""
    mean = self.mean(network, feature)
    expected = (*feature.shape[:-1], 2, self.chunk, self.action)
    if chain.shape != expected:
      raise ValueError(f"chain: expected {list(expected)}, got {list(chain.shape)}")
    return self._log_density((chain[..., 1, :, :] - mean)[..., None, :, :])

  def log_prob_of_noise(self, noise: jax.Array) -> jax.Array:
    """`log_prob` of a chain just drawn by `sample_chain` (stochastic): [1, ..., H, A] -> [..., 1, H, A]."""
    draw = jnp.clip(noise[0], -diffusion.NOISE_CLIP, diffusion.NOISE_CLIP)
    return self._log_density(self.sampling_std * draw[..., None, :, :])

  def _log_density(self, deviation: jax.Array) -> jax.Array:
    constant = math.log(self.log_prob_std) + 0.5 * math.log(2 * math.pi)
    return -0.5 * jnp.square(deviation / self.log_prob_std) - constant
