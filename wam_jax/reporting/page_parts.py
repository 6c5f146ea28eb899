"""What the pages of reports are built from: CSS, cards, tables, charts and legends.

A page needs nothing else: no script, no font, no request. Everything is text.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.host.words import duration
from wam_jax.reporting import charts

CHART_WIDTH, CHART_HEIGHT = 340, 212  # about that of a card, so that text keeps its size

_CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2230; --soft: #5d6676; --rule: #e3e6ec; --grid: #e9ecf1;
  --shade: rgba(28, 34, 48, .16);
  --expert: #1c2230; --random: #9aa3b2; --cloned: #2f6fde; --ppo: #0a8a60; --imagined: #e0760f;
  --good: #08734f; --fair: #8a6100; --bad: #b93434;
  --s0: #2f6fde; --s1: #e0760f; --s2: #0a9568; --s3: #c63d3d; --s4: #8a56d8; --s5: #0d9cb5; --s6: #a8761b;
  --s7: #d0559b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151b; --card: #1a1f28; --ink: #e7eaf0; --soft: #9aa4b5; --rule: #2a313d; --grid: #262d38;
  --shade: rgba(0, 0, 0, .6);
  --expert: #e7eaf0; --random: #717c8e; --cloned: #6ea0ff; --ppo: #35c796; --imagined: #f5a04c;
  --good: #35c796; --fair: #e0b040; --bad: #ef7070;
  --s0: #6ea0ff; --s1: #f5a04c; --s2: #35c796; --s3: #ef7070; --s4: #b48cf2; --s5: #45c4da; --s6: #d0a04a;
  --s7: #e88bc0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 12px; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 18px 64px; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 4px; letter-spacing: -0.005em; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 0 0 6px; font-weight: 600; overflow-wrap: anywhere; }
h3.group { color: var(--soft); margin: 20px 0 8px; }
p { margin: 4px 0 12px; max-width: 76ch; } p.lead { font-size: 1.05rem; margin-top: 16px; }
a { color: inherit; text-underline-offset: 3px; text-decoration-color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .88rem; color: var(--soft);
  margin: 10px 0 0; }
nav a { padding: 3px 0; }
.soft { color: var(--soft); } small, .small { font-size: .84rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 16px; }
.gap { margin-top: 14px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px;
  margin: 20px 0 8px; }
.numbers .card { border-top: 3px solid var(--c, var(--rule)); padding: 12px 16px; overflow-wrap: anywhere; }
.numbers b { display: block; font-size: 1.9rem; line-height: 1.25; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.numbers .small { display: block; line-height: 1.4; }
/* A shade at the side to which a wide table goes on. */
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; padding: 0;
  background: linear-gradient(90deg, var(--card) 40%, transparent) left / 44px 100% no-repeat local,
    linear-gradient(270deg, var(--card) 40%, transparent) right / 44px 100% no-repeat local,
    linear-gradient(270deg, var(--shade), transparent) right / 16px 100% no-repeat scroll, var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); font-size: .82rem; vertical-align: bottom; line-height: 1.35; }
th.wrap { white-space: normal; min-width: 5.6rem; }
th.over { text-align: center; border-left: 1px solid var(--rule); color: var(--ink); }
th.first, td.first { border-left: 1px solid var(--rule); }
th.name, td.name { text-align: left; white-space: normal; min-width: 8rem; position: sticky; left: 0;
  background: var(--card); z-index: 1; overflow-wrap: break-word; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 5rem; max-width: 24rem; overflow-wrap: anywhere; }
tbody tr:last-child td { border-bottom: 0; } tr.mean td { font-weight: 650;
  border-top: 2px solid var(--rule); }
tr.mean:first-child td { border-top: 0; border-bottom-width: 2px; }
td .ci { color: var(--soft); font-size: .82em; font-weight: 400; margin-left: .4em; }
td.plot { width: 220px; min-width: 196px; padding: 2px 10px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
.grid > *, .numbers > * { min-width: 0; }
.grid.big { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figure.still img { width: auto; max-width: 100%; margin: auto; }
figcaption { margin-top: 8px; font-size: .88rem; display: flex; justify-content: space-between; gap: 4px 8px;
  flex-wrap: wrap; }
.chip { border-radius: 99px; padding: 0 9px; font-size: .8rem; line-height: 1.5rem; white-space: nowrap;
  border: 1px solid; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); }
/* Shapes too, for those who do not tell the colours apart. */
.mark::before { font-size: .62em; margin-right: .35em; vertical-align: 2px; }
.mark.good::before { content: "●"; } .mark.fair::before { content: "▲"; }
.mark.bad::before { content: "■"; } .mark a { text-decoration-color: currentColor; }
.message { margin: 12px 0; } .message ul { margin: 8px 0 0; padding: 0; list-style: none; }
.message li { max-width: none; }
.message details { margin: 4px 0 0; } li:target { background: var(--grid); }
.strip { background: #ffffff; overflow-x: auto; padding: 12px; margin-top: 14px; }
.strip img { width: 100%; min-width: 720px; height: auto; display: block; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg .dots { stroke: none; }
svg .dashed { stroke-dasharray: 5 4; } svg .pale { fill-opacity: .5; }
svg line.grid { stroke: var(--grid); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .tick { fill: var(--soft); font-size: 11.5px; font-family: inherit; }
svg .whisker { stroke-width: 3; stroke-opacity: .38; stroke-linecap: round; }
svg .mark { stroke-width: 2; stroke-dasharray: 3 2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .82rem; color: var(--soft);
  margin-top: 6px; }
.legend span { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: 3px; }
.legend i.dot { width: 10px; height: 10px; border-radius: 50%; vertical-align: -1px; }
.legend i.pale { opacity: .5; }
.legend i.mark, .legend i.dashed { background: none; border-style: dashed; border-radius: 0;
  border-width: 3px 0 0; height: 0; }
.legend i.mark { border-width: 0 0 0 2px; width: 0; height: 13px; vertical-align: -2px; }
.legend.all { margin: 0 0 10px; }
.bar { display: grid; grid-template-columns: 9.5rem 1fr 4.5rem; align-items: center; gap: 10px;
  font-size: .92rem; padding: 4px 0; }
.bar div { height: 12px; border-radius: 4px; background: var(--cloned); min-width: 2px; }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
details { margin: 12px 0; } summary { cursor: pointer; font-weight: 600; }
details.wide { padding: 16px; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: 10px 0 0; }
code { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 16px; margin: 10px 0 0;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
li { margin: 4px 0; max-width: 76ch; } ul { padding-left: 1.2rem; }
.tight th, .tight td { padding-left: 8px; padding-right: 8px; } .tight td .ci { margin-left: .3em; }
.tight td.plot { width: 190px; min-width: 180px; }
@media (max-width: 560px) { main { padding: 18px 12px 48px; } h1 { font-size: 1.4rem; }
  .card { padding: 12px; } .wide { padding: 0; } details.wide { padding: 12px; }
  .numbers { grid-template-columns: 1fr 1fr; gap: 10px; } .numbers .card { padding: 10px 12px; }
  .numbers b { font-size: 1.5rem; }
  .bar { grid-template-columns: 6.6rem 1fr 3.6rem; font-size: .84rem; }
  th, td { padding: 7px 9px; } th.name, td.name { min-width: 6.6rem; max-width: 9.4rem; }
  .rows th.name, .rows td.name { min-width: 8.6rem; }
  .words th.name, .words td.name { min-width: 10.4rem; max-width: 10.4rem; }
  .first th, .first td { padding-left: 6px; padding-right: 6px; }
  .first th.name, .first td.name { padding-left: 10px; } .first td .ci { display: block; margin: 0; }
  td.plot { width: 200px; } .tight td.plot { min-width: 176px; } }
@media print { .card { break-inside: avoid; } }
"""
_LIGHT = dict(re.findall(r"--(\w+): (#\w{6})", _CSS.partition("@media")[0]))  # style -> colour
_STYLES = ("expert", "random", "cloned", "ppo", "imagined", *(f"s{i}" for i in range(8)))


