"""Linear probes: how much of a known quantity can be read off a feature by one matrix.

NumPy in float64 and closed form, so that the same features always give the same numbers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

REGULARISATIONS = tuple(10.0**power for power in range(-6, 3))  # times the mean variance of a feature
CONSTANT_STD = 1e-6  # a target that varies less is called constant [its own unit]
CONSTANT = "constant"  # in place of a score where there is nothing to explain


@dataclasses.dataclass(frozen=True)
class Probes:
  """Affine maps from features to K targets, fitted by `fit`.

  Attributes:
    weight: [F, K].
    bias: [K].
    threshold: [K], half-way between the mean readings of a binary target's classes; NaN for the others.
    regularisation: [K], the one of REGULARISATIONS that read unseen groups best.
    constant: [K] bool, targets that did not vary in the data they were fitted on.
  """

  weight: np.ndarray
  bias: np.ndarray
  threshold: np.ndarray
  regularisation: np.ndarray
  constant: np.ndarray

  def read(self, feature: np.ndarray) -> np.ndarray:
    """[..., F] -> [..., K] float64."""
    return np.asarray(feature, np.float64) @ self.weight + self.bias


def _ridge(x: np.ndarray, y: np.ndarray, regularisations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ridge regression for every regularisation at once.

  Args:
    x: [N, F] float64.
    y: [N, K] float64.
    regularisations: [L], relative to the mean eigenvalue of the covariance.

  Returns:
    (weight [L, F, K], bias [L, K]). The bias is not regularised.
  """
  x_mean, y_mean = x.mean(0), y.mean(0)
  centred = x - x_mean
  values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
  values = np.maximum(values, 0)
  projected = vectors.T @ (centred.T @ (y - y_mean) / len(x))
  scale = max(values.mean(), np.finfo(np.float64).tiny)
  weight = np.stack([vectors @ (projected / (values[:, None] + r * scale)) for r in regularisations])
  return weight, y_mean - x_mean @ weight


def fit(feature: np.ndarray, target: np.ndarray, binary: np.ndarray, groups: np.ndarray) -> Probes:
  """Fits one probe per target by ridge regression.

  Binary targets are regressed on too: least squares on two classes finds Fisher's direction whatever
  the share of the classes, and the threshold half-way between the class means treats both alike.

  Args:
    feature: [N, F].
    target: [N, K]; 0 or 1 where binary.
    binary: [K] bool.
    groups: [N] int, frames of one window: every fifth group is kept out while the regularisation is chosen.
      With a single group every fifth frame is.

  Returns:
    Probes, fitted on all N frames with the regularisation chosen.

  Raises:
    ValueError: shapes that do not belong together, or fewer than two frames.
  """
  x, y = np.asarray(feature, np.float64), np.asarray(target, np.float64)
  binary, groups = np.asarray(binary, bool), np.asarray(groups)
  if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(groups) or binary.shape != y.shape[1:]:
    raise ValueError(
      f"feature {list(x.shape)}, target {list(y.shape)}, binary {list(binary.shape)} and groups "
      f"{list(groups.shape)} do not belong together"
    )
  if len(x) < 2:
    raise ValueError(f"{len(x)} frames are too few to fit a probe")
  regularisations = np.asarray(REGULARISATIONS)
  order = np.unique(groups, return_inverse=True)[1]
  order = order if order.max() > 0 else np.arange(len(x))
  kept_out = order % 5 == min(4, order.max())
  weight, bias = _ridge(x[~kept_out], y[~kept_out], regularisations)
  errors = np.square(x[kept_out] @ weight + bias[:, None] - y[kept_out]).mean(1)
  best = errors.argmin(0)

  weight, bias = _ridge(x, y, regularisations)
  columns = np.arange(y.shape[1])
  weight, bias = weight[best, :, columns].T, bias[best, columns]
  readings = x @ weight + bias
  threshold = np.full(len(columns), np.nan)
  constant = y.std(0) < CONSTANT_STD
  for k in np.flatnonzero(binary & ~constant):
    on = y[:, k] > 0.5
    threshold[k] = (readings[on, k].mean() + readings[~on, k].mean()) / 2
  return Probes(weight, bias, threshold, regularisations[best], constant)


def r_squared(reading: np.ndarray, truth: np.ndarray, variance: float | None = None) -> float | None:
  """Share of the variance explained: 1 is perfect, 0 is as good as the mean of the truth.

  Args:
    reading: [N].
    truth: [N].
    variance: of the truth in all the data that this is a part of; None: the variance here.

  Returns:
    At most 1, below 0 for readings worse than the mean; None where the truth is constant or N is 0.
  """
  if not len(truth):
    return None
  variance = float(truth.var()) if variance is None else variance
  if variance < CONSTANT_STD**2:
    return None
  return float(1 - np.square(reading - truth).mean() / variance)


def balanced_accuracy(called: np.ndarray, truth: np.ndarray) -> float | None:
  """Mean of the recalls of both classes: 0.5 is chance, however rare a class is.

  Args:
    called: [N] bool.
    truth: [N] bool.

  Returns:
    In [0, 1]; None where only one class occurs.
  """
  if truth.all() or not truth.any():
    return None
  return float((called[truth].mean() + (~called[~truth]).mean()) / 2)


def score(
  probes: Probes,
  reading: np.ndarray,
  target: np.ndarray,
  binary: np.ndarray,
  variance: np.ndarray | None = None,
) -> list[float | str | None]:
  """Score of each target: R² or, where binary, balanced accuracy.

  Args:
    probes: what was read with.
    reading: [N, K], from `Probes.read`.
    target: [N, K].
    binary: [K] bool.
    variance: [K] that the squared errors are compared with in R², for scores of parts of the data that
      compare with each other; None: the variance here.

  Returns:
    K scores: a number, CONSTANT where the target did not vary here or where the probes were fitted, or
    None without frames.
  """
  reading, target = np.asarray(reading, np.float64), np.asarray(target, np.float64)
  if reading.shape != target.shape or target.shape[1:] != np.shape(binary):
    raise ValueError(f"reading {list(reading.shape)} and target {list(target.shape)} must be equal [N, K]")
  if not len(target):
    return [None] * target.shape[1]
  scores: list[float | str | None] = []
  for k, is_binary in enumerate(binary):
    if is_binary:
      value = balanced_accuracy(reading[:, k] > probes.threshold[k], target[:, k] > 0.5)
    else:
      value = r_squared(reading[:, k], target[:, k], None if variance is None else variance[k])
    scores.append(CONSTANT if value is None or probes.constant[k] else value)
  return scores
