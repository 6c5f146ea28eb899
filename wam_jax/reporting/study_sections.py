"""The sections of a study's page that show what was measured, as lines of Markdown."""

from __future__ import annotations

import decimal
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wam_jax.acting.policy_table import COMPARED, POLICIES, SELECTED
from wam_jax.config.arms import ARMS, MAIN
from wam_jax.core import bootstrap, intervals
from wam_jax.host import tables
from wam_jax.host.regular_files import read_text
from wam_jax.host.tables import NOTHING, markdown_table
from wam_jax.reporting.study_results import (
  Results,
  common_seeds,
  curves,
  difference,
  policy_episodes,
  pooled,
  rate_of,
  seed_means,
)

# arXiv 2603.28955: mean success of the eight skills, and the gradient steps of both world models.
PUBLISHED = {("wam", "cloned"): 0.712, ("dreamerv2", "cloned"): 0.594}
PUBLISHED |= {("wam", "ppo"): 0.928, ("dreamerv2", "ppo"): 0.798}
PUBLISHED_RATIO = 8.7
SHOWN_HORIZONS = (1, 10, 50)  # frames imagined, of those that models were judged at
POLICY_NAMES = {name: POLICIES[name].in_text for name in (*COMPARED, *SELECTED.values())}


def percent(rate: float, digits: int = 1) -> str:
  """A rate in %, nothing if it is nan."""
  return NOTHING if math.isnan(rate) else f"{_hundredths(rate, digits)}"


def points(value: float) -> str:
  """A difference of rates in points, nothing if it is nan."""
  return NOTHING if math.isnan(value) else f"{_hundredths(value, 1):+}"


def _hundredths(value: float, digits: int) -> decimal.Decimal:
  """100 times a number; ties, which every second share of 400 episodes is, are rounded away from 0."""
  exact = decimal.Decimal(f"{100 * value:.6f}")  # without the float noise that would decide
  return exact.quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP) + 0  # no -0.0


def span(low: float, high: float, form: Any = points) -> str:
  """An interval; nan: there is none of one seed."""
  return "one seed" if math.isnan(low) else f"{form(low)} to {form(high)}"


def seed_names(seeds: Sequence[int]) -> str:
  """60 to 67, if there are all between; else one by one."""
  if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
    return f"{seeds[0]} to {seeds[-1]}"
  return ", ".join(map(str, seeds))


def headline(results: Results) -> list[str]:
  """The paper's table next to ours, and the differences."""
  rows = [["Mean success in %", "Published", "Here", "Wilson 95 %", "Over seeds, t 95 %", "Each seed"]]
  for policy in POLICY_NAMES:
    for arm in MAIN:
      pieces = [piece for piece in results.get(arm, {}).values() if policy in piece["policies"]]
      if not pieces:
        continue
      rate, low, high, _ = pooled(pieces, policy)
      means = seed_means(pieces, policy)
      _, *t = bootstrap.mean_over_seeds(means)
      t_low, t_high = np.clip(t, 0, 1)
      published = PUBLISHED.get((arm, policy))
      rows.append(
        [
          f"{ARMS[arm].title}, {POLICY_NAMES[policy]}",
          NOTHING if published is None else percent(published),
          percent(rate),
          span(low, high, percent),
          span(t_low, t_high, percent),
          ", ".join(map(percent, means)),
        ]
      )
  differences = [["Difference in points", "Published", "Here", "Bootstrap 95 %", "t 95 %", "Each seed"]]
  pairs = [(f"WAM minus DreamerV2, {POLICY_NAMES[p]}", (MAIN[0], p), (MAIN[1], p)) for p in POLICY_NAMES]
  pairs += [(f"{ARMS[arm].title}, after PPO minus cloned", (arm, "ppo"), (arm, "cloned")) for arm in MAIN]
  for label, a, b in pairs:
    gap = difference(results, a, b)
    if gap is None:
      continue
    is_published = a in PUBLISHED and b in PUBLISHED
    differences.append(
      [
        label,
        points(PUBLISHED[a] - PUBLISHED[b]) if is_published else NOTHING,
        points(gap["mean"]),
        span(*gap["bootstrap"]),
        span(*gap["t"]),
        ", ".join(map(points, gap["per_seed"])),
      ]
    )
  if len(rows) == 1:
    return []
  parts = ["## The paper's table next to ours", "", markdown_table(rows), ""]
  if len(differences) > 1:
    parts += [markdown_table(differences), ""]
  on_calvin = all(p["simulator"]["name"] == "calvin" for pieces in results.values() for p in pieces.values())
  other = "play and demos by people, and larger" if on_calvin else "other simulator and sizes"
  parts.append(
    "Published: arXiv 2603.28955, on CALVIN, at 230,000 (WAM) and 2,000,000 (DreamerV2) updates; "
    f"{other}, so levels do not compare, differences may. Wilson: of the episodes alone. "
    "Bootstrap: seeds, and start states within them. t: Student's, over seeds; only seeds that both "
    "arms have. Best imagined: of each task the policy of the iteration with the highest success in "
    "dreams; no simulator chooses it."
  )
  return parts


