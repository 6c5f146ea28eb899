"""The report as one HTML page that needs nothing else: no script, no font, no request.

Everything shown comes from the report's plain values (`stages.report`) and from pictures given as bytes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.io import charts, media, tables
from wam_jax.io.logger import duration

_CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2230; --soft: #5d6676; --rule: #e3e6ec; --grid: #e9ecf1;
  --expert: #1c2230; --random: #9aa3b2; --cloned: #2f6fde; --ppo: #0a9568; --imagined: #e0760f;
  --bad: #c63d3d;
  --s0: #2f6fde; --s1: #e0760f; --s2: #0a9568; --s3: #c63d3d; --s4: #8a56d8; --s5: #0d9cb5; --s6: #a8761b;
  --s7: #d0559b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151b; --card: #1a1f28; --ink: #e7eaf0; --soft: #9aa4b5; --rule: #2a313d; --grid: #262d38;
  --expert: #e7eaf0; --random: #717c8e; --cloned: #6ea0ff; --ppo: #35c796; --imagined: #f5a04c;
  --bad: #ef7070;
  --s0: #6ea0ff; --s1: #f5a04c; --s2: #35c796; --s3: #ef7070; --s4: #b48cf2; --s5: #45c4da; --s6: #d0a04a;
  --s7: #e88bc0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 18px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 40px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: .95rem; margin: 0 0 6px; font-weight: 600; }
p { margin: 4px 0 12px; max-width: 76ch; }
.soft { color: var(--soft); } small, .small { font-size: .84rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 16px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 20px 0 8px; }
.numbers .card { border-top: 3px solid var(--c, var(--rule)); padding: 12px 16px; }
.numbers b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { white-space: normal; font-weight: 600; color: var(--soft); font-size: .82rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody tr:last-child td { border-bottom: 0; } tr.mean td { font-weight: 650;
  border-top: 2px solid var(--rule); }
td .ci { color: var(--soft); font-size: .82em; font-weight: 400; margin-left: .4em; }
td.plot { width: 230px; min-width: 190px; padding: 2px 12px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.grid.big { grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { margin-top: 8px; font-size: .88rem; display: flex; justify-content: space-between; gap: 8px;
  flex-wrap: wrap; }
.chip { border-radius: 99px; padding: 0 9px; font-size: .8rem; line-height: 1.5rem; white-space: nowrap;
  border: 1px solid; }
.good { color: var(--ppo); } .bad { color: var(--bad); }
.strip img { width: 100%; min-width: 720px; height: auto; display: block; border-radius: 8px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg .dots { stroke: none; }
svg line.grid { stroke: var(--grid); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .tick { fill: var(--soft); font-size: 11.5px; font-family: inherit; }
svg .whisker { stroke-width: 3; stroke-opacity: .38; stroke-linecap: round; }
svg .mark { stroke-width: 2; stroke-dasharray: 3 2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .82rem; color: var(--soft);
  margin-top: 6px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
.bar { display: grid; grid-template-columns: 9.5rem 1fr 4.5rem; align-items: center; gap: 10px;
  font-size: .92rem; padding: 4px 0; }
.bar div { height: 12px; border-radius: 4px; background: var(--cloned); min-width: 2px; }
  .bar span:last-child { text-align: right; }
details { margin: 12px 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: 10px 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 10px 0 0;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 18px 12px 48px; } h1 { font-size: 1.4rem; }
  .card { padding: 12px; }
  .wide { padding: 0; } .bar { grid-template-columns: 7.2rem 1fr 3.6rem; font-size: .84rem; }
  th, td { padding: 7px 9px; } }
"""
_STYLES = ("expert", "random", "cloned", "ppo", "imagined", *(f"s{i}" for i in range(8)))


def _style_rules() -> str:
  rules = []
  for name in _STYLES:
    rules.append(f"svg .line.{name},svg .mark.{name},svg .{name} .whisker{{stroke:var(--{name})}}")
    rules.append(f"svg .dots.{name}{{fill:var(--{name})}}.legend .{name}{{background:var(--{name})}}")
  return "".join(rules)


def _e(value: Any) -> str:
  return html.escape(str(value))


def title_of(task: str) -> str:
  """move_slider_left -> Move slider left; LED keeps its capitals."""
  text = task.replace("_", " ")
  return (text[:1].upper() + text[1:]).replace(" led", " LED")


def _percent(rate: float | None) -> str:
  return "&ndash;" if rate is None else f"{100 * rate:.0f} %"


def _mean_percent(rate: float) -> str:
  return f"{100 * rate:.1f} %"


