"""What a judge of world models says: tables with their notes, and the open-loop strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.host import tables
from wam_jax.reporting import media

STRIP_FRAMES = 4  # imagined frames shown besides those of the horizons
FPS = 10  # of the animated strip: a third of real time


def draw_strip(
  pictures: Mapping[str, tuple[np.ndarray, np.ndarray]], context: int, horizons: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """One window as a strip and as an animation.

  Args:
    pictures: camera -> (true, predicted) [T, S, S, 3] uint8.
    context: C, frames seen.
    horizons: frames imagined that are shown, besides some between.

  Returns:
    (strip [H, W, 3], animation [T, H', W', 3]): true, predicted and error of each camera.
  """
  length, size = next(iter(pictures.values()))[0].shape[:2]
  context_frames = sorted({0, context - 1})
  between = np.linspace(context, length - 1, min(STRIP_FRAMES, length - context)).round().astype(int)
  later = sorted({*between.tolist(), *(context - 1 + h for h in horizons if context - 1 + h < length)})
  columns, scale = [*context_frames, *later], max(1, round(128 / size))
  rows, films = [], []
  for camera, (true, predicted) in pictures.items():
    error = media.error_picture(true, predicted)
    shown = (
      (f"{tables.CAMERA_NAMES.get(camera, camera)}: true", true),
      ("predicted", predicted),
      ("error", error),
    )
    rows += [(label, film[columns]) for label, film in shown]
    films.append([film for _, film in shown])
  labels = [f"{i - context + 1:+d}" if i != context - 1 else "0" for i in columns]
  strip = media.make_strip(rows, len(context_frames), labels, scale)
  frames = []
  for t in range(length):
    colour = media.CONTEXT_COLOUR if t < context else media.IMAGINED_COLOUR
    cells = [media.add_border(media.upscale(film[t], scale), colour, 3) for row in films for film in row]
    frames.append(media.tile(np.stack(cells), len(films[0]), 6))
  return strip, np.stack(frames)


def notes(judge: Mapping[str, Any]) -> list[str]:
  """What a reader must know to judge the numbers."""
  facts, targets = judge["data"], judge["targets"]
  shares = [
    f"{name} {100 * target['mean']:.0f} %"
    for name, target in targets.items()
    if target["score"] == "balanced accuracy"
  ]
  lines = [
    tables.described(judge),
    "Windows at the horizons: "
    + ", ".join(f"{n} at {h}" for h, n in zip(judge["horizons"], judge["windows_at_horizons"], strict=True))
    + ". `missing`: no window is long enough.",
    (
      f"A balanced accuracy over {facts['windows']} windows has a standard error of about "
      f"{0.5 / facts['windows'] ** 0.5:.2f}, more where windows of one episode are alike."
    ),
    "R²: 1 is perfect, 0 as good as the mean of all held-out frames. Balanced accuracy: 0.5 is chance. "
    "`constant`: the quantity does not change there. "
    + (f"On in the held-out frames: {', '.join(shares)}. " if shares else "")
    + "The first frames of a window, which are the context, are not read.",
  ]
  if facts["kind"] != "play":
    lines.append(f"The held-out frames are not play but {facts['kind']}.")
  for model in judge["models"]:
    if not model["same_data"]:
      lines.append(f"{model['name']} was trained on other data than that of this run.")
    if model["inverse_dynamics_input"] == "feature":
      lines.append(f"{model['name']}: inverse dynamics on features, which hold the action already.")
  return lines


def markdown(judge: Mapping[str, Any]) -> str:
  """judge.md."""
  parts = [f"# {judge['models'][0]['name']}", ""]
  for _, rows in tables.judge_tables(judge):
    parts += [tables.markdown_table(rows), ""]
  parts += ["![true, predicted, error](strip.png)", "", *(f"- {line}" for line in notes(judge)), ""]
  return "\n".join(parts)


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
  """comparison.md."""
  table = tables.markdown_table(tables.comparison_rows(comparison))
  paths = [f"- {model['name']}: {model['path']}" for model in comparison["models"]]
  lines = [f"- {line}" for line in notes(comparison)]
  return "\n".join(["# World models compared", "", table, "", *paths, *lines, ""])
