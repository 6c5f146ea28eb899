"""Sections of a study's page on where inverse dynamics helps: the dial, and the lead over all studies."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.config.arms import DIAL_LEVELS, PAIRS
from wam_jax.core import bootstrap
from wam_jax.host.tables import NOTHING, markdown_table
from wam_jax.reporting import charts
from wam_jax.reporting.study_results import (
  Cell,
  Results,
  cells,
  common_seeds,
  difference,
  differences_after_updates,
  linear_error,
  read_results,
)
from wam_jax.reporting.study_sections import percent, points, seed_names, span

CHART = "leads.svg"
COLOURS = ("#0a9568", "#2f6fde", "#e0760f", "#8b46c9", "#c23a5b")  # of studies
_FEWEST = 4  # cells with a rank correlation


def dial(results: Results) -> list[str]:
  """Success and lead at each level of the distractors, and what the levels say together."""
  heads = ["Distractors", "Seeds", "WAM, %", "DreamerV2, %", "Lead, points", "bootstrap 95 %", "t 95 %"]
  rows = [[*heads, "Each seed"]]
  leads: dict[int, dict[int, float]] = {}
  for level in DIAL_LEVELS:
    pair = f"dial_{level}", PAIRS[f"dial_{level}"]
    gap = difference(results, *((arm, "cloned") for arm in pair))
    if gap is None:
      continue
    leads[level] = dict(zip(gap["seeds"], gap["per_seed"], strict=True))
    rows.append([f"level {level}", *_lead_columns(gap)])
    for update, early in differences_after_updates(results, pair).items():
      rows.append([f"level {level}, {update:,} updates", *_lead_columns(early)])
  if not leads:
    return []
  parts = ["## More and more distractors", "", markdown_table(rows), ""]
  parts.append(
    "Cloned success, mean over tasks. Lead: WAM minus DreamerV2 at the same level, paired by start state. "
    "Level 0 has no distractors; the episodes are the same at all levels. Updates: cloned on world models "
    "that had made only so many. Bootstrap: seeds, and start states within them. t: Student's, over seeds."
  )
  low, *higher = DIAL_LEVELS
  high, steps = higher[-1], higher[-1] - low
  over_higher = dict.fromkeys(higher, 1 / len(higher))
  contrasts = {
    "slope from level 0 to 3, per level": {low: -1 / steps, high: 1 / steps},
    "slope over all levels, per level": dict(zip(DIAL_LEVELS, _slope_weights(DIAL_LEVELS), strict=True)),
    "mean lead of levels 1 to 3": over_higher,
    "that minus the lead without distractors": {low: -1.0} | over_higher,
  }
  together = [["Over levels, points", "Seeds", "Mean", "t 95 %", "SD over seeds", "found with 80 % power"]]
  for label, weights in contrasts.items():
    values = _over_levels(leads, weights)
    if not values:
      continue
    mean, least, most = bootstrap.mean_over_seeds(list(values.values()))
    row = [label, seed_names(list(values)), points(mean), span(least, most), NOTHING, NOTHING]
    if len(values) > 1:
      deviation = 100 * float(np.std(list(values.values()), ddof=1))
      row[-2:] = [f"{deviation:.1f}", f"{bootstrap.detectable(deviation, len(values)):.1f}"]
    together.append(row)
  if len(together) == 1:
    return [*parts, "", "What the levels say together needs a seed with levels 0 and 3: there is none yet."]
  parts += ["", markdown_table(together), ""]
  parts.append(
    "One number for each seed that has the levels. Last column: the smallest true value that a t-test over "
    "so many seeds finds four times in five."
  )
  return [*parts, *_growth(results, low, high)]


def _lead_columns(gap: dict[str, Any]) -> list[str]:
  spans = [span(*gap["bootstrap"]), span(*gap["t"])]
  each = ", ".join(map(points, gap["per_seed"]))
  return [seed_names(gap["seeds"]), *map(percent, gap["rates"]), points(gap["mean"]), *spans, each]


def _slope_weights(levels: Sequence[int]) -> list[float]:
  """Weights of the values at `levels` in the slope of the line through them, by least squares."""
  centred = np.array(levels) - np.mean(levels)
  return (centred / (centred**2).sum()).tolist()


def _over_levels(by_level: dict[int, dict[int, float]], weights: dict[int, float]) -> dict[int, float]:
  """Seed -> weighted sum over levels, of the seeds that have them all."""
  have = set.intersection(*(set(by_level.get(level, ())) for level in weights))
  return {seed: sum(w * by_level[level][seed] for level, w in weights.items()) for seed in sorted(have)}


def _growth(results: Results, low: int, high: int) -> list[str]:
  """How much more of the action the plain model's embeddings lack at the highest level."""
  lacking: dict[int, dict[int, float]] = {}
  for level in (low, high):
    pair = f"dial_{level}", PAIRS[f"dial_{level}"]
    for seed in common_seeds(results, pair):
      with_it, without = (linear_error(results, arm, seed) for arm in pair)
      if math.isfinite(without - with_it):
        lacking.setdefault(level, {})[seed] = without - with_it
  grown = _over_levels(lacking, {low: -1.0, high: 1.0})
  if not grown:
    return []
  mean, least, most = bootstrap.mean_over_seeds(list(grown.values()))
  each = ", ".join(f"{value:+.3f}" for value in grown.values())
  of = f"seeds {seed_names(list(grown))}: {each}; t 95 %: {least:+.3f} to {most:+.3f}"
  return [
    "",
    (
      f"From level {low} to {high}, what DreamerV2's embeddings lack of the action (below) changes by "
      f"**{mean:+.3f}** ({of if len(grown) > 1 else f'seed {seed_names(list(grown))} alone'})."
    ),
  ]


