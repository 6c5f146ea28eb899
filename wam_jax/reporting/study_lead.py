"""Sections of a study's page on where inverse dynamics helps: the dial, and the lead over all studies."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from wam_jax.config.arms import DIAL_LEVELS, PAIRS
from wam_jax.core import bootstrap
from wam_jax.host.tables import NOTHING, markdown_table
from wam_jax.reporting import charts
from wam_jax.reporting.study_results import Cell, Results, cells, difference, pooled, read_results
from wam_jax.reporting.study_sections import percent, points, span

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
    rates = [pooled([results[arm][seed] for seed in gap["seeds"]], "cloned")[0] for arm in pair]
    each = ", ".join(map(points, gap["per_seed"]))
    spans = [span(*gap["bootstrap"]), span(*gap["t"])]
    rows.append(
      [f"level {level}", _named(gap["seeds"]), *map(percent, rates), points(gap["mean"]), *spans, each]
    )
  if not leads:
    return []
  parts = ["## More and more distractors", "", markdown_table(rows), ""]
  parts.append(
    "Cloned success, mean over tasks. Lead: WAM minus DreamerV2 at the same level, paired by start state. "
    "Level 0 has no distractors; the episodes are the same at all levels. Bootstrap: seeds, and start states "
    "within them. t: Student's, over seeds."
  )
  seeds = sorted(set.intersection(*map(set, leads.values())))
  if len(leads) < len(DIAL_LEVELS) or not seeds:
    return [*parts, "", "What the levels say together needs a seed with all of them: there is none yet."]
  table = 100 * np.array([[leads[level][seed] for seed in seeds] for level in DIAL_LEVELS])  # [levels, seeds]
  contrasts = {
    "mean lead of levels 1 to 3": table[1:].mean(0),
    "that minus the lead without distractors": table[1:].mean(0) - table[0],
    "slope: points per level": np.polyfit(DIAL_LEVELS, table, 1)[0],
  }
  together = [["Over levels, points", "Mean", "t 95 %", "SD over seeds", "found with 80 % power"]]
  for label, values in contrasts.items():
    mean, low, high = bootstrap.mean_over_seeds(values.tolist())
    deviation = float(np.std(values, ddof=1)) if len(seeds) > 1 else 0.0
    found = f"{bootstrap.detectable(deviation, len(seeds)):.1f}" if len(seeds) > 1 else NOTHING
    shown = span(low / 100, high / 100)
    together.append(
      [label, points(mean / 100), shown, f"{deviation:.1f}" if len(seeds) > 1 else NOTHING, found]
    )
  parts += ["", markdown_table(together), ""]
  parts.append(
    f"Of the seeds with all levels ({_named(seeds)}), one number each. Last column: the smallest true value "
    "that a t-test over so many seeds finds four times in five."
  )
  return parts


def _named(seeds: Sequence[int]) -> str:
  """60 to 67, if there are all between; else one by one."""
  if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
    return f"{seeds[0]} to {seeds[-1]}"
  return ", ".join(map(str, seeds))


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
