"""A robot that is not CALVIN's, from its files to a policy that acts in its units."""

import collections
import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import made_up_robot
import numpy as np
import pytest
from made_up_params import random_like
from made_up_robot import ARM, DEMOS, LENGTHS, SUCCESS_FROM, TASK
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax import embodiment
from wam_jax.acting import export, run_exported
from wam_jax.acting.dreaming import DreamingModel
from wam_jax.acting.models import make_classifier, make_policy
from wam_jax.acting.policy import ActingPolicy
from wam_jax.commands import aot_programs
from wam_jax.core.image import area_resize
from wam_jax.data import calvin, convert, doubts, frames_cache, inspect, windows
from wam_jax.data.files import DatasetError, read_npz
from wam_jax.data.frames import check_vectors, frame_path
from wam_jax.embodiment import CALVIN, FILE, ActionDimension, Camera, EmbodimentError
from wam_jax.nn.world_model import make_world_model, needs_statistics, proprio_features, reported_state
from wam_jax.running import data_check, plan, runner
from wam_jax.stages.featurize import filter_demos
from wam_jax.storage import artifact as artifact_lib
from wam_jax.training import behaviour_cloning, imagination, ppo
from wam_jax.training import state as train_state
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training

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


def test_a_robot_may_be_described_by_lists_and_numpys_numbers(tmp_path):
  joint = ActionDimension("turn", range=tuple(np.array([-0.1, 0.7], np.float32)), rest=np.float32(0.1))
  robot = dataclasses.replace(
    ARM, cameras=(Camera("top", [24, 32]),), action=(joint,), control_hz=np.int64(9)
  )
  made_up_robot.write_dataset(tmp_path, robot)
  assert calvin.read_frames(tmp_path / "validation", SIZE).embodiment.control_hz == 9


def test_a_lost_description_is_suspected(root):
  (root / FILE).unlink()
  with pytest.raises(DatasetError, match="rgb_static.*absent") as error:
    calvin.read_frames(root / "training", SIZE)
  assert FILE in error.value.fix


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


@pytest.mark.parametrize("split", ["training", "validation"])
def test_demos_without_labels_are_found_before_anything_is_trained(root, split):
  looked_at = inspect.inspect_dataset(root, tasks=(TASK,), image_size=SIZE)
  assert "featurize" in looked_at["stages"]
  for path in (root / split).glob("episode_*.npz"):
    np.savez(path, **{key: value for key, value in read_npz(path).items() if key != "success"})
  looked_at = inspect.inspect_dataset(root, tasks=(TASK,), image_size=SIZE)
  assert "world_model" in looked_at["stages"] and "featurize" not in looked_at["stages"]
  assert [problem["key"] for problem in looked_at["problems"]] == ["success"]
  config = chain_config(root)
  problems = data_check.check_data(config, plan.make_plan(config))[0]
  assert (
    len(problems) == 1 and split in problems[0] and "nothing says whether the task is done" in problems[0]
  )


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
  state[:, 5] = np.arctan2(np.sin(state[:, 5]), np.cos(state[:, 5]))
  np.testing.assert_allclose(reported_state(out, ARM, (mean, std)), state, atol=1e-5)


def test_a_camera_that_the_robot_lacks():
  with pytest.raises(EmbodimentError, match="front"):
    make_world_model(tiny_config(**{"world_model.cameras": ("top", "front")}).world_model, SIZE, None, ARM)


