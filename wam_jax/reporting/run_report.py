"""Report of a run: `report.md`, `report.json`, `report.html`, and the pictures as files.

`open_loop.png` is the strip of stage judge_world_model; `rollouts.gif` shows one episode per task.
`rollouts/` has each episode that the page shows as a file, also as mp4 where PyAV is installed.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import wam_jax
from wam_jax.acting import episodes as episodes_lib
from wam_jax.acting.policy_table import COMPARED, POLICIES, SELECTED
from wam_jax.envs import registry
from wam_jax.host import tables
from wam_jax.host.provenance import provenance
from wam_jax.host.tables import markdown_table
from wam_jax.host.words import count, duration
from wam_jax.reporting import certificate_page, diagnosis, media, report_page, unsimulated
from wam_jax.reporting.certificate_page import left_as_cloned, read_certificate
from wam_jax.reporting.curves import curves
from wam_jax.reporting.finished_run import Run
from wam_jax.storage.artifact import Artifact, ArtifactError, read_artifact, write_text
from wam_jax.storage.records import read_record

FORMAT = 3  # of report.json

WHAT = "Skills learned inside a world model"

Animation = Mapping[str, bytes]  # webp, and mp4 where it can be made -> the file


def rebuild(run: Run, out: pathlib.Path) -> list[str]:
  """Makes the page of a finished run again; no stage runs, nothing else is written.

  Args:
    run: the run.
    out: file to write.

  Returns:
    What is missing on the page, and why.
  """
  missing = list(run.missing)
  shown: list[dict[str, Any]] = []
  animations: list[Animation] = []
  try:
    if "evaluate" in run.inputs:
      registry.check_known(run.config.env)
      config = ConfigDict(run.config.to_dict())
      config.env.update(registry.without_code(run.config.env))
      shown, animations, _ = draw_rollouts(config, run.inputs["evaluate"].path / "rollouts.npz")
  except (ArtifactError, ImportError, OSError, ValueError, RuntimeError) as error:  # or no simulator is here
    missing.append(f"no animations of episodes: {str(error).strip().splitlines()[0]}")
  report_artifact = read_artifact(run.workdir / "report")
  seconds = report_artifact.seconds if report_artifact is not None and report_artifact.done else None
  report = build(run.config, run.inputs, shown, seconds, run.results.get("provenance"))
  report["notes"].append(f"Page made again from the run's files, by wam_jax {wam_jax.__version__}.")
  report["notes"] += [f"Missing here: {line}." for line in missing]
  write_text(out, report_page.render_page(report, run.strips(), animations, diagnosis.link(out.parent)))
  return missing


def write_report(
  workdir: pathlib.Path,
  report: Mapping[str, Any],
  strips: Mapping[str, bytes],
  animations: Sequence[Animation],
) -> None:
  """Writes the three forms of the report.

  Args:
    workdir: folder that takes them.
    report: from `build`.
    strips: png and webp -> the open-loop prediction as a strip and as an animation.
    animations: of each of the report's rollouts.
  """
  for shown, animation in zip(report["rollouts"], animations, strict=True):
    (workdir / "rollouts").mkdir(exist_ok=True)
    name = f"{shown['task']}_{'success' if shown['success'] else 'failure'}"
    for kind, content in animation.items():
      (workdir / "rollouts" / f"{name}.{kind}").write_bytes(content)
  write_text(workdir / "report.json", json.dumps(report, indent=2) + "\n")
  write_text(workdir / "report.md", markdown(report))
  write_text(
    workdir / "report.html", report_page.render_page(report, strips, animations, diagnosis.link(workdir))
  )


def build(
  config: Any,
  inputs: Mapping[str, Artifact],
  rollouts: Sequence[Mapping[str, Any]],
  seconds: float | None,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """All that the report says, as plain values.

  Args:
    config: the run's.
    inputs: stage -> artifact.
    rollouts: from `draw_rollouts`.
    seconds: spent on the report itself; None: not known.
    facts: where the run came from; None: from here and now.

  Returns:
    Nested dicts and lists, fit for JSON.
  """
  if evaluated := inputs.get("evaluate"):
    results = read_record(evaluated.path, "results.json")
  else:
    results = unsimulated.results_of(config, inputs["ppo"])
  control_hz = inputs["world_model"].embodiment.control_hz
  judge = read_record(inputs["judge_world_model"].path, "judge.json")
  judged = inputs["classifier"].path
  quality = read_record(judged, "quality.json") if (judged / "quality.json").exists() else {"tasks": {}}
  results = {key: value for key, value in results.items() if key != "config"}
  certificate = read_certificate(inputs.get("certify"))
  stages = [{"name": name, "seconds": a.seconds, "peak_bytes": a.peak_bytes} for name, a in inputs.items()]
  if seconds is not None:
    stages.append({"name": "report", "seconds": seconds, "peak_bytes": 0})
  run = (evaluated or inputs["ppo"]).path.resolve().parent.name
  report: dict[str, Any] = {
    "format": FORMAT,
    "title": f"{run}: {config.experiment}, preset {config.preset}, seed {config.seed}",
    "what": WHAT,
    "experiment": config.experiment,
    "preset": config.preset,
    "seed": config.seed,
    "control_hz": control_hz,
    "results": results,
    "stages": stages,
    "total_seconds": sum(stage["seconds"] for stage in stages),
    "judge": {key: value for key, value in judge.items() if key != "provenance"},
    "rollouts": list(rollouts),
    "classifier": classifier_quality(quality),
    "quality": quality,
    "discrimination": tables.discrimination_rows(quality) if "discrimination" in quality else None,
    "certificate": certificate,
    "left_as_cloned": left_as_cloned(inputs["ppo"]),
    "curves": curves(inputs, results),
    "notes": notes(config, results, control_hz),
    "starts": starts(config, results),
    "provenance": dict(facts or provenance()),
    "fingerprints": {name: artifact.fingerprint for name, artifact in inputs.items()},
    "config": json.loads(config.to_json_best_effort()),
  }
  return report | {"diagnosis": diagnosis.diagnose(report)}


def starts(config: Any, results: Mapping[str, Any]) -> dict[str, str]:
  """Where dreams begin, next to where the evaluation does, in words.

  Returns:
    imagined: of the imagined success beside the real one, if this was measured; ppo: of the dreams that PPO
    learned from.
  """
  dreams, frames, share = config.evaluate.imagined_episodes, config.ppo.start_frames, config.ppo.failed_starts
  begin = (
    "any frame" if frames == 0 else "the first frame" if frames == 1 else f"one of the first {frames} frames"
  )
  failed = f", and {100 * share:.0f} % of them at any frame of a take that failed" if share else ""
  if not results["policies"]:
    return {"ppo": f"PPO's dreams begin at {begin} of a training demo before success{failed}."}
  episodes = next(iter(results["policies"]["ppo"]["per_task"].values()))["n"]
  used = f"the first {dreams} of the" if dreams < episodes else "the"
  return {
    "imagined": (
      f"Imagined: {count(dreams, 'dream')} per task from {used} start frames of these very episodes"
      + ("; none begins in a failed take, as some of PPO's dreams do." if share else ".")
    ),
    "ppo": (
      f"The dreams that PPO learns from begin elsewhere than the evaluation: at {begin} of a training demo "
      f"before success{failed}. The evaluation has {count(episodes, 'held-out start')} per task, none "
      "in a take."
    ),
  }


def classifier_quality(content: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """task -> column of the report -> share, from the content of the classifier's `quality.json`."""
  rows = {}
  for task, quality in content["tasks"].items():
    columns: dict[str, float | None] = {}
    for group, label in (("heldout_demos", "demos"), ("heldout_demo_dreams", "dreams of demos")):
      names = ("precision", "recall", "calibration_error")
      columns |= {f"{name.replace('_', ' ')}, {label}": quality[group][name] for name in names}
    rows[task] = columns | {"random dreams called a success": quality["random_dreams"]["false_positives"]}
  return rows


