"""How well a score tells takes that succeeded from takes that failed. NumPy: the scores live on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.core import intervals

RESAMPLES = 2_000
NUMBERS = ("sensitivity", "specificity", "difference", "auc")


def pair_wins(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  """Share of the pairs of looks in which a positive take scores higher than a negative one, ties as halves.

  Args:
    positive: [M, L] scores, L looks at each of M takes (a dream is another one each time).
    negative: [N, L'] likewise.

  Returns:
    [M, N] in [0, 1]; its mean is the area under the ROC curve.

  Source: Mann & Whitney, On a test of whether one of two random variables is stochastically larger than the
  other, Annals of Mathematical Statistics 1947.
  """
  a, b = positive[:, None, :, None], negative[None, :, None, :]
  return ((a > b) + 0.5 * (a == b)).mean((2, 3))


def discrimination(
  positive: Sequence[np.ndarray], negative: Sequence[np.ndarray], seed: int = 0
) -> dict[str, Any]:
  """Sensitivity, specificity, the difference of what is called a success, and AUC, with 95 % intervals.

  Args:
    positive: of each of K tasks, scores [M, L] of takes that succeeded; above 0 a look calls it a success.
    negative: of each task, scores [N, L'] of takes that failed.
    seed: of the bootstrap.

  Returns:
    {"tasks": K dicts, "mean": dict} with `sensitivity` (share of looks at good takes called a success),
    `specificity` (share of looks at failed takes not called one), `difference` (sensitivity minus the share
    of failed takes called a success) and `auc`, each {"value", "low", "high"}. Intervals are over takes: of
    a task Wilson's and Newcombe's, of its AUC and of the means by bootstrap within tasks.

  Raises:
    ValueError: lists of unlike length, or a task without takes of a kind.
  """
  if len(positive) != len(negative) or not positive or not all(map(len, (*positive, *negative))):
    counts = [[len(scores) for scores in takes] for takes in (positive, negative)]
    raise ValueError(f"need good and failed takes of every task, got {counts[0]} and {counts[1]}")
  rng = np.random.default_rng(seed)
  tasks, resampled = [], []
  for good, failed in zip(positive, negative, strict=True):
    called = [(scores > 0).mean(1) for scores in (good, failed)]  # of each take
    wins = pair_wins(good, failed)
    rows = [rng.integers(len(c), size=(RESAMPLES, len(c))) for c in called]
    drawn = [c[r].mean(1) for c, r in zip(called, rows, strict=True)]
    drawn_auc = np.array([wins[i][:, j].mean() for i, j in zip(*rows, strict=True)])
    resampled.append(_numbers(drawn[0], drawn[1], drawn_auc))
    sensitivity, false = (intervals.rate_interval(float(c.mean()), len(c)) for c in called)
    tasks.append(
      {
        "sensitivity": _interval(*sensitivity),
        "specificity": _interval(1 - false[0], 1 - false[2], 1 - false[1]),
        "difference": _interval(*intervals.independent_difference(false, sensitivity)),
        "auc": _interval(float(wins.mean()), *_middle(drawn_auc)),
      }
    )
  mean = {}
  for name in NUMBERS:
    drawn = np.mean([numbers[name] for numbers in resampled], 0)
    mean[name] = _interval(float(np.mean([task[name]["value"] for task in tasks])), *_middle(drawn))
  return {"tasks": tasks, "mean": mean}


def _numbers(sensitivity: Any, false: Any, auc: Any) -> Mapping[str, Any]:
  return dict(zip(NUMBERS, (sensitivity, 1 - false, sensitivity - false, auc), strict=True))


def _interval(value: float, low: float, high: float) -> dict[str, float]:
  return {"value": value, "low": low, "high": high}


def _middle(values: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of bootstrap values."""
  low, high = np.quantile(values, (0.025, 0.975))
  return float(low), float(high)
