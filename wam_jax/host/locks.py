"""Locks on files, of which the system lets go when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from wam_jax.host.regular_files import NotAFileError, open_file

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_FIX = (
  "its file system has no locks, or they do not work; mount it with locks (NFS: with lockd running; "
  "Lustre: -o flock), or use a folder on another disk"
)


class LockError(Exception):
  """A file cannot be locked; the text says why and what to do."""


class TakenError(LockError):
  """Another process holds the lock."""


class NoLocksError(LockError):
  """The file system has no locks."""


@contextlib.contextmanager
def locked(file: str | os.PathLike[str], wait: bool) -> Iterator[None]:
  """Holds a lock.

  Args:
    file: created if needed; its folder must exist.
    wait: until another process lets go of it.

  Raises:
    OSError: the file cannot be made.
    LockError: something else has its name.
    TakenError: another process holds it, and `wait` is false.
    NoLocksError: its file system has no locks (ENOLCK, ENOSYS and others).
  """
  folder = pathlib.Path(file).parent
  try:
    stream = open_file(file, "a")
  except NotAFileError as error:
    raise LockError(f"{file}: {error.strerror}; remove it") from error
  with stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
      if error.errno in _TAKEN:
        raise TakenError(f"another process is at work in {folder}; wait for it") from error
      raise NoLocksError(f"{folder} cannot be locked ({error.strerror}): {_FIX}") from error
    yield
