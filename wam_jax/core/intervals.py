"""Confidence intervals of success rates. Plain Python: the counts are small and live on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def _score_interval(rate: float, trials: float) -> tuple[float, float]:
  """Roots of (rate - p)^2 = z^2 p (1 - p) / trials in p; exact at the ends of [0, 1]."""
  z2 = Z95 * Z95
  centre = rate + z2 / (2 * trials)
  spread = Z95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
  scale = 1 + z2 / trials
  low = 0.0 if rate <= 0 else (centre - spread) / scale
  high = 1.0 if rate >= 1 else (centre + spread) / scale
  return low, high


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
  """Wilson score interval of a proportion.

  Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 and at `trials` successes.

  Args:
    successes: 0..trials.
    trials: number of independent episodes, at least 1.

  Returns:
    (low, high), both in [0, 1].

  Raises:
    ValueError: trials < 1, or successes outside 0..trials.

  Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
  """
  if trials < 1:
    raise ValueError(f"trials must be at least 1, got {trials}")
  if not 0 <= successes <= trials:
    raise ValueError(f"successes must lie in 0..{trials}, got {successes}")
  return _score_interval(successes / trials, trials)


def rate_interval(rate: float, trials: int) -> tuple[float, float, float]:
  """Wilson's interval of a rate whose trials may be means of several looks, so not of whole successes.

  Args:
    rate: in [0, 1].
    trials: number of independent trials, at least 1; looks at one trial do not count more than once.

  Returns:
    (rate, low, high).

  Raises:
    ValueError: rate or trials out of range.
  """
  if trials < 1 or not 0 <= rate <= 1:
    raise ValueError(f"rate must lie in [0, 1] and trials be at least 1, got {rate} and {trials}")
  return (rate, *_score_interval(rate, trials))


def mean_interval(successes: Sequence[int], trials: Sequence[int]) -> tuple[float, float, float]:
  """Mean success rate over tasks with its Wilson interval.

  Every task counts the same. The interval is Wilson's at the mean rate and the number of trials that
  gives the mean its binomial variance; with equal trials per task that is the pooled count, and
  then ignoring that rates differ between tasks can only make the interval wider than need be.

  Args:
    successes: per task.
    trials: per task, each at least 1.

  Returns:
    (rate, low, high).

  Raises:
    ValueError: lists empty or of unlike length, or a count out of range.
  """
  if not trials or len(successes) != len(trials):
    raise ValueError(f"need one count per task, got {len(successes)} successes and {len(trials)} trials")
  for s, n in zip(successes, trials, strict=True):
    wilson_interval(s, n)  # checks the ranges
  tasks = len(trials)
  rate = sum(s / n for s, n in zip(successes, trials, strict=True)) / tasks
  total = tasks * tasks / sum(1 / n for n in trials)  # tasks * trials when all are equal
  rate = 1.0 if list(successes) == list(trials) else rate  # no rounding at the end of the range
  return (rate, *_score_interval(rate, total))


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
  """Change of the success rate between two policies run from the same start states.

  Args:
    before: success of each episode, of all tasks one after the other.
    after: the same episodes of the other policy.

  Returns:
    (difference, low, high), in [-1, 1]. The interval is normal, with half an episode added to each of
    the four outcomes of a pair, so that it keeps a width when no episode changed. It ignores that
    changes differ between tasks, which can only make it wider.

  Raises:
    ValueError: no episodes, or not the same number.

  Source: Agresti & Min, Simple improved confidence intervals for comparing matched proportions,
  Statistics in Medicine 2005.
  """
  if not before or len(before) != len(after):
    raise ValueError(f"both policies need the same episodes, got {len(before)} and {len(after)}")
  gained = sum(bool(y) and not x for x, y in zip(before, after, strict=True))
  lost = sum(bool(x) and not y for x, y in zip(before, after, strict=True))
  total = len(before) + 2
  centre = (gained - lost) / total
  spread = Z95 * math.sqrt((gained + lost + 1) / total - centre * centre) / math.sqrt(total)
  return (gained - lost) / len(before), max(-1.0, centre - spread), min(1.0, centre + spread)


def independent_difference(
  before: tuple[float, float, float], after: tuple[float, float, float]
) -> tuple[float, float, float]:
  """Change of a rate between two policies run from different start states.

  Args:
    before: (rate, low, high), as from `mean_interval`.
    after: the same of the other policy.

  Returns:
    (difference, low, high), in [-1, 1]; of the same confidence as the two intervals.

  Raises:
    ValueError: a rate outside its interval.

  Source: Newcombe, Interval estimation for the difference between independent proportions, Statistics in
  Medicine 1998, method 10.
  """
  for rate, low, high in (before, after):
    if not low <= rate <= high:
      raise ValueError(f"expected low <= rate <= high, got {low}, {rate}, {high}")
  difference = after[0] - before[0]
  below = math.hypot(after[0] - after[1], before[2] - before[0])
  above = math.hypot(after[2] - after[0], before[0] - before[1])
  return difference, difference - below, difference + above
