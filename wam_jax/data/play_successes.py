"""Successes within play: windows that end where a task got done, found by the tasks' own predicates.

Play is recorded without a goal, and still opens drawers and lights lamps. Where demos are few, these windows
are cloned like demos. The success classifier does not see them: they make its dreams easier, not truer.
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
    demos = np.array([(low, high) for name, low, high in annotated if name == task]).reshape(-1, 2)
    found = [
      (first + low, first + high - 1)
      for first, scene in zip(episodes[:, 0], np.split(scene_obs, np.cumsum(lengths)[:-1]), strict=True)
      for low, high in success_windows(task, scene)
      if not ((demos[:, 0] < first + high) & (demos[:, 1] > first + low)).any()
    ]
    rows = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    names += [task] * len(rows)
    spans += [found[row] for row in rows]
  if not spans:
    raise DatasetError(
      folder, "its play does none of the tasks.", key="scene_obs", fix="set data.play_successes_per_task=0."
    )
  return names, np.array(spans, np.int64)
