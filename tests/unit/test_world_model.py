import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.nn import vision
from wam_jax.nn.layers import GRU
from wam_jax.nn.world_model import make_world_model
from wam_jax.train import state as train_state
from wam_jax.train import world_model as train
from wam_jax.types import Batch, features, latent_from_features

B, T, P = 2, 6, 18


def tiny_config(**changes):
  c = config_lib.default_config().world_model
  c.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10)
  c.update(inverse_dynamics_hidden=8, embedding_image_weight=1.0)
  c.update(changes)
  return c


def random_batch(seed=0, batch=B, length=T):
  rng = np.random.default_rng(seed)
  picture = lambda: jnp.asarray(rng.integers(0, 256, (batch, length, 64, 64, 3), np.uint8))
  action = jnp.asarray(rng.uniform(-1, 1, (batch, length, 7)), jnp.float32)
  is_first = np.zeros((batch, length), bool)
  is_first[:, 0] = True
  return Batch(
    rgb_static=picture(),
    rgb_gripper=picture(),
    proprio=jnp.asarray(rng.normal(size=(batch, length, P)), jnp.float32),
    action=action,
    prev_action=jnp.roll(action, 1, 1),
    is_first=jnp.asarray(is_first),
    mask=jnp.ones((batch, length), bool),
  )


@functools.cache
def tiny(**changes):
  config = tiny_config(**changes)
  model = make_world_model(config)
  return config, model, train.init_params(model, jax.random.key(0), P)


@pytest.mark.parametrize("kind", ["patch", "conv"])
def test_shapes_of_both_vision_forms(kind):
  _, model, params = tiny(vision=kind)
  batch = random_batch()
  embed = jax.jit(lambda p, b: train.encode(model, p, b))(params, batch)
  assert embed.shape == (B, T, 16)
  posterior, prior = train.observe(model, params, embed, batch.prev_action, batch.is_first, jax.random.key(1))
  assert posterior.deter.shape == (B, T, 12) and posterior.stoch.shape == prior.logits.shape == (B, T, 3, 4)
  assert features(posterior).shape == (B, T, model.feature_size)
  decoded = train.decode(model, params, features(posterior))
  assert {name: x.shape for name, x in decoded.items()} == dict.fromkeys(
    ("rgb_static", "rgb_gripper"), (B, T, 64, 64, 3)
  )


def test_published_size_has_lumos_number_of_parameters():
  model = make_world_model(config_lib.default_config().world_model)
  picture = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), picture, picture, jax.ShapeDtypeStruct((1, P), jnp.float32)
  )
  sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes["params"].items()}
  inverse_dynamics = sizes.pop("inverse_dynamics_head")
  # LUMOS: 39.9 M; its learned initial state (2048 numbers), which a reset never brings back, is not ours.
  assert round(sum(sizes.values()) / 1e6, 1) == 39.9
  assert inverse_dynamics == 3072 * 512 + 512 + 512 * 512 + 512 + 512 * 7 + 7


def test_patches_are_inverse_and_see_what_they_cover():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  patches = vision.space_to_depth(x, 4)
  np.testing.assert_array_equal(patches[1, 0, 1].reshape(4, 4, 3), x[1, :4, 4:])
  np.testing.assert_array_equal(vision.depth_to_space(patches, 4), x)


def test_pictures_survive_normalisation():
  picture = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(vision.denormalise(vision.normalise(picture)), picture)