def per_task(results: Results) -> list[str]:
  """Success of each task, and what WAM adds there."""
  columns = [(arm, policy) for policy in COMPARED for arm in MAIN if results.get(arm)]
  if not columns:
    return []
  seeds = {arm: list(results[arm].values()) for arm, _ in columns}
  tasks = next(iter(seeds.values()))[0]["tasks"]
  heads = [f"{ARMS[arm].title}, {POLICY_NAMES[policy]}" for arm, policy in columns]
  rows = [
    ["Success in % (Wilson 95 %)", *heads, "WAM minus DreamerV2, cloned (paired 95 %)", "the same, after PPO"]
  ]
  common = common_seeds(results, MAIN)
  for k, task in enumerate(tasks):
    row = [task]
    for arm, policy in columns:
      x = np.concatenate([policy_episodes(piece, policy)[k] for piece in seeds[arm]])
      low, high = intervals.wilson_interval(int(x.sum()), x.size)
      row.append(f"{100 * x.mean():.0f} ({100 * low:.0f}-{100 * high:.0f})")
    for policy in COMPARED:
      if not common:
        row.append(NOTHING)
        continue
      x, y = (
        np.concatenate([policy_episodes(results[arm][seed], policy)[k] for seed in common]) for arm in MAIN
      )
      value, low, high = intervals.paired_difference(y.tolist(), x.tolist())
      row.append(f"{points(value)} ({span(low, high)})")
    rows.append(row)
  blind = [
    task
    for k, task in enumerate(tasks)
    if MAIN[1] in seeds
    and not 0.1
    <= rate_of(np.concatenate([policy_episodes(piece, "cloned")[k] for piece in seeds[MAIN[1]]]))
    <= 0.9
  ]
  parts = ["## Task by task", "", markdown_table(rows)]
  if blind:
    parts += [
      "",
      (
        f"Cloned on DreamerV2, {', '.join(blind)} {'lie' if len(blind) > 1 else 'lies'} above 90 % or below "
        "10 %: there the comparison can hardly see a difference."
      ),
    ]
  return parts


def by_update(results: Results, relative: pathlib.Path) -> list[str]:
  """Cloned success over updates of the world model, and how many of them inverse dynamics saves."""
  success_curves = curves(results)
  if not success_curves:
    return []
  updates, seeds, arrays = success_curves
  rates = np.stack([x.mean((-1, -2)) for x in arrays])  # [seeds, arms, U]
  heads = ["Updates", "WAM", "DreamerV2", "WAM minus DreamerV2", "bootstrap 95 %"]
  rows = [heads]
  for u, update in enumerate(updates):
    statistic = lambda drawn: float(np.mean([rate_of(x[0]) - rate_of(x[1]) for x in drawn]))
    low, high = bootstrap.interval(bootstrap.resampled([x[:, u] for x in arrays], statistic))
    wam, dreamer = rates[:, :, u].mean(0)
    cells = [percent(wam), percent(dreamer), points(wam - dreamer), span(low, high)]
    rows.append([f"{update:,}", *cells])

  def ratio(drawn: Sequence[np.ndarray]) -> float:
    mean = np.mean([x.mean((-1, -2)) for x in drawn], axis=0)
    return bootstrap.steps_ratio(updates, *mean)

  low, high = bootstrap.interval(bootstrap.resampled(arrays, ratio))
  return [
    "## How many updates does inverse dynamics save?",
    "",
    (
      "Success of policies cloned on the world model as it is after so many updates "
      f"({len(seeds)} seed{'s' if len(seeds) > 1 else ''}, {updates[-1]:,} updates in all):"
    ),
    "",
    markdown_table(rows),
    "",
    f"![Cloned success over updates]({relative / 'by_update.svg'})",
    "",
    (
      f"For the best success that both reach, WAM needs **{ratio(arrays):.1f} times fewer updates** "
      f"(bootstrap 95 % {low:.1f} to {high:.1f}; published: {PUBLISHED_RATIO}; below 1: more). "
      f"The checkpoints lie between {updates[0]:,} and {updates[-1]:,}, so that "
      f"nothing above {updates[-1] / updates[0]:.0f} or below {updates[0] / updates[-1]:.2f} can be "
      "seen. The learning rate falls over the whole run, for both alike: an early checkpoint is less "
      "than a short run."
    ),
  ]


