"""From dreams to a prediction of real success, with its interval, and the rules that judge what it rests on.

NumPy: the numbers are few and live on the host. How far imagined success is from the real one was measured
on finished runs (`CALIBRATION`, by benchmarks/certificate.py); what a run brings itself are held-out takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS, SEED = 4_000, 0  # the same for two policies, whose difference counts


# --- the colours ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rule:
  """When a number of a task is green, yellow or red.

  Attributes:
    label: in tables.
    yellow: beyond it, yellow.
    red: beyond it, red; above `yellow` where small numbers are good.
    meaning: what it means that it is not green.
    remedy: takes to collect.
  """

  label: str
  yellow: float
  red: float
  meaning: str
  remedy: str

  def colour(self, value: float | None) -> str:
    """green, yellow or red; none where nothing was measured."""
    if value is None:
      return "none"
    sign = 1 if self.red > self.yellow else -1
    return (
      "red" if sign * (value - self.red) > 0 else "yellow" if sign * (value - self.yellow) > 0 else "green"
    )


# The order in which reasons are given.
RULES: dict[str, Rule] = {
  "told_apart": Rule(
    "Told apart in dreams",
    0.4,
    0.2,
    "dreams do not tell takes that succeeded from takes that failed",
    "more failed takes and more play of this skill, and a world model trained longer",
  ),
  "auc": Rule(
    "AUC in dreams",
    0.85,
    0.7,
    "dreams of takes that failed look like dreams of takes that succeeded",
    "more failed takes and more play of this skill, and a world model trained longer",
  ),
  "told_apart_seen": Rule(
    "Told apart, seen",
    0.85,
    0.6,
    "the classifier does not tell takes apart that it sees",
    "more failed takes",
  ),
  "follows_actions": Rule(
    "Follows actions",
    0.95,
    0.8,
    "dreams end in the same place whatever the actions are",
    "more play with other actions, and a world model trained longer",
  ),
  "random_success": Rule(
    "Random actions succeed",
    0.05,
    0.2,
    "dreams of random actions are called a success",
    "more failed takes",
  ),
  "disagreement": Rule(
    "Classifiers disagree",
    0.15,
    0.3,
    "the classifiers do not agree on where the policy's dreams end",
    "failed takes in which the policy's own misses are shown",
  ),
  "unfamiliar": Rule(
    "Unfamiliar",
    0.85,
    0.97,
    "the policy's dreams go where no take was",
    "takes and play that begin where the policy goes: let it run, and record the rest by hand",
  ),
  "kl_to_cloned": Rule(
    "KL to cloned",
    0.05,
    0.2,
    "PPO has moved the policy far from the demonstrations",
    "supervised episodes of this policy, and those that fail as failed takes",
  ),
}


# --- the prediction -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How real success lies around imagined success, in log-odds: real = intercept + slope * imagined + error.

  Attributes:
    intercept: log-odds.
    slope: of the imagined log-odds.
    of_task: standard deviation of the error of a task.
    of_policy: standard deviation of what all tasks of a policy share.
    reference: the least that was told apart in dreams where this was fitted. Below it the error of a task
      grows as that of Rogan and Gladen's correction does, which divides by it.
  """

  intercept: float
  slope: float
  of_task: float
  of_policy: float
  reference: float


# On four world models of the embedded simulator: docs/EXPERIMENTS.md, "May one believe a dream?". The four
# differ by 0.4 (standard deviation) in their intercepts; of_policy is chosen a little wider.
CALIBRATION = Calibration(intercept=0.4, slope=0.87, of_task=0.85, of_policy=0.5, reference=0.35)


def shrunk(values: Sequence[float], trials: Sequence[int]) -> np.ndarray:
  """Rates of tasks drawn towards their mean, as far as their spread is no more than chance: [K].

  Args:
    values: rate of each task, in [0, 1].
    trials: of each task.

  Source: beta-binomial by moments; Kleinman, Proportions with extraneous variance, JASA 1973.
  """
  rate, n = np.asarray(values, float), np.asarray(trials, float)
  mean = float(np.average(rate, weights=n))
  chance = float(np.mean(mean * (1 - mean) / n))
  spread = float(np.var(rate)) - chance
  trust = np.clip(spread / max(spread + chance, 1e-9), 0, 1)
  return mean + trust * (rate - mean)


def rogan_gladen(rate: Any, sensitivity: Any, specificity: Any) -> Any:
  """True rate behind a rate that a fallible test reports, cut to [0, 1]; nan where the test tells nothing.

  Source: Rogan & Gladen, Estimating prevalence from the results of a screening test, American Journal of
  Epidemiology 1978.
  """
  difference = np.asarray(sensitivity + specificity - 1.0)
  with np.errstate(divide="ignore", invalid="ignore"):
    true = (rate + specificity - 1) / np.where(difference > 0, difference, np.nan)
  return np.clip(true, 0, 1)


