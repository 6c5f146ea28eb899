import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_up_params import random_like

from wam_jax import config as config_lib
from wam_jax.core import distributions
from wam_jax.nn import rssm, vision
from wam_jax.nn.layers import GRU
from wam_jax.nn.world_model import make_world_model, proprio_features
from wam_jax.training import robot as robot_training
from wam_jax.training import state as train_state
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training
from wam_jax.types import Batch, features, latent_from_features

B, T = 2, 6
SIDE = 16  # of pictures, where nothing is asked of the encoder: compiles in half the time of 64


def tiny_config(**changes):
  c = config_lib.default_config().world_model
  c.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10)
  c.update(inverse_dynamics_hidden=8, embedding_image_weight=1.0, cameras=("rgb_static",))
  c.update(changes)
  return c


def random_batch(seed=0, batch=B, length=T, size=SIDE):
  rng = np.random.default_rng(seed)
  picture = lambda: rng.integers(0, 256, (batch, length, size, size, 3), np.uint8)
  action = rng.uniform(-1, 1, (batch, length, 7)).astype(np.float32)
  is_first = np.zeros((batch, length), bool)
  is_first[:, 0] = True
  return jax.device_put(
    Batch(
      pictures={"rgb_static": picture(), "rgb_gripper": picture()},
      robot_obs=rng.normal(size=(batch, length, 15)).astype(np.float32),
      action=action,
      prev_action=np.roll(action, 1, 1),
      is_first=is_first,
      mask=np.ones((batch, length), bool),
    )
  )


def random_params(model, seed=0):
  """Also where training starts from zero; compiles nothing."""
  return jax.device_put(random_like(lambda key: wm.init_params(model, key), seed))


@functools.cache
def tiny(size=SIDE, **changes):
  config = tiny_config(**changes)
  model = make_world_model(config, size)
  return config, model, random_params(model)


@functools.cache
def random_model(proprio):
  config = tiny_config(proprio=proprio, robot_obs_weight=3.0 if proprio == "latent" else 0.0)
  model = make_world_model(config, SIDE)
  return config, model, random_params(model, 3)


def random_frames(model, seed=0):
  """What `observe` reads of B windows, the second of which has a new episode at frame 3."""
  rng, batch = np.random.default_rng(seed), random_batch(seed, size=1)
  embed = jnp.asarray(rng.normal(size=(B, T, model.embed)), jnp.float32)
  if model.carries_robot:
    embed = jnp.concatenate([embed, proprio_features(batch.robot_obs)], -1)
  return embed, batch.prev_action, batch.is_first.at[1, 3].set(True)


jitted = functools.cache(lambda fn, model: jax.jit(functools.partial(fn, model)))
roll = functools.partial(jitted, robot_training.roll_robot)


def encode(model, params, batch):
  return jitted(wm.encode, model)(params, batch)


def observe(model, params, frames, noise=None, hidden=None):
  return jitted(wm.observe, model)(params, *frames, noise, hidden=hidden)


def loss_of(model, config):
  """(params, batch, draws, carried latent) -> (loss, (metrics, last latent))."""
  return jax.jit(functools.partial(wm_training.world_model_loss, model, config))


MODELS = pytest.mark.parametrize("proprio", ["none", "latent"])


@pytest.mark.parametrize("kind", ["patch", "conv"])
def test_shapes_of_both_vision_forms(kind):
  cameras = ("rgb_static", "rgb_gripper")
  _, model, params = tiny(64, vision=kind, cameras=cameras)
  batch = random_batch(size=64)
  embed = encode(model, params, batch)
  assert embed.shape == (B, T, 16)
  noise = wm.latent_noise(model, jax.random.key(1), (B, T))
  posterior, prior = observe(model, params, (embed, batch.prev_action, batch.is_first), noise)
  assert posterior.deter.shape == (B, T, 12) and posterior.stoch.shape == prior.logits.shape == (B, T, 3, 4)
  assert features(posterior).shape == (B, T, model.feature_size)
  decoded = jitted(wm.decode, model)(params, features(posterior))
  assert {name: x.shape for name, x in decoded.items()} == dict.fromkeys(cameras, (B, T, 64, 64, 3))


def sizes(changes):
  model = make_world_model(tiny_config_of(changes))
  return {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in wm.param_shapes(model).items()}


def tiny_config_of(changes):
  config = config_lib.default_config().world_model
  config.update(changes)
  return config


def test_published_size_has_lumos_number_of_parameters():
  parts = sizes({"learned_initial_state": True})
  inverse_dynamics = parts.pop("inverse_dynamics_head")
  assert sum(parts.values()) == 39_883_078  # LUMOS, both cameras, no proprioception
  assert inverse_dynamics == 3072 * 512 + 512 + 512 * 512 + 512 + 512 * 7 + 7
  proprio = sizes({"learned_initial_state": True, "proprio": "zscore"})
  del proprio["inverse_dynamics_head"]
  assert sum(proprio.values()) == 39_883_078 + 15 * 1000  # 15 more inputs of the posterior


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param({"cameras": ("rgb_static", "rgb_gripper")}, marks=pytest.mark.slow),
    {"cameras": ("rgb_gripper",), "vision": "conv"},
    pytest.param({"proprio": "sincos"}, marks=pytest.mark.slow),
    pytest.param({"proprio": "zscore", "vision": "conv"}, marks=pytest.mark.slow),
    pytest.param(
      {"vision": "conv", "depth": 2, "stoch": 5, "classes": 3, "deter": 7}, marks=pytest.mark.slow
    ),
    pytest.param({"image_size": 128}, marks=pytest.mark.slow),
    pytest.param({"image_size": 128, "vision": "conv"}, marks=pytest.mark.slow),
    pytest.param({"inverse_dynamics_input": "feature"}, marks=pytest.mark.slow),
    pytest.param({"compute_dtype": "bfloat16"}, marks=pytest.mark.slow),
    pytest.param({"compute_dtype": "bfloat16", "vision": "conv"}, marks=pytest.mark.slow),
    pytest.param({"remat": True, "accumulate": 2}, marks=pytest.mark.slow),
    pytest.param({"learned_initial_state": True, "carry_state": True}, marks=pytest.mark.slow),
    pytest.param(
      {"proprio": "latent", "robot_obs_weight": 1.0, "carry_state": True, "compute_dtype": "bfloat16"}
      | {"open_loop_share": 0.5, "remat": True, "accumulate": 2},
      marks=pytest.mark.slow,
    ),
  ],
  ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_variants_train_by_config_alone(changes):
  size = changes.get("image_size", 64 if changes.get("vision") == "conv" else SIDE)
  changes = {name: value for name, value in changes.items() if name != "image_size"}
  config = tiny_config(batch_size=B, sequence_length=T, updates=10, **changes)
  model = make_world_model(config, size)
  params = random_params(model)
  batch = random_batch(size=size)
  optimizer = wm_training.make_optimizer(config, params)
  update = wm_training.make_update(model, config, optimizer, lambda store, *_: store)
  carry = wm.initial_latent(model, params, B) if config.carry_state else None
  before = jax.tree.map(np.asarray, params)
  state, metrics = update(
    train_state.make_train_state(params, optimizer, carry=carry), batch, jax.random.key(1), 2
  )
  assert all(np.isfinite(x).all() and x.shape == (2,) for x in jax.tree.leaves(metrics))
  moved = jax.tree.map(lambda a, b: a.dtype == np.float32 and not np.array_equal(a, b), before, state.params)
  still = [name for name, value in jax.tree.leaves_with_path(moved) if not value]
  allowed = "initial_" if config.learned_initial_state else "nothing"  # every window begins with a reset
  assert all(allowed in jax.tree_util.keystr(name) for name in still), still
  pictures = jitted(wm.decode, model)(state.params, jnp.zeros((B, model.feature_size)))
  assert {name: p.shape for name, p in pictures.items()} == dict.fromkeys(model.cameras, (B, size, size, 3))
  assert all(p.dtype == jnp.float32 for p in pictures.values())


