import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax import config as config_lib
from wam_jax.nn import vision
from wam_jax.nn.layers import GRU
from wam_jax.nn.world_model import make_world_model, proprio_features
from wam_jax.train import state as train_state
from wam_jax.train import world_model as train
from wam_jax.types import Batch, features, latent_from_features

B, T = 2, 6


def tiny_config(**changes):
  c = config_lib.default_config().world_model
  c.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10)
  c.update(inverse_dynamics_hidden=8, embedding_image_weight=1.0)
  c.update(changes)
  return c


def random_batch(seed=0, batch=B, length=T, size=64):
  rng = np.random.default_rng(seed)
  picture = lambda: jnp.asarray(rng.integers(0, 256, (batch, length, size, size, 3), np.uint8))
  action = jnp.asarray(rng.uniform(-1, 1, (batch, length, 7)), jnp.float32)
  is_first = np.zeros((batch, length), bool)
  is_first[:, 0] = True
  return Batch(
    rgb_static=picture(),
    rgb_gripper=picture(),
    robot_obs=jnp.asarray(rng.normal(size=(batch, length, 15)), jnp.float32),
    action=action,
    prev_action=jnp.roll(action, 1, 1),
    is_first=jnp.asarray(is_first),
    mask=jnp.ones((batch, length), bool),
  )


@functools.cache
def tiny(**changes):
  config = tiny_config(**changes)
  model = make_world_model(config)
  return config, model, train.init_params(model, jax.random.key(0))


@pytest.mark.parametrize("kind", ["patch", "conv"])
def test_shapes_of_both_vision_forms(kind):
  _, model, params = tiny(vision=kind)
  batch = random_batch()
  embed = jax.jit(lambda p, b: train.encode(model, p, b))(params, batch)
  assert embed.shape == (B, T, 16)
  posterior, prior = train.observe(
    model,
    params,
    embed,
    batch.prev_action,
    batch.is_first,
    train.latent_noise(model, jax.random.key(1), (B, T)),
  )
  assert posterior.deter.shape == (B, T, 12) and posterior.stoch.shape == prior.logits.shape == (B, T, 3, 4)
  assert features(posterior).shape == (B, T, model.feature_size)
  decoded = train.decode(model, params, features(posterior))
  assert {name: x.shape for name, x in decoded.items()} == dict.fromkeys(
    ("rgb_static", "rgb_gripper"), (B, T, 64, 64, 3)
  )


def sizes(changes):
  model = make_world_model(tiny_config_of(changes))
  shapes = jax.eval_shape(lambda: train.init_params(model, jax.random.key(0)))
  return {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}


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
    {"cameras": ("rgb_static",)},
    {"cameras": ("rgb_gripper",), "vision": "conv"},
    {"proprio": "sincos"},
    {"proprio": "zscore", "vision": "conv"},
    {"vision": "conv", "depth": 2, "stoch": 5, "classes": 3, "deter": 7},
    {"image_size": 128},
    {"image_size": 128, "vision": "conv"},
    {"inverse_dynamics_input": "feature"},
    {"compute_dtype": "bfloat16"},
    {"compute_dtype": "bfloat16", "vision": "conv"},
    {"remat": True, "accumulate": 2},
    {"learned_initial_state": True, "carry_state": True},
  ],
  ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_variants_train_by_config_alone(changes):
  size = changes.pop("image_size", 64) if "image_size" in changes else 64
  config = tiny_config(batch_size=B, sequence_length=T, updates=10, **changes)
  model = make_world_model(config, size)
  params = train.init_params(model, jax.random.key(0))
  batch = random_batch(size=size)
  optimizer = train.make_optimizer(config, params)
  update = train.make_update(model, config, optimizer, lambda store, *_: store)
  carry = train.initial_latent(model, params, B) if config.carry_state else None
  before = jax.tree.map(np.asarray, params)
  state, metrics = update(
    train_state.make_train_state(params, optimizer, carry=carry), batch, jax.random.key(1), 2
  )
  assert all(np.isfinite(x).all() and x.shape == (2,) for x in jax.tree.leaves(metrics))
  moved = jax.tree.map(lambda a, b: a.dtype == np.float32 and not np.array_equal(a, b), before, state.params)
  still = [name for name, value in jax.tree.leaves_with_path(moved) if not value]
  allowed = "initial_" if config.learned_initial_state else "nothing"  # every window begins with a reset
  assert all(allowed in jax.tree_util.keystr(name) for name in still), still
  pictures = train.decode(model, state.params, jnp.zeros((B, model.feature_size)))
  assert {name: p.shape for name, p in pictures.items()} == dict.fromkeys(model.cameras, (B, size, size, 3))
  assert all(p.dtype == jnp.float32 for p in pictures.values())


