"""Report and comparison in headless Chromium: shown whole, on a phone too, and asking for nothing."""

import browser
import made_up_run
import numpy as np
import pytest

from wam_jax.config import TASKS
from wam_jax.reporting import comparison, comparison_page, report_page, run_report
from wam_jax.reporting.finished_run import read_run

pytestmark = pytest.mark.skipif(
  browser.find() is None, reason=f"no Chromium: none of {', '.join(browser.NAMES)} is on PATH"
)
LONG = "a_run_with_a_name_that_is_longer_than_a_phone_is_wide_and_breaks_nowhere_2026"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """The report of a run of all tasks, and two runs side by side, one of them with a long name."""
  rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("runs")
  config, inputs = made_up_run.write_run(folder / "run", rng, TASKS)
  made_up_run.write_run(folder / LONG, rng, TASKS, start=1, ppo__iterations=3)
  runs = [read_run(folder / name) for name in ("run", LONG)]
  built = run_report.build(config, inputs, made_up_run.shown(TASKS), 1.0)
  strips = [run.strips() for run in runs]
  return {
    "report": report_page.render_page(built, strips[0], made_up_run.animations(rng, TASKS)),
    "comparison": comparison_page.render_page(comparison.build(runs), strips),
  }


@pytest.mark.parametrize("name, images", [("report", 2 + len(TASKS)), ("comparison", 4)])
def test_pages_are_shown_whole(pages, tmp_path, name, images):
  visit = browser.visit(pages[name], tmp_path / "browser")
  assert not visit.faults()
  assert {frame["images"] for frame in visit.frames.values()} == {images}
  assert {one: frame["width"] for one, frame in visit.frames.items()} == {
    one: width for one, width, _ in browser.FRAMES
  }
  assert visit.frames["dark phone"]["background"] < 0.1 < 0.8 < visit.frames["phone"]["background"]


FAULTS = {
  '<img alt="torn" src="data:image/png;base64,iVBORw0KGgoAAAA">': "image not shown: torn",
  '<img src="http://example.invalid/x.png">': "request: http://example.invalid/x.png",
  '<link rel="stylesheet" href="https://example.invalid/a.css">': "request: https://example.invalid/a.css",
  '<script>new WebSocket("ws://example.invalid/s")</script>': "request: ws://example.invalid/s",
  "<script>nothingLikeThis()</script>": 'console: "Uncaught ReferenceError: nothingLikeThis',
  '<p style="width:500px">wide</p>': "500 pixels wide where there are 360",
  '<p class="soft" style="color:#ccc">pale</p>': "text with a contrast of",
}


def test_faults_are_seen(tmp_path):
  """Without this, a check that sees nothing would pass."""
  whole = "<!doctype html><body style='margin:0;background:#fff;color:#000'>{}</body>"
  visit = browser.visit(whole.format("".join(FAULTS)), tmp_path / "broken")
  faults = "\n".join(visit.faults())
  assert not [said for said in FAULTS.values() if said not in faults], faults
  assert not browser.visit(whole.format("<p>fine</p>"), tmp_path / "fine").faults()
