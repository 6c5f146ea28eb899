"""The report of a small made-up run: table, numbers, and a page that needs nothing else."""

import html.parser
import json
import re

import made_up_run
import numpy as np
import pytest
from made_up_run import TASKS

from wam_jax.config import STAGES
from wam_jax.core.certificate import RULES
from wam_jax.reporting import run_report


@pytest.fixture
def rng():
  return np.random.default_rng(8)


@pytest.fixture
def made(tmp_path, rng):
  """(config, inputs) of a run whose stages left random numbers."""
  return made_up_run.write_run(tmp_path, rng)


@pytest.fixture
def written(made, tmp_path, rng):
  """Folder of the written report, and what it was written from."""
  config, inputs = made
  folder = tmp_path / "report"
  folder.mkdir()
  judged = inputs["judge_world_model"].path
  strips = {kind: (judged / f"strip.{kind}").read_bytes() for kind in ("png", "webp")}
  built = run_report.build(config, inputs, made_up_run.shown(), 4.5)
  run_report.write_report(folder, built, strips, made_up_run.animations(rng))
  return folder, built


class Page(html.parser.HTMLParser):
  """Collects what a page refers to, and checks that tags are closed."""

  VOID = ("meta", "img", "br", "wbr", "line", "circle", "i")

  def __init__(self):
    super().__init__()
    self.images, self.references, self.text, self.open, self.tags = [], [], [], [], []
    self.anchors = []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in self.VOID:
      self.open.append(tag)
    for name, value in attrs:
      if name == "src":
        self.images.append(value)
      if name == "id":
        self.anchors.append("#" + value)
      if name in ("href", "srcset", "data", "action", "xlink:href"):
        self.references.append(value)

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_data(self, data):
    self.text.append(data)


def test_page_is_self_contained(written):
  folder, _ = written
  text = (folder / "report.html").read_text()
  page = Page()
  page.feed(text)
  assert not page.open
  assert len(page.images) == 4  # the strip, still and moving, and an animation per task
  assert all(re.match(r"data:image/(png|webp);base64,[A-Za-z0-9+/]+=*$", image) for image in page.images)
  assert page.references and all(reference in page.anchors for reference in page.references)
  assert "script" not in page.tags and "link" not in page.tags
  assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text


def test_page_shows_the_results(written):
  folder, built = written
  page = Page()
  page.feed((folder / "report.html").read_text())
  text = " ".join(page.text)
  mean = built["results"]["policies"]["ppo"]["mean"]
  assert f"{100 * mean['rate']:.1f} %" in text
  assert "Turn on LED" in text and "not solved" in text and "solved in 1.0 s" in text
  assert "precision, demos" in text and "random dreams called a success" in text and "1.2 %" in text
  assert "points above the simulator" in text or "points below the simulator" in text
  assert page.tags.count("svg") >= 3 + 6  # interval per row, and charts
  assert "40 windows (64 were asked for) of 17 frames" in text and "held out from training" in text
  assert "27.12" in text and "0.875" in text and "missing" in text and "constant" in text
  assert "takes: median" in text and "7.8" in text and "linear recursion" in text and "0.703" in text
  assert "What dreams can tell apart" in text and "Mean, dreamt" in text and "7, 11" in text


def test_markdown_begins_with_an_aligned_table(written):
  folder, built = written
  lines = (folder / "report.md").read_text().splitlines()
  table = lines[: 2 + len(TASKS) + 1]
  assert all(line.startswith("|") and line.endswith("|") for line in table)
  assert len({len(line) for line in table}) == 1 and not lines[len(table)]
  cells = [cell.strip() for cell in table[3].strip("|").split("|")]
  row = built["results"]["policies"]["ppo"]["per_task"]["turn_on_led"]
  assert cells[0] == "turn_on_led"
  assert cells[4].startswith(f"{100 * row['rate']:.1f} (")
  assert cells[6] == f"{100 * (row['imagined'] - row['rate']):+.1f}"


def test_json_reads_back_with_times_and_provenance(written):
  folder, built = written
  stored = json.loads((folder / "report.json").read_text())
  assert stored == json.loads(json.dumps(built))
  assert stored["total_seconds"] == pytest.approx(sum(10 + i for i in range(len(STAGES) - 1)) + 4.5)
  assert stored["seed"] == 3 and stored["config"]["world_model"]["deter"] == 1024
  assert "config" not in stored["results"] and "provenance" not in stored["judge"]
  assert {"wam_jax", "commit", "packages", "platform", "date", "command"} <= set(stored["provenance"])


