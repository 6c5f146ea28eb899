"""Programs of the command line print on any terminal and end quietly when nobody reads on, as in `| head`."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def run_program(main: Callable[[], int | None]) -> NoReturn:
  """Exits with what `main` returns; without a traceback and as after SIGPIPE where nobody reads on."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # what their encoding lacks is shown in another form
      stream.reconfigure(errors="backslashreplace")
  code: int | None = 128 + signal.SIGPIPE
  try:
    try:
      code = main()
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    gone = [number for number in (1, 2) if _reader_gone(number)]
    if not gone:  # it was another pipe or socket
      raise
    nothing = os.open(os.devnull, os.O_WRONLY)
    for number in gone:  # Python writes what is left when it ends
      os.dup2(nothing, number)
    code = 128 + signal.SIGPIPE
  sys.exit(code)


def _reader_gone(number: int) -> bool:
  poll = select.poll()
  poll.register(number, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))
