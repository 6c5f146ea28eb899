"""Cloning demos: batches of chunks, and updates of one task by the policy's own loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from wam_jax.training import sharding
from wam_jax.training.tasks import repeat
from wam_jax.types import Metrics, Policy, Takes, TrainState


@struct.dataclass
class CloningData:
  """Demo frames of one task (stacked over tasks: a leading axis more), R rows, V chunk starts.

  Attributes:
    feature: [R, F].
    action: [R, A]; a chunk is H consecutive rows from a start.
    start: [V] int32, rows at which a whole chunk lies inside its demo; padded at the end.
    num_starts: scalar int32, how many of `start` count.
  """

  feature: jax.Array
  action: jax.Array
  start: jax.Array
  num_starts: jax.Array


def make_data(demos: Takes, chunk: int) -> CloningData:
  """Arranges demos for `make_update`.

  Args:
    demos: stacked over K tasks.
    chunk: H. Only starts with a whole chunk inside the demo are used.

  Returns:
    CloningData stacked over K tasks.

  Raises:
    ValueError: shapes differ, or a task without any whole chunk.
  """
  feature, action, mask = demos.feature, demos.action, demos.mask
  if feature.shape[:3] != mask.shape or action.shape[:3] != mask.shape:
    raise ValueError(f"feature {feature.shape}, action {action.shape} and mask {mask.shape} do not agree")
  tasks, _, length = mask.shape
  whole = np.zeros_like(mask)
  if length >= chunk:
    windows = np.lib.stride_tricks.sliding_window_view(mask, chunk, axis=2)
    whole[:, :, : length - chunk + 1] = windows.all(-1)
  rows = [np.flatnonzero(w) for w in whole.reshape(tasks, -1)]
  counts = [len(r) for r in rows]
  if min(counts) == 0:
    raise ValueError(f"task {counts.index(0)}: no demo is as long as a chunk of {chunk} actions")
  start = np.zeros((tasks, max(counts)), np.int32)
  for i, row in enumerate(rows):
    start[i, : len(row)] = row
  return CloningData(
    feature=jnp.asarray(feature.reshape(tasks, -1, feature.shape[-1])),
    action=jnp.asarray(action.reshape(tasks, -1, action.shape[-1])),
    start=jnp.asarray(start),
    num_starts=jnp.asarray(counts, jnp.int32),
  )


def sample_batch(
  data: CloningData, key: jax.Array, batch_size: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Uniform draw, with replacement: feature [B, F] and the chunk that follows [B, H, A]."""
  pick = jax.random.randint(key, (batch_size,), 0, data.num_starts)
  row = data.start[pick]
  return data.feature[row], data.action[row[:, None] + jnp.arange(chunk)]


def make_update(
  policy: Policy,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  ema_decay: float,
  mesh: Mesh | None = None,
) -> Callable[[TrainState, CloningData, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
  """Builds `update(state, data, key, num)`: `num` gradient steps of one task in one program.

  Args:
    policy: what is cloned.
    optimizer: from `training.state`.
    batch_size: B.
    ema_decay: share of the average kept per step.
    mesh: devices that the batch is divided over.

  Returns:
    A pure function, to be jitted and mapped over tasks; metrics are means over steps.
  """

  def step(state: TrainState, data: CloningData, key: jax.Array) -> tuple[TrainState, Metrics]:
    batch_key, loss_key = jax.random.split(key)
    feature, chunk = sharding.split(sample_batch(data, batch_key, batch_size, policy.chunk), mesh)
    loss, grad = jax.value_and_grad(lambda p: policy.cloning_loss(p, feature, chunk, loss_key))(state.params)
    updates, opt_state = optimizer.update(grad, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema_params, 1 - ema_decay)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema)
    return state, {"loss": loss, "grad_norm": optax.tree.norm(grad)}

  def update(
    state: TrainState, data: CloningData, key: jax.Array, num: jax.Array
  ) -> tuple[TrainState, Metrics]:
    return repeat(lambda s, k: step(s, data, k), state, key, num)

  return update
