"""Inline SVG: geometry of points, ticks and intervals."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from wam_jax.reporting import charts, page_parts


def test_higher_values_are_drawn_higher():
  svg = charts.line_chart(
    [charts.Series("loss", [0, 5, 10], [3.0, 1.0, 2.0], "a")], x_label="update", title="t"
  )
  line = ElementTree.fromstring(svg).find("polyline")
  points = np.array([p.split(",") for p in line.get("points").split()], float)
  assert points.shape == (3, 2)
  assert (np.diff(points[:, 0]) > 0).all()
  assert points[0, 1] < points[2, 1] < points[1, 1]  # y grows downwards


def test_gaps_and_non_positive_values_are_left_out():
  series = [charts.Series("x", [0, 1, 2, 3, 4], [1.0, None, float("nan"), -2.0, 100.0], "a")]
  svg = charts.line_chart(series, x_label="", title="", log_y=True)
  assert len(ElementTree.fromstring(svg).find("polyline").get("points").split()) == 2
  assert charts.line_chart([charts.Series("x", [1], [None], "a")], x_label="", title="") == ""


def test_titles_are_escaped():
  svg = charts.line_chart([charts.Series("<b>&", [0, 1], [0, 1], "a")], x_label="<", title='"<')
  assert ElementTree.fromstring(svg).find("polyline/title").text == "<b>&"


@pytest.mark.parametrize("low, high", [(0, 1), (0.3, 0.31), (-5, 1234), (1e-6, 2e-6)])
def test_ticks_are_inside_and_even(low, high):
  ticks = charts.nice_ticks(low, high)
  assert 2 <= len(ticks) <= 7
  assert low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
  np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_thin_averages():
  points = [(float(i), float(i) ** 2) for i in range(10 * charts.MOST_POINTS)]
  thinned = charts.thin(points)
  assert len(thinned) == charts.MOST_POINTS
  assert thinned[0] == (pytest.approx(4.5), pytest.approx(sum(i * i for i in range(10)) / 10))


def test_interval_positions():
  svg = charts.interval_chart(
    [("cloned", 0.5, 0.25, 0.75), ("ppo", 1.0, 0.9, 1.0)], [("expert", 1.0)], width=216
  )
  root = ElementTree.fromstring(svg)
  first, second = root.findall("g")
  assert float(first.find("circle").get("cx")) == 8 + 0.5 * 200
  assert (float(first.find("line").get("x1")), float(first.find("line").get("x2"))) == (58.0, 158.0)
  assert float(second.find("circle").get("cx")) == 208.0


def test_a_chart_of_the_report_as_a_file_of_its_own():
  one = {"name": "imagined & more", "x": [0, 1], "y": [0.1, 0.9], "style": "imagined"}
  other = one | {"name": "held out", "style": "imagined dashed"}
  dots = one | {"name": "real", "x": [1], "y": [0.5], "style": "ppo", "dots": True}
  chart = {"title": "PPO: <mean>", "x_label": "iteration", "series": [one, other, dots], "percent": True}
  text = page_parts.chart_file(chart)
  root = ElementTree.fromstring(text)
  words = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
  assert {"PPO: <mean>", "imagined & more", "held out", "real"} <= set(words)
  assert ".line.imagined{stroke:#e0760f}" in text and ".dashed{stroke-dasharray" in text
  alone = page_parts.chart_file(chart | {"series": [one]})
  assert "imagined &amp; more</text>" not in alone and "dashed" not in alone  # one curve needs no legend
  assert page_parts.chart_file(chart | {"series": [one | {"y": [None, None]}]}) == ""
