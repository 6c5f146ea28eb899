"""Training states on disk, by Orbax, with checksums: checkpoints of a running stage.

Orbax writes into a separate folder for every attempt; its manifest is written
(`wam_jax.storage.checksums`); then one rename gives it its name. So a killed process leaves a whole
checkpoint or none, and damage on the disk is found before anything is read.

Layout of a `Checkpointer`'s folder:

    format.json            {"format": 2}
    <step>/                as Orbax wrote it
    <step>/manifest.json   size and sha256 of every file, the step and its score
    <step>.writing-<n>*    not finished; removed at the next start
    <step>.damaged         set aside: not read again, never deleted by wam_jax
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from wam_jax.host import processes
from wam_jax.host.numbers import whole
from wam_jax.host.regular_files import open_file, read_text
from wam_jax.storage import checksums
from wam_jax.storage.checksums import FORMAT, MANIFEST, MARKER, CheckpointError, NewerFormatError
from wam_jax.storage.orbax_edge import (
  WRITING,
  beside,
  cannot_write,
  first_lines,
  join_writers,
  matching,
  quiet_when_full,
  remove,
  unfinished,
)

State = TypeVar("State")
KEEP = 2  # checkpoints kept of a running stage
_PRUNED = ".pruned"  # renamed before it is deleted, so that half a step never looks like a step
_DAMAGED = ".damaged"


class Checkpointer:
  """Checkpoints of a running stage, one folder per step: the last few and the best one.

  Written in the background. In a run of many processes all of them call every method, in the same order,
  on a file system that they share; the first decides, and alone writes manifests, renames and deletes.

  Args:
    path: folder, created if needed. One of format 1 gets manifests (`MIGRATIONS`).
    keep: how many of the newest to keep, at least 1.
    best: "max" or "min": also keep the one whose score is the highest or lowest. None: by age alone.
    on_damage: called with one line about every checkpoint that is set aside: which, why, what is used
      instead and how many updates are lost. Also about a folder of format 1. None: a Python warning.

  Raises:
    CheckpointError: the folder is of a newer format, or cannot be written.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    keep: int = KEEP,
    best: Literal["max", "min"] | None = None,
    on_damage: Callable[[str], None] | None = None,
  ):
    if keep < 1:
      raise ValueError(f"keep is {keep}, at least 1 is needed")
    if best not in ("max", "min", None):
      raise ValueError(f"best is {best!r}, not 'max', 'min' or None")
    self.path = pathlib.Path(path).absolute()
    self._keep, self._best, self._on_damage = keep, best, on_damage
    self._pending: _Pending | None = None
    self._orbax: Any = None
    self._attempt = 0  # the same in every process
    opened = _on_first(lambda: _open(self.path))
    # Step -> score. Every process has the same, whatever its view of the file system.
    self._steps: dict[int, float | None] = {int(step): score for step, score in opened["steps"].items()}
    self._tell(opened["lines"])

  def save(self, step: int, state: Any, score: float | None = None) -> None:
    """Copies `state` to the host, returns, and writes it in the background.

    Its buffers may be donated at once. Waits for an earlier save first. Does nothing if there is a
    checkpoint of this step.

    Args:
      step: number of updates behind `state`, at least 0.
      state: any pytree of arrays.
      score: what `best` compares; one that is not finite is never the best.

    Raises:
      CheckpointError: this or an earlier save failed, for instance because the disk is full.
    """
    import orbax.checkpoint as ocp

    self.wait()
    step = whole("step", step, 0)
    if step in self._steps:
      return
    score = None if score is None or not math.isfinite(score) else float(score)
    self._attempt += 1
    pending = _Pending(step, score, self.path / f"{step}{WRITING}{self._attempt}")
    try:
      self._writer().save(pending.folder, args=ocp.args.Composite(default=ocp.args.StandardSave(state)))
    except Exception as error:  # Orbax raises whatever its layers raise
      pending.error = error
    else:
      arguments = (pending, dict(self._steps))
      pending.thread = threading.Thread(target=self._finish, args=arguments, name="checkpoint")
    self._pending = pending
    if pending.thread is None:
      self.wait()  # raises
    else:
      pending.thread.start()

  def wait(self) -> None:
    """Returns when the last `save` is on disk, with its manifest.

    Raises:
      CheckpointError: it could not be written. Says why and which earlier steps are valid; what was written
        of it is removed. Raised once.
    """
    pending = self._pending
    if pending is None:
      return
    if pending.thread is not None:
      pending.thread.join()
    self._pending = None
    step = pending.step
    errors = processes.gather("" if pending.error is None else cannot_write(pending.error))
    failed = next((text for text in errors if text), "")
    if failed:
      self._orbax = None  # its own state after an error is not known
      join_writers()
      self._sweep()
      valid = ", ".join(map(str, sorted(self._steps)))
      valid = f"Valid checkpoints: {valid}; a run goes on from the newest." if valid else "There is no other."
      raise CheckpointError(f"{self.path / str(step)}: step {step} {failed} {valid}") from pending.error
    self._steps[step] = pending.score
    for old in self._outdated(self._steps):
      del self._steps[old]
    if pending.not_pruned is not None:
      raise CheckpointError(
        f"{self.path}: an older checkpoint cannot be deleted: {pending.not_pruned}. Step {step} is valid."
      ) from pending.not_pruned

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint that was finished, or None. Waits for a save in the background."""
    self.wait()
    return max(self._steps, default=None)

  def best_step(self) -> int | None:
    """Step of the best score, the newest of equals; None without scores or without `best`."""
    self.wait()
    return self._best_of(self._steps)

  def restore(self, example: State, step: int | None = None) -> State:
    """Reads a checkpoint, once every file of it is found to be what was written.

    Args:
      example: pytree of the wanted structure, with arrays or ShapeDtypeStructs as leaves. The result has the
        shardings of its jax.Arrays, on however many devices; a leaf without one comes as it was saved.
      step: which one. None: the newest good one. Newer damaged ones are set aside as `<step>.damaged`.

    Returns:
      The same structure with the stored values.

    Raises:
      CheckpointError: none; all of them damaged (nothing is touched then); the one asked for damaged;
        written by a newer version; of another structure, shape or dtype than `example`.
    """
    import orbax.checkpoint as ocp

    self.wait()
    step = None if step is None else whole("step", step, 0)
    if step is not None and step not in self._steps:
      steps = ", ".join(map(str, sorted(self._steps))) or "none"
      raise CheckpointError(f"{self.path}: no checkpoint of step {step}; there are: {steps}")
    chosen = _on_first(self._choose if step is None else functools.partial(self._check, step))
    for damaged in chosen["damaged"]:
      del self._steps[damaged]
    self._tell(chosen["lines"])
    folder = self.path / str(chosen["step"])
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, example)
    try:
      return self._writer().restore(
        folder, args=ocp.args.Composite(default=ocp.args.StandardRestore(abstract))
      )["default"]
    except Exception as error:  # Orbax raises whatever its layers raise
      raise CheckpointError(f"{folder}: does not fit the state of this run: {first_lines(error)}") from error

  def go_back_to_best(self, example: State) -> State:
    """Reads the best checkpoint, from which another way is taken: newer ones become `<step>.left`.

    Done once for a best one: after that the newest is read, which has gone on from there. So it is where no
    checkpoint has a score, as after a stage too short for any but its last.

    Args:
      example: as for `restore`.

    Raises:
      CheckpointError: as `restore`.
    """
    self.wait()
    best = self.best_step()
    if best is None:
      return self.restore(example)
    marker = self.path / "went_back_to.json"
    read = lambda: {"done": os.path.lexists(marker) and read_text(marker) == str(best)}
    if _on_first(read)["done"]:
      return self.restore(example)
    state = self.restore(example, best)
    newer = [step for step in sorted(self._steps) if step > best]

    def leave() -> dict[str, Any]:
      for step in newer:
        retired = beside(self.path / str(step), ".left")
        remove(retired)
        os.replace(self.path / str(step), retired)
      with open_file(marker, "w", encoding="utf-8") as file:
        file.write(str(best))
      return {}

    _on_first(leave)
    for step in newer:
      del self._steps[step]
    if newer:
      text = ", ".join(map(str, newer))
      self._tell([f"went back to the best checkpoint, step {best}; step {text} set aside as <step>.left"])
    return state

  def close(self) -> None:
    """Waits for a save in the background.

    Raises:
      CheckpointError: it could not be written.
    """
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None
      self._sweep()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
    if error is None:
      self.close()
    elif processes.count() > 1:
      # The others may not come here, so no word with them. What is not finished is set aside at the next
      # start.
      if self._pending is not None and self._pending.thread is not None:
        self._pending.thread.join()
    else:
      try:
        self.close()
      except CheckpointError as later_error:  # the first error is the cause of the end
        error.add_note(str(later_error))

  def _sweep(self) -> None:
    """Removes what failed saves left."""
    if processes.is_first() and self.path.is_dir():
      for leftover in unfinished(self.path, r"\d+"):
        remove(leftover, ignore_errors=True)

  def _writer(self) -> Any:
    import orbax.checkpoint as ocp

    if self._orbax is None:
      quiet_when_full()
      # Else a folder may be made after a save that failed at once was cleaned up.
      options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
      handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=options),
        default=ocp.StandardCheckpointHandler(),
      )
      self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)
    return self._orbax

  def _finish(self, pending: _Pending, scores: dict[int, float | None]) -> None:
    """In the background: once Orbax is done the manifest, then the name, then no more of the oldest steps."""
    # Not Orbax's post_finalization_callback, which it calls before it has written its last file.
    try:
      self._orbax.wait_until_finished()
      if processes.is_first():
        checksums.write_manifest(pending.folder, pending.step, pending.score)
        os.replace(pending.folder, self.path / str(pending.step))
        checksums.sync_folder(self.path)
    except BaseException as error:  # raised by wait()
      pending.error = error
      return
    if processes.is_first():
      try:
        for old in self._outdated(scores | {pending.step: pending.score}):
          pruned = self.path / f"{old}{_PRUNED}"
          remove(pruned)
          os.replace(self.path / str(old), pruned)
          remove(pruned)
      except OSError as error:
        pending.not_pruned = error

  def _best_of(self, steps: dict[int, float | None]) -> int | None:
    sign = -1 if self._best == "min" else 1
    scored = [(sign * score, step) for step, score in steps.items() if score is not None]
    return max(scored)[1] if scored and self._best is not None else None

  def _outdated(self, steps: dict[int, float | None]) -> list[int]:
    """Steps that are neither among the newest nor the best, oldest first."""
    best = self._best_of(steps)
    return [step for step in sorted(steps)[: -self._keep] if step != best]

  def _choose(self) -> dict[str, Any]:
    """The newest good step, once the bad ones newer than it are set aside."""
    bad: dict[int, str] = {}
    for step in sorted(self._steps, reverse=True):
      try:
        checksums.verify(self.path / str(step), step)
      except NewerFormatError:
        raise
      except CheckpointError as error:
        bad[step] = str(error)
        continue
      lines = [
        f"checkpoint of step {damaged} is damaged: {reason}; set aside as "
        f"{_set_aside(self.path, damaged)}; step {step} is used instead, {damaged - step} updates are lost"
        for damaged, reason in bad.items()
      ]
      return {"step": step, "damaged": list(bad), "lines": lines}
    if not bad:
      raise CheckpointError(f"{self.path}: no checkpoint here")
    raise CheckpointError(_all_damaged(self.path, bad))

  def _check(self, step: int) -> dict[str, Any]:
    try:
      checksums.verify(self.path / str(step), step)
    except NewerFormatError:
      raise
    except CheckpointError as error:
      other_steps = (
        ", ".join(str(candidate) for candidate in sorted(self._steps) if candidate != step) or "none"
      )
      raise CheckpointError(
        f"checkpoint of step {step} is damaged: {error}; other steps here: {other_steps}"
      ) from error
    return {"step": step, "damaged": [], "lines": []}

  def _tell(self, lines: Iterable[str]) -> None:
    for line in lines:
      if self._on_damage is None:
        warnings.warn(line, RuntimeWarning, stacklevel=3)
      else:
        self._on_damage(line)


@dataclasses.dataclass
class _Pending:
  """A save in the background. Its thread writes the last two, which are read after it has ended."""

  step: int
  score: float | None
  folder: pathlib.Path
  thread: threading.Thread | None = None
  error: BaseException | None = None
  not_pruned: OSError | None = None


def _open(path: pathlib.Path) -> dict[str, Any]:
  """Makes a folder ready and lists it: {"steps": {step: score}, "lines": what happened}."""
  lines: list[str] = []
  path.mkdir(parents=True, exist_ok=True)
  marker = path / MARKER
  marked = os.path.lexists(marker)
  version = FORMAT
  if marked:
    # A marker that cannot be read leaves the strict rules in force: without a manifest nothing is believed.
    with contextlib.suppress(CheckpointError):
      version = checksums.read_json(marker).get("format", FORMAT)
    try:
      checksums.check_format(version, marker)
    except NewerFormatError:
      raise
    except CheckpointError:
      version = FORMAT
  elif _folders(path):
    version = 1
  for entry in [*unfinished(path, r"\d+"), *matching(path, rf"\d+{re.escape(_PRUNED)}")]:
    remove(entry)  # of a process killed while it wrote or deleted
  for old in range(version, FORMAT):
    lines += MIGRATIONS[old](path)
  if version < FORMAT or not marked:
    checksums.write_json(marker, {"format": FORMAT})
  steps = _folders(path)
  if steps and not os.path.lexists(path / str(steps[-1]) / MANIFEST):
    # A copy that was cut short, not a kill of ours. Only the newest can be one; in others it is damage.
    last = steps.pop()
    then = "there is no other: training begins again"
    if steps:
      then = f"step {steps[-1]} is used instead, {last - steps[-1]} updates are lost"
    aside = _set_aside(path, last)
    lines.append(
      f"checkpoint of step {last} is not finished: {path / str(last) / MANIFEST} is missing; set aside as "
      f"{aside}; {then}"
    )
  scores: dict[str, float | None] = {}
  for step in steps:
    scores[str(step)] = None
    with contextlib.suppress(CheckpointError):  # restore says what is wrong
      scores[str(step)] = checksums.read_manifest(path / str(step)).score
  return {"steps": scores, "lines": lines}


def _from_format_1(path: pathlib.Path) -> list[str]:
  """Gives every step of a folder without manifests one. Returns lines for `on_damage`.

  Raises:
    CheckpointError: Orbax can read none of them. Nothing is changed then.
  """
  steps = _folders(path)
  unknown = [step for step in steps if not os.path.lexists(path / str(step) / MANIFEST)]
  # Nothing says what the files held, but what Orbax cannot read must not be called good.
  bad = {step: reason for step in unknown if (reason := _unreadable(path / str(step)))}
  if bad and len(bad) == len(steps):
    raise CheckpointError(_all_damaged(path, bad))
  lines = []
  for step, reason in bad.items():
    aside = _set_aside(path, step)
    lines.append(f"checkpoint of step {step} is damaged: {reason}; set aside as {aside}")
  good = [step for step in unknown if step not in bad]
  for step in good:
    checksums.write_manifest(path / str(step), step)
  if good:
    lines.append(
      f"{path}: checkpoints of format 1, which has no checksums: {', '.join(map(str, good))} taken as they "
      f"are, and given some"
    )
  return lines


# Format -> what makes a folder of it one of the next format, told on the lines it returns. A kill in the
# middle must leave what the same function can go on from.
MIGRATIONS: dict[int, Callable[[pathlib.Path], list[str]]] = {1: _from_format_1}


def _unreadable(step_folder: pathlib.Path) -> str | None:
  """Why Orbax cannot read a step, on one line, or None."""
  import orbax.checkpoint as ocp

  process = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"migrate_{process}"
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  try:
    with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
      tree = checkpointer.metadata(step_folder / "default").item_metadata
      restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      checkpointer.restore(step_folder / "default", args=ocp.args.PyTreeRestore(restore_args=restore_args))
  except Exception as error:  # Orbax raises whatever its layers raise
    return " ".join(first_lines(error, 3).split())
  return None


def _folders(path: pathlib.Path) -> list[int]:
  """Steps that have a folder, oldest first."""
  names = (entry.name for entry in path.iterdir() if entry.is_dir())
  return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def _set_aside(path: pathlib.Path, step: int) -> str:
  """Renames a step so that it is not in the way of saving it again. Returns the new name."""
  name, number = f"{step}{_DAMAGED}", 1
  while os.path.lexists(path / name):
    number += 1
    name = f"{step}{_DAMAGED}-{number}"
  os.replace(path / str(step), path / name)
  return name


def _all_damaged(path: pathlib.Path, reasons: dict[int, str]) -> str:
  lines = [f"  step {step}: {reason}" for step, reason in sorted(reasons.items(), reverse=True)]
  text = f"Nothing was changed. Put back a copy of them, or delete {path} to begin again."
  return "\n".join([f"{path}: every checkpoint is damaged:", *lines, text])


def _on_first(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """What `function` returns (as JSON has it) or raises in the first process, in every process."""
  answer: dict[str, Any] = {}
  cause: Exception | None = None
  if processes.is_first():
    try:
      answer = {"value": function()}
    except (CheckpointError, OSError) as error:
      cause = error
      answer = {"error": str(error), "newer": isinstance(error, NewerFormatError)}
  answer = processes.gather(answer)[0]
  if "error" in answer:
    raise (NewerFormatError if answer["newer"] else CheckpointError)(answer["error"]) from cause
  return answer["value"]
