"""Runs wam_jax as several processes on this machine, as it runs on several hosts.

python launch/local_multiprocess.py --processes=2 [--cores_each=1] [--restarts=0] -- ARGUMENTS OF wam_jax.main

Process 0 writes to the terminal as if it ran alone; lines of the others begin with their number. SIGINT and
SIGTERM go to all. When one process fails, the others get --grace seconds to end by themselves. The exit code
is that of the first process that failed (128 + number of the signal that ended it).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

OURS = ("coordinator", "num_processes", "process_id")
HOST_LOST, TERMINATED, KILLED = 75, 128 + signal.SIGTERM, 128 + signal.SIGKILL


class Launcher:
  """Starts the processes, passes signals and output on, and ends what does not end by itself."""

  def __init__(self, options: argparse.Namespace, arguments: Sequence[str]):
    self.options, self.arguments = options, list(arguments)
    self.running: list[subprocess.Popen[bytes]] = []
    self.signals = 0
    self.deadline = float("inf")

  def run(self) -> int:
    """Starts all processes, again if a host was lost and restarts are left; returns the exit code."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      if not (each == signal.SIGHUP and signal.getsignal(each) == signal.SIG_IGN):  # as nohup sets it
        signal.signal(each, self.forward)
    for left in range(self.options.restarts, -1, -1):
      code, go_on = self.run_once()
      if code == 0 or not go_on or self.signals or not left:
        break
      _say(f"ended with {code}; starting all again ({left - 1} restarts left)")
    return code

  def run_once(self) -> tuple[int, bool]:
    """One start of all processes.

    Returns:
      The first exit code that is not 0, and whether the same command goes on from what is saved.
    """
    self.deadline = float("inf")
    readers: list[threading.Thread] = []
    codes: dict[int, int] = {}
    try:
      port = _free_port()
      for i in range(self.options.processes):
        self.running.append(self.start(i, port))
        if i:
          for stream, out in ((self.running[i].stdout, sys.stdout), (self.running[i].stderr, sys.stderr)):
            reader = threading.Thread(target=_pass_on, args=(f"[{i}] ", stream, out), daemon=True)
            reader.start()
            readers.append(reader)
        if self.signals:  # came while starting: those that run have it
          break
      while len(codes) < len(self.running):
        time.sleep(0.05)
        for i, process in enumerate(self.running):
          if i not in codes and process.poll() is not None:
            codes[i] = process.returncode if process.returncode >= 0 else 128 - process.returncode
            _kill_group(process.pid)  # what it started and left
            if codes[i] and any(each.poll() is None for each in self.running):
              _say(f"process {i} ended with {codes[i]}; {self.options.grace:g} s for the others to end")
              self.end_within(self.options.grace)
        if time.monotonic() > self.deadline:
          self.kill()
    finally:
      self.kill()
      for reader in readers:
        reader.join(timeout=5)
      self.running = []
    code = next((code for code in codes.values() if code), 0)
    # One killed from outside is a host that was lost, if the others saw it so.
    return code, code in (HOST_LOST, TERMINATED) or (code == KILLED and HOST_LOST in codes.values())

  def start(self, i: int, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", self.options.module, *self.arguments]
    command += [
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={self.options.processes}",
      f"--process_id={i}",
    ]
    before = None
    if self.options.cores_each:
      before = os.sched_getaffinity(0)
      first = i * self.options.cores_each
      os.sched_setaffinity(
        0, sorted(before)[first : first + self.options.cores_each]
      )  # a child has its parent's
    pipe = subprocess.PIPE if i else None
    try:
      # A session of its own: Ctrl-C reaches it once, from us.
      return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
      )
    finally:
      if before is not None:
        os.sched_setaffinity(0, before)

  def forward(self, number: int, _) -> None:
    if number == signal.SIGHUP:  # the terminal was closed: they have no terminal, and would stay
      if self.signals:
        return  # kernel and shell both send one; a second signal would end them unsaved
      number = signal.SIGTERM
    self.signals += 1
    if self.signals > 1:
      self.end_within(self.options.grace)
    for process in self.running:
      if process.poll() is None:
        process.send_signal(number)

  def end_within(self, seconds: float) -> None:
    self.deadline = min(self.deadline, time.monotonic() + seconds)

  def kill(self) -> None:
    for i, process in enumerate(self.running):
      if process.poll() is None:
        _say(f"process {i} has not ended; killing it")
        _kill_group(process.pid)
        process.wait()


def _say(text: str) -> None:
  with contextlib.suppress(OSError):  # the terminal may have been closed
    print(f"local_multiprocess: {text}", file=sys.stderr, flush=True)


def _kill_group(leader: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.killpg(leader, signal.SIGKILL)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _pass_on(prefix: str, stream: io.BufferedReader, out: IO[str]) -> None:
  """Copies lines with a prefix; a progress bar's carriage returns count as ends of lines."""
  rest = b""
  while part := stream.read1():
    *lines, rest = re.split(rb"\r?\n|\r", rest + part)
    _write(prefix, lines, out)
  _write(prefix, [rest], out)


def _write(prefix: str, lines: Sequence[bytes], out: IO[str]) -> None:
  text = "".join(f"{prefix}{line.decode(errors='replace')}\n" for line in lines if line)
  if text:
    out.write(text)
    out.flush()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Splits at `--`: our options, and the arguments of the program."""
  ours = list(argv)
  arguments: list[str] = []
  if "--" in ours:
    at = ours.index("--")
    ours, arguments = ours[:at], ours[at + 1 :]
  parser = argparse.ArgumentParser(
    prog="local_multiprocess.py",
    usage="local_multiprocess.py --processes=N [options] -- ARGUMENTS OF wam_jax.main",
    description="Runs wam_jax as several processes on this machine.",
    allow_abbrev=False,
  )
  parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many processes")
  parser.add_argument(
    "--cores_each", type=int, default=0, metavar="N", help="pins each to N cores of its own"
  )
  parser.add_argument(
    "--restarts",
    type=int,
    default=0,
    metavar="N",
    help="starts all again, at most N times, when a process was lost",
  )
  parser.add_argument(
    "--grace", type=float, default=60, metavar="SECONDS", help="for the others when one has failed (60)"
  )
  parser.add_argument("--module", default="wam_jax.main", help="another program (wam_jax.main)")
  options, unknown = parser.parse_known_args(ours)
  if unknown:
    parser.error(f"not understood: {' '.join(unknown)} (arguments of {options.module} come after --)")
  if options.processes < 1:
    parser.error(f"--processes={options.processes}: at least 1")
  if options.cores_each < 0 or options.restarts < 0 or options.grace < 0:
    parser.error("--cores_each, --restarts and --grace cannot be negative")
  if options.cores_each and not hasattr(os, "sched_getaffinity"):
    parser.error("--cores_each: this system does not bind processes to cores; leave it out")
  cores = len(os.sched_getaffinity(0)) if options.cores_each else os.cpu_count() or 1
  needed = options.processes * options.cores_each
  if needed > cores:
    parser.error(
      f"--processes={options.processes} with --cores_each={options.cores_each} needs {needed} cores, and this"
      f" machine gives {cores}; leave --cores_each out to share them"
    )
  set_here = [word for word in arguments if word.lstrip("-").partition("=")[0] in OURS]
  if set_here:
    parser.error(f"{' '.join(set_here)}: set by this launcher; leave out --{', --'.join(OURS)}")
  return options, arguments


def main(argv: Sequence[str]) -> int:
  return Launcher(*parse(argv)).run()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
