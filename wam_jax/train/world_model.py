"""The world model as pure functions: filtering, imagination, loss, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wam_jax.core import distributions
from wam_jax.nn import vision
from wam_jax.nn.world_model import CAMERAS, WorldModel
from wam_jax.types import Batch, Latent, Metrics, Params, TrainState, features


def init_params(model: WorldModel, key: jax.Array, proprio_size: int) -> Params:
  """Initial parameters; `proprio_size` is P of the data."""
  picture = jnp.zeros((1, model.image_size, model.image_size, 3), jnp.uint8)
  return jax.jit(model.init)(key, picture, picture, jnp.zeros((1, proprio_size)))["params"]


def _apply(model: WorldModel, params: Params, method: str, *args: Any) -> Any:
  return model.apply({"params": params}, *args, method=method)


def initial_latent(model: WorldModel, batch_size: int) -> Latent:
  """The zero state that every episode starts from."""
  stoch = jnp.zeros((batch_size, model.stoch, model.classes))
  return Latent(deter=jnp.zeros((batch_size, model.deter)), stoch=stoch, logits=stoch)


def encode(model: WorldModel, params: Params, batch: Batch) -> jax.Array:
  """Encoder embeddings e_t of a batch of windows: [B, T, E]."""
  return _apply(model, params, "encode", batch.rgb_static, batch.rgb_gripper, batch.proprio)


def encode_observation(
  model: WorldModel, params: Params, rgb_static: jax.Array, rgb_gripper: jax.Array, proprio: jax.Array
) -> jax.Array:
  """Embedding of single frames: uint8 [B, S, S, 3] twice, proprio [B, P] -> [B, E]."""
  return _apply(model, params, "encode", rgb_static, rgb_gripper, proprio)


def decode(model: WorldModel, params: Params, feature: jax.Array) -> dict[str, jax.Array]:
  """Pictures of features [..., F], in about [-1, 1]."""
  return _apply(model, params, "decode", feature)


def _noise(model: WorldModel, key: jax.Array | None, lead: tuple[int, ...]) -> jax.Array | None:
  return None if key is None else distributions.gumbel(key, (*lead, model.stoch, model.classes))


def _posterior_step(
  model: WorldModel,
  params: Params,
  latent: Latent,
  embed_term: jax.Array,
  action_term: jax.Array,
  is_first: jax.Array,
  noise: jax.Array | None,
) -> Latent:
  keep = 1.0 - is_first.astype(latent.deter.dtype)
  deter = _apply(
    model, params, "recur", latent.deter * keep[:, None], latent.stoch * keep[:, None, None], action_term
  )
  logits = _apply(model, params, "posterior_logits", deter, embed_term)
  return Latent(deter=deter, stoch=distributions.one_hot(logits, noise), logits=logits)


def observe(
  model: WorldModel,
  params: Params,
  embed: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  key: jax.Array | None,
) -> tuple[Latent, Latent]:
  """Filters windows from the zero state.

  Args:
    model: the networks.
    params: their parameters.
    embed: [B, T, E].
    prev_action: [B, T, 7], the action that led to each frame.
    is_first: [B, T] bool; the state is set to zero before such a frame.
    key: for samples, or None for modes.

  Returns:
    (posterior, prior), Latents [B, T, ...]. Both share `deter`; the prior's `stoch` is the posterior's.

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
  terms = (_apply(model, params, "embed_term", embed), _apply(model, params, "action_term", prev_action))
  noise = _noise(model, key, (batch, length))
  inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (*terms, is_first, noise))

  def step(latent: Latent, frame: tuple) -> tuple[Latent, Latent]:
    latent = _posterior_step(model, params, latent, *frame)
    return latent, latent

  _, posterior = jax.lax.scan(step, initial_latent(model, batch), inputs)
  posterior = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), posterior)
  prior_logits = _apply(model, params, "prior_logits", posterior.deter)
  return posterior, posterior.replace(logits=prior_logits)


def filter_step(
  model: WorldModel,
  params: Params,
  latent: Latent,
  embed: jax.Array,
  prev_action: jax.Array,
  is_first: jax.Array,
  key: jax.Array | None,
) -> Latent:
  """One frame of `observe`: latent [B, ...], embed [B, E], prev_action [B, 7], is_first [B]."""
  noise = _noise(model, key, embed.shape[:1])
  terms = (_apply(model, params, "embed_term", embed), _apply(model, params, "action_term", prev_action))
  return _posterior_step(model, params, latent, *terms, is_first, noise)


