"""Report of a run: `report.md`, `report.json`, `report.html`, and the pictures as files.

`open_loop.png` is the strip of true, predicted and error; `rollouts.gif` shows one episode per task.
"""

from __future__ import annotations

import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.core import image
from wam_jax.data import calvin, windows
from wam_jax.io import media, report_page
from wam_jax.io.artifact import Artifact, write_text
from wam_jax.io.logger import Logger, duration, read_metrics
from wam_jax.io.provenance import provenance

REQUIRES = ("collect", "world_model", "featurize", "behaviour_cloning", "classifier", "ppo", "evaluate")
CONFIG = ("seed", "tasks", "report")
FORMAT = 1  # of report.json

WINDOWS_PER_TASK = 4  # of the open-loop PSNR
STRIP_COLUMNS = 8  # imagined frames shown
MAX_PSNR = 60.0  # equal pictures would be infinite
CONTROL_HZ = 30  # of CALVIN, and of everything that follows it
FRAME_STEP = 2  # every second frame of an episode is shown

TITLE = "Skills learned inside a world model"


def run(config: Any, inputs: Mapping[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Draws the pictures and writes the report."""
  began = time.perf_counter()
  workdir.mkdir(parents=True, exist_ok=True)
  with logger.progress(3, "report") as progress:
    open_loop, strip = predict_open_loop(config, inputs)
    if strip is not None:
      media.save_png(workdir / "open_loop.png", strip)
    progress.update()
    shown, animations, grid = draw_rollouts(config, inputs["evaluate"].path / "rollouts.npz")
    media.save_animation(workdir / "rollouts.gif", grid, CONTROL_HZ / FRAME_STEP)
    progress.update()
    report = build(config, inputs, open_loop, shown, time.perf_counter() - began)
    write_report(workdir, report, None if strip is None else media.png_bytes(strip), animations)
    progress.update()


def write_report(
  workdir: pathlib.Path, report: Mapping[str, Any], strip: bytes | None, animations: Mapping[str, bytes]
) -> None:
  """Writes the three forms of the report.

  Args:
    workdir: folder that takes them.
    report: from `build`.
    strip: PNG of the open-loop prediction, or None.
    animations: task -> animated WebP.
  """
  write_text(workdir / "report.json", json.dumps(report, indent=2) + "\n")
  write_text(workdir / "report.md", markdown(report))
  write_text(workdir / "report.html", report_page.render_page(report, strip, animations))


def build(
  config: Any,
  inputs: Mapping[str, Artifact],
  open_loop: Mapping[str, Any] | None,
  rollouts: Sequence[Mapping[str, Any]],
  seconds: float,
) -> dict[str, Any]:
  """All that the report says, as plain values.

  Args:
    config: the run's.
    inputs: stage -> artifact.
    open_loop: from `predict_open_loop`.
    rollouts: from `draw_rollouts`.
    seconds: spent on the report itself.

  Returns:
    Nested dicts and lists, fit for JSON.
  """
  results = json.loads((inputs["evaluate"].path / "results.json").read_text(encoding="utf-8"))
  facts = provenance()
  results = {key: value for key, value in results.items() if key != "config"}
  stages = [{"name": name, "seconds": a.seconds, "peak_bytes": a.peak_bytes} for name, a in inputs.items()]
  stages.append({"name": "report", "seconds": seconds, "peak_bytes": 0})
  return {
    "format": FORMAT,
    "title": TITLE,
    "experiment": config.experiment,
    "preset": config.preset,
    "seed": config.seed,
    "control_hz": CONTROL_HZ,
    "results": results,
    "stages": stages,
    "total_seconds": sum(stage["seconds"] for stage in stages),
    "open_loop": open_loop,
    "rollouts": list(rollouts),
    "classifier": classifier_quality(inputs["classifier"].path / "quality.json"),
    "curves": curves(inputs, results),
    "notes": notes(config, results),
    "provenance": facts,
    "fingerprints": {name: artifact.fingerprint for name, artifact in inputs.items()},
    "config": json.loads(config.to_json_best_effort()),
  }


def classifier_quality(path: pathlib.Path) -> dict[str, dict[str, float | None]] | None:
  """task -> column of the report -> share, from the classifier's `quality.json`; None without the file."""
  if not path.exists():
    return None
  rows = {}
  for task, quality in json.loads(path.read_text(encoding="utf-8"))["tasks"].items():
    columns: dict[str, float | None] = {}
    for group, label in (("heldout_demos", "demos"), ("heldout_demo_dreams", "dreams of demos")):
      columns |= {f"{name}, {label}": quality[group][name] for name in ("precision", "recall")}
    rows[task] = columns | {"random dreams called a success": quality["random_dreams"]["false_positives"]}
  return rows


def notes(config: Any, results: Mapping[str, Any]) -> list[str]:
  """What a reader must know to judge the numbers."""
  row = next(iter(results["policies"].values()))["per_task"]
  episodes = next(iter(row.values()))["n"]
  seconds = results["max_steps"] / CONTROL_HZ
  lines = [
    (
      f"All policies start from the same {episodes} held-out states per task and have {results['max_steps']} "
      f"control steps ({seconds:.1f} s). An episode succeeds as soon as the task's predicate holds."
    ),
    (
      "Imagined success: share of dreams, begun at the same start frames, that the success classifier calls "
      "solved. Gap: imagined minus real, in points; a large gap: dreams are easier than the simulator."
    ),
    (
      "Expert: the scripted controller that recorded the demonstrations, here without noise. "
      "Random weights: the untrained policy network."
    ),
  ]
  if config.env.name == "play_table":
    lines.append(
      "Measured in the embedded play table. Published on CALVIN, at the sizes of the `paper` preset: 71.2 % "
      "cloned and 92.8 % after PPO for WAM, 59.4 % and 79.8 % for DreamerV2. "
      "Numbers of two simulators do not compare."
    )
  lines.append(f"One training run, seed {results['seed']}: the intervals do not cover the spread over seeds.")
  return lines


# --- pictures -------------------------------------------------------------------------------------


def open_loop_windows(
  demos: calvin.Split, tasks: Sequence[str], context: int, length: int
) -> list[tuple[str, tuple[int, int]]]:
  """The last frames, where things move, of up to WINDOWS_PER_TASK demos of each task.

  Args:
    demos: held-out demos.
    tasks: K names.
    context: frames seen; shorter demos are left out.
    length: frames at most.

  Returns:
    (task, (start, end)), the longest windows of each task first.
  """
  chosen = []
  for task in tasks:
    spans = [(max(start, end - length), end) for start, end in demos.windows(task) if end - start > context]
    spans.sort(key=lambda span: span[0] - span[1])
    chosen += [(task, span) for span in spans[:WINDOWS_PER_TASK]]
  return chosen


def predict_open_loop(
  config: Any, inputs: Mapping[str, Artifact]
) -> tuple[dict[str, Any] | None, np.ndarray | None]:
  """Imagines held-out episodes with their true actions and compares.

  Args:
    config: the run's.
    inputs: stage -> artifact.

  Returns:
    (numbers for the report, strip [H, W, 3] uint8), or (None, None) when no held-out demo is long enough
    for one imagined frame.
  """
  from wam_jax.stages.collect import dataset_path
  from wam_jax.stages.world_model import load_world_model
  from wam_jax.train import world_model as wm

  model, params = load_world_model(inputs["world_model"])
  folder = dataset_path(inputs["collect"]) / "validation"
  demos = calvin.read_demos(
    folder, tuple(config.tasks), 3 * WINDOWS_PER_TASK, model.image_size, config.env.workers
  )
  context = config.report.open_loop_context
  chosen = open_loop_windows(demos, config.tasks, context, context + config.report.open_loop_horizon)
  if not chosen:
    return None, None
  length = max(end - start for _, (start, end) in chosen)
  batch = windows.episode_batch(demos.frames, [window for _, window in chosen], length)
  predict = jax.jit(lambda params, batch, key: wm.open_loop(model, params, batch, context, key))
  key = jax.random.key(config.seed)
  predicted = jax.tree.map(np.asarray, predict(params, jax.tree.map(jnp.asarray, batch), key))
  true = {camera: np.asarray(getattr(batch, camera)) for camera in ("rgb_static", "rgb_gripper")}
  mask = np.asarray(batch.mask)
  numbers = compare_open_loop(true, predicted, mask, context)
  row = int(mask.sum(1).argmax())  # the longest window is shown
  end = int(mask[row].sum())
  shown = [{camera: p[row, :end] for camera, p in pictures.items()} for pictures in (true, predicted)]
  strip = open_loop_strip(shown[0], shown[1], context)
  numbers |= {"task": chosen[row][0], "windows": len(chosen)}
  return numbers, strip


def compare_open_loop(
  true: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray], mask: np.ndarray, context: int
) -> dict[str, Any]:
  """PSNR of imagined frames, and of repeating the last frame seen.

  Args:
    true: camera -> [B, T, S, S, 3] uint8.
    predicted: likewise.
    mask: [B, T] bool, false where a window is over; every frame of T belongs to some window.
    context: frames seen, C.

  Returns:
    context, horizon T - C, `psnr` {predicted, repeated}: [T - C] means over windows and cameras in dB,
    `mean_psnr`: means of these over all imagined frames, and `camera_psnr` {camera: that of predicted}.
    Equal pictures count as MAX_PSNR.
  """
  valid = np.asarray(mask)[:, context:]
  values: dict[str, list[np.ndarray]] = {"predicted": [], "repeated": []}
  for camera, pictures in true.items():
    target = np.asarray(pictures[:, context:])
    repeated = np.broadcast_to(pictures[:, context - 1 : context], target.shape)
    for name, guess in (("predicted", predicted[camera][:, context:]), ("repeated", repeated)):
      ratio = np.asarray(image.psnr(jnp.asarray(guess), jnp.asarray(target), 255.0))
      values[name].append(np.where(valid, np.minimum(ratio, MAX_PSNR), 0))
  both = {name: np.mean(cameras, 0) for name, cameras in values.items()}
  return {
    "context": context,
    "horizon": valid.shape[1],
    "psnr": {name: (both[name].sum(0) / valid.sum(0)).round(4).tolist() for name in both},
    "mean_psnr": {name: float(both[name].sum() / valid.sum()) for name in both},
    "camera_psnr": {c: float(v.sum() / valid.sum()) for c, v in zip(true, values["predicted"], strict=True)},
  }


def open_loop_strip(
  true: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray], context: int
) -> np.ndarray:
  """Strip of one window: {camera: [T, S, S, 3] uint8} twice -> [H, W, 3] uint8."""
  length = len(next(iter(true.values())))
  seen = sorted({0, context - 1})
  later = np.unique(np.linspace(context, length - 1, STRIP_COLUMNS).round().astype(int))
  columns = [*seen, *later.tolist()]
  rows = []
  for camera, label in (("rgb_static", "static"), ("rgb_gripper", "wrist")):
    t, p = true[camera][columns], predicted[camera][columns]
    rows += [(f"{label}: true", t), ("predicted", p), ("error", media.error_picture(t, p))]
  labels = [f"{i - context + 1:+d}" if i != context - 1 else "0" for i in columns]
  scale = max(1, round(128 / t.shape[1]))
  return media.make_strip(rows, len(seen), labels, scale)


