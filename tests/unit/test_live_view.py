from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading

import pytest
from absl import logging as absl_logging

from wam_jax.config import STAGES
from wam_jax.host import live_view
from wam_jax.host.live_view import LiveView, StageLine

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


def on_screen(written):
  """Lines that a terminal shows after this, colours left out: \\r, \\n, cursor up, erase line."""
  lines, row, column, i = [""], 0, 0, 0
  while i < len(written):
    code = CODE.match(written, i)
    if code:
      number, letter = code.groups()
      assert letter in "mAK", code[0]
      row -= int(number or 1) if letter == "A" else 0
      assert row >= 0, "above the first line"
      lines[row] = "" if letter == "K" else lines[row]
      i = code.end()
      continue
    if written[i] == "\n":
      row, column = row + 1, 0
      lines += [""] * (row == len(lines))
    elif written[i] == "\r":
      column = 0
    else:
      lines[row] = lines[row][:column].ljust(column) + written[i] + lines[row][column + 1 :]
      column += 1
    i += 1
  return [line.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
  monkeypatch.setenv("TERM", "xterm-256color")
  for name in ("NO_COLOR", "COLUMNS", "LINES", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "JPY_PARENT_PID"):
    monkeypatch.delenv(name, raising=False)


def make(file=None, width=80, height=24, title="a run"):
  file = file or io.StringIO()
  waiting = [StageLine(stage, "waits", estimate=60.0 * i) for i, stage in enumerate(STAGES)]
  waiting[0] = StageLine(STAGES[0], "given", note=f"from {'a/long/folder/' * 9}")
  console = live_view.make_console(file, width=width, height=height)
  return LiveView(title, waiting, console), file


def full(view, total=1000):
  """Stages done, one running, a loop with its metrics."""
  for stage in STAGES[1:4]:
    view.begin(stage)
    view.finish(stage, 83.0)
  view.begin(STAGES[4])
  return view.loop(total, "cloning, 8 tasks side by side")


METRICS = {f"s/loss/a_rather_long_name_{i}": 1.5 + i for i in range(9)}


@pytest.mark.parametrize("width", [80, 200, 40])
def test_the_picture_fits_a_terminal(width):
  view, file = make(width=width)
  with view, full(view) as loop:
    view.show_metrics(METRICS)
    loop.update(50)
    loop.update(200)
    view.refresh(now=True)
    lines = on_screen(file.getvalue())
  assert len(lines) <= 24 - 1 and max(map(len, lines)) <= min(width, live_view.MOST_COLUMNS) - 1
  text = "\n".join(lines)
  assert lines[0].startswith("a run") and lines[-1] == ""
  assert "given" in lines[1] and re.search(r"world_model +done +1:23", text)
  assert "cloning, 8 tasks" in text and "25 %" in text and "a_rather_long_name_0 1.5" in text
  assert re.search(r"ppo +waits", text)
  if width >= 80:
    assert "250/1,000" in text and " left" in text and "about 6:00" in text


def test_in_a_low_window_the_running_stage_stays():
  view, file = make(height=9)
  with view, full(view) as loop:
    loop.update()
    view.refresh(now=True)
    lines = on_screen(file.getvalue())
  at = next(i for i, line in enumerate(lines) if "runs" in line)
  assert "cloning" in lines[at + 1] and "1/1,000" in lines[at + 2]
  # All of it is left in the end.
  assert [stage for stage in STAGES if stage in "".join(on_screen(file.getvalue()))] == list(STAGES)


def test_what_is_printed_stands_above_and_is_left_alone():
  view, file = make()
  streams, long = (sys.stdout, sys.stderr), "word " * 40 + "end"
  absl_logging.use_absl_handler()
  handler = absl_logging.get_absl_handler().python_handler
  before = handler.stream
  handler.setStream(sys.stderr)
  try:
    with view, full(view) as loop:
      print("[world_model] [/] [bold]brackets :smile:")
      print(long, file=sys.stderr)
      print("[/no style]", end="", flush=True)
      absl_logging.error("of absl %d", 3)
      logging.getLogger("other").error("of another")
      thread = threading.Thread(target=view.message, args=("from [/] a thread",))
      thread.start()
      thread.join()
      loop.update()
    assert handler.stream is sys.stderr
  finally:
    handler.setStream(before)
  assert (sys.stdout, sys.stderr) == streams
  lines = on_screen(file.getvalue())
  top = lines.index(next(line for line in lines if line.startswith("a run")))
  said = "\n".join(lines[:top])
  for text in ("[world_model] [/] [bold]brackets :smile:", long, "[/no style]", "from [/] a thread"):
    assert said.count(text) == 1
  assert "of absl 3" in said and "of another" in said
  assert sum("a run" in line for line in lines) == 1  # nothing is left of earlier drawings


def test_after_an_error_the_last_state_stays():
  view, file = make()
  streams = (sys.stdout, sys.stderr)
  with pytest.raises(KeyboardInterrupt), view, full(view) as loop:
    loop.update(10)
    raise KeyboardInterrupt
  assert (sys.stdout, sys.stderr) == streams
  text = "\n".join(on_screen(file.getvalue()))
  assert re.search(rf"{STAGES[4]} +stopped", text) and "10/1,000" in text and "runs" not in text
  assert file.getvalue().endswith("\n") and "?25" not in file.getvalue()  # the cursor is always visible


class Broken(io.StringIO):
  """Takes a few writes, then raises."""

  def __init__(self, error):
    super().__init__()
    self.error, self.left, self.raised = error, 5, 0

  def write(self, text):
    self.left -= 1
    if self.left < 0:
      self.raised += 1
      raise self.error
    return super().write(text)


@pytest.mark.parametrize(
  "error",
  [
    OSError(5, "Input/output error"),
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "full"),
    ValueError("closed"),
  ],
  ids=str,
)
def test_a_terminal_that_goes_away_stops_nothing(error):
  view, file = make(Broken(error))
  streams = (sys.stdout, sys.stderr)
  with view, full(view) as loop:
    for _ in range(20):
      loop.update()
      view.refresh(now=True)
      print("words", flush=True)
      print("more", file=sys.stderr)
    view.message("text")
    view.finish(STAGES[4], 1.0)
  assert file.raised == 1 and loop.done == 20
  assert (sys.stdout, sys.stderr) == streams


