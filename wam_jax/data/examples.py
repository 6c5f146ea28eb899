"""A split as examples of consecutive frames, for conversion and the TFDS builder."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import calvin, converted
from wam_jax.data.files import DatasetError, PathLike
from wam_jax.data.frames import FrameReader, ids_of, vector_shape

EXAMPLE_FRAMES = 64
_FIRST_FRAMES = 10  # of a split that may be broken
_WINDOWS_CHECKED = 32

Chunk = tuple[int, int, int]  # episode, first and last frame id


@dataclasses.dataclass(frozen=True)
class SplitPlan:
  """A split cut into chunks, each of which becomes an example (or several, where frames are left out).

  Attributes:
    folder: the split.
    image_size: side that pictures are shrunk to.
    skip_broken: leave out frames that cannot be read instead of raising.
    spans: [E, 2] first and last id of each episode.
    windows: annotated (task, first id, one past the last id).
    chunks: in the order of the frames.
    missing: ids of frames without a file; left out of the chunks.
    reader: of all other frames.
    texts: tasks in words, where the data say them and no file of annotations does.
  """

  folder: pathlib.Path
  image_size: int
  skip_broken: bool
  spans: np.ndarray
  windows: tuple[tuple[str, int, int], ...]
  chunks: tuple[Chunk, ...]
  missing: tuple[int, ...]
  reader: FrameReader
  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def vector_keys(self) -> dict[str, int | None]:
    """What its examples hold beside pictures: as `frames.vector_keys`."""
    widths, absolute = self.reader.widths, {"actions": self.reader.embodiment.action_size}
    return {**widths, **absolute} if self.reader.has_absolute else widths

  def load(self, chunk: Chunk, broken: Callable[[int, str], None] | None = None) -> list[dict[str, Any]]:
    """The chunk's examples.

    Args:
      chunk: one of `chunks`.
      broken: called with id and rule for each frame left out.

    Raises:
      DatasetError: a frame is broken, and `skip_broken` is not set.
    """
    episode, first, last = chunk
    ids = np.arange(first, last + 1)
    try:
      return [self._example(episode, ids)]
    except DatasetError:
      if not self.skip_broken:
        raise
    good = np.ones(len(ids), bool)
    for row, frame_id in enumerate(ids):
      try:
        self._example(episode, ids[row : row + 1])
      except DatasetError as error:
        good[row] = False
        if broken is not None:
          broken(int(frame_id), error.rule)
    ids = ids[good]
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    return [self._example(episode, run) for run in runs if len(run)]

  def _example(self, episode: int, ids: np.ndarray) -> dict[str, Any]:
    size, count = self.image_size, len(ids)
    keys, robot = self.vector_keys, self.reader.embodiment
    out: dict[str, Any] = {key: np.empty((count, *vector_shape(width))) for key, width in keys.items()}
    out |= {key: np.empty((count, size, size, 3), np.uint8) for key in robot.camera_names}
    row = int(np.searchsorted(self.reader.ids, ids[0]))
    self.reader.read(row, row + count, out)
    mine = [(task, low, high) for task, low, high in self.windows if low <= ids[-1] and ids[0] < high]
    return {
      **out,
      "frame_id": ids.astype(np.int64),
      "episode": episode,
      "window_task": [task for task, _, _ in mine],
      "window": np.array([(low, high) for _, low, high in mine], np.int64).reshape(-1, 2),
    }


def plan_split(folder: PathLike, image_size: int = 64, skip_broken: bool = False) -> SplitPlan:
  """Looks at ids, annotations and the names of the files; reads no frames but the first.

  Args:
    folder: training/, validation/ or failed/ of a dataset in CALVIN's format.
    image_size: side that pictures are to be shrunk to, in pixels.
    skip_broken: leave out frames that are missing or cannot be read.

  Raises:
    DatasetError: as `calvin.read_split`.
  """
  folder = pathlib.Path(folder)
  spans = calvin.read_episode_ids(folder)
  raw = calvin.read_raw_annotations(folder)
  calvin.locate(folder, raw, spans)
  missing: list[int] = []
  if skip_broken:
    ids = ids_of(spans)
    missing = ids[~converted.present(folder, ids)].tolist()
  for attempt in range(_FIRST_FRAMES):
    pieces = _without(spans, missing)
    if not len(pieces):
      raise DatasetError(folder, "none of its frames can be read.", fix="copy or download them again.")
    try:
      reader = FrameReader(folder, pieces, image_size)  # looks at its first frame
      break
    except DatasetError:
      if not skip_broken or attempt == _FIRST_FRAMES - 1:
        raise
      missing = sorted([*missing, int(pieces[0, 0])])
  _check_optional(reader, [low for _, low, _ in raw if low not in set(missing)])
  chunks = chunks_of(spans, pieces)
  return SplitPlan(folder, image_size, skip_broken, spans, tuple(raw), chunks, tuple(missing), reader)


def _check_optional(reader: FrameReader, starts: Sequence[int]) -> None:
  """Raises DatasetError if first frames of annotated windows have other keys than the split's first frame."""
  first = int(reader.ids[0])
  expected = reader.optional_keys(first)
  for frame_id in starts[:: 1 + len(starts) // _WINDOWS_CHECKED]:
    if different := reader.optional_keys(frame_id) ^ expected:
      key = min(different)
      have, lack = (frame_id, first) if key not in expected else (first, frame_id)
      raise DatasetError(
        reader.path(have),
        f"has {key}, but frame {lack} has not: it must be in all frames of a split or in none.",
        key=key,
        fix="write false into frames of play." if key == "success" else f"write {key} into all frames.",
      )


def chunks_of(spans: np.ndarray, pieces: np.ndarray) -> tuple[Chunk, ...]:
  """Pieces [P, 2] of the episodes [E, 2] `spans`, cut into chunks."""
  return tuple(
    (int(np.searchsorted(spans[:, 0], low, side="right")) - 1, first, min(first + EXAMPLE_FRAMES - 1, high))
    for low, high in pieces.tolist()
    for first in range(low, high + 1, EXAMPLE_FRAMES)
  )


def _without(spans: np.ndarray, gaps: Sequence[int]) -> np.ndarray:
  """The spans [E, 2] of ids, cut at `gaps`."""
  holes, out = np.array(gaps, np.int64), []
  for low, high in spans.tolist():
    first, last = np.searchsorted(holes, (low, high + 1))
    inside = holes[first:last]
    pieces = np.stack([np.append(low, inside + 1), np.append(inside - 1, high)], 1)
    out.append(pieces[pieces[:, 0] <= pieces[:, 1]])
  return np.concatenate(out)
