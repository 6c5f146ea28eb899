"""Confidence intervals of success rates. Plain Python: the counts are small and live on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def _score_interval(rate: float, trials: float, z: float) -> tuple[float, float]:
  """Roots of (rate - p)^2 = z^2 p (1 - p) / trials in p; exact at the ends of [0, 1]."""
  z2 = z * z
  centre = rate + z2 / (2 * trials)
  spread = z * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
  scale = 1 + z2 / trials
  low = 0.0 if rate <= 0 else (centre - spread) / scale
  high = 1.0 if rate >= 1 else (centre + spread) / scale
  return low, high


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
  """Wilson score interval of a proportion.

  Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 and at `trials` successes.

  Args:
    successes: 0..trials.
    trials: number of independent episodes, at least 1.
    z: normal quantile; the default gives 95 %.

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
  return _score_interval(successes / trials, trials, z)


def mean_interval(successes: Sequence[int], trials: Sequence[int], z: float = Z95) -> tuple[float, float, float]:
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
  return (rate, *_score_interval(rate, total, z))


def paired_difference(
  before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]], z: float = Z95
) -> tuple[float, float, float]:
  """Mean change of the success rate between two policies run from the same start states.

  Every task counts the same; the interval is normal, with the variance of the paired differences
  inside each task.

  Args:
    before: per task, success of each episode.
    after: the same episodes of the other policy.
    z: normal quantile.

  Returns:
    (difference, low, high), in [-1, 1].

  Raises:
    ValueError: tasks or episodes do not match, or fewer than two episodes of a task.
  """
  if not before or [len(b) for b in before] != [len(a) for a in after]:
    raise ValueError("both policies need the same episodes of the same tasks")
  if min(len(b) for b in before) < 2:
    raise ValueError("need at least two episodes per task")
  means, variance = [], 0.0
  for b, a in zip(before, after, strict=True):
    differences = [int(y) - int(x) for x, y in zip(b, a, strict=True)]
    mean = sum(differences) / len(differences)
    means.append(mean)
    variance += sum((d - mean) ** 2 for d in differences) / (len(differences) - 1) / len(differences)
  difference = sum(means) / len(means)
  spread = z * math.sqrt(variance) / len(means)
  return difference, max(-1.0, difference - spread), min(1.0, difference + spread)