def test_a_real_terminal_that_goes_away():
  ours, theirs = os.openpty()
  with open(theirs, "w", encoding="utf-8") as file:
    view, _ = make(file)
    with view, full(view) as loop:
      os.close(ours)
      loop.update()
      view.refresh(now=True)
      print("words")
    print("the closing words", file=file, flush=True)  # to nothing
  ours, theirs = os.openpty()
  os.close(ours)
  with pytest.raises(OSError):  # that is what would have come
    os.write(theirs, b"x")
  os.close(theirs)


def test_a_slow_terminal_misses_drawings_only():
  view, file = make(Broken(BlockingIOError(11, "would block")))
  with view:
    for _ in range(5):
      view.refresh(now=True)
    file.left = 99
    print("words")
  assert "words" in file.getvalue()


def test_letters_that_the_terminal_lacks():
  file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  view, _ = make(file)
  with view, full(view) as loop:
    loop.update()
    print("±1")
  file.flush()
  assert b"?1" in file.buffer.getvalue() and b"--" in file.buffer.getvalue()  # the bar, in ASCII


def test_letters_that_a_terminal_lacks_which_goes_away():
  class Gone(io.RawIOBase):
    def writable(self):
      return True

    def write(self, data):
      raise OSError(5, "EIO")

  terminal = live_view.Terminal(io.TextIOWrapper(Gone(), encoding="ascii", write_through=True))
  assert terminal.write("±1") == 2
  assert terminal.gone


def test_drawn_a_few_times_a_second_only(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(live_view.time, "monotonic", lambda: now[0])
  view, file = make()
  with view, full(view) as loop:
    before = len(file.getvalue())
    for _ in range(100):
      now[0] += 0.01
      loop.update()
    drawings = file.getvalue()[before:].count("a run")
  assert 3 <= drawings <= 4


def test_loops_within_loops():
  view, file = make()
  drawn = lambda: "\n".join(on_screen(file.getvalue()))
  with view:
    view.begin(STAGES[1])
    with view.loop(3, "outer") as outer:
      with view.loop(2, "inner") as inner:
        inner.update(2)
        assert "inner" in drawn() and "outer" not in drawn()
      assert "outer" in drawn() and "inner" not in drawn()
      outer.update(3)
    assert "outer" in drawn()  # until something else comes
    view.finish(STAGES[1], 3.0)
    assert "outer" not in drawn()


def test_no_color(monkeypatch):
  codes = lambda file: {
    int(n) for n in re.findall(r"\x1b\[([0-9;]+)m", file.getvalue()) for n in n.split(";")
  }
  colours = {*range(30, 39), *range(90, 98)}
  view, file = make()
  with view, full(view):
    pass
  assert codes(file) & colours
  monkeypatch.setenv("NO_COLOR", "1")
  view, file = make()
  with view, full(view):
    pass
  assert not codes(file) & colours


class Tty(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  ("out", "err", "environ", "suits"),
  [
    (Tty, Tty, {"TERM": "xterm"}, True),
    (Tty, Tty, {}, True),
    (io.StringIO, Tty, {"TERM": "xterm"}, False),
    (Tty, io.StringIO, {"TERM": "xterm"}, False),
    (Tty, Tty, {"TERM": "dumb"}, False),
    (Tty, Tty, {"TERM": "xterm", "JPY_PARENT_PID": "3"}, False),
    (Tty, Tty, {"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False),
    (io.StringIO, io.StringIO, {"FORCE_COLOR": "1"}, False),
  ],
)
def test_where_a_picture_suits(out, err, environ, suits):
  assert live_view.suits(out(), err(), environ) == suits


def test_no_streams_at_all():
  closed = Tty()
  closed.isatty = lambda: open(os.devnull).close() or closed.close() or io.StringIO.isatty(closed)
  assert not live_view.suits(None, None) and not live_view.suits(closed, closed)