def _style_rules() -> str:
  rules = []
  for name in _STYLES:
    rules.append(f"svg .line.{name},svg .mark.{name},svg .{name} .whisker{{stroke:var(--{name})}}")
    rules.append(f"svg .dots.{name}{{fill:var(--{name})}}")
    rules.append(f".legend .{name}{{background-color:var(--{name});border-color:var(--{name})}}")
  return "".join(rules)


@dataclasses.dataclass(frozen=True)
class Mark:
  """The colour of a number.

  Attributes:
    style: good, fair or bad.
    anchor: of the page, that a number leads to which is not good.
    text: what it means that it is not.
  """

  style: str
  anchor: str
  text: str


def marked(content: str, mark: Mark | None) -> str:
  """HTML in the colour of a mark; what is not good leads to what that means."""
  if mark is None:
    return content
  if mark.style != "good":
    content = f'<a href="#{mark.anchor}" title="{escape(mark.text)}">{content}</a>'
  return f'<span class="mark {mark.style}">{content}</span>'


def cell(content: str, mark: Mark | None = None, behind: str = "") -> str:
  """A cell of a table: HTML with its colour, and more HTML behind it that has none."""
  return f"<td>{marked(content, mark)}{behind}</td>"


def page(title: str, body: str) -> str:
  """A whole page of the parts below."""
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{_CSS}{_style_rules()}</style></head>"
    f"<body><main>{body}</main></body></html>\n"
  )


