"""Wilson intervals against hand-computed values and at the extremes."""

import pytest

from wam_jax.core import intervals


def test_hand_computed():
  # n = 10, s = 5: centre 0.5, z^2 = 3.841459;
  # half width = 1.959964 * sqrt(0.25/10 + 3.841459/400) / (1 + 0.3841459)
  #            = 1.959964 * sqrt(0.0346036) / 1.3841459 = 1.959964 * 0.1860205 / 1.3841459 = 0.263407
  low, high = intervals.wilson_interval(5, 10)
  assert low == pytest.approx(0.5 - 0.263407, abs=1e-5)
  assert high == pytest.approx(0.5 + 0.263407, abs=1e-5)


def test_textbook_value():
  # 15 of 20: (0.75 + 0.0960365 -/+ 1.959964 * sqrt(0.009375 + 0.00240091)) / 1.19207295
  low, high = intervals.wilson_interval(15, 20)
  assert (low, high) == (pytest.approx(0.53130, abs=1e-4), pytest.approx(0.88814, abs=1e-4))


def test_extremes_keep_a_width():
  # 0 of n: low 0, high z^2 / (n + z^2)
  low, high = intervals.wilson_interval(0, 20)
  assert low == 0.0 and high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
  low, high = intervals.wilson_interval(20, 20)
  assert high == 1.0 and low == pytest.approx(20 / 23.841459, abs=1e-6)


@pytest.mark.parametrize("successes", range(13))
def test_contains_the_rate_and_mirrors(successes):
  low, high = intervals.wilson_interval(successes, 12)
  assert 0 <= low <= successes / 12 <= high <= 1
  mirrored = intervals.wilson_interval(12 - successes, 12)
  assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


@pytest.mark.parametrize("successes, trials", [(1, 0), (-1, 5), (6, 5)])
def test_bad_counts_raise(successes, trials):
  with pytest.raises(ValueError):
    intervals.wilson_interval(successes, trials)


@pytest.mark.parametrize("successes", [0, 3, 7])
def test_rates_of_whole_trials_have_wilsons_interval(successes):
  assert intervals.rate_interval(successes / 7, 7) == (
    successes / 7,
    *intervals.wilson_interval(successes, 7),
  )


def test_rates_between_whole_trials_lie_between_their_intervals():
  below, rate, above = (intervals.rate_interval(r, 8) for r in (2 / 8, 2.5 / 8, 3 / 8))
  assert all(a < b < c for a, b, c in zip(below, rate, above, strict=True))
  # 2.5 of 8 by hand: (0.3125 + 0.240091 -/+ 1.959964 sqrt(0.026855 + 0.015006)) / 1.480182
  assert rate == pytest.approx((0.3125, 0.102408, 0.644245), abs=1e-5)


@pytest.mark.parametrize("rate, trials", [(0.5, 0), (-0.01, 5), (1.01, 5)])
def test_rates_out_of_range_raise(rate, trials):
  with pytest.raises(ValueError, match="rate must lie in"):
    intervals.rate_interval(rate, trials)


def test_mean_with_equal_trials_is_the_pooled_interval():
  rate, low, high = intervals.mean_interval([3, 9, 10], [10, 10, 10])
  assert rate == pytest.approx(22 / 30)
  assert (low, high) == pytest.approx(intervals.wilson_interval(22, 30))


def test_mean_counts_tasks_equally():
  rate, low, high = intervals.mean_interval([1, 0], [1, 99])
  assert rate == pytest.approx(0.5)
  assert high - low > 0.5  # one trial of the first task leaves it wide open


def test_mean_at_full_success():
  rate, low, high = intervals.mean_interval([7, 7, 7], [7, 7, 7])
  assert rate == 1.0 and high == 1.0 and low < 1.0


@pytest.mark.parametrize("successes, trials", [([], []), ([1], [1, 2]), ([3], [2])])
def test_mean_bad_counts_raise(successes, trials):
  with pytest.raises(ValueError):
    intervals.mean_interval(successes, trials)


def test_paired_difference_by_hand():
  # 3 gained, 1 lost of 8: difference 2/8; with the half episodes n = 10, centre 2/10,
  # variance ((3 + 1 + 1) / 10 - 0.04) / 10 = 0.046.
  before = [True, True, False, False, False, True, False, False]
  after = [True, False, True, True, True, True, False, False]
  difference, low, high = intervals.paired_difference(before, after)
  assert difference == 0.25
  half = 1.959964 * 0.046**0.5
  assert (low, high) == (pytest.approx(0.2 - half, abs=1e-6), pytest.approx(0.2 + half, abs=1e-6))


def test_paired_difference_keeps_a_width_and_mirrors():
  outcome = [True, False, True, True]
  difference, low, high = intervals.paired_difference(outcome, outcome)
  assert difference == 0 and low < 0 < high and low == pytest.approx(-high)
  other = [False, False, True, False]
  forth, back = intervals.paired_difference(other, outcome), intervals.paired_difference(outcome, other)
  assert forth == pytest.approx((-back[0], -back[2], -back[1]))


@pytest.mark.parametrize("before, after", [([], []), ([True], [True, False])])
def test_paired_difference_rejects_unlike_episodes(before, after):
  with pytest.raises(ValueError, match="same episodes"):
    intervals.paired_difference(before, after)


def test_independent_difference_is_newcombes():
  """Newcombe 1998, table II, method 10: the examples 56/70 - 48/80 and 0/10 - 0/10."""
  interval = lambda s, n: (s / n, *intervals.wilson_interval(s, n))
  found = intervals.independent_difference(interval(48, 80), interval(56, 70))
  assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
  found = intervals.independent_difference(interval(0, 10), interval(0, 10))
  assert found == pytest.approx((0.0, -0.2775, 0.2775), abs=1e-4)
  found = intervals.independent_difference(interval(0, 10), interval(10, 10))
  assert found[0] == 1.0 and 0 < found[1] < found[2] == 1.0
  with pytest.raises(ValueError, match="low <= rate"):
    intervals.independent_difference((0.5, 0.6, 0.7), interval(1, 2))
