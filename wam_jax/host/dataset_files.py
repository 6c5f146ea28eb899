"""The error of all that reads datasets, and their small files: descriptions in JSON."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from wam_jax import embodiment
from wam_jax.embodiment import Embodiment, EmbodimentError
from wam_jax.host.locks import LockError, NoLocksError, locked
from wam_jax.host.regular_files import read_text
from wam_jax.host.words import PrintableError

PathLike = str | os.PathLike[str]
COPY_AGAIN = "copy or download this file again."


class DatasetError(PrintableError, ValueError):
  """Something on disk breaks a rule of the format: names the file, the key, the rule and what to do."""

  def __init__(self, file: PathLike, rule: str, *, key: str = "", fix: str = ""):
    self.file, self.key, self.rule, self.fix = pathlib.Path(file), key, rule, fix
    where = f"{self.file}" + (f", key '{key}'" if key else "")
    super().__init__(f"{where}: {rule}" + (f" What to do: {fix}" if fix else ""))


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, lock: str, log: Callable[[str], None]) -> Iterator[None]:
  """Keeps other processes from converting to a folder, which is made if needed.

  Args:
    folder: that is written to.
    lock: name of the locked file in it.
    log: called with a line of text where the file system has no locks: then nobody is kept away.

  Raises:
    DatasetError: another process is at work there.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locked(folder / lock, wait=False))
    except NoLocksError as error:
      log(f"{error}. Until then start no second conversion to {folder}.")
    except LockError as error:
      raise DatasetError(folder, f"{error}.", fix="another --out.") from None
    yield


def foreign(folder: pathlib.Path) -> DatasetError:
  """For what has the name of an unfinished conversion, and is none."""
  rule = "is there already, and is no unfinished conversion; nothing in it was changed."
  return DatasetError(folder, rule, fix="move it elsewhere, or choose another --out.")


def _text(path: PathLike) -> str:
  try:
    return read_text(path)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise DatasetError(path, f"cannot be read ({reason}).", fix=COPY_AGAIN) from None


def read_json(path: PathLike) -> dict[str, Any]:
  """An object in JSON. Raises DatasetError: the file cannot be read or holds something else."""
  try:
    content = json.loads(_text(path))
  except DatasetError:
    raise
  except (ValueError, RecursionError):
    content = None
  if not isinstance(content, dict):
    raise DatasetError(path, "must hold an object in JSON.", fix=COPY_AGAIN)
  return content


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
  """Objects in JSON, one a line. Raises DatasetError as `read_json`."""
  try:
    content = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
  except DatasetError:
    raise
  except (ValueError, RecursionError):
    content = [None]
  if not all(isinstance(item, dict) for item in content):
    raise DatasetError(path, "must hold one object in JSON a line.", fix=COPY_AGAIN)
  return content


def read_description(path: PathLike) -> Embodiment:
  """The robot that an embodiment.json describes. Raises DatasetError: unreadable, or it breaks a rule."""
  try:
    return embodiment.from_json(_text(path))
  except EmbodimentError as error:
    raise DatasetError(path, f"{error}.", fix=f"correct it; {embodiment.EXAMPLE}.") from None