def notes(config: Any, results: Mapping[str, Any], control_hz: float) -> list[str]:
  """What a reader must know to judge the numbers."""
  of_seed = f"One training run, seed {results['seed']}: the intervals do not cover the spread over seeds."
  if not results["policies"]:
    return [*unsimulated.notes(config), of_seed]
  row = next(iter(results["policies"].values()))["per_task"]
  episodes = next(iter(row.values()))["n"]
  seconds = results["max_steps"] / control_hz
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
  if "ppo_imagined" in results["policies"]:
    lines.append(
      "Best imagined: of each task the policy of the PPO iteration, the cloned one among them, with the "
      "highest success in dreams from held-out demos; no simulator is needed to find it. Best in simulator: "
      "that with the highest success from other start states than those of this table."
    )
  if config.env.name == "play_table":
    lines.append(
      "Measured in the embedded play table. Published on CALVIN, at the sizes of the `paper` preset: 71.2 % "
      "cloned and 92.8 % after PPO for WAM, 59.4 % and 79.8 % for DreamerV2. "
      "Numbers of two simulators do not compare."
    )
  return [*lines, of_seed]


# --- pictures -------------------------------------------------------------------------------------


def draw_episodes(
  config: Any, episodes: Mapping[str, Any], steps: Sequence[int]
) -> dict[str, list[np.ndarray]]:
  """Pictures of recorded episodes, every `media.FRAME_STEP`-th frame and the last.

  Args:
    config: the run's, or a study's.
    episodes: as `acting.episodes.draw_episodes` takes them.
    steps: that each took.

  Returns:
    camera -> of each episode [T', S, S, 3] uint8, S = `report.animation_size` or what the simulator draws.
  """
  times = [media.shown_times(n) for n in steps]  # the last state always
  size, workers = config.report.animation_size, config.env.workers
  return episodes_lib.draw_episodes(registry.load(config.env), episodes, times, size, workers)


