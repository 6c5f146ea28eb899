"""What writing with Orbax needs around it: names of attempts, what is left of them, errors in words."""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from typing import Any

from wam_jax.host.machine import disk_full

# When one of Orbax's writers fails, others go on writing for a while (seen: files that came back after they
# were removed). A second attempt has another folder, so that none of them can reach it; that one did was not
# seen.
WRITING = ".writing-"


def unfinished(path: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Folders that an attempt at `name` (a regular expression) was written to, in Orbax's hands or in ours."""
  # Without an attempt's number: of format 1.
  return matching(path, rf"{name}({re.escape(WRITING)}[\d-]+)?(\.orbax-checkpoint-tmp)?", but=name)


def matching(path: pathlib.Path, pattern: str, but: str = "") -> list[pathlib.Path]:
  """Entries of a folder whose names match one regular expression and not the other."""
  names = [entry.name for entry in path.iterdir()]
  return [path / name for name in names if re.fullmatch(pattern, name) and not re.fullmatch(but, name)]


def join_writers(seconds: float = 10.0) -> None:
  """Waits for those of Orbax's threads that go on writing when one has failed, so that all can be removed."""
  deadline = time.monotonic() + seconds
  for thread in threading.enumerate():
    if type(thread).__module__.startswith("orbax."):
      # Orbax's own join raises what ended the thread, which is known.
      threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))


def beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
  """The neighbour of `path` whose name has a suffix more."""
  return path.with_name(path.name + suffix)


def remove(path: pathlib.Path, ignore_errors: bool = False) -> None:
  """Deletes a folder, if it exists."""
  if os.path.lexists(path):
    shutil.rmtree(path, ignore_errors=ignore_errors)


def cannot_write(error: BaseException) -> str:
  """A sentence or two: why something could not be written."""
  full = disk_full(error)
  if full is not None:
    return f"could not be written: the disk is full ({full}). Free space and run the same command again."
  text = " ".join(first_lines(error, 3).split())
  return f"could not be written: {text:.600}."


@functools.cache
def quiet_when_full() -> None:
  """Keeps the tracebacks of Orbax's threads out of sight when the disk is full: CheckpointError says all."""

  def is_relevant(record: logging.LogRecord) -> bool:
    return not (record.exc_info and disk_full(record.exc_info[1]))

  for name in ("absl", "asyncio"):  # what Orbax and its event loops log to
    logging.getLogger(name).addFilter(is_relevant)
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    # TensorStore reports this when it is done with a write whose event loop has failed.
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook


def first_lines(error: BaseException, count: int = 12) -> str:
  """What an error says, without blank lines and without the end of a long text."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  return "\n".join(lines[:count]) or type(error).__name__
