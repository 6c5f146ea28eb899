"""Numbers that a program is given in Python: refused by name, not rounded or cut."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
  """A whole number as `int`.

  Args:
    name: of the argument, for the error.
    value: an integer of Python, NumPy or JAX; no truth value, and no float even if it is whole.
    low: least value.
    high: largest value; None: any.

  Raises:
    ValueError: anything else.
  """
  expected = (
    f"{name}: expected a whole number {f'of at least {low}' if high is None else f'from {low} to {high}'}"
  )
  try:
    number = operator.index(value)
  except TypeError:
    raise ValueError(f"{expected}, got {value!r:.80}") from None
  if isinstance(value, bool) or number < low or (high is not None and number > high):
    raise ValueError(f"{expected}, got {value!s:.80}")
  return number


def real(name: str, values: Any) -> np.ndarray:
  """Numbers as float64 of the same shape. Raises ValueError: complex numbers, truth values, text."""
  try:
    array = np.asarray(values)
  except ValueError as error:  # rows of different lengths
    raise ValueError(f"{name}: expected numbers, got {error}") from None
  if array.dtype.kind not in "fiu":
    raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
  return array.astype(np.float64)
