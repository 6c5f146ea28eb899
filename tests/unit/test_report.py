"""The report of a small made-up run: table, numbers, and a page that needs nothing else."""

import html.parser
import json
import re

import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.io import media
from wam_jax.io.artifact import Artifact
from wam_jax.stages import evaluate, report
from wam_jax.train.world_model import ACTION_NAMES

TASKS = ("open_drawer", "turn_on_led")


@pytest.fixture
def rng():
  return np.random.default_rng(8)


def judged(rng):
  """What the judge stage writes, with random numbers; one horizon was too long for the data."""
  at = lambda: [rng.uniform(15, 25), rng.uniform(15, 25), None]
  pictures = lambda: {
    "psnr": at(),
    "ssim": at(),
    "psnr_curve": rng.uniform(15, 25, 12).tolist(),
    "mean_psnr": rng.uniform(15, 25),
  }
  cameras = ("rgb_static", "rgb_gripper")
  seen = {"reconstruction_psnr": 27.125, "reconstruction_ssim": 0.9}
  probe = lambda: {"posterior": 0.875, "imagined": [0.5, "constant", None], "kept": [0.25, 0.125, None]}
  model = {
    "name": "calvin_wam (a)",
    "open_loop": {camera: pictures() | seen for camera in cameras},
    "repeated": {camera: pictures() for camera in cameras},
    "probes": {"drawer": probe(), "led": probe()},
    "inverse_dynamics": {name: {"error": 0.0625, "mean_action": 0.5} for name in ("x", "gripper")},
  }
  return {
    "format": 1,
    "context": 5,
    "horizons": [1, 10, 50],
    "targets": {"drawer": {"score": "R²"}, "led": {"score": "balanced accuracy"}},
    "data": {
      "kind": "play",
      "windows": 40,
      "windows_asked": 64,
      "frames": 17,
      "probe_frames": 6000,
      "probe_kind": "play",
    },
    "models": [model],
    "provenance": {"left": "out"},
  }


@pytest.fixture
def made(tmp_path, rng):
  """(config, inputs) of a run whose stages left random numbers."""
  config = config_lib.default_config()
  config.tasks, config.preset, config.seed = TASKS, "demo", 3
  inputs = {}
  for i, stage in enumerate(report.REQUIRES):
    (tmp_path / stage).mkdir()
    inputs[stage] = Artifact(
      stage, tmp_path / stage, f"{i:x}" * 64, {}, seconds=10.0 + i, peak_bytes=2_000_000_000
    )

  def lines(stage, count, row):
    text = "".join(json.dumps({"step": i, "time": 0.0} | row(i)) + "\n" for i in range(count))
    (tmp_path / stage / "metrics.jsonl").write_text(text)

  errors = [f"inverse_dynamics/error_{name}" for name in ACTION_NAMES]
  world = ("loss/image", "loss/kl", *errors, "image/psnr")
  lines("world_model", 30, lambda i: {f"world_model/{name}": rng.uniform(1, 9) for name in world})
  lines("behaviour_cloning", 5, lambda i: {f"behaviour_cloning/{task}/loss": rng.uniform() for task in TASKS})
  lines("ppo", 7, lambda i: {f"ppo/{task}/imagined_success": rng.uniform() for task in TASKS})
  shares = lambda: {"precision": rng.uniform(), "recall": None, "calibration_error": 0.0625}
  quality = {
    task: {
      "heldout_demos": shares(),
      "heldout_demo_dreams": shares(),
      "random_dreams": {"false_positives": 0.0123, "count": 9},
    }
    for task in TASKS
  }
  (tmp_path / "classifier" / "quality.json").write_text(json.dumps({"tasks": quality}))

  (tmp_path / "judge_world_model" / "judge.json").write_text(json.dumps(judged(rng)))
  episodes = {}
  for name, rate in (("expert", 1.0), ("random", 0.0), ("cloned", 0.5), ("ppo", 0.7)):
    success = rng.random((2, 10)) < rate
    episodes[name] = {"success": success, "steps": np.where(success, 30, 72)}
  episodes["ppo"]["imagined"] = rng.uniform(size=2)
  results = evaluate.summarise(TASKS, episodes) | {"max_steps": 72, "seed": 3, "config": {"left": "out"}}
  (tmp_path / "evaluate" / "results.json").write_text(json.dumps(results))
  return config, inputs


@pytest.fixture
def written(made, tmp_path, rng):
  """Folder of the written report, and what it was written from."""
  config, inputs = made
  shown = [{"task": task, "success": i == 0, "steps": 30, "episode": i} for i, task in enumerate(TASKS)]
  frames = rng.integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
  animations = {task: media.animation_bytes(frames, 15, kind="webp") for task in TASKS}
  folder = tmp_path / "report"
  folder.mkdir()
  strips = {"png": media.png_bytes(frames[0]), "webp": media.animation_bytes(frames, 10, kind="webp")}
  built = report.build(config, inputs, shown, 4.5)
  report.write_report(folder, built, strips, animations)
  return folder, built


class Page(html.parser.HTMLParser):
  """Collects what a page refers to, and checks that tags are closed."""

  VOID = ("meta", "img", "br", "line", "circle", "i")

  def __init__(self):
    super().__init__()
    self.images, self.references, self.text, self.open, self.tags = [], [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in self.VOID:
      self.open.append(tag)
    for name, value in attrs:
      if name == "src":
        self.images.append(value)
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
  assert not page.references and "script" not in page.tags and "link" not in page.tags
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
  assert text.count("PPO: ") == 2  # a chart per task
  assert page.tags.count("svg") >= 3 + 6  # interval per row, and charts
  assert "40 windows (64 were asked for) of 17 frames" in text and "held out from training" in text
  assert "27.12" in text and "0.875" in text and "missing" in text and "constant" in text


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
  assert stored["total_seconds"] == pytest.approx(sum(10 + i for i in range(8)) + 4.5)
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
  report.write_report(folder, report.build(config, inputs, [], 1.0), {}, {})
  page = Page()
  page.feed((folder / "report.html").read_text())
  assert not page.open and not page.images
  assert (folder / "report.md").read_text().splitlines()[0].count("|") == 4


def test_text_is_escaped(made, tmp_path):
  config, inputs = made
  config.experiment = "<script>&"
  folder = tmp_path / "report"
  folder.mkdir()
  report.write_report(folder, report.build(config, inputs, [], 1.0), {}, {})
  page = Page()
  page.feed((folder / "report.html").read_text())
  assert "script" not in page.tags


def test_markdown_has_the_judgement(written):
  text = (written[0] / "report.md").read_text()
  assert "| drawer " in text and "| inverse dynamics " in text and "(open_loop.png)" in text