def test_bfloat16_is_near_float32():
  config, model, params = tiny(64, vision="conv")
  half = make_world_model(tiny_config(vision="conv", compute_dtype="bfloat16"))
  losses = [float(loss_of(m, config)(params, random_batch(size=64), None)[0]) for m in (model, half)]
  assert losses[0] != losses[1]
  np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def gradients_of_one_update(batch, **changes):
  """Gradients (as plain SGD's step) of one update with modes instead of samples."""
  config = tiny_config(
    batch_size=len(batch.mask), sequence_length=T, updates=10, decode_fraction=1.0, **changes
  )
  model = make_world_model(config, SIDE)
  params = random_params(model)
  before = jax.tree.map(np.asarray, params)
  optimizer = optax.sgd(1.0)
  loss = wm_training.world_model_loss
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      wm_training, "world_model_loss", lambda m, c, p, b, draws, *rest: loss(m, c, p, b, None, *rest)
    )
    update = wm_training.make_update(model, config, optimizer, lambda store, *_: store)
    state, metrics = update(train_state.make_train_state(params, optimizer), batch, jax.random.key(1), 1)
  return jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params), metrics


@pytest.mark.parametrize(
  "changes", [pytest.param({"accumulate": 2}, marks=pytest.mark.slow), {"accumulate": 4, "remat": True}]
)
def test_memory_savers_do_not_change_the_gradient(changes):
  batch = random_batch(batch=4)
  batch = batch.replace(is_first=batch.is_first.at[0, 2:].set(True))  # parts with unequal numbers of pairs
  whole, whole_metrics = gradients_of_one_update(batch)
  saved, metrics = gradients_of_one_update(batch, **changes)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(saved), strict=True):
    np.testing.assert_allclose(b, a, atol=2e-5 * max(np.abs(a).max(), 1e-3))
  for name in metrics:
    np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "least"), [({"accumulate": 4}, 2.0), ({"remat": True}, 2.0)])
def test_memory_savers_save_memory(changes, least):
  def temporary_bytes(**changes):
    config = tiny_config(
      batch_size=8, sequence_length=16, updates=10, depth=16, decode_fraction=1.0, **changes
    )
    model = make_world_model(config)
    params = jax.eval_shape(lambda: wm.init_params(model, jax.random.key(0)))
    optimizer = wm_training.make_optimizer(config, params)
    update = wm_training.make_update(model, config, optimizer, lambda store, *_: store)
    state = jax.eval_shape(lambda p: train_state.make_train_state(p, optimizer), params)
    batch = random_batch(batch=8, length=16, size=64)
    return update.lower(state, batch, jax.random.key(0), 1).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes() > least * temporary_bytes(**changes)


def test_the_robot_state_shapes_the_features():
  config, model, params = tiny(robot_obs_weight=2.0)
  assert "robot_decoder" in params and "robot_decoder" not in tiny()[2]
  batch = random_batch()
  off = tiny_config(robot_obs_weight=1e-30)

  def loss_and_grads(config):
    loss = lambda p: wm_training.world_model_loss(model, config, p, batch, None)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  (total, (metrics, _)), grads = loss_and_grads(config)
  (without, _), plain = loss_and_grads(off)
  posterior, _ = observe(model, params, (encode(model, params, batch), batch.prev_action, batch.is_first))
  decoded = model.apply({"params": params}, features(posterior), method="decode_robot_obs")
  error = np.asarray(decoded, np.float64) - np.asarray(proprio_features(batch.robot_obs), np.float64)
  by_hand = 0.5 * np.square(error).sum(-1).mean()
  assert float(metrics["loss/robot_obs"]) == pytest.approx(by_hand, rel=1e-5)
  assert float(total - without) == pytest.approx(2 * by_hand, rel=1e-3)
  for name in ("encoder_rgb_static", "rssm"):  # it reaches what makes the features
    assert any(
      np.abs(a - b).max() > 1e-6
      for a, b in zip(jax.tree.leaves(grads[name]), jax.tree.leaves(plain[name]), strict=True)
    )


