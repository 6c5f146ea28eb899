"""Features of demos, as the featurize stage leaves them for the policy and the classifier."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from wam_jax.data.files import DatasetError, PathLike, read_npz
from wam_jax.storage.artifact import how_to_remake
from wam_jax.types import Takes

_KEYS = ("feature", "action", "success", "mask", "tasks")


@dataclasses.dataclass(frozen=True)
class DemoFeatures:
  """Demos of all tasks, filtered through the frozen world model.

  K tasks, M demos each, T frames with padding at the end.

  Attributes:
    feature: [K, M, T, F] float32.
    action: [K, M, T, A] float32 in [-1, 1], taken at that frame.
    success: [K, M, T] bool, the task's predicate holds, relative to the demo's first frame.
    mask: [K, M, T] bool, false at padding.
    tasks: K names.
  """

  feature: np.ndarray
  action: np.ndarray
  success: np.ndarray
  mask: np.ndarray
  tasks: tuple[str, ...]

  def __post_init__(self) -> None:
    shape = self.feature.shape[:3]
    expected = {
      "feature": (*shape, self.feature.shape[-1]),
      "action": (*shape, self.action.shape[-1]),
      "success": shape,
      "mask": shape,
    }
    for name, wanted in expected.items():
      if getattr(self, name).shape != wanted:
        raise ValueError(f"{name}: expected {list(wanted)}, got {list(getattr(self, name).shape)}")
      if getattr(self, name).dtype.kind not in "fb":
        raise ValueError(f"{name}: expected numbers, got {getattr(self, name).dtype}")
    if self.feature.ndim != 4 or len(self.tasks) != len(self.feature):
      raise ValueError(
        f"{len(self.tasks)} tasks, but feature is {list(self.feature.shape)}, not [K, M, T, F]"
      )

  @property
  def takes(self) -> Takes:
    """The arrays alone, stacked over tasks."""
    return Takes(self.feature, self.action, self.success, self.mask)

  def rows(self, rows: slice) -> DemoFeatures:
    """Some of each task's demos."""
    arrays = {name: getattr(self, name)[:, rows] for name in _KEYS if name != "tasks"}
    return DemoFeatures(**arrays, tasks=self.tasks)

  def joined(self, other: DemoFeatures) -> DemoFeatures:
    """The demos of both, task by task. Raises ValueError for other tasks, or another order of them."""
    if self.tasks != other.tasks:
      raise ValueError(f"demos of {', '.join(self.tasks)} and of {', '.join(other.tasks)}")
    length = max(self.mask.shape[2], other.mask.shape[2])

    def padded(array: np.ndarray) -> np.ndarray:
      return np.pad(array, [(0, 0), (0, 0), (0, length - array.shape[2])] + [(0, 0)] * (array.ndim - 3))

    arrays = {
      name: np.concatenate([padded(getattr(part, name)) for part in (self, other)], 1)
      for name in _KEYS
      if name != "tasks"
    }
    return DemoFeatures(**arrays, tasks=self.tasks)


def save_features(path: PathLike, features: DemoFeatures) -> None:
  """Writes demos to an npz file, which appears only when whole.

  Args:
    path: file to write; replaced if it exists.
    features: what to write.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f".{path.name}.partial.npz")
  arrays = {name: getattr(features, name) for name in _KEYS}
  np.savez(partial, **{**arrays, "tasks": np.array(features.tasks)})
  os.replace(partial, path)


def load_features(path: PathLike) -> DemoFeatures:
  """Reads what `save_features` wrote.

  Args:
    path: the file.

  Returns:
    DemoFeatures.

  Raises:
    DatasetError: no such file, damaged, or arrays that do not fit together.
  """
  fix = how_to_remake(pathlib.Path(path).parent)
  try:
    arrays = read_npz(path, _KEYS)
    tasks = tuple(str(task) for task in arrays.pop("tasks"))
    return DemoFeatures(**arrays, tasks=tasks)
  except DatasetError as error:
    raise DatasetError(path, error.rule, key=error.key, fix=fix) from None
  except (ValueError, TypeError, IndexError) as error:
    raise DatasetError(path, f"{error}.", fix=fix) from None


def load_cloned(folder: pathlib.Path, play: pathlib.Path | None) -> DemoFeatures:
  """What policies are cloned from: the demos, and behind them successes of play.

  Args:
    folder: artifact of the featurize stage.
    play: artifact with play's successes; None: they are not wanted.

  Raises:
    DatasetError: as `load_features`.
  """
  demos = load_features(folder / "train.npz")
  return demos.joined(load_features(play / "play.npz")) if play else demos
