"""Several seeds of one recipe together: a JSON file of each finished run, and one table of the files."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.acting.policy_table import COMPARED, POLICIES
from wam_jax.core import bootstrap, intervals
from wam_jax.host import tables
from wam_jax.host.regular_files import read_text
from wam_jax.host.words import duration
from wam_jax.reporting import study_results
from wam_jax.reporting.finished_run import Run, RunError
from wam_jax.reporting.study_results import PLACES, episodes_of
from wam_jax.storage.artifact import ArtifactError, write_text
from wam_jax.storage.records import read_record

FORMAT = 1
HAND_HORIZON = 20  # imagined frames, in the table
JUDGED = ("probes", "takes", "hand")

Result = Mapping[str, Any]


def result_of(run: Run) -> dict[str, Any]:
  """What is kept of a finished run.

  Raises:
    RunError: no simulator has measured it, or its episodes or the classifier's measurements are missing.
  """
  if "evaluate" not in run.inputs:
    raise RunError(f"{run.workdir}: no simulator has measured its policies; seeds are compared by that")
  evaluate = run.inputs["evaluate"].path
  try:
    quality = read_record(run.inputs["classifier"].path, "quality.json")
    tasks, judge, facts = tuple(run.results["tasks"]), run.judge(), run.results["provenance"]
    policies = {name: episodes_of(evaluate / f"{name}.npz", tasks) for name in run.results["policies"]}
  except (ArtifactError, KeyError) as error:
    raise RunError(f"{run.workdir}: cannot be kept ({error})") from error
  if "imagined" not in policies.get("ppo", {}):
    raise RunError(f"{run.workdir}: its evaluation has no imagined success of the policies after PPO")
  used = {stage: artifact for stage, artifact in run.inputs.items() if stage != "report"}
  return {
    "format": FORMAT,
    "experiment": run.config["experiment"],
    "preset": run.config["preset"],
    "seed": run.results["seed"],
    "tasks": list(tasks),
    "policies": policies,
    "discrimination": quality.get("discrimination"),
    "judge": {name: judge[name] for name in ("context", "horizons", "recursion", "data")}
    | {name: judge["models"][0][name] for name in JUDGED if name in judge["models"][0]},
    "seconds": {stage: round(artifact.seconds, 1) for stage, artifact in used.items()},
    "peak_bytes": max(artifact.peak_bytes for artifact in used.values()),
    "settings": {name: value for name, value in run.settings().items() if _matters(name)},
    "provenance": facts,
  }


def _matters(name: str) -> bool:
  """Whether a setting is the recipe's, not a run's: neither the seed nor a place on a disk.

  Args:
    name: path, followed by (stage) where stages differ: given frames have the seed of their recording.
  """
  name = name.partition(" (")[0]
  return name != "seed" and name not in PLACES and not name.startswith("inputs.")


def differing(earlier: Result, result: Result) -> dict[str, tuple[Any, Any]]:
  """Settings in which two runs differ, their seeds and places aside: name -> both values."""
  pairs = {
    name: tuple(r["settings"].get(name, "(absent)") for r in (earlier, result))
    for name in sorted({*earlier["settings"], *result["settings"]})
  }
  return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def of_one_recipe(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Numbers of several seeds of one recipe, by seed; empty where the runs are something else.

  Raises:
    RunError: as `result_of`, of runs that are seeds of one recipe.
  """
  settings = [{k: v for k, v in run.settings().items() if _matters(k)} for run in runs]
  distinct = len({run.results["seed"] for run in runs}) == len(runs) > 1
  if not distinct or any(other != settings[0] for other in settings):
    return []
  return sorted(map(result_of, runs), key=lambda result: result["seed"])


