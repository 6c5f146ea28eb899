"""Small charts as inline SVG text. Colours and fonts come from the page's CSS, so both themes work.

Classes used: `axis`, `grid`, `tick` and, per series, the class given by the caller on lines and dots.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 240
LOG_RATIO = 8.0
MOST_POINTS = 240  # of a line


@dataclasses.dataclass(frozen=True)
class Series:
  """One curve.

  Attributes:
    name: for the legend and the tooltip.
    x, y: points of equal number; None and NaN in y are left out.
    style: CSS class.
    dots: draw points instead of a line.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float | None]
  style: str
  dots: bool = False

  def points(self) -> list[tuple[float, float]]:
    pairs = zip(self.x, self.y, strict=True)
    return [(float(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Averages neighbouring points until at most MOST_POINTS are left."""
  if len(points) <= MOST_POINTS:
    return points
  size = -(-len(points) // MOST_POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers inside [low, high], about `count` of them."""
  if not high > low:
    return [low]
  raw = (high - low) / max(count, 1)
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for multiples in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
    ticks = [m * 10.0**e for e in exponents for m in multiples if low <= m * 10.0**e <= high]
    if len(ticks) >= 3:
      break
  return ticks[:: max(1, len(ticks) // 6)]


def number(value: float) -> str:
  """Short text of a tick: 1500 -> 1.5k."""
  if value and abs(value) >= 1e6:
    return f"{value / 1e6:.3g}M"
  if abs(value) >= 1000:
    return f"{value / 1000:.3g}k"
  return f"{value:.3g}"


def line_chart(
  series: Sequence[Series],
  *,
  x_label: str,
  title: str,
  y_range: tuple[float, float] | None = None,
  log_y: bool = False,
  percent: bool = False,
  x_ticks: Sequence[float] = (),
  height: int = HEIGHT,
  width: int = WIDTH,
) -> str:
  """Curves over a common axis.

  Args:
    series: at least one with at least one point.
    x_label: below the axis.
    title: read by screen readers.
    y_range: fixed limits; None fits the points.
    log_y: logarithmic axis if the values span more than LOG_RATIO; points that are not positive are left out.
    percent: y in [0, 1] shown as percent.
    x_ticks: all that are marked; the axis is then logarithmic.
    height: in user units; the page scales the width.
    width: in user units.

  Returns:
    An <svg> element, or "" when there is nothing to draw.
  """
  drawn = []
  for curve in series:
    points = [(x, y) for x, y in curve.points() if not log_y or y > 0]
    if points:
      drawn.append((curve, points if curve.dots else thin(points)))
  if not drawn:
    return ""
  xs = [x for _, points in drawn for x, _ in points]
  ys = [y for _, points in drawn for _, y in points]
  log_y = log_y and max(ys) / min(ys) > LOG_RATIO
  x_low, x_high = min(xs), max(xs)
  if x_low == x_high:
    x_low, x_high = x_low - 0.5, x_high + 0.5
  y_low, y_high = y_range or (min(ys), max(ys))
  if y_range is None:
    if log_y:
      y_low, y_high = y_low / 1.08, y_high * 1.08
    else:
      margin = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
      y_low, y_high = (0.0 if 0 <= y_low <= 0.3 * y_high else y_low - margin), y_high + margin

  left, right, top, bottom = 46, width - 10, 8, height - 36
  scale = math.log10 if log_y else float
  scale_x = math.log10 if x_ticks else float

  def px(x: float) -> float:
    share = (scale_x(x) - scale_x(x_low)) / (scale_x(x_high) - scale_x(x_low))
    return left + share * (right - left)

  def py(y: float) -> float:
    share = (scale(y) - scale(y_low)) / (scale(y_high) - scale(y_low))
    return bottom - min(max(share, 0.0), 1.0) * (bottom - top)

  parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
  for tick in _log_ticks(y_low, y_high) if log_y else nice_ticks(y_low, y_high, 4 if height > 150 else 2):
    y = py(tick)
    text = f"{tick:.0%}" if percent else number(tick)
    parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
    parts.append(f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
  for tick in x_ticks or nice_ticks(x_low, x_high, 5 if width > 300 else 3):
    anchor = "end" if px(tick) > right - 12 else "middle"
    parts.append(
      f'<text class="tick" x="{px(tick):.1f}" y="{bottom + 15}" text-anchor="{anchor}">{number(tick)}</text>'
    )
  parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
  label_at = (left + right) / 2
  parts.append(
    f'<text class="tick" x="{label_at:.0f}" y="{height - 4}" text-anchor="middle">'
    f"{html.escape(x_label)}</text>"
  )
  for curve, points in drawn:
    name = f"<title>{html.escape(curve.name)}</title>"
    if curve.dots or len(points) == 1:
      dots = "".join(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4.5"/>' for x, y in points)
      parts.append(f'<g class="dots {curve.style}">{name}{dots}</g>')
    else:
      path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
      parts.append(f'<polyline class="line {curve.style}" points="{path}">{name}</polyline>')
  return "".join(parts) + "</svg>"


_ALONE = """
text { font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #5d6676; }
.title { font-size: 14px; font-weight: 600; fill: #1c2230; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .dots { fill-opacity: .45; }
line.grid { stroke: #e9ecf1; } .axis { stroke: #5d6676; }
"""


def standalone(svg: str, title: str, legend: Sequence[tuple[str, str, str]]) -> str:
  """A chart as a separate file, on white, with its title and a legend below, in as many rows as it takes.

  Args:
    svg: from `line_chart`, of its default size.
    title: above.
    legend: (name, first word of the style, colour) of each style that the chart uses; without a name it is
      only coloured.
  """
  inner = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
  rules = [
    f".line.{style}{{stroke:{colour}}}.dots.{style},.key.{style}{{fill:{colour}}}"
    for _, style, colour in legend
  ]
  if " dashed" in inner:
    rules.append(".dashed{stroke-dasharray:5 4}")
  left = 46.0
  keys, x, y = [], left, HEIGHT + 33
  for name, style, _ in legend:
    if name:
      length = 34 + 6.8 * len(name)
      if x > left and x + length > WIDTH:
        x, y = left, y + 18
      keys.append(f'<rect class="key {style}" x="{x:.0f}" y="{y}" width="11" height="11" rx="3"/>')
      keys.append(f'<text x="{x + 16:.0f}" y="{y + 10}">{html.escape(name)}</text>')
      x += length
  height = y + 21
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
    f'viewBox="0 0 {WIDTH} {height}">'
    f"<style>{_ALONE}{''.join(rules)}</style>"
    f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    f'<text class="title" x="12" y="20">{html.escape(title)}</text>'
    f'<g transform="translate(0 26)">{inner}</g>{"".join(keys)}</svg>\n'
  )


def spread_chart(rows: Sequence[tuple[str, Sequence[float], float]], low: float, width: int = 220) -> str:
  """Values and their mean on a line from `low` to 1, one row below the other.

  Args:
    rows: (CSS class, values, mean), all in [low, 1].
    low: where the line begins.
    width: in user units.

  Returns:
    An <svg> element.
  """
  pitch, margin = 15, 8
  height = pitch * len(rows) + 8
  at = lambda value: margin + (value - low) / (1 - low) * (width - 2 * margin)
  label = ", ".join(f"{style} {min(v):.0%} to {max(v):.0%}, mean {mean:.0%}" for style, v, mean in rows)
  parts = [f'<svg class="interval" viewBox="0 0 {width} {height}" aria-label="{html.escape(label)}">']
  for value in nice_ticks(low, 1, 4):
    parts.append(f'<line class="grid" x1="{at(value):.1f}" y1="0" x2="{at(value):.1f}" y2="{height}"/>')
  for i, (style, values, mean) in enumerate(rows):
    y = 4 + pitch * (i + 0.5)
    dots = "".join(f'<circle cx="{at(value):.1f}" cy="{y}" r="3.6"/>' for value in values)
    parts.append(
      f'<g class="dots pale {style}">{dots}<line class="whisker" x1="{at(mean):.1f}" y1="{y - 6}" '
      f'x2="{at(mean):.1f}" y2="{y + 6}"/></g>'
    )
  return "".join(parts) + "</svg>"


def interval_chart(
  rows: Sequence[tuple[str, float, float, float]], marks: Sequence[tuple[str, float]] = (), width: int = 220
) -> str:
  """Rates with intervals on a line from 0 to 1, one below the other.

  Args:
    rows: (CSS class, rate, low, high), all in [0, 1].
    marks: (CSS class, rate) of thin upright marks over the whole height.
    width: in user units.

  Returns:
    An <svg> element.
  """
  pitch, margin = 13, 8
  height = pitch * len(rows) + 8
  at = lambda rate: margin + rate * (width - 2 * margin)
  label = ", ".join(f"{style} {rate:.0%} ({low:.0%} to {high:.0%})" for style, rate, low, high in rows)
  parts = [f'<svg class="interval" viewBox="0 0 {width} {height}" aria-label="{html.escape(label)}">']
  for rate in (0, 0.25, 0.5, 0.75, 1):
    parts.append(f'<line class="grid" x1="{at(rate):.1f}" y1="0" x2="{at(rate):.1f}" y2="{height}"/>')
  for style, rate in marks:
    parts.append(
      f'<line class="mark {style}" x1="{at(rate):.1f}" y1="1" x2="{at(rate):.1f}" y2="{height - 1}"/>'
    )
  for i, (style, rate, low, high) in enumerate(rows):
    y = 4 + pitch * (i + 0.5)
    parts.append(
      f'<g class="dots {style}">'
      f'<line class="whisker" x1="{at(low):.1f}" y1="{y}" x2="{at(high):.1f}" y2="{y}"/>'
      f'<circle cx="{at(rate):.1f}" cy="{y}" r="4.2"/></g>'
    )
  return "".join(parts) + "</svg>"
