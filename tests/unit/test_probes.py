"""Linear probes on hand-made features."""

import numpy as np
import pytest

from wam_jax.core import probes

N, F = 600, 12
BINARY = np.array([False, True])


@pytest.fixture
def made():
  """Features, a linear target and a lamp that is a half-space, in 30 windows of 20 frames."""
  rng = np.random.default_rng(3)
  feature = rng.normal(size=(N, F))
  weight = rng.normal(size=F)
  target = np.stack([feature @ weight + 5, feature[:, 0] - feature[:, 3] > 1.5], 1).astype(float)
  return feature, target, np.repeat(np.arange(30), 20)


def scores(fitted, feature, target):
  return probes.score(fitted, fitted.read(feature), target, BINARY)


def test_a_linear_target_is_read_exactly(made):
  feature, target, groups = made
  fitted = probes.fit(feature[:400], target[:400], BINARY, groups[:400])
  linear, lamp = scores(fitted, feature[400:], target[400:])
  assert linear == pytest.approx(1, abs=1e-6)
  assert target[:, 1].mean() < 0.2  # rarely on; what always says off would have 0.5
  assert lamp > 0.85
  assert fitted.regularisation[0] == min(probes.REGULARISATIONS)
  assert np.isnan(fitted.threshold[0]) and not np.isnan(fitted.threshold[1])


def test_a_shuffled_target_cannot_be_read(made):
  feature, target, groups = made
  shuffled = target[np.random.default_rng(0).permutation(N)]
  fitted = probes.fit(feature[:400], shuffled[:400], BINARY, groups[:400])
  linear, lamp = scores(fitted, feature[400:], shuffled[400:])
  assert -0.15 < linear < 0.05 and 0.35 < lamp < 0.65
  assert fitted.regularisation[0] > min(probes.REGULARISATIONS)  # noise is shrunk away


def test_many_features_and_few_frames_stay_finite():
  rng = np.random.default_rng(1)
  feature = np.repeat(rng.normal(size=(10, 40)), 2, 1)  # twice the same: singular
  target = np.stack([feature[:, 0], rng.random(10) < 0.5], 1)
  fitted = probes.fit(feature, target, BINARY, np.zeros(10, int))
  assert np.isfinite(fitted.weight).all() and np.isfinite(fitted.read(feature)).all()


def test_constant_targets_have_no_number(made):
  feature, target, groups = made
  fitted = probes.fit(feature, target, BINARY, groups)
  still = target.copy()
  still[:, 0], still[:, 1] = 0.2, 1
  assert scores(fitted, feature, still) == ["constant", "constant"]  # not where it is scored
  never = probes.fit(feature, still, BINARY, groups)
  assert never.constant.all() and scores(never, feature, target) == ["constant", "constant"]
  assert scores(fitted, feature[:0], target[:0]) == [None, None]


def test_scores_by_hand():
  # Errors 0, 1, 0, 1 about truths of variance 1.25: 1 - 0.5 / 1.25.
  assert probes.r_squared(np.array([0.0, 2, 2, 4]), np.array([0.0, 1, 2, 3])) == pytest.approx(0.6)
  # Two of four on found, one of one off.
  truth = np.array([True, True, True, True, False])
  assert probes.balanced_accuracy(np.array([True, True, False, False, False]), truth) == 0.75
  assert probes.balanced_accuracy(truth, np.ones(5, bool)) is None


def test_the_threshold_treats_rare_and_frequent_classes_alike():
  # One feature, off around 0 (900 frames), on around 1 (100 frames): half-way is 0.5 in the feature.
  rng = np.random.default_rng(2)
  on = np.arange(1000) % 10 == 0
  feature = (on + rng.normal(scale=0.2, size=1000))[:, None]
  fitted = probes.fit(feature, on[:, None].astype(float), np.array([True]), np.arange(1000) // 20)
  boundary = (fitted.threshold[0] - fitted.bias[0]) / fitted.weight[0, 0]
  assert boundary == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("frames", [1, 0])
def test_too_few_frames(frames):
  with pytest.raises(ValueError, match="too few"):
    probes.fit(np.zeros((frames, 3)), np.zeros((frames, 2)), BINARY, np.zeros(frames, int))


def test_shapes_that_do_not_belong_together(made):
  feature, target, groups = made
  with pytest.raises(ValueError, match="belong together"):
    probes.fit(feature, target[:-1], BINARY, groups)
  fitted = probes.fit(feature, target, BINARY, groups)
  with pytest.raises(ValueError, match="equal"):
    probes.score(fitted, fitted.read(feature)[:5], target, BINARY)


def test_r_squared_of_a_part_is_measured_by_the_variance_of_the_whole():
  truth = np.array([0.0, 0.0, 1.0, 1.0])
  reading = truth + 0.1
  assert probes.r_squared(reading, truth) == pytest.approx(1 - 0.01 / 0.25)
  assert probes.r_squared(reading[:2], truth[:2]) is None
  assert probes.r_squared(reading[:2], truth[:2], truth.var()) == pytest.approx(1 - 0.01 / 0.25)