def test_carried_state_goes_on_where_the_last_window_ended():
  config = tiny_config(batch_size=B, sequence_length=T // 2, updates=10, carry_state=True)
  model = make_world_model(config, SIDE)
  params = jax.tree.map(lambda x: 3 * np.asarray(x), random_params(model))  # codes depend on pictures
  batch = random_batch()
  halves = [jax.tree.map(lambda x, i=i: x[:, 3 * i : 3 * i + 3], batch) for i in (0, 1)]
  whole, _ = observe(model, params, (encode(model, params, batch), batch.prev_action, batch.is_first))
  latent, loss = wm.initial_latent(model, params, B), loss_of(model, config)
  for half in halves:
    _, (_, latent) = loss(params, half, None, latent)
  np.testing.assert_allclose(latent.deter, whole.deter[:, -1], atol=1e-6)
  np.testing.assert_array_equal(latent.stoch, whole.stoch[:, -1])
  # In the update: the second window's loss depends on the first, unless its first frame is a reset.
  optimizer = optax.sgd(0.0)
  second = halves[1].replace(is_first=jnp.zeros((B, T // 2), bool))

  update = wm_training.make_update(
    model, config, optimizer, lambda store, key, step, i: jax.tree.map(lambda x: x[i], store)
  )

  def loss_after(first, second):
    state = train_state.make_train_state(
      jax.tree.map(jnp.copy, params), optimizer, carry=wm.initial_latent(model, params, B)
    )
    source = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
    return float(update(state, source, jax.random.key(5), 2)[1]["loss/kl"][1])

  other = halves[0].replace(
    pictures=halves[0].pictures | {"rgb_static": 255 - halves[0].pictures["rgb_static"]}
  )
  assert loss_after(halves[0], second) != loss_after(other, second)
  reset = second.replace(is_first=second.is_first.at[:, 0].set(True))
  assert loss_after(halves[0], reset) == loss_after(other, reset)


@pytest.mark.parametrize(
  "changes",
  [
    {"decode_fraction": 0.5, "accumulate": 2, "learned_initial_state": True},
    pytest.param(
      {"proprio": "latent", "robot_obs_weight": 1.0, "embedding_image_weight": 1.0}, marks=pytest.mark.slow
    ),
  ],
  ids=["parts", "latent"],
)
def test_padding_changes_no_gradient(changes):
  """Rows behind the batch, of any content, count for nothing: in gradients, metrics and carried state."""
  config, model, params = tiny(**changes)
  rows = lambda tree, num: jax.tree.map(lambda x: x[:num], tree)
  padded = random_batch(batch=6)
  padded = padded.replace(is_first=padded.is_first.at[1, 2].set(True))
  draws = wm_training.draw(model, config, jax.random.key(1), 6, T)
  carry = jax.tree.map(lambda x: x + 0.1, wm.initial_latent(model, params, 6))
  gradients = jax.jit(wm_training.make_gradients(model, config), static_argnums=4)
  plain = gradients(params, *(rows(x, 4) for x in (padded, draws, carry)), None)
  grads, (metrics, last) = gradients(params, padded, draws, carry, 4)
  for (path, a), b in zip(
    jax.tree.leaves_with_path(plain), jax.tree.leaves((grads, (metrics, rows(last, 4)))), strict=True
  ):
    scale = max(np.abs(a).max(), 1e-3)
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * scale, err_msg=jax.tree_util.keystr(path))
  assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) > 1


def test_learned_initial_state_is_used_where_nothing_resets_it():
  config, model, params = tiny(learned_initial_state=True)
  params = jax.tree.map(jnp.copy, params)
  params["rssm"]["initial_deter"] = jnp.full((12,), 0.3)
  batch = random_batch()
  batch = batch.replace(is_first=batch.is_first.at[0, 0].set(False))
  grads, _ = jax.jit(jax.grad(loss_of(model, config), has_aux=True))(params, batch, None)
  assert np.abs(grads["rssm"]["initial_deter"]).max() > 0
  latent = wm.initial_latent(model, params, B)
  np.testing.assert_allclose(latent.deter, 0.3)


def test_proprio_features():
  robot_obs = np.random.default_rng(1).normal(size=(2, 5, 15))
  out = proprio_features(robot_obs)
  assert out.shape == (2, 5, 18)
  np.testing.assert_allclose(out[..., :3], 10 * robot_obs[..., :3], rtol=1e-5)
  np.testing.assert_allclose(np.arctan2(out[..., 3:6], out[..., 6:9]), robot_obs[..., 3:6], rtol=1e-4)
  np.testing.assert_allclose(out[..., 9], 10 * robot_obs[..., 6], rtol=1e-5)
  np.testing.assert_allclose(out[..., 10:], robot_obs[..., 7:], rtol=1e-5)
  with pytest.raises(ValueError, match="15"):
    proprio_features(robot_obs[..., :14])


def test_proprio_does_not_jump_at_pi():
  low, high = np.zeros(15), np.zeros(15)
  low[3], high[3] = -np.pi + 1e-4, np.pi - 1e-4
  assert np.abs(proprio_features(low) - proprio_features(high)).max() < 1e-3


@pytest.mark.parametrize("size", [32, 64])
def test_cells_are_patches_in_the_order_of_a_quadtree(size):
  """Four cells in a row are the quarters of a square of twice the side, up to those of the coarsest grid."""
  x = jnp.broadcast_to(jnp.arange(size**2).reshape(1, size, size, 1), (1, size, size, 3))
  cells = vision.to_cells(x)
  where = np.asarray(cells[0, :, ::3]).reshape(-1)  # pixels' numbers
  side = 4
  while side <= size // vision.LAST_GRID:
    squares = where.reshape(-1, side**2)
    y, column = squares // size, squares % size
    assert (np.ptp(y, axis=1) == side - 1).all() and (np.ptp(column, axis=1) == side - 1).all()
    side *= 2
  coarse = where.reshape(vision.LAST_GRID, vision.LAST_GRID, -1).min(-1)
  step = size // vision.LAST_GRID
  np.testing.assert_array_equal(coarse, step * (size * np.arange(4)[:, None] + np.arange(4)))
  first = where.reshape(-1, 4, 16)[..., 0]  # pixel of each of four quarters
  np.testing.assert_array_equal(first - first[:, :1], [[0, 4, 4 * size, 4 * size + 4]] * len(first))


def join(x, side):
  """Squares of `side` pixels as channels: [N, S, S, c] -> [N, S / side, S / side, side * side * c]."""
  n, size, _, c = x.shape
  x = x.reshape(n, size // side, side, size // side, side, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, size // side, size // side, -1)


def split(x, side):
  n, size, _, c = x.shape
  x = x.reshape(n, size, size, side, side, c // side**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, size * side, size * side, -1)


def plain_elu(x):
  return jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0)))


def plain_encoder(params, x):
  for i in range(len(params)):
    layer = params[f"patch_{i}"]
    x = plain_elu(join(x, 2 if i else 4) @ layer["kernel"] + layer["bias"])
  return x.reshape(len(x), -1)


def plain_decoder(params, x):
  x = plain_elu(x @ params["grid"]["kernel"] + params["grid"]["bias"]).reshape(len(x), 4, 4, -1)
  for i in range(len(params) - 2):
    layer = params[f"patch_{i}"]
    x = split(plain_elu(x @ layer["kernel"] + layer["bias"]), 2)
  return split(x @ params["pixels"]["kernel"] + params["pixels"]["bias"], 4)


@pytest.mark.parametrize("size", [16, 64])
def test_patch_networks_and_their_gradients_against_plain_ones(size):
  rng = np.random.default_rng(size)
  code, picture = rng.normal(size=(3, 5)), rng.integers(0, 256, (3, size, size, 3)).astype(np.uint8)
  networks = (
    (vision.PatchEncoder(2), plain_encoder, picture),
    (vision.PatchDecoder(2, size), plain_decoder, code),
  )
  with jax.enable_x64(True):
    for network, plain, x in networks:
      shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
      params = jax.tree.map(lambda p: rng.normal(size=p.shape) / np.sqrt(p.shape[0]), shapes)
      x_float = np.asarray(vision.normalise(jnp.asarray(x)), np.float64)
      ours = jax.jit(lambda params, x, network=network: network.apply({"params": params}, x))
      plain = jax.jit(plain)
      weights = rng.normal(size=jax.eval_shape(plain, params, x_float).shape)
      gradient = lambda f, weights=weights: jax.jit(
        jax.value_and_grad(lambda *args: (f(*args) * weights).sum(), (0, 1))
      )
      np.testing.assert_allclose(ours(params, x_float), plain(params, x_float), rtol=1e-9, atol=1e-7)
      for a, b in zip(
        jax.tree.leaves(gradient(ours)(params, x_float)),
        jax.tree.leaves(gradient(plain)(params, x_float)),
        strict=True,
      ):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("size", [16, 64])
def test_planes_are_patches_of_which_the_finest_split_comes_first(size):
  picture = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
  planes = vision.to_planes(jnp.asarray(picture))
  assert planes.shape == (48, (size // 16) ** 2, 3, 16)
  np.testing.assert_array_equal(vision.from_planes(planes, size), picture)
  for row, column in ((0, 0), (1, 3)):  # places of the coarsest grid; there, the first and the last patch
    square = picture[
      :, row * size // 4 : (row + 1) * size // 4, column * size // 4 : (column + 1) * size // 4
    ]
    at = planes[:, :, :, 4 * row + column].transpose(1, 2, 0)
    np.testing.assert_array_equal(at[0], square[:, :4, :4].reshape(3, -1))
    np.testing.assert_array_equal(at[-1], square[:, -4:, -4:].reshape(3, -1))
    if size == 64:  # the second half of the finest level is the patch to the right
      np.testing.assert_array_equal(at[4], square[:, :4, 4:8].reshape(3, -1))


def test_pictures_survive_normalisation():
  picture = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(vision.denormalise(vision.normalise(picture)), picture)


def test_gru_has_torch_equations():
  gru = GRU(3)
  h, x = jax.random.normal(jax.random.key(0), (2, 3)), jax.random.normal(jax.random.key(1), (2, 5))
  params = jax.jit(gru.init)(jax.random.key(2), h, x)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)  # biases away from zero
  gi = np.asarray(x @ params["input"]["kernel"] + params["input"]["bias"])
  gh = np.asarray(h @ params["recurrent"]["kernel"] + params["recurrent"]["bias"])
  sigmoid = lambda v: 1 / (1 + np.exp(-v))
  r, z = sigmoid(gi[:, :3] + gh[:, :3]), sigmoid(gi[:, 3:6] + gh[:, 3:6])
  n = np.tanh(gi[:, 6:] + r * gh[:, 6:])
  np.testing.assert_allclose(gru.apply({"params": params}, h, x), (1 - z) * n + z * np.asarray(h), atol=1e-6)


@MODELS
@pytest.mark.parametrize("sampled", [True, False])
def test_filtering_frame_by_frame_equals_the_sequence(sampled, proprio):
  _, model, params = random_model(proprio)
  frames = random_frames(model)
  posterior, _ = observe(model, params, frames)
  latent = wm.initial_latent(model, params, B)
  filter_step = jitted(wm.filter_step, model)
  for t in range(T):
    latent = filter_step(params, latent, *(x[:, t] for x in frames), jax.random.key(t) if sampled else None)
    if not sampled:
      np.testing.assert_allclose(features(latent), features(posterior)[:, t], atol=1e-5)
  np.testing.assert_array_equal(latent.stoch.sum(-1), 1.0)


def test_an_episode_start_forgets_everything_before():
  _, model, params = tiny()
  params = jax.tree.map(lambda x: 3 * x, params)  # codes depend on pictures
  one, other = random_batch(0), random_batch(1)
  cut = one.is_first.at[:, 3].set(True)
  embed = encode(model, params, one)
  mixed = embed.at[:, :3].set(encode(model, params, other)[:, :3])
  a, _ = observe(model, params, (embed, one.prev_action, cut))
  b, _ = observe(model, params, (mixed, one.prev_action, cut))
  np.testing.assert_array_equal(a.deter[:, 3:], b.deter[:, 3:])
  assert not np.allclose(a.deter[:, 2], b.deter[:, 2])


@MODELS
def test_features_invert(proprio):
  _, model, params = random_model(proprio)
  noise = wm.latent_noise(model, jax.random.key(0), (B, T))
  posterior, _ = observe(model, params, random_frames(model), noise)
  feature = features(posterior)
  assert feature.shape == (B, T, model.feature_size) and (posterior.robot is None) == (proprio == "none")
  back = latent_from_features(feature, model.stoch, model.classes, model.robot_size)
  jax.tree.map(np.testing.assert_array_equal, back, posterior.replace(logits=0 * posterior.logits))


def test_imagination_step_by_step_equals_the_roll():
  _, model, params = tiny()
  actions = random_batch().action
  latent = wm.initial_latent(model, params, B)
  rolled = jitted(wm.imagine, model)(params, latent, actions, None)
  step = jitted(wm.imagine_step, model)
  for t in range(T):
    latent = step(params, latent, actions[:, t], None)
  np.testing.assert_allclose(rolled.deter[:, -1], latent.deter, atol=1e-6)


def test_inverse_dynamics_leaves_out_pairs_across_episodes():
  # Two windows of three frames; the only valid pairs are (0,1) of both and (1,2) of the first.
  action = jnp.zeros((2, 3, 7)).at[:, :, 6].set(1.0)
  predicted = jnp.zeros((2, 2, 7)).at[1, 1].set(100.0)
  is_first = jnp.array([[True, False, False], [True, False, True]])
  loss, metrics = wm_training.inverse_dynamics_loss(predicted, action, is_first)
  assert float(loss) == pytest.approx(1 / 7)  # three pairs, each wrong by 1 in the gripper only
  assert float(metrics["inverse_dynamics/error_gripper"]) == pytest.approx(1.0)
  assert float(metrics["inverse_dynamics/error_x"]) == 0.0
  double = lambda x: jnp.concatenate([x, x])
  assert float(
    wm_training.inverse_dynamics_loss(double(predicted), double(action), double(is_first))[0]
  ) == pytest.approx(1 / 7)
  with pytest.raises(ValueError, match="one frame shorter"):
    wm_training.inverse_dynamics_loss(action, action, is_first)


def _grads(weight, **changes):
  config, model, params = tiny(inverse_dynamics_weight=weight, **changes)
  draws = wm_training.draw(model, config, jax.random.key(3), B, T)
  return jax.jit(jax.grad(loss_of(model, config), has_aux=True))(params, random_batch(), draws)[0]


def test_inverse_dynamics_on_features_reaches_the_recurrent_model():
  config, model, params = tiny(
    inverse_dynamics_input="feature", image_weight=0.0, kl_weight=0.0, embedding_image_weight=0.0
  )
  grads, _ = jax.jit(jax.grad(loss_of(model, config), has_aux=True))(params, random_batch(), None)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads["rssm"]["gru"]))


