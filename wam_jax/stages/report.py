"""The report of a run, from what its stages left."""

from __future__ import annotations

import shutil
import time
from typing import Any

from wam_jax.host.provenance import provenance
from wam_jax.host.regular_files import read_bytes
from wam_jax.reporting import media, run_report, unsimulated
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.records import write_record


def run(stage: StageRun) -> None:
  """Draws the pictures and writes the report."""
  config, inputs, workdir = stage.config, stage.inputs, stage.workdir
  began = time.perf_counter()
  workdir.mkdir(parents=True, exist_ok=True)
  judged = inputs["judge_world_model"].path
  shutil.copyfile(judged / "strip.png", workdir / "open_loop.png")
  with stage.logger.progress(2, "report") as progress:
    shown: list[dict[str, Any]] = []
    animations: list[run_report.Animation] = []
    if evaluated := inputs.get("evaluate"):
      shown, animations, grid = run_report.draw_rollouts(config, evaluated.path / "rollouts.npz")
      media.save_animation(workdir / "rollouts.gif", grid, evaluated.embodiment.control_hz / media.FRAME_STEP)
    else:
      results = unsimulated.results_of(config, inputs["ppo"]) | {"provenance": provenance()}
      write_record(workdir, "results.json", results)
    progress.update()
    report = run_report.build(config, inputs, shown, time.perf_counter() - began)
    strips = {name: read_bytes(judged / f"strip.{name}") for name in ("png", "webp")}
    run_report.write_report(workdir, report, strips, animations)
    progress.update()
