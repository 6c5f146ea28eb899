"""Eight virtual devices compute what one does. Run by tests/unit/test_sharding.py in a process of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_up_params import random_like

from wam_jax import config as config_lib
from wam_jax.data import windows
from wam_jax.embodiment import CALVIN
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.world_model import make_world_model
from wam_jax.stages import world_model
from wam_jax.training import behaviour_cloning, classifier, imagination, ppo, sharding, state
from wam_jax.training import tasks as train_tasks
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training
from wam_jax.training.classifier_pool import Pool
from wam_jax.types import Latent, Takes

F = 10
POLICY = DiffusionPolicy(F, chunk=2, hidden=8, time_dim=4, denoising_steps=4, fine_tuned_steps=2)
CLASSIFIER = SuccessClassifier(F, (8, 6), 8)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def mesh():
  assert jax.device_count() == 8
  return sharding.make_mesh()


def close(one, eight, what="", least=1e-3):
  """Equal to 1e-5 of each array's largest number, or of `least` if that is more."""
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(eight), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    limit = TOLERANCE * max(np.abs(a).max(initial=0), least)
    np.testing.assert_allclose(b, a, rtol=0, atol=limit, err_msg=what + jax.tree_util.keystr(path))


def random_store(num=64, size=16):
  rng = np.random.default_rng(0)
  picture = lambda: jnp.asarray(rng.integers(0, 256, (num, size * size * 3), np.uint8))
  action = lambda: jnp.asarray(rng.uniform(-1, 1, (num, 7)), jnp.float32)
  return windows.FrameStore(
    pictures={"rgb_static": picture(), "rgb_gripper": picture()},
    robot_obs=jnp.asarray(rng.normal(size=(num, 15)), jnp.float32),
    action=action(),
    prev_action=action(),
    is_first=jnp.asarray(rng.random(num) < 0.2),
  )


def world_model_config(**changes):
  c = config_lib.default_config().world_model
  c.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10, updates=10)
  c.update(inverse_dynamics_hidden=8, embedding_image_weight=1.0, batch_size=16, sequence_length=6)
  c.cameras = ("rgb_static",)
  c.update(changes)
  return c


@pytest.mark.parametrize(
  "changes",
  [
    {"decode_fraction": 0.5, "accumulate": 2, "remat": True},
    {"carry_state": True, "inverse_dynamics_weight": 0.0},
    {"proprio": "latent", "robot_obs_weight": 1.0, "open_loop_share": 0.6, "accumulate": 2},
  ],
  ids=["parts", "carry", "latent"],
)
def test_gradient_of_the_world_model(mesh, changes):
  c = world_model_config(**changes)
  model = make_world_model(c, 16)
  params = random_like(lambda key: wm.init_params(model, key))
  sampler = windows.Sampler(64, 16, 6, c.carry_state, 0.1)
  batch = sampler.sample(random_store(), jax.random.key(1), jnp.int32(3))
  pairs = np.asarray(wm_training.valid_pairs(batch.is_first)).reshape(8, -1).sum(1)
  assert len(set(pairs)) > 1  # devices with unequal numbers of pairs
  draws = wm_training.draw(model, c, jax.random.key(2), 16, 6)
  carry = wm.initial_latent(model, params, 16) if c.carry_state else None
  found = {}
  for name, devices in (("one", None), ("eight", mesh)):
    args = sharding.put((params, batch, draws, carry), devices)
    found[name] = jax.jit(wm_training.make_gradients(model, c, devices))(*args)
  close(found["one"], found["eight"])
  assert max(np.abs(x).max() for x in jax.tree.leaves(found["one"][0])) > 1


@pytest.mark.parametrize("size", [16, 10], ids=["rows", "padded_rows"])
def test_updates_of_the_world_model(mesh, size):
  """Several updates, with the windows and all noise drawn on the devices; the state stays whole."""
  c = world_model_config(carry_state=True, batch_size=size)
  model = make_world_model(c, 16)
  found = []
  for devices in (None, mesh):
    params = random_like(lambda key: wm.init_params(model, key))
    optimizer = optax.sgd(1e-5)
    start = world_model.initial_state(c, model, optimizer, params)
    sampler = world_model.make_sampler(c, 64, devices, CALVIN)
    update = world_model.resident_update(c, model, optimizer, sampler, devices)
    args = sharding.put((start, random_store(), jax.random.key(5)), devices)
    after, metrics = update(*args, 3)
    assert all(x.is_fully_replicated for x in jax.tree.leaves((after, metrics)))
    found.append((after, metrics))
  close(*found)


def one_task_update(update_task, start, data, devices):
  """What one step of plain SGD with rate 1 takes off the parameters: the gradient; and metrics."""
  stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
  update = train_tasks.make_task_update(update_task, stack(data), ("a", "b"), devices)
  begun = sharding.put(stack(start), devices)
  after, metrics = update(begun, jax.random.key(7), 1)
  return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), begun.params, after.params), metrics


