"""Runs side by side as one HTML page, of the same parts as the report of a run.

Everything shown comes from the plain values of `comparison` and from pictures given as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.acting.policy_table import COMPARED, POLICIES
from wam_jax.host.words import duration
from wam_jax.reporting import charts, media
from wam_jax.reporting import page_parts as parts
from wam_jax.reporting.page_parts import escape, percent, points, title_of

NAMES = {name: POLICIES[name].heading for name in COMPARED}
MANY = 16  # rows, from which on a table is folded away
EXPLAINED = {
  "PPO": "Dashed: in dreams. Solid: in the simulator, monitored on the way from start states that the "
  "evaluation leaves. Dots: the evaluation, before and after."
}


def _headline(compared: Mapping[str, Any]) -> str:
  cards = []
  for k, run in enumerate(compared["runs"]):
    if not run["policies"]:
      below = f"after PPO, imagined<br>took {duration(run['seconds'])}"
      share = escape(compared["imagined"][-1][k + 1]) + " %"
      cards.append(parts.number_card(run["name"], share, below, f"s{k}"))
      continue
    cloned, ppo = (run["policies"][policy]["mean"] for policy in NAMES)
    below = f"after PPO, {parts.span_of(ppo['low'], ppo['high'])} %, n = {ppo['n']}<br>"
    below += f"cloned {percent(cloned['rate'])}"
    below += f", imagined {percent(ppo['imagined'])}" if "imagined" in ppo else ""
    below += f"<br>took {duration(run['seconds'])}"
    cards.append(parts.number_card(run["name"], percent(ppo["rate"]), below, f"s{k}"))
  return f'<div class="numbers">{"".join(cards)}</div>'


def _summary(compared: Mapping[str, Any]) -> str:
  """Each other run against the first, in a sentence."""
  baseline, *names = (run["name"] for run in compared["runs"])
  tasks = f"mean of {len(compared['tasks'])} tasks" if len(compared["tasks"]) > 1 else compared["tasks"][0]
  lines = []
  for name, by_policy in zip(names, compared["differences"], strict=False):  # none without a simulator
    phrases, beyond = [], []
    for policy, label in NAMES.items():
      mean = by_policy[policy]["mean"]
      span = parts.span_of(mean["low"], mean["high"], True)
      phrases.append(f"{label} <b>{points(mean['difference'])}</b> ({span})")
      beyond += [label] if _beyond_chance(mean) else []
    pairs = "paired" if all(row["mean"]["paired"] for row in by_policy.values()) else "not paired"
    verdict = f"Beyond chance: {' and '.join(beyond)}." if beyond else "No difference can be told."
    lines.append(
      f"<b>{escape(name)}</b> minus {escape(baseline)} in points, 95 % intervals, {escape(tasks)}, {pairs}. "
      f"{'. '.join(phrases)}. {verdict}"
    )
  return "".join(f'<p class="lead">{line}</p>' for line in lines)


def _beyond_chance(row: Mapping[str, Any]) -> bool:
  """Whether the interval leaves out 0."""
  return bool(row["low"] > 0 or row["high"] < 0)


def _difference_cell(row: Mapping[str, Any], mixed: bool) -> str:
  style = ("good" if row["low"] > 0 else "bad") if _beyond_chance(row) else ""
  star = "*" if mixed and not row["paired"] else ""
  span = f'<span class="ci">{parts.span_of(row["low"], row["high"], True)}</span>'
  return f'<td><span class="{style}">{points(row["difference"])}{star}</span>{span}</td>'


def _table(compared: Mapping[str, Any]) -> str:
  runs, differences = compared["runs"], compared["differences"]
  if not differences:
    head, *shares = compared["imagined"]
    return parts.rows_table([head, *([title_of(task), *cells] for task, *cells in shares)], total=True)
  rows = [row for by_policy in differences for by_task in by_policy.values() for row in by_task.values()]
  mixed = len({row["paired"] for row in rows}) > 1
  over = '<th class="name" rowspan="2">Task</th><th class="text" rowspan="2">0 to 100 %</th>'
  head = ""
  for k, run in enumerate(runs):
    over += f'<th class="over" colspan="{4 if k else 2}">{escape(run["name"])}</th>'
    head += f'<th class="first">{NAMES["cloned"]}</th><th>{NAMES["ppo"]}</th>'
    head += "<th>Difference,<br>cloned</th><th>Difference,<br>after PPO</th>" if k else ""
  lines = []
  for task in (*compared["tasks"], "mean"):
    cells, bars = "", []
    for k, run in enumerate(runs):
      for policy in NAMES:
        row = run["policies"][policy][task]
        first = ' class="first"' if policy == "cloned" else ""
        span = f'<span class="ci">{parts.span_of(row["low"], row["high"])}</span>'
        cells += f"<td{first}>{percent(row['rate'])}{span}</td>"
        style = f"s{k} pale" if policy == "cloned" else f"s{k}"
        bars.append((style, row["rate"], row["low"], row["high"]))
      if k:
        cells += "".join(_difference_cell(differences[k - 1][policy][task], mixed) for policy in NAMES)
    label, style = ("Mean of these", ' class="mean"') if task == "mean" else (escape(title_of(task)), "")
    plot = charts.interval_chart(bars)
    lines.append(f'<tr{style}><td class="name">{label}</td><td class="plot">{plot}</td>{cells}</tr>')
  entries = [
    (f"{run['name']}, {label}", f"s{k} dot{' pale' if policy == 'cloned' else ''}")
    for k, run in enumerate(runs)
    for policy, label in NAMES.items()
  ]
  return (
    '<p class="soft">Small numbers and bars: 95 % intervals; differences in points, from the first run.</p>'
    + parts.table_card(
      f"<tr>{over}</tr><tr>{head}</tr>", lines, "Success of each task and run", "card wide tight"
    )
    + parts.legend(entries)
  )


def _seeds(compared: Mapping[str, Any]) -> str:
  """Mean over seeds with its interval, and how far seeds lie apart."""
  seeds = compared["seeds"]
  if not seeds:
    return ""
  low = min(x for row in seeds["rows"] for policy in NAMES for x in row[policy]["values"])
  floor = min(int(10 * low), 9) / 10
  head = '<th class="name">Task</th>' + "".join(f"<th>{name}</th>" for name in NAMES.values())
  head += f'<th>Gain, points</th><th class="text">{100 * floor:.0f} to 100 %</th>'
  lines = []
  for row in (seeds["rows"][-1], *seeds["rows"][:-1]):
    cells = ""
    for policy in NAMES:
      entry = row[policy]
      span = parts.span_of(entry["low"], entry["high"])
      cells += f'<td>{percent(entry["mean"])}<span class="ci">{span}</span></td>'
    gain = row["gain"]
    span = parts.span_of(gain["low"], gain["high"], True)
    cells += f'<td>{points(gain["mean"])}<span class="ci">{span}</span></td>'
    spread = [(policy, row[policy]["values"], row[policy]["mean"]) for policy in NAMES]
    is_mean = row["task"] is None
    label, style = ("Mean of these", ' class="mean"') if is_mean else (escape(title_of(row["task"])), "")
    plot = charts.spread_chart(spread, floor)
    lines.append(f'<tr{style}><td class="name">{label}</td>{cells}<td class="plot">{plot}</td></tr>')
  number = len(compared["runs"])
  return (
    f"<p class='soft'>{number} seeds of one recipe: the mean over seeds; small, its 95 % interval by "
    f"Student's t. A dot is a seed, the bar their mean. {escape(seeds['spread'])}</p>"
    + parts.table_card(f"<tr>{head}</tr>", lines, "Mean over seeds", "card wide first")
    + parts.legend([(name, f"{policy} dot") for policy, name in NAMES.items()])
    + "".join(parts.rows_table(_plain(rows)) for rows in seeds["tables"])
  )


def _plain(rows: Sequence[Sequence[str]]) -> list[list[str]]:
  """Rows without Markdown's bold."""
  return [[cell.replace("**", "") for cell in row] for row in rows]


