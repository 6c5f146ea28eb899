"""Words for numbers that people read."""

from __future__ import annotations


def duration(seconds: float) -> str:
  """Seconds as `h:mm:ss` or `m:ss`."""
  minutes, seconds_left = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def count(number: int, noun: str) -> str:
  """A number with its noun: `1 task`, `2,000 tasks`."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"
