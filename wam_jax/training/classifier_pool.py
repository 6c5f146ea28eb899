"""Labelled features that the success classifier learns from.

What a dream shows is unlike what a camera shows, so the classifier is trained on both, and on dreams
that cannot have succeeded: precision on real demos says nothing about those.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wam_jax.training.imagination import World, random_actions
from wam_jax.types import Params, Takes

# Share of a batch for: success in demos, success in dreams of demos, the rest of demos, the rest of
# dreams of demos, dreams that cannot have succeeded; and where there are failed takes, these and dreams of
# their actions. By the number of groups.
SHARES = {5: (0.25, 0.25, 0.15, 0.15, 0.2), 7: (0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1)}
POSITIVE = (True, True, False, False, False, False, False)
ROUNDS = 2  # how often all demos are dreamt


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
    action: [B, T, A].
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

    actions = [random_actions(jax.random.fold_in(task_key, 1), num_dreams, length, world.embodiment.binary)]
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
  """Actions of random demos of other tasks, [num, length, A]; padded with rest, as demos are."""
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