def test_a_probe_does_not_enter_the_clipped_norm():
  config = tiny_config(inverse_dynamics_weight=0.0, grad_clip=1e-3, updates=10, weight_decay=0.0)
  params = tiny()[2]
  grads = jax.tree.map(jnp.ones_like, params)
  optimizer = wm_training.make_optimizer(config, params)
  update = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(params), params)[1])
  louder = grads | {wm_training.HEAD: jax.tree.map(lambda x: 1e6 * x, grads[wm_training.HEAD])}
  moments = [update(g) for g in (grads, louder)]
  first = [optax.tree.get(state.inner_states["model"], "mu") for state in moments]
  for a, b in zip(jax.tree.leaves(first[0]), jax.tree.leaves(first[1]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_inverse_dynamics_shapes_the_encoder_only_when_it_has_weight():
  baseline, wam = _grads(0.0), _grads(1000.0)
  encoder = lambda g: jax.tree.leaves(g["encoder_rgb_static"])
  head = lambda g: jax.tree.leaves(g["inverse_dynamics_head"])
  assert all(np.abs(x).max() > 0 for x in head(baseline))  # the probe learns
  assert any(not np.allclose(a, b) for a, b in zip(encoder(baseline), encoder(wam), strict=True))
  # Nothing behind the embedding changes: the head reads e_t, not features.
  for a, b in zip(jax.tree.leaves(baseline["rssm"]), jax.tree.leaves(wam["rssm"]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_loss_gradient_against_finite_differences():
  # The mode's straight-through gradient is not the derivative of its value, so only parameters
  # behind the latents are compared: decoders, the embedding's decoder and the inverse-dynamics head.
  config, model, params = tiny(inverse_dynamics_weight=10.0)
  batch = random_batch(batch=1, length=3)
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    names = ("decoder", "embedding_decoder", "inverse_dynamics_head")
    direction = {
      n: jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), params[n])
      for n in names
    }
    moved = lambda s: (
      params | {n: jax.tree.map(lambda p, d: p + s * d, params[n], direction[n]) for n in names}
    )
    loss = jax.jit(lambda s: wm_training.world_model_loss(model, config, moved(s), batch, None)[0])
    step = 1e-4
    numeric = (loss(step) - loss(-step)) / (2 * step)
    slope = jax.jvp(loss, (0.0,), (1.0,))[1]  # exact derivative along the direction
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_update_learns_and_counts_however_updates_are_cut_into_calls():
  rates = {"learning_rate": 3e-3, "updates": 40, "warmup_updates": 2}
  config, model, params = tiny(batch_size=B, sequence_length=T, decode_fraction=0.5, **rates)
  optimizer = wm_training.make_optimizer(config, params)
  update = wm_training.make_update(
    model, config, optimizer, lambda store, key, step, i: jax.tree.map(lambda x: jnp.roll(x, step, 1), store)
  )

  def train(*cuts):
    state, losses = train_state.make_train_state(jax.tree.map(jnp.copy, params), optimizer), []
    for num in cuts:
      state, metrics = update(state, random_batch(), jax.random.key(2), num)
      assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
      losses.extend(np.asarray(metrics["loss/total"]))
    return state, losses

  state, losses = train(*[5] * 8)
  assert int(state.step) == 40 and len(losses) == 40
  assert losses[6 * T] < 0.8 * losses[0]  # on the same frames: a roll by T is none
  cut, losses_of_cut = train(1, 1, 1, 1, 1)
  whole, losses_of_whole = train(5)
  assert losses_of_cut == losses_of_whole == losses[:5]
  jax.tree.map(np.testing.assert_array_equal, whole.params, cut.params)


def test_observe_refuses_shapes_that_do_not_belong_together():
  _, model, params = tiny()
  batch = random_batch()
  embed = jnp.zeros((B, T, model.embed))
  with pytest.raises(ValueError, match="agree"):
    wm.observe(model, params, embed, batch.prev_action[:, :-1], batch.is_first, None)


@pytest.mark.parametrize(("proprio", "some_hidden"), [("none", False), ("latent", True)])
def test_gradients_after_the_backward_scan_are_those_of_a_plain_one(proprio, some_hidden):
  _, model, params = random_model(proprio)
  with jax.enable_x64(True):
    wide = lambda tree: jax.tree.map(
      lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
    params, (embed, *rest) = wide(params), wide(random_frames(model))
    noise = distributions.gumbel(jax.random.key(4), (B, T, model.stoch, model.classes)).astype(jnp.float64)
    hidden = jnp.arange(T) >= jnp.array([[T - 2], [T]]) if some_hidden else None

    def gradient(remat):
      def loss(params, embed):
        posterior, prior = wm.observe(model, params, embed, *rest, noise, None, remat, hidden)
        again = wm.apply(model, params, "rssm.prior_logits", posterior.deter, posterior.robot)
        parts = jnp.sin(features(posterior)).sum() + (posterior.logits * prior.logits).sum()
        return parts, jnp.abs(prior.logits - again).max()

      return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, embed)

    (value, error), grads = gradient(False)
    (expected, _), expected_grads = gradient(True)  # `remat` has the plain scan
    assert error < 1e-12
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert np.abs(grads[0]["rssm"]["gru"]["recurrent"]["kernel"]).max() > 1e-3


# --- the robot's state in the latent --------------------------------------------------------------


def test_a_seen_robot_state_is_the_one_reported():
  _, model, params = random_model("latent")
  frames = random_frames(model)
  posterior, prior = observe(model, params, frames)
  state, is_first = np.asarray(frames[0][..., model.embed :]), np.asarray(frames[2])
  np.testing.assert_array_equal(posterior.robot[..., :18], state)
  change = np.zeros_like(state)
  change[:, 1:] = rssm.CHANGE_SCALE * (state[:, 1:] - state[:, :-1])
  assert np.abs(change[1, 3]).max() > 0.1  # between two episodes: not a change of the robot
  change[is_first] = 0
  np.testing.assert_allclose(posterior.robot[..., 18:], change, rtol=1e-5, atol=1e-5)
  assert not np.asarray(posterior.robot[..., 18:])[is_first].any()
  np.testing.assert_array_equal(posterior.robot, prior.robot)


def dynamics_inputs(rng, state=4):
  return rng.normal(size=(B, T, 2 * state)), rng.normal(size=(B, T, 7))


def test_robot_dynamics_by_hand():
  rng = np.random.default_rng(5)
  robot, action = dynamics_inputs(rng)
  module = rssm.RobotDynamics(4, 5)
  shapes = jax.eval_shape(module.init, jax.random.key(0), robot, action)
  p = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)["params"]
  dense = lambda name, *x: np.concatenate(x, -1) @ p[name]["kernel"] + p[name]["bias"]
  before, change = robot[..., :4], robot[..., 4:]
  x = dense("hidden", before, change, action)
  moved = dense("linear", change, action) + 0.1 * dense("residual", np.where(x > 0, x, np.expm1(x)))
  with jax.enable_x64(True):
    out = jax.jit(module.apply)({"params": p}, robot, action)
    # A prediction that comes true is seen as it was predicted: state and change mean the same in both.
    seen = rssm.seen_robot(out[..., :4], robot, np.zeros((B, T), bool))
  np.testing.assert_allclose(out, np.concatenate([before + moved, 5 * moved], -1), rtol=1e-9)
  np.testing.assert_allclose(seen, out, rtol=1e-9)


def test_robot_dynamics_start_by_keeping_the_state_and_learn_from_their_error():
  rng = np.random.default_rng(6)
  inputs = dynamics_inputs(rng)
  target, is_first = rng.normal(size=(B, T, 4)), random_batch(size=1).is_first
  module = rssm.RobotDynamics(4, 5)
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), module.init(jax.random.key(0), *inputs))
    predicted = module.apply(params, *inputs)
    np.testing.assert_array_equal(predicted, np.append(inputs[0][..., :4], 0 * target, -1))

    def loss(params, robot, action):
      predicted = module.apply(params, robot, action)
      return robot_training.robot_loss(predicted[..., :4], target, is_first).sum()

    grads = jax.jit(jax.grad(loss))(params, *inputs)["params"]
    error = (inputs[0][..., :4] - target)[:, 2:]
    np.testing.assert_allclose(grads["linear"]["bias"], error.sum((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(grads["residual"]["bias"], 0.1 * error.sum((0, 1)), rtol=1e-9)
    assert np.abs(grads["linear"]["kernel"]).min() > 1e-6 and np.abs(grads["residual"]["kernel"]).min() > 1e-6
    # Against finite differences, in a direction in which everything moves, and away from the start.
    at = jax.tree.map(lambda x: x + rng.normal(size=x.shape), (params, *inputs))
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), at)
    along = jax.jit(lambda s: loss(*jax.tree.map(lambda x, d: x + s * d, at, direction)))
    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jvp(along, (0.0,), (1.0,))[1], numeric, rtol=1e-6)