@pytest.mark.parametrize(
  "changes",
  [
    {"world_model.proprio": "latent", "world_model.cameras": ARM.camera_names[:2]},
    pytest.param({"behaviour_cloning.policy": "gaussian"}, marks=pytest.mark.slow),
  ],
)
def test_from_frames_to_a_policy_that_acts(root, tmp_path, changes):
  config = tiny_config(**changes)
  w, key = config.world_model, jax.random.key(0)
  demos = calvin.read_demos(root / "training", (TASK,), image_size=SIZE)
  frames = calvin.read_frames(root / "training", SIZE)
  statistics = (frames.robot_obs.mean(0), frames.robot_obs.std(0)) if needs_statistics(w, ARM) else None
  model = make_world_model(w, SIZE, statistics, ARM)
  params = random_like(lambda key: wm.init_params(model, key))
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
  network = jax.jit(policy.init)(key)
  feature, chunk = behaviour_cloning.sample_batch(data, key, 4, policy.chunk)
  loss = jax.jit(policy.cloning_loss)(network, feature, chunk, key)
  assert np.isfinite(loss) and chunk.shape == (4, 2, 6)

  classifier = make_classifier(config, model.feature_size)
  frozen = ppo.Frozen(
    base=network,
    classifier={"network": jax.jit(classifier.init)(key), "threshold": jnp.float32(0.0)},
    starts=jax.tree.map(lambda x: x[0], imagination.make_starts(takes.takes)),
  )
  dreamer = imagination.Dreamer(imagination.make_world(model), policy, classifier, 2)
  iterate = jax.jit(ppo.make_iteration(dreamer, config.ppo))
  begun = jax.jit(lambda frozen: ppo.init_state(policy, config.ppo, frozen, key))(frozen)
  tuned, metrics = iterate(begun, frozen, state.params, key)
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


@pytest.mark.parametrize(
  "robot", [CALVIN, dataclasses.replace(ARM, cameras=(Camera("top", (48, 64)), *ARM.cameras[1:]))]
)
def test_a_description_of_another_robot_is_not_replaced(tmp_path, robot):
  (tmp_path / FILE).write_text(ARM.to_json())
  with pytest.raises(DatasetError, match="another robot") as error:
    made_up_robot.write_frames(tmp_path / "training", robot)
  assert error.value.file == tmp_path and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_joined_splits_must_be_of_one_robot(root, tmp_path):
  other = dataclasses.replace(ARM, cameras=(*ARM.cameras[:2], Camera("wrist", (32, 16))))
  made_up_robot.write_dataset(tmp_path / "other", other)
  with pytest.raises(DatasetError, match="pictures of wrist are 1:1.*2:1"):
    calvin.open_split(root / "training", SIZE, [(tmp_path / "other/validation", np.array([[0, 8]]))])


def chain_config(root, **changes):
  c = tiny_config(**{"world_model.cameras": CALVIN.camera_names} | changes)
  c.tasks, c.workdir = changes.get("tasks", (TASK,)), str(root.parent / "run")
  c.data.update(source="calvin", calvin_path=str(root), failed_takes_per_task=0)
  c.ppo.failed_starts = 0.0
  return config_lib.finalize(c)


def test_config_and_plan_follow_the_data(root):
  config = chain_config(root)
  assert config.world_model.cameras == ARM.camera_names
  plans = plan.make_plan(config)
  assert {p.artifact.embodiment for p in plans.values()} == {ARM}
  artifact = plans["collect"].artifact
  artifact_lib.write_artifact(artifact, done=True)
  assert artifact_lib.read_artifact(artifact.path) == artifact
  other = dataclasses.replace(ARM, control_hz=30.0)
  (root / FILE).write_text(other.to_json())
  assert plan.make_plan(config)["collect"].action == "conflict"


CALVIN_TASK = "open_drawer"


@pytest.mark.parametrize(
  ("robot", "task", "scene", "reason"),
  [
    (ARM, CALVIN_TASK, False, "6 numbers of action, not 7"),
    (CALVIN, TASK, True, f"does not know {TASK}"),
    (CALVIN, CALVIN_TASK, False, "scene_obs"),
    (CALVIN, CALVIN_TASK, True, ""),
  ],
)
def test_what_needs_a_simulator_is_left_out(tmp_path, monkeypatch, robot, task, scene, reason):
  monkeypatch.setattr(made_up_robot, "TASK", task)
  made_up_robot.write_dataset(tmp_path / "data", robot)
  for path in (tmp_path / "data").rglob("episode_*.npz") if scene else ():
    np.savez(path, **read_npz(path), scene_obs=np.zeros(24))
  tasks = {"tasks": (task,)}
  config = chain_config(tmp_path / "data", **tasks)
  plans = plan.make_plan(config)
  left = [stage for stage, of_stage in plans.items() if of_stage.action == "leave"]
  assert left == (["evaluate"] if reason else [])
  assert reason in plans["evaluate"].obstacle and reason in plan.format_plan(config, plans)
  assert ("evaluate" in plans["report"].artifact.inputs) != bool(reason)
  assert not plan.simulator_problems(config, plans)
  for asked in ({"stage": "evaluate"}, {"stage": "evaluate_cloned"}):
    config = chain_config(tmp_path / "data", **tasks, **asked)
    problems = plan.simulator_problems(config, plan.make_plan(config))
    assert bool(problems) == bool(reason)
    assert not problems or (asked["stage"] in problems[0] and reason in problems[0])


