"""Parameters and training states on disk, by Orbax.

Orbax writes into a temporary folder and renames it, so that a killed process leaves either the whole
checkpoint or none.
"""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import Any, TypeVar

import jax
import numpy as np

State = TypeVar("State")
KEEP = 2  # checkpoints kept of a running stage


class CheckpointError(Exception):
  """A checkpoint is missing, unreadable, or of another structure than asked for."""


def save_params(path: str | os.PathLike[str], tree: Any) -> None:
  """Writes final parameters, replacing what is there.

  Args:
    path: folder to create.
    tree: nested dicts of arrays. Saved as host arrays, so that any machine can read them.
  """
  import orbax.checkpoint as ocp

  host = jax.tree.map(np.asarray, jax.device_get(tree))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(pathlib.Path(path).absolute(), host, force=True)
    checkpointer.wait_until_finished()


def load_params(path: str | os.PathLike[str]) -> Any:
  """Reads what `save_params` wrote.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    CheckpointError: nothing there, or Orbax cannot read it.
  """
  import orbax.checkpoint as ocp

  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise CheckpointError(f"{path}: no parameters here")
  try:
    with ocp.StandardCheckpointer() as checkpointer, warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="Sharding info not provided")
      return jax.tree.map(np.asarray, checkpointer.restore(path))
  except Exception as error:  # Orbax raises whatever its layers raise
    raise CheckpointError(f"{path}: cannot be read: {_first_lines(error)}") from error


class Checkpointer:
  """Checkpoints of a running stage, one folder per step, the last two kept.

  Args:
    path: folder, created if needed.
  """

  def __init__(self, path: str | os.PathLike[str]):
    import orbax.checkpoint as ocp

    self.path = pathlib.Path(path).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False)
    self._manager = ocp.CheckpointManager(self.path, options=options)

  def save(self, step: int, state: Any) -> None:
    """Writes `state` (any pytree of arrays) and returns when it is on disk."""
    import orbax.checkpoint as ocp

    if step in self._manager.all_steps():
      return
    self._manager.save(step, args=ocp.args.StandardSave(state))
    self._manager.wait_until_finished()

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def restore(self, example: State, step: int | None = None) -> State:
    """Reads a checkpoint.

    Args:
      example: pytree of the wanted structure, with arrays or ShapeDtypeStructs as leaves.
      step: which one; None: the newest.

    Returns:
      The same structure with the stored values.

    Raises:
      CheckpointError: no checkpoint, or one of another structure, shape or dtype.
    """
    import orbax.checkpoint as ocp

    step = self.latest_step() if step is None else step
    if step is None:
      raise CheckpointError(f"{self.path}: no checkpoint here")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, example)
    try:
      restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax raises whatever its layers raise
      raise CheckpointError(
        f"{self.path / str(step)}: does not fit the state of this run: {_first_lines(error)}"
      ) from error
    return restored

  def close(self) -> None:
    self._manager.close()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def _first_lines(error: Exception, count: int = 12) -> str:
  lines = [line for line in str(error).splitlines() if line.strip()]
  return "\n".join(lines[:count]) or type(error).__name__


def check_params(params: Any, expected: Any, path: str | os.PathLike[str]) -> None:
  """Raises if parameters are not of the wanted structure and shapes.

  Args:
    params: nested dicts of arrays, as read.
    expected: the same of arrays or ShapeDtypeStructs, as the networks want them.
    path: named in the error.

  Raises:
    CheckpointError: with every parameter that is missing, not wanted, or of another shape.
  """
  found, wanted = (
    {
      "/".join(str(key.key) for key in keys): tuple(leaf.shape)
      for keys, leaf in jax.tree.leaves_with_path(tree)
    }
    for tree in (params, expected)
  )
  lines = [f"  {name}: missing, wanted {list(wanted[name])}" for name in wanted if name not in found]
  lines += [f"  {name} {list(found[name])}: not wanted" for name in found if name not in wanted]
  lines += [
    f"  {name}: {list(found[name])}, wanted {list(wanted[name])}"
    for name in wanted
    if name in found and found[name] != wanted[name]
  ]
  if lines:
    raise CheckpointError(
      "\n".join([f"{path}: the parameters are not those of the networks its config describes.", *lines])
    )
