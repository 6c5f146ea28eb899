"""One live picture of a run on a terminal: its stages, the loop that runs, the last metrics.

Drawn by whoever reports progress, a few times a second: no thread draws, so that none can die or hold a lock.
A long call of a compiled program leaves the picture as it is. What else Python prints in this process
scrolls above it; what others write to the terminal, the next drawing may overwrite. When the terminal can no
longer be written to, the run goes on without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from wam_jax.host.progress import Pace, chosen
from wam_jax.host.words import duration

REFRESH_SECONDS = 0.25  # at least, between drawings
SHOWN = 6  # metrics
METRIC_LINES = 2
MOST_COLUMNS = 100  # a wider picture would be broken up when the window is made smaller

_STYLES = {"done": "green", "runs": "bold cyan", "stopped": "bold red"}


def suits(stdout: IO[str], stderr: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
  """Whether a picture can be drawn: both are a terminal that moves its cursor. Otherwise lines are printed.

  Args:
    stdout: where it would be drawn.
    stderr: if that goes elsewhere, or `stdout` through a pipe to a terminal, the two would mix.
    environ: environment variables. A notebook's !command is given a terminal that is none.
  """
  try:
    terminal = stdout.isatty() and stderr.isatty()
  except (ValueError, AttributeError):  # closed, or none at all
    return False
  refused = "0" in (environ.get("TTY_INTERACTIVE"), environ.get("TTY_COMPATIBLE"))
  dumb = environ.get("TERM", "").lower() in ("dumb", "unknown")
  return terminal and not refused and not dumb and "JPY_PARENT_PID" not in environ


@dataclasses.dataclass
class StageLine:
  """What is shown of a stage.

  Attributes:
    stage: its name.
    state: 'done', 'given' (taken from elsewhere), 'waits', 'runs' or 'stopped'.
    seconds: it took, of one that is done.
    estimate: seconds that it may take, of one that waits or runs.
    note: shown behind.
  """

  stage: str
  state: str
  seconds: float = 0.0
  estimate: float = 0.0
  note: str = ""


class Loop:
  """Units of work under way. Made by `LiveView.loop`.

  Args:
    view: the picture.
    total: units of work.
    description: shown above the bar.
    initial: units that are done already.
  """

  def __init__(self, view: LiveView, total: int, description: str, initial: int):
    self._view, self.total, self.done, self.description = view, total, initial, description
    self.pace = Pace(initial)

  def update(self, n: int = 1) -> None:
    """Counts `n` more units as done."""
    self.done += n
    self.pace.update(self.done)
    self._view.refresh()


class LiveView:
  """The picture; a context that draws it and leaves its last state in place.

  Args:
    title: first line; empty: none.
    stages: of the run, in order.
    console: that draws; None: stdout. Its file must be a `Terminal` if errors are to be survived.
  """

  def __init__(self, title: str, stages: Sequence[StageLine], console: Console | None = None):
    self._title, self._stages = title, list(stages)
    self._console = console or make_console(sys.stdout)
    self._live = Live(console=self._console, get_renderable=lambda: self, auto_refresh=False)
    self._loop: Loop | None = None
    self._metrics: dict[str, float] = {}
    self._start = self._began = self._drawn = time.monotonic()
    self._ended = False
    self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

  def __enter__(self) -> LiveView:
    streams = (sys.stdout, sys.stderr)
    self._live.start()
    for handler in _stream_handlers():  # they hold the streams of the moment they were made
      if handler.stream in streams:
        new = sys.stdout if handler.stream is streams[0] else sys.stderr
        self._handlers.append((handler, handler.setStream(new)))
    self.refresh(now=True)
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for line in self._stages:
      if line.state == "runs":
        line.state, line.seconds = "stopped", time.monotonic() - self._began
    self._ended = True
    for handler, stream in self._handlers:
      handler.setStream(stream)
    self._live.stop()

  def begin(self, stage: str) -> None:
    """Shows a stage as running."""
    self._began = time.monotonic()
    self._line(stage).state = "runs"
    self.refresh(now=True)

  def finish(self, stage: str, seconds: float) -> None:
    """Shows a stage as done."""
    line = self._line(stage)
    line.state, line.seconds = "done", seconds
    self._loop, self._metrics = None, {}
    self.refresh(now=True)

  @contextlib.contextmanager
  def loop(self, total: int, description: str, initial: int = 0) -> Iterator[Loop]:
    """Shows how far `total` units of work are; call `.update(n)` on what it yields."""
    outer, self._metrics = self._loop, {}
    self._loop = loop = Loop(self, total, description, initial)
    self.refresh(now=True)
    yield loop  # after an error it stays, to be seen
    self._loop = outer if outer is not None and outer.done < outer.total else loop
    self.refresh(now=True)

  def show_metrics(self, metrics: Mapping[str, float]) -> None:
    """Shows these in place of those before; drawn with the next update."""
    self._metrics = chosen(metrics, SHOWN)

  def message(self, text: str) -> None:
    """Shows a line above the picture. May be called by any thread."""
    self._console.print(Text(text))

  def refresh(self, now: bool = False) -> None:
    """Draws, if the last drawing is old enough or `now`."""
    if now or time.monotonic() - self._drawn >= REFRESH_SECONDS:
      self._live.refresh()
      self._drawn = time.monotonic()

  def _line(self, stage: str) -> StageLine:
    return next(line for line in self._stages if line.stage == stage)

  # --- the picture ---

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    width = min(console.width, MOST_COLUMNS) - 1
    running = list(self._loop_lines(width))
    lines: list[list[Any]] = [[self._stage_line(line)] for line in self._stages]
    at = next((i for i, line in enumerate(self._stages) if line.state in ("runs", "stopped")), len(lines))
    head = (
      [[Text(f"{self._title}  {duration(time.monotonic() - self._start)}", "bold")]] if self._title else []
    )
    # In a low window stages that are done leave first, then those that come last.
    excess = 0 if self._ended else len(head) + len(lines) + len(running) + 1 - console.height
    first = min(max(excess, 0), at)
    last = max(len(lines) - max(excess - first, 0), at + 1)
    for parts in [*head, *lines[first : at + 1], *running, *lines[at + 1 : last]]:
      *before, text = parts
      yield from before
      text.truncate(width, overflow="crop")
      yield text
    if not self._ended:
      yield Text()  # the cursor rests on a separate line

  def _stage_line(self, line: StageLine) -> Text:
    text = Text(f"  {line.stage:<18} ")
    text.append(f"{line.state:<8}", _STYLES.get(line.state, ""))
    seconds = time.monotonic() - self._began if line.state == "runs" else line.seconds
    text.append(f" {duration(seconds) if line.state in ('done', 'runs', 'stopped') else '':>8}")
    if line.state in ("runs", "waits") and line.estimate:
      text.append(f"  about {duration(line.estimate)}", "dim")
    text.append(f"  {line.note}" if line.note else "", "dim")
    return text

  def _loop_lines(self, width: int) -> Iterator[list[Any]]:
    """Lines of [what is drawn before the text ..., text]."""
    loop = self._loop
    if loop is None:
      return
    yield [Text(f"    {loop.description}")]
    speed = loop.pace.speed()
    pace = ""
    if speed:
      pace = f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each"
      pace += f"  {duration(max(loop.total - loop.done, 0) / speed)} left"
    bar = ProgressBar(max(loop.total, 1), loop.done, width=max(min(30, width - 50), 8))
    percent = 100 * loop.done // max(loop.total, 1)
    counts = f"  {percent} %  {loop.done:,}/{loop.total:,}  {pace}"
    text = Text(counts)
    text.truncate(width - 4 - (bar.width or 0), overflow="crop")
    yield [Text("    ", end=""), bar, text]
    items = "  ".join(f"{name}\xa0{value:.4g}" for name, value in self._metrics.items())
    for line in textwrap.wrap(items, max(width - 4, 20), break_on_hyphens=False)[:METRIC_LINES]:
      yield [Text(f"    {line}".replace("\xa0", " "), "dim")]


class Terminal:
  """A terminal that may go away: then nothing is written any more, and nothing is raised.

  Args:
    file: the terminal.
  """

  def __init__(self, file: IO[str]):
    self._file = file
    self._descriptors = _terminals(file)
    self.gone = False

  def write(self, text: str) -> int:
    self._try(self._file.write, text)
    return len(text)

  def flush(self) -> None:
    self._try(self._file.flush)

  def isatty(self) -> bool:
    return True

  def fileno(self) -> int:
    return self._file.fileno()

  @property
  def encoding(self) -> str:
    return getattr(self._file, "encoding", None) or "utf-8"

  def _try(self, function: Any, *text: str) -> None:
    if self.gone:
      return
    try:
      function(*(part.encode(self.encoding, "replace").decode(self.encoding) for part in text))
    except BlockingIOError:
      pass  # a slow terminal that another program has set so: the next drawing may pass
    except (OSError, ValueError):
      self.gone = True
      # What is printed from now on goes nowhere either, instead of raising.
      for descriptor in self._descriptors:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nothing:
          os.dup2(nothing.fileno(), descriptor)


def make_console(file: IO[str], **options: Any) -> Console:
  """A console on a terminal for a LiveView.

  Args:
    file: the terminal.
    **options: of `rich.console.Console`, besides those set here.
  """
  # Texts of others are shown as they are: not broken into lines, nothing in brackets taken for a style.
  plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
  return _Console(file=cast("IO[str]", Terminal(file)), force_terminal=True, **plain, **options)


class _Console(Console):
  def show_cursor(self, show: bool = True) -> bool:
    """Leaves it visible: a process that is killed could not bring it back."""
    return False


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
  """Those of the root logger, and absl's own, which hands on to another."""
  for handler in logging.root.handlers:
    for candidate in (handler, getattr(handler, "python_handler", None)):
      if isinstance(candidate, logging.StreamHandler):
        yield candidate


def _terminals(file: IO[str]) -> list[int]:
  """Descriptors of the terminal that a file is, with stderr's if it is the same; none if it is none."""
  descriptors: list[int] = []
  with contextlib.suppress(OSError, ValueError, AttributeError):
    terminal = os.ttyname(file.fileno())
    descriptors.append(file.fileno())
    stderr = cast("IO[str]", sys.__stderr__).fileno()
    descriptors += [stderr] if os.ttyname(stderr) == terminal else []
  return descriptors
