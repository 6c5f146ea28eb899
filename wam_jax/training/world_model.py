"""The world model as pure functions: filtering and imagination."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from wam_jax.core import distributions
from wam_jax.nn import recurrence, rssm
from wam_jax.nn.world_model import WorldModel
from wam_jax.types import Batch, Latent, Params


def init_params(model: WorldModel, key: jax.Array) -> Params:
  """Initial parameters."""
  picture = jnp.zeros((1, model.image_size, model.image_size, 3), jnp.uint8)
  pictures = dict.fromkeys(model.cameras, picture)
  return jax.jit(model.init)(key, pictures, jnp.zeros((1, model.embodiment.state_size)))["params"]


@functools.lru_cache(maxsize=8)
def param_shapes(model: WorldModel) -> Params:
  """Shapes and types of `init_params`: kept, for each loaded policy asks for them and tracing takes 0.3 s."""
  return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def apply(model: WorldModel, params: Params, method: str, *args: Any) -> Any:
  """Runs a method of the networks; "rssm.NAME" is one of the recurrent model."""
  bound = operator.attrgetter(method)
  return model.apply({"params": params}, *args, method=lambda module, *args: bound(module)(*args))


def time_major(tree: Any) -> Any:
  """Leaves [B, T, ...] as [T, B, ...], and back."""
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def initial_latent(model: WorldModel, params: Params, batch_size: int) -> Latent:
  """State before the first frame, [B, ...]: zero, or learned where the model says so (LUMOS)."""
  robot = jnp.zeros((batch_size, model.robot_size)) if model.carries_robot else None
  if not model.learned_initial_state:
    deter, stoch = jnp.zeros((batch_size, model.deter)), jnp.zeros((batch_size, model.stoch, model.classes))
  else:
    deter, stoch = apply(model, params, "rssm.initial_state")
    deter, stoch = (jnp.broadcast_to(x, (batch_size, *x.shape)) for x in (deter, stoch))
  # Logits in a buffer of their own: a training state holding this is donated.
  return Latent(deter=deter, stoch=stoch, logits=jnp.zeros_like(stoch), robot=robot)


def encode(model: WorldModel, params: Params, batch: Batch) -> jax.Array:
  """Encoder embeddings e_t of a batch of windows: [B, T, E + P]."""
  pictures = {camera: batch.pictures[camera] for camera in model.cameras}
  return apply(model, params, "encode", pictures, batch.robot_obs)


def encode_observation(
  model: WorldModel, params: Params, pictures: Mapping[str, jax.Array], robot_obs: jax.Array
) -> jax.Array:
  """Embedding of frames: the model's cameras uint8 [B, S, S, 3], robot_obs [B, state_size] -> [B, E + P]."""
  return apply(model, params, "encode", pictures, robot_obs)


def decode(model: WorldModel, params: Params, feature: jax.Array) -> dict[str, jax.Array]:
  """Pictures of features [..., F], in about [-1, 1]."""
  return apply(model, params, "decode", feature)


def latent_noise(model: WorldModel, key: jax.Array | None, lead: tuple[int, ...]) -> jax.Array | None:
  """Noise [*lead, S, C] for samples of z, or None for modes (no key)."""
  return None if key is None else distributions.gumbel(key, (*lead, model.stoch, model.classes))


class _Frames(struct.PyTreeNode):
  """What filtering reads of frames [..., B]: arrays that do not depend on the state, and noise.

  Attributes:
    embed_term: [..., B, hidden].
    action_term: [..., B, hidden], of the action before.
    action: [..., B, A], the action before.
    robot: [..., B, P], the state that the robot reports, if the model carries it.
    is_first: [..., B] bool.
    noise: [..., B, S, C], or None for modes.
    hidden: [..., B] bool, frames to be imagined; None: none.
  """

  embed_term: jax.Array
  action_term: jax.Array
  action: jax.Array
  robot: jax.Array | None
  is_first: jax.Array
  noise: jax.Array | None
  hidden: jax.Array | None = None


