"""Files opened only if they are files: a pipe would wait for ever, and a device has no end.

All that a stranger may have put in a folder is opened here: data, weights, artifacts, locks, experiments.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

PathLike = str | os.PathLike[str]
MAX_INFLATED = 2**26  # bytes that a small archive may unpack to: pictures of 4,700 x 4,700 pixels
MAX_RATIO = (
  32  # the same for each byte of a larger one: pictures unpack to ten times as many, weights to less
)
_KINDS = {
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a named pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}


class NotAFileError(OSError):
  """Something else has the name of a file: a pipe, a device, a socket, a folder."""


def _check(status: os.stat_result, path: PathLike) -> None:
  if not stat.S_ISREG(status.st_mode):
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    raise NotAFileError(errno.EINVAL, f"{kind}, not a file", os.fspath(path))


def _open(path: str, flags: int) -> int:
  try:
    _check(os.stat(path), path)  # before it is opened: with some devices that alone does something
  except FileNotFoundError:
    if not flags & os.O_CREAT:
      raise
  handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
  try:
    _check(os.fstat(handle), path)  # it may have been changed for another meanwhile
  except OSError:
    os.close(handle)
    raise
  return handle


def _checked_name(path: PathLike) -> PathLike:
  try:
    if b"\0" not in os.fsencode(path):
      return path
  except UnicodeEncodeError:
    pass
  raise OSError(errno.EINVAL, "no file can have such a name", os.fspath(path))  # Python's is a ValueError


def check_file(path: PathLike) -> None:
  """Raises what `open_file` does, for files that others open. Opens nothing: a link may lead anywhere."""
  _check(os.stat(_checked_name(path)), path)
  if not os.access(path, os.R_OK):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def open_file(path: PathLike, mode: str = "rb", **options: Any) -> Any:
  """`open`, for regular files and links to them.

  Raises:
    NotAFileError: at once, where something else is; its `strerror` says what.
    OSError: as of `open`; also a link to itself, and a name with null characters or lone surrogates.
  """
  return open(_checked_name(path), mode, opener=_open, **options)


def read_bytes(path: PathLike, most: int = 2**62) -> bytes:
  """All of a file.

  Raises:
    OSError: as `open_file`, and where it has more bytes than `most` (a sparse file costs nothing to make).
  """
  with open_file(path, buffering=0) as file:
    size = os.fstat(file.fileno()).st_size
    if size > most:
      raise OSError(errno.EFBIG, f"{size:,} bytes, of which it may have {most:,}", os.fspath(path))
    content: bytes = file.read()
    return content


def read_text(path: PathLike, most: int = 2**28) -> str:
  """All of a file in UTF-8. Raises OSError as `read_bytes`, and UnicodeDecodeError."""
  return read_bytes(path, most).decode("utf-8")


def most_inflated(size: int) -> int:
  """Bytes that the members of an archive of this size may unpack to, all together."""
  return MAX_INFLATED + MAX_RATIO * size
