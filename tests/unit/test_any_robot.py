"""A robot that is not CALVIN's, from its files to a policy that acts in its units."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import made_up_robot
import numpy as np
import pytest
from made_up_robot import ARM, DEMOS, LENGTHS, SUCCESS_FROM, TASK

from wam_jax import config as config_lib
from wam_jax import embodiment
from wam_jax.acting import export, run_exported
from wam_jax.acting.models import make_classifier, make_policy
from wam_jax.acting.policy import ActingPolicy
from wam_jax.core.image import area_resize
from wam_jax.data import calvin, convert, doubts, frames_cache, inspect, windows
from wam_jax.data.files import DatasetError, read_npz
from wam_jax.data.frames import check_vectors, frame_path
from wam_jax.embodiment import CALVIN, FILE, Camera, EmbodimentError
from wam_jax.nn.world_model import make_world_model, needs_statistics, proprio_features
from wam_jax.running import data_check, plan
from wam_jax.stages.featurize import filter_demos
from wam_jax.storage import artifact as artifact_lib
from wam_jax.train import behaviour_cloning, imagination, ppo
from wam_jax.train import state as train_state
from wam_jax.train import world_model as wm
from wam_jax.train import world_model_training as wm_training

SIZE = 16


@pytest.fixture(name="root")
def _root(tmp_path):
  made_up_robot.write_dataset(tmp_path / "data")
  return tmp_path / "data"


def tiny_config(**changes):
  c = config_lib.preset_config("demo")
  c.env.image_size = SIZE
  c.world_model.update(vision="patch", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10)
  c.world_model.update(inverse_dynamics_hidden=8, cameras=ARM.camera_names, batch_size=2, sequence_length=5)
  c.behaviour_cloning.update(chunk=2, hidden=8, time_dim=4, denoising_steps=3, batch_size=4)
  c.ppo.update(dreams=4, chunks_per_iteration=2, horizon_steps=4, epochs=1, minibatches=1, fine_tuned_steps=2)
  c.ppo.update(value_hidden=(8, 8, 8), critic_warmup_iterations=0)
  c.classifier.update(embed=(8, 6), hidden=8, ensemble=1)
  c.update_from_flattened_dict(changes)
  return c


def test_frames_are_read_in_the_robots_terms(root):
  frames = calvin.read_frames(root / "training", SIZE)
  raw = read_npz(frame_path(root / "training", 7))
  assert frames.embodiment == ARM and frames.scene_obs is None
  for camera in ARM.camera_names:  # squeezed by area averaging
    np.testing.assert_array_equal(frames.pictures[camera][7], area_resize(raw[camera], SIZE, SIZE))
  np.testing.assert_allclose(frames.action[7], ARM.to_unit(raw["rel_actions"]), atol=1e-6)
  assert set(np.unique(frames.action[:, 3])) <= {-1.0, 1.0} and np.abs(frames.action).max() <= 1
  demos = calvin.read_demos(root / "training", (TASK,), image_size=SIZE).frames
  expected = np.concatenate([np.arange(LENGTHS[i]) >= SUCCESS_FROM for i in DEMOS])
  np.testing.assert_array_equal(demos.success, expected)


def test_every_form_of_the_data_is_the_same(root, tmp_path):
  frames = calvin.read_frames(root / "training", SIZE)
  convert.convert(root, tmp_path / "converted", image_size=SIZE, log=lambda text: None)
  converted = calvin.read_frames(tmp_path / "converted/training", SIZE)
  cached = frames_cache.open_cache(tmp_path / "cache", root / "training", SIZE).load()
  for other in (converted, cached):
    for field in dataclasses.fields(frames):
      if field.name != "embodiment":
        jax.tree.map(np.testing.assert_array_equal, getattr(frames, field.name), getattr(other, field.name))
    assert other.embodiment == ARM


def test_the_check_of_the_data_knows_its_robot(root):
  report = inspect.inspect_dataset(root, tasks=(TASK,), image_size=SIZE, frames=8)
  text = inspect.format_report(report)
  assert not [problem for problem in report["problems"] if problem["stops"] == "collect"]
  assert "load" in text and "top 24 x 32" in text
  assert doubts.look(root / "training", SIZE, tasks=(TASK,)) == []


@pytest.mark.parametrize(
  ("changes", "key", "rule"),
  [
    ({"side": None}, "side", "absent"),
    ({"top": np.zeros((32, 24, 3), np.uint8)}, "top", r"24, 32"),
    ({"rel_actions": np.array([0, 46.0, 0, 1, 0, 0])}, "rel_actions", r"\[-90, 45\].*number 1 is 46"),
    ({"rel_actions": np.array([0, 0, 0, 0.5, 0, 0])}, "rel_actions", "grip.*0 or 1"),
    ({"robot_obs": np.ones(8)}, "robot_obs", "9 floats"),
    ({"success": np.array(2)}, "success", "true or false"),
  ],
)
def test_frames_that_break_a_rule_are_named(tmp_path, changes, key, rule):
  made_up_robot.write_frames(tmp_path / "training", **changes)
  with pytest.raises(DatasetError, match=rule) as error:
    calvin.read_frames(tmp_path / "training", SIZE)
  assert error.value.key == key


def test_binary_numbers_may_be_rounded():
  grip = dataclasses.replace(ARM.action[3], range=(0.1, 0.7), rest=0.7)
  robot = dataclasses.replace(ARM, action=(*ARM.action[:3], grip, *ARM.action[4:]))
  action = np.zeros((2, 6), np.float32)
  action[:, 3] = 0.1, 0.7
  values = {"rel_actions": action.astype(np.float64)}
  check_vectors(lambda i: i, np.arange(2), values, robot)
  assert values["rel_actions"][:, 3].tolist() == [-1, 1]


def test_demos_without_labels_are_refused(tmp_path):
  made_up_robot.write_frames(tmp_path / "training")
  for path in (tmp_path / "training").glob("episode_*.npz"):
    np.savez(path, **{key: value for key, value in read_npz(path).items() if key != "success"})
  assert calvin.read_frames(tmp_path / "training", SIZE).success is None  # enough for a world model
  with pytest.raises(DatasetError, match="done") as error:
    calvin.read_demos(tmp_path / "training", (TASK,), image_size=SIZE)
  assert error.value.key == "success"


def test_a_damaged_description_is_named(root):
  content = json.loads((root / FILE).read_text())
  content["action"][3]["kind"] = "maybe"
  (root / FILE).write_text(json.dumps(content))
  with pytest.raises(DatasetError, match="embodiment.json.*action.grip.kind"):
    calvin.read_frames(root / "training", SIZE)


def test_state_features():
  state = np.random.default_rng(0).normal(size=(4, 9))
  mean, std = np.arange(9.0), np.arange(1.0, 10)
  out = np.asarray(proprio_features(jnp.asarray(state), ARM, (mean, std)))
  normalised = (state - mean) / std
  expected = np.concatenate(
    [
      *(normalised[:, :5], np.sin(state[:, 5:6]), np.cos(state[:, 5:6]), 10 * state[:, 6:7]),
      *(state[:, 7:8], normalised[:, 8:]),
    ],
    -1,
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)
  assert out.shape[-1] == ARM.state_features == 10


def test_a_camera_that_the_robot_lacks():
  with pytest.raises(EmbodimentError, match="front"):
    make_world_model(tiny_config(**{"world_model.cameras": ("top", "front")}).world_model, SIZE, None, ARM)


@pytest.mark.parametrize(
  "changes", [{"world_model.proprio": "latent"}, {"behaviour_cloning.policy": "gaussian"}]
)
def test_from_frames_to_a_policy_that_acts(root, tmp_path, changes):
  config = tiny_config(**changes)
  w, key = config.world_model, jax.random.key(0)
  demos = calvin.read_demos(root / "training", (TASK,), image_size=SIZE)
  frames = calvin.read_frames(root / "training", SIZE)
  statistics = (frames.robot_obs.mean(0), frames.robot_obs.std(0)) if needs_statistics(w, ARM) else None
  model = make_world_model(w, SIZE, statistics, ARM)
  params = wm.init_params(model, key)
  sampler = windows.Sampler(frames.num_frames, w.batch_size, w.sequence_length, embodiment=ARM)
  optimizer = wm_training.make_optimizer(w, params)
  update = wm_training.make_update(
    model, w, optimizer, lambda store, key, step, _: sampler.sample(store, key, step)
  )
  state = train_state.make_train_state(params, optimizer)
  state, metrics = update(state, windows.make_store(frames), key, 1)
  assert {f"inverse_dynamics/error_{name}" for name in ARM.action_names} <= set(metrics)
  assert all(np.isfinite(values).all() for values in jax.device_get(metrics).values())

  takes = filter_demos(model, state.params, demos, (TASK,), key)
  policy = make_policy(config, model.feature_size, takes.action.shape[-1])
  data = jax.tree.map(lambda x: x[0], behaviour_cloning.make_data(takes.takes, policy.chunk))
  network = policy.init(key)
  feature, chunk = behaviour_cloning.sample_batch(data, key, 4, policy.chunk)
  assert np.isfinite(policy.cloning_loss(network, feature, chunk, key)) and chunk.shape == (4, 2, 6)

  classifier = make_classifier(config, model.feature_size)
  frozen = ppo.Frozen(
    base=network,
    classifier={"network": classifier.init(key), "threshold": jnp.float32(0.0)},
    starts=jax.tree.map(lambda x: x[0], imagination.make_starts(takes.takes)),
  )
  dreamer = imagination.Dreamer(imagination.make_world(model), policy, classifier, 2)
  iterate = jax.jit(ppo.make_iteration(dreamer, config.ppo))
  tuned, metrics = iterate(ppo.init_state(policy, config.ppo, frozen, key), frozen, state.params, key)
  assert all(np.isfinite(values).all() for values in jax.device_get(metrics).values())

  stack = lambda tree: jax.tree.map(lambda x: x[None], tree)
  networks = stack({"base": network, "tuned": tuned.params["actor"]})
  actor = ActingPolicy(model, state.params, policy, networks, TASK)
  raw = read_npz(frame_path(root / "training", 0))
  action = actor.act(raw)
  low, high = ARM.action_ranges.T
  assert action.shape == (6,) and (low <= action).all() and (action <= high).all() and action[3] in (0, 1)
  with pytest.raises(ValueError, match="top.*24 x 32"):
    actor.act(raw | {"top": raw["top"].swapaxes(0, 1)})
  with pytest.raises(ValueError, match="robot_obs.*9"):
    actor.act(raw | {"robot_obs": np.zeros(15)})
  if policy.fine_tuned_steps > 1:  # once
    exported = run_exported.Policy(export.export_policy(actor, tmp_path / "exported"))
    actor.reset()
    exported.reset()
    np.testing.assert_allclose(exported.act(raw), actor.act(raw), atol=1e-4)
    assert embodiment.from_dict(exported.about["embodiment"]) == ARM


def test_a_dataset_is_of_one_robot(root):
  with pytest.raises(DatasetError, match="3 numbers of action, not 6"):
    made_up_robot.write_frames(root / "failed", dataclasses.replace(ARM, action=ARM.action[:3]))


def test_joined_splits_must_be_of_one_robot(root, tmp_path):
  other = dataclasses.replace(ARM, cameras=(*ARM.cameras[:2], Camera("wrist", (32, 16))))
  made_up_robot.write_dataset(tmp_path / "other", other)
  with pytest.raises(DatasetError, match="pictures of wrist are 1:1.*2:1"):
    calvin.open_split(root / "training", SIZE, [(tmp_path / "other/validation", np.array([[0, 8]]))])


def chain_config(root, **changes):
  c = tiny_config(**{"world_model.cameras": CALVIN.camera_names} | changes)
  c.tasks, c.workdir = (TASK,), str(root.parent / "run")
  c.data.update(source="calvin", calvin_path=str(root), failed_takes_per_task=0)
  c.ppo.failed_starts = 0.0
  return config_lib.finalize(c)


def test_config_and_plan_follow_the_data(root):
  config = chain_config(root)
  assert config.world_model.cameras == ARM.camera_names
  plans = plan.make_plan(config)
  assert {p.artifact.embodiment for p in plans.values()} == {ARM}
  problems, _ = data_check.check_data(config, plans)
  assert "another robot" in problems[0] and "6 numbers of action, not 7" in problems[0]
  artifact = plans["collect"].artifact
  artifact_lib.write_artifact(artifact, done=True)
  assert artifact_lib.read_artifact(artifact.path) == artifact
  other = dataclasses.replace(ARM, control_hz=30.0)
  (root / FILE).write_text(other.to_json())
  assert plan.make_plan(config)["collect"].action == "conflict"


def test_cameras_that_the_data_do_not_have(root):
  with pytest.raises(config_lib.ConfigError) as error:
    chain_config(root, **{"world_model.cameras": ("front", "top")})
  assert [problem.path for problem in error.value.problems] == ["world_model.cameras"]


def test_stages_of_two_robots_are_not_mixed(root):
  config = chain_config(root)
  plans = plan.make_plan(config)
  other = dataclasses.replace(plans["collect"].artifact, embodiment=CALVIN)
  plans["collect"] = dataclasses.replace(plans["collect"], artifact=other)
  with pytest.raises(plan.StageError, match="15 actions per second, not 30|of different robots"):
    plan._robot(config, "featurize", plans)
