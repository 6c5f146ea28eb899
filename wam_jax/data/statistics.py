"""A split's stored mean and standard deviation of the robot state, and whether they are its own."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import yaml

from wam_jax.data.files import COPY_AGAIN, DatasetError, PathLike, read_embodiment
from wam_jax.embodiment import Embodiment
from wam_jax.host.regular_files import read_text

STATISTICS_FILE = "statistics.yaml"
MAX_BYTES = 2**20  # of that file; CALVIN's have 10 kB
MEAN_TOLERANCE = 0.1  # of a standard deviation
STD_TOLERANCE = 0.2  # of the standard deviation itself
NEGLIGIBLE = 1e-3  # in the number's own unit (m, rad): what does not move may differ by this much


def read_statistics(folder: PathLike) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of robot_obs as CALVIN's statistics.yaml has them.

  Args:
    folder: a split: training/ or validation/.

  Returns:
    (mean [state_size], std [state_size]) float64.

  Raises:
    DatasetError: no such file, not YAML of plain values, or not a finite number for each of the state's.
  """
  path, size = pathlib.Path(folder) / STATISTICS_FILE, _robot(folder).state_size
  try:
    content = yaml.safe_load(read_text(path, MAX_BYTES))
  except FileNotFoundError:
    raise DatasetError(
      path, "no such file.", fix="copy it from the dataset: CALVIN has one in each split."
    ) from None
  except Exception as error:  # besides its own errors PyYAML lets through what a damaged file leads to
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise DatasetError(path, f"not YAML of plain values ({first}).", fix=COPY_AGAIN) from None
  entries = content.get("robot_obs") if isinstance(content, dict) else None
  for entry in entries if isinstance(entries, list) else [entries]:
    if isinstance(entry, dict) and {"mean", "std"} <= set(entry):
      return _numbers(path, entry["mean"], "mean", size), _numbers(path, entry["std"], "std", size)
  raise DatasetError(
    path, "must hold a NormalizeVector with a mean and a std.", key="robot_obs", fix=COPY_AGAIN
  )


def _robot(folder: PathLike) -> Embodiment:
  return read_embodiment(pathlib.Path(folder).parent)


def _numbers(path: pathlib.Path, values: object, name: str, size: int) -> np.ndarray:
  # Looked at before NumPy does: lists of the same list, over and over, would fill the memory.
  plain = isinstance(values, list) and all(isinstance(x, int | float) for x in values)
  try:
    array = np.asarray(values if plain else (), np.float64)
  except OverflowError:
    array = np.empty(0)
  if array.shape != (size,) or not np.isfinite(array).all() or (name == "std" and (array < 0).any()):
    rule = f"{name} must be {size} finite numbers{', none negative' if name == 'std' else ''}."
    raise DatasetError(path, rule, key="robot_obs", fix=COPY_AGAIN)
  return array


def robot_statistics(folder: PathLike, robot_obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation to normalise the robot state with.

  Args:
    folder: a split.
    robot_obs: [N, state_size], all its frames.

  Returns:
    (mean [state_size], std [state_size]) float64: those of its statistics.yaml, or of the frames without one.

  Raises:
    DatasetError: the file is damaged, or not of this split.
  """
  if not os.path.lexists(pathlib.Path(folder) / STATISTICS_FILE):
    return robot_obs.mean(0, dtype=np.float64), robot_obs.std(0, dtype=np.float64)
  mean, std = read_statistics(folder)
  check_statistics(folder, mean, std, robot_obs)
  return mean, std


def check_statistics(folder: PathLike, mean: np.ndarray, std: np.ndarray, robot_obs: np.ndarray) -> None:
  """Raises if a mean and standard deviation are not those of the data.

  Args:
    folder: the split, named in errors.
    mean: [state_size] stored.
    std: [state_size] stored.
    robot_obs: [N, state_size], all frames of the split.

  Raises:
    DatasetError: names the number that is furthest off, with the stored and the found values.
  """
  found_mean, found_std = robot_obs.mean(0, dtype=np.float64), robot_obs.std(0, dtype=np.float64)
  spread = np.maximum(std, found_std)
  off_mean = np.abs(mean - found_mean) / (MEAN_TOLERANCE * spread + NEGLIGIBLE)
  off_std = np.abs(std - found_std) / (STD_TOLERANCE * spread + NEGLIGIBLE)
  off = np.maximum(off_mean, off_std)
  if (off <= 1).all():
    return
  worst = int(off.argmax())
  name = _robot(folder).state[worst].name
  raise DatasetError(
    pathlib.Path(folder) / STATISTICS_FILE,
    f"not the statistics of this split: number {worst} ({name}) has mean {mean[worst]:.4g} and "
    f"std {std[worst]:.4g} there, but {found_mean[worst]:.4g} and {found_std[worst]:.4g} in the "
    f"{len(robot_obs):,} frames ({int((off > 1).sum())} of {len(off)} numbers are off).",
    key="robot_obs",
    fix="copy the file that belongs to this split, or remove it: then the frames' own are taken.",
  )