def keep(run: Run, folder: pathlib.Path) -> pathlib.Path:
  """Writes a run's numbers to `folder/seed<n>.json`.

  Raises:
    RunError: files there are of another recipe, or this seed exists with other episodes.
  """
  result = result_of(run)
  path = folder / f"seed{result['seed']}.json"
  for earlier in read(folder):
    different = differing(earlier, result)
    if different:
      shown = [f"  {name}: {a!r} there, {b!r} in {run.workdir}" for name, (a, b) in different.items()]
      fix = "One table is of one recipe: give another --results folder, or remove the files there."
      raise RunError("\n".join([f"{folder}: holds runs of other settings.", *shown, fix]))
    if earlier["seed"] == result["seed"] and earlier["policies"] != result["policies"]:
      raise RunError(
        f"{path}: another run of seed {result['seed']} is kept there; remove the file to replace it"
      )
  folder.mkdir(parents=True, exist_ok=True)
  write_text(path, json.dumps(result, indent=1) + "\n")
  return path


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """All runs kept in a folder, by seed.

  Raises:
    RunError: a file is not one of this format.
  """
  results = []
  for path in sorted(folder.glob("seed*.json")):
    try:
      result = json.loads(read_text(path))
      if result["format"] != FORMAT or not {*COMPARED} <= {*result["policies"]}:
        raise RunError(
          f"{path}: format {result['format']}, or no policy after PPO; this version reads {FORMAT}"
        )
    except (ValueError, KeyError, TypeError) as error:
      raise RunError(
        f"{path}: not the numbers of a run ({error}); remove it and keep the run again"
      ) from error
    results.append(result)
  return sorted(results, key=lambda result: result["seed"])


def markdown(results: Sequence[Result]) -> str:
  """The tables of several seeds: by task, by seed, and what one run may look like."""
  return "\n".join(
    [
      tables.markdown_table(task_rows(results)),
      "",
      tables.markdown_table(seed_rows(results)),
      "",
      spread(results),
    ]
  )


def _percent(value: float) -> str:
  return f"{100 * value:.1f}"


def _interval(low: float, high: float) -> str:
  return f"({100 * low:.0f}-{100 * high:.0f})"


def task_rows(results: Sequence[Result]) -> tables.Rows:
  """Success by task, all seeds together, header first."""
  tasks = results[0]["tasks"]
  heads = [f"{POLICIES[policy].heading} (95 %)" for policy in COMPARED]
  rows = [["Success in %", *heads, "Imagined", "Gap"]]
  for task in tasks:
    cells = [task]
    rates = {}
    for policy in COMPARED:
      digits = "".join(result["policies"][policy]["success"][task] for result in results)
      rates[policy] = digits.count("1") / len(digits)
      cells.append(
        f"{_percent(rates[policy])} {_interval(*intervals.wilson_interval(digits.count('1'), len(digits)))}"
      )
    imagined = sum(result["policies"]["ppo"]["imagined"][task] for result in results) / len(results)
    rows.append([*cells, _percent(imagined), f"{100 * (imagined - rates['ppo']):+.1f}"])
  cells = ["**Mean**"]
  for policy in COMPARED:
    rate, low, high, _ = study_results.pooled(results, policy)
    cells.append(f"{_percent(rate)} {_interval(low, high)}")
  gap = sum(map(imagined_minus_real, results)) / len(results)
  imagined = (
    sum(study_results.rate_of(study_results.policy_episodes(r, "ppo")) for r in results) / len(results) + gap
  )
  return [*rows, [*cells, _percent(imagined), f"{100 * gap:+.1f}"]]


def imagined_minus_real(result: Result) -> float:
  """Of the policies after PPO, mean over tasks."""
  imagined = result["policies"]["ppo"]["imagined"]
  return sum(imagined.values()) / len(imagined) - study_results.rate_of(
    study_results.policy_episodes(result, "ppo")
  )


def gain(result: Result) -> tuple[float, float, float]:
  """(success after PPO minus cloned, low, high), paired over start states."""
  cloned, improved = (study_results.policy_episodes(result, policy).ravel().tolist() for policy in COMPARED)
  return intervals.paired_difference(cloned, improved)