def draw_rollouts(
  config: Any, path: pathlib.Path
) -> tuple[list[dict[str, Any]], dict[str, bytes], np.ndarray]:
  """Animations of the episodes in `rollouts.npz`.

  Args:
    config: the run's.
    path: written by `stages.evaluate`.

  Returns:
    (facts per episode, task -> animated WebP of both cameras, all tasks' static pictures side by side
    [T, H, W, 3] uint8).
  """
  from wam_jax import envs

  with np.load(path, allow_pickle=False) as file:
    episodes = {name: file[name] for name in file.files}
  render = envs.make_renderer(config.env.name, config.report.animation_size, config.env.workers)
  steps = episodes["steps"].tolist()
  times = [np.unique(np.append(np.arange(0, n + 1, FRAME_STEP), n)) for n in steps]  # the last state always
  states = [
    np.concatenate([episodes[name][k, t] for k, t in enumerate(times)]) for name in ("robot_obs", "scene_obs")
  ]
  borders = np.cumsum([len(t) for t in times])[:-1]
  pictures = {camera: np.split(frames, borders) for camera, frames in render(*states).items()}
  static = pictures["rgb_static"]
  facts, animations = [], {}
  for k, task in enumerate(episodes["task"].tolist()):
    both = np.concatenate([static[k], pictures["rgb_gripper"][k]], 2)
    animations[task] = media.animation_bytes(both, CONTROL_HZ / FRAME_STEP, kind="webp")
    success, episode = bool(episodes["success"][k]), int(episodes["episode"][k])
    facts.append({"task": task, "success": success, "steps": steps[k], "episode": episode})
  longest = max(len(frames) for frames in static)
  padded = [np.concatenate([f, np.repeat(f[-1:], longest - len(f), 0)]) for f in static]
  columns = min(4, len(padded))
  grid = np.stack([media.tile(np.stack([f[t] for f in padded]), columns) for t in range(longest)])
  return facts, animations, grid


