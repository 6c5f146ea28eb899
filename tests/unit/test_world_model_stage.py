"""The stage: sources of frames, snapshots, resuming, robot statistics, LUMOS's weights, refused artifacts."""

from __future__ import annotations

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from made_up_run import make_artifact

from wam_jax import config as config_lib
from wam_jax.acting import models
from wam_jax.data import calvin, calvin_writer
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import frame_path
from wam_jax.foreign import lumos
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import world_model as world_model_stage
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact, load_artifact
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.saved_params import load_params

SIZE, LENGTHS = 16, (20, 9, 31)
FIXTURES = pathlib.Path(os.environ.get("WAM_FIXTURES", pathlib.Path(__file__).parents[1] / "golden/fixtures"))


@pytest.fixture(scope="module", name="collected")
def _collected(tmp_path_factory, write_split) -> Artifact:
  """An artifact of collect with 60 small frames in both splits."""
  path = tmp_path_factory.mktemp("collect")
  for seed, split in enumerate(("training", "validation")):
    write_split(path / "dataset" / split, LENGTHS, SIZE, seed)
  return Artifact(stage="collect", path=path, fingerprint="0", config={}, part={}, inputs={}, schema=1)


def make_config(**changes):
  config = config_lib.preset_config("demo")
  config.env.image_size = SIZE
  config.training.log_every = 2
  config.training.checkpoint_minutes = 0.0
  small = {"depth": 4, "embed": 8, "deter": 6, "stoch": 2, "classes": 3, "hidden": 7, "batch_size": 4}
  small |= {"inverse_dynamics_hidden": 5, "sequence_length": 5, "updates": 6, "warmup_updates": 1}
  small |= {"failed_takes": False, "cameras": ("rgb_static",)}
  config.world_model.update(small)
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config_lib.finalize(config)


def train(collected, path, until=None, **changes):
  """Runs the stage as the runner does; with `until`, stops it after the call that reaches this update."""
  config = make_config(**changes)
  part = {key: value for key, value in config_lib.flatten(config).items() if key.startswith("world_model")}
  artifact = make_artifact("world_model", path, config.to_dict(), part)
  artifact_lib.write_artifact(artifact, done=False)
  logger = Logger(path, "world_model")
  lines: list[str] = []
  logger.info = lines.append
  write = logger.write

  def stopping_write(step, metrics):
    write(step, metrics)
    if until is not None and step >= until:
      raise KeyboardInterrupt

  logger.write = stopping_write
  try:
    world_model_stage.run(StageRun(config, {"collect": collected}, path, logger))
  finally:
    logger.close()
  artifact_lib.write_artifact(artifact, done=True)
  return load_artifact(path), lines


@pytest.fixture(scope="module", name="trained")
def _trained(collected, tmp_path_factory):
  """The stage, finished, with the frames on the device; and what it said."""
  return train(collected, tmp_path_factory.mktemp("trained") / "world_model")


@pytest.fixture(scope="module", name="resumed")
def _resumed(collected, tmp_path_factory):
  """The same, with snapshots, stopped once, the frames streamed; and what it said after that."""
  path = tmp_path_factory.mktemp("resumed") / "world_model"
  kept = {"world_model__snapshots": (2, 6)}
  with pytest.raises(KeyboardInterrupt):
    train(collected, path, until=4, data__residency="stream", **kept)
  return train(collected, path, data__memory_limit_gb=1e-6, **kept)


def params_of(artifact):
  return load_params(artifact.path / "params")


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_streamed_and_resumed_training_equals_resident_training_to_the_bit(trained, resumed):
  resident, said = trained
  assert any("stay on the device" in line for line in said)
  resumed, said = resumed
  assert any("are streamed" in line and "data.memory_limit_gb" in line for line in said)
  assert any("resumed at update 2" in line for line in said)
  assert_equal(params_of(resident), params_of(resumed))