def _signed(value: float, low: float, high: float) -> str:
  return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def seed_rows(results: Sequence[Result]) -> tables.Rows:
  """One row per seed, header first, and the mean with its interval over seeds."""
  head = [
    "Seed",
    *(POLICIES[policy].heading for policy in COMPARED),
    "Gain (95 %)",
    "Imagined minus real",
    "Told apart, seen",
    "Told apart, dreamt",
  ]
  rows = [[*head, f"Hand after {HAND_HORIZON} frames, mm", "Time", "Machine"]]
  for result in results:
    cloned, improved = (study_results.rate_of(study_results.policy_episodes(result, p)) for p in COMPARED)
    rows.append(
      [
        str(result["seed"]),
        _percent(cloned),
        _percent(improved),
        _signed(*gain(result)),
        f"{100 * imagined_minus_real(result):+.1f}",
        *(_points(_discrimination(result, kind)) for kind in ("real", "dreamt")),
        _millimetres(_hand(result)),
        duration(sum(result["seconds"].values())),
        result["provenance"]["cpu"],
      ]
    )
  mean = lambda values: sum(values) / len(values)
  entries = over_seeds(results)[-1]
  rows.append(
    [
      "**Mean**",
      *(_over(entries[policy], _percent) for policy in COMPARED),
      _over(entries["gain"], lambda value: f"{100 * value:+.1f}"),
      f"{100 * mean([imagined_minus_real(result) for result in results]):+.1f}",
      *(_points(mean([_discrimination(result, kind) for result in results])) for kind in ("real", "dreamt")),
      _millimetres(mean([_hand(result) for result in results])),
      duration(mean([sum(result["seconds"].values()) for result in results])),
      "",
    ]
  )
  return rows


def over_seeds(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Success of every seed, by task and then in the mean, with its mean over seeds.

  Returns:
    A dict of each task: task (None: the mean of all), and of each policy and of `gain`, their difference,
    values (of each seed), mean, and low and high by Student's t over seeds, rates cut to [0, 1]; nan with one
    seed.
  """
  rates = {
    policy: np.stack([study_results.policy_episodes(result, policy).mean(1) for result in results])
    for policy in COMPARED
  }  # [seeds, K]
  rates["gain"] = rates[COMPARED[1]] - rates[COMPARED[0]]
  rows = []
  for k, task in enumerate((*results[0]["tasks"], None)):
    row: dict[str, Any] = {"task": task}
    for name, of_tasks in rates.items():
      values = of_tasks.mean(1) if task is None else of_tasks[:, k]
      mean, low, high = bootstrap.mean_over_seeds(values.tolist())
      if name in COMPARED:  # rates
        low, high = max(low, 0.0), min(high, 1.0)
      row[name] = {"values": values.tolist(), "mean": mean, "low": low, "high": high}
    rows.append(row)
  return rows


def _over(entry: Mapping[str, Any], shown: Callable[[float], str]) -> str:
  """Mean over seeds with its interval; of one seed without."""
  span = f" ({shown(entry['low'])} to {shown(entry['high'])})" if len(entry["values"]) > 1 else ""
  return shown(entry["mean"]) + span


def _discrimination(result: Result, kind: str) -> float:
  numbers = result["discrimination"]
  return float("nan") if numbers is None else numbers[kind]["difference"]["value"]


def _points(share: float) -> str:
  return "-" if math.isnan(share) else f"{100 * share:.0f}"


def _millimetres(metres: float) -> str:
  return "-" if math.isnan(metres) else f"{1000 * metres:.1f}"


def _hand(result: Result) -> float:
  """Root mean square error of the hand [m] in held-out play, HAND_HORIZON frames imagined."""
  judge = result["judge"]
  if HAND_HORIZON not in judge["horizons"] or not judge.get("hand"):
    return float("nan")
  entry = judge["hand"]["play"]["imagined"][judge["horizons"].index(HAND_HORIZON)]
  return float("nan") if entry is None else entry["rms"]


def spread(results: Sequence[Result]) -> str:
  """What one run may look like, in words."""
  after, gains = study_results.seed_means(results, "ppo"), [gain(result)[0] for result in results]
  tasks = [
    (study_results.rate_of(study_results.policy_episodes(result, "ppo")[k]), task, result["seed"])
    for result in results
    for k, task in enumerate(result["tasks"])
  ]
  lowest, task, seed = min(tasks)
  episodes = study_results.policy_episodes(results[0], "ppo").shape[1]
  if len(results) == 1:
    return f"1 seed, {episodes} episodes per task and policy: how far seeds differ it cannot say."
  return (
    f"{len(results)} seeds, {episodes} episodes per task, seed and policy. Range of a single run: "
    f"{_percent(min(after))} to {_percent(max(after))} % after PPO, its gain from {100 * min(gains):+.1f} to "
    f"{100 * max(gains):+.1f} points; the lowest single task is {task} of seed {seed}: {_percent(lowest)} %."
  )
