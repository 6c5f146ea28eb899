"""Judges a world model without a policy: open-loop prediction, linear probes, inverse dynamics.

The robot's hand is measured against a linear recursion, furniture and lamps against keeping the last reading,
both on held-out play and on held-out takes of the skills.

Files: `judge.json` (all numbers), `judge.md`, `strip.png` and `strip.webp` (a held-out window as it was and
as it was imagined). `config.judge.compare` names other world models, which are judged on the same data:
`comparison.json`, `comparison.md`. A comparison is made again when the stage is finished already.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.host import tables
from wam_jax.host.provenance import provenance
from wam_jax.reporting import media
from wam_jax.reporting.judge_text import FPS, comparison_markdown, draw_strip, markdown
from wam_jax.running.judge import judge_model, read_data
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.artifact import Artifact, load_artifact, write_text
from wam_jax.storage.records import read_record, write_record

FORMAT = 3  # of judge.json and comparison.json


class JudgeError(Exception):
  """World models that cannot be compared; the text says why."""


def run(stage: StageRun) -> None:
  """Judges the run's world model and those of `config.judge.compare`."""
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  workdir.mkdir(parents=True, exist_ok=True)
  world_model = inputs["world_model"]
  compared = [load_artifact(path, "world_model") for path in config.judge.compare]
  check_comparable([world_model, *compared])
  data = None
  judge = _read(workdir, "judge.json")
  if judge is None:
    data = read_data(config, inputs["collect"], world_model, logger)
    model, pictures = judge_model(config, world_model, data, logger)
    judge = data.facts | {"models": [model | {"same_data": _same_data(world_model, inputs)}]}
    judge |= {"format": FORMAT, "seed": config.seed, "provenance": provenance()}
    strip, animation = draw_strip(pictures, judge["context"], judge["horizons"])
    media.save_png(workdir / "strip.png", strip)
    media.save_animation(workdir / "strip.webp", animation, FPS)
    write_text(workdir / "judge.md", markdown(judge))
    logger.truncate_after(-1)  # of a run that was killed just before it was done
    logger.write(0, metrics(judge))
    write_record(workdir, "judge.json", judge)
  for _, rows in tables.judge_tables(judge):
    logger.info("\n" + tables.markdown_table(rows))
  if not compared:
    return

  judged = (_read(workdir, "comparison.json") or {"models": []})["models"][1:]
  models = list(judge["models"])
  for candidate in compared:
    entry = next((row for row in judged if row["fingerprint"] == candidate.fingerprint), None)
    if entry is None:
      data = data or read_data(config, inputs["collect"], world_model, logger)
      entry, _ = judge_model(config, candidate, data, logger)
    models.append(entry | {"path": str(candidate.path), "same_data": _same_data(candidate, inputs)})
  comparison = judge | {"models": name_models(models), "provenance": provenance()}
  write_record(workdir, "comparison.json", comparison)
  write_text(workdir / "comparison.md", comparison_markdown(comparison))
  logger.info("\n" + tables.markdown_table(tables.comparison_rows(comparison)))


def _read(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
  return read_record(workdir, name) if (workdir / name).exists() else None


def _same_data(artifact: Artifact, inputs: Mapping[str, Artifact]) -> bool:
  foreign = artifact.config.get("inputs", {}).get("lumos_checkpoint")
  return not foreign and artifact.inputs.get("collect") == inputs["collect"].fingerprint


def check_comparable(artifacts: Sequence[Artifact]) -> None:
  """Numbers of pictures compare only at one size and for the same cameras.

  Raises:
    JudgeError: naming what differs from the first.
  """
  first = artifacts[0]
  cameras = lambda a: tuple(a.config["world_model"].get("cameras", ("rgb_static", "rgb_gripper")))
  for model in artifacts[1:]:
    sizes = [a.config["env"]["image_size"] for a in (first, model)]
    if sizes[0] != sizes[1]:
      raise JudgeError(
        f"{model.path}: a world model of {sizes[1]} x {sizes[1]} pixels cannot be compared with one of "
        f"{sizes[0]} x {sizes[0]} ({first.path}): PSNR and SSIM depend on the size of the pictures."
      )
    if cameras(first) != cameras(model):
      raise JudgeError(
        f"{model.path}: a world model of the cameras {', '.join(cameras(model))} cannot be compared with one "
        f"of {', '.join(cameras(first))} ({first.path})."
      )


def name_models(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The models with different names: a number is put behind those that are equal."""
  names = [model["name"] for model in models]
  return [
    dict(model) | {"name": model["name"] if names.count(model["name"]) == 1 else f"{model['name']} {i}"}
    for i, model in enumerate(models, 1)
  ]


def metrics(judge: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of the first model as metrics; what is missing or constant is left out."""
  model, out = judge["models"][0], {}
  for i, horizon in enumerate(judge["horizons"]):
    for camera, scores in model["open_loop"].items():
      for kind in ("psnr", "ssim"):
        out[f"{kind}/{camera}_{horizon}"] = scores[kind][i]
    for name, probe in model["probes"].items():
      out[f"probe/{name}_imagined_{horizon}"] = probe["imagined"][i]
  for name, probe in model["probes"].items():
    out[f"probe/{name}_posterior"] = probe["posterior"]
  for name, errors in model["inverse_dynamics"].items():
    out[f"inverse_dynamics/error_{name}"] = errors["error"]
  for i, horizon in enumerate(judge["horizons"]):
    for name, hand in model["hand"].items():
      out[f"hand/{name}_imagined_{horizon}"] = (hand["imagined"][i] or {}).get("rms")
  return {f"judge_world_model/{name}": value for name, value in out.items() if isinstance(value, float)}
