"""Several finished runs side by side, as plain values; `comparison_page` makes a page of them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.acting.policy_table import COMPARED
from wam_jax.core import intervals
from wam_jax.host import tables
from wam_jax.host.logger import read_metrics
from wam_jax.host.words import duration
from wam_jax.reporting import comparison_page, finished_run, seeds, unsimulated
from wam_jax.reporting.curves import metric_series, ppo_chart
from wam_jax.reporting.finished_run import Run, RunError
from wam_jax.storage.artifact import write_text

TITLE = "Runs side by side"
MOST = 8  # runs that have a colour
LOSSES = {  # metric of the world model -> title of its chart
  "loss/image": "Picture loss",
  "loss/kl": "KL, nats",
  "loss/inverse_dynamics": "Inverse dynamics, squared error",
  "image/psnr": "PSNR of reconstructions, dB",
}
FACTS = ("wam_jax", "commit", "python", "cpu", "cores", "devices", "platform")


def write(runs: Sequence[Run], out: pathlib.Path) -> tuple[str, list[str]]:
  """Writes the page.

  Args:
    runs: two or more; the first is what the others are compared with.
    out: file to write.

  Returns:
    (the tables of several seeds where the runs are seeds of one recipe, else "", what is missing or was left
    out).

  Raises:
    RunError: no task in common, the same run twice, or too many runs.
  """
  compared = build(runs)
  write_text(out, comparison_page.render_page(compared, [run.strips() for run in runs]))
  return compared["seeds"].get("text", ""), compared["left_out"]


def build(runs: Sequence[Run]) -> dict[str, Any]:
  """All that the page says.

  Returns:
    Nested dicts and lists, fit for JSON.
  """
  if len(runs) > MOST:
    raise RunError(f"{len(runs)} runs: at most {MOST} can be told apart on one page")
  names = finished_run.labels(runs)
  tasks = common_tasks(runs, names)
  judges = [run.judge() for run in runs]
  measured = all(run.results["policies"] for run in runs)
  policies = [success(run, tasks) if measured else {} for run in runs]
  differences = [
    {policy: difference(runs[0], run, policy, tasks) for policy in COMPARED} for run in runs[1:] if measured
  ]
  left_out = [
    f"{name}: {', '.join(extra)} left out, not in all runs"
    for name, run in zip(names, runs, strict=True)
    if (extra := [task for task in run.results["tasks"] if task not in tasks])
  ]
  left_out += [f"{name}: {line}" for name, run in zip(names, runs, strict=True) for line in run.missing]
  of_seeds: dict[str, Any] = {}
  try:
    if not measured:
      left_out.append("success in the simulator left out, not measured in all runs")
    elif results := seeds.of_one_recipe(runs):
      of_seeds = {
        "rows": seeds.over_seeds(results),
        "tables": [seeds.task_rows(results), seeds.seed_rows(results)],
        "spread": seeds.spread(results),
        "text": seeds.markdown(results),
      }
  except RunError as error:
    left_out.append(f"no mean over seeds: {error}")
  return {
    "title": TITLE,
    "runs": [
      {
        "name": name,
        "experiment": run.results.get("experiment", run.config.experiment),
        "preset": run.results.get("preset", run.config.preset),
        "seed": run.results["seed"],
        "policies": run_policies,
        "seconds": sum(artifact.seconds for artifact in run.inputs.values()),
      }
      for name, run, run_policies in zip(names, runs, policies, strict=True)
    ],
    "tasks": tasks,
    "imagined": [] if measured else imagined_rows(runs, names, tasks),
    "seeds": of_seeds,
    "differences": differences,
    "curves": curves(runs, names, tasks) + open_loop(judges, names),
    "models": tables.difference_rows(names, [tables.measured(j, j["models"][0]) for j in judges]),
    "main_rows": _main_labels(judges[0]),
    "settings": settings(runs, names),
    "origin": origin(runs, names),
    "times": times(runs, names),
    "left_out": left_out,
    "notes": notes(runs, judges, differences),
  }


def common_tasks(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
  """Tasks that all runs were evaluated on, in the order of the first.

  Raises:
    RunError: there is none.
  """
  shared = set.intersection(*(set(run.results["tasks"]) for run in runs))
  if not shared:
    lines = [f"  {name}: {', '.join(run.results['tasks'])}" for name, run in zip(names, runs, strict=True)]
    raise RunError("\n".join(["the runs have no task in common, nothing can be compared:", *lines]))
  return [task for task in runs[0].results["tasks"] if task in shared]


def success(run: Run, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
  """policy -> task, or 'mean' of these tasks -> rate, low, high, n, and imagined where it was measured."""
  out: dict[str, dict[str, Any]] = {}
  for policy in COMPARED:
    rows = {task: dict(run.results["policies"][policy]["per_task"][task]) for task in tasks}
    successes, counts = ([row[key] for row in rows.values()] for key in ("successes", "n"))
    rate, low, high = intervals.mean_interval(successes, counts)
    mean = {"rate": rate, "low": low, "high": high, "n": sum(counts)}
    if all("imagined" in row for row in rows.values()):
      mean["imagined"] = sum(row["imagined"] for row in rows.values()) / len(rows)
    out[policy] = rows | {"mean": mean}
  return out


def imagined_rows(runs: Sequence[Run], names: Sequence[str], tasks: Sequence[str]) -> tables.Rows:
  """Success in dreams after PPO by task, header first, a column for each run, the mean last."""
  rows = [["Success in dreams after PPO, %", *names], *([task] for task in tasks), ["Mean"]]
  for run in runs:
    of_policy = unsimulated.imagined_success(run.inputs["ppo"])["ppo"]
    shares = [of_policy[task] for task in tasks]
    for row, share in zip(rows[1:], [*shares, sum(shares) / len(shares)], strict=True):
      row.append(f"{100 * share:.1f}")
  return rows


def difference(first: Run, second: Run, policy: str, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
  """What the second run succeeds in more than the first.

  Episodes are paired where both began from the same states; otherwise the two rates are taken as independent.

  Returns:
    task, or 'mean' of these tasks -> difference, low, high, paired.
  """
  run_episodes = [run.episodes(policy) for run in (first, second)]
  rates = [success(run, tasks)[policy] for run in (first, second)]
  out: dict[str, dict[str, Any]] = {}
  before: list[bool] = []
  after: list[bool] = []
  for task in tasks:
    pair = [
      {name: x[run.results["tasks"].index(task)] for name, x in episodes.items()}
      for run, episodes in zip((first, second), run_episodes, strict=True)
      if episodes is not None
    ]
    if len(pair) == 2 and np.array_equal(pair[0]["start"], pair[1]["start"]):
      first_success, second_success = (outcome["success"].tolist() for outcome in pair)
      before, after = before + first_success, after + second_success
      out[task] = _difference(intervals.paired_difference(first_success, second_success), True)
    else:
      out[task] = _unpaired(*(rate[task] for rate in rates))
  if all(row["paired"] for row in out.values()):
    out["mean"] = _difference(intervals.paired_difference(before, after), True)
  else:
    out["mean"] = _unpaired(*(rate["mean"] for rate in rates))
  return out


def _difference(interval: tuple[float, float, float], paired: bool) -> dict[str, Any]:
  return dict(zip(("difference", "low", "high"), interval, strict=True)) | {"paired": paired}


def _unpaired(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
  spans = [(row["rate"], row["low"], row["high"]) for row in (before, after)]
  return _difference(intervals.independent_difference(*spans), False)


# --- curves ---------------------------------------------------------------------------------------


def curves(runs: Sequence[Run], names: Sequence[str], tasks: Sequence[str]) -> list[dict[str, Any]]:
  """Charts of the world model's losses and of PPO, a colour for each run."""
  lines = [read_metrics(run.inputs["world_model"].path) for run in runs]
  charts = []
  for metric, title in LOSSES.items():
    series = [
      metric_series(of, f"world_model/{metric}", name, f"s{k}")
      for k, (of, name) in enumerate(zip(lines, names, strict=True))
    ]
    charts.append(
      {
        "title": f"World model: {title}",
        "x_label": "update",
        "series": [curve for curve in series if curve is not None],
        "log_y": metric.startswith("loss"),
      }
    )
  same_tasks = all(list(run.results["tasks"]) == list(tasks) for run in runs)
  improved = [read_metrics(run.inputs["ppo"].path) for run in runs]
  for task in (*((None,) if same_tasks else ()), *tasks):
    charts += _ppo_charts(runs, names, improved, task)
  return [chart for chart in charts if chart["series"]]