def test_bfloat16_is_near_float32():
  config, model, params = tiny(vision="conv")
  half = make_world_model(tiny_config(vision="conv", compute_dtype="bfloat16"))
  losses = [float(train.world_model_loss(m, config, params, random_batch(), None)[0]) for m in (model, half)]
  assert losses[0] != losses[1]
  np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def gradients_of_one_update(batch, **changes):
  """Gradients (as plain SGD's step) of one update with modes instead of samples."""
  config = tiny_config(
    batch_size=len(batch.mask), sequence_length=T, updates=10, decode_fraction=1.0, **changes
  )
  model = make_world_model(config)
  params = train.init_params(model, jax.random.key(0))
  before = jax.tree.map(np.asarray, params)
  optimizer = optax.sgd(1.0)
  loss = train.world_model_loss
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "world_model_loss", lambda m, c, p, b, draws, *rest: loss(m, c, p, b, None, *rest))
    update = train.make_update(model, config, optimizer, lambda store, *_: store)
    state, metrics = update(train_state.make_train_state(params, optimizer), batch, jax.random.key(1), 1)
  return jax.tree.map(lambda a, b: np.asarray(a) - b, before, state.params), metrics


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"accumulate": 4}, {"remat": True}])
def test_memory_savers_do_not_change_the_gradient(changes):
  batch = random_batch(batch=4)
  batch = batch.replace(is_first=batch.is_first.at[0, 2:].set(True))  # parts with unequal numbers of pairs
  whole, whole_metrics = gradients_of_one_update(batch)
  saved, metrics = gradients_of_one_update(batch, **changes)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(saved), strict=True):
    np.testing.assert_allclose(b, a, atol=2e-5 * max(np.abs(a).max(), 1e-3))
  for name in metrics:
    np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("changes", "least"), [({"accumulate": 4}, 2.0), ({"remat": True}, 2.0)])
def test_memory_savers_save_memory(changes, least):
  def temporary_bytes(**changes):
    config = tiny_config(
      batch_size=8, sequence_length=16, updates=10, depth=16, decode_fraction=1.0, **changes
    )
    model = make_world_model(config)
    params = jax.eval_shape(lambda: train.init_params(model, jax.random.key(0)))
    optimizer = train.make_optimizer(config, params)
    update = train.make_update(model, config, optimizer, lambda store, *_: store)
    state = jax.eval_shape(lambda p: train_state.make_train_state(p, optimizer), params)
    batch = random_batch(batch=8, length=16)
    return update.lower(state, batch, jax.random.key(0), 1).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes() > least * temporary_bytes(**changes)


