from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.config import default_config
from wam_jax.core.discrimination import NUMBERS
from wam_jax.data.features import DemoFeatures
from wam_jax.host import tables
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.stages import classifier as classifier_stage
from wam_jax.storage.artifact import Artifact
from wam_jax.training import classifier as classifier_training
from wam_jax.training import classifier_pool
from wam_jax.training.imagination import World
from wam_jax.training.state import make_train_state
from wam_jax.types import Latent, Takes

F = 8  # D = 2 and two variables of three classes
CLASSIFIER = SuccessClassifier(F, (16, 8), 16)


def count_up(params, latent, action, key):
  """deter[0] counts steps, deter[1] adds up the first action."""
  deter = latent.deter + jnp.stack([jnp.ones(action.shape[:-1]), action[..., 0]], -1)
  return Latent(deter=deter, stoch=latent.stoch, logits=latent.stoch)


WORLD = World(count_up, 2, 3)


def demos(tasks=2, num=4, length=12):
  """deter[0] is the time; success from time 8 on, shown by the last entry."""
  rng = np.random.default_rng(0)
  mask = np.arange(length) < rng.integers(10, length + 1, (tasks, num, 1))
  success = mask & (np.arange(length) >= 8)
  feature = 0.1 * rng.normal(size=(tasks, num, length, F)).astype(np.float32)
  feature[..., 0] = np.arange(length)
  feature[..., -1] += success
  action = rng.uniform(-1, 1, (tasks, num, length, 7)).astype(np.float32)
  return Takes(feature, action, success, mask)


sample_batch = jax.jit(classifier_pool.sample_batch, static_argnums=2)
nt_xent = jax.jit(classifier_training.nt_xent)


def make_pool(data=None, **changes):
  """A pool of NumPy's arrays."""
  data = data or demos()
  args = {"num_dreams": 6, "length": 8, "stride": 4} | changes
  return jax.device_get(
    classifier_pool.make_pool(WORLD, {}, data, data.feature[:, :, 0].repeat(2, 1), jax.random.key(0), **args)
  )


def test_nt_xent_by_hand():
  # Unit vectors at 0, 90, 180 degrees, labels 0, 0, 1, temperature 1. Positive pairs (a, b), (b, a):
  # similarity 0; a's negative has -1, b's has 0. Losses log(1 + e^-1) and log 2.
  x = jnp.array([[2.0, 0], [0, 0.5], [-3, 0]])
  label = jnp.array([0, 0, 1])
  expected = (np.log1p(np.exp(-1)) + np.log(2)) / 2
  np.testing.assert_allclose(nt_xent(x, label, 1.0), expected, rtol=1e-5)
  with pytest.raises(ValueError, match="label"):
    classifier_training.nt_xent(x, label[:2], 1.0)


def test_nt_xent_finite_at_extremes():
  label, value_and_grad = np.array([0, 0, 1, 1]), jax.jit(jax.value_and_grad(classifier_training.nt_xent))
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  for embedding, labels in ((0 * x, label), (1e6 * x, label), (x, 0 * label), (x, np.arange(4))):
    value, grad = value_and_grad(embedding, labels, 0.1)
    assert np.isfinite(value) and np.isfinite(grad).all()
  assert nt_xent(x, jnp.arange(4), 0.5) == 0  # no positive pair


def test_demo_dreams_carry_the_demo_labels_of_their_time():
  data = jax.tree.map(lambda x: x[0], demos())
  demo_dreams = jax.jit(lambda data, key: classifier_pool.demo_dreams(WORLD, {}, data, key))
  feature, label, valid = jax.device_get(demo_dreams(data, jax.random.key(1)))
  assert feature.shape == (4, 11, F) and valid.any()
  time = np.asarray(feature[..., 0]).astype(int)
  first = time[:, 0] - 1
  assert (first >= 0).all() and (first < 8).all()  # starts before success
  lengths = np.asarray(data.mask.sum(1))
  np.testing.assert_array_equal(np.asarray(valid), time < lengths[:, None])
  np.testing.assert_array_equal(np.asarray(label), (time >= 8) & (time < lengths[:, None]))
  # The second coordinate adds up exactly the demo's actions from its start on.
  for m in range(4):
    total = data.feature[m, first[m], 1] + data.action[m, first[m] : first[m] + 2, 0].sum()
    np.testing.assert_allclose(feature[m, 1, 1], total, rtol=1e-5)


