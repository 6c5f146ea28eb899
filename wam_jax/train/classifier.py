"""Training the success classifier on real features and on dreams, and measuring it.

What a dream shows is unlike what a camera shows, so the classifier is trained on both, and on dreams
that cannot have succeeded: precision on real demos says nothing about those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.train import sharding
from wam_jax.train.imagination import World, random_actions
from wam_jax.train.tasks import repeat
from wam_jax.types import Metrics, Params, Takes, TrainState

# Share of a batch for: success in demos, success in dreams of demos, the rest of demos, the rest of
# dreams of demos, dreams that cannot have succeeded; and where there are failed takes, these and dreams of
# their actions. By the number of groups.
SHARES = {5: (0.25, 0.25, 0.15, 0.15, 0.2), 7: (0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1)}
POSITIVE = (True, True, False, False, False, False, False)
ROUNDS = 2  # how often all demos are dreamt
BINS = 10  # equal parts of [0, 1], for the calibration error


@struct.dataclass
class Pool:
  """Labelled features of one task (stacked over tasks: a leading axis more).

  Attributes:
    feature: [P, F].
    row: [G, L] int32, rows of `feature` in each group of SHARES, padded at the end.
    count: [G] int32, how many of each group count; never 0.
  """

  feature: jax.Array
  row: jax.Array
  count: jax.Array


def demo_dreams(
  world: World, world_params: Params, demos: Takes, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Demos continued in imagination from a random frame before success, with the demo's own actions.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    demos: of one task.
    key: random key.

  Returns:
    Features [M, T-1, F] after each action, the demo's labels at those times [M, T-1] bool, and
    which count [M, T-1] bool.
  """
  success, mask = demos.success, demos.mask
  num, length = mask.shape
  before = mask & ~jnp.cumsum(success, 1).astype(bool)
  start_key, dream_key = jax.random.split(key)
  first = jnp.floor(jax.random.uniform(start_key, (num,)) * before.sum(1)).astype(jnp.int32)
  now = first[:, None] + jnp.arange(length - 1)
  later = jnp.minimum(now + 1, length - 1)
  rows = jnp.arange(num)[:, None]
  action = demos.action[rows, jnp.minimum(now, length - 1)]
  dreamt = world.imagine_actions(world_params, demos.feature[rows[:, 0], first], action, dream_key)
  valid = mask[rows, later] & (now + 1 < length) & mask[:, :1]
  return dreamt, success[rows, later] & valid, valid


def impossible_dreams(
  world: World,
  world_params: Params,
  start: jax.Array,
  action: jax.Array,
  key: jax.Array,
  stride: int,
) -> jax.Array:
  """Dreams from start frames under actions that were not made for them.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    start: [B, F].
    action: [B, T, 7].
    key: random key.
    stride: every how many steps a feature is kept (H: those that the reward will see).

  Returns:
    [B, T // stride, F].
  """
  return world.imagine_actions(world_params, start, action, key)[:, stride - 1 :: stride]


