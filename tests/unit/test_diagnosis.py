"""A report's rules: each finds its number, the guide holds them, and what is red stands above the results."""

import json
import pathlib

import made_up_run
import numpy as np
import pytest

from wam_jax.host.tables import markdown_table
from wam_jax.reporting import diagnosis, report_page, run_report

GUIDE = pathlib.Path(__file__).parents[2] / diagnosis.GUIDE


@pytest.fixture
def made(tmp_path):
  return made_up_run.write_run(tmp_path, np.random.default_rng(8))


@pytest.mark.parametrize("k, section", list(enumerate(diagnosis.SECTIONS)))
def test_the_guide_holds_the_rules_of_each_section(k, section):
  _, _, rest = GUIDE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
  assert rest, f"{GUIDE}: no section {section}"
  table = markdown_table(diagnosis.guide_rows(diagnosis.of_section(k)))
  assert table in rest.partition("\n## ")[0], f"{GUIDE}, {section}: its table is to be\n{table}"


def test_every_rule_finds_its_number_and_every_coloured_number_leads_to_its_sentence(made):
  report = run_report.build(*made, [], 1.0)
  assert {entry["rule"] for entry in report["diagnosis"]} == set(diagnosis.ROWS)
  html = report_page.render_page(report, {}, [], "guide.md")
  for entry in report["diagnosis"]:
    if entry["colour"] != "green":
      assert f'href="#rule-{entry["rule"]}"' in html and f'<li id="rule-{entry["rule"]}">' in html
  for section in diagnosis.SECTIONS:
    assert f'href="guide.md#{diagnosis.anchor(section)}"' in html


def colours(report, rule):
  return {tuple(x["where"]): x["colour"] for x in diagnosis.diagnose(report) if x["rule"] == rule}


@pytest.mark.parametrize(
  "rule, group, against",
  [("reading", "probes", "probes"), ("psnr", "open_loop", "repeated"), ("ssim", "open_loop", "repeated")],
)
def test_what_is_worse_than_keeping_the_last_is_coloured(rule, group, against):
  limit = diagnosis.ROWS[rule].rule.red
  mine = [7 + limit * 1.1, 7 + limit * 0.9, 7.0, None, "constant"]
  keys = ("imagined", "kept") if rule == "reading" else (rule, rule)
  model = {group: {"a": {keys[0]: mine}}}
  model.setdefault(against, {"a": {}})["a"][keys[1]] = [7.0] * 5
  if group == against:
    model[group]["a"] = {keys[0]: mine, keys[1]: [7.0] * 5}
  where = (group, "a") if rule == "reading" else ("a",)
  expected = {(*where, i): colour for i, colour in enumerate(("red", "yellow", "green"))}
  assert colours({"judge": {"models": [model]}}, rule) == expected


def test_the_hand_against_a_recursion_that_never_errs_has_no_colour():
  far = {"rms": 0.03, "median": 0.02}
  model = {"hand": {"play": {"imagined": [far, far, None]}}}
  recursion = {"play": [{"rms": 0.01, "median": 0.018}, {"rms": 0.0, "median": 0.02}, None]}
  report = {"judge": {"models": [model], "recursion": recursion}}
  assert colours(report, "hand") == {
    ("play", 0, "rms"): "red",
    ("play", 0, "median"): "yellow",
    ("play", 1, "median"): "green",
  }


def test_failed_takes_that_dreams_call_a_success_stand_red_above_the_results(made):
  config, inputs = made
  path = inputs["classifier"].path / "quality.json"
  quality = json.loads(path.read_text())
  quality["tasks"]["turn_on_led"]["discrimination"]["dreamt"]["specificity"]["value"] = 0.35
  path.write_text(json.dumps(quality))
  report = run_report.build(config, inputs, [], 1.0)
  (message,) = (m for m in diagnosis.messages(report) if m["rule"] == "failed_called")
  assert message["colour"] == "red" and "worst: turn on led, 65 %" in message["numbers"]
  html = report_page.render_page(report, {}, [])
  assert 0 < html.index(message["meaning"]) < html.index("<table")
  assert message["meaning"] in run_report.markdown(report)


def test_a_page_outside_of_the_checkout_tells_no_path(tmp_path):
  assert diagnosis.link(tmp_path) == ""
  assert diagnosis.link(GUIDE.parents[2] / "runs" / "a") == f"../../{diagnosis.GUIDE}"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_where_dreams_begin_is_said_beside_the_numbers(made, share):
  config, inputs = made
  config.ppo.failed_starts = share
  report = run_report.build(config, inputs, [], 1.0)
  assert ("failed" in report["starts"]["ppo"]) == ("failed" in report["starts"]["imagined"]) == bool(share)
  assert "10 held-out starts" in report["starts"]["ppo"]
  html = report_page.render_page(report, {}, [])
  for sentence in report["starts"].values():
    assert sentence.replace("'", "&#x27;") in html
