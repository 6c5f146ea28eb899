"""Learning curves of a run's training stages, as plain values that charts are drawn from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.acting.policy_table import COMPARED
from wam_jax.host.logger import read_metrics
from wam_jax.reporting.page_parts import title_of
from wam_jax.storage.artifact import Artifact


def metric_series(
  lines: Sequence[Mapping[str, Any]], name: str, label: str, style: str
) -> dict[str, Any] | None:
  points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
  if not points:
    return None
  return {"name": label, "x": [p[0] for p in points], "y": [p[1] for p in points], "style": style}


def _chart(
  title: str, x_label: str, series: Sequence[dict[str, Any] | None], **options: Any
) -> list[dict[str, Any]]:
  present = [curve for curve in series if curve is not None]
  return [{"title": title, "x_label": x_label, "series": present, **options}] if present else []


def _per_task(
  lines: Sequence[Mapping[str, Any]], pattern: str, tasks: Sequence[str]
) -> list[dict[str, Any] | None]:
  """Series of the metrics that match, one per task, which `pattern` names as {task}."""
  names = {name for line in lines for name in line}
  series = []
  for k, task in enumerate(tasks):
    matching = sorted(n for n in names if re.fullmatch(pattern.format(task=task), n))
    series += [metric_series(lines, n, title_of(task), f"s{k % 8}") for n in matching[:1]]
  return series


def curves(inputs: Mapping[str, Artifact], results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Learning curves of all training stages, from their `metrics.jsonl`.

  Returns:
    Charts: title, x_label, series (name, x, y, style, dots), and options of `charts.line_chart`.
  """
  tasks = results["tasks"]
  lines = {stage: read_metrics(artifact.path) for stage, artifact in inputs.items()}
  w, prefix = lines["world_model"], "world_model/"
  charts = _chart(
    "World model: picture loss",
    "update",
    [
      metric_series(w, prefix + "loss/image", "from features", "s0"),
      metric_series(w, prefix + "loss/embedding_image", "from embeddings", "s1"),
    ],
    log_y=True,
  )
  charts += _chart(
    "World model: KL, nats", "update", [metric_series(w, prefix + "loss/kl", "balanced KL", "s0")], log_y=True
  )
  charts += _chart(
    "World model: inverse dynamics, squared error",
    "update",
    [
      metric_series(w, f"{prefix}inverse_dynamics/error_{name}", name, f"s{i % 8}")
      for i, name in enumerate(inputs["world_model"].embodiment.action_names)
    ],
    log_y=True,
  )
  charts += _chart(
    "World model: PSNR of reconstructions, dB",
    "update",
    [metric_series(w, prefix + "image/psnr", "PSNR", "s2")],
  )
  for stage, title in (
    ("behaviour_cloning", "Cloning and classifier: loss of cloning"),
    ("classifier", "Cloning and classifier: loss of the classifier"),
  ):
    of_tasks = _per_task(lines[stage], stage + r"/{task}/(loss|loss/total)", tasks)
    pooled = [
      metric_series(lines[stage], f"{stage}/{name}", "all tasks", "s0") for name in ("loss", "loss/total")
    ]
    charts += _chart(title, "update", of_tasks if any(of_tasks) else pooled, log_y=True)
  charts += [chart for task in (None, *tasks) for chart in ppo_chart(lines["ppo"], results, task)]
  ppo = lines["ppo"]
  for name, title in (
    ("kl_to_cloned", "PPO: divergence from the cloned policy, nats"),
    ("gap", "PPO: imagined minus real success"),
  ):
    of_tasks = _per_task(ppo, "ppo/monitor/{task}/" + name, tasks)
    charts += _chart(title, "iteration", of_tasks)
  scores = [
    metric_series(ppo, f"ppo/monitor/score/{name}", label, style)
    for name, label, style in (("p05", "5 %", "s0"), ("p50", "median", "s1"), ("p95", "95 %", "s2"))
  ]
  charts += _chart("PPO: classifier's score of dreams, log-odds above threshold", "iteration", scores)
  return charts


def ppo_chart(
  lines: Sequence[Mapping[str, Any]], results: Mapping[str, Any], task: str | None
) -> list[dict[str, Any]]:
  """Success over the iterations of PPO, imagined and real: one chart, or none.

  Args:
    lines: metrics of stage ppo.
    results: of stage evaluate.
    task: its name; None: the mean of all.
  """
  task_prefix = "" if task is None else f"{task}/"
  imagined = metric_series(lines, f"ppo/{task_prefix}imagined_success", "imagined, exploring", "imagined")
  if imagined is None:
    return []
  last = max(line["step"] for line in lines)
  held_out = ("imagined, held-out starts", "imagined dashed")
  monitored = metric_series(lines, f"ppo/monitor/{task_prefix}imagined_success", *held_out)
  real = metric_series(lines, f"ppo/monitor/{task_prefix}real_success", "real, monitored", "ppo")
  rows = results["policies"]
  rates = {
    name: (rows[name]["mean"] if task is None else rows[name]["per_task"][task])["rate"]
    for name in COMPARED
    if name in rows
  }
  places = {"cloned": ("real, cloned", 0), "ppo": ("real, after PPO", last)}
  dots = [
    {"name": places[name][0], "x": [places[name][1]], "y": [rate], "style": name, "dots": True}
    for name, rate in rates.items()
  ]
  title = f"PPO: {'Mean of all tasks' if task is None else title_of(task)}"
  return _chart(title, "iteration", [imagined, monitored, real, *dots], percent=True, y_range=[0, 1])