def test_the_robot_rolls_on_from_the_first_two_frames_of_an_episode():
  _, model, params = random_model("latent")
  embed, prev_action, is_first = random_frames(model)
  state = embed[..., model.embed :]
  predicted = np.asarray(roll(model)(params, state, prev_action, is_first))
  assert predicted.shape == (B, T, 18)
  dynamics = lambda robot, action: rssm.RobotDynamics(18, 10).apply(
    {"params": params["rssm"]["robot_dynamics"]}, robot, action
  )
  for row, first in ((0, 0), (1, 0), (1, 3)):
    change = 5 * (state[row, first + 1] - state[row, first])
    robot = jnp.concatenate([state[row, first + 1], change])
    for t in range(first + 2, 3 if (row, first) == (1, 0) else T):
      robot = dynamics(robot, prev_action[row, t])
      np.testing.assert_allclose(predicted[row, t], robot[:18], rtol=1e-4, atol=1e-4)
  # States after the first two are not looked at.
  later = np.asarray(roll(model)(params, state.at[0, 2:].add(1.0), prev_action, is_first))
  np.testing.assert_array_equal(later[0], predicted[0])
  # A window that goes on where the last one ended: nothing of it is looked at.
  carried = jnp.asarray(np.random.default_rng(2).normal(size=(B, 36)), jnp.float32)
  going_on = roll(model)(params, state, prev_action, is_first.at[0, 0].set(False), carried)
  robot = carried[0]
  for t in range(T):
    robot = dynamics(robot, prev_action[0, t])
    np.testing.assert_allclose(going_on[0, t], robot[:18], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(going_on[1, 2], predicted[1, 2])
  for wrong in ((state[:, 1:], prev_action, is_first), (state, prev_action[:, 1:], is_first)):
    with pytest.raises(ValueError, match="agree"):
      robot_training.roll_robot(model, params, *wrong)


def test_the_first_two_frames_of_each_episode():
  is_first = np.array([[1, 0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0, 1]], bool)
  starting = [[1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 1]]
  np.testing.assert_array_equal(robot_training.starting(jnp.asarray(is_first)), starting)
  np.testing.assert_array_equal(robot_training.starting(jnp.asarray(is_first[:, :1])), is_first[:, :1])


def test_robot_loss_by_hand():
  rng = np.random.default_rng(7)
  predicted, state = rng.normal(size=(2, B, T, 4))
  is_first = jnp.zeros((B, T), bool).at[:, 0].set(True).at[1, 3].set(True)
  starting = np.zeros((B, T), bool)  # no change is known there
  starting[:, :2], starting[1, 3:5] = True, True
  loss = np.asarray(robot_training.robot_loss(predicted, state, is_first))
  expected = 0.5 * sum((predicted[..., i] - state[..., i]) ** 2 for i in range(4))
  expected[starting] = 0
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert (loss[starting] == 0).all() and loss[~starting].min() > 0
  single = robot_training.robot_loss(predicted[:1, 2:3], state[:1, 2:3], is_first[:1, 2:3])
  np.testing.assert_allclose(single, expected[:1, 2:3], rtol=1e-5)
  for wrong in (
    (predicted, state[..., :3], is_first),
    (predicted[..., :1], state, is_first),
    (predicted[:, :1], state, is_first),
    (predicted, state[:1], is_first),
    (predicted, state, is_first[:, :-1]),
    (predicted, state, is_first[:1]),
  ):
    with pytest.raises(ValueError, match="belong together"):
      robot_training.robot_loss(*wrong)


def test_the_robot_joins_the_losses_and_training_predicts_it():
  """The hand goes where the actions push it: what a linear map of the last action predicts."""
  config = tiny_config(proprio="latent", robot_obs_weight=50.0, decode_fraction=1.0)
  config.update(batch_size=4, sequence_length=T, learning_rate=2e-3, updates=80, warmup_updates=0)
  model = make_world_model(config, SIDE)
  params = wm.init_params(model, jax.random.key(0))
  assert "robot_decoder" not in params and "robot_dynamics" in params["rssm"]
  batch = random_batch(batch=4)
  pushed = jnp.cumsum(0.02 * batch.prev_action[..., :6], 1)
  batch = batch.replace(robot_obs=0.1 * batch.robot_obs[:, :1] + jnp.pad(pushed, ((0, 0), (0, 0), (0, 9))))
  optimizer = wm_training.make_optimizer(config, params)
  update = wm_training.make_update(model, config, optimizer, lambda store, *_: store)
  _, metrics = update(train_state.make_train_state(params, optimizer), batch, jax.random.key(1), 80)
  losses = {name.removeprefix("loss/"): x for name, x in metrics.items() if name.startswith("loss/")}
  weights = {
    "image": config.image_weight,
    "kl": config.kl_weight,
    "inverse_dynamics": config.inverse_dynamics_weight,
    "embedding_image": config.embedding_image_weight,
    "robot_obs": 50.0,
  }
  total = losses.pop("total")
  assert set(losses) == set(weights)
  np.testing.assert_allclose(total, sum(weights[name] * losses[name] for name in weights), rtol=1e-4)
  # At the start the state is predicted to stay where it was seen last, in the second frame.
  state = np.asarray(proprio_features(batch.robot_obs), np.float64)
  by_hand = 0.5 * np.square(state[:, 2:] - state[:, 1:2]).sum() / (4 * T)
  assert float(losses["robot_obs"][0]) == pytest.approx(by_hand, rel=1e-4)
  assert float(losses["robot_obs"][-5:].mean()) < 0.1 * by_hand


def test_the_robots_dynamics_share_no_gradient_with_the_rest():
  """They learn from the robot's state alone, not from what pictures say of imagined frames."""
  config, model, params = random_model("latent")
  batch = random_batch()
  hidden = jnp.broadcast_to(jnp.arange(T) >= 2, (B, T))
  draws = wm_training.Draws(wm.latent_noise(model, jax.random.key(2), (B, T)), jnp.array([[4], [5]]), hidden)
  loss = lambda p: wm_training.world_model_loss(model, config, p, batch, draws)[0]
  grads = jax.jit(jax.grad(loss))(params)
  state = proprio_features(batch.robot_obs)

  def alone(params):
    predicted = robot_training.roll_robot(model, params, state, batch.prev_action, batch.is_first)
    return config.robot_obs_weight * robot_training.robot_loss(predicted, state, batch.is_first).mean()

  robot = jax.jit(jax.grad(alone))(params)
  for a, b in zip(
    jax.tree.leaves(robot["rssm"].pop("robot_dynamics")),
    jax.tree.leaves(grads["rssm"].pop("robot_dynamics")),
    strict=True,
  ):
    assert np.abs(a).max() > 1e-4
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(robot))
  for name in ("from_robot", "prior_robot"):  # these learn as the rest does
    assert np.abs(grads["rssm"][name]["kernel"]).max() > 1e-6