def _frames(
  model: WorldModel,
  params: Params,
  embed: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  noise: jax.Array | None,
  hidden: jax.Array | None = None,
) -> _Frames:
  return _Frames(
    embed_term=apply(model, params, "rssm.embed_term", embed),
    action_term=apply(model, params, "rssm.action_term", prev_action),
    action=prev_action,
    robot=embed[..., model.embed :] if model.carries_robot else None,
    is_first=is_first,
    noise=noise,
    hidden=hidden,
  )


def _posterior_step(
  model: WorldModel, params: Params, latent: Latent, frame: _Frames
) -> tuple[Latent, jax.Array | None]:
  """Latent [B, ...] after a frame, and the prior's logits [B, S, C] if frames can be imagined, or None."""
  keep = 1.0 - frame.is_first.astype(latent.deter.dtype)
  latent = jax.tree.map(lambda x: x * keep.reshape(-1, *[1] * (x.ndim - 1)), latent)
  deter = apply(model, params, "rssm.recur", latent.deter, latent.stoch, latent.robot, frame.action_term)
  posterior = logits = apply(model, params, "rssm.posterior_logits", deter, frame.embed_term)
  robot = prior = None
  if frame.robot is not None and latent.robot is not None:
    robot = rssm.seen_robot(frame.robot, latent.robot, frame.is_first)
  if frame.hidden is not None:
    imagined = frame.hidden[:, None]
    if robot is not None:
      predicted = apply(model, params, "rssm.predict_robot", latent.robot, frame.action)
      # The robot's dynamics learn from its own state alone (`roll_robot`), not from pictures.
      robot = jnp.where(imagined, jax.lax.stop_gradient(predicted), robot)
    prior = apply(model, params, "rssm.prior_logits", deter, robot)
    logits = jnp.where(imagined[..., None], prior, logits)
  stoch = distributions.one_hot(logits, frame.noise)
  return Latent(deter=deter, stoch=stoch, logits=posterior, robot=robot), prior


def observe(
  model: WorldModel,
  params: Params,
  embed: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  noise: jax.Array | None,
  initial: Latent | None = None,
  remat: bool = False,
  hidden: jax.Array | None = None,
) -> tuple[Latent, Latent]:
  """Filters windows. Differentiable in reverse mode only, unless `remat`: see `recurrence.scan`.

  Args:
    model: the networks.
    params: their parameters.
    embed: [B, T, E + P].
    prev_action: [B, T, A], the action that led to each frame.
    is_first: [B, T] bool; the state is set to zero before such a frame.
    noise: [B, T, S, C], `latent_noise` for samples, or None for modes.
    initial: [B, ...], state before the first frame; None: `initial_latent`.
    remat: compute the steps again in the backward pass instead of keeping what is inside them.
    hidden: [B, T] bool, frames that are imagined, not seen: the state goes on from the prior's code and the
      robot predicted. An episode's first frame is seen in any case. None: all are seen.

  Returns:
    (posterior, prior), Latents [B, T, ...]. Both share `deter` and `robot`, what was reported (where hidden:
    predicted); the prior's `stoch` is the posterior's.

  Raises:
    ValueError: shapes that do not belong together.

  Source: DreamerV2 (arXiv 2010.02193), equation 1, in the layout of LUMOS.
  """
  batch, length = embed.shape[:2]
  if prev_action.shape[:2] != (batch, length) or is_first.shape != (batch, length):
    raise ValueError(
      f"embed {list(embed.shape)}, prev_action {list(prev_action.shape)} and is_first "
      f"{list(is_first.shape)} must agree in [B, T]"
    )
  hidden = None if hidden is None else hidden & ~is_first
  frames = _frames(model, params, embed, prev_action, is_first, noise, hidden)

  def step(params: Params, latent: Latent, frame: _Frames) -> tuple[Latent, tuple[Latent, jax.Array | None]]:
    latent, prior = _posterior_step(model, params, latent, frame)
    return latent, (latent, prior)

  initial = initial_latent(model, params, batch) if initial is None else initial
  recurrent = {"rssm": params["rssm"]}
  if remat:
    run = jax.checkpoint(functools.partial(step, recurrent))
    _, out = jax.lax.scan(run, initial, time_major(frames))
  else:
    _, out = recurrence.scan(step, recurrent, initial, time_major(frames))
  posterior, prior_logits = time_major(out)
  if prior_logits is None:
    prior_logits = apply(model, params, "rssm.prior_logits", posterior.deter, posterior.robot)
  return posterior, posterior.replace(logits=prior_logits)