def ppo(results: Results, folder: pathlib.Path, relative: pathlib.Path) -> list[str]:
  """Success before and after PPO, real and in dreams."""
  rows = [
    ["PPO in imagination", "cloned, real", "its dreams", "after PPO, real", "its dreams", "gap, points"]
  ]
  images = []
  for arm in MAIN:
    pieces = [piece for piece in results.get(arm, {}).values() if "ppo" in piece["policies"]]
    if not pieces:
      continue
    row = [ARMS[arm].title]
    for policy in COMPARED:
      dreams = [np.mean(list(piece["policies"][policy]["imagined"].values())) for piece in pieces]
      real = rate_of(np.array(seed_means(pieces, policy)))
      row += [percent(real), percent(float(np.mean(dreams)))]
    row.append(points(float(np.mean(dreams)) - real))
    rows.append(row)
    if any(piece.get("ppo", {}).get("real") for piece in pieces):
      images += ["", f"![PPO on {ARMS[arm].title}]({relative / f'ppo_{arm}.svg'})"]
  if len(rows) == 1:
    return []
  parts = ["## What PPO does, and what the dreams promise", "", markdown_table(rows), *images]
  for arm in MAIN:
    for seed, image in _pictures(folder, results.get(arm, {}), f"{arm}_seed{{}}_policies.webp"):
      parts += ["", f"![Before and after PPO, {ARMS[arm].title}]({relative / image})", ""]
      parts.append(
        f"*{ARMS[arm].title}, seed {seed}, four tasks. Above the cloned policy, below after PPO, from "
        "the same start: the first at which PPO made a failure a success, where there is one.*"
      )
  return parts


def _pictures(folder: pathlib.Path, seeds: Iterable[int], name: str) -> list[tuple[int, str]]:
  """(seed, file name) of the first seed that has this picture; empty if none has."""
  return [(seed, name.format(seed)) for seed in seeds if (folder / name.format(seed)).exists()][:1]


def models(results: Results, folder: pathlib.Path, relative: pathlib.Path) -> list[str]:
  """Open loop, probes and inverse dynamics of the world models, with their dreams."""
  judged = {
    arm: [piece["judge"] for piece in results.get(arm, {}).values() if "judge" in piece] for arm in MAIN
  }
  judged = {arm: judges for arm, judges in judged.items() if judges}
  if not judged:
    return []
  measured = {arm: [tables.measured(judge, judge) for judge in judges] for arm, judges in judged.items()}
  shown = (", seen", ", posterior", *(f", {h} imagined" for h in SHOWN_HORIZONS))
  labels = [
    label
    for label in next(iter(measured.values()))[0]
    if label.startswith("action ") or (label.endswith(shown) and "SSIM" not in label)
  ]
  rows = [["Mean over seeds", *(ARMS[arm].title for arm in measured)]]
  for label in labels:
    cells = []
    for judges in measured.values():
      values: list[float] = [v for row in judges if isinstance(v := row.get(label, (None,))[0], float)]
      digits = judges[0][label][1] if label in judges[0] else 3
      cells.append(tables.number(float(np.mean(values)), digits) if values else NOTHING)
    if any(cell != NOTHING for cell in cells):
      rows.append([label, *cells])
  parts = ["## The world models by themselves", "", markdown_table(rows), ""]
  parts.append(
    "On held-out play. Scores of linear probes on features; of DreamerV2 the inverse dynamics is that "
    "of a head which may watch the embeddings but not shape them."
  )
  for arm in judged:
    for seed, image in _pictures(folder, results[arm], f"{arm}_seed{{}}_dreams.webp"):
      parts += ["", f"![Dreams of {ARMS[arm].title}]({relative / image})", ""]
      parts.append(
        f"*{ARMS[arm].title}, seed {seed}. Left: play, as it was. Middle: five frames are seen (blue), "
        "the rest is imagined from the actions. Right: the error. Static camera above, wrist below.*"
      )
  return parts