def test_gru_has_torch_equations():
  gru = GRU(3)
  h, x = jax.random.normal(jax.random.key(0), (2, 3)), jax.random.normal(jax.random.key(1), (2, 5))
  params = gru.init(jax.random.key(2), h, x)["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)  # biases away from zero
  gi = np.asarray(x @ params["input"]["kernel"] + params["input"]["bias"])
  gh = np.asarray(h @ params["recurrent"]["kernel"] + params["recurrent"]["bias"])
  sigmoid = lambda v: 1 / (1 + np.exp(-v))
  r, z = sigmoid(gi[:, :3] + gh[:, :3]), sigmoid(gi[:, 3:6] + gh[:, 3:6])
  n = np.tanh(gi[:, 6:] + r * gh[:, 6:])
  np.testing.assert_allclose(gru.apply({"params": params}, h, x), (1 - z) * n + z * np.asarray(h), atol=1e-6)


@pytest.mark.parametrize("sampled", [True, False])
def test_filtering_frame_by_frame_equals_the_sequence(sampled):
  _, model, params = tiny()
  batch = random_batch()
  batch = batch.replace(is_first=batch.is_first.at[1, 3].set(True))
  embed = train.encode(model, params, batch)
  posterior, _ = train.observe(model, params, embed, batch.prev_action, batch.is_first, None)
  latent = train.initial_latent(model, B)
  for t in range(T):
    key = jax.random.key(t) if sampled else None
    latent = train.filter_step(
      model, params, latent, embed[:, t], batch.prev_action[:, t], batch.is_first[:, t], key
    )
    if not sampled:
      np.testing.assert_allclose(features(latent), features(posterior)[:, t], atol=1e-5)
  np.testing.assert_array_equal(latent.stoch.sum(-1), 1.0)


def test_an_episode_start_forgets_everything_before():
  _, model, params = tiny()
  one, other = random_batch(0), random_batch(1)
  cut = one.is_first.at[:, 3].set(True)
  embed = train.encode(model, params, one)
  mixed = embed.at[:, :3].set(train.encode(model, params, other)[:, :3])
  a, _ = train.observe(model, params, embed, one.prev_action, cut, None)
  b, _ = train.observe(model, params, mixed, one.prev_action, cut, None)
  np.testing.assert_array_equal(a.deter[:, 3:], b.deter[:, 3:])
  assert not np.allclose(a.deter[:, 2], b.deter[:, 2])


def test_features_invert():
  _, model, params = tiny()
  batch = random_batch()
  posterior, _ = train.observe(
    model, params, train.encode(model, params, batch), batch.prev_action, batch.is_first, jax.random.key(0)
  )
  back = latent_from_features(features(posterior), model.stoch, model.classes)
  np.testing.assert_array_equal(back.deter, posterior.deter)
  np.testing.assert_array_equal(back.stoch, posterior.stoch)


def test_imagination_step_by_step_equals_the_roll():
  _, model, params = tiny()
  actions = random_batch().action
  latent = train.initial_latent(model, B)
  rolled = train.imagine(model, params, latent, actions, None)
  for t in range(T):
    latent = train.imagine_step(model, params, latent, actions[:, t], None)
  np.testing.assert_allclose(rolled.deter[:, -1], latent.deter, atol=1e-6)


def test_inverse_dynamics_leaves_out_pairs_across_episodes():
  # Two windows of three frames; the only valid pairs are (0,1) of both and (1,2) of the first.
  action = jnp.zeros((2, 3, 7)).at[:, :, 6].set(1.0)
  predicted = jnp.zeros((2, 2, 7)).at[1, 1].set(100.0)
  is_first = jnp.array([[True, False, False], [True, False, True]])
  loss, metrics = train.inverse_dynamics_loss(predicted, action, is_first)
  assert float(loss) == pytest.approx(1 / 7)  # three pairs, each wrong by 1 in the gripper only
  assert float(metrics["inverse_dynamics/error_gripper"]) == pytest.approx(1.0)
  double = lambda x: jnp.concatenate([x, x])
  assert float(
    train.inverse_dynamics_loss(double(predicted), double(action), double(is_first))[0]
  ) == pytest.approx(1 / 7)
  with pytest.raises(ValueError, match="one frame shorter"):
    train.inverse_dynamics_loss(action, action, is_first)


def _grads(weight, **changes):
  config, model, params = tiny(inverse_dynamics_weight=weight, **changes)
  batch = random_batch()
  loss = lambda p: train.world_model_loss(model, config, p, batch, jax.random.key(3))[0]
  return jax.jit(jax.grad(loss))(params)


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
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    names = ("decoder", "embedding_decoder", "inverse_dynamics_head")
    direction = {
      n: jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), params[n])
      for n in names
    }
    moved = lambda s: (
      params | {n: jax.tree.map(lambda p, d: p + s * d, params[n], direction[n]) for n in names}
    )
    loss = jax.jit(lambda s: train.world_model_loss(model, config, moved(s), batch, None)[0])
    step = 1e-4
    numeric = (loss(step) - loss(-step)) / (2 * step)
    slope = jax.jvp(loss, (0.0,), (1.0,))[1]  # exact derivative along the direction
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_update_learns_and_counts():
  config, model, params = tiny(batch_size=B, sequence_length=T, decode_fraction=0.5)
  optimizer = train_state.make_optimizer(3e-3, 40, warmup_updates=2, weight_decay=0.05, grad_clip=100.0)
  update = train.make_update(model, config, optimizer, lambda store, key: store)
  batch = random_batch()
  state = train_state.make_train_state(jax.tree.map(jnp.copy, params), optimizer)
  state, first = update(state, batch, jax.random.key(0), 5)
  for i in range(7):
    state, last = update(state, batch, jax.random.key(i + 1), 5)
  assert int(state.step) == 40
  assert float(last["loss/total"]) < 0.8 * float(first["loss/total"])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(last))


def test_open_loop_sees_only_the_context():
  _, model, params = tiny()
  one, other = random_batch(0), random_batch(1)
  changed = one.replace(rgb_static=one.rgb_static.at[:, 3:].set(other.rgb_static[:, 3:]))
  a, b = (train.open_loop(model, params, x, 3)["rgb_static"] for x in (one, changed))
  assert a.shape == (B, T, 64, 64, 3) and a.dtype == jnp.uint8
  np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match="context"):
    train.open_loop(model, params, one, T)


def test_observe_refuses_shapes_that_do_not_belong_together():
  _, model, params = tiny()
  batch = random_batch()
  embed = train.encode(model, params, batch)
  with pytest.raises(ValueError, match="agree"):
    train.observe(model, params, embed, batch.prev_action[:, :-1], batch.is_first, None)