def test_the_robots_dynamics_have_an_optimiser_of_their_own():
  """Faster, without decay, and outside the norm that is clipped."""
  config = tiny_config(proprio="latent", robot_obs_weight=1.0, updates=10, warmup_updates=0)
  config.update(grad_clip=1e-3, weight_decay=0.1, learning_rate=1e-3, final_learning_rate_scale=0.1)
  rng = np.random.default_rng(1)
  make = lambda: jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  tree = lambda: {"rssm": {"robot_dynamics": {"linear": make()}, "gru": make()}, wm_training.HEAD: make()}
  params, grads = tree(), tree()
  for weight in (0.0, 1000.0):  # a head that only watches, and one that shapes
    config.inverse_dynamics_weight = weight
    optimizer = wm_training.make_optimizer(config, params)
    step = jax.jit(lambda grads, of=optimizer: of.update(grads, of.init(params), params)[0])
    louder = grads["rssm"] | {"robot_dynamics": {"linear": 1e6 * grads["rssm"]["robot_dynamics"]["linear"]}}
    quiet, loud = step(grads), step(grads | {"rssm": louder})
    np.testing.assert_array_equal(quiet["rssm"]["gru"], loud["rssm"]["gru"])
    np.testing.assert_array_equal(quiet[wm_training.HEAD], loud[wm_training.HEAD])
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    moved = quiet["rssm"]["robot_dynamics"]["linear"]
    sign = np.sign(grads["rssm"]["robot_dynamics"]["linear"])
    np.testing.assert_allclose(moved, -wm_training.ROBOT_RATE * 1e-3 * sign, rtol=1e-2)
    others = np.abs(quiet["rssm"]["gru"])
    assert others.max() < 0.5 * np.abs(moved).min() and others.min() > 0
  # Its rate ends at 0 although the others' does not.
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for _ in range(11):
    last, state = update(grads, state, params)
  assert np.abs(last["rssm"]["robot_dynamics"]["linear"]).max() < 1e-9 < np.abs(last["rssm"]["gru"]).max()


