"""How the updates of a run are cut into calls of a compiled program."""

from __future__ import annotations

from collections.abc import Sequence


def call_end(step: int, total: int, per_call: int, stops: Sequence[int] = ()) -> int:
  """Update that the call which begins at `step` ends at.

  Args:
    step: updates done, below `total`.
    total: updates in all.
    per_call: updates of a call; fewer only before `stops` and at the end.
    stops: updates that a call must end at.
  """
  return min(step + per_call, *(stop for stop in (*stops, total) if stop > step))
