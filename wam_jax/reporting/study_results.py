"""Results of a study's pieces: reading their JSON files, and the numbers that are made from them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.config.arms import ARMS, MAIN
from wam_jax.core import bootstrap, intervals
from wam_jax.host.regular_files import read_text
from wam_jax.storage.records import read_arrays

# Where things are on a machine: no part of what was measured.
PLACES = ("data.calvin_path", "inputs.lumos_checkpoint", "inputs.dppo_checkpoint", "judge.compare")

FORMAT = 1  # of the pieces' files
Result = Mapping[str, Any]
Results = Mapping[str, Mapping[int, Result]]  # arm -> seed -> piece


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
    mean, per_seed, seeds, bootstrap (low, high), t (low, high).
  """
  seeds = [
    seed
    for seed in common_seeds(results, sorted({a[0], b[0]}))
    if a[1] in results[a[0]][seed]["policies"] and b[1] in results[b[0]][seed]["policies"]
  ]
  if not seeds:
    return None
  both = [np.stack([policy_episodes(results[arm][seed], policy) for arm, policy in (a, b)]) for seed in seeds]
  per_seed = [rate_of(x[0]) - rate_of(x[1]) for x in both]
  statistic = lambda drawn: float(np.mean([rate_of(x[0]) - rate_of(x[1]) for x in drawn]))
  mean, low, high = bootstrap.mean_over_seeds(per_seed)
  drawn = bootstrap.interval(bootstrap.resampled(both, statistic))
  return {"mean": mean, "per_seed": per_seed, "seeds": seeds, "bootstrap": drawn, "t": (low, high)}


def curves(
  results: Results,
) -> tuple[list[int], list[int], list[np.ndarray]] | None:
  """Cloned success by update of the world model: (updates, seeds, of each seed [2 arms, U, K, M])."""
  seeds = [
    seed
    for seed in common_seeds(results, MAIN)
    if all("by_update" in results[arm][seed] for arm in MAIN)
    and list(results[MAIN[0]][seed]["by_update"]) == list(results[MAIN[1]][seed]["by_update"])
  ]
  if not seeds:
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
