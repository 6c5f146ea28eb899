"""A robot of one's own, without a simulator: from its recordings to a page, and policies that travel."""

from __future__ import annotations

import os
import signal

import made_up_robot
import numpy as np
import pytest
from made_up_robot import ARM, TASK

import wam_jax
from wam_jax.acting import run_exported
from wam_jax.commands import export, pack, play, report
from wam_jax.data.files import read_npz
from wam_jax.data.frames import frame_path
from wam_jax.host.logger import Logger, read_metrics
from wam_jax.storage.artifact import load_artifact

pytestmark = pytest.mark.slow  # unit/test_any_robot.py goes the same way without the stages
TINY = {
  "data.source": "calvin",
  "data.failed_takes_per_task": 0,
  "tasks": [TASK],
  "env.image_size": 16,
  "env.max_steps": 24,
  "world_model.depth": 4,
  "world_model.embed": 16,
  "world_model.deter": 12,
  "world_model.stoch": 3,
  "world_model.classes": 4,
  "world_model.hidden": 10,
  "world_model.inverse_dynamics_hidden": 8,
  "world_model.batch_size": 2,
  "world_model.sequence_length": 5,
  "world_model.updates": 6,
  "world_model.warmup_updates": 1,
  "judge.horizons": (1, 5),
  "judge.windows": 2,
  "judge.probe_frames": 20,
  "behaviour_cloning.hidden": 8,
  "behaviour_cloning.batch_size": 4,
  "behaviour_cloning.updates": 4,
  "behaviour_cloning.warmup_updates": 1,
  "behaviour_cloning.denoising_steps": 3,
  "classifier.embed": (8, 6),
  "classifier.hidden": 8,
  "classifier.batch_size": 8,
  "classifier.updates": 4,
  "classifier.ensemble": 1,
  "classifier.enforce_gate": False,  # so few updates cannot tell success
  "ppo.failed_starts": 0,
  "ppo.iterations": 2,
  "ppo.dreams": 4,
  "ppo.chunks_per_iteration": 2,
  "ppo.horizon_steps": 8,
  "ppo.epochs": 1,
  "ppo.minibatches": 1,
  "ppo.fine_tuned_steps": 2,
  "ppo.value_hidden": (8,),
  "ppo.critic_warmup_iterations": 0,
  "evaluate.imagined_episodes": 4,
  "training.log_every": 2,
}


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  """Trained from Python; interrupted once, in cloning."""
  folder = tmp_path_factory.mktemp("own")
  made_up_robot.write_dataset(folder / "data")
  places = {"data.calvin_path": folder / "data", "workdir": folder / "run"}
  config = wam_jax.make_config("calvin_wam:demo", TINY | places)
  write = Logger.write

  def interrupted(self, step, metrics):
    write(self, step, metrics)
    if any(name.startswith("behaviour_cloning/") for name in metrics):
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(Logger, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
      wam_jax.train(config)
  assert not (folder / "run" / "behaviour_cloning" / "DONE").exists()
  return wam_jax.train(config)


def test_a_whole_run_has_a_page(run, capsys):
  assert [line["step"] for line in read_metrics(run.workdir / "world_model")] == [2, 4, 6]
  assert not (run.workdir / "evaluate").exists()
  text = (run.workdir / "report" / "report.md").read_text()
  assert text.startswith("| Success in dreams, % ") and TASK in text and "## Certificate" in text
  page = run.report.read_text()
  assert "No simulator has measured these policies" in page and "in the simulator" not in page
  assert all(f"PSNR, dB, {camera} camera" in page for camera in ARM.camera_names)
  again = run.workdir / "again.html"
  assert report.main([f"--workdir={run.workdir}", f"--out={again}"]) == 0
  assert "Note" not in capsys.readouterr().out and "No simulator has measured" in again.read_text()


def test_runs_are_compared(run, tmp_path):
  (tmp_path / "copy").mkdir()
  for stage in run.workdir.iterdir():
    (tmp_path / "copy" / stage.name).symlink_to(stage)
  out = tmp_path / "both.html"
  assert report.main([f"--workdir={run.workdir}", f"--compare={tmp_path / 'copy'}", f"--out={out}"]) == 0
  assert "Success in dreams after PPO" in out.read_text()


def test_policies_travel(run, tmp_path, capsys):
  folder = tmp_path / "packed"
  assert pack.main([f"--workdir={run.workdir}", f"--out={folder}"]) == 0
  card = (folder / "README.md").read_text()
  assert "No simulator" in card and "play_table" not in card
  assert export.main([f"--workdir={run.workdir}", f"--out={tmp_path / 'exported'}"]) == 0
  frame = read_npz(frame_path(run.workdir.parent / "data/training", 0))
  policies = (run.policy(), wam_jax.load_policy(folder), run_exported.Policy(tmp_path / "exported"))
  actions = [policy.act(frame) for policy in policies]
  low, high = ARM.action_ranges.T
  assert (low <= actions[0]).all() and (actions[0] <= high).all()
  np.testing.assert_allclose(actions[1], actions[0], atol=0.02 * (high - low).max())  # half precision
  np.testing.assert_allclose(actions[2], actions[0], atol=1e-3)
  capsys.readouterr()
  assert play.main([f"--policy={folder}", f"--task={TASK}"]) == 1
  assert "6 numbers of action, not 7" in capsys.readouterr().err


def test_its_world_model_dreams(run):
  frame = read_npz(frame_path(run.workdir.parent / "data/training", 0))
  dream = run.world_model.imagine(frame, np.stack([frame["rel_actions"]] * 4))
  assert dream.robot_obs.shape == (5, ARM.state_size) and set(dream.pictures) == set(ARM.camera_names)
  assert load_artifact(run.workdir, "report").embodiment == ARM