def filter_windows(
  model: WorldModel, params: Params, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Latent]:
  """Embeddings [B, T, E + P] and posterior [B, T, ...] of windows: samples (key) or modes (None)."""
  embed = encode(model, params, batch)
  noise = latent_noise(model, key, batch.is_first.shape)
  return embed, observe(model, params, embed, batch.prev_action, batch.is_first, noise)[0]


def filter_step(
  model: WorldModel,
  params: Params,
  latent: Latent,
  embed: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  key: jax.Array | None,
) -> Latent:
  """One frame of `observe`: latent [B, ...], embed [B, E], prev_action [B, A], is_first [B]."""
  noise = latent_noise(model, key, embed.shape[:1])
  frame = _frames(model, params, embed, prev_action, is_first, noise)
  return _posterior_step(model, params, latent, frame)[0]


def imagine_step(
  model: WorldModel,
  params: Params,
  latent: Latent,
  action: jax.Array,
  key: jax.Array | None,
  temperature: float = 1.0,
) -> Latent:
  """One step without a picture: latent [..., D], action [..., A] -> prior sample (key) or mode (None).

  Logits are divided by `temperature` before a sample is drawn; the latent holds them as they are.
  """
  action_term = apply(model, params, "rssm.action_term", action)
  deter = apply(model, params, "rssm.recur", latent.deter, latent.stoch, latent.robot, action_term)
  robot = None if latent.robot is None else apply(model, params, "rssm.predict_robot", latent.robot, action)
  logits = apply(model, params, "rssm.prior_logits", deter, robot)
  if key is None:
    return Latent(deter=deter, stoch=distributions.one_hot(logits), logits=logits, robot=robot)
  uniform = jax.random.uniform(key, logits.shape[:-1])
  stoch = distributions.sample_one_hot(logits / temperature, uniform)
  return Latent(deter=deter, stoch=stoch, logits=logits, robot=robot)


def roll(
  step: Callable[[Latent, jax.Array, jax.Array | None], Latent],
  latent: Latent,
  actions: jax.Array,
  key: jax.Array | None,
  read: Callable[[Latent], Any],
) -> tuple[Latent, Any]:
  """Open-loop rollout.

  Args:
    step: (latent [B, ...], action [B, A], key) -> latent after the action.
    latent: [B, ...] to start from.
    actions: [B, T, A].
    key: for the prior's samples; None: modes.
    read: what is kept of the latent after each action.

  Returns:
    (last latent, what was read, time-major: [T, B, ...]).
  """
  keys = None if key is None else jax.random.split(key, actions.shape[1])

  def body(latent: Latent, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[Latent, Any]:
    latent = step(latent, *inputs)
    return latent, read(latent)

  return jax.lax.scan(body, latent, (jnp.swapaxes(actions, 0, 1), keys))


def imagine(
  model: WorldModel, params: Params, latent: Latent, actions: jax.Array, key: jax.Array | None
) -> Latent:
  """Rolls actions [B, T, A] open loop from latent [B, ...]; returns Latents [B, T, ...]."""
  step = functools.partial(imagine_step, model, params)
  return time_major(roll(step, latent, actions, key, lambda latent: latent)[1])


def inverse_dynamics_source(model: WorldModel, embed: jax.Array, feature: jax.Array) -> jax.Array:
  """What the inverse-dynamics head reads, by config: embeddings [B, T, E + P] or features [B, T, F]."""
  return embed if model.inverse_dynamics_input == "embedding" else feature


def predict_actions(model: WorldModel, params: Params, source: jax.Array) -> jax.Array:
  """Actions between consecutive frames: `inverse_dynamics_source` [B, T, ...] -> [B, T-1, A]."""
  return apply(model, params, "inverse_dynamics", source[:, :-1], source[:, 1:])