@pytest.mark.parametrize("task", [TASK, CALVIN_TASK])
def test_play_without_scenes_is_not_searched_for_successes(tmp_path, monkeypatch, task):
  monkeypatch.setattr(made_up_robot, "TASK", task)
  made_up_robot.write_dataset(tmp_path / "data")
  searched = {"tasks": (task,), "data.play_successes_per_task": 5}
  if task == TASK:  # which has no predicate
    with pytest.raises(config_lib.ConfigError) as error:
      chain_config(tmp_path / "data", **searched)
    assert [problem.path for problem in error.value.problems] == ["data.play_successes_per_task"]
    return
  config = chain_config(tmp_path / "data", **searched)
  problems = data_check.check_data(config, plan.make_plan(config))[0]
  assert any("no scene_obs" in line and "play_successes_by=classifier" in line for line in problems)


def test_a_dataset_is_known_by_what_it_holds_wherever_it_lies(tmp_path):
  made_up_robot.write_dataset(tmp_path / "data")
  (tmp_path / "link").symlink_to(tmp_path / "data")
  run = lambda root: runner.run(
    chain_config(root, stage="collect", workdir=str(tmp_path / "run")), quiet=True
  )
  planned = lambda root: plan.make_plan(chain_config(root, stage="collect", workdir=str(tmp_path / "run")))
  run(tmp_path / "link")
  collect = tmp_path / "run" / "collect"
  assert json.loads((collect / "dataset.json").read_text())["root"] == str(tmp_path / "link")
  (tmp_path / "data").rename(tmp_path / "moved")
  (tmp_path / "link").unlink()
  (tmp_path / "link").symlink_to(tmp_path / "moved")
  assert calvin.dataset_path(collect) == tmp_path / "link"
  assert planned(tmp_path / "link")["collect"].action == "skip"
  assert planned(tmp_path / "moved")["collect"].action == "resume"  # looks at it, and notes its place
  run(tmp_path / "moved")
  assert calvin.dataset_path(collect) == tmp_path / "moved"
  assert planned(tmp_path / "moved")["collect"].action == "skip"
  shutil.rmtree(tmp_path / "moved" / "training")
  made_up_robot.write_frames(tmp_path / "moved" / "training", seed=5)
  assert planned(tmp_path / "moved")["collect"].action == "skip"  # frames are not looked at
  annotations = calvin.annotation_file(tmp_path / "moved" / "training")
  annotations.write_bytes(calvin.annotation_file(tmp_path / "moved" / "validation").read_bytes() + b" ")
  with pytest.raises(
    plan.StageError, match="moved holds other episodes or takes than when stage collect saw it"
  ):
    run(tmp_path / "moved")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
  ("takes", "fix"), [(1, ""), (2, "=1"), (5, "=1"), (None, "=0 --config.ppo.failed_starts=0")]
)
def test_some_failed_takes_have_to_be_held_out(tmp_path, takes, fix, given):
  """There are two, or none; said before a world model and classifiers are trained."""
  root = tmp_path / "dataset"
  made_up_robot.write_dataset(root)
  if takes:
    made_up_robot.write_frames(root / "failed", seed=2)
  c = ConfigDict(chain_config(root).to_dict())
  c.data.failed_takes_per_task = takes or 3
  if given:
    c.inputs.collect = str(tmp_path)
  stage = types.SimpleNamespace(action="run", artifact=tmp_path)
  problems = data_check.check_data(c, collections.defaultdict(lambda: stage))[0]
  assert bool(problems) == bool(fix)
  assert not fix or f"failed_takes_per_task{fix}" in problems[0]
  assert not fix or f"{2 if takes else 0} of {TASK}" in problems[0]


