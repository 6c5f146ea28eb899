"""What is shown of work under way, on a terminal or in lines: its speed, and a few of its metrics."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping

MARKS, MARK_SECONDS = 30, 1.0  # that the speed is measured over, and at least between them
MEASUREMENTS = ("time", "speed", "memory")  # groups of metrics that come after all others


class Pace:
  """How fast units of work get done.

  Args:
    done: units that are done already.
  """

  def __init__(self, done: int):
    self._updated, self._done = time.monotonic(), done
    self._marks = collections.deque([(self._updated, done)], MARKS)

  def update(self, done: int) -> None:
    """Takes note of how many are done now."""
    self._updated, self._done = time.monotonic(), done
    if len(self._marks) == 1 or self._updated - self._marks[-1][0] >= MARK_SECONDS:
      self._marks.append((self._updated, done))

  def speed(self) -> float:
    """Units per second lately, without the first update, which compiles; 0 while there was no other."""
    if len(self._marks) < 2 or self._marks[1][1] == self._done:
      return 0.0
    began, before = self._marks[1]
    return (self._done - before) / max(self._updated - began, 1e-9)


def chosen(metrics: Mapping[str, float], most: int) -> dict[str, float]:
  """The few metrics that are shown: the total loss, other losses, the rest.

  Of those with the same last part the first counts, which is the mean over tasks.

  Args:
    metrics: name (`stage/group/name`) to value.
    most: that are shown.

  Returns:
    The last part of the name to value, each once.
  """
  groups = {name: name.split("/")[1:-1] for name in metrics}

  def rank(name: str) -> int:
    if set(groups[name]) & set(MEASUREMENTS):
      return 3
    return 2 if "loss" not in name else not name.endswith(("/loss", "/total"))

  out: dict[str, float] = {}
  for name in sorted(metrics, key=rank):
    out.setdefault(name.rpartition("/")[2], metrics[name])
  return dict(list(out.items())[:most])
