"""Words for numbers that people read."""

from __future__ import annotations


def duration(seconds: float) -> str:
  """Seconds as `h:mm:ss` or `m:ss`."""
  minutes, seconds_left = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
