"""SIGTERM, SIGINT and SIGHUP (a closed terminal): what runs saves and ends. Exit code 128 + signal; a second
SIGTERM or SIGINT ends at once."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# After which a process ends without what it could not save. 30 seconds are what hosts often give; launchers
# of those that give more say so.
_GRACE = os.environ.get("WAM_JAX_GRACE_SECONDS") or "25"
if not re.fullmatch(r"\d+(\.\d+)?", _GRACE):
  raise ValueError(f"WAM_JAX_GRACE_SECONDS={_GRACE}: must be a number of seconds, as 25")
GRACE_SECONDS = float(_GRACE)


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
  watched = False
  tell: Callable[[str], None] | None = None


def install() -> None:
  """Takes SIGNALS over, from JAX too. In the main thread only. Under nohup SIGHUP stays ignored."""
  for signum in SIGNALS:
    if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN):
      signal.signal(signum, _handle)
  if not _State.watched:
    _State.watched = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    signal.signal(signal.SIGALRM, _again)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
      # Nothing can be raised out of a finalizer or a callback of the garbage collector.
      if isinstance(unraisable.exc_value, Stopped):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
      else:
        before(unraisable)

    sys.unraisablehook = hook


def _handle(signum: int, frame: Any) -> None:
  if not _State.signum:
    _State.signum = signum
    if not _State.deferred:
      raise Stopped(signum)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """For a program that lives on, such as a notebook: inside, SIGINT lets what runs save, and then raises
  KeyboardInterrupt; a second one raises it at once. Other signals, and other threads, are left alone."""
  before = signal.getsignal(signal.SIGINT)
  if before is None or threading.current_thread() is not threading.main_thread():
    yield
    return

  def handle(signum: int, frame: Any) -> None:
    if _State.signum or not _State.deferred:
      raise KeyboardInterrupt
    _State.signum = signum

  signal.signal(signal.SIGINT, handle)
  try:
    yield
  except Stopped:
    raise KeyboardInterrupt("what was trained is saved; the same call goes on from here") from None
  finally:
    _State.signum = 0
    signal.signal(signal.SIGINT, before)


def _again(signum: int, frame: Any) -> None:
  """Raises what could not be raised where the first signal came."""
  if not _State.deferred:
    raise Stopped(_State.signum)


def _watch(reading: int) -> None:
  """Counts the grace time, and answers a second signal. In a separate thread, because Python runs handlers
  between its own instructions only, and one call of a compiled program may take longer than that."""
  first = 0
  while True:
    for signum in os.read(reading, 16):
      if signum not in SIGNALS:
        continue
      if first and signum == signal.SIGHUP:
        continue  # nobody's impatience: of a closed terminal the kernel and the shell both send one
      if first:
        os._exit(128 + signum)
      first = signum
      timer = threading.Timer(GRACE_SECONDS, _give_up, (signum,))
      timer.daemon = True
      timer.start()
      text = f"{signal.Signals(signum).name}: saving and ending; a second one ends at once"
      # In a separate thread: a terminal that stands still (Ctrl-S) must not keep the second signal waiting.
      threading.Thread(target=_say, args=(text,), daemon=True).start()


def _give_up(signum: int) -> None:
  text = f"not done within {GRACE_SECONDS:.0f} s; what was saved before stays, the same command goes on"
  saying = threading.Thread(target=_say, args=(text,), daemon=True)
  saying.start()
  saying.join(1.0)
  os._exit(128 + signum)


@contextlib.contextmanager
def told_through(tell: Callable[[str], None]) -> Iterator[None]:
  """Inside, reports about signals go through `tell`, from another thread, instead of to stderr."""
  _State.tell = tell
  try:
    yield
  finally:
    _State.tell = None


def _say(text: str) -> None:
  tell = _State.tell
  if tell is not None:
    with contextlib.suppress(Exception):
      tell(text)
    return
  with contextlib.suppress(OSError):  # print is not to be used in a signal handler
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Inside, a signal only makes `requested` true; outside, and at the end, it raises Stopped."""
  _State.deferred += 1
  try:
    yield
  finally:
    _State.deferred -= 1
  if _State.signum and not _State.deferred:
    raise Stopped(_State.signum)


def requested() -> int:
  """The signal that came, or 0."""
  return _State.signum
