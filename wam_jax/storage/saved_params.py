"""Final parameters on disk, by Orbax, with checksums.

A folder appears whole under its name, or not at all; damage is found before anything is read.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import re
import warnings
from typing import Any

import jax
import numpy as np

from wam_jax.host import processes
from wam_jax.host.regular_files import most_inflated
from wam_jax.storage import checksums
from wam_jax.storage.checksums import FORMAT, MANIFEST, MARKER, CheckpointError, NewerFormatError
from wam_jax.storage.orbax_edge import (
  WRITING,
  beside,
  cannot_write,
  first_lines,
  join_writers,
  quiet_when_full,
  remove,
  unfinished,
)

_attempts = itertools.count()


def save_params(path: str | os.PathLike[str], tree: Any) -> None:
  """Writes final parameters, replacing what exists.

  Killed at any moment, it leaves the old parameters or the new ones whole. In a run of many processes the
  first one writes, and waits for no other.

  Args:
    path: folder to create.
    tree: nested dicts of arrays. Saved as host arrays, so that any machine can read them.

  Raises:
    CheckpointError: it cannot be written, for instance because the disk is full. The old ones are kept.
  """
  if not processes.is_first():
    return
  path = pathlib.Path(path).resolve()  # a link stays a link
  new, old = beside(path, ".new"), beside(path, ".old")
  writing = beside(path, f"{WRITING}{os.getpid()}-{next(_attempts)}")
  host = jax.tree.map(np.asarray, jax.device_get(tree))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() and (complete := _complete_params(path)) is not None:
      os.replace(complete, path)  # of a process killed between the last two renames below
    for leftover in (new, old, *unfinished(path.parent, re.escape(path.name))):
      remove(leftover)
    with _params_checkpointer() as checkpointer:
      checkpointer.save(writing, host)
      checkpointer.wait_until_finished()
    checksums.write_json(writing / MARKER, {"format": FORMAT})
    checksums.write_manifest(writing)
    os.replace(writing, new)  # `new` is whole whenever it exists
    if path.exists():
      os.replace(path, old)
    os.replace(new, path)
    checksums.sync_folder(path.parent)
    remove(old)
  except Exception as error:  # Orbax raises whatever its layers raise
    join_writers()
    if path.parent.is_dir():
      for leftover in unfinished(path.parent, re.escape(path.name)):
        remove(leftover, ignore_errors=True)
    kept_note = " The parameters that were there before are kept." if path.exists() else ""
    raise CheckpointError(f"{path}: {cannot_write(error)}{kept_note}") from error


def load_params(path: str | os.PathLike[str]) -> Any:
  """Reads what `save_params` wrote, once every file is found to be what was written.

  Folders of format 1 have no manifest and are read as they are.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    CheckpointError: missing, damaged (names the file), written by a newer version, NaN or infinity in them,
      or Orbax cannot read it.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    complete = _complete_params(path)
    if complete is None:
      raise CheckpointError(f"{path}: no parameters here")
    path = complete
  if os.path.lexists(path / MANIFEST) or os.path.lexists(path / MARKER):
    try:
      checksums.verify(path)
    except NewerFormatError:
      raise
    except CheckpointError as error:
      raise CheckpointError(
        f"{path}: cannot be read: {error}. Take these parameters from a copy, or delete the folder and run "
        "the stage that made it again."
      ) from error
  else:
    checksums.check_files(path)
  try:
    with _params_checkpointer() as checkpointer, warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="Sharding info not provided")
      _check_claim(checkpointer, path)
      params = jax.tree.map(np.asarray, checkpointer.restore(path))
  except CheckpointError:
    raise
  except Exception as error:  # Orbax raises whatever its layers raise
    raise CheckpointError(f"{path}: cannot be read: {first_lines(error)}") from error
  check_finite(params, path)
  return params


def _check_claim(checkpointer: Any, path: pathlib.Path) -> None:
  """Raises CheckpointError for arrays of many more bytes than their compressed files could hold."""
  arrays = jax.tree.leaves(checkpointer.metadata(path).item_metadata)
  claimed = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)
  size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
  if claimed > most_inflated(size):
    raise CheckpointError(f"{path}: {size:,} bytes that unpack to {claimed:,}. Nothing was read.")


def _params_checkpointer() -> Any:
  """An Orbax checkpointer that meets no other process at a barrier."""
  import orbax.checkpoint as ocp

  quiet_when_full()
  process = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"params_{process}"
  )
  return ocp.StandardCheckpointer(multiprocessing_options=options)


def _complete_params(path: pathlib.Path) -> pathlib.Path | None:
  """What a process killed while it replaced parameters left whole next to `path`, the newer first."""
  return next(
    (candidate for candidate in (beside(path, ".new"), beside(path, ".old")) if candidate.is_dir()), None
  )


def check_finite(params: Any, path: str | os.PathLike[str]) -> None:
  """Raises if a number among weights is NaN or infinity, wherever they come from.

  Args:
    params: nested dicts of arrays, as read.
    path: named in the error.

  Raises:
    CheckpointError: with every parameter that holds such numbers.
  """
  names = [
    name for name, leaf in _by_name(params).items() if not np.isfinite(np.asarray(leaf, np.float32)).all()
  ]
  if names:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise CheckpointError(
      f"{path}: NaN or infinity in {shown}: nothing can act by these weights; take others."
    )


def _by_name(params: Any) -> dict[str, Any]:
  """Nested dicts -> {"a/b/kernel": leaf}."""
  return {"/".join(str(key.key) for key in keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}


def check_params(params: Any, expected: Any, path: str | os.PathLike[str]) -> None:
  """Raises if parameters are not of the wanted structure and shapes.

  Args:
    params: nested dicts of arrays, as read.
    expected: the same of arrays or ShapeDtypeStructs, as the networks want them.
    path: named in the error.

  Raises:
    CheckpointError: with every parameter that is missing, not wanted, or of another shape.
  """
  shapes, expected_shapes = (
    {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()} for tree in (params, expected)
  )
  lines = [
    f"  {name}: missing, wanted {list(expected_shapes[name])}"
    for name in expected_shapes
    if name not in shapes
  ]
  lines += [f"  {name} {list(shapes[name])}: not wanted" for name in shapes if name not in expected_shapes]
  lines += [
    f"  {name}: {list(shapes[name])}, wanted {list(expected_shapes[name])}"
    for name in expected_shapes
    if name in shapes and shapes[name] != expected_shapes[name]
  ]
  if lines:
    raise CheckpointError(
      "\n".join([f"{path}: the parameters are not those of the networks its config describes.", *lines])
    )