def cells_beside(folder: pathlib.Path) -> list[Cell]:
  """Of all studies in folders next to `folder`, and of its own."""
  out = []
  for path in sorted(folder.parent.iterdir()):
    if path.name != "calvin" and any(list(path.glob(f"{arm}_seed*.json")) for arm in PAIRS):
      out += cells(read_results(path), path.name)
  return out


def explanation(measured: Sequence[Cell], relative: pathlib.Path) -> list[str]:
  """The lead against what the plain model's embeddings lack of the action."""
  if not measured:
    return []
  heads = [
    "Study",
    "Arm",
    "Seeds",
    "WAM, error",
    "DreamerV2, error",
    "lacking",
    "Lead, points",
    "bootstrap 95 %",
  ]
  rows = [heads]
  for cell in sorted(measured, key=lambda cell: -cell.lacking):
    numbers = [f"{value:.3f}" for value in (*cell.errors, cell.lacking)]
    head = [cell.study, cell.label, str(len(cell.seeds))]
    rows.append([*head, *numbers, points(cell.lead), span(*cell.spread)])
  parts = [
    "## Does WAM lead where the plain model's embeddings lack the action?",
    "",
    markdown_table(rows),
    "",
    (
      "Of all studies whose models were judged, most lacking first. Error: mean squared error of a linear "
      "map from two embeddings to the action between them, on held-out play; lacking: DreamerV2's minus "
      "WAM's. Lead: of policies cloned on them. Arms with fewer demos have the world models of their study."
    ),
  ]
  if len(measured) >= _FEWEST:
    rank = bootstrap.rank_correlation([c.lacking for c in measured], [c.lead for c in measured])
    parts += ["", f"![Lead against what is lacking]({relative / CHART})", ""]
    parts.append(
      f"Rank correlation of lead and lacking over {len(measured)} cells: **{rank:+.2f}**. Cells of a study "
      "share seeds and frames, so this describes; it does not test."
    )
  return parts


def draw_cells(measured: Sequence[Cell]) -> dict[str, str]:
  """File name -> SVG of the lead against what is lacking; empty with few cells."""
  if len(measured) < _FEWEST:
    return {}
  studies = sorted({cell.study for cell in measured})
  series, legend = [], []
  for i, study in enumerate(studies):
    own, style = [cell for cell in measured if cell.study == study], f"study{i}"
    lacking, leads = [cell.lacking for cell in own], [100 * cell.lead for cell in own]
    series.append(charts.Series(study, lacking, leads, style, dots=True))
    legend.append((study, style, COLOURS[i % len(COLOURS)]))
  label = "linear action error, DreamerV2's minus WAM's"
  svg = charts.line_chart(series, x_label=label, title="")
  return {CHART: charts.standalone(svg, "WAM's lead in points, a dot for each cell", legend)}
