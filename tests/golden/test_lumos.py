"""Agreement with LUMOS's world model (fixture lumos_world_model.npz).

The folder is WAM_FIXTURES, by default `fixtures` beside this file. Every size and constant comes from
the file, so that any other file of the same layout is judged as well. Tolerances are those that the
fixtures' README suggests, in units of an array's largest absolute value unless said otherwise. The
weights go through `foreign.lumos`, both ways.

The file's arrays are [T, B, ...] in torch's layout; ours are [B, T, ...], pictures with channels last.
"""

from __future__ import annotations

import functools
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.config import default_config
from wam_jax.core import distributions
from wam_jax.foreign import lumos
from wam_jax.nn.world_model import make_world_model
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training
from wam_jax.types import Batch, Latent, features

FOLDER = pathlib.Path(os.environ.get("WAM_FIXTURES", pathlib.Path(__file__).parent / "fixtures"))
FILE = FOLDER / "lumos_world_model.npz"
CAMERAS = {"static": "rgb_static", "gripper": "rgb_gripper"}

FORWARD = 1e-5  # embeddings, logits, h, pictures, losses
GRADIENT = 5e-5  # and first moments
SECOND_MOMENT = 1e-4
PARAMETER = 2e-6  # absolute


class Golden:
  """The file, and our model with its weights and inputs. `changes` are of config.world_model."""

  def __init__(self, **changes):
    self.arrays = dict(np.load(FILE, allow_pickle=False))
    state = lumos.read_state_dict(FILE)
    c = self.config = default_config().world_model
    c.update(lumos.sizes(state, self.c("rank")))
    c.inverse_dynamics_weight, c.inverse_dynamics_hidden = 0.0, 8
    c.embedding_image_weight, c.compute_dtype = 0.0, "float32"
    for ours, theirs in {
      "norm_eps": "layernorm_eps",
      "image_weight": "image_weight",
      "kl_weight": "kl_weight",
      "kl_balance": "kl_balance",
      "grad_clip": "grad_clip",
      "learning_rate": "lr",
      "adam_eps": "eps",
      "weight_decay": "weight_decay",
    }.items():
      c[ours] = float(self.c(theirs))
    c.adam_betas = (self.c("beta1"), self.c("beta2"))
    c.warmup_updates, c.final_learning_rate_scale = 0, 1.0
    c.update(changes)
    self.model = make_world_model(c, image_size=self["input/rgb_static"].shape[-1])
    shapes = jax.eval_shape(lambda: wm.init_params(self.model, jax.random.key(0)))
    rng = np.random.default_rng(0)  # for the head that LUMOS has not, and nothing here may depend on
    initial = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    self.params = jax.tree.map(jnp.asarray, lumos.merge(initial, lumos.to_params(state, shapes)))
    self.batch = self._batch()

  def __getitem__(self, key):
    return self.arrays[key]

  def c(self, key):
    value = self.arrays[f"config/{key}"]
    return value.item() if value.ndim == 0 else value.tolist()

  def group(self, prefix):
    found = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
    assert found, prefix
    return found

  def pictures(self, prefix):
    """{camera: [B, T, S, S, 3]}."""
    return {ours: self[f"{prefix}{theirs}"].transpose(1, 0, 3, 4, 2) for theirs, ours in CAMERAS.items()}

  def _batch(self):
    prev_action = self["input/actions"].swapaxes(0, 1)
    is_first = self["input/reset"][..., 0].swapaxes(0, 1)
    robot_obs = np.zeros((*is_first.shape, lumos.ROBOT_OBS), np.float32)
    if self.c("with_proprio"):
      (key,) = {"input/proprio", "input/robot_obs"} & self.arrays.keys()
      robot_obs = self[key].swapaxes(0, 1)
    return Batch(
      pictures=self.pictures("input/rgb_"),
      robot_obs=robot_obs,
      action=np.roll(prev_action, -1, axis=1),
      prev_action=prev_action,
      is_first=is_first,
      mask=np.ones(is_first.shape, bool),
    )

  @functools.cached_property
  def forward(self):
    """embed, posterior, prior, pictures."""

    @jax.jit
    def run(params):
      embed = wm.encode(self.model, params, self.batch)
      initial = wm.initial_latent(self.model, params, len(self.batch.is_first))
      latents = wm.observe(
        self.model, params, embed, self.batch.prev_action, self.batch.is_first, None, initial
      )
      return embed, *latents, wm.decode(self.model, params, features(latents[0]))

    return run(self.params)

  @functools.cached_property
  def loss_and_gradient(self):
    """(weights of the loss) -> metrics, last latent, gradient in our layout; compiled once for all."""

    def fn(params, weights):
      config = types.SimpleNamespace(**{**self.config.to_dict(), **weights})
      return wm_training.world_model_loss(self.model, config, params, self.batch, None)

    compiled = jax.jit(jax.value_and_grad(fn, has_aux=True))

    def run(**changes):
      names = ("image_weight", "kl_weight", "kl_balance")
      (_, aux), gradient = compiled(self.params, {name: self.config[name] for name in names} | changes)
      return *aux, gradient

    return run

  @functools.cached_property
  def training(self):
    return self.loss_and_gradient()

  @functools.cached_property
  def kl_gradient(self):
    return lumos.to_state_dict(self.loss_and_gradient(image_weight=0.0, kl_weight=1.0)[2])

  def step(self, gradient):
    """Parameters, first and second moments after one update, by torch name."""
    optimizer = wm_training.make_optimizer(self.config, self.params)

    @jax.jit
    def run(params, gradient):
      updates, state = optimizer.update(gradient, optimizer.init(params), params)
      return optax.apply_updates(params, updates), state

    params, state = run(self.params, gradient)
    # The head that LUMOS has not may have an optimiser of its own, with moments of its own.
    moments = [
      next(m for _, m in optax.tree_utils.tree_get_all_with_path(state, name) if jax.tree.leaves(m["rssm"]))
      for name in ("mu", "nu")
    ]
    return [lumos.to_state_dict(tree) for tree in (params, *moments)]

  @functools.cached_property
  def roll(self):
    """Latents [B, T, ...] imagined from the file's own last state."""
    c = self.config
    stoch = self["out_z"].reshape(-1, c.stoch, c.classes)
    start = Latent(deter=self["out_h"], stoch=stoch, logits=np.zeros_like(stoch))
    actions = self["input/roll_actions"].swapaxes(0, 1)
    return jax.jit(lambda params: wm.imagine(self.model, params, start, actions, None))(self.params)