def test_report_without_optional_parts(made, tmp_path):
  """No dreams measured, no random policy, no classifier quality, no pictures, no metrics."""
  config, inputs = made
  path = inputs["evaluate"].path / "results.json"
  results = json.loads(path.read_text())
  for name in ("expert", "random"):
    del results["policies"][name]
  for row in (results["policies"]["ppo"]["mean"], *results["policies"]["ppo"]["per_task"].values()):
    del row["imagined"], row["gap"]
  path.write_text(json.dumps(results))
  (inputs["classifier"].path / "quality.json").unlink()
  (inputs["world_model"].path / "metrics.jsonl").unlink()
  folder = tmp_path / "report"
  folder.mkdir()
  run_report.write_report(folder, run_report.build(config, inputs, [], 1.0), {}, [])
  page = Page()
  page.feed((folder / "report.html").read_text())
  assert not page.open and not page.images
  assert (folder / "report.md").read_text().splitlines()[0].count("|") == 4


def test_report_of_a_run_by_an_older_version(made, tmp_path):
  """Neither the hand nor takes were judged, failed takes not told apart from good ones, nothing certified."""
  config, inputs = made
  inputs = {name: artifact for name, artifact in inputs.items() if name != "certify"}
  judge = json.loads((inputs["judge_world_model"].path / "judge.json").read_text())
  for part in (judge, judge["data"], judge["models"][0]):
    for name in ("recursion", "takes", "hand"):
      part.pop(name, None)
  (inputs["judge_world_model"].path / "judge.json").write_text(json.dumps(judge))
  path = inputs["classifier"].path / "quality.json"
  quality = json.loads(path.read_text())
  del quality["discrimination"]
  for task in quality["tasks"].values():
    del task["discrimination"], task["takes"]
    task["heldout_failed_takes"] = {"count": 5, "real": 0.25, "dreamt": 0.5}
  path.write_text(json.dumps(quality))
  folder = tmp_path / "report"
  folder.mkdir()
  run_report.write_report(folder, run_report.build(config, inputs, [], 1.0), {}, [])
  text = (folder / "report.md").read_text() + (folder / "report.html").read_text()
  assert "Error of the hand" not in text and "held-out takes" not in text and "tell apart" not in text
  assert "| drawer " in text and "precision, demos" in text


def test_certificate_stands_beside_what_came_of_it(made, tmp_path):
  config, inputs = made
  path = inputs["certify"].path / "certificate.json"
  certificate = json.loads(path.read_text())
  left = {"open_drawer": 0.07}
  (inputs["ppo"].path / "result.json").write_text(json.dumps({"left_as_cloned": left}))
  folder = tmp_path / "report"
  folder.mkdir()
  built = run_report.build(config, inputs, [], 1.0)
  assert built["left_as_cloned"] == left
  run_report.write_report(folder, built, {}, [])
  html, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
  for verdict in certificate["verdicts"].values():
    assert verdict["reason"] in text and f">{verdict['verdict']}</span>" in html
  assert "left as cloned" in html and "Open drawer: PPO left the cloned policy as it is" in text
  for rule in RULES.values():
    assert rule.label in html


def test_text_is_escaped(made, tmp_path):
  config, inputs = made
  config.experiment = "<script>&"
  folder = tmp_path / "report"
  folder.mkdir()
  run_report.write_report(folder, run_report.build(config, inputs, [], 1.0), {}, [])
  page = Page()
  page.feed((folder / "report.html").read_text())
  assert "script" not in page.tags


def test_markdown_has_the_judgement(written):
  folder, built = written
  text = (folder / "report.md").read_text()
  assert "| drawer " in text and "| inverse dynamics " in text and "(open_loop.png)" in text
  rms = 1000 * built["judge"]["models"][0]["hand"]["play"]["imagined"][1]["rms"]
  (line,) = (line for line in text.splitlines() if line.startswith("| play: root mean square"))
  assert [cell.strip() for cell in line.strip("|").split("|")][3:] == [f"{rms:.1f}", "missing"]


def test_markdown_tells_what_dreams_can_tell_apart(written):
  folder, built = written
  lines = (folder / "report.md").read_text().splitlines()
  begin = lines.index("## What dreams can tell apart")
  table = [line for line in lines[begin : begin + 14] if line.startswith("|")]
  assert len(table) == 2 + 2 * (len(TASKS) + 1) and len({len(line) for line in table}) == 1
  assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]] == built[
    "discrimination"
  ][1:]
