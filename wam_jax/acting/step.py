"""One control step: filters a frame through the world model and, every H-th frame, samples a chunk."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wam_jax.core.actions import executable
from wam_jax.embodiment import Embodiment
from wam_jax.training import world_model as wm
from wam_jax.types import Latent, Params, features

State = dict[str, jax.Array]


def filter_frame(
  model: Any,
  params: Params,
  latent: Latent,
  observation: Mapping[str, jax.Array],
  prev_action: jax.Array,
  is_first: jax.Array,
  key: jax.Array | None,
) -> Latent:
  """Posterior after one frame.

  Args:
    model: world-model networks.
    params: their parameters.
    latent: [B, ...], before the frame.
    observation: the model's cameras uint8 [B, S, S, 3]; robot_obs [B, state_size], if the model reads it.
    prev_action: [B, A], the action that led to the frame.
    is_first: [B] bool.
    key: for a sample, or None for the mode.

  Returns:
    [B, ...].
  """
  pictures = {camera: observation[camera] for camera in model.cameras}
  robot_obs = observation.get("robot_obs", jnp.zeros((len(prev_action), model.embodiment.state_size)))
  embed = wm.encode_observation(model, params, pictures, robot_obs)
  return wm.filter_step(model, params, latent, embed, prev_action, is_first, key)


def sample_chunks(
  policy: Any, params: Params, latent: Latent, key: jax.Array, num_tasks: int, robot: Embodiment
) -> jax.Array:
  """Chunks as executed, by the evaluation variant of sampling.

  Args:
    policy: `sample(params, feature [M, F], key, deterministic=...) -> [M, H, A]`.
    params: stacked on a leading task axis K.
    latent: [K * M, ...], task-major.
    key: random key of all tasks.
    num_tasks: K.
    robot: that acts.

  Returns:
    [K * M, H, A] in [-1, 1], binary numbers -1 or 1.
  """
  feature = features(latent)
  feature = feature.reshape(num_tasks, -1, feature.shape[-1])
  sample = functools.partial(policy.sample, deterministic=True)
  chunk = jax.vmap(sample)(params, feature, jax.random.split(key, num_tasks))
  return executable(chunk.reshape(-1, *chunk.shape[2:]), robot.binary)


def frame_keys(key: jax.Array, t: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """Keys of control step t: of the posterior's sample, and of the chunk's noise."""
  frame_key, chunk_key = jax.random.split(jax.random.fold_in(key, t))
  return frame_key, chunk_key


def start_state(model: Any, params: Params, batch_size: int, chunk: int, seed: jax.Array | int) -> State:
  """State before the first frame, as plain arrays, so that any program can hold it.

  Args:
    model: world-model networks.
    params: their parameters.
    batch_size: B.
    chunk: H.
    seed: of all noise, 0 to 2**31 - 1.

  Returns:
    deter [B, D], stoch [B, S, C], robot [B, R] of a model that carries it, prev_action [B, A], chunk
    [B, H, A], step int32 (frames seen), key uint32.
  """
  latent = wm.initial_latent(model, params, batch_size)
  size = model.embodiment.action_size
  rest_action = jnp.broadcast_to(jnp.asarray(model.embodiment.rest_action), (batch_size, size))
  return _latent_arrays(latent) | {
    "prev_action": rest_action,
    "chunk": jnp.zeros((batch_size, chunk, size)),
    "step": jnp.zeros((), jnp.int32),
    "key": jax.random.key_data(jax.random.key(seed)),
  }


def _latent_arrays(latent: Latent) -> State:
  """What a state holds of a latent."""
  arrays = {"deter": latent.deter, "stoch": latent.stoch}
  return arrays if latent.robot is None else arrays | {"robot": latent.robot}


def act_step(
  model: Any,
  policy: Any,
  model_params: Params,
  policy_params: Params,
  state: State,
  observation: Mapping[str, jax.Array],
) -> tuple[State, jax.Array]:
  """One control step: filters the frame and, every H steps, samples a chunk.

  Args:
    model: world-model networks.
    policy: of `sample_chunks`.
    model_params: the model's.
    policy_params: the policy's, on a leading axis of length 1.
    state: from `start_state` or the step before.
    observation: of `filter_frame`.

  Returns:
    (next state, action [B, A]).
  """
  t, size = state["step"], state["chunk"].shape[1]
  stoch = state["stoch"]
  logits = jnp.zeros_like(stoch)  # no step reads them
  latent = Latent(deter=state["deter"], stoch=stoch, logits=logits, robot=state.get("robot"))
  frame_key, chunk_key = frame_keys(jax.random.wrap_key_data(state["key"]), t)
  is_first = jnp.broadcast_to(t == 0, stoch.shape[:1])
  latent = filter_frame(model, model_params, latent, observation, state["prev_action"], is_first, frame_key)
  chunk = jax.lax.cond(
    t % size == 0,
    lambda latent: sample_chunks(policy, policy_params, latent, chunk_key, 1, model.embodiment),
    lambda _: state["chunk"],
    latent,
  )
  action = jax.lax.dynamic_index_in_dim(chunk, t % size, 1, keepdims=False)
  new = {"prev_action": action, "chunk": chunk, "step": t + 1}
  return state | _latent_arrays(latent) | new, action