def corrected(
  called: Sequence[np.ndarray],
  sensitivity: tuple[Sequence[float], Sequence[int]],
  specificity: tuple[Sequence[float], Sequence[int]],
) -> list[dict[str, float] | None]:
  """Imagined success as a fallible test's: what `rogan_gladen` makes of it, with rates shrunk over tasks.

  Args:
    called: as in `predict`.
    sensitivity: of each task, of dreams of held-out takes, and number of these takes.
    specificity: the same.

  Returns:
    `interval` of each task: takes are drawn by bootstrap, the two rates from their beta posterior. None where
    most draws tell nothing.
  """
  rng = np.random.default_rng(SEED)
  rates = [shrunk(*pair) for pair in (sensitivity, specificity)]
  out: list[dict[str, float] | None] = []
  for k, shares in enumerate(called):
    drawn = shares[rng.integers(len(shares), size=(DRAWS, len(shares)))].mean(1)
    beta = [
      rng.beta(rate[k] * pair[1][k] + 0.5, (1 - rate[k]) * pair[1][k] + 0.5, DRAWS)
      for rate, pair in zip(rates, (sensitivity, specificity), strict=True)
    ]
    true = rogan_gladen(drawn, *beta)
    valid = true[~np.isnan(true)]
    if len(valid) < DRAWS / 2:
      out.append(None)
      continue
    out.append(interval(valid))
  return out


def draw(
  called: Sequence[np.ndarray],
  told_apart: Sequence[float | None],
  calibration: Calibration | None = None,
) -> np.ndarray:
  """Draws of a policy's real success, [K, DRAWS]: of takes (bootstrap), and of the errors of task and policy.

  Args:
    called: of each of K tasks, the share of the dreams from each held-out take that is called a success: [M].
    told_apart: of each task, sensitivity minus share of false positives in dreams; None: not measured.
    calibration: measured on other runs; None: `CALIBRATION`.
  """
  c, rng = calibration or CALIBRATION, np.random.default_rng(SEED)
  common, out = rng.normal(size=DRAWS) * c.of_policy, []
  for shares, apart in zip(called, told_apart, strict=True):
    num = len(shares)
    drawn = shares[rng.integers(num, size=(DRAWS, num))].sum(1)
    imagined = log_odds(drawn, num)
    spread = c.of_task * max(1.0, c.reference / max(apart or 0.0, 0.05))
    error = common + rng.normal(size=DRAWS) * spread
    out.append(1 / (1 + np.exp(-(c.intercept + c.slope * imagined + error))))
  return np.stack(out)


def predict(called: Sequence[np.ndarray], told_apart: Sequence[float | None]) -> dict[str, Any]:
  """Real success of a policy, per task and in the mean; arguments as `draw`.

  Returns:
    {"tasks": K intervals, "mean": interval}.
  """
  draws = draw(called, told_apart)
  return {"tasks": [interval(d) for d in draws], "mean": interval(draws.mean(0))}


def interval(draws: np.ndarray) -> dict[str, float]:
  """{"value", "low", "high"}: the median and 95 % of the draws."""
  low, value, high = np.quantile(draws, (0.025, 0.5, 0.975))
  return {"value": float(value), "low": float(low), "high": float(high)}


def log_odds(successes: Any, trials: Any) -> Any:
  """Log-odds of a rate, with half a success and half a failure more: finite also where all succeed."""
  return np.log((successes + 0.5) / (trials - successes + 0.5))


def verdict(
  predicted: Mapping[str, Mapping[str, float]],
  numbers: Mapping[str, Mapping[str, float | None]],
  required: float,
) -> dict[str, str]:
  """What to do with one task, and why.

  Args:
    predicted: policy -> its predicted success, {"value", "low", "high"}; of equals the first is taken.
    numbers: policy -> rule -> value.
    required: real success that a policy must have.

  Returns:
    {"verdict": deploy, collect or do not trust, "policy": the one that it is about, "reason", "takes": what
    to collect; empty where it is deploy}.
  """
  policy = max(predicted, key=lambda name: predicted[name]["value"])
  colours = {name: rule.colour(numbers[policy].get(name)) for name, rule in RULES.items()}
  row = predicted[policy]
  says = f"{100 * row['value']:.0f} % predicted, {100 * row['low']:.0f} to {100 * row['high']:.0f}"
  if colours["told_apart"] == "none":
    reason = "there are no held-out failed takes, so that nobody knows what dreams make of failure"
    return _verdict("do not trust", policy, reason, "failed takes")
  by_colour = {c: [RULES[name] for name in RULES if colours[name] == c] for c in ("red", "yellow")}
  if by_colour["red"]:
    reason = "; ".join(rule.meaning for rule in by_colour["red"])
    return _verdict("do not trust", policy, reason, by_colour["red"][0].remedy)
  if row["low"] >= required:
    return _verdict("deploy", policy, says, "")
  reasons = [says, *(rule.meaning for rule in by_colour["yellow"])]
  remedy = "more demonstrations of this skill, and failed takes of what it misses"
  if row["value"] >= required:  # good enough, if only that were sure
    remedy = "supervised episodes of this policy, and those that fail as failed takes"
  remedy = by_colour["yellow"][0].remedy if by_colour["yellow"] else remedy
  return _verdict("collect", policy, "; ".join(reasons), remedy)


def _verdict(word: str, policy: str, reason: str, takes: str) -> dict[str, str]:
  return {"verdict": word, "policy": policy, "reason": reason, "takes": takes}
