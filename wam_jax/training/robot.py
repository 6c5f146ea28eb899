"""The robot's state in the latent: its dynamics predicted open loop, and the loss they learn by."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wam_jax.nn import rssm
from wam_jax.nn.world_model import WorldModel
from wam_jax.training.world_model import apply, time_major
from wam_jax.types import Params


def starting(is_first: jax.Array) -> jax.Array:
  """The first two frames of each episode in a window, [B, T] bool: before them no change is known."""
  return is_first.at[:, 1:].max(is_first[:, :-1])


def roll_robot(
  model: WorldModel,
  params: Params,
  state: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  initial: jax.Array | None = None,
) -> jax.Array:
  """The robot's states predicted open loop from the first two frames of each episode in a window.

  Args:
    model: networks that carry the robot's state.
    params: their parameters.
    state: [B, T, P], as reported.
    prev_action: [B, T, A].
    is_first: [B, T] bool.
    initial: [B, 2 P], robot before the windows; None: zero.

  Returns:
    [B, T, P]; without meaning where `starting`.

  Raises:
    ValueError: shapes that do not belong together.
  """
  if state.shape[:2] != is_first.shape or prev_action.shape[:2] != is_first.shape:
    raise ValueError(
      f"state {list(state.shape)}, prev_action {list(prev_action.shape)} and is_first {list(is_first.shape)} "
      "must agree in [B, T]"
    )
  inputs = time_major((state, prev_action, is_first, starting(is_first)))

  def step(robot: jax.Array, frame: tuple) -> tuple[jax.Array, jax.Array]:
    state, action, first, seen = frame
    predicted = apply(model, params, "rssm.predict_robot", robot, action)
    robot = jnp.where(seen[:, None], rssm.seen_robot(state, robot, first), predicted)
    return robot, predicted[:, : state.shape[-1]]

  start = jnp.zeros((len(state), 2 * state.shape[-1])) if initial is None else initial
  return time_major(jax.lax.scan(step, start, inputs)[1])


def robot_loss(predicted: jax.Array, state: jax.Array, is_first: jax.Array) -> jax.Array:
  """Half the squared error of the robot's state, where it could be predicted.

  Args:
    predicted: [B, T, P], from `roll_robot`.
    state: [B, T, P], as reported.
    is_first: [B, T] bool.

  Returns:
    [B, T], 0 where `starting`: a prediction that knows no change would bias those that do.

  Raises:
    ValueError: shapes that do not belong together.
  """
  if predicted.shape != state.shape or state.shape[:2] != is_first.shape:
    raise ValueError(
      f"predicted {list(predicted.shape)}, state {list(state.shape)} and is_first {list(is_first.shape)} do "
      "not belong together"
    )
  return 0.5 * jnp.square(predicted - state).sum(-1) * ~starting(is_first)