def test_pool_groups_hold_what_they_say():
  data = demos()
  pool = make_pool(data)
  for k in range(2):
    groups = [pool.feature[k, pool.row[k, g, : pool.count[k, g]]] for g in range(5)]
    assert len(groups[0]) == data.success[k].sum()
    assert len(groups[2]) == (data.mask & ~data.success)[k].sum()
    assert (groups[0][:, -1] > 0.5).all() and (groups[2][:, -1] < 0.5).all()
    assert (groups[1][:, 0] >= 8).all() and (groups[3][:, 0] < 8).all()
    # Random actions and the other task's: 6 dreams each, seen at steps 4 and 8 of 8.
    assert len(groups[4]) == 2 * 6 * 2 and set(groups[4][:, 0].round()) == {4, 8}
  feature, label = sample_batch(jax.tree.map(lambda x: x[0], pool), jax.random.key(0), 40)
  assert feature.shape == (40, F) and label.sum() == 20


def test_failed_takes_are_negatives_real_and_dreamt():
  failed = demos(num=3)
  failed = failed.replace(success=np.zeros_like(failed.success))
  failed.feature[..., 1] = 50.0  # a mark that a dream carries on
  pool = make_pool(failed=failed)
  for k in range(2):
    real, dreamt = (pool.feature[k, pool.row[k, g, : pool.count[k, g]]] for g in (5, 6))
    assert len(real) == failed.mask[k].sum() and (real[:, 1] == 50).all()
    assert len(dreamt) and (dreamt[:, 1] > 30).all()
  feature, label = sample_batch(jax.tree.map(lambda x: x[0], pool), jax.random.key(0), 40)
  assert label.sum() == 20 and (feature[:, 1] > 30).sum() == 8 and not label[feature[:, 1] > 30].any()


@pytest.mark.parametrize("value", [False, True])
def test_task_without_both_labels_is_an_error(value):
  data = demos()
  data.success[1] = value
  with pytest.raises(ValueError, match="task 1: its demos hold no frame"):
    make_pool(data)


def test_training_separates_success():
  pool = jax.tree.map(lambda x: x[0], make_pool())
  optimizer = optax.adam(3e-3)
  config = default_config().classifier
  config.batch_size = 64
  update = jax.jit(classifier_training.make_update(CLASSIFIER, optimizer, config))
  state = jax.jit(lambda key: make_train_state(CLASSIFIER.init(key), optimizer))(jax.random.key(0))
  state, first = update(state, pool, jax.random.key(1), jnp.int32(3))
  state, last = update(state, pool, jax.random.key(2), jnp.int32(600))
  assert int(state.step) == 603
  assert last["loss"] < first["loss"] and last["accuracy"] > 0.8
  params = {"network": state.params, "threshold": jnp.float32(0)}
  data = demos()
  found = jax.jit(CLASSIFIER.success)(params, data.feature[0])
  quality = classifier_training.precision_recall(np.asarray(found), data.success[0], data.mask[0])
  assert quality["recall"] > 0.9 and quality["precision"] > 0.8  # 1 of 13 is wrong on some machines
  assert CLASSIFIER(params, data.feature[0]).shape == (4, 12)
  with pytest.raises(ValueError, match="feature"):
    CLASSIFIER.margin(state.params, jnp.ones((2, F + 1)))


