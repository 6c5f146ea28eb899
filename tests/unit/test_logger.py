from __future__ import annotations

import io
import json
import os
import sys

import pytest

from wam_jax.host import live_view, words
from wam_jax.host import logger as logger_lib


@pytest.fixture
def logger(tmp_path):
  made = logger_lib.Logger(tmp_path, "stage")
  yield made
  made.close()


def test_lines_and_tensorboard(logger, tmp_path):
  logger.write(3, {"a/loss": 1.5, "a/nan": float("nan")})
  (line,) = logger_lib.read_metrics(tmp_path)
  assert (line["step"], line["a/loss"], line["a/nan"]) == (3, 1.5, None)
  assert list((tmp_path / "tensorboard").iterdir())


def test_truncate_keeps_earlier_steps_and_other_series(logger, tmp_path):
  for step in range(1, 6):
    logger.write(step, {"a/loss": step})
  logger.write(5, {"b/loss": 7.0})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 6, "a/lo')  # killed while writing
  logger.truncate_after(2, prefix="a/")
  text = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in text] == [1, 2, 5]
  logger.write(3, {"a/loss": 3})
  assert [line.get("a/loss") for line in logger_lib.read_metrics(tmp_path)] == [1, 2, None, 3]


def test_plain_progress_says_percent_and_time_left(logger, capsys, monkeypatch):
  monkeypatch.setattr(logger_lib, "PLAIN_SECONDS", 0.0)
  with logger.progress(4, "world model", initial=1) as progress:
    progress.update()
    logger.write(2, {"world_model/loss": 0.25, "world_model/open_drawer/loss": 0.5})
    progress.update(2)
  out = capsys.readouterr().out
  assert "world model: 50 % (2/4" in out and "100 %" in out and "left" in out
  assert "loss 0.25" in out and "loss 0.5" not in out  # a name only once
  assert "left" not in out.splitlines()[0]  # the first update compiles


def test_a_view_shows_progress_and_metrics_instead_of_lines(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setattr(logger_lib, "PLAIN_SECONDS", 0.0)
  file = io.StringIO()
  console = live_view.make_console(file, width=80, height=24)
  with live_view.LiveView("", [live_view.StageLine("stage", "runs")], console) as view:
    logger = logger_lib.Logger(tmp_path, "stage", view)
    with logger.progress(2, "drawing", note="2 tasks side by side") as progress:
      logger.info("hello [/]")
      logger.write(1, {"stage/loss/total": 0.25})
      progress.update(2)
  logger.close()
  drawn = file.getvalue()
  assert "drawing, 2 tasks side by side" in drawn and "2/2" in drawn and "total 0.25" in drawn
  assert "[stage] hello [/]" in drawn
  assert capsys.readouterr() == ("", "")


def test_a_terminal_that_has_gone_away_stops_nothing(logger, monkeypatch):
  ours, theirs = os.openpty()
  os.close(ours)
  with open(theirs, "w") as gone, monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", gone)
    logger.info("hello")
    with logger.progress(2, "drawing") as progress:
      progress.update(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # so that it can be closed
  monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
  with pytest.raises(OSError):  # that is for people to mend
    logger.info("hello")


@pytest.mark.parametrize(
  ("seconds", "text"), [(5.2, "0:05"), (65, "1:05"), (3725, "1:02:05"), (360_000, "4 days")]
)
def test_duration(seconds, text):
  assert words.duration(seconds) == text
