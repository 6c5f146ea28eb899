"""`python -m wam_jax`: what it shows, and that it hands on."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest

from wam_jax import __main__ as programs


def test_every_program_says_what_it_is(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["wam_jax"])
  assert programs.main() == 0
  lines = capsys.readouterr().out.splitlines()
  for name in programs.PROGRAMS:
    (line,) = [line for line in lines if line.split()[:1] == [name]]
    assert line.endswith(".")


@pytest.mark.parametrize(
  ("words", "module", "arguments"),
  [
    (
      ["plan", "--config=calvin_wam:demo"],
      "wam_jax.main",
      ["--config=calvin_wam:demo", "--config.stage=plan"],
    ),
    (["train"], "wam_jax.main", []),
    (["inspect", "--source=x"], "wam_jax.data.inspect", ["--source=x"]),
  ],
)
def test_hands_on(monkeypatch, words, module, arguments):
  started = []
  monkeypatch.setattr(runpy, "run_module", lambda name, **_: started.append((name, sys.argv[1:])))
  monkeypatch.setattr(sys, "argv", ["wam_jax", *words])
  programs.main()
  assert started == [(module, arguments)]


def test_a_wrong_name(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["wam_jax", "pley"])
  assert programs.main() == 2 and "did you mean play?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["wam_jax.main"], ["wam_jax", "train"]])
def test_without_arguments_nothing_is_started(tmp_path, arguments):
  command = [sys.executable, "-m", *arguments]
  done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0 and "Nothing was started" in done.stdout and "world_model" in done.stdout
  assert not list(tmp_path.iterdir())


def test_a_plan_without_the_data_shows_the_cost(tmp_path):
  environ = os.environ | {"CALVIN_DATA": "", "PYTHONIOENCODING": "ascii"}
  command = [sys.executable, "-m", "wam_jax", "plan", "--config=calvin_wam:paper", "--config.workdir=\u00e9"]
  done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
  assert done.returncode == 2 and "230,000 updates" in done.stdout and "time     about" in done.stdout
  assert "data.calvin_path" in done.stderr
