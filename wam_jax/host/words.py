"""Words for numbers that people read."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
  """Seconds as `h:mm:ss` or `m:ss`; from two days on `n days`."""
  if seconds >= 2 * 86400:
    return f"{seconds / 86400:.0f} days"
  minutes, seconds_left = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def count(number: int, noun: str) -> str:
  """A number with its noun: `1 task`, `2,000 tasks`."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def task_name(text: str) -> str:
  """A task in words as a name, which files can have: `Open the drawer.` is open_the_drawer."""
  return "_".join(re.findall(r"\w+", text.lower()))


def split_list(text: str) -> tuple[str, ...]:
  """The words of a list with commas."""
  return tuple(word.strip() for word in text.split(",") if word.strip())


def printable(text: str) -> str:
  """Text of others for a terminal: control characters, which it would obey, as escapes; line ends stay."""
  if text.isprintable():
    return text
  return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class PrintableError(Exception):
  """An error whose text may quote what stands in files; it is `printable`."""

  def __init__(self, text: object = ""):
    super().__init__(printable(str(text)))
