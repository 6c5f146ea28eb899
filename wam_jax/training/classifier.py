"""How the success classifier learns from its pool, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.training import sharding
from wam_jax.training.classifier_pool import Pool, impossible_dreams, sample_batch
from wam_jax.training.imagination import World, random_actions
from wam_jax.training.tasks import repeat
from wam_jax.types import Metrics, Params, Takes, TrainState

BINS = 10  # equal parts of [0, 1], for the calibration error


def nt_xent(embedding: jax.Array, label: jax.Array, temperature: float) -> jax.Array:
  """NT-Xent with class labels.

  Every ordered pair of equal label is a positive pair; its anchor's negatives are all entries of
  another label.

  Args:
    embedding: [B, X], normalised here.
    label: [B].
    temperature: divides cosine similarities.

  Returns:
    Scalar, mean over positive pairs; 0 without any.

  Raises:
    ValueError: shapes differ.

  Source: SimCLR (arXiv 2002.05709) equation 1, with the positives of supervised labels.
  """
  if label.shape != embedding.shape[:1]:
    raise ValueError(f"label: expected {list(embedding.shape[:1])}, got {list(label.shape)}")
  # Not norm(): its gradient at 0 is not a number.
  unit = embedding * jax.lax.rsqrt(jnp.square(embedding).sum(-1, keepdims=True) + 1e-12)
  similarity = unit @ unit.T / temperature
  same = label[:, None] == label[None]
  negatives = jax.nn.logsumexp(jnp.where(same, -1e9, similarity), axis=1)
  # -log(e^s / (e^s + e^n)) = softplus(n - s)
  loss = jax.nn.softplus(negatives[:, None] - similarity)
  pairs = same & ~jnp.eye(len(label), dtype=bool)
  return jnp.where(pairs, loss, 0.0).sum() / jnp.maximum(pairs.sum(), 1)


def classifier_loss(
  classifier: SuccessClassifier,
  network: Params,
  feature: jax.Array,
  label: jax.Array,
  *,
  temperature: float,
  contrastive_weight: float,
  cross_entropy_weight: float,
) -> tuple[jax.Array, Metrics]:
  """Weighted sum of NT-Xent and cross-entropy.

  Args:
    classifier: sizes.
    network: parameters of one member.
    feature: [B, F].
    label: [B] bool.
    temperature: of NT-Xent.
    contrastive_weight: of NT-Xent.
    cross_entropy_weight: of the cross-entropy.

  Returns:
    The loss (scalar), and metrics: loss, contrastive, cross_entropy, accuracy.
  """
  embedding, logits = classifier.outputs(network, feature)
  target = label.astype(jnp.int32)
  contrastive = nt_xent(embedding, target, temperature)
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
  loss = contrastive_weight * contrastive + cross_entropy_weight * cross_entropy
  accuracy = ((logits[:, 1] > logits[:, 0]) == label).mean()
  metrics = {
    "loss": loss,
    "contrastive": contrastive,
    "cross_entropy": cross_entropy,
    "accuracy": accuracy,
  }
  return loss, metrics


def make_update(
  classifier: SuccessClassifier,
  optimizer: optax.GradientTransformation,
  config: Any,
  mesh: Mesh | None = None,
) -> Callable[[TrainState, Pool, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
  """Builds `update(state, pool, key, num)`: `num` gradient steps of one task in one program.

  Args:
    classifier: sizes.
    optimizer: from `training.state`.
    config: `config.classifier`.
    mesh: devices that the batch is divided over.

  Returns:
    A pure function, to be jitted and mapped over tasks; metrics are means over steps.
  """

  def member_loss(member: Params, pool: Pool, key: jax.Array) -> tuple[jax.Array, Metrics]:
    return classifier_loss(
      classifier,
      member,
      *sharding.split(sample_batch(pool, key, config.batch_size), mesh),
      temperature=config.temperature,
      contrastive_weight=config.contrastive_weight,
      cross_entropy_weight=config.cross_entropy_weight,
    )

  def step(state: TrainState, pool: Pool, key: jax.Array) -> tuple[TrainState, Metrics]:
    # Each member sees batches of its own. AdamW without clipping works on each number by itself, so that
    # one state serves all members.
    keys = jax.random.split(key, classifier.members)
    grads = jax.vmap(jax.grad(member_loss, has_aux=True), (0, None, 0))
    grad, metrics = grads(state.params, pool, keys)
    updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = jax.tree.map(jnp.mean, metrics)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def update(state: TrainState, pool: Pool, key: jax.Array, num: jax.Array) -> tuple[TrainState, Metrics]:
    return repeat(lambda s, k: step(s, pool, k), state, key, num)

  return update


def random_dream_margins(
  world: World,
  world_params: Params,
  classifier: SuccessClassifier,
  network: Params,
  start: jax.Array,
  key: jax.Array,
  *,
  length: int,
  stride: int,
) -> jax.Array:
  """Largest log-odds that a random-action dream ever gets where the reward would look.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    classifier: sizes.
    network: parameters of one task.
    start: [B, F].
    key: random key.
    length: actions per dream.
    stride: the reward looks every so many steps.

  Returns:
    [B].
  """
  action_key, dream_key = jax.random.split(key)
  action = random_actions(action_key, start.shape[0], length, world.embodiment.binary)
  feature = impossible_dreams(world, world_params, start, action, dream_key, stride)
  return classifier.margin(network, feature).max(1)


def take_scores(
  world: World,
  world_params: Params,
  classifier: SuccessClassifier,
  params: Params,
  takes: Takes,
  key: jax.Array,
  num_dreams: int,
) -> tuple[jax.Array, jax.Array]:
  """How much of a success takes look like, seen and dreamt with their own actions from their first frames.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    classifier: sizes.
    params: {"network", "threshold"} of one task.
    takes: of this task.
    key: of the prior's samples.
    num_dreams: L, dreams of each take.

  Returns:
    (of the real features [M, 1], of the dreams [M, L]): largest log-odds above the threshold at any frame
    after the first; above 0 the take is called a success.
  """

  def largest(feature: jax.Array) -> jax.Array:
    return jnp.where(takes.mask[:, 1:], classifier.score(params, feature), -jnp.inf).max(1)

  def dreamt(_: None, key: jax.Array) -> tuple[None, jax.Array]:
    return None, largest(world.imagine_actions(world_params, takes.feature[:, 0], takes.action[:, :-1], key))

  _, dreams = jax.lax.scan(dreamt, None, jax.random.split(key, num_dreams))
  return largest(takes.feature[:, 1:])[:, None], dreams.T


def calibrate(margin: np.ndarray, threshold: float, max_false_positives: float) -> np.ndarray:
  """Threshold on the log-odds of each task.

  Args:
    margin: [K, B], largest log-odds of random-action dreams.
    threshold: probability below which it never goes.
    max_false_positives: share of those dreams that may lie above.

  Returns:
    [K] float32.
  """
  lowest = np.log(threshold) - np.log1p(-threshold)
  quantile = np.quantile(margin, 1 - max_false_positives, axis=1, method="higher")
  return np.maximum(lowest, quantile).astype(np.float32)


def precision_recall(predicted: np.ndarray, label: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
  """Precision and recall over the masked-in entries; null where the denominator is 0.

  Args:
    predicted: [...] bool.
    label: [...] bool.
    mask: [...] bool.

  Returns:
    {"precision", "recall"}.

  Raises:
    ValueError: shapes differ.
  """
  if not predicted.shape == label.shape == mask.shape:
    raise ValueError(f"shapes differ: {predicted.shape}, {label.shape}, {mask.shape}")
  hits = (predicted & label & mask).sum()
  called, positive = (predicted & mask).sum(), (label & mask).sum()
  return {
    "precision": float(hits / called) if called else None,
    "recall": float(hits / positive) if positive else None,
  }


def calibration(probability: np.ndarray, label: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
  """How far probabilities can be trusted, over the masked-in entries; null without any.

  Args:
    probability: [...] in [0, 1].
    label: [...] bool.
    mask: [...] bool.

  Returns:
    {"calibration_error": mean distance between the probability and the share of successes of a bin, weighted
    by its entries; "brier": mean squared error of the probability}.

  Raises:
    ValueError: shapes differ.

  Source: arXiv 1706.04599, equation 3.
  """
  if not probability.shape == label.shape == mask.shape:
    raise ValueError(f"shapes differ: {probability.shape}, {label.shape}, {mask.shape}")
  p, y = probability[mask].astype(np.float64), label[mask].astype(np.float64)
  if not len(p):
    return {"calibration_error": None, "brier": None}
  row = np.minimum((p * BINS).astype(int), BINS - 1)
  off = np.abs(np.bincount(row, p - y, BINS))
  return {"calibration_error": float(off.sum() / len(p)), "brier": float(np.square(p - y).mean())}