def escape(value: Any) -> str:
  """Any value as text of a page."""
  return html.escape(str(value))


def title_of(task: str) -> str:
  """move_slider_left -> Move slider left; LED keeps its capitals."""
  text = task.replace("_", " ")
  return (text[:1].upper() + text[1:]).replace(" led", " LED")


def quantity_of(name: str) -> str:
  """tcp_x -> gripper x, gripper_width -> gripper width."""
  return name.replace("tcp_", "gripper ").replace("_", " ")


def percent(rate: float | None) -> str:
  """A share as percent with one digit; a dash for nothing."""
  return "&ndash;" if rate is None else f"{100 * rate:.1f} %"


def points(gap: float | None, digits: int = 1) -> str:
  """A difference of two shares in points, with its sign unless it is 0."""
  if gap is None:
    return "&ndash;"
  value = round(100 * gap, digits)
  return f"{value:+.{digits}f}".replace("-", "&minus;") if value else f"{0:.{digits}f}"


def span_of(low: float, high: float, sign: bool = False) -> str:
  """An interval in percent or, with signs, in points."""
  if sign:
    return f"{points(low, 0)} to {points(high, 0)}"
  return f"{100 * low:.0f}&ndash;{100 * high:.0f}"


def section(title: str, body: str, anchor: str) -> str:
  """A heading that `navigation` leads to, and what stands below; "" without a body."""
  return f'<h2 id="{anchor}">{escape(title)}</h2>{body}' if body else ""


def navigation(sections: Sequence[tuple[str, str, str]]) -> str:
  """Links within the page to the sections (anchor, word, content) that have content."""
  links = "".join(f'<a href="#{anchor}">{escape(word)}</a>' for anchor, word, content in sections if content)
  return f"<nav>{links}</nav>"


def number_card(label: str, value: str, below: str, style: str = "") -> str:
  """One number to be seen first; `value` and `below` are HTML."""
  colour = f' style="--c:var(--{style})"' if style else ""
  return (
    f'<div class="card"{colour}><span class="small soft">{escape(label)}</span><b>{value}</b>'
    f'<span class="small soft">{below}</span></div>'
  )


def legend(entries: Sequence[tuple[str, str]]) -> str:
  """Names with their colours.

  Args:
    entries: (name, style); a style may go on with dot, dashed, mark or pale.
  """
  items = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in entries)
  return f'<div class="legend">{items}</div>'


def wide_card(table: str, name: str, classes: str = "card wide") -> str:
  """A card within which a wide table scrolls, by keyboard too."""
  return f'<div class="{classes}" role="region" tabindex="0" aria-label="{escape(name)}">{table}</div>'