# --- curves ---------------------------------------------------------------------------------------


def _series(lines: Sequence[Mapping[str, Any]], name: str, label: str, style: str) -> dict[str, Any] | None:
  points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
  if not points:
    return None
  return {"name": label, "x": [p[0] for p in points], "y": [p[1] for p in points], "style": style}


def _chart(
  title: str, x_label: str, series: Sequence[dict[str, Any] | None], **options: Any
) -> list[dict[str, Any]]:
  there = [one for one in series if one is not None]
  return [{"title": title, "x_label": x_label, "series": there, **options}] if there else []


def _per_task(
  lines: Sequence[Mapping[str, Any]], pattern: str, tasks: Sequence[str]
) -> list[dict[str, Any] | None]:
  """Series of the metrics that match, one per task where `pattern` has a {task}, else one of its own."""
  names = {name for line in lines for name in line}
  found = []
  for k, task in enumerate(tasks):
    matching = sorted(n for n in names if re.fullmatch(pattern.format(task=task), n))
    found += [_series(lines, n, report_page.title_of(task), f"s{k % 8}") for n in matching[:1]]
  return found


def curves(inputs: Mapping[str, Artifact], results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Learning curves of all training stages, from their `metrics.jsonl`.

  Returns:
    Charts: title, x_label, series (name, x, y, style, dots), and options of `io.charts.line_chart`.
  """
  tasks = results["tasks"]
  lines = {stage: read_metrics(artifact.path) for stage, artifact in inputs.items()}
  w, prefix = lines["world_model"], "world_model/"
  charts = _chart(
    "World model: picture loss",
    "update",
    [
      _series(w, prefix + "loss/image", "from features", "s0"),
      _series(w, prefix + "loss/embedding_image", "from embeddings", "s1"),
    ],
    log_y=True,
  )
  charts += _chart(
    "World model: KL, nats", "update", [_series(w, prefix + "loss/kl", "balanced KL", "s0")], log_y=True
  )
  charts += _chart(
    "World model: inverse dynamics, squared error",
    "update",
    [
      _series(w, prefix + "inverse_dynamics/error_translation", "translation", "s0"),
      _series(w, prefix + "inverse_dynamics/error_rotation", "rotation", "s1"),
      _series(w, prefix + "inverse_dynamics/error_gripper", "gripper", "s2"),
    ],
    log_y=True,
  )
  charts += _chart(
    "World model: PSNR of reconstructions, dB", "update", [_series(w, prefix + "image/psnr", "PSNR", "s2")]
  )
  for stage, title in (
    ("behaviour_cloning", "Cloning: noise prediction loss"),
    ("classifier", "Classifier: loss"),
  ):
    of_tasks = _per_task(lines[stage], stage + r"/{task}/(loss|loss/total)", tasks)
    of_all = [_series(lines[stage], f"{stage}/{name}", "all tasks", "s0") for name in ("loss", "loss/total")]
    charts += _chart(title, "update", of_tasks if any(of_tasks) else of_all, log_y=True)
  ppo = lines["ppo"]
  last = max((line["step"] for line in ppo), default=0)
  for task in tasks:
    imagined = _series(ppo, f"ppo/{task}/imagined_success", "imagined, exploring", "imagined")
    if imagined is None:
      continue
    real = _series(ppo, f"ppo/{task}/real_success", "real", "ppo")
    rates = {name: results["policies"][name]["per_task"][task]["rate"] for name in ("cloned", "ppo")}
    dots = [
      {"name": "real, cloned", "x": [0], "y": [rates["cloned"]], "style": "cloned", "dots": True},
      {"name": "real, after PPO", "x": [last], "y": [rates["ppo"]], "style": "ppo", "dots": True},
    ]
    title = f"PPO: {report_page.title_of(task)}"
    charts += _chart(title, "iteration", [imagined, real, *dots], percent=True, y_range=[0, 1])
  return charts


# --- Markdown -------------------------------------------------------------------------------------


def _with_interval(row: Mapping[str, Any]) -> str:
  return f"{100 * row['rate']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def result_rows(results: Mapping[str, Any]) -> list[list[str]]:
  """The result table as text, header first, one row per task, the mean last. Numbers are percent."""
  policies = results["policies"]
  dreamed = "imagined" in policies["ppo"]["mean"]
  plain = [
    (name, head) for name, head in (("expert", "Expert"), ("random", "Random weights")) if name in policies
  ]
  heads = ["Success in %", *(head for _, head in plain), "Cloned (95 %)", "After PPO (95 %)"]
  table = [heads + (["Imagined", "Gap"] if dreamed else [])]
  for task in (*results["tasks"], None):
    rows = {name: p["mean"] if task is None else p["per_task"][task] for name, p in policies.items()}
    cells = ["**Mean**" if task is None else task]
    cells += [f"{100 * rows[name]['rate']:.1f}" for name, _ in plain]
    cells += [_with_interval(rows["cloned"]), _with_interval(rows["ppo"])]
    if dreamed:
      cells += [f"{100 * rows['ppo']['imagined']:.1f}", f"{100 * rows['ppo']['gap']:+.1f}"]
    table.append(cells)
  return table


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
  """Rows, header first, as a Markdown table whose columns line up in a terminal too."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

  def align(row: Sequence[str]) -> str:
    cells = [
      c.rjust(width) if i else c.ljust(width) for i, (c, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"

  rule = "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths))
  return "\n".join([align(rows[0]), f"|{rule}|", *(align(row) for row in rows[1:])])


def markdown(report: Mapping[str, Any]) -> str:
  """The report as Markdown; begins with the result table, which the main job prints."""
  results = report["results"]
  parts = [markdown_table(result_rows(results)), ""]
  change = results.get("ppo_minus_cloned")
  if change:
    points = {name: f"{100 * value:+.1f}" for name, value in change.items()}
    parts += [
      (
        f"PPO in imagination changed the mean by {points['difference']} points "
        f"(95 % interval {points['low']} to {points['high']}, paired over the same start states)."
      ),
      "",
    ]
  if report["open_loop"]:
    psnr = report["open_loop"]["mean_psnr"]
    parts += [
      (
        f"Open-loop PSNR over {report['open_loop']['horizon']} imagined frames: {psnr['predicted']:.2f} dB "
        f"({psnr['repeated']:.2f} dB when the last frame seen is repeated)."
      ),
      "",
      "![true, predicted, error](open_loop.png)",
      "",
    ]
  parts += ["![one episode per task](rollouts.gif)", "", "## Time of each stage", ""]
  times = [["Stage", "Time"], *([stage["name"], duration(stage["seconds"])] for stage in report["stages"])]
  times.append(["**Together**", duration(report["total_seconds"])])
  parts += [markdown_table(times), "", "## Notes", "", *(f"- {note}" for note in report["notes"]), ""]
  facts = report["provenance"]
  parts += [
    "## How it was made",
    "",
    f"- `{facts['command']}`",
    f"- wam_jax {facts['wam_jax']}" + (f", commit {facts['commit']}" if facts["commit"] else ""),
    f"- {report['experiment']}, preset {report['preset']}, seed {report['seed']}, {facts['date']}",
    f"- {facts['cpu']}, {facts['cores']} cores; Python {facts['python']}; "
    + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    "",
  ]
  return "\n".join(parts)