@pytest.mark.parametrize("frames", [0, 64])
def test_units_of_the_recurrent_state_begin_with_memories_of_many_lengths(frames):
  size = 100
  h, x = jnp.ones((1, size)), jnp.zeros((1, 5))
  gru = GRU(size, frames)
  params = jax.jit(gru.init)(jax.random.key(0), h, x)["params"]
  reset, _, new = np.split(np.asarray(params["input"]["bias"]), 3)
  assert not reset.any() and not new.any()
  params["recurrent"]["kernel"] = 0 * params["recurrent"]["kernel"]
  # Without input and recurrence a unit keeps the share z = f / (1 + f) a frame: it forgets in 1 + f frames.
  kept = np.asarray(gru.apply({"params": params}, h, x))[0]
  memory = 1 / (1 - kept)
  if not frames:
    np.testing.assert_allclose(memory, 2, rtol=1e-5)
    return
  assert memory.min() > 2 - 1e-3 and memory.max() < 65 + 0.1
  assert memory.mean() == pytest.approx(33.5, rel=0.1) and memory.std() == pytest.approx(
    63 / 12**0.5, rel=0.1
  )


# --- frames that are imagined in training ---------------------------------------------------------


@MODELS
def test_hidden_frames_are_the_priors_whatever_they_show(proprio):
  _, model, params = random_model(proprio)
  embed, prev_action, is_first = random_frames(model)
  noise = wm.latent_noise(model, jax.random.key(2), (B, T))
  hidden = jnp.arange(T) >= jnp.array([[2], [0]])  # the second window's first frames are seen all the same
  seen = ~hidden | is_first
  assert seen[1].tolist() == [True, False, False, True, False, False]
  posterior, prior = observe(model, params, (embed, prev_action, is_first), noise, hidden)
  other = jnp.where(seen[..., None], embed, random_frames(model, 1)[0])
  same, _ = observe(model, params, (other, prev_action, is_first), noise, hidden)
  for name in ("deter", "stoch", "robot"):
    jax.tree.map(np.testing.assert_array_equal, getattr(posterior, name), getattr(same, name))
  differ = np.abs(posterior.logits - same.logits).max((-1, -2)) > 1e-3
  np.testing.assert_array_equal(differ, ~seen)  # of the posterior, which the KL still compares
  # The code goes on from the prior where nothing is seen, from the posterior elsewhere; the robot likewise.
  logits = jnp.where(seen[..., None, None], posterior.logits, prior.logits)
  np.testing.assert_array_equal(posterior.stoch, distributions.one_hot(logits, noise))
  if proprio == "latent":
    robot = posterior.robot
    np.testing.assert_array_equal(robot[seen][:, :18], embed[seen][:, model.embed :])
    dynamics = {"params": params["rssm"]["robot_dynamics"]}
    predicted = rssm.RobotDynamics(18, 10).apply(dynamics, robot[:, :-1], prev_action[:, 1:])
    np.testing.assert_allclose(robot[:, 1:][~seen[:, 1:]], predicted[~seen[:, 1:]], rtol=1e-5, atol=1e-5)
  open_eyes, _ = observe(model, params, (embed, prev_action, is_first), noise)
  assert np.abs(open_eyes.deter - posterior.deter).max() > 1e-3
  none = observe(model, params, (embed, prev_action, is_first), noise, jnp.zeros((B, T), bool))[0]
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), none, open_eyes)