def draw_rollouts(
  config: Any, path: pathlib.Path
) -> tuple[list[dict[str, Any]], list[Animation], np.ndarray]:
  """Animations of the episodes in `rollouts.npz`, and of the dreams beside them where there are.

  Args:
    config: the run's.
    path: written by `stages.evaluate`.

  Returns:
    (facts per episode, animation of each: both cameras and the dream; static pictures of the first episode of
    each task side by side [T, H, W, 3] uint8).
  """
  episodes_lib.read_episodes(path, ("robot_obs", "start", "steps", "task", "success", "episode"))
  episodes = episodes_lib.read_episodes(path)
  control_hz = registry.load(config.env).embodiment.control_hz
  dreamt = "dream" in episodes  # runs of older versions have none
  steps, tasks = episodes["steps"].tolist(), episodes["task"].tolist()
  pictures = draw_episodes(config, episodes, steps)
  ends = np.cumsum([len(media.shown_times(n)) for n in steps])
  facts: list[dict[str, Any]] = []
  animations: list[Animation] = []
  for k, task in enumerate(tasks):
    shown = {camera: films[k] for camera, films in pictures.items()}
    names = list(shown)
    if dreamt:
      length, size = shown[names[0]].shape[:2]
      names.insert(1 + names.index(str(episodes["dream_camera"])), "dream")
      shown["dream"] = media.resize(episodes["dream"][ends[k] - length : ends[k]], size)
    animations.append(
      media.film(np.concatenate([shown[name] for name in names], 2), control_hz / media.FRAME_STEP)
    )
    success, episode = bool(episodes["success"][k]), int(episodes["episode"][k])
    fact = {"task": task, "success": success, "steps": steps[k], "episode": episode}
    dream = {"dream_success": bool(episodes["dream_success"][k])} if dreamt else {}
    facts.append(fact | dream | {"shown": [tables.CAMERA_NAMES.get(name, name) for name in names]})
  firsts = [next(iter(pictures.values()))[tasks.index(task)] for task in dict.fromkeys(tasks)]
  return facts, animations, media.side_by_side(firsts, min(4, len(firsts)))


# --- Markdown -------------------------------------------------------------------------------------


def _with_interval(row: Mapping[str, Any]) -> str:
  return f"{100 * row['rate']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def result_rows(results: Mapping[str, Any]) -> list[list[str]]:
  """The result table as text, header first, one row per task, the mean last. Numbers are percent."""
  policies = results["policies"]
  if not policies:
    return unsimulated.rows(results)
  dreamed = "imagined" in policies["ppo"]["mean"]
  plain = [name for name in ("expert", "random") if name in policies]
  spread = [*COMPARED, *(name for name in SELECTED.values() if name in policies)]
  heads = ["Success in %", *(POLICIES[name].heading for name in plain)]
  heads += [f"{POLICIES[name].heading} (95 %)" for name in spread]
  table = [heads + (["Imagined", "Gap"] if dreamed else [])]
  for task in (*results["tasks"], None):
    rows = {name: p["mean"] if task is None else p["per_task"][task] for name, p in policies.items()}
    cells = ["**Mean**" if task is None else task]
    cells += [f"{100 * rows[name]['rate']:.1f}" for name in plain]
    cells += [_with_interval(rows[name]) for name in spread]
    if dreamed:
      cells += [f"{100 * rows['ppo']['imagined']:.1f}", f"{100 * rows['ppo']['gap']:+.1f}"]
    table.append(cells)
  return table


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
  parts += [f"{report['starts'][kind]}" + "\n" for kind in report["starts"]]
  said = [
    f"- {m['colour']}: {m['label']}: {m['meaning']}. {m['numbers']}. ({diagnosis.GUIDE}#{m['anchor']})"
    for m in diagnosis.messages(report)
  ]
  parts += ["## What is wrong", "", *(said or ["Every number that has a rule is green."]), ""]
  for task, difference in report["left_as_cloned"].items():
    parts += [f"- {certificate_page.left_sentence(task, difference)}", ""]
  if report["certificate"]:
    parts += ["## Certificate", "", tables.CERTIFICATE, ""]
    parts += [markdown_table(tables.certificate_rows(report["certificate"])), ""]
    reasons = tables.certificate_reasons(report["certificate"]).items()
    parts += [*(f"- {task}: {reason}" for task, reason in reasons), ""]
  if report["discrimination"]:
    parts += ["## What dreams can tell apart", "", tables.DISCRIMINATION, ""]
    parts += [markdown_table(report["discrimination"]), ""]
  judge = report["judge"]
  parts += ["## The world model by itself", "", tables.described(judge), ""]
  for _, rows in tables.judge_tables(judge):
    parts += [markdown_table(rows), ""]
  parts += [
    "![true, predicted, error](open_loop.png)",
    "",
    *(("![one episode per task](rollouts.gif)", "") if report["rollouts"] else ()),
    "## Time of each stage",
    "",
  ]
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
    f"- {facts['cpu']}, {count(facts['cores'], 'core')}; Python {facts['python']}; "
    + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    "",
  ]
  return "\n".join(parts)