def make_pool(
  world: World,
  world_params: Params,
  demos: Takes,
  start: jax.Array,
  key: jax.Array,
  *,
  num_dreams: int,
  length: int,
  stride: int,
  failed: Takes | None = None,
) -> Pool:
  """Labelled features of all tasks.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    demos: stacked over K tasks.
    start: [K, B, F], start frames of dreams, B at least `num_dreams`.
    key: random key.
    num_dreams: per task, of random actions; as many again of other tasks' actions (if there are any).
    length: actions per such dream.
    stride: every how many steps of them is kept.
    failed: takes that failed, likewise. Without them a hand that goes through the right motion
      beside the handle is never seen to fail, neither in demos nor in random dreams, and the pose of the
      hand alone tells success.

  Returns:
    Pool stacked over K tasks.

  Raises:
    ValueError: a task whose demos never show success, or always.
  """
  success, mask = demos.success & demos.mask, demos.mask
  for k in range(len(mask)):
    if not success[k].any() or not (mask[k] & ~success[k]).any():
      raise ValueError(f"task {k}: its demos hold no frame {'without' if success[k].any() else 'of'} success")
  num_tasks, size = len(mask), demos.feature.shape[-1]
  dream_demos = jax.jit(functools.partial(demo_dreams, world))
  dream_others = jax.jit(functools.partial(impossible_dreams, world, stride=stride))
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

  def dreamt(takes: Takes, k: int, key: jax.Array) -> list[np.ndarray]:
    of_task = jax.tree.map(lambda x: jnp.asarray(x[k]), takes)
    parts = jax.device_get([dream_demos(world_params, of_task, k) for k in jax.random.split(key, ROUNDS)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]

  pools: list[list[np.ndarray]] = []
  for k in range(num_tasks):
    task_key = jax.random.fold_in(key, k)
    feature, label, valid = dreamt(demos, k, jax.random.fold_in(task_key, 0))

    actions = [random_actions(jax.random.fold_in(task_key, 1), num_dreams, length)]
    if num_tasks > 1:
      actions.append(jnp.asarray(_other_actions(demos.action, mask, k, num_dreams, length, rng)))
    keys = jax.random.split(jax.random.fold_in(task_key, 2), len(actions))
    refused = [dream_others(world_params, start[k, :num_dreams], *x) for x in zip(actions, keys, strict=True)]
    groups = [
      demos.feature[k][success[k]],
      feature[label],
      demos.feature[k][mask[k] & ~success[k]],
      feature[valid & ~label],
      np.concatenate([np.asarray(x).reshape(-1, size) for x in refused]),
    ]
    # A group may be empty when demos are few; its twin of the same label stands in.
    for empty, twin in ((1, 0), (3, 2), (4, 2)):
      groups[empty] = groups[empty] if len(groups[empty]) else groups[twin]
    if failed is not None:
      feature, _, valid = dreamt(failed, k, jax.random.fold_in(task_key, 3))
      groups += [failed.feature[k][failed.mask[k]], feature[valid]]
    pools.append(groups)
  return _stack_pools(pools)


def _other_actions(
  action: np.ndarray, mask: np.ndarray, task: int, num: int, length: int, rng: np.random.Generator
) -> np.ndarray:
  """Actions of random demos of other tasks, [num, length, 7], the last one repeated."""
  other = (task + rng.integers(1, len(mask), num)) % len(mask)
  demo = [rng.choice(np.flatnonzero(mask[o].any(-1))) for o in other]
  drawn = action[other, demo][:, :length]
  return np.pad(drawn, ((0, 0), (0, length - drawn.shape[1]), (0, 0)), mode="edge")


def _stack_pools(pools: list[list[np.ndarray]]) -> Pool:
  """Groups of features of each task, as one padded array and tables of its rows."""
  num_tasks, size = len(pools), pools[0][0].shape[-1]
  longest = max(len(g) for groups in pools for g in groups)
  most = max(sum(len(g) for g in groups) for groups in pools)
  feature = np.zeros((num_tasks, most, size), np.float32)
  row = np.zeros((num_tasks, len(pools[0]), longest), np.int32)
  count = np.zeros((num_tasks, len(pools[0])), np.int32)
  for k, groups in enumerate(pools):
    offset = 0
    for g, group in enumerate(groups):
      feature[k, offset : offset + len(group)] = group
      row[k, g, : len(group)] = offset + np.arange(len(group))
      count[k, g] = len(group)
      offset += len(group)
  return Pool(feature=jnp.asarray(feature), row=jnp.asarray(row), count=jnp.asarray(count))


def sample_batch(pool: Pool, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
  """Features [B, F] and labels [B] bool, with the shares of SHARES."""
  shares = SHARES[pool.count.shape[0]]
  edges = np.round(np.cumsum((0, *shares)) * batch_size).astype(int)
  group = np.repeat(np.arange(len(shares)), np.diff(edges))
  pick = jax.random.randint(key, (batch_size,), 0, pool.count[group])
  return pool.feature[pool.row[group, pick]], jnp.asarray(np.asarray(POSITIVE)[group])


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
    optimizer: from `train.state`.
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
  action = random_actions(action_key, start.shape[0], length)
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
