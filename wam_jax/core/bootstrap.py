"""Bootstrap intervals of success rates over seeds and episodes. NumPy: the counts live on the host.

Seeds are drawn with replacement, and within each seed and task its episodes. With few seeds that says too
little of the spread between them (three can only be drawn in ten ways), so `mean_over_seeds` is there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 4_000


def resampled(
  episodes: Sequence[np.ndarray], statistic: Callable[[list[np.ndarray]], float], seed: int = 0
) -> np.ndarray:
  """Values of a statistic over bootstrap samples: [RESAMPLES].

  Args:
    episodes: of each seed, successes [..., K, M] of K tasks from M start states; what stands before (arms,
      checkpoints) stays together, so that differences between them are paired by start state.
    statistic: of a list of such arrays to a number; may be nan.
    seed: of the draws; the same gives the same interval.
  """
  rng = np.random.default_rng(seed)
  values = np.empty(RESAMPLES)
  for i in range(RESAMPLES):
    drawn = []
    for s in rng.integers(len(episodes), size=len(episodes)):
      own = episodes[s]
      rows = rng.integers(own.shape[-1], size=own.shape[-2:])
      drawn.append(np.take_along_axis(own, np.broadcast_to(rows, own.shape), -1))
    values[i] = statistic(drawn)
  return values


def interval(values: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of bootstrap values. Infinite ones count as what they are."""
  ordered = np.sort(values[~np.isnan(values)])
  if not ordered.size:
    return math.nan, math.nan
  at = lambda share: float(ordered[min(int(share * ordered.size), ordered.size - 1)])
  return at(0.025), at(0.975)


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean of one number per seed with its 95 % interval by Student's t.

  Returns:
    (mean, low, high); with one seed the interval is nan.
  """
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, math.nan, math.nan
  half = _student(0.975, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return mean, mean - half, mean + half


def detectable(deviation: float, seeds: int) -> float:
  """True difference that a t-test over seeds finds in about 80 % of cases (77 % with three seeds).

  Args:
    deviation: standard deviation, over seeds, of the difference between the arms.
    seeds: per arm, at least 2.
  """
  return (_student(0.975, seeds - 1) + _student(0.8, seeds - 1)) * deviation / math.sqrt(seeds)


def _student(share: float, freedom: int) -> float:
  """Quantile of Student's t."""
  from scipy import stats  # two seconds of imports, which training does without

  return float(stats.t.ppf(share, freedom))


def updates_to_reach(level: float, updates: Sequence[int], rates: Sequence[float]) -> float:
  """Updates after which a curve first reaches a level: log-linear between checkpoints, inf if it never does.

  Args:
    level: of success.
    updates: of the checkpoints, ascending.
    rates: success at each. What falls below an earlier one counts as that: a run could keep its best.
  """
  best = np.maximum.accumulate(np.asarray(rates, float))
  if level <= best[0]:
    return float(updates[0])
  for i in range(1, len(best)):
    if level <= best[i]:
      share = (level - best[i - 1]) / (best[i] - best[i - 1])
      return float(math.exp((1 - share) * math.log(updates[i - 1]) + share * math.log(updates[i])))
  return math.inf


def steps_ratio(updates: Sequence[int], ours: Sequence[float], theirs: Sequence[float]) -> float:
  """How many times fewer updates `ours` needs than `theirs` for the best success that both reach."""
  level = min(max(ours), max(theirs))
  own, other = (updates_to_reach(level, updates, rates) for rates in (ours, theirs))
  return other / own


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
  """Spearman's: the correlation of ranks, equal values sharing theirs; nan where all are equal."""
  from scipy import stats

  return math.nan if min(np.ptp(x), np.ptp(y)) == 0 else float(stats.spearmanr(x, y).statistic)
