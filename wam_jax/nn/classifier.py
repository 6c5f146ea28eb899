"""Success classifier on features: the reward of imagination."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from wam_jax.nn.layers import check_feature
from wam_jax.types import Params


class ClassifierMLP(nn.Module):
  """Embedding network and a two-class head.

  Attributes:
    embed: widths of the embedding's layers, the last one its size.
    hidden: width of the head.
  """

  embed: Sequence[int]
  hidden: int

  @nn.compact
  def __call__(self, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., F] -> embedding [..., X] (not normalised) and logits [..., 2] (failure, success)."""
    x = feature
    for i, width in enumerate(self.embed[:-1]):
      x = nn.relu(nn.Dense(width, name=f"embed{i}")(x))
    embedding = nn.Dense(self.embed[-1], name="embedding")(x)
    x = nn.relu(nn.Dense(self.hidden, name="head")(nn.relu(embedding)))
    return embedding, nn.Dense(2, name="output")(x)


@dataclasses.dataclass(frozen=True)
class SuccessClassifier:
  """Static sizes and pure functions of the parameters of one task's classifier.

  Parameters are {"network": Flax dict with leaves [M, ...], "threshold": scalar}. Success is what all
  members call so: a policy that has found the mistakes of one has not found those of the others. The
  threshold is on the difference of the two logits, where probabilities near 1 can still be told apart.

  Attributes:
    feature_size: F.
    embed: widths of the embedding's layers.
    hidden: width of the head.
    members: M, independently initialised networks.
  """

  feature_size: int
  embed: tuple[int, ...]
  hidden: int
  members: int = 1

  @property
  def module(self) -> ClassifierMLP:
    return ClassifierMLP(self.embed, self.hidden)

  def init(self, key: jax.Array) -> Params:
    """Random parameters of the network, leaves [M, ...]."""
    one = lambda key: self.module.init(key, jnp.zeros((1, self.feature_size)))["params"]
    return jax.vmap(one)(jax.random.split(key, self.members))

  def margin(self, network: Params, feature: jax.Array) -> jax.Array:
    """Log-odds of success, the smallest of all members: [..., F] -> [...].

    Raises:
      ValueError: another feature size.
    """
    return self.margins(network, feature).min(0)

  def margins(self, network: Params, feature: jax.Array) -> jax.Array:
    """Log-odds of success by member: [..., F] -> [M, ...].

    Raises:
      ValueError: another feature size.
    """
    check_feature(feature, self.feature_size)
    _, logits = jax.vmap(lambda member: self.outputs(member, feature))(network)
    return logits[..., 1] - logits[..., 0]

  def outputs(self, network: Params, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of one member: embedding [..., X] and logits [..., 2] (failure, success)."""
    outputs: Any = self.module.apply({"params": network}, feature)
    return outputs

  def __call__(self, params: Params, feature: jax.Array) -> jax.Array:
    """Probability of success: [..., F] -> [...] in [0, 1]."""
    return jax.nn.sigmoid(self.margin(params["network"], feature))

  def score(self, params: Params, feature: jax.Array) -> jax.Array:
    """Log-odds above the threshold: [..., F] -> [...]."""
    return self.margin(params["network"], feature) - params["threshold"]

  def success(self, params: Params, feature: jax.Array) -> jax.Array:
    """Whether the log-odds exceed the threshold: [..., F] -> [...] bool."""
    return self.margin(params["network"], feature) > params["threshold"]