def test_programs_compiled_ahead_are_of_the_run_s_robot(root):
  programs = aot_programs.Programs(chain_config(root), jax.devices()[:1], sum(LENGTHS), 10**10)
  shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(programs.world_model().arguments[1])}
  assert {(ARM.action_size,), (ARM.state_size,), (SIZE * SIZE * 3,)} <= shapes
  seen = programs.acting().arguments[-1]
  assert set(seen) == {*ARM.camera_names, "robot_obs"} and seen["robot_obs"].shape == (1, ARM.state_size)


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


@pytest.fixture(name="dreaming", scope="module")
def _dreaming(tmp_path_factory):
  """A world model of random weights that carries the robot's state, and the frames of an episode."""
  folder = tmp_path_factory.mktemp("data") / "training"
  made_up_robot.write_frames(folder)
  frames = [read_npz(frame_path(folder, i)) for i in range(LENGTHS[0])]
  seen = {key: np.stack([frame[key] for frame in frames[:3]]) for key in (*ARM.camera_names, "robot_obs")}
  w = tiny_config(**{"world_model.proprio": "latent"}).world_model
  model = make_world_model(w, SIZE, ((3.0,) * 9, (2.0,) * 9), ARM)
  dreamer = DreamingModel(model, random_like(lambda key: wm.init_params(model, key)))
  return dreamer, seen, np.stack([frame["rel_actions"] for frame in frames[:8]])


def test_a_world_model_imagines(dreaming):
  model, seen, actions = dreaming
  dream = model.imagine(seen, actions)
  assert list(dream.pictures) == list(ARM.camera_names) and dream.features.shape == (
    9,
    model.model.feature_size,
  )
  assert {x.shape for x in dream.pictures.values()} == {(9, SIZE, SIZE, 3)}
  cosine = np.cos(dream.robot_obs[:3, 5] - seen["robot_obs"][:, 5])  # an angle may be turned once more
  np.testing.assert_allclose(cosine, 1, atol=1e-5)
  others = np.arange(9) != 5
  np.testing.assert_allclose(dream.robot_obs[:3, others], seen["robot_obs"][:, others], atol=1e-4)

  np.testing.assert_array_equal(model.imagine(seen, actions).features, dream.features)
  changed = actions.copy()
  changed[5] = ARM.action_ranges.mean(1)
  changed[5, 3] = 1 - actions[5, 3]
  differs = (model.imagine(seen, changed).features != dream.features).any(-1)
  assert differs.tolist() == [False] * 6 + [True] * 3  # action 5 leads to frame 6
  assert (model.imagine(seen, actions, seed=1).features[-1] != dream.features[-1]).any()


def test_dreams_side_by_side(dreaming):
  model, seen, actions = dreaming
  first = {key: value[0] for key, value in seen.items()}
  together = model.imagine(first, np.stack([actions, actions[::-1]]))
  assert together.features.shape[:2] == together.robot_obs.shape[:2] == (2, 9)
  assert (together.features[0, 0] == together.features[1, 0]).mean() > 0.5  # one past; the noise differs
  both = {key: np.stack([value, value]) for key, value in seen.items()}
  shared, apart = (model.imagine(x, np.stack([actions] * 2)) for x in (seen, both))
  np.testing.assert_allclose(shared.features, apart.features, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "actions", "named"),
  [
    ({"side": None}, {}, "side missing"),
    ({"robot_obs": np.zeros((2, 9))}, {}, "robot_obs"),
    ({"robot_obs": np.full((3, 9), np.nan)}, {}, "robot_obs.*NaN"),
    ({"top": np.zeros((3, 32, 24, 3), np.uint8)}, {}, "top.*24 x 32"),
    ({"top": np.zeros((3, 24, 32, 3))}, {}, "top.*uint8"),
    ({}, {(4, 1): 46.0}, r"joint_1.*\[-90, 45\].*46"),
    ({}, {(0, 3): np.nan}, "grip.*nan"),
    ({}, (8, 5), r"actions.*\[N, 6\]"),
    ({}, (1, 6), "actions.*3 frames"),
  ],
)
def test_what_cannot_be_imagined(dreaming, changes, actions, named):
  model, seen, good = dreaming
  action = good.copy() if isinstance(actions, dict) else np.zeros(actions)
  for place, value in actions.items() if isinstance(actions, dict) else ():
    action[place] = value
  with pytest.raises(ValueError, match=named):
    model.imagine({key: x for key, x in (seen | changes).items() if x is not None}, action)