def test_gradient_of_cloning(mesh):
  rng = np.random.default_rng(1)
  feature = rng.normal(size=(1, 3, 9, F)).astype(np.float32)
  action = rng.uniform(-1, 1, (1, 3, 9, 7)).astype(np.float32)
  data = behaviour_cloning.make_data(Takes(feature, action, None, np.ones((1, 3, 9), bool)), POLICY.chunk)
  optimizer = optax.sgd(1.0)
  start = state.make_train_state(POLICY.init(jax.random.key(0)), optimizer, ema=True)
  found = [
    one_task_update(
      behaviour_cloning.make_update(POLICY, optimizer, 16, 0.9, devices),
      start,
      jax.tree.map(lambda x: x[0], data),
      devices,
    )
    for devices in (None, mesh)
  ]
  close(*found)
  assert max(np.abs(x).max() for x in jax.tree.leaves(found[0][0])) > 1e-3


def test_gradient_of_the_classifier(mesh):
  rng = np.random.default_rng(2)
  pool = Pool(
    feature=jnp.asarray(rng.normal(size=(40, F)), jnp.float32),
    row=jnp.asarray(rng.integers(0, 40, (5, 9)), jnp.int32),
    count=jnp.full(5, 9, jnp.int32),
  )
  c = config_lib.default_config().classifier
  c.batch_size = 24
  optimizer = optax.sgd(1.0)
  start = state.make_train_state(CLASSIFIER.init(jax.random.key(0)), optimizer)
  found = [
    one_task_update(classifier.make_update(CLASSIFIER, optimizer, c, devices), start, pool, devices)
    for devices in (None, mesh)
  ]
  close(*found)
  assert max(np.abs(x).max() for x in jax.tree.leaves(found[0][0])) > 1e-3


def drift(params, latent, action, key):
  """A world whose state moves with the action: enough for gradients and rewards to differ."""
  deter = 0.9 * latent.deter + params["gain"] * action.sum(-1, keepdims=True)
  deter = deter + 0.01 * jax.random.normal(key, deter.shape)
  return Latent(deter=deter, stoch=latent.stoch, logits=latent.stoch)


@pytest.mark.parametrize(
  ("form", "minibatches", "dreams"),
  [("frozen_chains", 1, 16), ("current_chains", 2, 16), ("frozen_chains", 1, 10)],
)
def test_gradient_of_ppo(mesh, form, minibatches, dreams, monkeypatch):
  """One epoch by plain SGD: with one minibatch what it takes off is the gradient."""
  sgd = {"actor": optax.sgd(1.0), "critic": optax.sgd(0.1)}
  monkeypatch.setattr(ppo, "make_optimizers", lambda config: sgd)
  c = config_lib.default_config().ppo
  c.update(dreams=dreams, chunks_per_iteration=5, horizon_steps=8, epochs=1, minibatches=minibatches)
  c.update(value_hidden=(8, 8, 8), critic_warmup_iterations=0, bc_weight=0.1, bc_form=form, target_kl=1e9)
  world = imagination.World(drift, 2, 3)
  dreamer = imagination.Dreamer(world, POLICY, CLASSIFIER, c.horizon_steps // POLICY.chunk)
  keys = jax.random.split(jax.random.key(3), 4)
  frozen = ppo.Frozen(
    base=POLICY.init(keys[2]),
    classifier={"network": CLASSIFIER.init(keys[1]), "threshold": jnp.float32(0.0)},
    starts=imagination.StartFrames(jax.random.normal(keys[0], (5, F)), jnp.int32(5)),
  )
  begun = ppo.init_state(POLICY, c, frozen, keys[3])
  stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
  found, rollouts = [], []
  for devices in (None, mesh):
    iterate = ppo.make_iteration(dreamer, c, devices)
    dream = ppo.make_rollout(dreamer, c, devices)
    run = lambda task, shared, f: f(task[0], task[1], shared, task[2])
    task = sharding.put((stack(begun), stack(frozen), train_tasks.task_keys(jax.random.key(4), 2)), devices)
    shared = sharding.put({"gain": jnp.float32(0.3)}, devices)
    if form == "frozen_chains":  # dreams do not depend on the form
      rollouts.append(train_tasks.over_tasks(lambda t, s: run(t, s, dream), mesh=devices)(task, shared))
    after, metrics = train_tasks.over_tasks(lambda t, s: run(t, s, iterate), mesh=devices)(task, shared)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(after))
    taken = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), task[0].params, after.params)
    found.append(((taken, after.scale, after.dreams), metrics))
  if rollouts:
    close(*rollouts, "rollout")
    assert 0 < np.asarray(rollouts[0][1].terminated).mean() < 1
  close(found[0][0], found[1][0])
  close(found[0][1], found[1][1], least=1.0)  # the loss is a sum of advantages, which are 0 on average
  assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(found[0][0][0]["actor"]["body"]["output"]))


def test_rows_of_processes(mesh):
  assert sharding.own_rows(16, mesh) == slice(0, 16) == sharding.own_rows(16, None)
  rows = sharding.put_rows({"x": np.arange(32.0).reshape(2, 16)}, mesh, axis=1)["x"]
  assert rows.addressable_shards[3].data.shape == (2, 2) and not rows.is_fully_replicated
  np.testing.assert_array_equal(rows, np.arange(32.0).reshape(2, 16))
  key = sharding.put(jax.random.key(3), mesh)
  assert key.is_fully_replicated and jax.random.key_data(key).tolist() == [0, 3]
  back = sharding.on_this_process({"key": key, "none": None})
  assert len(back["key"].devices()) == 1
