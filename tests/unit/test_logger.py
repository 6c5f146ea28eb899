from __future__ import annotations

import json

import pytest

from wam_jax.io import logger as logger_lib


@pytest.fixture
def logger(tmp_path):
  made = logger_lib.Logger(tmp_path, "stage", interactive=False)
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
    logger.write(2, {"world_model/loss": 0.25})
    progress.update(2)
  out = capsys.readouterr().out
  assert "world model: 50 % (2/4" in out and "100 %" in out and "left" in out
  assert "loss 0.25" in out


def test_interactive_draws_a_bar(tmp_path, capsys):
  logger = logger_lib.Logger(tmp_path, "stage", interactive=True)
  with logger.progress(2, "drawing") as progress:
    logger.info("hello")
    progress.update(2)
  captured = capsys.readouterr()
  assert "drawing: 100%" in captured.err and "[stage] hello" in captured.out


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "0:05"), (65, "1:05"), (3725, "1:02:05")])
def test_duration(seconds, text):
  assert logger_lib.duration(seconds) == text