def _points(gap: float | None) -> str:
  return "&ndash;" if gap is None else f"{100 * gap:+.0f}".replace("-", "&minus;")


def _legend(entries: Sequence[tuple[str, str]]) -> str:
  items = "".join(f'<span><i class="{style}"></i>{_e(name)}</span>' for name, style in entries)
  return f'<div class="legend">{items}</div>'


def _headline(report: Mapping[str, Any]) -> str:
  policies = report["results"]["policies"]
  order = [name for name in ("ppo", "cloned", "random", "expert") if name in policies]
  cards = []
  for name in order:
    mean = policies[name]["mean"]
    span = f"{100 * mean['low']:.0f}&ndash;{100 * mean['high']:.0f} %, n = {mean['n']}"
    cards.append(
      f'<div class="card" style="--c:var(--{name})">'
      f'<span class="small soft">{_e(policies[name]["label"])}</span>'
      f'<b>{_mean_percent(mean["rate"])}</b><span class="small soft">{span}</span></div>'
    )
  devices = [name for name in dict.fromkeys(report["provenance"]["devices"]) if name != "cpu"]
  machine = ", ".join([*devices, f"{report['provenance']['cores']} CPU cores"])
  cards.append(
    f'<div class="card"><span class="small soft">Whole run</span><b>{duration(report["total_seconds"])}</b>'
    f'<span class="small soft">{_e(machine)}</span></div>'
  )
  return f'<div class="numbers">{"".join(cards)}</div>'


def _cell(row: Mapping[str, Any] | None, interval: bool, mean: bool) -> str:
  if row is None:
    return "<td>&ndash;</td>"
  rate = _mean_percent(row["rate"]) if mean else _percent(row["rate"])
  span = f'<span class="ci">{100 * row["low"]:.0f}&ndash;{100 * row["high"]:.0f}</span>' if interval else ""
  return f"<td>{rate}{span}</td>"


HEADS = {
  "expert": "Expert",
  "random": "Random<br>weights",
  "cloned": "Cloned",
  "ppo": "After PPO",
  "ppo_imagined": "Best<br>imagined",
  "ppo_real": "Best in<br>simulator",
}


def _table(report: Mapping[str, Any]) -> str:
  results = report["results"]
  policies = results["policies"]
  columns = [(name, name in ("cloned", "ppo")) for name in HEADS if name in policies]
  dreamed = "imagined" in policies.get("ppo", {}).get("mean", {})
  head = "".join(f"<th>{HEADS[name]}</th>" for name, _ in columns)
  head += "<th>Imagined<br>after PPO</th><th>Gap</th>" if dreamed else ""
  lines = []
  for task in (*results["tasks"], None):
    rows = {name: p["mean"] if task is None else p["per_task"][task] for name, p in policies.items()}
    cells = "".join(_cell(rows[name], interval, task is None) for name, interval in columns)
    if dreamed:
      cells += f"<td>{_percent(rows['ppo'].get('imagined'))}</td><td>{_points(rows['ppo'].get('gap'))}</td>"
    bars = [
      (name, rows[name]["rate"], rows[name]["low"], rows[name]["high"]) for name, wide in columns if wide
    ]
    marks = [(name, rows[name]["rate"]) for name, wide in columns if not wide]
    marks += [("imagined", rows["ppo"]["imagined"])] if dreamed else []
    label = "Mean of all tasks" if task is None else title_of(task)
    style = ' class="mean"' if task is None else ""
    lines.append(
      f'<tr{style}><td>{label}</td>{cells}<td class="plot">{charts.interval_chart(bars, marks)}</td></tr>'
    )
  legend = [(policies[name]["label"], name) for name, _ in columns] + (
    [("Imagined after PPO", "imagined")] if dreamed else []
  )
  return (
    f'<div class="card wide"><table><thead><tr><th>Task</th>{head}'
    '<th style="text-align:left">0 to 100 %</th></tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>{_legend(legend)}"
  )


def _change(report: Mapping[str, Any]) -> str:
  change = report["results"].get("ppo_minus_cloned")
  if change is None:
    return ""
  points = [f"{100 * change[name]:+.1f}".replace("-", "&minus;") for name in ("difference", "low", "high")]
  return (
    f"PPO in imagination changed the mean success by <b>{points[0]} points</b> "
    f"(95 % interval {points[1]} to {points[2]}, paired over the same start states). "
  )


