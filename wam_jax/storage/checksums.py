"""Manifests: what every file of a checkpoint folder holds, so that a damaged one is told from a whole one.

Orbax notices a truncated file, but reads overwritten bytes as wrong numbers. A manifest is written last:
a folder without one is not finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wam_jax.host.regular_files import check_file, open_file, read_bytes
from wam_jax.host.words import PrintableError

FORMAT = 2  # of checkpoint folders; 1 had no manifests
MANIFEST = "manifest.json"
MARKER = "format.json"  # in a folder that has manifests, so that a missing one is told from format 1
_LARGEST = 64 * 2**20  # bytes of a manifest; ours have 200 per file
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL = "sha256"  # key in a record, of all else in it: a flipped bit in a number is valid JSON


class CheckpointError(PrintableError):
  """A checkpoint is missing, damaged, unreadable, or of another structure than asked for."""


class NewerFormatError(CheckpointError):
  """A folder is of a format that this version does not know. It is not damaged."""


@dataclasses.dataclass(frozen=True)
class File:
  """One file: its size in bytes and the sha256 of its content, 64 hexadecimal digits."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a checkpoint folder holds.

  Attributes:
    files: path relative to the folder, with slashes -> its size and hash.
    step: number of updates behind the checkpoint; None for parameters.
    score: what `best` compares, if there is one.
  """

  files: dict[str, File]
  step: int | None = None
  score: float | None = None


def write_manifest(
  folder: str | os.PathLike[str], step: int | None = None, score: float | None = None
) -> Manifest:
  """Writes the manifest of a finished folder, whole or not at all.

  Args:
    folder: every regular file in it, at any depth, is listed but the manifest itself.
    step: number of updates behind it.
    score: finite; what `best` compares.
  """
  folder = pathlib.Path(folder)
  files = {}
  for file in sorted(folder.rglob("*")):
    name = file.relative_to(folder).as_posix()
    if name not in (MANIFEST, MANIFEST + ".tmp") and file.is_file() and not file.is_symlink():
      files[name] = File(file.stat().st_size, _sha256(file))
  manifest = Manifest(files, step, score)
  body = {"format": FORMAT} | dataclasses.asdict(manifest)
  write_json(folder / MANIFEST, seal(body))
  return manifest


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
  """Reads a manifest and believes nothing of it: paths must stay inside the folder, types must be right.

  Raises:
    NewerFormatError: written by a newer version.
    CheckpointError: missing or not a manifest. Says what is wrong with it, on one line.
  """
  file = pathlib.Path(folder) / MANIFEST
  record = read_json(file)
  check_format(record.get("format"), file)
  if not unseal(record):
    raise CheckpointError(f"{file}: content differs from what was written (its own sha256)")
  step, score, files = record.get("step"), record.get("score"), record.get("files")
  if step is not None and (type(step) is not int or step < 0):
    raise CheckpointError(f"{file}: step is {step!r:.40}, not a number of updates")
  if score is not None and (type(score) not in (int, float) or not _finite(score)):
    raise CheckpointError(f"{file}: score is {score!r:.40}, not a finite number")
  if not isinstance(files, dict) or not files:
    raise CheckpointError(f"{file}: lists no files")
  return Manifest(
    {name: _listed(file, name, entry) for name, entry in files.items()},
    step,
    None if score is None else float(score),
  )


def verify(folder: str | os.PathLike[str], step: int | None = None) -> Manifest:
  """Compares every listed file with the manifest.

  Args:
    folder: with a manifest.
    step: what the manifest must name.

  Raises:
    NewerFormatError: written by a newer version.
    CheckpointError: damaged. Names the first bad file and what is wrong with it, on one line.
  """
  folder = pathlib.Path(folder)
  manifest = read_manifest(folder)
  if manifest.step != step:
    raise CheckpointError(f"{folder / MANIFEST}: of step {manifest.step}, not of step {step}")
  check_files(folder)  # also of what no manifest lists
  root = os.path.realpath(folder)
  for name, entry in manifest.files.items():
    file = folder / name
    try:
      # A link may lead outside; Orbax makes none.
      if os.path.realpath(file) != os.path.join(root, name):
        raise CheckpointError(f"{file}: is a link")
      if not file.exists():
        raise CheckpointError(f"{file}: missing")
      if not file.is_file():
        raise CheckpointError(f"{file}: not a file")
      size = file.stat().st_size
      if size != entry.bytes:
        fault = "truncated" if size < entry.bytes else "too long"
        raise CheckpointError(f"{file}: {fault}: {size} bytes found, {entry.bytes} expected")
      if _sha256(file) != entry.sha256:
        raise CheckpointError(f"{file}: content differs from what was written (sha256)")
    except (OSError, ValueError) as error:
      raise CheckpointError(f"{file}: cannot be read ({error})") from error
  return manifest


def check_files(folder: pathlib.Path) -> None:
  """Raises CheckpointError where something in a folder is neither file nor folder: Orbax would wait."""
  for path in folder.rglob("*"):
    try:
      if not path.is_dir():
        check_file(path)
    except OSError as error:
      raise CheckpointError(f"{path}: {error.strerror}") from error


def check_format(version: Any, file: pathlib.Path) -> int:
  """Raises if a format is not known.

  Raises:
    NewerFormatError: newer than this version.
    CheckpointError: not a version.
  """
  if type(version) is not int or version < 1:
    raise CheckpointError(f"{file}: format is {version!r:.40}, not a version")
  if version > FORMAT:
    raise NewerFormatError(
      f"{file}: written by a newer wam_jax: format {min(version, 10**9)}, this version reads up to "
      f"{FORMAT}; update wam_jax"
    )
  return version


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    CheckpointError: missing, or not a JSON object. On one line.
  """
  try:
    if not os.path.lexists(file):
      raise CheckpointError(f"{file}: missing")
    if file.is_symlink() or not file.is_file():
      raise CheckpointError(f"{file}: not a file")
    record = json.loads(read_bytes(file, _LARGEST).decode("utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    reason = " ".join(str(error).split())
    raise CheckpointError(f"{file}: content differs from what was written ({reason:.200})") from error
  if not isinstance(record, dict):
    raise CheckpointError(f"{file}: content differs from what was written (not a JSON object)")
  return record


def write_json(file: pathlib.Path, record: dict[str, Any]) -> None:
  """Writes a JSON file as `write_text` does."""
  write_text(file, json.dumps(record, indent=2) + "\n")


def write_text(file: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all, and has it on the disk before it has its name."""
  temporary = file.with_name(file.name + ".tmp")
  with open_file(temporary, "w", encoding="utf-8") as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  os.replace(temporary, file)
  sync_folder(file.parent)


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which gets its name when the block ends without an error; else it is removed.

  Args:
    out: its name; an empty folder may be there.

  Raises:
    FileExistsError: something else is there. Nothing is written.
  """
  out = out.resolve()
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise FileExistsError(errno.EEXIST, "is there already; nothing was written", str(out))
  partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")  # of this process alone, whatever else is there
  partial.mkdir(parents=True)
  try:
    yield partial
    sync_files(partial)
    if out.exists():
      out.rmdir()
    partial.rename(out)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  sync_folder(out.parent)


def sync_folder(folder: pathlib.Path) -> None:
  """Has renames in a folder on the disk, where the system can."""
  try:
    handle = os.open(folder, os.O_RDONLY)
  except OSError:  # Windows opens no folders
    return
  try:
    os.fsync(handle)
  except OSError as error:
    if error.errno not in (
      errno.EINVAL,
      errno.ENOTSUP,
      errno.EBADF,
    ):  # as shared folders of some systems answer
      raise
  finally:
    os.close(handle)


def sync_files(folder: pathlib.Path) -> None:
  """Has what the files of a folder hold on the disk; those of folders in it are not looked at."""
  for file in folder.iterdir():
    if file.is_file():
      with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def seal(record: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
  """The record with a digest of all else in it, and of arrays that are saved with it."""
  return record | {_SEAL: _digest(record, arrays)}


def unseal(record: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bool | None:
  """Takes the digest out of a record; whether the rest is what was sealed. None: it never was."""
  recorded = record.pop(_SEAL, None)
  try:
    return None if recorded is None else recorded == _digest(record, arrays)
  except (ValueError, RecursionError):  # numbers of more digits than Python prints; too deep
    return False


def _digest(record: dict[str, Any], arrays: Mapping[str, np.ndarray] | None) -> str:
  if arrays is not None:
    parts = {
      k: [x.dtype.str, list(x.shape), hashlib.sha256(x.tobytes()).hexdigest()] for k, x in arrays.items()
    }
    record = {"meta": record, "arrays": parts}
  text = json.dumps(record, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _listed(manifest: pathlib.Path, name: str, entry: Any) -> File:
  parts = name.split("/")
  # A name with a backslash or a drive is a path outside on Windows.
  outside = any(part in ("", ".", "..") for part in parts) or any(sign in name for sign in "\\:\0")
  if outside or name == MANIFEST:
    raise CheckpointError(f"{manifest}: lists {name!r:.80}, which is not a file of this folder")
  size, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
  if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
    raise CheckpointError(f"{manifest}: no size and sha256 of {name!r:.80}")
  return File(size, sha256)


def _finite(number: int | float) -> bool:
  try:
    return math.isfinite(number)
  except OverflowError:
    return False


def _sha256(file: pathlib.Path) -> str:
  with open_file(file) as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
