"""The error of all that reads datasets, and their small files: descriptions in JSON."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from wam_jax import embodiment
from wam_jax.embodiment import Embodiment, EmbodimentError
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
