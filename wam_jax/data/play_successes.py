"""Successes within play: windows that end where a task got done.

Play is recorded without a goal, and still opens drawers and lights lamps. Where demos are few, these windows
are cloned like demos. The tasks' own predicates find them, or, for robots that have none, the success
classifier that was trained on the demos and failed takes. It does not learn from them itself: they make its
dreams easier, not truer.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from wam_jax.data import calvin
from wam_jax.data.files import DatasetError
from wam_jax.envs import tasks as task_rules

BEFORE = 40  # frames of a window before success; the task is judged relative to the first of them
AFTER = 10  # frames from success on, as in recorded demos
LEAST = 8  # frames before success that a window must have
# Of the classifier's log-odds above its threshold. It knows no play, and calls most of what succeeds there a
# failure. Chosen on two world models: eight of ten such peaks are right, half of the successes have one.
DOUBT = -10.0
APART = 30  # frames: of peaks nearer to each other only the highest counts


def success_windows(task: str, scene_obs: np.ndarray) -> list[tuple[int, int]]:
  """Windows of one episode in which a task gets done.

  Args:
    task: its name.
    scene_obs: [T, 24], of one episode.

  Returns:
    (start, end), one past the last frame; the task is not done at `start` and is done at `end - 1`. No two
    overlap.
  """
  windows: list[tuple[int, int]] = []
  frame = LEAST
  while frame < len(scene_obs):
    earliest = max(windows[-1][1] if windows else 0, frame - BEFORE)
    starts = scene_obs[earliest : frame - LEAST + 1]
    since = task_rules.success(task, starts, scene_obs[frame])  # which of them see the task done
    if since.any():
      first = earliest + int(since.argmax())
      holds = task_rules.success(task, scene_obs[first], scene_obs[first : frame + AFTER])
      if holds[frame - first :].all() and not holds[: frame - first].any():
        windows.append((first, first + len(holds)))
        frame += AFTER
    frame += 1
  return windows


def peak_windows(score: np.ndarray) -> list[tuple[int, int, int]]:
  """Windows of one episode in which the classifier sees a task get done.

  Args:
    score: [T], its log-odds of success above its threshold.

  Returns:
    (start, frame, end) of each peak of the score over DOUBT, smoothed over three frames; `end` is one past
    the last frame. No two overlap.
  """
  windows: list[tuple[int, int, int]] = []
  smooth = np.convolve(np.pad(score, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
  last = 0
  for frame in np.flatnonzero(smooth > DOUBT).tolist():
    start = max(last, frame - BEFORE)
    if frame - start >= LEAST and smooth[frame] >= smooth[max(0, frame - APART) : frame + APART + 1].max():
      last = min(frame + AFTER, len(score))
      windows.append((start, frame, last))
  return windows


def free_of_demos(window: tuple[int, int], task: str, annotated: Sequence[tuple[str, int, int]]) -> bool:
  """Whether a window (first id, one past the last) shares no frame with a demo of the task."""
  return not any(name == task and low < window[1] and high > window[0] for name, low, high in annotated)


def find_successes(
  folder: pathlib.Path, tasks: Sequence[str], limit: int, workers: int = 0
) -> tuple[list[str], np.ndarray]:
  """Where play of a split does the tasks.

  Args:
    folder: a split. Annotated windows of a task are its demos, not play.
    tasks: in the order of the result.
    limit: at most so many windows of each task, spread evenly over the split.
    workers: threads; 0 means one per core.

  Returns:
    Tasks [W], and [W, 2] first and last frame id of each window, both included.

  Raises:
    DatasetError: a frame is missing or damaged or has no scene_obs, or play does none of the tasks.
  """
  episodes = calvin.read_episode_ids(folder)
  scene_obs = calvin.read_vectors(folder, "scene_obs", workers)
  annotated = calvin.read_raw_annotations(folder)
  lengths = episodes[:, 1] - episodes[:, 0] + 1
  names: list[str] = []
  spans: list[tuple[int, int]] = []
  for task in tasks:
    found = [
      (first + low, first + high - 1)
      for first, scene in zip(episodes[:, 0], np.split(scene_obs, np.cumsum(lengths)[:-1]), strict=True)
      for low, high in success_windows(task, scene)
      if free_of_demos((first + low, first + high), task, annotated)
    ]
    rows = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    names += [task] * len(rows)
    spans += [found[row] for row in rows]
  if not spans:
    raise DatasetError(
      folder, "its play does none of the tasks.", key="scene_obs", fix="set data.play_successes_per_task=0."
    )
  return names, np.array(spans, np.int64)
