"""Optimisers and the state that every training stage carries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wam_jax.types import Params, TrainState


def make_optimizer(
  learning_rate: float,
  updates: int,
  *,
  warmup_updates: int = 0,
  final_scale: float = 1.0,
  weight_decay: float = 0.0,
  grad_clip: float = 0.0,
  eps: float = 1e-8,
  betas: tuple[float, float] = (0.9, 0.999),
) -> optax.GradientTransformation:
  """AdamW on all parameters, after clipping by global norm, with linear warm-up and cosine decay.

  Args:
    learning_rate: peak, reached after the warm-up.
    updates: total number of updates, at which the decay ends.
    warmup_updates: linear from 0.
    final_scale: in [0, 1], share of the peak at the last update.
    weight_decay: decoupled.
    grad_clip: global norm; 0 switches clipping off.
    eps: of Adam.
    betas: of Adam, decay of the first and of the second moment.
  """
  decay_updates = max(updates, warmup_updates + 1)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup_updates else learning_rate,
    learning_rate,
    warmup_updates,
    decay_updates,
    end_value=learning_rate * final_scale,
  )
  adamw = optax.adamw(schedule, *betas, eps=eps, weight_decay=weight_decay)
  return optax.chain(optax.clip_by_global_norm(grad_clip), adamw) if grad_clip else adamw


def make_train_state(
  params: Params, optimizer: optax.GradientTransformation, *, ema: bool = False, carry: Any = None
) -> TrainState:
  """State before the first update; with `ema`, the average starts at the parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    carry=carry,
  )
