"""How the world model learns: loss, optimiser, update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from wam_jax.core import distributions
from wam_jax.embodiment import CALVIN
from wam_jax.nn import vision
from wam_jax.nn.world_model import WorldModel
from wam_jax.training import sharding
from wam_jax.training.robot import robot_loss, roll_robot
from wam_jax.training.state import make_optimizer as make_adamw
from wam_jax.training.world_model import (
  apply,
  inverse_dynamics_source,
  observe,
  predict_actions,
)
from wam_jax.types import Batch, Latent, Metrics, Params, TrainState, features

HEAD = "inverse_dynamics_head"  # of the parameters
ROBOT_RATE = 5.0  # learning rate of the robot's dynamics, times that of the model
REMAT_PARTS = 16  # that the frames of a batch are worked through in with `remat`


def valid_pairs(is_first: jax.Array) -> jax.Array:
  """Pairs of consecutive frames inside one episode: is_first [B, T] -> [B, T-1] bool."""
  return ~is_first[:, 1:]


def inverse_dynamics_loss(
  predicted: jax.Array,
  action: jax.Array,
  is_first: jax.Array,
  num_pairs: jax.Array | None = None,
  names: Sequence[str] = CALVIN.action_names,
) -> tuple[jax.Array, Metrics]:
  """Mean squared error over the pairs of consecutive frames inside one episode.

  Args:
    predicted: [B, T-1, A], from frames t and t + 1.
    action: [B, T, A], taken at t.
    is_first: [B, T] bool; a pair whose second frame is an episode's first is left out.
    num_pairs: scalar above 0 to divide by instead of the number of valid pairs here; for parts of a batch.
    names: of the numbers of an action.

  Returns:
    (scalar, metrics: the error per dimension of the action). The mean is over valid pairs and dimensions,
    so that its weight means the same at every batch size.

  Raises:
    ValueError: shapes that do not belong together.

  Source: WAM (arXiv 2603.28955).
  """
  if predicted.shape != (action.shape[0], action.shape[1] - 1, action.shape[2]):
    raise ValueError(
      f"predicted {list(predicted.shape)} must be one frame shorter than action {list(action.shape)}"
    )
  valid = valid_pairs(is_first).astype(predicted.dtype)[..., None]
  error = jnp.square(predicted - action[:, :-1]) * valid
  pairs = jnp.maximum(valid.sum(), 1.0) if num_pairs is None else num_pairs
  per_dimension = error.sum((0, 1)) / pairs
  metrics = {f"inverse_dynamics/error_{name}": per_dimension[i] for i, name in enumerate(names)}
  return per_dimension.mean(), metrics


def _over_frames(function: Callable[..., jax.Array], params: Params, *frames: Any, remat: bool) -> jax.Array:
  """`function(params, *frames)` for pytrees [N, ...], or, to save memory, part by part.

  With `remat` no more than the activations of one part exist at a time: the backward pass computes
  them again.
  """
  if not remat:
    return function(params, *frames)
  num = jax.tree.leaves(frames)[0].shape[0]
  parts = next(n for n in range(min(REMAT_PARTS, num), 0, -1) if num % n == 0)
  split = jax.tree.map(lambda x: x.reshape(parts, num // parts, *x.shape[1:]), frames)
  out = jax.lax.map(jax.checkpoint(lambda part: function(params, *part)), split)
  return out.reshape(num, *out.shape[2:])


def _image_loss(
  model: WorldModel, params: Params, method: str, source: jax.Array, target: dict[str, jax.Array], remat: bool
) -> jax.Array:
  """Half the squared error over pixels and cameras [N] of pictures [N, S, S, 3] decoded from [N, X]."""

  def of_frames(params: Params, source: jax.Array, target: dict[str, jax.Array]) -> jax.Array:
    pictures = apply(model, params, method, source)
    # In the order in which the decoder has its pixels: it is not rearranged then, nor is its gradient.
    arrange = (
      vision.to_planes if model.vision == "patch" else lambda picture: picture.reshape(1, 1, len(picture), -1)
    )
    errors = [
      0.5 * jnp.square(arrange(pictures[camera]) - vision.normalise(arrange(truth))).sum((0, 1, 3))
      for camera, truth in target.items()
    ]
    return jnp.stack(errors).sum(0)

  return _over_frames(of_frames, params, source, target, remat=remat)


def is_probe(config: Any) -> bool:
  """Whether the inverse-dynamics head only watches: plain DreamerV2, `inverse_dynamics_weight` 0."""
  return config.inverse_dynamics_weight == 0


@struct.dataclass
class Draws:
  """What is random in an update's loss, drawn for the whole batch, whose parts may be worked on anywhere.

  Attributes:
    noise: [B, T, S, C] of the posterior's samples.
    decoded: [B, n] int32, the frames of each window that are decoded; None: all.
    hidden: [B, T] bool, the frames that are imagined instead of seen; None: none.
  """

  noise: jax.Array
  decoded: jax.Array | None
  hidden: jax.Array | None = None


def draw(model: WorldModel, config: Any, key: jax.Array, batch_size: int, length: int) -> Draws:
  """Draws of an update.

  Args:
    model: the networks.
    config: `config.world_model`; `decode_fraction` of each window's frames are decoded, at least one, and
      `open_loop_share` of the windows are seen up to a random frame only.
    key: random key.
    batch_size: B.
    length: T.
  """
  noise = distributions.gumbel(jax.random.fold_in(key, 0), (batch_size, length, model.stoch, model.classes))
  hidden = decoded = None
  if config.open_loop_share:
    open_key, seen_key = jax.random.split(jax.random.fold_in(key, 2))
    open_loop = jax.random.bernoulli(open_key, config.open_loop_share, (batch_size, 1))
    num_seen = jax.random.randint(seen_key, (batch_size, 1), min(2, length - 1), length)
    hidden = open_loop & (jnp.arange(length) >= num_seen)
  if config.decode_fraction < 1:
    order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, 1), (batch_size, length)))
    decoded = order[:, : max(1, round(config.decode_fraction * length))]
  return Draws(noise, decoded, hidden)


def world_model_loss(
  model: WorldModel,
  config: Any,
  params: Params,
  batch: Batch,
  draws: Draws | None,
  initial: Latent | None = None,
  num_pairs: jax.Array | None = None,
  weight: jax.Array | None = None,
) -> tuple[jax.Array, tuple[Metrics, Latent]]:
  """What is minimised, and its terms.

  With weight 0 the inverse-dynamics head still learns, on inputs that it cannot shape: a probe of plain
  DreamerV2. It is then part of what is minimised, but not of the model's loss (`loss/total`).

  Args:
    model: the networks.
    config: `config.world_model`.
    params: parameters.
    batch: windows [B, T].
    draws: of these windows, or None for modes and all frames decoded.
    initial: [B, ...], state before the windows; None: `initial_latent`.
    num_pairs: as in `inverse_dynamics_loss`.
    weight: [B], of each window in means over frames; None: 1. Inverse dynamics has its pairs instead.

  Returns:
    (scalar, (metrics, last posterior [B, ...], without gradient)).

  Source: WAM (arXiv 2603.28955) on DreamerV2's terms (arXiv 2010.02193, equation 2):
  w_img * 1/2 |x^ - x|^2 + w_kl * balanced KL + w_act * inverse dynamics. Deviations: optional terms rebuild
  the pictures straight from e_t and the robot state from f_t, and a random share of the frames of each window
  may be decoded.
  """
  num_frames = batch.is_first.size
  flat = lambda x: x.reshape(num_frames, *x.shape[2:])
  pictures = {camera: flat(batch.pictures[camera]) for camera in model.cameras}
  encode_frames = lambda params, *seen: apply(model, params, "encode", *seen)
  embed = _over_frames(encode_frames, params, pictures, flat(batch.robot_obs), remat=config.remat)
  embed = embed.reshape(*batch.is_first.shape, -1)
  noise = None if draws is None else draws.noise
  posterior, prior = observe(
    model,
    params,
    embed,
    batch.prev_action,
    batch.is_first,
    noise,
    initial,
    config.remat,
    None if draws is None else draws.hidden,
  )
  feature = features(posterior)

  picked = flat
  if draws is not None and draws.decoded is not None:
    chosen = (jnp.arange(len(draws.decoded))[:, None] * batch.is_first.shape[1] + draws.decoded).reshape(-1)
    picked = lambda x: flat(x)[chosen]
  target = {camera: picked(batch.pictures[camera]) for camera in model.cameras}

  image_loss = functools.partial(_image_loss, model, params, target=target, remat=config.remat)
  losses = {
    "image": image_loss("decode", picked(feature)),
    "kl": distributions.balanced_kl(posterior.logits, prior.logits, config.kl_balance),
  }
  if model.decode_embedding:
    losses["embedding_image"] = image_loss("decode_from_embedding", picked(embed))
  if model.decode_robot:
    error = apply(model, params, "decode_robot_obs", feature) - model.state_features(batch.robot_obs)
    losses["robot_obs"] = 0.5 * jnp.square(error).sum(-1)
  if model.carries_robot:
    state = embed[..., model.embed :]
    start = None if initial is None else initial.robot
    predicted = roll_robot(model, params, state, batch.prev_action, batch.is_first, start)
    losses["robot_obs"] = robot_loss(predicted, state, batch.is_first)
  if losses["kl"].shape != batch.is_first.shape or losses["image"].ndim != 1:
    raise ValueError(f"loss terms have shapes { {name: list(x.shape) for name, x in losses.items()} }")

  source = inverse_dynamics_source(model, embed, feature)
  source = jax.lax.stop_gradient(source) if is_probe(config) else source
  losses["inverse_dynamics"], action_metrics = inverse_dynamics_loss(
    predict_actions(model, params, source),
    batch.action,
    batch.is_first,
    num_pairs,
    model.embodiment.action_names,
  )

  def mean(term: jax.Array) -> jax.Array:
    if weight is None or not term.ndim:
      return term.mean()
    return (term.reshape(len(weight), -1) * weight[:, None]).mean()

  means = {name: mean(term) for name, term in losses.items()}
  total = jnp.stack([getattr(config, f"{name}_weight") * value for name, value in means.items()]).sum()
  metrics = {
    "loss/total": total,
    **{f"loss/{name}": value for name, value in means.items()},
    **action_metrics,
  }
  metrics["latent/posterior_entropy"] = mean(distributions.entropy(posterior.logits))
  metrics["latent/prior_entropy"] = mean(distributions.entropy(prior.logits))
  last = jax.tree.map(lambda x: jax.lax.stop_gradient(x[:, -1]), posterior)
  return total + means["inverse_dynamics"] * is_probe(config), (metrics, last)


def psnr(model: WorldModel, image_loss: jax.Array) -> jax.Array:
  """PSNR [dB] of pictures whose range is 2, all cameras together, of the mean image loss."""
  pixel_error = image_loss * 2 / (len(model.cameras) * 3 * model.image_size**2)
  return 10 * jnp.log10(4.0 / jnp.maximum(pixel_error, 1e-12))


def make_optimizer(config: Any, params: Params) -> optax.GradientTransformation:
  """AdamW with clipping by the global norm of the model's gradients.

  A head that only watches (`is_probe`) has an optimiser of its own, so that its gradients do not enter
  the norm; so have the robot's dynamics, which share no gradient with the rest.

  Args:
    config: `config.world_model`.
    params: parameters, or their shapes.

  Source: LUMOS: AdamW on all parameters, clip 100. LUMOS clips gradients that are still multiplied by
  its loss scale, so its effective clip is far smaller; here there is no scale.
  """
  adamw = functools.partial(
    make_adamw,
    updates=config.updates,
    warmup_updates=config.warmup_updates,
    eps=config.adam_eps,
    betas=config.adam_betas,
  )
  rest = {
    "final_scale": config.final_learning_rate_scale,
    "weight_decay": config.weight_decay,
    "grad_clip": config.grad_clip,
  }
  optimizers = {"model": adamw(config.learning_rate, **rest)}
  if is_probe(config):
    optimizers["probe"] = adamw(config.learning_rate, **rest)
  if config.proprio == "latent":
    # To 0: a constant error of a step, however small, adds up over a dream.
    optimizers["robot"] = adamw(ROBOT_RATE * config.learning_rate, final_scale=0.0)
  if len(optimizers) == 1:
    return optimizers["model"]

  def label(path: tuple[Any, ...], _: Any) -> str:
    names = [key.key for key in path]
    if "robot_dynamics" in names:
      return "robot"
    return "probe" if names[0] == HEAD and is_probe(config) else "model"

  return optax.partition(optimizers, jax.tree_util.tree_map_with_path(label, params))


def clipped_together(config: Any, grads: Params) -> Params:
  """The gradients whose global norm is clipped: those without an optimiser of their own."""
  out = {name: part for name, part in grads.items() if name != HEAD or not is_probe(config)}
  if config.proprio == "latent":
    out["rssm"] = {name: part for name, part in out["rssm"].items() if name != "robot_dynamics"}
  return out


def step_keys(key: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """Keys of update `step`: to draw its windows, and for its loss."""
  sample_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
  return sample_key, loss_key


def make_gradients(
  model: WorldModel, config: Any, mesh: Mesh | None = None
) -> Callable[..., tuple[Params, tuple[Metrics, Latent]]]:
  """Builds `gradients(params, batch, draws, carry, size=None) -> (gradient, (metrics, last posterior))`.

  The gradient is that of the whole batch, however it is worked through: in `config.accumulate` parts one
  after the other, and divided over the devices of a mesh. Rows from `size` on are padding: they count for
  nothing, and are there so that parts and devices are equally large. The last posterior has them too.

  Args:
    model: the networks.
    config: `config.world_model`.
    mesh: from `sharding.make_mesh`; its devices and `accumulate` together divide the rows.
  """
  parts = config.accumulate

  def loss_fn(
    params: Params, batch: Batch, draws: Draws | None, carry: Latent | None, weight: Any, pairs: Any
  ) -> Any:
    return world_model_loss(model, config, params, batch, draws, carry, pairs, weight)

  grad_fn = jax.grad(loss_fn, has_aux=True)

  def in_parts(params: Params, *inputs: Any) -> Any:
    """Mean gradient, metrics, and last state [B, ...], of batch, draws, carry, weight and number of pairs."""
    *of_rows, pairs = inputs
    if parts == 1:
      return grad_fn(params, *of_rows, pairs)
    split = lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:])

    def one(total: Params, inputs: tuple) -> tuple[Params, Any]:
      grads, aux = grad_fn(params, *inputs, pairs / parts)
      return jax.tree.map(jnp.add, total, grads), aux

    zero = jax.tree.map(jnp.zeros_like, params)
    total, (metrics, last) = jax.lax.scan(one, zero, jax.tree.map(split, tuple(of_rows)))
    join = lambda x: x.reshape(-1, *x.shape[2:])
    mean = lambda tree: jax.tree.map(lambda x: x.mean(0), tree)
    return jax.tree.map(lambda x: x / parts, total), (mean(metrics), jax.tree.map(join, last))

  def of_device(*inputs: Any) -> Any:
    grads, (metrics, last) = in_parts(*inputs)
    return sharding.mean_over_devices((grads, metrics)), last

  def gradients(
    params: Params, batch: Batch, draws: Draws | None, carry: Latent | None, size: int | None = None
  ) -> Any:
    weight = None
    if size is not None and size < (rows := len(batch.is_first)):
      counts = jnp.arange(rows) < size
      weight = counts * (rows / size)  # a mean over all rows is then one over those that count
      batch = batch.replace(is_first=batch.is_first | ~counts[:, None])  # no pairs in the others
    pairs = jnp.maximum(valid_pairs(batch.is_first).sum().astype(jnp.float32), 1.0)
    if mesh is None:
      grads, (metrics, last) = in_parts(params, batch, draws, carry, weight, pairs)
    else:
      # Not left to the partitioner: it would sum gradients over devices at every frame of the backward scan.
      run = sharding.over_devices(of_device, mesh, split=(False, True, True, True, True, False))
      (grads, metrics), last = run(params, batch, draws, carry, weight, pairs / mesh.size)
    return grads, (metrics | {"image/psnr": psnr(model, metrics["loss/image"])}, last)

  return gradients


def make_update(
  model: WorldModel,
  config: Any,
  optimizer: optax.GradientTransformation,
  sample: Callable[[Any, jax.Array, jax.Array, jax.Array], Batch],
  mesh: Mesh | None = None,
) -> Callable[[TrainState, Any, jax.Array, int], tuple[TrainState, Metrics]]:
  """Builds `update(state, source, key, num)`: `num` gradient steps in one compiled program.

  Args:
    model: the networks.
    config: `config.world_model`.
    optimizer: from `make_optimizer`.
    sample: (source, key, step, i) -> Batch, called inside jit with the first of `step_keys`; `step`
      counts the updates of the run, `i` those of this call. Rows from `config.batch_size` on are padding.
    mesh: devices that the batch is divided over; then all arguments are on each of them (`sharding.put`).

  Returns:
    Function to (state, metrics [num]). The old state is donated; `num` is static. An update depends on
    `key` and its number alone: it does not matter how a run is cut into calls. If `state.carry` is a
    Latent, windows go on from it, else each starts afresh.
  """
  gradients = make_gradients(model, config, mesh)

  def step(state: TrainState, source: Any, key: jax.Array, i: jax.Array) -> tuple[TrainState, Metrics]:
    sample_key, loss_key = step_keys(key, state.step)
    batch = sharding.split(sample(source, sample_key, state.step, i), mesh)
    rows, length = batch.is_first.shape
    size = min(config.batch_size, rows)
    drawn = draw(model, config, loss_key, size, length)
    draws, carry = sharding.split(sharding.repeat_rows((drawn, state.carry), rows), mesh)
    grads, (metrics, last) = gradients(state.params, batch, draws, carry, size)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics["optimizer/grad_norm"] = optax.tree.norm(clipped_together(config, grads))
    params = optax.apply_updates(state.params, updates)
    if state.carry is not None:
      carry = sharding.whole(jax.tree.map(lambda x: x[:size], last), mesh)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carry), metrics

  def update(state: TrainState, source: Any, key: jax.Array, num: int) -> tuple[TrainState, Metrics]:
    state, metrics = jax.lax.scan(lambda state, i: step(state, source, key, i), state, jnp.arange(num))
    return sharding.whole(state, mesh), sharding.whole(metrics, mesh)

  return jax.jit(update, static_argnums=3, donate_argnums=0)