def imagine_step(
  model: WorldModel, params: Params, latent: Latent, action: jax.Array, key: jax.Array | None
) -> Latent:
  """One step without a picture: latent [..., D], action [..., 7] -> prior sample (key) or mode (None)."""
  action_term = _apply(model, params, "action_term", action)
  deter = _apply(model, params, "recur", latent.deter, latent.stoch, action_term)
  logits = _apply(model, params, "prior_logits", deter)
  noise = _noise(model, key, logits.shape[:-2])
  return Latent(deter=deter, stoch=distributions.one_hot(logits, noise), logits=logits)


def imagine(
  model: WorldModel, params: Params, latent: Latent, actions: jax.Array, key: jax.Array | None
) -> Latent:
  """Rolls actions [B, T, 7] open loop from latent [B, ...]; returns Latents [B, T, ...]."""
  keys = None if key is None else jax.random.split(key, actions.shape[1])

  def step(latent: Latent, inputs: tuple) -> tuple[Latent, Latent]:
    latent = imagine_step(model, params, latent, *inputs)
    return latent, latent

  _, out = jax.lax.scan(step, latent, (jnp.swapaxes(actions, 0, 1), keys))
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), out)


def inverse_dynamics_loss(
  predicted: jax.Array, action: jax.Array, is_first: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Mean squared error over the pairs of consecutive frames inside one episode.

  Args:
    predicted: [B, T-1, 7], from frames t and t + 1.
    action: [B, T, 7], taken at t.
    is_first: [B, T] bool; a pair whose second frame is an episode's first is left out.

  Returns:
    (scalar, metrics). The mean is over valid pairs and dimensions, so that its weight means the same
    at every batch size.

  Raises:
    ValueError: shapes that do not belong together.

  Source: WAM (arXiv 2603.28955).
  """
  if predicted.shape != (action.shape[0], action.shape[1] - 1, action.shape[2]):
    raise ValueError(
      f"predicted {list(predicted.shape)} must be one frame shorter than action {list(action.shape)}"
    )
  valid = (~is_first[:, 1:]).astype(predicted.dtype)[..., None]
  error = jnp.square(predicted - action[:, :-1]) * valid
  pairs = jnp.maximum(valid.sum(), 1.0)
  per_dimension = error.sum((0, 1)) / pairs
  metrics = {
    "inverse_dynamics/error_translation": per_dimension[:3].mean(),
    "inverse_dynamics/error_rotation": per_dimension[3:6].mean(),
    "inverse_dynamics/error_gripper": per_dimension[6],
  }
  return per_dimension.mean(), metrics


def _image_loss(pictures: dict[str, jax.Array], target: dict[str, jax.Array]) -> jax.Array:
  """Half the squared error summed over pixels and cameras: [N, S, S, 3] each -> [N]."""
  errors = [0.5 * jnp.square(pictures[camera] - target[camera]).sum((1, 2, 3)) for camera in CAMERAS]
  return jnp.stack(errors).sum(0)


def world_model_loss(
  model: WorldModel, config: Any, params: Params, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Metrics]:
  """Total loss and its terms.

  Args:
    model: the networks.
    config: `config.world_model`.
    params: parameters.
    batch: windows [B, T].
    key: for samples, or None for modes (then all frames are decoded).

  Returns:
    (scalar, metrics).

  Source: WAM (arXiv 2603.28955) on DreamerV2's terms (arXiv 2010.02193, equation 2):
  w_img * 1/2 |x^ - x|^2 + w_kl * balanced KL + w_act * inverse dynamics. Deviation: an optional term
  reconstructs the pictures straight from e_t, and a random share of the frames may be decoded.
  """
  num_frames = batch.is_first.size
  sample_key = None if key is None else jax.random.fold_in(key, 0)
  embed = encode(model, params, batch)
  posterior, prior = observe(model, params, embed, batch.prev_action, batch.is_first, sample_key)
  feature = features(posterior)

  flat = lambda x: x.reshape(num_frames, *x.shape[2:])
  chosen = jnp.arange(num_frames)
  if key is not None and config.decode_fraction < 1:
    num_decoded = max(1, round(config.decode_fraction * num_frames))
    chosen = jax.random.permutation(jax.random.fold_in(key, 1), num_frames)[:num_decoded]
  target = {camera: vision.normalise(flat(getattr(batch, camera))[chosen]) for camera in CAMERAS}

  losses = {
    "image": _image_loss(_apply(model, params, "decode", flat(feature)[chosen]), target),
    "kl": distributions.balanced_kl(posterior.logits, prior.logits, config.kl_balance),
  }
  weights = {
    "image": config.image_weight,
    "kl": config.kl_weight,
    "inverse_dynamics": config.inverse_dynamics_weight,
  }
  if model.decode_embedding:
    losses["embedding_image"] = _image_loss(
      _apply(model, params, "decode_from_embedding", flat(embed)[chosen]), target
    )
    weights["embedding_image"] = config.embedding_image_weight
  if losses["kl"].shape != batch.is_first.shape or losses["image"].ndim != 1:
    raise ValueError(f"loss terms have shapes { {name: list(x.shape) for name, x in losses.items()} }")

  # With weight 0 the head still learns, with weight 1, on embeddings that it cannot shape: a probe of
  # plain DreamerV2. What it shares with the rest is the global norm that is clipped.
  source = embed if config.inverse_dynamics_weight > 0 else jax.lax.stop_gradient(embed)
  predicted = _apply(model, params, "inverse_dynamics", source[:, :-1], source[:, 1:])
  action_loss, action_metrics = inverse_dynamics_loss(predicted, batch.action, batch.is_first)
  losses["inverse_dynamics"] = action_loss
  weights["inverse_dynamics"] = config.inverse_dynamics_weight or 1.0

  if set(losses) != set(weights):
    raise ValueError(f"losses {sorted(losses)} and weights {sorted(weights)} differ")
  means = {name: term.mean() for name, term in losses.items()}
  total = sum(weights[name] * means[name] for name in losses)
  metrics = {
    "loss/total": total,
    **{f"loss/{name}": value for name, value in means.items()},
    **action_metrics,
  }
  metrics["latent/posterior_entropy"] = distributions.entropy(posterior.logits).mean()
  metrics["latent/prior_entropy"] = distributions.entropy(prior.logits).mean()
  # PSNR of pictures whose range is 2, both cameras together.
  pixel_error = means["image"] * 2 / (len(CAMERAS) * 3 * model.image_size**2)
  metrics["image/psnr"] = 10 * jnp.log10(4.0 / jnp.maximum(pixel_error, 1e-12))
  return total, metrics


def make_update(
  model: WorldModel,
  config: Any,
  optimizer: optax.GradientTransformation,
  sample: Callable[[Any, jax.Array], Batch],
) -> Callable[[TrainState, Any, jax.Array, int], tuple[TrainState, Metrics]]:
  """Builds `update(state, store, key, num)`: `num` gradient steps in one compiled program.

  Args:
    model: the networks.
    config: `config.world_model`.
    optimizer: from `train.state`.
    sample: (store, key) -> Batch, called inside jit.

  Returns:
    Function to (state, metrics averaged over the steps). The old state is donated; `num` is static.
  """
  loss_fn = jax.value_and_grad(
    lambda params, batch, key: world_model_loss(model, config, params, batch, key), has_aux=True
  )

  def step(state: TrainState, store: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
    sample_key, loss_key = jax.random.split(key)
    (_, metrics), grads = loss_fn(state.params, sample(store, sample_key), loss_key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics["optimizer/grad_norm"] = optax.tree.norm(grads)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def update(state: TrainState, store: Any, key: jax.Array, num: int) -> tuple[TrainState, Metrics]:
    keys = jax.random.split(key, num)
    state, metrics = jax.lax.scan(lambda s, k: step(s, store, k), state, keys)
    return state, jax.tree.map(jnp.mean, metrics)

  return jax.jit(update, static_argnums=3, donate_argnums=0)


def open_loop(
  model: WorldModel, params: Params, batch: Batch, context: int, key: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Pictures filtered over the first `context` frames and imagined, with the true actions, after them.

  Args:
    model: the networks.
    params: parameters.
    batch: windows [B, T], each inside one episode.
    context: frames seen, in [1, T - 1].
    key: for samples, or None for modes.

  Returns:
    {camera: [B, T, S, S, 3] uint8}.

  Raises:
    ValueError: context outside [1, T - 1].
  """
  length = batch.is_first.shape[1]
  if not 1 <= context < length:
    raise ValueError(f"context {context} must lie in [1, {length - 1}] for windows of {length} frames")
  observe_key, imagine_key = (None, None) if key is None else jax.random.split(key)
  seen = jax.tree.map(lambda x: x[:, :context], batch)
  posterior, _ = observe(
    model, params, encode(model, params, seen), seen.prev_action, seen.is_first, observe_key
  )
  last = jax.tree.map(lambda x: x[:, -1], posterior)
  imagined = imagine(model, params, last, batch.prev_action[:, context:], imagine_key)
  feature = jnp.concatenate([features(posterior), features(imagined)], 1)
  return {camera: vision.denormalise(p) for camera, p in decode(model, params, feature).items()}
