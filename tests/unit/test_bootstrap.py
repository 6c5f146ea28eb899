from __future__ import annotations

import math

import numpy as np
import pytest

from wam_jax.core import bootstrap


def test_t_interval_of_three_seeds_by_hand():
  mean, low, high = bootstrap.mean_over_seeds([0.1, 0.2, 0.3])
  half = 4.302652729696 * 0.1 / math.sqrt(3)
  assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
  assert math.isnan(bootstrap.mean_over_seeds([0.4])[1])


@pytest.mark.slow
def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  covered = 0
  for i in range(30):
    seeds = [(rng.random((2, 4, 25)) < np.array([0.7, 0.5])[:, None, None]).astype(int) for _ in range(8)]
    values = bootstrap.resampled(seeds, lambda drawn: float(np.mean([x[0] - x[1] for x in drawn])), seed=i)
    low, high = bootstrap.interval(values)
    covered += low <= 0.2 <= high
  assert covered >= 25  # 95 % of 30, less what chance and eight seeds take


def test_arms_stay_paired_by_start_state():
  rng = np.random.default_rng(1)
  one = rng.integers(0, 2, (3, 20))
  both = [np.stack([one, one])] * 2
  values = bootstrap.resampled(both, lambda drawn: float(np.mean([x[0] - x[1] for x in drawn])))
  assert not values.any()  # the same episodes of both arms are drawn: no difference in any sample
  assert np.std(bootstrap.resampled(both, lambda drawn: float(np.mean([x[0] for x in drawn])))) > 0


def test_the_same_draws_each_time():
  x = [np.random.default_rng(2).integers(0, 2, (3, 20))]
  statistic = lambda drawn: float(np.mean(drawn))
  assert np.array_equal(bootstrap.resampled(x, statistic), bootstrap.resampled(x, statistic))


def test_updates_to_reach():
  updates, rates = (100, 200, 400), (0.2, 0.4, 0.3)
  assert bootstrap.updates_to_reach(0.1, updates, rates) == 100
  assert bootstrap.updates_to_reach(0.3, updates, rates) == pytest.approx(100 * math.sqrt(2))  # log-linear
  assert bootstrap.updates_to_reach(0.4, updates, rates) == pytest.approx(200)
  assert math.isinf(bootstrap.updates_to_reach(0.5, updates, rates))


def test_steps_ratio_says_who_is_faster():
  updates = (100, 200, 400)
  assert bootstrap.steps_ratio(updates, (0.5, 0.6, 0.7), (0.1, 0.2, 0.5)) == pytest.approx(4)
  assert bootstrap.steps_ratio(updates, (0.1, 0.2, 0.5), (0.5, 0.6, 0.7)) == pytest.approx(1 / 4)
  assert bootstrap.steps_ratio(updates, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)) == pytest.approx(1)
  assert bootstrap.steps_ratio(updates, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == pytest.approx(1)
  # One that never reaches the other's best is compared at its own.
  assert bootstrap.steps_ratio((100, 1000), (0.5, 0.5), (0.3, 0.6)) == pytest.approx(10 ** (2 / 3))


def test_detectable_difference_is_found_as_often_as_it_says():
  rng = np.random.default_rng(3)
  deviation, seeds, found = 0.05, 5, 0
  true = bootstrap.detectable(deviation, seeds)
  for _ in range(2_000):
    low = bootstrap.mean_over_seeds(rng.normal(true, deviation, seeds).tolist())[1]
    found += low > 0
  assert 0.7 < found / 2_000 < 0.9


def test_interval_of_values_that_may_be_infinite():
  low, high = bootstrap.interval(np.array([1.0, math.inf, 2.0, math.nan]))
  assert low == 1 and math.isinf(high)
  assert math.isnan(bootstrap.interval(np.array([math.nan]))[0])


def test_rank_correlation_by_hand():
  assert bootstrap.rank_correlation([1, 5, 2, 9], [10, 30, 20, 1000]) == pytest.approx(1)
  assert bootstrap.rank_correlation([1, 5, 2, 9], [4, 2, 3, 1]) == pytest.approx(-1)
  # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4: covariance 3 of (4.5 * 5) ** 0.5.
  assert bootstrap.rank_correlation([0, 1, 1, 7], [2, 1, 3, 4]) == pytest.approx(3 / math.sqrt(22.5))
  assert math.isnan(bootstrap.rank_correlation([1, 1], [1, 2]))
