"""Results of a study's pieces: reading their JSON files, and the numbers that are made from them."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.config.arms import ARMS, MAIN, PAIRS
from wam_jax.core import bootstrap, intervals
from wam_jax.host.regular_files import read_text
from wam_jax.storage.records import read_arrays

# Where things are on a machine: no part of what was measured.
PLACES = ("data.calvin_path", "inputs.lumos_checkpoint", "inputs.dppo_checkpoint", "judge.compare")

FORMAT = 1  # of the pieces' files
Result = Mapping[str, Any]
Results = Mapping[str, Mapping[int, Result]]  # arm -> seed -> piece


def folder_of(config: Any) -> pathlib.Path:
  """Where the results of a study are."""
  return pathlib.Path(config.study.results) / f"{config.experiment}_{config.preset}"


def page_of(config: Any) -> pathlib.Path:
  """File of a study's page."""
  return pathlib.Path(config.study.page or folder_of(config) / "README.md")


class ResultError(Exception):
  """A result file cannot be used."""


def read_result(path: pathlib.Path) -> dict[str, Any]:
  """One piece.

  Raises:
    ResultError: not a file of this format.
  """
  try:
    result = json.loads(read_text(path))
    if result["format"] != FORMAT:
      raise ResultError(f"{path}: format {result['format']}, this version reads {FORMAT}")
    missing = [name for name in ("arm", "seed", "tasks", "policies", "settings") if name not in result]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ResultError(f"{path}: not the result of a piece ({error}); remove it, and run it again") from error
  if missing:
    raise ResultError(f"{path}: no {', '.join(missing)}; remove it, and run it again")
  return result


def read_results(folder: pathlib.Path) -> dict[str, dict[int, dict[str, Any]]]:
  """arm -> seed -> piece, of all JSON files in a folder."""
  results: dict[str, dict[int, dict[str, Any]]] = {}
  for path in sorted(folder.glob("*.json")):
    result = read_result(path)
    results.setdefault(result["arm"], {})[result["seed"]] = result
  return {arm: dict(sorted(results[arm].items())) for arm in ARMS if arm in results}


def episodes(success: Mapping[str, str], tasks: Sequence[str]) -> np.ndarray:
  """Digits of each task as an array [K, M]."""
  return np.array([[int(digit) for digit in success[task]] for task in tasks])


def policy_episodes(result: Result, policy: str) -> np.ndarray:
  """[K, M] of one policy of a piece."""
  return episodes(result["policies"][policy]["success"], result["tasks"])


def common_seeds(results: Results, arms: Sequence[str]) -> list[int]:
  """Seeds that all of some arms have, with the same start states."""
  seeds = set.intersection(*(set(results.get(arm, {})) for arm in arms)) if arms else set()
  same_starts = lambda seed: len({results[arm][seed]["start_states"] for arm in arms}) == 1
  return sorted(seed for seed in seeds if same_starts(seed))


def rate_of(counts: np.ndarray) -> float:
  """Mean of successes."""
  return float(np.mean(counts))


def pooled(pieces: Sequence[Result], policy: str) -> tuple[float, float, float, int]:
  """(rate, low, high, episodes) over seeds and tasks; Wilson's interval, of episodes alone."""
  arrays = np.concatenate([policy_episodes(piece, policy) for piece in pieces], axis=1)
  counts, trials = [int(n) for n in arrays.sum(1)], [arrays.shape[1]] * arrays.shape[0]
  return (*intervals.mean_interval(counts, trials), arrays.size)


def seed_means(pieces: Sequence[Result], policy: str) -> list[float]:
  """Mean success of each seed."""
  return [rate_of(policy_episodes(piece, policy)) for piece in pieces]


def difference(results: Results, a: tuple[str, str], b: tuple[str, str]) -> dict[str, Any] | None:
  """Success of (arm, policy) `a` minus that of `b`, paired by start state; None without common seeds.

  Returns:
    mean, per_seed, seeds, bootstrap (low, high), t (low, high), rates (of a, of b).
  """
  seeds = [
    seed
    for seed in common_seeds(results, sorted({a[0], b[0]}))
    if a[1] in results[a[0]][seed]["policies"] and b[1] in results[b[0]][seed]["policies"]
  ]
  if not seeds:
    return None
  return _gap(
    {seed: [policy_episodes(results[arm][seed], policy) for arm, policy in (a, b)] for seed in seeds}
  )


def differences_after_updates(results: Results, pair: tuple[str, str]) -> dict[int, dict[str, Any]]:
  """Updates of a snapshot -> `difference` of two arms' policies cloned on it, over the seeds that have it."""
  found: dict[int, dict[int, list[np.ndarray]]] = {}
  for seed in common_seeds(results, pair):
    pieces = [results[arm][seed] for arm in pair]
    shared = set.intersection(*(set(piece.get("by_update", ())) for piece in pieces))
    for update in sorted(shared, key=int)[:-1]:  # the last is the finished model
      found.setdefault(int(update), {})[seed] = [_cloned(piece, update) for piece in pieces]
  return {update: _gap(of_seeds) for update, of_seeds in sorted(found.items())}


