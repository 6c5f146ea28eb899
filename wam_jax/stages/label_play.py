"""Finds where play does the tasks, by the success classifier: windows that are cloned like demos.

For robots whose tasks have no predicate. The classifier knows demos and failed takes only, and calls most of
play a failure; where a task gets done, its log-odds rise to a peak all the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.models import load_classifier, load_world_model
from wam_jax.data import calvin, windows
from wam_jax.data.calvin import dataset_path
from wam_jax.data.features import save_features
from wam_jax.data.files import DatasetError
from wam_jax.data.play_successes import free_of_demos, peak_windows
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.world_model import WorldModel
from wam_jax.running.stage_run import StageRun
from wam_jax.stages.featurize import filter_demos, make_filter
from wam_jax.storage.records import write_record
from wam_jax.training.tasks import over_tasks
from wam_jax.types import Params

PIECE = 512  # frames that are filtered at once
OVERLAP = 64  # of them, with the piece before, whose scores count there: these have a past
PIECES_PER_CALL = 8

Window = tuple[float, int, int, int]  # score of its peak, and ids: first frame, peak, one past the last


def run(stage: StageRun) -> None:
  """Writes `play.npz` (`data.features.DemoFeatures`) and `windows.json`.

  That holds of each task its windows, best first: [first id, last id, score of the peak].

  Raises:
    DatasetError: the classifier sees no success in play.
  """
  config, inputs = stage.config, stage.inputs
  model, world_params = load_world_model(inputs["world_model"])
  classifier, params = load_classifier(inputs["classifier"])
  folder = dataset_path(inputs["collect"]) / "training"
  key = jax.random.fold_in(jax.random.key(config.seed), 9)
  world_params = jax.device_put(world_params)
  annotated = calvin.read_raw_annotations(folder)
  episodes = _play(calvin.read_episode_ids(folder), annotated)
  best: dict[str, list[Window]] = {task: [] for task in config.tasks}
  with stage.logger.progress(len(episodes), "looking for successes in play") as progress:
    scorer = _Scorer(model, world_params, classifier, params, folder, config.env.workers, key)
    for (first, _), scores in zip(episodes, scorer.scores(episodes), strict=True):
      for task, score in zip(config.tasks, scores, strict=True):
        found = [
          (float(score[peak]), first + start, first + peak, first + end)
          for start, peak, end in peak_windows(score)
          if free_of_demos((first + start, first + end), task, annotated)
        ]
        best[task] = sorted([*best[task], *found], reverse=True)[: config.data.play_successes_per_task]
      progress.update(1)
  counts = ", ".join(f"{task} {len(chosen)} times" for task, chosen in best.items())
  stage.logger.info(f"done in play, says the classifier: {counts}")
  names = [task for task, chosen in best.items() for _ in chosen]
  rows = [window for chosen in best.values() for window in chosen]
  if not rows:
    rule = "the success classifier sees none of the tasks done in its play."
    raise DatasetError(folder, rule, fix="set data.play_successes_per_task=0.")
  spans = np.array([(first, end - 1) for _, first, _, end in rows], np.int64)
  frames = calvin.read_windows(folder, spans, model.image_size, config.env.workers)
  success = np.concatenate([np.arange(first, end) >= peak for _, first, peak, end in rows])
  split = calvin.as_split(names, dataclasses.replace(frames, success=success))
  with stage.logger.progress(len(names), "features of play's successes") as progress:
    takes = filter_demos(model, world_params, split, config.tasks, jax.random.fold_in(key, 1), progress)
  save_features(stage.workdir / "play.npz", takes)
  listed = {
    task: [[int(first), int(end) - 1, round(score, 3)] for score, first, _, end in chosen]
    for task, chosen in best.items()
  }
  write_record(stage.workdir, "windows.json", {"tasks": listed})


def _play(episodes: np.ndarray, annotated: Sequence[tuple[str, int, int]]) -> list[tuple[int, int]]:
  """First and last id of the episodes that are not one demo from end to end."""
  demos = {(low, high - 1) for _, low, high in annotated}
  return [(int(first), int(last)) for first, last in episodes if (int(first), int(last)) not in demos]


@dataclasses.dataclass
class _Scorer:
  """What the classifiers of all tasks say of frames that are filtered through the world model."""

  model: WorldModel
  world_params: Params
  classifier: SuccessClassifier
  params: Params  # stacked over tasks
  folder: pathlib.Path
  workers: int
  key: jax.Array

  def __post_init__(self) -> None:
    self._filtered = make_filter(self.model)
    self._judged = over_tasks(lambda params, feature: self.classifier.score(params, feature))

  def scores(self, episodes: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Log-odds above the threshold, [K, T] of each episode, given by its first and last id."""
    pieces = [
      (number, begin, min(begin + PIECE - 1, last))
      for number, (first, last) in enumerate(episodes)
      for begin in range(first, max(first + 1, last + 1 - OVERLAP), PIECE - OVERLAP)
    ]
    parts: list[np.ndarray] = []
    current = 0
    for at in range(0, len(pieces), PIECES_PER_CALL):
      some = pieces[at : at + PIECES_PER_CALL]
      scores = self._of([(begin, last) for _, begin, last in some], jax.random.fold_in(self.key, at))
      for (number, begin, _), score in zip(some, scores, strict=True):
        if number != current:
          yield np.concatenate(parts, 1)
          parts, current = [], number
        parts.append(score[:, OVERLAP if begin > episodes[number][0] else 0 :])
    if parts:
      yield np.concatenate(parts, 1)

  def _of(self, spans: Sequence[tuple[int, int]], key: jax.Array) -> list[np.ndarray]:
    """[K, T] of each span."""
    frames = calvin.read_windows(self.folder, np.array(spans), self.model.image_size, self.workers)
    places = list(zip(frames.starts.tolist(), frames.ends.tolist(), strict=True))
    padded = places + [places[-1]] * (PIECES_PER_CALL - len(places))  # one shape, one compilation
    batch = windows.episode_batch(frames, padded, PIECE)
    feature = self._filtered(self.world_params, jax.tree.map(jnp.asarray, batch), key)
    score = np.asarray(self._judged(self.params, feature))
    return [score[:, row, : end - start] for row, (start, end) in enumerate(places)]