@pytest.mark.slow
def test_streamed_training_with_a_carried_state_equals_resident_training_to_the_bit(collected, tmp_path):
  settings = {"world_model__carry_state": True, "world_model__reset_probability": 0.2}
  settings["world_model__open_loop_share"] = 0.0
  resident, _ = train(collected, tmp_path / "device", **settings)
  streamed, _ = train(collected, tmp_path / "stream", data__residency="stream", **settings)
  assert_equal(params_of(resident), params_of(streamed))


def test_snapshots_are_artifacts_and_change_nothing(trained, resumed):
  plain, with_snapshots = trained[0], resumed[0]
  assert_equal(params_of(plain), params_of(with_snapshots))
  snapshots = {n: load_artifact(with_snapshots.path / f"snapshots/{n}", "world_model") for n in (2, 6)}
  assert len({a.fingerprint for a in (with_snapshots, *snapshots.values())}) == 3
  assert_equal(params_of(snapshots[6]), params_of(plain))
  model, params = models.load_world_model(snapshots[2])
  assert model.deter == 6
  assert not np.array_equal(params["fuse"]["kernel"], params_of(plain)["fuse"]["kernel"])


def test_an_artifact_with_other_parameters_is_refused_with_the_difference(trained, tmp_path):
  artifact = load_artifact(shutil.copytree(trained[0].path, tmp_path / "a"))
  config = artifact.config
  config["world_model"] |= {"deter": 9, "embedding_image_weight": 0.0}
  artifact_lib.write_artifact(make_artifact("world_model", artifact.path, config), done=True)
  with pytest.raises(CheckpointError) as error:
    models.load_world_model(load_artifact(artifact.path))
  assert "rssm/gru/recurrent/kernel: [6, 18], wanted [9, 27]" in str(error.value)
  assert "embedding_decoder/rgb_static/grid/kernel [8, 64]: not wanted" in str(error.value)
  del config["world_model"]["cameras"]
  artifact_lib.write_artifact(make_artifact("world_model", artifact.path, config), done=True)
  with pytest.raises(CheckpointError, match="cameras.*another version"):
    models.load_world_model(load_artifact(artifact.path))


@pytest.mark.slow
def test_robot_statistics_travel_with_the_artifact(collected, tmp_path):
  artifact, _ = train(collected, tmp_path / "z", world_model__proprio="zscore", world_model__snapshots=(6,))
  for one in (artifact, load_artifact(artifact.path / "snapshots/6")):
    model, _ = models.load_world_model(one)
    np.testing.assert_allclose(model.robot_obs_mean, np.linspace(-1, 1, 15), atol=0.8)
    assert min(model.robot_obs_std) < 0.05 and max(model.robot_obs_std) > 1
  statistics = collected.path / "dataset/training/statistics.yaml"
  kept = statistics.read_text()
  other = (collected.path / "dataset/validation/statistics.yaml").read_text()
  try:
    statistics.write_text(other)
    with pytest.raises(DatasetError, match="not the statistics of this split"):
      train(collected, tmp_path / "wrong", world_model__proprio="zscore")
  finally:
    statistics.write_text(kept)


@pytest.fixture(scope="module", name="with_failed")
def _with_failed(tmp_path_factory, write_split) -> Artifact:
  """As `collected`, and three failed takes of 6, 7 and 8 frames; a frame of the last, held out, is gone."""
  path = tmp_path_factory.mktemp("failed")
  for seed, split in enumerate(("training", "validation")):
    write_split(path / "dataset" / split, LENGTHS, SIZE, seed)
  rng, num = np.random.default_rng(9), 6 + 7 + 8
  with calvin_writer.FrameWriter(path / "dataset" / calvin.FAILED, 500) as writer:
    picture = lambda: rng.integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)
    writer.write(
      actions=rng.normal(size=(num, 7)),
      rel_actions=np.append(rng.uniform(-1, 1, (num, 6)), np.ones((num, 1)), 1),
      robot_obs=rng.normal(size=(num, 15)),
      scene_obs=rng.normal(size=(num, 24)),
      rgb_static=picture(),
      rgb_gripper=picture(),
    )
    writer.commit([6, 7, 8], [("open_drawer", *span) for span in ((0, 6), (6, 13), (13, 21))], "table")
  frame_path(path / "dataset" / calvin.FAILED, 515).unlink()
  return Artifact(stage="collect", path=path, fingerprint="0", config={}, part={}, inputs={}, schema=1)


