"""How well scores tell good takes from failed ones: by hand, by symmetry, at the extremes."""

import numpy as np
import pytest

from wam_jax.core import intervals
from wam_jax.core.discrimination import NUMBERS, discrimination, pair_wins


@pytest.fixture
def rng():
  return np.random.default_rng(4)


def test_pairs_of_looks_by_hand():
  # A take looked at twice, 1 and 3. Against a look of 2 it wins once, against 1 it ties and wins.
  positive, negative = np.array([[1.0, 3.0]]), np.array([[2.0], [1.0]])
  np.testing.assert_array_equal(pair_wins(positive, negative), [[0.5, 0.75]])
  # 3 wins twice; each 1 ties with the 1 and beats the 0: 2 + 1.5 + 1.5 of six pairs.
  assert pair_wins(np.array([[3.0], [1], [1]]), np.array([[1.0], [0]])).mean() == pytest.approx(5 / 6)


def test_what_one_side_wins_the_other_loses(rng):
  a, b = rng.integers(0, 4, (7, 3)), rng.integers(0, 4, (5, 2))  # many ties
  np.testing.assert_allclose(pair_wins(a, b), 1 - pair_wins(b, a).T)
  assert pair_wins(a, a).mean() == 0.5
  x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
  np.testing.assert_array_equal(pair_wins(x, y), pair_wins(np.exp(x), np.exp(y)))  # only the order counts


def test_one_task_by_hand():
  good = np.array([[2.0], [1], [-1], [0.5], [0]])  # 0 is not above 0
  failed = np.array([[-1.0], [1]])
  told = discrimination([good], [failed])
  task = told["tasks"][0]
  value = {name: task[name]["value"] for name in NUMBERS}
  # Of ten pairs: 2 wins two, 1 wins one and ties, -1 ties, 0.5 and 0 win one each.
  assert value == pytest.approx({"sensitivity": 0.6, "specificity": 0.5, "difference": 0.1, "auc": 0.6})
  ends = lambda name: (task[name]["low"], task[name]["high"])
  assert ends("sensitivity") == pytest.approx(intervals.wilson_interval(3, 5))
  assert ends("specificity") == pytest.approx(intervals.wilson_interval(1, 2))
  before, after = (intervals.rate_interval(rate, n) for rate, n in ((0.5, 2), (0.6, 5)))
  assert (0.1, *ends("difference")) == pytest.approx(intervals.independent_difference(before, after))
  assert 0 <= task["auc"]["low"] < 0.6 < task["auc"]["high"] <= 1
  assert {name: told["mean"][name]["value"] for name in NUMBERS} == pytest.approx(value)


def test_separated_scores_are_told_apart_and_equal_ones_are_not(rng):
  high, low = rng.uniform(0.1, 2, (9, 4)), rng.uniform(-2, -0.1, (6, 4))
  told = discrimination([high], [low])
  for numbers in (told["tasks"][0], told["mean"]):
    assert {name: numbers[name]["value"] for name in NUMBERS} == dict.fromkeys(NUMBERS, 1.0)
  assert told["tasks"][0]["sensitivity"]["low"] == pytest.approx(intervals.wilson_interval(9, 9)[0])
  swapped = discrimination([low], [high])["mean"]
  assert swapped["auc"]["value"] == swapped["sensitivity"]["value"] == 0
  assert swapped["difference"]["value"] == -1
  same = discrimination([high], [high])["mean"]
  assert same["auc"]["value"] == pytest.approx(0.5) and same["difference"]["value"] == 0
  tied = discrimination([np.full((9, 4), 0.3)], [np.full((6, 4), 0.3)])["mean"]
  assert tied["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_more_looks_at_the_same_takes_make_no_interval_narrower(rng):
  good, failed = rng.normal(0.5, 1, (12, 1)), rng.normal(-0.5, 1, (10, 1))
  once = discrimination([good], [failed])
  often = discrimination([good.repeat(7, 1)], [failed.repeat(3, 1)])
  for a, b in zip((*once["tasks"], once["mean"]), (*often["tasks"], often["mean"]), strict=True):
    for name in NUMBERS:
      assert b[name] == pytest.approx(a[name]), name


def test_means_over_tasks_and_their_bootstrap(rng):
  # 40 of 80 good and 20 of 80 failed takes called a success, in each of two tasks: the mean's deviation is
  # sqrt(0.25 / 160) = 0.0395 and sqrt(0.1875 / 160) = 0.0342, the difference's sqrt of the sum of squares.
  scores = lambda called: np.where(np.arange(80) < called, 1.0, -1.0)[:, None] * rng.uniform(1, 2, (80, 1))
  told = discrimination([scores(40), scores(40)], [scores(20), scores(20)])
  for name, value, deviation in (
    ("sensitivity", 0.5, 0.0395),
    ("specificity", 0.75, 0.0342),
    ("difference", 0.25, 0.0523),
  ):
    mean = told["mean"][name]
    assert mean["value"] == pytest.approx(value)
    half = (mean["high"] - mean["low"]) / 2
    assert half == pytest.approx(1.96 * deviation, rel=0.08), name
    assert mean["low"] + half == pytest.approx(value, abs=0.01), name
  unlike = discrimination([scores(80), scores(20)], [scores(0), scores(20)])
  assert unlike["mean"]["sensitivity"]["value"] == pytest.approx((1 + 0.25) / 2)  # every task counts the same
  assert [task["specificity"]["value"] for task in unlike["tasks"]] == [1.0, 0.75]
  assert unlike["mean"]["auc"]["value"] == pytest.approx(
    np.mean([task["auc"]["value"] for task in unlike["tasks"]])
  )


def test_the_seed_decides_the_bootstrap(rng):
  takes = [rng.normal(size=(11, 2))], [rng.normal(size=(9, 2))]
  first, again, other = (discrimination(*takes, seed=seed) for seed in (0, 0, 1))
  assert first == again and first["mean"]["auc"] != other["mean"]["auc"]
  assert first["mean"]["auc"]["value"] == other["mean"]["auc"]["value"]


def test_finite_at_extremes():
  good, failed = np.array([[np.inf], [1e300], [-np.inf]]), np.array([[-np.inf], [-1e300]])
  told = discrimination([good], [failed])
  assert told["mean"]["auc"]["value"] == pytest.approx((2 + 2 + 0.5) / 6)
  assert all(np.isfinite(x) for numbers in told["mean"].values() for x in numbers.values())


@pytest.mark.parametrize(
  ("good", "failed"), [((), ()), ((3,), ()), ((3, 2), (4,)), ((3, 0), (4, 4)), ((3,), (0,))]
)
def test_takes_of_both_kinds_are_needed_of_every_task(rng, good, failed):
  scores = lambda counts: [rng.normal(size=(count, 2)) for count in counts]
  with pytest.raises(ValueError, match="good and failed takes of every task"):
    discrimination(scores(good), scores(failed))
