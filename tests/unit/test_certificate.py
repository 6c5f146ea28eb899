"""Certificates: corrections by hand, intervals that hold, colours, verdicts, what dreams are read for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import certificate
from wam_jax.core.certificate import RULES, Calibration
from wam_jax.training import certificate as train_certificate
from wam_jax.training.imagination import World
from wam_jax.types import Latent, Takes


def test_rogan_gladen_by_hand():
  # Of 100 episodes 60 succeed: 54 of these are called so (0.9), and 8 of the 40 failed ones (0.8).
  assert certificate.rogan_gladen(0.62, 0.9, 0.8) == pytest.approx(0.6)
  assert certificate.rogan_gladen(np.array([0.1, 0.95]), 0.9, 0.8).tolist() == [0, 1]
  assert np.isnan(certificate.rogan_gladen(0.5, 0.4, 0.6))


def test_rates_are_shrunk_as_far_as_their_spread_is_chance():
  assert certificate.shrunk([0.8, 0.8], [30, 30]).tolist() == pytest.approx([0.8, 0.8])
  assert certificate.shrunk([0.48, 0.52], [10, 10]).tolist() == pytest.approx([0.5, 0.5])
  apart = certificate.shrunk([0.1, 0.9], [1000, 1000])
  assert apart.tolist() == pytest.approx([0.1, 0.9], abs=0.01)


def test_correction_moves_towards_what_the_takes_say():
  called = [np.full(60, 0.62), np.full(60, 0.62)]
  rows = certificate.corrected(called, ([0.9, 0.9], [1000, 1000]), ([0.8, 0.8], [1000, 1000]))
  assert rows[0]["value"] == pytest.approx(0.6, abs=0.02)
  assert rows[0]["low"] < 0.6 < rows[0]["high"]
  nothing = certificate.corrected(called, ([0.3, 0.3], [30, 30]), ([0.5, 0.5], [30, 30]))
  assert nothing == [None, None]


def test_intervals_hold_what_the_model_draws():
  rng, held = np.random.default_rng(0), []
  calibration = Calibration(0.3, 0.8, 0.7, 0.3, 0.35)
  for _ in range(60):
    imagined = rng.uniform(0.5, 0.97, 4)
    log_odds = 0.3 + 0.8 * np.log(imagined / (1 - imagined)) + rng.normal() * 0.3 + rng.normal(size=4) * 0.7
    real = 1 / (1 + np.exp(-log_odds))
    called = [(rng.uniform(size=60) < p).astype(float) for p in imagined]
    draws = certificate.draw(called, [0.6] * 4, calibration)
    rows = zip([*real, real.mean()], [*draws, draws.mean(0)], strict=True)
    held += [np.quantile(d, 0.025) <= p <= np.quantile(d, 0.975) for p, d in rows]
  assert 0.9 < np.mean(held) < 1


def test_the_less_dreams_tell_apart_the_wider_the_interval():
  called = [np.full(60, 0.9)] * 3
  rows = certificate.predict(called, [0.6, 0.2, 0.0])["tasks"]
  widths = [row["high"] - row["low"] for row in rows]
  assert widths[0] < widths[1] < widths[2] and widths[2] > 0.8


@pytest.mark.parametrize("name", RULES)
def test_colours_turn_at_their_limits(name):
  rule = RULES[name]
  worse = np.sign(rule.red - rule.yellow) * 1e-6
  values = (rule.yellow, rule.yellow + worse, rule.red + worse)
  assert [rule.colour(x) for x in values] == [
    "green",
    "yellow",
    "red",
  ]
  assert rule.colour(None) == "none"


GREEN = {name: rule.yellow for name, rule in RULES.items()}


@pytest.mark.parametrize(
  ("low", "changed", "word", "about"),
  [
    (0.85, {}, "deploy", "90 % predicted, 85 to 97"),
    (0.5, {}, "collect", "90 % predicted, 50 to 97"),
    (0.5, {"unfamiliar": RULES["unfamiliar"].red}, "collect", RULES["unfamiliar"].meaning),
    (0.85, {"told_apart": 0.1}, "do not trust", RULES["told_apart"].meaning),
    (0.85, {"told_apart": None, "auc": None}, "do not trust", "no held-out failed takes"),
  ],
)
def test_verdicts(low, changed, word, about):
  predicted = {
    "cloned": {"value": 0.8, "low": 0.6, "high": 0.9},
    "ppo": {"value": 0.9, "low": low, "high": 0.97},
  }
  verdict = certificate.verdict(predicted, {"cloned": GREEN, "ppo": GREEN | changed}, 0.8)
  assert verdict["verdict"] == word and verdict["policy"] == "ppo"
  assert about in verdict["reason"]
  assert bool(verdict["takes"]) == (word != "deploy")


# --- what dreams are read for -----------------------------------------------------------------------------


def moved(params, latent, action, key):
  """deter [E, 2] goes on by the action's first number, with noise; the code is always the first class."""
  del params
  noise = 0.01 * jax.random.normal(key, latent.deter.shape)
  return latent.replace(deter=latent.deter + action[..., :1] + noise)


class Policy:
  chunk = 4

  def sample(self, params, feature, key, deterministic):
    assert deterministic
    return jnp.full((len(feature), 4, 7), params) + 0.1 * jax.random.normal(key, (len(feature), 1, 1))


class Judge:
  def score(self, params, feature):
    return feature[..., 0] - feature[..., 1]


WORLD = World(moved, 1, 2)


@pytest.mark.parametrize("follows", [True, False])
def test_actions_that_matter_lead_elsewhere(follows):
  world = WORLD
  if not follows:
    world = World(lambda params, latent, action, key: moved(params, latent, 0 * action, key), 1, 2)
  rng = np.random.default_rng(0)
  feature, action = rng.normal(size=(20, 9, 4)).astype(np.float32), rng.uniform(-1, 1, (20, 9, 7))
  mask = np.arange(9) < rng.integers(3, 9, 20)[:, None]
  takes = Takes(feature, jnp.asarray(action), None, mask)
  distances = jax.jit(lambda takes, key: train_certificate.action_distances(world, {}, takes, key))
  other, again = jax.device_get(distances(takes, jax.random.key(0)))
  assert other.shape == again.shape == (20,)
  assert (other > again).mean() == 1 if follows else 0.2 < (other > again).mean() < 0.8


def test_distance_to_the_nearest_known_feature():
  rng = np.random.default_rng(0)
  feature, known = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
  expected = np.linalg.norm(feature[:, None] - known, axis=-1).min(1)
  np.testing.assert_allclose(train_certificate.nearest_distance(feature, known), expected, rtol=1e-4)


def test_surprise_is_the_log_probability_of_what_was_seen():
  logits = jnp.log(jnp.array([[[0.25, 0.75], [0.9, 0.1]]]))
  world = World(lambda params, latent, action, key: Latent(latent.deter, latent.stoch, logits, None), 2, 2)
  after = jnp.array([[5.0, 1, 0, 0, 1]])  # deter, then the codes 0 and 1
  value = train_certificate.surprise(world, {}, jnp.zeros((1, 5)), jnp.zeros((1, 7)), after)
  np.testing.assert_allclose(value, [-np.log(0.25 * 0.1)], rtol=1e-5)