def _rollouts(report: Mapping[str, Any], animations: Mapping[str, bytes]) -> str:
  if not animations:
    return ""
  cards = []
  for shown in report["rollouts"]:
    if shown["task"] not in animations:
      continue
    seconds = shown["steps"] / report["control_hz"]
    chip = (
      f'<span class="chip good">solved in {seconds:.1f} s</span>'
      if shown["success"]
      else '<span class="chip bad">not solved</span>'
    )
    source = media.data_uri(animations[shown["task"]], "webp")
    alt = f"Robot, task: {title_of(shown['task'])}"
    cards.append(
      f'<figure class="card"><img src="{source}" alt="{_e(alt)}"><figcaption>'
      f"<span><b>{_e(title_of(shown['task']))}</b> "
      f'<span class="soft">episode {shown["episode"] + 1}</span></span>{chip}</figcaption></figure>'
    )
  return (
    "<h2>Episodes in the simulator</h2>"
    "<p class='soft'>The final policy, static and wrist camera. Of each task the "
    "first successful episode is shown, or the first one if none succeeded.</p>"
    f'<div class="grid">{"".join(cards)}</div>'
  )


def _rows_table(rows: Sequence[Sequence[str]]) -> str:
  """A table of `io.tables`: header first; a name that begins with a blank belongs to the row above."""
  head = "".join(f"<th>{_e(cell)}</th>" for cell in rows[0])
  lines = []
  for name, *cells in rows[1:]:
    style = ' class="soft"' if name.startswith(" ") else ""
    values = "".join(f"<td>{_e(cell)}</td>" for cell in cells)
    lines.append(f"<tr{style}><td>{_e(name.strip())}</td>{values}</tr>")
  return (
    f'<div class="card wide" style="margin-top:14px"><table><thead><tr>{head}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


def _judge(report: Mapping[str, Any], strips: Mapping[str, bytes]) -> str:
  """The world model by itself: strip, PSNR over the horizon, and the tables of stage judge_world_model."""
  judge = report["judge"]
  model = judge["models"][0]
  cards = []
  for camera, own in model["open_loop"].items():
    repeated = model["repeated"][camera]
    horizon = list(range(1, len(own["psnr_curve"]) + 1))
    series = [
      charts.Series("world model", horizon, own["psnr_curve"], "s0"),
      charts.Series("last frame seen, repeated", horizon, repeated["psnr_curve"], "random"),
    ]
    legend = [
      (f"{line.name}: mean {values['mean_psnr']:.2f} dB", line.style)
      for line, values in zip(series, (own, repeated), strict=True)
    ]
    title = f"Open-loop PSNR, dB, {tables.CAMERA_NAMES.get(camera, camera)} camera"
    chart = charts.line_chart(series, x_label="frames imagined", title=title)
    cards.append(f'<div class="card"><h3>{_e(title)}</h3>{chart}{_legend(legend)}</div>')
  pictures = "".join(
    f'<div class="card wide strip" style="padding:12px;margin-top:14px">'
    f'<img{style} src="{media.data_uri(strips[kind], kind)}" alt="True, predicted and error pictures"></div>'
    for kind, style in (("png", ""), ("webp", ' style="min-width:0;width:auto;max-width:100%;margin:auto"'))
    if kind in strips
  )
  return (
    "<h2>What the world model imagines</h2>"
    f"<p class='soft'>{_e(tables.described(judge))} Shown is the window in which most furniture moves, "
    "the animation three times slower than it was. In the error pictures grey means equal.</p>"
    f"{pictures}"
    f'<div class="grid big" style="margin-top:14px">{"".join(cards)}</div>'
    f"{_rows_table(tables.open_loop_rows(judge))}"
    "<h2>What can be read off its features</h2>"
    "<p class='soft'>One linear map per quantity, fitted on the features of training frames. R\u00b2: 1 is "
    "perfect, 0 as good as the mean; balanced accuracy: 0.5 is chance. Imagined: the same maps on features "
    "that have not seen the frame. Kept: the reading of the last frame seen.</p>"
    f"{_rows_table(tables.probe_rows(judge))}"
    f"{_rows_table(tables.inverse_dynamics_rows(judge))}"
  )


def _curves(report: Mapping[str, Any]) -> str:
  cards = []
  for chart in report["curves"]:
    series = [
      charts.Series(s["name"], s["x"], s["y"], s["style"], s.get("dots", False)) for s in chart["series"]
    ]
    svg = charts.line_chart(
      series,
      x_label=chart["x_label"],
      title=chart["title"],
      log_y=chart.get("log_y", False),
      percent=chart.get("percent", False),
      y_range=tuple(chart["y_range"]) if chart.get("y_range") else None,
    )
    if svg:
      legend = _legend([(s.name, s.style) for s in series]) if len(series) > 1 or chart.get("legend") else ""
      cards.append(f'<div class="card"><h3>{_e(chart["title"])}</h3>{svg}{legend}</div>')
  return (
    f'<h2>Learning curves</h2><div class="grid big" style="margin-top:12px">{"".join(cards)}</div>'
    if cards
    else ""
  )


def _stages(report: Mapping[str, Any]) -> str:
  stages = report["stages"]
  longest = max((stage["seconds"] for stage in stages), default=0) or 1
  rows = "".join(
    f'<div class="bar"><span>{_e(stage["name"].replace("_", " "))}</span>'
    f'<div style="width:{100 * stage["seconds"] / longest:.1f}%"></div>'
    f"<span>{duration(stage['seconds'])}</span></div>"
    for stage in stages
  )
  peak = max((stage.get("peak_bytes") or 0 for stage in stages), default=0)
  memory = f", largest memory of a process {peak / 1e9:.1f} GB" if peak else ""
  return (
    f"<h2>Time of each stage</h2><p class='soft'>{duration(report['total_seconds'])} in all{memory}.</p>"
    f'<div class="card">{rows}</div>'
  )


def _classifier(report: Mapping[str, Any]) -> str:
  quality = report.get("classifier")
  if not quality:
    return ""
  names = list(dict.fromkeys(name for row in quality.values() for name in row))
  head = "".join(f"<th>{_e(name.replace('_', ' '))}</th>" for name in names)
  show = lambda v: (
    "&ndash;" if v is None else f"{100 * v:.1f} %" if isinstance(v, float) and 0 <= v <= 1 else _e(v)
  )
  lines = "".join(
    f"<tr><td>{_e(title_of(task))}</td>{''.join(f'<td>{show(row.get(name))}</td>' for name in names)}</tr>"
    for task, row in quality.items()
  )
  return (
    "<h2>Success classifier</h2>"
    "<p class='soft'>The reward of PPO, on held-out demonstrations, on dreams of them, and on "
    "dreams of random actions, which should never be called a success.</p>"
    f'<div class="card wide"><table><thead><tr><th>Task</th>{head}</tr></thead>'
    f"<tbody>{lines}</tbody></table></div>"
  )


def _provenance(report: Mapping[str, Any]) -> str:
  facts = report["provenance"]
  rows = {
    "Command": f"<code>{_e(facts['command'])}</code>",
    "wam_jax": _e(facts["wam_jax"]) + (f", commit {_e(facts['commit'])}" if facts["commit"] else ""),
    "Seed": _e(report["seed"]),
    "Date": _e(facts["date"]),
    "Machine": _e(
      f"{facts['cpu']}, {facts['cores']} cores; {', '.join(facts['devices'])}; {facts['platform']}"
    ),
    "Python": _e(facts["python"]),
    "Packages": _e(", ".join(f"{name} {version}" for name, version in facts["packages"].items())),
  }
  entries = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
  config = _e(json.dumps(report["config"], indent=2))
  return (
    f'<h2>How it was made</h2><div class="card"><dl>{entries}</dl></div>'
    f'<details class="card"><summary>Full configuration</summary><pre>{config}</pre></details>'
  )


def render_page(
  report: Mapping[str, Any], strips: Mapping[str, bytes], animations: Mapping[str, bytes]
) -> str:
  """The whole page.

  Args:
    report: what `stages.report.build` returns.
    strips: png and webp -> the open-loop prediction as a strip and as an animation.
    animations: task -> animated WebP.

  Returns:
    HTML text.
  """
  notes = "".join(f"<li>{_e(note)}</li>" for note in report["notes"])
  date = report["provenance"]["date"][:10]
  subtitle = f"{report['experiment']} · preset {report['preset']} · seed {report['seed']} · {date}"
  body = (
    f"<h1>{_e(report['title'])}</h1><p class='soft'>{_e(subtitle)}</p>"
    + _headline(report)
    + "<h2>Success in the simulator</h2><p>"
    + _change(report)
    + "<span class='soft'>Small numbers and bars: 95 % Wilson interval.</span></p>"
    + _table(report)
    + _rollouts(report, animations)
    + _judge(report, strips)
    + _curves(report)
    + _classifier(report)
    + _stages(report)
    + f"<h2>Notes</h2><ul class='soft'>{notes}</ul>"
    + _provenance(report)
  )
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{_e(report['title'])}</title><style>{_CSS}{_style_rules()}</style></head><body><main>{body}</main></body></html>\n"
  )