def error(actual, expected):
  """Largest difference in units of the largest absolute expected value."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def time_major(x, rank=2):
  """[B, T, ...] -> [T, B, ...], the rest flat if it has more axes than one."""
  x = np.asarray(x).swapaxes(0, 1)
  return x.reshape(*x.shape[:rank], -1)


def torch_pictures(x):
  return np.asarray(x).transpose(1, 0, 4, 2, 3)


def worst(actual, expected):
  """Largest `error` of arrays by name, with its name."""
  return max((error(actual[name], x), name) for name, x in expected.items())


@pytest.fixture(scope="module")
def golden():
  if not FILE.exists():
    pytest.skip(f"no {FILE}")
  return Golden()


def test_sizes(golden):
  """What the importer reads off the shapes is what the file was made with."""
  c = golden.config
  assert (c.depth, c.deter, c.stoch, c.classes, c.hidden) == tuple(
    golden.c(name) for name in ("depth", "deter", "stoch", "rank", "hidden")
  )
  assert c.proprio == ("zscore" if golden.c("with_proprio") else "none")
  assert golden["input/actions"].shape[:2] == (golden.c("T"), golden.c("B"))
  assert len(golden["input/roll_actions"]) == golden.c("roll")


def test_every_weight_goes_both_ways(golden):
  stored, back = golden.group("param/"), lumos.to_state_dict(golden.params)
  assert stored.keys() == back.keys()
  for name, value in stored.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_embeddings(golden):
  assert error(time_major(golden.forward[0]), golden["embed"]) < FORWARD


def test_filtering(golden):
  _, posterior, prior, _ = golden.forward
  assert error(time_major(prior.logits), golden["prior_logits"]) < FORWARD
  assert error(time_major(posterior.logits), golden["post_logits"]) < FORWARD
  deter = golden.config.deter
  ours, theirs = time_major(features(posterior)), golden["features"]
  assert error(ours[..., :deter], theirs[..., :deter]) < FORWARD
  np.testing.assert_array_equal(ours[..., deter:], theirs[..., deter:])


def test_pictures(golden):
  for theirs, ours in CAMERAS.items():
    assert error(torch_pictures(golden.forward[3][ours]), golden[f"decoded_{theirs}"]) < FORWARD


def test_losses_and_last_state(golden):
  metrics, last, _ = golden.training
  for theirs, ours in {
    "loss_total": "loss/total",
    "loss_img": "loss/image",
    "loss_kl": "loss/kl",
    "loss_kl-post": "loss/kl",
    "loss_kl-prior": "loss/kl",
    "entropy_prior": "latent/prior_entropy",
    "entropy_post": "latent/posterior_entropy",
  }.items():
    assert error(metrics[ours], golden[f"loss/{theirs}"]) < FORWARD, theirs
  assert error(last.deter, golden["out_h"]) < FORWARD
  np.testing.assert_array_equal(last.stoch.reshape(golden["out_z"].shape), golden["out_z"])


def test_gradients(golden):
  """Of every parameter, before clipping; that of the layer shared by both cameras stands under one name."""
  gradient = lumos.to_state_dict(golden.training[2])
  stored = golden.group("grad/")
  shared = {name for name in gradient if name.startswith("decoder.decoder_gripper.0.")}
  assert stored.keys() == gradient.keys() - shared
  assert worst(gradient, stored) < (GRADIENT, "")
  norm = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for n, x in gradient.items() if n not in shared))
  assert error(norm, golden["grad_total_norm"]) < GRADIENT


def test_gradient_of_the_kl_alone(golden):
  assert worst(golden.kl_gradient, golden.group("grad_kl/")) < (GRADIENT, "")


def test_one_step_of_adamw(golden):
  params, first, second = golden.step(golden.training[2])
  for name, expected in golden.group("adamw/param/").items():
    np.testing.assert_allclose(params[name], expected, rtol=0, atol=PARAMETER, err_msg=name)
  assert worst(first, golden.group("adamw/exp_avg/")) < (GRADIENT, "")
  assert worst(second, golden.group("adamw/exp_avg_sq/")) < (SECOND_MOMENT, "")


def test_imagination(golden):
  assert error(time_major(golden.roll.deter), golden["roll/h"]) < FORWARD
  assert error(time_major(golden.roll.logits), golden["roll/prior_logits"]) < FORWARD
  np.testing.assert_array_equal(time_major(golden.roll.stoch), golden["roll/z"])
  chosen = features(golden.roll)[:, np.asarray(golden.c("roll_decoded_steps"))]
  decoded = wm.decode(golden.model, golden.params, chosen)
  for theirs, ours in CAMERAS.items():
    assert error(torch_pictures(decoded[ours]), golden[f"roll/decoded_{theirs}"]) < FORWARD


# Wrong variants, which the comparisons above must see: a test that cannot fail is worse than none.


def test_another_norm_eps_is_seen(golden):
  wrong = Golden(norm_eps=golden.config.norm_eps / 100)
  embed = jax.jit(wm.encode, static_argnums=0)(wrong.model, wrong.params, wrong.batch)
  assert error(time_major(embed), golden["embed"]) > 100 * FORWARD


def test_a_zero_initial_state_is_seen(golden):
  """LUMOS's first state is learned; frames that are not reset at t = 0 depend on it."""
  embed, batch = golden.forward[0], golden.batch
  zero = jax.tree.map(jnp.zeros_like, wm.initial_latent(golden.model, golden.params, len(embed)))
  posterior, _ = wm.observe(golden.model, golden.params, embed, batch.prev_action, batch.is_first, None, zero)
  assert not batch.is_first[:, 0].all()
  deter = golden["features"][..., : golden.config.deter]
  assert error(time_major(posterior.deter), deter) > 100 * FORWARD