def ablations(results: Results) -> list[str]:
  """All arms next to WAM."""
  rows = [
    ["Arm", "Seeds", "Cloned, %", "After PPO, %", "minus WAM, cloned", "minus WAM, after PPO", "action error"]
  ]
  for arm, by_seed in results.items():
    pieces = list(by_seed.values())
    cells = [ARMS[arm].title, str(len(pieces))]
    for policy in COMPARED:
      have = [piece for piece in pieces if policy in piece["policies"]]
      if not have:
        cells.append(NOTHING)
        continue
      rate, low, high, _ = pooled(have, policy)
      cells.append(f"{percent(rate)} ({span(low, high, lambda x: percent(x, 0))})")
    for policy in COMPARED:
      gap = difference(results, (arm, policy), ("wam", policy)) if arm != "wam" else None
      cells.append(NOTHING if gap is None else f"{points(gap['mean'])} ({span(*gap['bootstrap'])})")
    errors = [
      np.mean([e["error"] for e in piece["judge"]["inverse_dynamics"].values()])
      for piece in pieces
      if "judge" in piece
    ]
    cells.append(f"{np.mean(errors):.3f}" if errors else NOTHING)
    rows.append(cells)
  if len(rows) < 2:
    return []
  return [
    "## What each part contributes",
    "",
    markdown_table(rows),
    "",
    (
      "Differences in points, over the seeds that both arms have, bootstrap 95 %. Action error: mean "
      "squared error of the inverse dynamics on held-out play. Ablations of the world model end with "
      "cloning."
    ),
  ]


def calvin(folder: pathlib.Path) -> list[str]:
  """Runs on CALVIN's own simulator, from the JSON files in a folder."""
  runs = {}
  for arm in MAIN:
    for path in sorted(folder.glob(f"{arm}_seed*.json")):
      runs[ARMS[arm].title, path.stem.rpartition("seed")[2]] = json.loads(read_text(path))
  if not runs:
    return []
  columns = [(key, policy) for policy in COMPARED for key in runs]
  heads = [f"{title}, seed {seed}, {POLICY_NAMES[policy]}" for (title, seed), policy in columns]
  rows = [["Success in % (Wilson 95 %)", *heads]]
  for task in [*next(iter(runs.values()))["tasks"], "mean"]:
    row = [task]
    for key, policy in columns:
      policy_results = runs[key]["policies"][policy]
      rates = policy_results["mean"] if task == "mean" else policy_results["per_task"][task]
      row.append(f"{100 * rates['rate']:.1f} ({100 * rates['low']:.0f}-{100 * rates['high']:.0f})")
    rows.append(row)
  return [
    "## On CALVIN's own simulator",
    "",
    markdown_table(rows),
    "",
    "Smaller runs, on frames that scripted experts recorded there: [CALVIN.md](CALVIN.md) says how.",
  ]


def power(results: Results) -> list[str]:
  """The smallest difference that so many seeds can show."""
  rows = [["Comparison", "Seeds", "SD over seeds", "of it by episodes", "found with 80 % power"]]
  for policy in COMPARED:
    gap = difference(results, (MAIN[0], policy), (MAIN[1], policy))
    if gap is None or len(gap["per_seed"]) < 2:
      continue
    n = len(gap["per_seed"])
    deviation = float(np.std(gap["per_seed"], ddof=1))
    chance = []
    for seed in gap["seeds"]:
      x, y = (policy_episodes(results[arm][seed], policy) for arm in MAIN)
      chance.append(float((x - y).var(1).mean()) / (x.size))
    rows.append(
      [
        f"WAM minus DreamerV2, {POLICY_NAMES[policy]}",
        str(n),
        f"{100 * deviation:.1f} points",
        f"{100 * math.sqrt(np.mean(chance)):.1f} points",
        f"{100 * bootstrap.detectable(deviation, n):.0f} points",
      ]
    )
  if len(rows) == 1:
    return []
  return [
    "## What this study can tell",
    "",
    markdown_table(rows),
    "",
    (
      "SD over seeds: of the difference, from one seed to the next. By episodes: the part that a "
      "finite number of start states makes. Last column: the smallest true difference that a t-test "
      "over so many seeds finds four times in five."
    ),
  ]
