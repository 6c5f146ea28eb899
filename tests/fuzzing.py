"""Shared by the fuzzing tests: what a case may do to the machine, and how long it may take."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import sys

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("WAM_FUZZ_CASES", "2000"))
FUZZ = settings(
  max_examples=CASES,
  deadline=None,  # `guarded` has its own, of processor time: other processes do not count
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
MEMORY = 2**30  # bytes of address space that a case may take beyond what there was
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = {
  *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
  *("os.chown", "os.utime", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
  *("shutil.copyfile", "shutil.rmtree", "shutil.move", "socket.connect", "socket.bind", "ctypes.dlopen"),
}
_watching: list[pathlib.Path | None] = []  # where the case may write, None: nowhere; empty: no case runs
_seen: list[str] = []


class TooLong(BaseException):
  """A case took more processor time than it may: no `except Exception` may hide it."""


def _audit(event: str, args: tuple[object, ...]) -> None:
  """Notes whatever changes something outside the process. Hooks stay for ever, so it does nothing else."""
  if not _watching:
    return
  writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
  if not writes and event not in _FORBIDDEN:
    return
  place = next((os.fsdecode(a) for a in args if isinstance(a, str | bytes | os.PathLike)), "")
  if event in ("shutil.copyfile", "shutil.move", "os.rename"):
    place = os.fsdecode(args[1])  # type: ignore[arg-type]
  directory = args[-1]
  if (
    event == "os.remove" and isinstance(directory, int) and directory >= 0
  ):  # rmtree: a name in an open folder
    place = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), place)
  if _watching[0] is None or not pathlib.Path(place).is_relative_to(_watching[0]):
    _seen.append(f"{event} {args}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def guarded(seconds: float, writable: pathlib.Path | None = None, memory: int = MEMORY):
  """Fails when what runs inside takes longer, takes more memory, or changes anything but `writable`."""

  def stop(*_: object) -> None:
    raise TooLong(f"more than {seconds} s of processor time")

  before = resource.getrlimit(resource.RLIMIT_AS)
  taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  handler = signal.signal(signal.SIGPROF, stop)
  _seen.clear()
  _watching.append(writable)
  resource.setrlimit(resource.RLIMIT_AS, (taken + memory, before[1]))
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)
    _watching.clear()
  assert not _seen, f"touched what it may not: {_seen[:3]}"


def listing(folder: pathlib.Path) -> list[tuple[str, int]]:
  """Everything under a folder, with its time of change."""
  return sorted((str(p.relative_to(folder)), p.lstat().st_mtime_ns) for p in folder.rglob("*"))


@st.composite
def damaged(draw, content):
  """These bytes with some changed, lost, added, moved or repeated."""
  data = bytearray(content)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    # Headers and directories lie at the ends, and are small beside the pictures.
    at = draw(st.sampled_from([at, at, min(at % 130, len(data)), max(len(data) - 1 - at % 600, 0)]))
    length = draw(st.sampled_from([1, 1, 2, 4, 8, 100]))
    how = draw(st.integers(0, 7))
    if how <= 2 and at < len(data):
      data[at] ^= draw(st.integers(1, 255))
    elif how == 3:
      data[at : at + length] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"9", b"("])) * length
    elif how == 4:
      del data[at:]
    elif how == 5:
      del data[at : at + length]
    elif how == 6:
      data[at:at] = draw(st.binary(min_size=1, max_size=12))
    else:
      data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 1, 50]))
  return bytes(data)