def test_the_robot_state_shapes_the_features():
  config, model, params = tiny(robot_obs_weight=2.0)
  assert "robot_decoder" in params and "robot_decoder" not in tiny()[2]
  batch = random_batch()
  off = tiny_config(robot_obs_weight=1e-30)

  def loss_and_grads(config):
    loss = lambda p: train.world_model_loss(model, config, p, batch, None)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  (total, (metrics, _)), grads = loss_and_grads(config)
  (without, _), plain = loss_and_grads(off)
  embed = train.encode(model, params, batch)
  posterior, _ = train.observe(model, params, embed, batch.prev_action, batch.is_first, None)
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
  model = make_world_model(config)
  params = train.init_params(model, jax.random.key(0))
  batch = random_batch()
  halves = [jax.tree.map(lambda x, i=i: x[:, 3 * i : 3 * i + 3], batch) for i in (0, 1)]
  embed = train.encode(model, params, batch)
  whole, _ = train.observe(model, params, embed, batch.prev_action, batch.is_first, None)
  latent = None
  for half in halves:
    _, (_, latent) = train.world_model_loss(model, config, params, half, None, latent)
  np.testing.assert_allclose(latent.deter, whole.deter[:, -1], atol=1e-6)
  np.testing.assert_array_equal(latent.stoch, whole.stoch[:, -1])
  # In the update: the second window's loss depends on the first, unless its first frame is a reset.
  optimizer = optax.sgd(0.0)
  second = halves[1].replace(is_first=jnp.zeros((B, T // 2), bool))

  def loss_after(first, second):
    update = train.make_update(
      model, config, optimizer, lambda store, key, step, i: jax.tree.map(lambda x: x[i], store)
    )
    state = train_state.make_train_state(
      jax.tree.map(jnp.copy, params), optimizer, carry=train.initial_latent(model, params, B)
    )
    source = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
    return float(update(state, source, jax.random.key(5), 2)[1]["loss/kl"][1])

  other = halves[0].replace(rgb_static=255 - halves[0].rgb_static)
  assert loss_after(halves[0], second) != loss_after(other, second)
  reset = second.replace(is_first=second.is_first.at[:, 0].set(True))
  assert loss_after(halves[0], reset) == loss_after(other, reset)


def test_learned_initial_state_is_used_where_nothing_resets_it():
  config, model, params = tiny(learned_initial_state=True)
  params = jax.tree.map(jnp.copy, params)
  params["rssm"]["initial_deter"] = jnp.full((12,), 0.3)
  batch = random_batch()
  batch = batch.replace(is_first=batch.is_first.at[0, 0].set(False))
  grads = jax.grad(lambda p: train.world_model_loss(model, config, p, batch, None)[0])(params)
  assert np.abs(grads["rssm"]["initial_deter"]).max() > 0
  latent = train.initial_latent(model, params, B)
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
  latent = train.initial_latent(model, params, B)
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
  noise = train.latent_noise(model, jax.random.key(0), (B, T))
  embed = train.encode(model, params, batch)
  posterior, _ = train.observe(model, params, embed, batch.prev_action, batch.is_first, noise)
  back = latent_from_features(features(posterior), model.stoch, model.classes)
  np.testing.assert_array_equal(back.deter, posterior.deter)
  np.testing.assert_array_equal(back.stoch, posterior.stoch)


def test_imagination_step_by_step_equals_the_roll():
  _, model, params = tiny()
  actions = random_batch().action
  latent = train.initial_latent(model, params, B)
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
  assert float(metrics["inverse_dynamics/error_x"]) == 0.0
  double = lambda x: jnp.concatenate([x, x])
  assert float(
    train.inverse_dynamics_loss(double(predicted), double(action), double(is_first))[0]
  ) == pytest.approx(1 / 7)
  with pytest.raises(ValueError, match="one frame shorter"):
    train.inverse_dynamics_loss(action, action, is_first)


def _grads(weight, **changes):
  config, model, params = tiny(inverse_dynamics_weight=weight, **changes)
  batch = random_batch()
  draws = train.draw(model, config, jax.random.key(3), B, T)
  loss = lambda p: train.world_model_loss(model, config, p, batch, draws)[0]
  return jax.jit(jax.grad(loss))(params)


def test_inverse_dynamics_on_features_reaches_the_recurrent_model():
  config, model, params = tiny(
    inverse_dynamics_input="feature", image_weight=0.0, kl_weight=0.0, embedding_image_weight=0.0
  )
  loss = lambda p: train.world_model_loss(model, config, p, random_batch(), None)[0]
  grads = jax.grad(loss)(params)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads["rssm"]["gru"]))


def test_a_probe_does_not_enter_the_clipped_norm():
  config = tiny_config(inverse_dynamics_weight=0.0, grad_clip=1e-3, updates=10, weight_decay=0.0)
  model = make_world_model(config)
  params = train.init_params(model, jax.random.key(0))
  grads = jax.tree.map(jnp.ones_like, params)
  optimizer = train.make_optimizer(config, params)
  louder = grads | {train.HEAD: jax.tree.map(lambda x: 1e6 * x, grads[train.HEAD])}
  moments = [optimizer.update(g, optimizer.init(params), params)[1] for g in (grads, louder)]
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
  update = train.make_update(model, config, optimizer, lambda store, *_: store)
  batch = random_batch()
  state = train_state.make_train_state(jax.tree.map(jnp.copy, params), optimizer)
  state, first = update(state, batch, jax.random.key(0), 5)
  for i in range(7):
    state, last = update(state, batch, jax.random.key(i + 1), 5)
  assert int(state.step) == 40
  assert float(last["loss/total"][-1]) < 0.8 * float(first["loss/total"][0])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(last))


def test_it_does_not_matter_how_updates_are_cut_into_calls():
  config, model, params = tiny(batch_size=B, sequence_length=T, decode_fraction=0.5)
  optimizer = train.make_optimizer(config, params)
  update = train.make_update(
    model, config, optimizer, lambda store, key, step, i: jax.tree.map(lambda x: jnp.roll(x, step, 1), store)
  )
  ends = []
  for cuts in ((4,), (1, 3), (2, 1, 1)):
    state = train_state.make_train_state(jax.tree.map(jnp.copy, params), optimizer)
    for num in cuts:
      state, _ = update(state, random_batch(), jax.random.key(2), num)
    ends.append(jax.tree.map(np.asarray, state.params))
  for other in ends[1:]:
    jax.tree.map(np.testing.assert_array_equal, ends[0], other)


def test_observe_refuses_shapes_that_do_not_belong_together():
  _, model, params = tiny()
  batch = random_batch()
  embed = train.encode(model, params, batch)
  with pytest.raises(ValueError, match="agree"):
    train.observe(model, params, embed, batch.prev_action[:, :-1], batch.is_first, None)