def _models(compared: Mapping[str, Any]) -> str:
  head, *rows = compared["models"]
  head = ["On held-out play", *head[1:]]
  main = [row for row in rows if row[0] in compared["main_rows"]]
  named = lambda table: [[parts.quantity_of(name).replace(": ", "\n", 1), *cells] for name, *cells in table]
  all_numbers = parts.details("All numbers", parts.rows_table([head, *named(rows)]))
  return (
    "<p class='soft'>PSNR of frames seen and imagined, scores of linear probes (R\u00b2, balanced accuracy), "
    "squared error of the action read off two embeddings.</p>"
    + parts.rows_table([head, *named(main)])
    + all_numbers
  )


def _dreams(compared: Mapping[str, Any], strips: Sequence[Mapping[str, bytes]]) -> str:
  moving, still = [], []
  for run, images in zip(compared["runs"], strips, strict=True):
    name = escape(run["name"])
    if "webp" in images:
      source = media.data_uri(images["webp"], "webp")
      moving.append(
        f'<figure class="card still"><h3>{name}</h3><img src="{source}" alt="A dream of {name}"></figure>'
      )
    if "png" in images:
      source = media.data_uri(images["png"], "png")
      still.append(
        f'<h3 class="group">{name}</h3><div class="card strip" role="region" tabindex="0" '
        f'aria-label="{name}"><img src="{source}" alt="Dreams of {name}"></div>'
      )
  if not moving and not still:
    return ""
  return (
    "<p class='soft'>True, predicted, error; blue frames are seen, orange ones imagined from the actions "
    "alone.</p>"
    f'<div class="grid big">{"".join(moving)}</div>{"".join(still)}'
  )


