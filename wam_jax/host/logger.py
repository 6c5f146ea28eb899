"""Metrics to JSONL and TensorBoard, progress for people: plain lines, or the live view where there is one."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from wam_jax.host import processes
from wam_jax.host.numbers import whole
from wam_jax.host.progress import Pace, chosen
from wam_jax.host.regular_files import open_file, read_text
from wam_jax.host.words import duration, printable

if TYPE_CHECKING:
  from wam_jax.host.live_view import LiveView, Loop
  from wam_jax.host.trackers import WandbRun

PLAIN_SECONDS = 10.0  # between progress lines when the output is not a terminal
SHOWN = 3  # metrics shown in these lines


class Progress:
  """A line now and then. Made by `Logger.progress`.

  Args:
    total: units of work.
    description: shown next to them.
    initial: units that are done already.
    silent: whether to print nothing.
  """

  def __init__(self, total: int, description: str, initial: int, silent: bool):
    self._total, self._done = total, initial
    self._description = description
    self._note = ""
    self._printed, self._pace = time.monotonic(), Pace(initial)
    self._silent = silent
    self._shown = -1  # what the last line reported as done

  def update(self, n: int = 1) -> None:
    """Counts `n` more units as done."""
    self._done += n
    self._pace.update(self._done)
    if time.monotonic() - self._printed >= PLAIN_SECONDS:
      self._line()

  def note(self, text: str) -> None:
    """Sets the text shown at the end of the line."""
    self._note = text

  def close(self) -> None:
    if self._shown != self._done:
      self._line()

  def _line(self) -> None:
    if self._silent:
      return
    self._printed, self._shown = time.monotonic(), self._done
    speed = self._pace.speed()
    pace = f", {speed:.3g}/s, {duration((self._total - self._done) / speed)} left" if speed else ""
    percent = 100 * self._done // max(self._total, 1)
    _print(f"  {self._description}: {percent} % ({self._done}/{self._total}{pace})  {self._note}".rstrip())


class Logger:
  """Where a stage's numbers go. In a run of several processes only the first one writes and prints.

  Args:
    workdir: the stage's folder; gets `metrics.jsonl` and `tensorboard/`.
    stage: name shown in front of lines.
    view: on a terminal, shows progress and metrics instead of lines.
    wandb: gets the metrics too.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    stage: str,
    view: LiveView | None = None,
    wandb: WandbRun | None = None,
  ):
    self.workdir = pathlib.Path(workdir)
    self.stage = stage
    self._writes = processes.is_first()
    self._view, self._wandb = view, wandb
    self._path = self.workdir / "metrics.jsonl"
    self._tensorboard: _Events | None = None
    self._progress: Progress | None = None

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records metrics of one step.

    Args:
      step: host step the values belong to.
      metrics: name (`stage/group/name`) to scalar; anything that `float` takes. NaN and infinity
        become null in the JSONL file.
    """
    if not self._writes:
      return
    values = {name: float(value) for name, value in metrics.items()}
    step = whole("step", step, 0)
    line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    self.workdir.mkdir(parents=True, exist_ok=True)
    with open_file(self._path, "a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
    if self._tensorboard is None:
      self._tensorboard = _Events(self.workdir / "tensorboard")
    self._tensorboard.write(step, values)
    if self._wandb is not None:
      self._wandb.send(step, values)
    if self._view is not None:
      self._view.show_metrics(values)
    if self._progress is not None:
      shown = chosen(values, SHOWN).items()
      self._progress.note("  ".join(f"{name} {value:.4g}" for name, value in shown))

  @contextlib.contextmanager
  def progress(
    self, total: int, description: str, initial: int = 0, note: str = ""
  ) -> Iterator[Progress | Loop]:
    """Shows how far `total` units of work are; call `.update(n)` on what it yields.

    Args:
      total: units of work.
      description: of them.
      initial: units that are done already.
      note: on a terminal, shown behind the description.
    """
    if self._view is not None:
      with self._view.loop(total, f"{description}, {note}" if note else description, initial) as loop:
        yield loop
      return
    outer, self._progress = self._progress, Progress(total, description, initial, not self._writes)
    try:
      yield self._progress
    finally:
      self._progress.close()
      self._progress = outer

  def info(self, text: str) -> None:
    """Prints one line for people."""
    if self._writes:
      _print(f"[{self.stage}] {text}")  # with a live view, stdout prints above it

  def truncate_after(self, step: int, prefix: str = "") -> None:
    """Drops what was written for steps after `step`, so that a resumed stage leaves no line twice.

    A half-written last line, from a process that was killed, is dropped too.

    Args:
      step: last step to keep.
      prefix: only lines whose metrics all begin with it are dropped, for stages of several loops.
    """
    if not self._writes or not self._path.exists():
      return

    def stays(line: dict[str, Any]) -> bool:
      names = [name for name in line if name not in ("step", "time")]
      return line["step"] <= step or not all(name.startswith(prefix) for name in names)

    lines = read_metrics(self._path)
    kept_lines = [line for line in lines if stays(line)]
    temporary = self._path.with_suffix(".tmp")
    with open_file(temporary, "w", encoding="utf-8") as file:
      file.writelines(json.dumps(line) + "\n" for line in kept_lines)
    temporary.replace(self._path)

  def close(self) -> None:
    """Closes the TensorBoard file."""
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None


class _Events:
  """A file for TensorBoard.

  Written at once and in this thread: tensorboardX's own thread dies when the disk is full or the clock is
  set back by weeks, and ten numbers later the run stands still.
  """

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{secrets.token_hex(4)}"
    self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115
    self._add(file_version="brain.Event:2")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds the values of a step."""
    from tensorboardX.proto.summary_pb2 import Summary

    parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._add(step=step, summary=Summary(value=parts))

  def close(self) -> None:
    self._file.close()

  def _add(self, **content: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    event = Event(wall_time=time.time(), **content).SerializeToString()
    length = struct.pack("<Q", len(event))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    record = memoryview(length + checks[0] + event + checks[1])
    while record:
      record = record[self._file.write(record) :]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Lines of a `metrics.jsonl` (or of the folder holding it); empty when there is none.

  A line that a killed process left half-written is passed over.
  """
  path = pathlib.Path(path)
  path = path / "metrics.jsonl" if path.is_dir() else path
  lines = []
  for text in read_text(path, 2**32).splitlines() if os.path.lexists(path) else ():
    with contextlib.suppress(json.JSONDecodeError):
      lines.append(json.loads(text))
  return lines


def _print(text: str) -> None:
  """Prints a line; a terminal that has gone away is no reason to stop."""
  try:
    print(printable(text), flush=True)
  except OSError as error:
    if error.errno != errno.EIO:
      raise
