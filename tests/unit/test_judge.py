"""Judging a world model: choice of windows, horizons, comparison; the stage with random models."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from made_up_params import random_like
from made_up_run import make_artifact

from wam_jax import config as config_lib
from wam_jax.data import calvin, calvin_writer, judged_windows
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import Frames
from wam_jax.host import tables
from wam_jax.host.logger import Logger, read_metrics
from wam_jax.nn.world_model import make_world_model
from wam_jax.running import judge, plan
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import judge_world_model
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.saved_params import save_params
from wam_jax.training import judging
from wam_jax.training import world_model as wm

SIZE = 16


# --- windows --------------------------------------------------------------------------------------


def test_windows_are_cut_from_play_only():
  episodes = np.array([[0, 29], [30, 49], [50, 74]])  # 30, 20, 25 frames; the second is a demo
  chosen, kind = judged_windows.choose_windows(episodes, np.array([False, True, False]), 10, 99, 3)
  assert chosen.tolist() == [[0, 9], [10, 19], [20, 29], [50, 59], [60, 69]] and kind == "play"
  few, _ = judged_windows.choose_windows(episodes, np.array([False, True, False]), 10, 2, 3)
  assert few.tolist() == [[0, 9], [60, 69]]  # spread over the split


def test_without_long_play_the_ends_of_all_episodes_are_taken_and_said_so():
  episodes = np.array([[5, 24], [25, 36], [37, 38]])
  chosen, kind = judged_windows.choose_windows(episodes, np.array([True, False, False]), 15, 99, 4)
  assert chosen.tolist() == [[10, 24], [25, 36]]  # the last has fewer than 4 frames
  assert "demonstrations" in kind and "15" in kind
  none, _ = judged_windows.choose_windows(episodes, np.array([True] * 3), 15, 99, 30)
  assert none.shape == (0, 2)


# --- pictures -------------------------------------------------------------------------------------


def test_horizons_count_from_the_last_frame_seen():
  assert judge.at_horizons(np.array([1.0, 2, 3, 4]), (1, 3, 4, 5)) == [1.0, 3.0, 4.0, None]


def test_means_over_windows_by_hand():
  # Two windows of three imagined frames, the second over after one; horizons 1, 3 and (too long) 9.
  measured = {
    "psnr": np.array([[30.0, 20, 18, 16], [40, 10, 99, 99]]),
    "ssim": np.array([[0.9, 0.8, 0.6], [0.7, 0.4, 99]]),
    "repeated_psnr": np.array([[15.0, 12, 9], [5, 99, 99]]),
    "repeated_ssim": None,
  }
  valid = np.array([[True, True, True], [True, False, False]])
  own, repeated = judge.summarise_pictures(measured, valid, (1, 3, 9))
  assert own["psnr"] == [15, 16, None] and own["psnr_curve"] == [15, 18, 16]
  assert own["ssim"] == [pytest.approx(0.6), pytest.approx(0.6), None]
  assert own["mean_psnr"] == (20 + 18 + 16 + 10) / 4
  assert own["reconstruction_psnr"] == 35 and own["reconstruction_ssim"] == pytest.approx(0.8)
  assert repeated["psnr"] == [10, 9, None] and repeated["ssim"] == [None] * 3


def test_psnr_by_hand_and_equal_pictures():
  # Off by 10 of 255 everywhere: 20 log10(255 / 10) = 28.1308 dB.
  true = np.full((1, 2, 12, 12, 3), 0.1, np.float32)
  guess = true + np.float32(20 / 255) * np.array([0, 1], np.float32)[:, None, None, None]
  psnr, ssim = jax.jit(lambda *pictures: judging.compare_pictures(*pictures, [0, 1]))(guess, true)
  np.testing.assert_allclose(psnr, [[judging.MAX_PSNR, 28.1308]], atol=1e-3)
  assert ssim.shape == (1, 2) and float(ssim[0, 0]) == pytest.approx(1)
  assert judging.compare_pictures(true[:, :, :8, :8], true[:, :, :8, :8], [0])[1] is None


def test_actions_read_off_two_embeddings_by_a_matrix():
  rng = np.random.default_rng(0)
  matrix, frames = rng.normal(size=(6, 7)), 25
  features, found = {}, {}
  for name, windows in (("fit_embed", 12), ("embed", 4)):
    embed = rng.normal(size=(windows, frames, 3))
    action = np.zeros((windows, frames, 7))
    action[:, :-1] = np.concatenate([embed[:, :-1], embed[:, 1:]], -1) @ matrix + 0.5
    features[name] = embed
    ends = np.arange(1, windows + 1) * frames
    zeros = lambda *shape, n=windows * frames: np.zeros((n, *shape))
    found[name] = judged_windows.Windows(
      Frames(
        pictures={"rgb_static": zeros(1, 1, 3), "rgb_gripper": zeros(1, 1, 3)},
        ids=zeros(),
        robot_obs=zeros(15),
        scene_obs=zeros(24),
        action=action.reshape(-1, 7),
        starts=ends - frames,
        ends=ends,
      ),
      frames,
      "play",
    )
  features["action"] = np.zeros((4, frames - 1, 7))
  errors = judge.judge_actions(features, found["embed"], found["fit_embed"])
  for dimension, error in errors.items():
    assert error["linear"] < 1e-8 < 0.1 < min(error["error"], error["mean_action"]), dimension


# --- the hand -------------------------------------------------------------------------------------


def test_distances_by_hand():
  assert judge.distance(np.array([[3.0, 4, 0], [0, 0, -1], [2, 2, 1]])) == {
    "median": 3,
    "rms": pytest.approx((35 / 3) ** 0.5),
  }
  assert judge.distance(np.zeros((0, 3))) is None
  error = np.array([[[3.0, 4, 0], [0, 0, 2]], [[0, 1, 0], [9, 9, 9]]])
  valid = np.array([[True, True], [True, False]])
  assert judge.distances_at(error, valid, (1, 2, 7)) == [
    {"median": 3, "rms": pytest.approx(13**0.5)},
    {"median": 2, "rms": 2},
    None,
  ]
  assert judge.distances_at(error, valid & False, (1,)) == [None]


def made_windows(rng, lengths):
  """Windows of random frames; the hand moves by half its last change and a tenth of the action."""
  action = rng.uniform(-1, 1, (sum(lengths), 7)).astype(np.float32)
  robot_obs = rng.normal(size=(sum(lengths), 15))
  ends = np.cumsum(lengths)
  for first, end in zip(ends - lengths, ends, strict=True):
    for t in range(first + 2, end):
      change = robot_obs[t - 1, :3] - robot_obs[t - 2, :3]
      robot_obs[t, :3] = robot_obs[t - 1, :3] + 0.5 * change + 0.1 * action[t - 1, :3]
  blank = lambda *shape: np.zeros((sum(lengths), *shape))
  frames = Frames(
    pictures={"rgb_static": blank(1, 1, 3), "rgb_gripper": blank(1, 1, 3)},
    ids=blank(),
    robot_obs=robot_obs,
    scene_obs=rng.uniform(size=(sum(lengths), 24)),
    action=action,
    starts=ends - lengths,
    ends=ends,
  )
  return judged_windows.Windows(frames, max(lengths), "play")


def test_the_recursion_is_fitted_on_training_windows_and_judged_on_each_kind():
  rng = np.random.default_rng(1)
  fit, play, takes = (made_windows(rng, lengths) for lengths in ([12, 9, 12], [10, 6], [5, 8]))
  data = judged_windows.Data(play, takes, fit, {})
  assert list(data.judged) == ["play", "takes"]
  judged = judge.judge_recursion(data, 4, (1, 4, 6, 20))
  assert list(judged) == ["play", "takes"]
  assert [entry is None for entry in judged["play"]] == [False, False, False, True]
  assert [entry is None for entry in judged["takes"]] == [False, False, True, True]
  assert max(e["rms"] for entries in judged.values() for e in entries if e is not None) < 1e-5
  takes.frames.robot_obs[3, 0] += 0.2  # the last frame seen of the first take
  off = judge.judge_recursion(data, 4, (1, 4))
  assert off["play"] == judged["play"][:2]
  # One frame of it is left, predicted 0.2 too far from there, and half of the wrong last change on.
  assert off["takes"][0]["rms"] == pytest.approx(0.3 / 2**0.5, rel=1e-3) and off["takes"][1]["rms"] < 1e-5
  assert list(judge.judge_recursion(judged_windows.Data(play, None, fit, {}), 4, (1,))) == ["play"]
  assert judge.judge_recursion(data, 2, (1,)) is None
  assert (
    judge.judge_recursion(judged_windows.Data(play, None, made_windows(rng, [3, 2]), {}), 3, (1,)) is None
  )


def test_tables_of_the_hand_by_hand():
  entry = lambda rms, median: {"rms": rms, "median": median}
  model = {"hand": {"play": {"posterior": entry(0.001, 0.0005), "imagined": [entry(0.02, 0.01), None]}}}
  content = {"horizons": [1, 50], "models": [model], "recursion": {"play": [entry(0.003, 0.002), None]}}
  assert tables.hand_rows(content)[1:] == [
    ["play: root mean square", "1.0", "20.0", "missing"],
    ["  linear recursion of 10 coefficients an axis", "-", "3.0", "missing"],
    ["play: median", "0.5", "10.0", "missing"],
    ["  linear recursion of 10 coefficients an axis", "-", "2.0", "missing"],
  ]
  for recursion in (None, {}):  # a context too short for it
    rows = tables.hand_rows(content | {"recursion": recursion})
    assert [row[0] for row in rows[1:]] == ["play: root mean square", "play: median"]
  assert len(tables.hand_rows(content | {"models": [{}]})) == 1  # judged by an older version


# --- the stage ------------------------------------------------------------------------------------


def make_config(**changes):
  config = config_lib.preset_config("demo")
  config.tasks, config.env.image_size, config.env.workers = ("open_drawer",), SIZE, 1
  config.judge.update(context=3, horizons=(1, 4, 30), windows=5, probe_frames=40)
  w = config.world_model
  w.update(
    depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=10, inverse_dynamics_hidden=8, proprio="none"
  )
  config.update_from_flattened_dict(changes)
  return config


def write_split(folder, first_id, lengths, demos, seed):
  """Random frames; the lamp never burns."""
  rng = np.random.default_rng(seed)
  n = sum(lengths)
  scene = rng.uniform(0, 0.2, (n, 24))
  scene[:, 4], scene[:, 5] = 0, rng.random(n) < 0.5
  picture = lambda: rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)
  ends = np.cumsum(lengths)
  with calvin_writer.FrameWriter(folder, first_id, 1) as writer:
    writer.write(
      actions=rng.uniform(-1, 1, (n, 7)),
      rel_actions=np.append(rng.uniform(-1, 1, (n, 6)), np.ones((n, 1)), 1),
      robot_obs=rng.normal(size=(n, 15)),
      scene_obs=scene,
      rgb_static=picture(),
      rgb_gripper=picture(),
    )
    writer.commit(lengths, [("open_drawer", int(ends[i]) - lengths[i], int(ends[i])) for i in demos], "x")
  return first_id + n


def make_model(folder, config, digit, inputs=None):
  """A finished world_model artifact with random parameters, always the same ones."""
  c = config_lib.finalize(config)
  artifact = make_artifact("world_model", folder / "world_model", c.to_dict(), {"of": digit}, inputs)
  artifact_lib.write_artifact(artifact, done=False)
  model = make_world_model(c.world_model, c.env.image_size)
  params = random_like(lambda key: wm.init_params(model, key))
  if model.carries_robot:  # at the start the state stays as it is
    params["rssm"]["robot_dynamics"] = jax.tree.map(np.zeros_like, params["rssm"]["robot_dynamics"])
  save_params(artifact.path / "params", params)
  artifact_lib.write_artifact(artifact, done=True)
  return artifact_lib.load_artifact(artifact.path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """Data and a random model: validation has a demo of 9 frames and play of 12 and 25."""
  root = tmp_path_factory.mktemp("judge")
  first = write_split(root / "collect" / "dataset" / "training", 0, [40, 7], [1], 1)
  write_split(root / "collect" / "dataset" / "validation", first, [9, 12, 25], [0], 2)
  collect = Artifact("collect", root / "collect", "c" * 64, {})
  return {
    "collect": collect,
    "world_model": make_model(root / "own", make_config(), "1", {"collect": "c" * 64}),
  }


def run(config, inputs, workdir):
  judge_world_model.run(StageRun(config_lib.finalize(config), inputs, workdir, Logger(workdir, "judge")))
  return json.loads((workdir / "judge.json").read_text())


@pytest.fixture(scope="module")
def judged(inputs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("judged")
  return workdir, run(make_config(), inputs, workdir)


def test_facts_are_of_the_frames_that_are_imagined(judged, inputs):
  _, result = judged
  folder = inputs["collect"].path / "dataset" / "validation"
  drawer = [np.load(path)["scene_obs"][1] for path in sorted(folder.glob("episode_*.npz"))]
  episodes = np.split(np.array(drawer), [9, 9 + 12])
  imagined = np.concatenate([episode[3:] for episode in episodes])  # three are seen
  assert result["targets"]["drawer"]["mean"] == pytest.approx(imagined.mean(), rel=1e-5)
  assert result["data"]["heldout_frames"] == len(imagined)


def test_everything_is_measured_and_written(judged):
  workdir, result = judged
  model = result["models"][0]
  # 33 frames fit in no held-out play: the ends of all episodes are used, and 30 frames ahead is missing.
  assert result["data"]["windows"] == 3 and "demonstrations" in result["data"]["kind"]
  assert result["windows_at_horizons"] == [3, 3, 0]
  for camera in ("rgb_static", "rgb_gripper"):
    own, repeated = model["open_loop"][camera], model["repeated"][camera]
    assert own["psnr"][2] is None and own["ssim"][2] is None and repeated["psnr"][2] is None
    assert 0 < own["psnr"][0] < 20 and 0 < repeated["psnr"][1] < 20 and -1 < own["ssim"][1] < 1
    assert len(own["psnr_curve"]) == 25 - 3
  names = [target.name for target in judged_windows.CALVIN_TARGETS]
  assert list(model["probes"]) == names == list(result["targets"])
  assert model["probes"]["bulb"]["posterior"] == "constant"
  assert isinstance(model["probes"]["drawer"]["posterior"], float)
  assert model["probes"]["drawer"]["imagined"][2] is None
  assert list(model["inverse_dynamics"]) == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
  assert model["inverse_dynamics"]["gripper"]["mean_action"] == 0  # always open in these data
  assert model["same_data"]
  # Held-out takes: the demo of 9 frames, of which 3 are seen; the horizons are frames imagined.
  assert result["format"] == judge_world_model.FORMAT == 3 and result["data"]["takes"] == 1
  assert list(model["takes"]) == names and list(model["hand"]) == list(result["recursion"]) == [
    "play",
    "takes",
  ]
  for name in ("play", "takes"):
    for imagined in (model["hand"][name]["imagined"], result["recursion"][name]):
      assert all(entry["median"] > 0 and 0.1 < entry["rms"] < 30 for entry in imagined[:2])
      assert imagined[2] is None and len(imagined) == 3
    assert model["hand"][name]["posterior"]["rms"] > 0
  assert model["takes"]["drawer"]["imagined"][2] is None and model["takes"]["bulb"]["posterior"] == "constant"
  text = (workdir / "judge.md").read_text()
  assert "Error of the hand, mm" in text and "linear recursion" in text and "held-out takes" in text
  assert "missing" in text and "constant" in text and "not play" in text and "calvin_wam (own)" in text
  assert (workdir / "strip.png").stat().st_size > 1000 and (workdir / "strip.webp").stat().st_size > 1000
  metrics = read_metrics(workdir)[0]
  assert metrics["judge_world_model/psnr/rgb_static_4"] == model["open_loop"]["rgb_static"]["psnr"][1]
  hand = model["hand"]["takes"]["imagined"][1]["rms"]
  assert metrics["judge_world_model/hand/takes_imagined_4"] == hand
  assert not any("_30" in name or "bulb" in name for name in metrics)


def test_takes_are_the_beginnings_of_annotated_windows_spread_evenly(tmp_path):
  """Each take is cut after the frames that are imagined; those without a frame to imagine are left out."""
  lengths = [12, 4, 9, 30, 10, 11]
  write_split(tmp_path / "validation", 100, lengths, [3, 1, 0, 2, 4], 5)
  config, logger = make_config(), Logger(tmp_path, "judge")
  read = lambda count, least: judged_windows.read_takes(
    tmp_path / "validation", 11, count, least, SIZE, config, logger
  )
  takes = read(99, 5)
  first = np.cumsum([100, *lengths])
  assert takes.frames.ids[takes.frames.starts].tolist() == [first[i] for i in (3, 0, 2, 4)]
  assert (takes.frames.ends - takes.frames.starts).tolist() == [11, 11, 9, 10] and takes.length == 11
  assert takes.mask.sum(1).tolist() == [11, 11, 9, 10]
  few = read(2, 4)
  assert few.frames.ids[few.frames.starts].tolist() == [first[3], first[4]]
  assert read(99, 31) is None


def test_a_latent_that_holds_the_hand_gives_it_back(tmp_path):
  """Seen, the probes read it exactly; imagined by a model that has learned nothing, it stays where it was."""
  first = write_split(tmp_path / "collect" / "dataset" / "training", 0, [240, 7], [1], 1)
  write_split(tmp_path / "collect" / "dataset" / "validation", first, [9, 25, 40], [0], 2)
  changes = {"world_model.deter": 4, "world_model.stoch": 2, "world_model.classes": 2}
  changes |= {"world_model.proprio": "latent", "world_model.robot_obs_weight": 1.0}
  config = make_config(**changes, **{"judge.probe_frames": 200, "judge.horizons": (1, 4, 6)})
  collect = Artifact("collect", tmp_path / "collect", "c" * 64, {})
  models = {"collect": collect, "world_model": make_model(tmp_path, config, "1", {"collect": "c" * 64})}
  result = run(config, models, tmp_path / "judged")
  hand = result["models"][0]["hand"]
  take = calvin.read_windows(tmp_path / "collect" / "dataset" / "validation", [[first, first + 8]], SIZE)
  position = take.robot_obs[:, :3]
  kept = np.linalg.norm(position[[3, 6, 8]] - position[2], axis=-1)  # three frames are seen
  assert hand["takes"]["posterior"]["rms"] < 0.01 and hand["play"]["posterior"]["rms"] < 0.01
  assert [entry["rms"] for entry in hand["takes"]["imagined"]] == pytest.approx(kept.tolist(), abs=0.02)


def test_comparison_of_a_finished_stage_keeps_its_result(judged, inputs, tmp_path, capsys):
  other = make_model(tmp_path / "other", make_config(experiment="calvin_dreamerv2"), "2")
  workdir, own = judged
  before = (workdir / "judge.json").read_bytes()
  config = make_config(**{"judge.compare": (str(tmp_path / "other"),)})
  run(config, inputs, workdir)
  assert (workdir / "judge.json").read_bytes() == before
  result = json.loads((workdir / "comparison.json").read_text())
  assert [model["fingerprint"] for model in result["models"]] == [
    inputs["world_model"].fingerprint,
    other.fingerprint,
  ]
  ours, theirs = result["models"]
  assert ours == own["models"][0] and not theirs["same_data"]
  for part in (
    "open_loop",
    "repeated",
    "probes",
    "hand",
    "takes",
    "inverse_dynamics",
  ):  # the same parameters, data and seed
    assert ours[part] == theirs[part]
  text = (workdir / "comparison.md").read_text()
  assert "calvin_dreamerv2 (other)" in text and "calvin_dreamerv2 (other) was trained on other data" in text
  assert "static: PSNR, dB, 4 imagined" in capsys.readouterr().out
  judge_model, judge_world_model.judge_model = (
    judge_world_model.judge_model,
    None,
  )  # what is known is not measured again
  try:
    run(config, inputs, workdir)
  finally:
    judge_world_model.judge_model = judge_model


def test_comparison_table_by_hand():
  def model(name, value):
    at = {"psnr": [value, None], "ssim": [0.5, None]}
    return {
      "name": name,
      "open_loop": {"rgb_static": at | {"reconstruction_psnr": 30.0, "reconstruction_ssim": 0.9}},
      "repeated": {"rgb_static": at},
      "probes": {"led": {"posterior": "constant", "imagined": [value / 100, None]}},
      "hand": {"takes": {"imagined": [{"rms": value / 1000, "median": 0.001}, None]}},
      "inverse_dynamics": {"x": {"error": value / 1000, "linear": 0.1}},
    }

  comparison = {
    "horizons": [1, 50],
    "targets": {"led": {"score": "balanced accuracy"}},
    "models": [model("a", 20.0), model("b", 21.5), model("c", 19.0)],
  }
  rows = tables.comparison_rows(comparison)
  assert rows[0] == ["", "a", "b", "difference", "c", "difference"]
  table = {row[0]: row[1:] for row in rows[1:]}
  assert table["static: PSNR, dB, 1 imagined"] == ["20.00", "21.50", "+1.50", "19.00", "-1.00"]
  assert table["static: PSNR, dB, 50 imagined"] == ["missing", "missing", "-", "missing", "-"]
  assert table["led: balanced accuracy, posterior"] == ["constant", "constant", "-", "constant", "-"]
  millimetres = ["20.0", "21.5", "+1.5", "19.0", "-1.0"]
  assert table["hand, takes: mm, root mean square, 1 imagined"] == millimetres
  assert table["hand, takes: mm, root mean square, 50 imagined"][0] == "missing"
  assert table["action x: squared error"] == ["0.0200", "0.0215", "+0.0015", "0.0190", "-0.0010"]
  assert len({len(line) for line in tables.markdown_table(rows).splitlines()}) == 1


def test_equal_names_are_told_apart():
  names = [
    model["name"] for model in judge_world_model.name_models([{"name": "a"}, {"name": "b"}, {"name": "a"}])
  ]
  assert names == ["a 1", "b", "a 3"]


def with_config(artifact, **changes):
  config = artifact.config | {group: artifact.config[group] | part for group, part in changes.items()}
  return dataclasses.replace(artifact, config=config)


def test_models_of_other_pictures_are_refused(inputs):
  own = inputs["world_model"]
  judge_world_model.check_comparable([own, own])
  with pytest.raises(judge_world_model.JudgeError, match="32 x 32 pixels"):
    judge_world_model.check_comparable([own, with_config(own, env={"image_size": 32})])
  with pytest.raises(judge_world_model.JudgeError, match="of the cameras rgb_static cannot"):
    judge_world_model.check_comparable([own, with_config(own, world_model={"cameras": ("rgb_static",)})])


def test_no_episode_is_long_enough(inputs, tmp_path):
  with pytest.raises(DatasetError, match="no episode has the 27 frames"):
    run(make_config(**{"judge.context": 26}), inputs, tmp_path)


def test_a_comparison_is_asked_of_a_finished_stage(tmp_path):
  """`judge.compare` is no part of the fingerprint: it neither conflicts nor is passed over."""
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "DONE").write_text("")
  for stage in ("collect", "world_model"):
    (tmp_path / "given" / stage).mkdir(parents=True)
    artifact = make_artifact(stage, tmp_path / "given" / stage)
    artifact_lib.write_artifact(artifact, done=True)

  def planned(stage, compare):
    config = make_config(**{"workdir": str(tmp_path / "run"), "stage": stage, "judge.compare": compare})
    for given in ("collect", "world_model"):
      config.inputs[given] = str(tmp_path / "given")
    return plan.make_plan(config_lib.finalize(config))["judge_world_model"]

  first = planned("judge_world_model", ())
  assert first.action == "run"
  artifact_lib.write_artifact(first.artifact, done=True)
  assert planned("judge_world_model", ()).action == "skip"
  assert planned("judge_world_model", (str(tmp_path / "other"),)).action == "resume"
