"""A linear recursion of a position from its last change and the last actions: what a world model must beat.

Ten coefficients per axis, fitted by least squares, know nothing of pictures or contacts. NumPy, float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ACTIONS = 3  # the last so many actions are read
AXES = 3


def _inputs(change: np.ndarray, action: Sequence[np.ndarray]) -> np.ndarray:
  """[..., 3 axes, 10]: the axis's own change, and the last actions' translations [..., 3], newest first."""
  moves = np.concatenate(list(action), -1)
  moves = np.broadcast_to(moves[..., None, :], (*change.shape, moves.shape[-1]))
  return np.concatenate([change[..., None], moves], -1)


def fit(position: np.ndarray, action: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Fits position[t + 1] - position[t] by least squares.

  Args:
    position: [W, T, 3].
    action: [W, T, A], taken at each frame, translation first.
    mask: [W, T] bool, false at the padding at the end.

  Returns:
    [3, 10], of each axis.

  Raises:
    ValueError: no window has ACTIONS + 1 frames.
  """
  position, moves = np.asarray(position, np.float64), np.asarray(action, np.float64)[..., :AXES]
  first = ACTIONS - 1  # frame with that many actions up to it, and a change
  change = np.diff(position, axis=1)
  used = mask[:, first + 1 :]
  if not used.any():
    raise ValueError(f"no window has {ACTIONS + 1} frames to fit a recursion on")
  steps = position.shape[1] - 1 - first
  last = [moves[:, first - k : first - k + steps] for k in range(ACTIONS)]
  inputs = _inputs(change[:, first - 1 : first - 1 + steps], last)[used]  # [N, 3, 10]
  target = change[:, first:][used]
  return np.stack([np.linalg.lstsq(inputs[:, i], target[:, i], rcond=None)[0] for i in range(AXES)])


def predict(coefficients: np.ndarray, position: np.ndarray, action: np.ndarray, context: int) -> np.ndarray:
  """Positions open loop.

  Args:
    coefficients: [3, 10], from `fit`.
    position: [W, T, 3]; the first C are seen.
    action: [W, T, A].
    context: C, at least ACTIONS.

  Returns:
    [W, T - C, 3], of the frames after the ones seen.

  Raises:
    ValueError: context below ACTIONS.
  """
  if context < ACTIONS:
    raise ValueError(f"context must be at least {ACTIONS} frames, got {context}")
  moves = np.asarray(action, np.float64)[..., :AXES]
  now = np.asarray(position[:, context - 1], np.float64)
  change, out = now - position[:, context - 2], []
  for t in range(context - 1, position.shape[1] - 1):
    inputs = _inputs(change, [moves[:, t - k] for k in range(ACTIONS)])
    change = np.einsum("wij,ij->wi", inputs, coefficients)
    now = now + change
    out.append(now)
  return np.stack(out, 1)