def _gap(of_seeds: Mapping[int, Sequence[np.ndarray]]) -> dict[str, Any]:
  """`difference` of episodes [K, M] of two policies, seed by seed; at least one seed."""
  both = [np.stack(pair) for pair in of_seeds.values()]
  per_seed = [_lead(x) for x in both]
  mean, low, high = bootstrap.mean_over_seeds(per_seed)
  rates = tuple(np.mean([x.mean((1, 2)) for x in both], axis=0).tolist())
  gap = {"mean": mean, "per_seed": per_seed, "seeds": list(of_seeds), "rates": rates}
  return gap | {"bootstrap": _spread(both), "t": (low, high)}


def _lead(both: np.ndarray) -> float:
  """Success of the first of two arms [2, K, M] minus that of the second."""
  return rate_of(both[0]) - rate_of(both[1])


def _spread(seeds: Sequence[np.ndarray]) -> tuple[float, float]:
  """Bootstrap 95 % of the mean lead over seeds, each [2, K, M]."""
  statistic = lambda drawn: float(np.mean([_lead(x) for x in drawn]))
  return bootstrap.interval(bootstrap.resampled(seeds, statistic))


@dataclasses.dataclass(frozen=True)
class Cell:
  """Cloned success with and without inverse dynamics, and what a linear map reads of the action.

  Attributes:
    study: name of its folder.
    label: what was done.
    seeds: that both arms have.
    rates: cloned success (with, without).
    lead: with minus without.
    spread: bootstrap 95 % of it.
    errors: mean squared error of the linear map from two embeddings to the action, mean over its numbers, on
      held-out play (with, without).
  """

  study: str
  label: str
  seeds: tuple[int, ...]
  rates: tuple[float, float]
  lead: float
  spread: tuple[float, float]
  errors: tuple[float, float]

  @property
  def lacking(self) -> float:
    """What the plain model's embeddings lack of the action, beside WAM's."""
    return self.errors[1] - self.errors[0]


def cells(results: Results, study: str) -> list[Cell]:
  """All pairs of arms of a study, also after the updates of snapshots, whose models were judged."""
  out = []
  for pair in PAIRS.items():
    seeds = common_seeds(results, pair)
    updates = [
      set(results[arm][seed].get("inverse_dynamics_by_update", ())) for arm in pair for seed in seeds
    ]
    for update in [*sorted(set.intersection(*updates) if updates else (), key=int), ""]:
      errors = {seed: [linear_error(results, arm, seed, update) for arm in pair] for seed in seeds}
      have = [seed for seed in seeds if all(map(math.isfinite, errors[seed]))]
      if not have:
        continue
      both = [np.stack([_cloned(results[arm][seed], update) for arm in pair]) for seed in have]
      rates = np.mean([x.mean((1, 2)) for x in both], axis=0).tolist()
      with_error, without = np.mean([errors[seed] for seed in have], axis=0).tolist()
      label = ARMS[pair[0]].title + (f", {int(update):,} updates" if update else "")
      lead, spread = rates[0] - rates[1], _spread(both)
      out.append(Cell(study, label, tuple(have), (rates[0], rates[1]), lead, spread, (with_error, without)))
  return out


def _cloned(piece: Result, update: str) -> np.ndarray:
  """[K, M] of the policy cloned on the model after `update`; empty: on the last one."""
  return episodes(piece["by_update"][update], piece["tasks"]) if update else policy_episodes(piece, "cloned")


def linear_error(results: Results, arm: str, seed: int, update: str = "") -> float:
  """See `Cell`; of an arm without a world model of its own that of its base. NaN: not measured."""
  piece = results[arm][seed]
  if update:
    measured = piece["inverse_dynamics_by_update"][update]
  else:
    base = results.get(ARMS[arm].base, {}).get(seed, {})
    measured = piece.get("judge", base.get("judge", {})).get("inverse_dynamics", {})
  linear = [action.get("linear", math.nan) for action in measured.values()]
  return float(np.mean(linear)) if linear else math.nan


def curves(
  results: Results,
) -> tuple[list[int], list[int], list[np.ndarray]] | None:
  """Cloned success by update of the world model: (updates, seeds, of each seed [2 arms, U, K, M]).

  None without seeds that both arms have, and where only the finished world models were cloned on.
  """
  seeds = [
    seed
    for seed in common_seeds(results, MAIN)
    if all("by_update" in results[arm][seed] for arm in MAIN)
    and list(results[MAIN[0]][seed]["by_update"]) == list(results[MAIN[1]][seed]["by_update"])
  ]
  if not seeds or len(results[MAIN[0]][seeds[0]]["by_update"]) < 2:
    return None
  updates = [int(update) for update in results[MAIN[0]][seeds[0]]["by_update"]]
  of = lambda arm, seed: np.stack(
    [episodes(x, results[arm][seed]["tasks"]) for x in results[arm][seed]["by_update"].values()]
  )
  return updates, seeds, [np.stack([of(arm, seed) for arm in MAIN]) for seed in seeds]


def episodes_of(path: pathlib.Path, tasks: Sequence[str]) -> dict[str, Any]:
  """Episodes of a policy: `success`, task -> a digit for each start state, and `imagined`, task -> rate."""
  arrays = read_arrays(path)
  success, imagined = arrays["success"], arrays.get("imagined")
  out: dict[str, Any] = {
    "success": {task: "".join("01"[int(x)] for x in success[k]) for k, task in enumerate(tasks)}
  }
  if imagined is not None:
    out["imagined"] = {task: round(float(imagined[k]), 4) for k, task in enumerate(tasks)}
  return out
