"""What dreams alone say: whether actions matter in them, and how strange what they show is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wam_jax.training.imagination import World, random_actions
from wam_jax.types import Params, Takes


def action_distances(
  world: World, world_params: Params, takes: Takes, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """How far dreams of one start lie from each other, under other actions and under the same ones.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    takes: M of one task.
    key: random key.

  Returns:
    (random actions against the take's own, its own twice with other samples of the prior): [M] each, mean
    distance of the features over the frames of the take.
  """
  own_key, again_key, other_key, random_key = jax.random.split(key, 4)
  num, length = takes.mask.shape
  dreamt = lambda action, key: world.imagine_actions(world_params, takes.feature[:, 0], action[:, :-1], key)
  own = dreamt(takes.action, own_key)
  valid = takes.mask[:, 1:]

  def distance(other: jax.Array) -> jax.Array:
    apart = jnp.linalg.norm(own - other, axis=-1)
    return jnp.where(valid, apart, 0).sum(1) / jnp.maximum(valid.sum(1), 1)

  other = dreamt(random_actions(random_key, num, length, world.embodiment.binary), other_key)
  return distance(other), distance(dreamt(takes.action, again_key))


def nearest_distance(feature: jax.Array, known: jax.Array) -> jax.Array:
  """Distance to the nearest known feature.

  Args:
    feature: [N, F].
    known: [M, F], what the model was trained on.

  Returns:
    [N].
  """
  square = lambda x: jnp.square(x).sum(-1)
  apart = square(feature) + (square(known) - 2 * feature @ known.T).min(1)
  return jnp.sqrt(jnp.maximum(apart, 0))


def surprise(
  world: World, arranged: Params, feature: jax.Array, action: jax.Array, after: jax.Array
) -> jax.Array:
  """How unexpected what was seen is, given the frame before it and the action.

  Args:
    world: the frozen world model.
    arranged: its parameters, as `World.arrange` lays them out.
    feature: [B, F], filtered.
    action: [B, A], taken there.
    after: [B, F], filtered, one frame later.

  Returns:
    [B] nats: minus the log-probability of its code under the prior.
  """
  logits = world.prior_logits(arranged, feature, action)
  return -(jax.nn.log_softmax(logits) * world.latent(after).stoch).sum((-2, -1))
