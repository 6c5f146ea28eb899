"""benchmarks/card.py on a CPU: what is measured, left out, written, and called wrong."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def card(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  return importlib.import_module("card")


@pytest.mark.slow
def test_parts_are_measured_left_out_or_failed_and_all_of_it_is_written(card, monkeypatch, tmp_path, capsys):
  def in_this_process(name, size, device, flags, limit):
    if name == "ppo":
      return {"wall_s": 1.0, "seconds": 2.0, "problem": "ended at its limit\n| of 1 s"}
    card.run_part(name, size, device, tmp_path / "numbers.json")
    return json.loads((tmp_path / "numbers.json").read_text()) | {"wall_s": 1.0}

  monkeypatch.setattr(card, "call_part", in_this_process)
  monkeypatch.setattr(card, "ACTING_FRAMES", 12)
  flags = ["--device=cpu", "--size=tiny", "--parts=acting,ppo,command_buffer", f"--out={tmp_path}"]
  monkeypatch.setattr(sys, "argv", ["card.py", *flags])
  card.main()
  results = json.loads((tmp_path / "card.json").read_text())
  assert results["parts"]["acting"]["samples"]["seconds"] > 0
  assert "cpu" in results["parts"]["command_buffer"]["skipped"]
  assert results["derived"] == {"ppo_minutes": pytest.approx(800 * 2 / 60)}
  lines = (tmp_path / "card.md").read_text().splitlines()
  assert any("2000.00 ms (ended at its limit" in line for line in lines)
  assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
  assert "\n".join(lines) in capsys.readouterr().out


def test_a_part_that_does_not_fit_is_not_begun(card):
  assert "45 s" in card.skip_reason(card.PARTS["world_model"], "gpu", 44.0)
  assert card.skip_reason(card.PARTS["world_model"], "gpu", 46.0) is None


@pytest.mark.parametrize("value", [1.2, np.nan])
def test_wrong_gradients_and_losses_are_named(card, monkeypatch, value):
  def gradients(config, dtype, device, batch, params):
    wrong = value if len(calls) else 1.0
    calls.append(dtype)
    losses = {"loss/kl": 3.0 * wrong, "loss/image": 2.0}
    return losses, {"encoder": np.ones(3, np.float32), "rssm/gru": wrong * np.ones(2, np.float32)}

  calls, reported = [], {}
  monkeypatch.setattr(card, "_gradients", gradients)
  monkeypatch.setattr(card, "_batch_and_params", lambda *_: (None, None))
  card.agreement(card.make_config("tiny"), reported.update)
  assert {dtype: part["outside"] for dtype, part in reported.items()} == {
    "float32": ["loss/kl", "rssm/gru"],
    "bfloat16": ["loss/kl", "rssm/gru"],
  }


def test_a_device_that_is_not_there_is_named(card, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(card, "call_part", lambda *_: {"wall_s": 1.0, "problem": "no such platform"})
  monkeypatch.setattr(sys, "argv", ["card.py", "--device=tpu", f"--out={tmp_path / 'out'}"])
  with pytest.raises(SystemExit):
    card.main()
  assert "no tpu to measure: no such platform" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path):
  command = [sys.executable, BENCHMARKS / "card.py", "--device=cpu", "--size=tiny", f"--out={tmp_path}"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=590)
  assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / "card.json").read_text())
  assert not [name for name, part in results["parts"].items() if "problem" in part]
  agreement = results["parts"]["agreement"]
  assert not agreement["float32"]["outside"]
  # A CPU adds up gradients of biases over all pixels in bfloat16.
  assert all(name.endswith("/bias") for name in agreement["bfloat16"]["outside"])
  assert max(agreement["bfloat16"]["gradient_errors"].values()) > jnp.finfo(jnp.bfloat16).eps / 10
  assert {"world_model_hours", "ppo_minutes"} <= set(results["derived"])