def _ppo_charts(
  runs: Sequence[Run], names: Sequence[str], lines: Sequence[Any], task: str | None
) -> list[dict[str, Any]]:
  """PPO of one task: imagined dashed, real as a line where it was monitored, the evaluations as dots."""
  series: list[dict[str, Any]] = []
  chart: dict[str, Any] = {}
  for k, (run, name) in enumerate(zip(runs, names, strict=True)):
    for chart in ppo_chart(lines[k], run.results, task):
      by_name = {curve["name"]: curve for curve in chart["series"]}
      dots = [by_name.pop(dot) for dot in ("real, cloned", "real, after PPO") if dot in by_name]
      evaluated = {axis: [x for dot in dots for x in dot[axis]] for axis in ("x", "y")} | {"dots": True}
      monitored = by_name.get("real, monitored")
      series.append(by_name["imagined, exploring"] | {"name": f"{name}, imagined", "style": f"s{k} dashed"})
      if monitored is not None:
        series.append(monitored | {"name": f"{name}, real", "style": f"s{k}"})
      if dots:
        series.append(evaluated | {"name": "" if monitored else f"{name}, real", "style": f"s{k}"})
  return [chart | {"series": series}] if chart else []


def open_loop(judges: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
  """PSNR over the frames imagined, a chart for each camera."""
  charts = []
  for camera in dict.fromkeys(camera for judge in judges for camera in judge["models"][0]["open_loop"]):
    series = []
    for k, (judge, name) in enumerate(zip(judges, names, strict=True)):
      scores = judge["models"][0]["open_loop"].get(camera)
      if scores is not None:
        curve = scores["psnr_curve"]
        note = f": mean {scores['mean_psnr']:.2f} dB"
        frames = list(range(1, len(curve) + 1))
        series.append({"name": name, "x": frames, "y": curve, "style": f"s{k}", "note": note})
    title = f"Open loop: PSNR, dB, {tables.CAMERA_NAMES.get(camera, camera)} camera"
    charts.append({"title": title, "x_label": "frames imagined", "series": series})
  return charts


# --- tables ---------------------------------------------------------------------------------------


def _main_labels(judge: Mapping[str, Any]) -> list[str]:
  """Labels of `tables.measured` that are shown at once: PSNR, and the probes seen and at one horizon."""
  horizon = min(judge["horizons"], key=lambda frames: abs(frames - 10))
  return [
    label
    for label in tables.measured(judge, judge["models"][0])
    if ("PSNR" in label and "repeated" not in label)
    or label.endswith((", posterior", ": squared error"))
    or ("SSIM" not in label and label.endswith(f", {horizon} imagined"))
  ]


def _shown(value: Any) -> str:
  """A setting as text; of a folder only the last part, the others may name a user."""
  if isinstance(value, str):
    return f"…/{pathlib.PurePath(value).name}" if value.startswith(("/", "~")) else value or "(empty)"
  if isinstance(value, list | tuple):
    return ", ".join(map(_shown, value)) or "(none)"
  return str(value)


def settings(runs: Sequence[Run], names: Sequence[str]) -> tables.Rows:
  """The settings that the results depend on and that differ, header first."""
  run_settings = [run.settings() for run in runs]
  rows = [["Setting", *names]]
  for path in dict.fromkeys(path for fields in run_settings for path in fields):
    values = [_shown(fields[path]) if path in fields else "(absent)" for fields in run_settings]
    if len(set(values)) > 1:
      rows.append([path, *values])
  return rows


def origin(runs: Sequence[Run], names: Sequence[str]) -> tables.Rows:
  """Versions and machines that differ, header first."""
  facts = []
  for run in runs:
    provenance = run.results.get("provenance", {})
    packages = provenance.get("packages", {})
    facts.append({fact: provenance.get(fact) for fact in FACTS} | packages)
  rows = [["Version, machine", *names]]
  for fact in dict.fromkeys(fact for row in facts for fact in row):
    values = [tables.NOTHING if row.get(fact) is None else _shown(row[fact]) for row in facts]
    if len(set(values)) > 1:
      rows.append([fact, *values])
  return rows


def times(runs: Sequence[Run], names: Sequence[str]) -> tables.Rows:
  """Time of each stage, header first, the sum last."""
  rows = [["Stage", *names]]
  for stage in dict.fromkeys(stage for run in runs for stage in run.inputs):
    cells = [duration(run.inputs[stage].seconds) if stage in run.inputs else tables.NOTHING for run in runs]
    rows.append([stage.replace("_", " "), *cells])
  rows.append(["together", *(duration(sum(a.seconds for a in run.inputs.values())) for run in runs)])
  return rows


def notes(
  runs: Sequence[Run],
  judges: Sequence[Mapping[str, Any]],
  differences: Sequence[Mapping[str, Any]],
) -> list[str]:
  """What a reader must know to judge the differences."""
  rows = [row for by_policy in differences for by_task in by_policy.values() for row in by_task.values()]
  unpaired = sum(not row["paired"] for row in rows)
  paired = (
    "from the same start states, episode by episode (interval of Agresti and Min for paired proportions)"
  )
  independent = "from other start states, or without stored episodes, as of independent samples (Newcombe)"
  lines = []
  if rows and not unpaired:
    lines = [f"All differences are taken {paired}."]
  elif unpaired == len(rows) > 0:
    lines = [f"Not paired: differences are taken {independent}."]
  elif rows:
    lines = [f"Differences are taken {paired}; those marked * {independent}."]
  if rows:
    lines.append(
      "A difference is coloured where its 95 % interval leaves out 0: of equal runs that is about one "
      "difference in twenty. These intervals do not cover the spread over training seeds."
    )
  if len({run.results["max_steps"] for run in runs}) > 1:
    rates = [run.inputs["world_model"].embodiment.control_hz for run in runs]
    lasting = (f"{run.results['max_steps'] / rate:.1f} s" for run, rate in zip(runs, rates, strict=True))
    seconds = ", ".join(lasting)
    lines.append(f"The runs give their policies different times: {seconds}. Their success does not compare.")
  simulators = {str(run.results.get("simulator", {}).get("name", run.config.env.name)) for run in runs}
  if len(simulators) > 1:
    lines.append(f"Different simulators ({', '.join(sorted(simulators))}): their numbers do not compare.")
  datasets = {run.inputs["judge_world_model"].inputs.get("collect") for run in runs}
  if len(datasets) > 1 or any(judge["data"] != judges[0]["data"] for judge in judges):
    lines.append("The world models were judged on different held-out frames: small differences mean nothing.")
  return lines