def _settings(compared: Mapping[str, Any]) -> str:
  out = ""
  for key, empty_text in (
    ("settings", "No setting that the results depend on differs."),
    ("origin", "Versions and machines are the same."),
  ):
    rows = compared[key]
    table = parts.rows_table(rows, text=True) if len(rows) > 1 else f'<p class="soft gap">{empty_text}</p>'
    out += parts.details(f"{len(rows) - 1} settings differ", table) if len(rows) > MANY else table
  return out


def render_page(compared: Mapping[str, Any], strips: Sequence[Mapping[str, bytes]]) -> str:
  """The whole page.

  Args:
    compared: what `comparison.build` returns.
    strips: of each run, png and webp -> the open-loop prediction as a strip and as an animation.

  Returns:
    HTML text.
  """
  where = "the simulator" if compared["differences"] else "dreams"
  runs = [f"{run['experiment']}, {run['preset']}, seed {run['seed']}" for run in compared["runs"]]
  listed = "".join(
    f"<li><b>{escape(run['name'])}</b>: {escape(text)}</li>"
    for run, text in zip(compared["runs"], runs, strict=True)
  )
  lines = [*(f"{line}." for line in compared["left_out"]), *compared["notes"]]
  notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
  left_out = "".join(f"<li>{escape(line)}</li>" for line in compared["left_out"])
  times = parts.rows_table(compared["times"], total=True)
  curves = parts.chart_groups(compared["curves"], EXPLAINED)
  sections: Sequence[tuple[str, str, str, str]] = (
    ("seeds", "Seeds", "Over seeds", _seeds(compared)),
    ("success", "Success", f"Success in {where}", _table(compared)),
    ("settings", "Settings", "What differs", _settings(compared)),
    ("curves", "Curves", "Curves", curves),
    ("models", "World models", "The world models by themselves", _models(compared)),
    ("dreams", "Dreams", "What they imagine", _dreams(compared, strips)),
    ("time", "Time", "Time of each stage", times),
    ("notes", "Notes", "Notes", f'<ul class="soft">{notes}</ul>'),
  )
  body = (
    f'<h1>{escape(compared["title"])}</h1><ul class="soft">{listed}</ul>'
    + _headline(compared)
    + _summary(compared)
    + (f'<ul class="soft">{left_out}</ul>' if left_out else "")
    + parts.navigation([(anchor, word, content) for anchor, word, _, content in sections])
    + "".join(parts.section(title, content, anchor) for anchor, _, title, content in sections)
  )
  return parts.page(compared["title"], body)
