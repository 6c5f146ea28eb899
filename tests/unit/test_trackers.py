from __future__ import annotations

import pathlib
import re
import sys
import types

import pytest

from wam_jax.host.logger import Logger, read_metrics
from wam_jax.host.trackers import ID_FILE, TRACKERS, TrackioRun, WandbRun


def make(folder, said=None):
  return WandbRun("robots", folder, {"seed": 3}, (said if said is not None else []).append)


def test_metrics_by_the_steps_of_their_stages(wandb, tmp_path):
  with make(tmp_path) as run:
    logger = Logger(tmp_path / "world_model", "world_model", wandb=run)
    for step in (4, 8):
      logger.write(step, {"world_model/loss/total": 1.5, "world_model/image/psnr": step})
    run.send(1, {"ppo/loss": 2.0})
    logger.close()
  (sent,) = wandb.runs
  assert sent.arguments["project"] == "robots" and sent.arguments["config"] == {"seed": 3}
  assert sent.arguments["resume"] == "allow" and sent.arguments["settings"]["console"] == "off"
  assert sent.arguments["dir"] == sent.arguments["name"] == str(tmp_path)
  assert sent.defined == {"world_model/*": "world_model/step", "ppo/*": "ppo/step"}
  written = read_metrics(tmp_path / "world_model")
  assert [{k: v for k, v in line.items() if k != "world_model/step"} for line in sent.logged[:2]] == [
    {k: v for k, v in line.items() if k not in ("step", "time")} for line in written
  ]
  assert [line["world_model/step"] for line in sent.logged[:2]] == [4, 8]
  assert sent.logged[2] == {"ppo/loss": 2.0, "ppo/step": 1} and sent.exit_code == 0


def test_a_work_folder_keeps_its_id(wandb, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  for folder in (tmp_path, tmp_path, other):
    with make(folder):
      pass
  first, again, another = (run.arguments["id"] for run in wandb.runs)
  assert first == again != another
  assert re.fullmatch("[0-9a-f]{16}", first) and (tmp_path / ID_FILE).read_text().strip() == first


def test_what_the_environment_says_holds(wandb, tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_NAME", "mine")
  monkeypatch.setenv("WANDB_DIR", "elsewhere")
  with make(tmp_path):
    pass
  assert not {"name", "dir"} & set(wandb.runs[0].arguments)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_what_fails_is_said_once_and_stops_nothing(wandb, tmp_path, broken):
  wandb.broken = {broken}
  said = []
  with make(tmp_path, said) as run:
    for step in range(3):
      run.send(step, {"a/b": 1.0})
  assert len(said) == 1 and f"no {broken}" in said[0] and "goes on without" in said[0]


def test_a_folder_that_cannot_keep_the_id(wandb, tmp_path):
  said = []
  with make(tmp_path / "nowhere", said) as run:
    run.send(1, {"a/b": 1.0})
  assert wandb.runs == [] and len(said) == 1


def test_an_error_is_told(wandb, tmp_path):
  with pytest.raises(KeyboardInterrupt), make(tmp_path):
    raise KeyboardInterrupt
  assert wandb.runs[0].exit_code == 1


def test_trackio_gets_the_same_metrics_by_their_steps(tmp_path, monkeypatch):
  runs = []

  def init(project, name, config, resume, embed):
    runs.append(types.SimpleNamespace(project=project, name=name, resume=resume, logged=[], finished=0))
    run = runs[-1]
    run.log = lambda metrics, step: run.logged.append((step, metrics))
    run.finish = lambda: setattr(run, "finished", run.finished + 1)
    return run

  monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
  said = []
  for _ in range(2):
    with TrackioRun("robots", tmp_path, {"seed": 3}, said.append) as run:
      run.send(4, {"ppo/loss": 2.0})
  first, again = runs
  assert first.name == again.name and first.name.startswith(str(tmp_path)) and first.resume == "allow"
  assert first.logged == again.logged == [(4, {"ppo/loss": 2.0})] and first.finished == 1 and not said
  with TrackioRun("robots", tmp_path, {}, said.append) as run:
    runs[-1].log = None
    run.send(1, {"ppo/loss": 2.0})
    run.send(2, {"ppo/loss": 2.0})
  (text,) = said
  assert text.startswith("trackio: ") and "goes on without" in text and runs[-1].finished == 1


def test_only_one_file_imports_them():
  package = pathlib.Path(__file__).parents[2] / "wam_jax"
  found = [
    p
    for p in package.rglob("*.py")
    if re.search(rf"^\s*(import|from) ({'|'.join(TRACKERS)})\b", p.read_text(), re.M)
  ]
  assert [path.name for path in found] == ["trackers.py"]