def test_flipped_kernels_are_seen(golden):
  """Transposed convolutions are kept in torch's orientation."""
  params = lumos.merge(golden.params, {})
  for camera in CAMERAS.values():
    for conv in params["decoder"][camera].values():
      conv["kernel"] = conv["kernel"][::-1, ::-1]
  pictures = wm.decode(golden.model, params, features(golden.forward[1]))
  for theirs, ours in CAMERAS.items():
    assert error(torch_pictures(pictures[ours]), golden[f"decoded_{theirs}"]) > 100 * FORWARD


def test_a_swapped_kl_balance_is_seen(golden):
  swapped = 1 - golden.config.kl_balance
  if swapped == golden.config.kl_balance:
    pytest.skip("a balance of one half")
  gradient = golden.loss_and_gradient(image_weight=0.0, kl_weight=1.0, kl_balance=swapped)[2]
  assert worst(lumos.to_state_dict(gradient), golden.group("grad_kl/")) > (100 * GRADIENT, "")


def test_latents_without_gradient_are_seen(golden, monkeypatch):
  straight_through = distributions.one_hot
  cut = lambda *args: jax.lax.stop_gradient(straight_through(*args))
  monkeypatch.setattr(distributions, "one_hot", cut)
  _, last, gradient = Golden().loss_and_gradient()
  np.testing.assert_array_equal(last.stoch.reshape(golden["out_z"].shape), golden["out_z"])
  assert worst(lumos.to_state_dict(gradient), golden.group("grad/")) > (100 * GRADIENT, "")


def test_missing_clipping_is_seen(golden):
  if golden["grad_total_norm"] < 1.1 * golden.config.grad_clip:
    pytest.skip("the file's gradient is not clipped")
  unclipped = Golden(grad_clip=0.0)
  _, _, second = unclipped.step(golden.training[2])
  assert worst(second, golden.group("adamw/exp_avg_sq/")) > (100 * SECOND_MOMENT, "")