def test_failed_takes_that_are_not_held_out_are_trained_on(with_failed, tmp_path, monkeypatch):
  settings = {"tasks": ("open_drawer",), "data__failed_takes_per_task": 2}
  root = with_failed.path / "dataset"
  assert world_model_stage.failed_takes(make_config(**settings), root) == []
  settings["world_model__failed_takes"] = True
  none = {"data__failed_takes_per_task": 0, "ppo__failed_starts": 0.0}
  assert world_model_stage.failed_takes(make_config(**settings | none), root) == []
  ((folder, spans),) = world_model_stage.failed_takes(make_config(**settings), root)
  assert folder == root / "failed" and spans.tolist() == [[500, 505], [506, 512]]
  read = []

  class Learns(Exception):
    pass

  def make_sampler(_config, num_frames, *_rest):
    read.append(num_frames)
    raise Learns

  monkeypatch.setattr(world_model_stage, "make_sampler", make_sampler)
  with pytest.raises(Learns):
    train(with_failed, tmp_path / "device", **settings)
  assert read == [73]
  with pytest.raises(DatasetError, match=r"episode_0000515.npz: missing frame"):
    train(with_failed, tmp_path / "more", **settings | {"data__failed_takes_per_task": 3})


@pytest.mark.slow
def test_failed_takes_are_streamed_as_they_are_kept(with_failed, tmp_path):
  settings = {"tasks": ("open_drawer",), "data__failed_takes_per_task": 2, "world_model__failed_takes": True}
  resident, _ = train(with_failed, tmp_path / "device", **settings)
  streamed, said = train(with_failed, tmp_path / "stream", data__residency="stream", **settings)
  assert any("parameters, 73 frames" in line for line in said)
  assert_equal(params_of(resident), params_of(streamed))


def test_too_few_frames_for_a_window(collected, tmp_path):
  with pytest.raises(DatasetError, match="60 frames, too few for one window of 61"):
    train(collected, tmp_path / "x", world_model__sequence_length=61)


def lumos_changes(**changes):
  """The config that the fixture's weights fit."""
  path = FIXTURES / "lumos_world_model.npz"
  with np.load(path) as file:
    classes, size = int(file["config/rank"]), file["input/rgb_static"].shape[-1]
  sizes = lumos.sizes(lumos.read_state_dict(path), classes) | {"embedding_image_weight": 0.0}
  renamed = {f"world_model__{name}": value for name, value in sizes.items()}
  return renamed | {"env__image_size": size, "inputs__lumos_checkpoint": str(path)} | changes


def test_a_lumos_checkpoint_stands_for_training(collected, tmp_path):
  artifact, said = train(collected, tmp_path / "lumos", **lumos_changes())
  assert any("inverse_dynamics_head" in line for line in said)
  _, params = models.load_world_model(artifact)
  weights = lumos.read_state_dict(FIXTURES / "lumos_world_model.npz")
  back = lumos.to_state_dict(params)
  assert set(back) == set(weights)
  assert_equal(back, {name: np.asarray(weights[name]) for name in back})


def test_a_lumos_checkpoint_of_other_sizes_is_refused(collected, tmp_path):
  with pytest.raises(lumos.MismatchError, match="rssm_core.cell.gru") as error:
    train(collected, tmp_path / "other", **lumos_changes(world_model__deter=51))
  assert "deter" in str(error.value)
  with pytest.raises(config_lib.ConfigError) as config_error:
    make_config(inputs__lumos_checkpoint=str(tmp_path / "missing.ckpt"))
  assert "inputs.lumos_checkpoint" in str(config_error.value) and "world_model.vision" in str(
    config_error.value
  )
