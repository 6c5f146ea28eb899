"""Data that can be read and yet teaches nothing: what inspect and the plan warn of."""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.data import calvin_writer, doubts
from wam_jax.data.files import DatasetError
from wam_jax.envs import tasks
from wam_jax.running import runner
from wam_jax.running.plan import StageError

N = 60


def _frames():
  """A hand that follows its actions at CALVIN's scale, from one frame to the next."""
  rng = np.random.default_rng(0)
  action = rng.uniform(-1, 1, (N, 7))
  action[:, 6] = rng.choice([-1.0, 1.0], N)
  state = np.zeros((N, 15))
  state[1:, :3] = 0.02 * np.cumsum(action[:-1, :3], 0)
  state[1:, 3:6] = np.cumsum(0.05 * action[:-1, 3:6], 0) + np.array([3.1, 0, 0])  # jumps at pi
  state[:, 3:6] = (state[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
  scene = np.zeros((N, 24))
  scene[50:, tasks.DRAWER] = 0.2
  pictures = rng.integers(0, 256, (N, 16, 16, 3), np.uint8)
  frames = {"rel_actions": action, "robot_obs": state, "scene_obs": scene}
  return frames | {"actions": action, "rgb_static": pictures, "rgb_gripper": pictures.copy()}


def _metres(f):
  f["rel_actions"][:, :3] *= 0.02


def _metres_and_rest(f):
  _metres(f)
  f["rel_actions"][:40, :3] = 0.0


def _radians(f):
  f["rel_actions"][:, 3:6] *= 0.05


def _metres_without_state(f):
  _metres(f)
  f["robot_obs"][:] = 0.5


def _set(key, rows, columns, value):
  def change(f):
    f[key][rows, columns] = value

  return change


ALL = slice(None)


@pytest.mark.parametrize(
  ("change", "found"),
  [
    (lambda f: None, []),
    (_metres, [("rel_actions", "look like m,")]),
    (_metres_and_rest, [("rel_actions", "look like m,")]),
    (_radians, [("rel_actions", "look like rad,")]),
    (_set("rel_actions", ALL, 2, 0.0), [("rel_actions", "number 2")]),
    (_set("rel_actions", ALL, slice(3, 6), 0.0), [("rel_actions", "number 5")]),
    (_set("rel_actions", ALL, 6, 1.0), [("rel_actions", "number 6 (1)")]),
    (_set("robot_obs", ALL, ALL, 0.0), [("robot_obs", "never changes")]),
    (_metres_without_state, [("rel_actions", "look like m,"), ("robot_obs", "never changes")]),
    (_set("rgb_gripper", ALL, ALL, 7), [("rgb_gripper", "the same")]),
    (_set("scene_obs", ALL, ALL, 0.0), [("scene_obs", "open_drawer")]),
  ],
)
def test_what_is_doubted(tmp_path, change, found):
  frames = _frames()
  change(frames)
  with calvin_writer.FrameWriter(tmp_path / "training") as writer:
    writer.write(**frames)
    writer.commit([N], [("open_drawer", 40, N)], "lab")
  doubted = doubts.look(tmp_path / "training", 16, tasks=("open_drawer",))
  assert [doubt.key for doubt in doubted] == [key for key, _ in found]
  assert all(word in doubt.rule for doubt, (_, word) in zip(doubted, found, strict=True))
  # What is not used is not doubted.
  used = doubts.look(tmp_path / "training", 16, cameras=("rgb_static",), proprio=False)
  assert {doubt.key for doubt in used} <= {"rel_actions"}


@pytest.mark.parametrize("gripper", [[0.0, 1.0], [0.0], [-1.0, 0.0, 1.0]])
def test_the_remedy_for_a_gripper_of_zeros_helps(tmp_path, gripper):
  frames = _frames()
  frames["rel_actions"][:, 6] = np.resize(gripper, N)
  with calvin_writer.FrameWriter(tmp_path / "training") as writer:
    with pytest.raises(DatasetError) as caught:
      writer.write(**frames)
    remedy = "np.where(gripper > 0, 1.0, -1.0)"
    assert remedy in caught.value.fix
    frames["rel_actions"][:, 6] = eval(remedy, {"np": np, "gripper": frames["rel_actions"][:, 6]})
    writer.write(**frames)
    writer.commit([N], [], "lab")


def test_the_plan_knows_what_the_data_do_not_allow(tmp_path, capsys):
  """Before any work: play without annotations carries a world model, not a policy."""
  frames = _frames()
  frames["robot_obs"][:] = 0
  for split in ("training", "validation"):
    with calvin_writer.FrameWriter(tmp_path / split) as writer:
      writer.write(**frames)
      writer.commit([N], [("open_drawer", 40, N)] if split == "training" else [], "lab")
  config = config_lib.preset_config("demo", "calvin_wam")
  changes = {"data.source": "calvin", "data.calvin_path": str(tmp_path), "workdir": str(tmp_path / "run")}
  changes |= {"tasks": ("open_drawer",), "data.failed_takes_per_task": 0, "ppo.failed_starts": 0.0}
  changes |= {"world_model.batch_size": 2, "env.image_size": 16, "stage": "all"}
  config.update_from_flattened_dict(changes)
  with pytest.raises(StageError) as caught:
    runner.run(config_lib.finalize(config))
  assert f"{tmp_path}/validation has no annotated window of open_drawer" in str(caught.value)
  assert "training has no" not in str(caught.value) and not (tmp_path / "run").exists()
  assert "--config.world_model.proprio=none" in capsys.readouterr().err
  config.stage = "collect"
  assert runner.run(config_lib.finalize(config))["collect"].done
  capsys.readouterr()
  config.stage, config.world_model.proprio, config.world_model.robot_obs_weight = "plan", "none", 0.0
  runner.run(config_lib.finalize(config))
  printed = capsys.readouterr()
  assert "no annotated window of open_drawer" in printed.out and "robot_obs" not in printed.err