def table_card(head: str, lines: Sequence[str], name: str, classes: str = "card wide") -> str:
  """A table of finished HTML rows: `head` one or several <tr>, `lines` the others."""
  return wide_card(f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>", name, classes)


def _breakable(name: str) -> str:
  """Escaped, with places where a dotted path may break."""
  return escape(name).replace("_", "_<wbr>").replace(".", ".<wbr>")


def rows_table(
  rows: Sequence[Sequence[str]],
  text: bool = False,
  total: bool = False,
  marks: Mapping[tuple[str, int], Mark | None] | None = None,
) -> str:
  """A table of `host.tables`: header first; a name that begins with a blank belongs to the row above.

  Args:
    rows: the first cell of each is its name; a line break in it begins small print.
    text: cells are words, not numbers.
    total: the last row sums the others up.
    marks: (name of a row, number of the cell after it) -> its colour.
  """
  marks = marks or {}
  corner, *heads = rows[0]
  kind, cell_of = (' class="text"', _breakable) if text else ("", escape)
  head = f'<th class="name">{escape(corner)}</th>'
  head += "".join(f"<th{kind}>{escape(cell)}</th>" for cell in heads)
  lines = []
  for i, (name, *cells) in enumerate(rows[1:], 2):
    style = ' class="soft"' if name.startswith(" ") else ""
    style = ' class="mean"' if total and i == len(rows) else style
    title, _, note = name.strip().partition("\n")
    behind = f' <small class="soft">{escape(note)}</small>' if note else ""
    values = "".join(
      f"<td{kind}>{cell_of(value)}</td>" if text else cell(escape(value), marks.get((title, i)))
      for i, value in enumerate(cells)
    )
    lines.append(f'<tr{style}><td class="name">{_breakable(title)}{behind}</td>{values}</tr>')
  classes = "card wide gap rows words" if text else "card wide gap rows"
  return table_card(f"<tr>{head}</tr>", lines, corner, classes)


def _entries(chart: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  """The legend of a chart; none of a single curve."""
  named = [curve for curve in chart["series"] if curve["name"]]
  entries = [
    (curve["name"] + curve.get("note", ""), curve["style"] + " dot" * curve.get("dots", False))
    for curve in named
  ]
  return tuple(entries) if len(entries) > 1 else ()


def _svg(chart: Mapping[str, Any], width: int, height: int) -> str:
  """The curves of a chart of `chart_card`."""
  series = [
    charts.Series(s["name"], s["x"], s["y"], s["style"], s.get("dots", False)) for s in chart["series"]
  ]
  return charts.line_chart(
    series,
    x_label=chart["x_label"],
    title=chart["title"],
    log_y=chart.get("log_y", False),
    percent=chart.get("percent", False),
    y_range=tuple(chart["y_range"]) if chart.get("y_range") else None,
    width=width,
    height=height,
  )


def chart_file(chart: Mapping[str, Any]) -> str:
  """A chart as an SVG file that needs no page, in the colours of a light one; "" if nothing is to be drawn.

  Args:
    chart: as for `chart_card`, for example one of `report.json`'s curves.
  """
  svg = _svg(chart, charts.WIDTH, charts.HEIGHT)
  shown = {name for name, _ in _entries(chart)}
  legend = []
  for curve in chart["series"]:
    name, style = curve["name"] + curve.get("note", ""), curve["style"].split()[0]
    legend.append((name if name in shown else "", style, _LIGHT[style]))
  return charts.standalone(svg, chart["title"], legend) if svg else ""


def chart_card(chart: Mapping[str, Any], title: str | None = None, explained: bool = False) -> str:
  """A chart with its title and legend; "" when there is nothing to draw.

  Args:
    chart: title, x_label, series (name, x, y, style, dots, note; without a name not in the legend), and
      options of `charts.line_chart`.
    title: shown instead of the chart's own.
    explained: the legend stands elsewhere.
  """
  svg = _svg(chart, CHART_WIDTH, CHART_HEIGHT)
  if not svg:
    return ""
  entries = _entries(chart)
  below = legend(entries) if entries and not explained else ""
  return f'<div class="card"><h3>{escape(title or chart["title"])}</h3>{svg}{below}</div>'


def chart_groups(all_charts: Sequence[Mapping[str, Any]], words: Mapping[str, str] | None = None) -> str:
  """Charts under what stands before the colon of their titles; a legend that most share stands above them.

  Args:
    all_charts: as for `chart_card`.
    words: group -> text below its heading.
  """
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for chart in all_charts:
    groups.setdefault(chart["title"].partition(": ")[0], []).append(chart)
  parts = []
  for group, members in groups.items():
    (shared, count), *_ = collections.Counter(map(_entries, members)).most_common(1)
    shared = shared if count > 2 else ()
    cards = []
    for chart in members:
      name = chart["title"].partition(": ")[2]
      cards.append(chart_card(chart, name[:1].upper() + name[1:], bool(shared) and _entries(chart) == shared))
    if any(cards):
      text = f'<p class="soft small">{escape(words[group])}</p>' if words and group in words else ""
      above = legend(shared).replace('"legend"', '"legend all"') if shared else ""
      parts.append(
        f'<h3 class="group">{escape(group)}</h3>{text}{above}<div class="grid big">{"".join(cards)}</div>'
      )
  return "".join(parts)


def time_bars(stages: Sequence[Mapping[str, Any]]) -> str:
  """The time of each stage as a bar."""
  longest = max((stage["seconds"] for stage in stages), default=0) or 1
  rows = "".join(
    f'<div class="bar"><span>{escape(stage["name"].replace("_", " "))}</span>'
    f'<div style="width:{100 * stage["seconds"] / longest:.1f}%"></div>'
    f"<span>{duration(stage['seconds'])}</span></div>"
    for stage in stages
  )
  return f'<div class="card">{rows}</div>'


def details(summary: str, body: str) -> str:
  """Something that is folded away."""
  return f'<details class="card"><summary>{escape(summary)}</summary>{body}</details>'