@MODELS
@pytest.mark.parametrize("context", [1, 4])
def test_everything_hidden_after_a_frame_is_imagination(proprio, context):
  _, model, params = random_model(proprio)
  embed, prev_action, is_first = random_frames(model)
  is_first = is_first.at[1, 3].set(False)
  hidden = jnp.broadcast_to(jnp.arange(T) >= context, (B, T))
  posterior, prior = observe(model, params, (embed, prev_action, is_first), hidden=hidden)
  last = jax.tree.map(lambda x: x[:, context - 1], posterior)
  imagined = jitted(wm.imagine, model)(params, last, prev_action[:, context:], None)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  later = jax.tree.map(lambda x: x[:, context:], posterior.replace(logits=prior.logits))
  jax.tree.map(close, later, imagined)
  assert np.abs(imagined.deter[:, -1] - imagined.deter[:, 0]).max() > 1e-2


def test_windows_of_two_frames_are_imagined_from_the_second_on():
  _, model, _ = random_model("none")
  draws = wm_training.draw(model, tiny_config(open_loop_share=1.0), jax.random.key(0), 5, 2)
  np.testing.assert_array_equal(draws.hidden, [[False, True]] * 5)


def test_a_share_of_the_windows_is_imagined_from_a_random_frame_on():
  _, model, _ = random_model("none")
  num = 4000
  draw = lambda share: wm_training.draw(
    model, tiny_config(open_loop_share=share, decode_fraction=0.5), jax.random.key(4), num, T
  )
  draws = {share: draw(share) for share in (0.0, 0.3, 1.0)}
  assert draws[0.0].hidden is None
  for share in (0.3, 1.0):
    hidden = np.asarray(draws[share].hidden)
    assert hidden.shape == (num, T) and not hidden[:, :2].any()  # a change of the robot is seen
    assert (hidden[:, 1:] >= hidden[:, :-1]).all()  # once eyes are closed they stay so
    assert hidden[:, -1].mean() == pytest.approx(share, abs=0.02)
    seen = np.bincount((~hidden[hidden[:, -1]]).sum(1), minlength=T + 1) / hidden[:, -1].sum()
    np.testing.assert_allclose(seen[2:T], 1 / (T - 2), atol=0.05)
    # Other draws are the same with and without.
    np.testing.assert_array_equal(draws[share].noise, draws[0.0].noise)
    np.testing.assert_array_equal(draws[share].decoded, draws[0.0].decoded)


def test_the_loss_sees_the_hidden_frames_as_imagined():
  config, model, params = random_model("latent")
  batch = random_batch()
  noise = wm.latent_noise(model, jax.random.key(2), (B, T))
  hidden = jnp.broadcast_to(jnp.arange(T) >= 2, (B, T))
  loss = jax.jit(lambda batch, draws: wm_training.world_model_loss(model, config, params, batch, draws)[1])
  metrics, last = loss(batch, wm_training.Draws(noise, None, hidden))
  embed = encode(model, params, batch)
  posterior, prior = observe(model, params, (embed, batch.prev_action, batch.is_first), noise, hidden)
  np.testing.assert_allclose(last.deter, posterior.deter[:, -1], atol=1e-5)
  kl = distributions.balanced_kl(posterior.logits, prior.logits, config.kl_balance).mean()
  assert float(metrics["loss/kl"]) == pytest.approx(float(kl), rel=1e-4)
  state = proprio_features(batch.robot_obs)
  error = np.asarray(roll(model)(params, state, batch.prev_action, batch.is_first) - state)[:, 2:]
  assert float(metrics["loss/robot_obs"]) == pytest.approx(0.5 * np.square(error).sum() / (B * T), rel=1e-4)
