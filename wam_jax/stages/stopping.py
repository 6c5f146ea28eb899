"""SIGTERM and SIGINT: what runs saves and ends. Exit code 128 + signal; a second signal ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = (
  25.0  # after which a process ends without what it could not save: 30 are what hosts often give
)


class Stopped(BaseException):
  """A signal asked the process to end, and what there was to save is saved."""

  def __init__(self, signum: int):
    self.signum = signum
    super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")

  @property
  def code(self) -> int:
    """Exit code."""
    return 128 + self.signum


class _State:
  """Of the process: signals are its own."""

  signum = 0
  deferred = 0
  timer: threading.Timer | None = None


def install() -> None:
  """Takes SIGTERM and SIGINT over, from JAX too. In the main thread only."""
  for signum in SIGNALS:
    signal.signal(signum, _handle)


def _handle(signum: int, frame: Any) -> None:
  if _State.signum:
    os._exit(128 + signum)
  _State.signum = signum
  _say(f"{signal.Signals(signum).name}: saving and ending; a second one ends at once")
  _State.timer = threading.Timer(GRACE_SECONDS, _give_up)
  _State.timer.daemon = True
  _State.timer.start()
  if not _State.deferred:
    raise Stopped(signum)


def _give_up() -> None:
  _say(
    f"not done within {GRACE_SECONDS:.0f} s; what was saved before stays, the same command goes on from it"
  )
  os._exit(128 + _State.signum)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # print is not to be used in a signal handler
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Inside, a signal only makes `requested` true; outside it raises Stopped where the process is."""
  _State.deferred += 1
  try:
    yield
  finally:
    _State.deferred -= 1


def requested() -> int:
  """The signal that came, or 0."""
  return _State.signum