def test_ensemble_calls_success_what_all_members_do():
  pair = SuccessClassifier(F, (16, 8), 16, members=2)
  network = jax.jit(pair.init)(jax.random.key(0))
  members = [jax.tree.map(lambda x, i=i: x[i : i + 1], network) for i in range(2)]
  feature = jax.random.normal(jax.random.key(1), (50, F))
  margin = jax.jit(CLASSIFIER.margin)
  single = [margin(member, feature) for member in members]
  assert not np.allclose(*single)
  np.testing.assert_allclose(jax.jit(pair.margin)(network, feature), np.minimum(*single), rtol=1e-5)
  # Each member learns as it would alone from its key: the update is that of its own loss.
  pool = jax.device_put(jax.tree.map(lambda x: x[0], make_pool()))
  optimizer, config = optax.adam(1e-3), default_config().classifier
  config.batch_size = 16
  update = classifier_training.make_update(pair, optimizer, config)
  state, _ = jax.jit(update)(make_train_state(network, optimizer), pool, jax.random.key(5), jnp.int32(1))
  key = jax.random.split(jax.random.fold_in(jax.random.key(5), 0), 2)[1]
  loss = lambda p: classifier_training.classifier_loss(
    pair,
    p,
    *classifier_pool.sample_batch(pool, key, 16),
    temperature=config.temperature,
    contrastive_weight=config.contrastive_weight,
    cross_entropy_weight=config.cross_entropy_weight,
  )[0]
  second = jax.tree.map(lambda x: np.asarray(x)[1], network)
  alone = jax.jit(
    lambda p: optax.apply_updates(p, optimizer.update(jax.grad(loss)(p), optimizer.init(p), p)[0])
  )
  for a, b in zip(
    jax.tree.leaves(alone(second)),
    jax.tree.leaves(jax.tree.map(lambda x: np.asarray(x)[1], state.params)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_probabilities_calibration_by_hand():
  p = np.array([0.95, 0.95, 0.15, 0.15, 0.5])
  y = np.array([1, 0, 0, 0, 1], bool)
  mask = np.array([1, 1, 1, 1, 0], bool)
  got = classifier_training.calibration(p, y, mask)
  np.testing.assert_allclose(got["calibration_error"], (2 * 0.45 + 2 * 0.15) / 4)
  np.testing.assert_allclose(got["brier"], (0.05**2 + 0.95**2 + 2 * 0.15**2) / 4)
  assert classifier_training.calibration(p, y, mask & False) == {"calibration_error": None, "brier": None}
  with pytest.raises(ValueError, match="shapes"):
    classifier_training.calibration(p, y[:2], mask)


def test_calibration_keeps_the_share_and_never_goes_below_the_configured_threshold():
  margin = np.random.default_rng(0).normal(3, 2, (2, 200))
  margin[1] -= 100
  threshold = classifier_training.calibrate(margin, 0.5, 0.025)
  assert threshold[1] == 0
  assert 0 < (margin[0] > threshold[0]).mean() <= 0.025
  assert classifier_training.calibrate(margin, 0.9, 0.025)[1] == pytest.approx(np.log(9), rel=1e-5)


def test_precision_recall_by_hand():
  predicted = np.array([1, 1, 1, 0, 0, 1], bool)
  label = np.array([1, 0, 1, 1, 0, 0], bool)
  mask = np.array([1, 1, 1, 1, 1, 0], bool)
  assert classifier_training.precision_recall(predicted, label, mask) == {"precision": 2 / 3, "recall": 2 / 3}
  assert classifier_training.precision_recall(predicted & False, label, mask) == {
    "precision": None,
    "recall": 0,
  }
  with pytest.raises(ValueError, match="shapes"):
    classifier_training.precision_recall(predicted, label[:3], mask)


def test_gate(tmp_path):
  shares = {"open_drawer": 0.02, "turn_on_led": 0.4}
  demos = dict.fromkeys(("precision", "recall", "calibration_error"), 0.5)
  groups = {"heldout_demos": demos, "heldout_demo_dreams": demos}
  tasks = {task: groups | {"random_dreams": {"false_positives": share}} for task, share in shares.items()}
  (tmp_path / "quality.json").write_text(json.dumps({"tasks": tasks}))
  artifact = Artifact(stage="classifier", path=tmp_path, fingerprint="", config={})
  classifier_stage.check_gate(artifact, ("open_drawer",), 0.05)
  with pytest.raises(classifier_stage.GateError, match=r"turn_on_led 40\.0%.*enforce_gate") as error:
    classifier_stage.check_gate(artifact, tuple(shares), 0.05)
  assert "open_drawer" not in str(error.value)


def test_tasks_that_dreams_do_not_tell_apart(tmp_path):
  demos = dict.fromkeys(("precision", "recall", "calibration_error"), 0.5)
  plain = {"heldout_demos": demos, "heldout_demo_dreams": demos, "random_dreams": {"false_positives": 0.0}}

  def told(value):
    rows = {name: dict.fromkeys(("value", "low", "high"), value) for name in NUMBERS}
    return plain | {"discrimination": {"real": rows, "dreamt": rows}}

  content = {"tasks": {"a": told(0.09), "b": told(0.1), "c": plain}}
  (tmp_path / "quality.json").write_text(json.dumps(content))
  artifact = Artifact(stage="classifier", path=tmp_path, fingerprint="", config={})
  told_of = lambda least: classifier_stage.not_told_apart(artifact, ("a", "b", "c"), least)
  assert told_of(0.1) == {"a": 0.09} and told_of(0.0) == {} and set(told_of(0.2)) == {"a", "b"}


# --- good takes and failed ones -------------------------------------------------------------------


class Height:
  """Log-odds that can be computed by hand: deter[1], which adds up the first action, times a factor."""

  def margin(self, network, feature):
    return network * feature[..., 1]

  def score(self, params, feature):
    return self.margin(params["network"], feature) - params["threshold"]

  def success(self, params, feature):
    return self.score(params, feature) > 0

  def __call__(self, params, feature):
    return jax.nn.sigmoid(self.margin(params["network"], feature))


def shaken(params, latent, action, key):
  """`count_up` with noise in deter[1]."""
  latent = count_up(params, latent, action, key)
  return latent.replace(deter=latent.deter.at[..., 1].add(jax.random.normal(key, latent.deter.shape[:-1])))


def one_take_set(lengths, seed=0, length=7):
  rng = np.random.default_rng(seed)
  feature = rng.normal(size=(len(lengths), length, F)).astype(np.float32)
  action = rng.uniform(-1, 1, (len(lengths), length, 7)).astype(np.float32)
  mask = np.arange(length) < np.array(lengths)[:, None]
  feature[:, 0, 1] += 3  # higher than any later frame: the first frame does not count
  feature[~mask] = 100.0  # neither does the padding
  action[~mask] = 100.0
  return Takes(feature, action, np.zeros_like(mask), mask)


def test_take_scores_by_hand():
  one = one_take_set([7, 4, 2])
  feature, action = one.feature, one.action
  params = {"network": jnp.float32(2.0), "threshold": jnp.float32(0.3)}
  score = lambda world: jax.jit(
    lambda key: classifier_training.take_scores(world, {}, Height(), params, one, key, 5)
  )(jax.random.key(1))
  real, dreamt = score(WORLD)
  assert real.shape == (3, 1) and dreamt.shape == (3, 5)
  for m, num in enumerate([7, 4, 2]):
    # After action t from the first frame the dream's sum is that of actions 0 to t.
    sums = feature[m, 0, 1] + np.cumsum(action[m, : num - 1, 0])
    np.testing.assert_allclose(real[m, 0], 2 * feature[m, 1:num, 1].max() - 0.3, rtol=1e-5)
    np.testing.assert_allclose(dreamt[m], 2 * sums.max() - 0.3, rtol=1e-5)
  noisy = score(World(shaken, 2, 3))
  np.testing.assert_array_equal(noisy[0], real)
  assert len(np.unique(noisy[1])) == noisy[1].size  # every dream is another one


def takes(height, counts, length=6, seed=0):
  """Takes of two tasks whose deter[1] is about `height` from the second frame on, and that stay there."""
  rng, most = np.random.default_rng(seed), max(counts)
  feature = 0.1 * rng.normal(size=(2, most, length, F)).astype(np.float32)
  feature[..., 1] += height
  action = rng.uniform(-0.01, 0.01, (2, most, length, 7)).astype(np.float32)
  mask = np.broadcast_to(np.arange(most) < np.array(counts)[:, None], (2, most))[..., None]
  mask = np.broadcast_to(mask, (2, most, length)).copy()
  feature[~mask] = -height
  success = mask & (np.arange(length) >= 4)
  return DemoFeatures(feature, action, success, mask, ("open_drawer", "turn_on_led"))


TOLD = {"network": jnp.array([1.0, -1.0]), "threshold": jnp.array([0.5, 0.5])}


def test_takes_are_told_apart_task_by_task_and_padding_is_no_take():
  """The second task's network has the other sign: what is high is a failure there."""
  good, failed = takes(2.0, (5, 3)), takes(-2.0, (2, 4), seed=1)
  told = classifier_stage.told_apart(WORLD, {}, Height(), TOLD, good, failed, jax.random.key(0))
  assert set(told) == {"real", "dreamt"}
  for numbers in told.values():
    first, second = numbers["tasks"]
    assert {name: first[name]["value"] for name in NUMBERS} == dict.fromkeys(NUMBERS, 1.0)
    assert second["auc"]["value"] == second["sensitivity"]["value"] == second["specificity"]["value"] == 0
    assert numbers["mean"]["auc"]["value"] == 0.5 and numbers["mean"]["difference"]["value"] == 0
    lows = [task["specificity"]["low"] for task in numbers["tasks"]]
    assert lows == pytest.approx([2 / (2 + 1.959964**2), 0], abs=1e-6)  # 2 of 2 takes, not of 8 dreams
  # In dreams alone: takes that fall although their actions say that they stay.
  fallen = takes(2.0, (2, 4), seed=1)
  fallen.feature[:, :, 1:, 1] = -2.0
  told = classifier_stage.told_apart(WORLD, {}, Height(), TOLD, good, fallen, jax.random.key(0))
  assert told["real"]["tasks"][0]["specificity"]["value"] == 1
  assert told["dreamt"]["tasks"][0]["specificity"]["value"] == 0


def test_quality_holds_what_takes_are_told_apart_by():
  rng = np.random.default_rng(3)
  good, failed = takes(2.0, (5, 3)), takes(-2.0, (2, 4), seed=1)
  margins = lambda task, shared: rng.normal(size=(2, classifier_stage.DREAMS))
  judge = lambda failed: classifier_stage._quality(
    WORLD, {}, Height(), TOLD, good, failed, margins, jax.random.key(0)
  )
  quality = json.loads(json.dumps(judge(failed)))
  assert quality["tasks"]["turn_on_led"]["takes"] == {"good": 3, "failed": 4}
  assert quality["tasks"]["open_drawer"]["discrimination"]["dreamt"]["auc"]["value"] == 1
  assert quality["discrimination"]["real"]["auc"]["value"] == 0.5
  rows = tables.discrimination_rows(quality)
  assert [row[0] for row in rows[1:]] == [
    *("open_drawer, seen", "turn_on_led, seen", "Mean, seen"),
    *("open_drawer, dreamt", "turn_on_led, dreamt", "Mean, dreamt"),
  ]
  assert rows[1][1:4] == ["5, 2", "100", "0"] and rows[1][5].startswith("1.00 (")
  assert rows[2][1:4] == ["3, 4", "0", "100"] and rows[2][4].startswith("-100 (")
  assert len({len(row) for row in rows}) == 1
  without = judge(None)
  assert "discrimination" not in without and "takes" not in without["tasks"]["open_drawer"]
