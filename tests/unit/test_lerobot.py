"""LeRobot datasets: read in all their layouts, converted, trained on, written; faults are named."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from unittest import mock

import made_up_lerobot as made_up
import made_up_robot
import numpy as np
import pytest
from made_up_lerobot import DONE_FROM, LENGTHS, SIZE

from wam_jax import config as config_lib
from wam_jax.core.image import area_resize
from wam_jax.data import calvin, convert, inspect, lerobot, lerobot_writer
from wam_jax.data.files import DatasetError
from wam_jax.embodiment import CALVIN, FILE, ActionDimension, Camera, Embodiment, StateDimension
from wam_jax.envs.tasks import PREDICATES
from wam_jax.host import lerobot_info
from wam_jax.host.locks import locked
from wam_jax.host.logger import Logger
from wam_jax.running import data_check, plan
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import collect

TASK = "stack_the_cups"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
INFO = "meta/info.json"
FRONT = "observation.images.front"
FILM = f"videos/{FRONT}/chunk-000/file-001.mp4"
SIDE = 8


@pytest.fixture(name="made", scope="session")
def _made(tmp_path_factory):
  """The dataset in layout v3, not to be changed."""
  return made_up.write(tmp_path_factory.mktemp("lerobot") / "cups")


@pytest.fixture(name="root")
def _root(made, tmp_path):
  shutil.copytree(made, tmp_path / "cups")
  return tmp_path / "cups"


def select(*roots, tasks=(TASK,), **options):
  return lerobot.Selection(tuple(map(str, roots)), tasks, **options)


def read_all(data, side=0):
  """Everything of all frames, pictures as they are stored."""
  reader = lerobot.LeRobotReader(data, "all", data.spans(), side)
  n = len(reader.ids)
  out = {key: np.empty((n, *([width] if width else []))) for key, width in reader.widths.items()}
  out |= {name: np.empty((n, *shape), np.uint8) for name, shape in reader.picture_shapes.items()}
  reader.read(0, n, out)
  return reader, out


@pytest.mark.parametrize(
  ("layout", "options"),
  [("v3", {}), ("v3", {"bf": "2", "g": "250"}), ("v3_images", {}), ("v2.1", {})],
)
def test_every_layout_is_read(tmp_path, layout, options):
  root = made_up.write(tmp_path / "data", layout, **options)
  data = lerobot.open_data(select(root))
  _, out = read_all(data)
  rows = made_up.columns()
  low = data.robot.action_ranges[:, 0]
  np.testing.assert_allclose(data.robot.from_unit(out["rel_actions"]), rows["action"], atol=1e-4)
  np.testing.assert_allclose(low, rows["action"].min(0), atol=1e-4)
  np.testing.assert_array_equal(out["robot_obs"], rows["observation.state"])
  np.testing.assert_array_equal(out["success"], rows["next.success"])
  for i, (episode, frame) in enumerate(zip(rows["episode_index"], rows["frame_index"], strict=True)):
    for name in SIZE:
      wanted = made_up.picture(name, episode, frame)
      assert np.abs(out[name][i].astype(int) - wanted).mean() < 2, (layout, name, i)  # a frame is 4 brighter
  assert data.robot.action_names == tuple(made_up.NAMES)
  assert [d.name for d in data.robot.state] == ["a", "b"]
  assert data.robot.control_hz == made_up.FPS


def test_frames_are_found_in_any_order(made):
  data = lerobot.open_data(select(made))
  _, out = read_all(data)
  order = np.random.default_rng(0).permutation(sum(LENGTHS))
  reader = lerobot.LeRobotReader(data, "some", np.stack([order, order], 1), SIDE)
  front = np.empty((len(order), SIDE, SIDE, 3), np.uint8)
  rest = {key: np.empty((len(order), *array.shape[1:])) for key, array in out.items() if key != "front"}
  rest["wrist"] = np.empty_like(front)
  reader.read(0, len(order), rest | {"front": front})
  for i, frame in enumerate(order):  # squeezed by area averaging
    np.testing.assert_array_equal(front[i], area_resize(out["front"][frame], SIDE, SIDE))


def windows_of(splits):
  return {split.name: [window[0] for window in split.windows] for split in splits}


def lengths_of(splits):
  return {split.name: (split.spans[:, 1] - split.spans[:, 0] + 1).tolist() for split in splits}


@pytest.mark.parametrize(
  ("options", "episodes", "takes"),
  [
    # Demos are of the tasks asked for; the last one and the last of play are held out.
    ({}, {"training": [9, 7], "validation": [8, 6]}, {"training": [TASK], "validation": [TASK]}),
    ({"tasks": ()}, {"training": [9, 7, 8], "validation": [6]}, {"training": [], "validation": []}),
    (
      {"episodes": ("play:2", "heldout:0", "unused:3")},
      {"training": [7, 8], "validation": [9]},
      {"training": [], "validation": [TASK]},
    ),
    (
      {"episodes": ("failed:2", "heldout:3")},
      {"training": [9, 7], "validation": [6], "failed": [8]},
      {"training": [TASK], "validation": [], "failed": [TASK]},
    ),
    (  # a demo that never succeeds
      {"episodes": ("stack_the_cups:1",)},
      {"training": [9, 6], "validation": [8], "failed": [7]},
      {"training": [TASK], "validation": [TASK], "failed": [TASK]},
    ),
  ],
)
def test_episodes_are_divided(made, options, episodes, takes):
  selection = select(made, **options)
  splits = lerobot.divide(lerobot.open_data(selection), selection)
  assert lengths_of(splits) == episodes
  assert windows_of(splits) == takes


def test_splits_of_the_dataset_are_kept(root):
  made_up.change(root / INFO, lambda info: info.update(splits={"train": "1:4", "val": "0:1"}))
  splits = lerobot.divide(lerobot.open_data(select(root)), select(root))
  assert lengths_of(splits) == {"training": [7, 8, 6], "validation": [9]}


def test_runs_of_a_column_are_demos(root):
  def add(rows):
    for row in rows:
      row["skill"] = "reach" if row["frame_index"] < 3 else "lift!"

  for number in range(2):
    made_up.change(root / f"data/chunk-000/file-00{number}.parquet", add)
  selection = select(root, tasks=("lift",), task_column="skill")
  splits = lerobot.divide(lerobot.open_data(selection), selection)
  windows = [window for split in splits for window in split.windows]
  first = np.cumsum((0, *LENGTHS))
  assert ("lift", first[0] + 3, first[1]) in windows and ("lift", first[2] + 3, first[3]) in windows


@pytest.mark.parametrize("reward", [0.5, None])
def test_success_without_next_success(root, reward):
  def edit(rows):
    for row in rows:
      done = row.pop("next.success")
      if reward is not None:
        row["next.reward"] = reward * done

  for number in range(2):
    made_up.change(root / f"data/chunk-000/file-00{number}.parquet", edit)
  kind = {"dtype": "float32", "shape": [1], "names": None}
  rename = lambda info: (
    info["features"].update({"next.reward": kind} if reward else {}) or info["features"].pop("next.success")
  )
  made_up.change(root / INFO, rename)
  plain = select(root)
  data = lerobot.open_data(plain)
  problems = lerobot.task_problems(data, plain, lerobot.divide(data, plain))
  if reward is None:
    assert data.success is None and problems[0].key == "next.success"
    data = lerobot.open_data(select(root, success_frames=2))
    done_from = [LENGTHS[0] - 2, LENGTHS[2] - 2]
  else:
    assert problems  # a reward of 1 is never reached: both demos are failed takes
    data = lerobot.open_data(select(root, success_reward=0.5))
    done_from = [DONE_FROM, DONE_FROM]
  expected = np.zeros(sum(LENGTHS), bool)
  first = np.cumsum((0, *LENGTHS))
  for episode, begin in zip((0, 2), done_from, strict=True):
    expected[first[episode] + begin : first[episode + 1]] = True
  np.testing.assert_array_equal(data.success, expected)


def test_several_datasets_of_one_robot(made, root):
  rows = made_up.columns(seed=1)
  shutil.rmtree(root)
  made_up.write(root, rows=rows)
  data = lerobot.open_data(select(made, root, episodes=("unused:0-4",)))
  assert [episode.number for episode in data.episodes] == [5, 6, 7]
  both = np.concatenate([made_up.columns()["action"], rows["action"]])
  np.testing.assert_allclose(data.robot.action_ranges, np.stack([both.min(0), both.max(0)], 1), atol=1e-4)
  part = rows["episode_index"] > 0
  np.testing.assert_allclose(data.robot.from_unit(data.action), rows["action"][part], atol=1e-4)


def edit_rows(file, edit):
  return lambda root: made_up.change(root / file, edit)


def set_row(index, **values):
  return lambda rows: rows[index].update(values)


def shift_times(rows):
  rows[3]["timestamp"], rows[4]["timestamp"] = rows[4]["timestamp"], rows[3]["timestamp"]


def shorten(root):
  made_up.film(root / FILM, [made_up.picture("front", 2, i) for i in range(LENGTHS[2] + LENGTHS[3] - 2)])


def leave_a_hole(root):
  numbers = [i for i in range(LENGTHS[2] + LENGTHS[3]) if i != 4]
  made_up.film(root / FILM, [made_up.picture("front", 2, i) for i in numbers], numbers)


FAULTS = {
  # what is done to the data: the file that is named, its key, words of the rule
  "a camera that one episode lacks": (
    edit_rows(EPISODES, set_row(2, **{f"videos/{FRONT}/file_index": None})),
    (EPISODES, f"videos/{FRONT}/file_index", "episode 2 has no pictures"),
  ),
  "no video": (lambda root: (root / FILM).unlink(), (FILM, FRONT, "no such file")),
  "a video shorter than its table": (shorten, (FILM, FRONT, "shorter than its table")),
  "a damaged video": (
    lambda root: (root / FILM).write_bytes(b"no video" * 100),
    (FILM, FRONT, "cannot be read"),
  ),
  "a picture too few": (leave_a_hole, (FILM, FRONT, "half a frame of 0.4 s, where frame 4 of episode 2")),
  "times that run backwards": (
    edit_rows(DATA, shift_times),
    (DATA, "timestamp", "backwards: 0.4 s in frame 3, 0.3 s in frame 4"),
  ),
  "a missing frame": (
    edit_rows(DATA, lambda rows: [row.update(timestamp=row["timestamp"] + 0.1) for row in rows[5:9]]),
    (DATA, "timestamp", "0.4 s in frame 4, 0.6 s in frame 5"),
  ),
  "an action outside its range": (
    lambda root: (root / FILE).write_text(ROBOT.to_json()),
    (DATA, "action", r"must lie in \[-10, 10\].*number 0"),
  ),
  "statistics of other data": (
    edit_rows("meta/stats.json", lambda stats: stats["action"]["max"].__setitem__(1, 200.0)),
    ("meta/stats.json", "action.max", "200 of number 1"),
  ),
  "a mean of other data": (
    edit_rows("meta/stats.json", lambda stats: stats["observation.state"]["mean"].__setitem__(1, 9.0)),
    ("meta/stats.json", "observation.state.mean", "9 of number 1"),
  ),
  "a deviation of other data": (
    edit_rows("meta/stats.json", lambda stats: stats["action"].update(std=[39.6, 37.7, 30.0])),
    ("meta/stats.json", "action.std", "30 of number 2"),
  ),
  "more frames than there are": (
    edit_rows(INFO, lambda info: info.update(total_frames=31)),
    (INFO, "total_frames", "is 31, but the episodes have 30"),
  ),
  "fewer episodes than there are": (
    edit_rows(INFO, lambda info: info.update(total_episodes=3, splits={})),
    (INFO, "total_episodes", "is 3, but .*lists 4 episodes"),
  ),
  "no number for each action": (
    edit_rows("meta/stats.json", lambda stats: stats["action"]["min"].pop()),
    ("meta/stats.json", "action.min", "3 finite"),
  ),
  "a number that is none": (
    edit_rows(DATA, set_row(2, **{"observation.state": [np.nan, np.nan]})),
    (DATA, "observation.state", "frame 2 of episode 0.*finite"),
  ),
  "no info": (lambda root: (root / INFO).unlink(), (INFO, "", "no such file")),
  "info that is no JSON": (lambda root: (root / INFO).write_text("{"), (INFO, "", "JSON")),
  "another version": (
    edit_rows(INFO, lambda info: info.update(codebase_version="v1.6")),
    (INFO, "codebase_version", "v1.6"),
  ),
  "no frame rate": (edit_rows(INFO, lambda info: info.pop("fps")), (INFO, "fps", "above 0")),
  "a path that leads out": (
    edit_rows(INFO, lambda info: info.update(data_path="../{chunk_index}/{file_index}")),
    (INFO, "data_path", "out of the dataset"),
  ),
  "a path of other names": (
    edit_rows(INFO, lambda info: info.update(data_path="{user.home}")),
    (INFO, "data_path", "may name"),
  ),
  "a missing file of data": (lambda root: (root / DATA).unlink(), (DATA, "", "no such file")),
  "a damaged table": (lambda root: (root / DATA).write_bytes(b"PAR1" * 50), (DATA, "", "cannot be read")),
  "an episode out of range": (
    edit_rows(DATA, set_row(3, episode_index=17)),
    (DATA, "episode_index", "row 3 is of episode 17"),
  ),
  "an episode twice": (
    edit_rows(EPISODES, set_row(3, episode_index=1)),
    (EPISODES, "episode_index", "each once"),
  ),
  "a shorter table": (
    edit_rows(DATA, lambda rows: rows.pop()),
    (DATA, "episode_index", "6 rows of episode 1.*says 7"),
  ),
  "no such column": (
    edit_rows(DATA, lambda rows: [row.pop("action") for row in rows]),
    (DATA, "action", "absent"),
  ),
  "a word among times": (
    edit_rows(DATA, lambda rows: [row.update(timestamp="soon") for row in rows]),
    (DATA, "timestamp", "1 number"),
  ),
  "vectors of other lengths": (
    edit_rows(DATA, lambda rows: rows[0]["action"].append(rows[1]["action"].pop())),
    (DATA, "action", "3 numbers in each row"),
  ),
  "numbers of episodes as words": (
    edit_rows(EPISODES, lambda rows: [row.update(episode_index=str(row["episode_index"])) for row in rows]),
    (EPISODES, "episode_index", "has episode '0'"),
  ),
  "more episodes than can be": (
    edit_rows(INFO, lambda info: info.update(total_episodes=2**31 - 1)),
    (INFO, "total_episodes", "lists 4 episodes"),
  ),
  "a part of a frame": (edit_rows(EPISODES, set_row(1, length=7.5)), (EPISODES, "length", "'7.5'")),
  "an empty episode with frames": (
    edit_rows(EPISODES, set_row(1, length=0)),
    (DATA, "episode_index", "7 rows of episode 1.*says 0"),
  ),
  "a part of a video shorter than its table": (
    edit_rows(EPISODES, set_row(1, **{f"videos/{FRONT}/from_timestamp": 0.7})),
    (EPISODES, f"videos/{FRONT}/from_timestamp", "shorter than its table"),
  ),
  "an end before the last frame": (
    edit_rows(EPISODES, lambda rows: [row.update({f"videos/{FRONT}/to_timestamp": 1.2}) for row in rows]),
    (EPISODES, f"videos/{FRONT}/to_timestamp", "video of episode 1 has 0.3 s"),
  ),
  "times that begin before 0": (
    edit_rows(DATA, lambda rows: [row.update(timestamp=row["timestamp"] - 0.5) for row in rows[9:]]),
    (DATA, "timestamp", "episode 1 begin at -0.5 s"),
  ),
  "an action that is none": (
    edit_rows(DATA, set_row(2, action=[np.inf, 0.0, 0.0])),
    (DATA, "action", "frame 2 of episode 0.*finite"),
  ),
  "success that is no number": (
    edit_rows(DATA, lambda rows: [row.update({"next.success": np.nan}) for row in rows]),
    (DATA, "next.success", "row 0.*NaN"),
  ),
  "objects for vectors": (
    edit_rows(DATA, lambda rows: [row.update(action={"of": row["action"]}) for row in rows]),
    (DATA, "action", "3 numbers"),
  ),
  "one number for two tasks": (
    edit_rows("meta/tasks.parquet", set_row(1, task_index=0)),
    ("meta/tasks.parquet", "task_index", "each once"),
  ),
  "a word for an object": (
    edit_rows(INFO, lambda info: info["features"][FRONT].update(info="h264")),
    (INFO, f"features.{FRONT}.info", "an object"),
  ),
  "a state that fills the memory": (
    edit_rows(INFO, lambda info: info["features"]["observation.state"].update(shape=[2**31 - 1])),
    (INFO, "features.observation.state.shape", "fewer"),
  ),
  "a path of a billion digits": (
    edit_rows(INFO, lambda info: info.update(data_path="{chunk_index:0999999999d}")),
    (INFO, "data_path", "may name"),
  ),
  "a split that is not there": (
    edit_rows(INFO, lambda info: info.update(splits={"val": "4:9"})),
    (INFO, "splits.val", "within 0:4"),
  ),
  "a limit beyond all numbers": (
    edit_rows("meta/stats.json", lambda stats: stats["action"].update(min=[-(10**400), 0, 0])),
    ("meta/stats.json", "action.min", "finite"),
  ),
  "no list of episodes": (lambda root: (root / EPISODES).unlink(), (EPISODES, "", "lists the episodes")),
  "no tasks": (
    lambda root: (root / "meta/tasks.parquet").unlink(),
    ("meta/tasks.parquet", "", "no such file"),
  ),
  "pictures of another size": (
    edit_rows(INFO, lambda info: info["features"][FRONT].update(shape=[48, 64, 3])),
    (FILM.replace("1.mp4", "0.mp4"), FRONT, "24 x 32, where"),
  ),
  "a task without words": (
    edit_rows(DATA, set_row(0, task_index=5)),
    (DATA, "task_index", "task 5 of episode 0"),
  ),
}
ROBOT = Embodiment(
  cameras=(Camera("front", SIZE["front"]),),
  action=tuple(ActionDimension(name, range=(-10.0, 10.0)) for name in made_up.NAMES),
  state=(StateDimension("a"), StateDimension("b", "angle")),
  control_hz=float(made_up.FPS),
)


def test_a_robot_without_state_is_converted(root, tmp_path):
  made_up.change(root / INFO, lambda info: info["features"].pop("observation.state"))
  convert.convert(root, tmp_path / "out", image_size=SIDE, selection=select(root), log=lambda text: None)
  frames = calvin.read_frames(tmp_path / "out/training", SIDE)
  assert frames.robot_obs.shape == (sum(LENGTHS[:2]), 0) and frames.embodiment.state_size == 0


def test_cameras_in_another_script_are_kept_apart(root):
  def edit(info):
    features = info["features"]
    info["features"] = {
      f"observation.images.{key}": features.pop(f"observation.images.{name}")
      for key, name in (("左", "front"), ("右", "wrist"))
    } | features

  made_up.change(root / INFO, edit)
  assert lerobot_info.read_info(root).cameras == {
    "camera_0": "observation.images.左",
    "camera_1": "observation.images.右",
  }


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(root, tmp_path, fault):
  damage, (file, key, rule) = FAULTS[fault]
  damage(root)
  selection = select(root)
  with pytest.raises(DatasetError, match=rule) as error:
    convert.convert(root, tmp_path / "out", image_size=SIDE, selection=selection, log=lambda text: None)
  assert error.value.file == root / file and error.value.key == key
  assert error.value.fix


def test_statistics_of_episodes_are_compared(tmp_path):
  root = made_up.write(tmp_path / "cups", "v2.1")
  path = root / lerobot_info.EPISODE_STATS
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[1]["stats"]["action"]["std"][0] += 90
  path.write_text("\n".join(map(json.dumps, lines)))
  with pytest.raises(DatasetError, match="of number 0") as error:
    lerobot.open_data(select(root))
  assert (error.value.file, error.value.key) == (path, "action.std")
  for line in lines:
    del line["stats"]["action"]["std"]  # it may be absent
  path.write_text("\n".join(map(json.dumps, lines)))
  lerobot.open_data(select(root))


@pytest.mark.parametrize("ddof", [0, 1])
def test_deviations_are_those_of_the_data_or_of_a_sample(root, ddof):
  values = made_up.columns()["action"]
  made_up.change(
    root / "meta/stats.json", lambda stats: stats["action"].update(std=values.std(0, ddof=ddof).tolist())
  )
  assert len(lerobot.open_data(select(root)).action) == len(values)


def test_faulty_episodes_can_be_left_out(root):
  FAULTS["a camera that one episode lacks"][0](root)
  (root / "data/chunk-000/file-001.parquet").unlink()
  data = lerobot.open_data(select(root, episodes=("unused:2-3",)))
  assert len(data.action) == sum(LENGTHS[:2])


@pytest.mark.parametrize(
  ("options", "key", "rule"),
  [
    ({"episodes": ("play:2-4",)}, "total_episodes", "from 0 to 3"),
    ({"task_column": "skill"}, "skill", "no column"),
    ({"episodes": ("unused:0-3",)}, "total_episodes", "no episode"),
  ],
)
def test_selections_that_do_not_fit_are_named(made, options, key, rule):
  with pytest.raises(DatasetError, match=rule) as error:
    lerobot.open_data(select(made, **options))
  assert error.value.key == key


def test_a_task_that_does_not_occur_is_named_with_those_that_do(made, tmp_path, capsys):
  selection = select(made, tasks=("fold_the_towel",))
  data = lerobot.open_data(selection)
  (problem,) = lerobot.task_problems(data, selection, lerobot.divide(data, selection))
  assert problem.key == "task_index" and "fold_the_towel" in problem.rule
  assert "stack_the_cups (2 episodes of 'Stack the cups.')" in problem.rule
  out = tmp_path / "out"
  assert (
    convert.main([f"--source={made}", "--tasks=fold_the_towel", f"--image_size={SIDE}", f"--out={out}"]) == 1
  )
  assert "fold_the_towel" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_success_from_the_first_frame_on_is_doubted(root, capsys):
  for number in range(2):
    edit = lambda rows: [row.update({"next.success": True}) for row in rows]
    made_up.change(root / f"data/chunk-000/file-00{number}.parquet", edit)
  assert inspect.main([f"--source={root}", f"--tasks={TASK}", f"--image_size={SIDE}"]) == 0
  assert "key 'success': shows stack_the_cups in the first frame" in capsys.readouterr().out


def test_a_dataset_named_twice_is_refused(made, tmp_path):
  (tmp_path / "link").symlink_to(made)
  with pytest.raises(DatasetError, match="twice") as error:
    lerobot.open_data(select(made, tmp_path / "link"))
  assert error.value.file == tmp_path / "link"


def test_datasets_of_different_robots_are_refused(made, root):
  made_up.change(root / INFO, lambda info: info["features"].pop("observation.images.wrist"))
  with pytest.raises(DatasetError, match="cameras front, wrist, not front") as error:
    lerobot.open_data(select(made, root))
  assert error.value.file == root / INFO


def test_a_description_takes_the_place_of_statistics(root, tmp_path):
  low, high = (-60.0, 100.0)
  robot = dataclasses.replace(
    ROBOT, action=tuple(dataclasses.replace(d, range=(low, high)) for d in ROBOT.action)
  )
  (tmp_path / "robot.json").write_text(robot.to_json())
  (root / "meta/stats.json").unlink()
  for path in root.glob("videos/observation.images.wrist/*/*"):
    path.unlink()  # of a camera that it leaves out
  selection = select(root, embodiment=str(tmp_path / "robot.json"))
  data = lerobot.open_data(selection)
  assert data.robot == robot and set(lerobot.plan_splits(data, selection, SIDE)) == {"training", "validation"}
  np.testing.assert_allclose(
    data.action, (made_up.columns()["action"] - low) / (high - low) * 2 - 1, atol=1e-5
  )
  wrong = dataclasses.replace(robot, control_hz=50.0)
  (tmp_path / "robot.json").write_text(wrong.to_json())
  with pytest.raises(DatasetError, match="control_hz") as error:
    lerobot.open_data(select(root, embodiment=str(tmp_path / "robot.json")))
  assert error.value.file == tmp_path / "robot.json"


def test_converted_data_are_the_same(made, tmp_path):
  selection, log = select(made), lambda text: None
  convert.convert(made, tmp_path / "out", image_size=SIDE, selection=selection, log=log)
  frames = calvin.read_frames(tmp_path / "out/training", SIDE)
  data = lerobot.open_data(selection)
  _, out = read_all(data, SIDE)
  kept = np.arange(sum(LENGTHS[:2]))
  np.testing.assert_array_equal(frames.pictures["wrist"], out["wrist"][kept])
  np.testing.assert_allclose(frames.action, out["rel_actions"][kept], atol=1e-6)
  assert frames.embodiment == data.robot
  demos = calvin.read_demos(tmp_path / "out/training", (TASK,), image_size=SIDE)
  np.testing.assert_array_equal(demos.frames.success, np.arange(LENGTHS[0]) >= DONE_FROM)


def config_of(root, workdir, **changes):
  c = config_lib.preset_config("demo")
  c.data.update(source="lerobot", path=(str(root),), failed_takes_per_task=0)
  c.update(tasks=("Stack the cups.",), workdir=str(workdir))
  c.ppo.failed_starts = 0.0
  c.env.image_size = 16
  c.world_model.update(batch_size=2, sequence_length=4)
  c.update_from_flattened_dict(changes)
  return c


def test_a_run_collects_them(made, tmp_path):
  config = config_lib.finalize(config_of(made, tmp_path))
  assert config.tasks == (TASK,) and config.world_model.cameras == ("front", "wrist")
  stages = plan.make_plan(config)
  robot = stages["collect"].artifact.embodiment
  assert robot == lerobot.open_data(select(made)).robot
  assert not data_check.check_data(config, stages)[0]
  wrong = config_lib.finalize(config_of(made, tmp_path, **{"data.failed_takes_per_task": 1}))
  problems = data_check.check_data(wrong, plan.make_plan(wrong))[0]
  assert len(problems) == 1 and f"0 of {TASK}" in problems[0] and "failed_takes_per_task=0" in problems[0]
  collect.run(StageRun(config, {}, tmp_path / "collect", Logger(tmp_path / "collect", "collect")))
  demos = calvin.read_demos(tmp_path / "collect/dataset/training", config.tasks, image_size=16)
  assert demos.frames.embodiment == robot
  assert json.loads((tmp_path / "collect/summary.json").read_text())["splits"]["validation"]["frames"] == 14


@pytest.mark.parametrize(
  ("changes", "path"),
  [
    ({"data.path": ()}, "data.path"),
    ({"data.path": ("nowhere",)}, "data.path"),
    ({"data.episodes": ("play",)}, "data.episodes"),
    ({"world_model.cameras": ("top",)}, "world_model.cameras"),
    ({"world_model.batch_size": 50}, "world_model.batch_size"),
  ],
)
def test_config_errors(made, tmp_path, changes, path):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.finalize(config_of(made, tmp_path, **changes))
  assert path in [problem.path for problem in error.value.problems]


def test_config_names_a_robot_that_cannot_be_read(root, tmp_path):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.finalize(config_of(root, tmp_path, **{"data.embodiment": str(tmp_path / "none.json")}))
  assert [problem.path for problem in error.value.problems] == ["data.embodiment"]
  (root / FILE).write_text("{}")
  with pytest.raises(config_lib.ConfigError, match=str(root / FILE)):
    config_lib.finalize(config_of(root, tmp_path))


@pytest.mark.parametrize("tasks", [TASK, "fold_the_towel"])
def test_inspection(made, capsys, tasks):
  code = inspect.main([f"--source={made}", f"--tasks={tasks}", f"--image_size={SIDE}", "--frames=0"])
  text = capsys.readouterr().out
  assert code == (tasks != TASK)
  assert "front 24 x 32 x 3" in text and "play (2 episodes of 'play')" in text
  assert ("no episode is of fold_the_towel" in text) == (tasks != TASK)
  assert ("certify, report; not evaluate" in text) == (tasks == TASK)


@pytest.mark.parametrize("form", ["calvin", "converted"])
def test_the_way_back(tmp_path, form):
  """Data of ours, written as LeRobot's and read again, are what they were."""
  source = tmp_path / "source"
  made_up_robot.write_dataset(source)
  log = lambda text: None
  if form == "converted":
    convert.convert(source, tmp_path / "small", image_size=16, log=log)
    source = tmp_path / "small"
  lerobot_writer.write_lerobot(source, tmp_path / "lerobot")
  selection = select(tmp_path / "lerobot", tasks=(made_up_robot.TASK,))
  data = lerobot.open_data(selection)
  assert data.robot == made_up_robot.ARM
  splits = {split.name: split for split in lerobot.divide(data, selection)}
  for name, split in splits.items():
    frames = calvin.read_frames(source / name, 16)
    np.testing.assert_array_equal(split.spans[:, 1] - split.spans[:, 0] + 1, frames.ends - frames.starts)
    reader = lerobot.LeRobotReader(data, name, split.spans, 16)
    low, high = int(reader.ids[0]), int(reader.ids[-1]) + 1
    np.testing.assert_allclose(data.action[low:high], frames.action, atol=1e-5)
    np.testing.assert_allclose(data.state[low:high], frames.robot_obs, atol=1e-5)
    np.testing.assert_array_equal(data.success[low:high], frames.success)
    assert [task for task, *_ in split.windows] == [made_up_robot.TASK] * 2
  again = json.loads((tmp_path / "lerobot" / INFO).read_text())
  assert again["splits"] == {"train": "0:3", "validation": "3:6"}


@pytest.mark.parametrize(
  ("change", "key"),
  [
    ({"top": np.zeros((5, 20, 16, 3), np.uint8)}, "top"),
    ({"top": [0] * 5}, "top"),
    ({"rel_actions": [["a"]] * 5}, "rel_actions"),
  ],
)
def test_a_recorder_is_told_at_once(tmp_path, change, key):
  robot = Embodiment((Camera("top", (16, 20)),), (ActionDimension("turn"),), (), 10.0)
  frames = {
    "top": np.zeros((5, 16, 20, 3), np.uint8),
    "rel_actions": np.zeros((5, 1)),
    "robot_obs": np.zeros((5, 0)),
  }
  with made_up_robot.FrameWriter(tmp_path / "training", embodiment=robot) as writer:
    with pytest.raises(ValueError, match=key):
      writer.write(**frames | change)
    writer.write(**frames)
    writer.commit((5,), [], "table")
  assert calvin.read_frames(tmp_path / "training", 16).robot_obs.shape == (5, 0)


def test_pictures_of_odd_sizes_are_written_as_they_are(tmp_path):
  robot = dataclasses.replace(made_up_robot.ARM, cameras=(Camera("top", (17, 21)), Camera("side", (18, 20))))
  made_up_robot.write_dataset(tmp_path / "source", robot)
  info = lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "lerobot")
  kinds = {key: info["features"][f"observation.images.{key}"]["dtype"] for key in ("top", "side")}
  assert kinds == {"top": "image", "side": "video"}
  _, out = read_all(lerobot.open_data(select(tmp_path / "lerobot")))
  raw = calvin.open_split(tmp_path / "source/training", 0)
  kept = {key: np.empty((len(raw.ids), *shape), np.uint8) for key, shape in raw.picture_shapes.items()}
  vectors = {key: np.empty((len(raw.ids), *([width] if width else []))) for key, width in raw.widths.items()}
  raw.read(0, len(raw.ids), kept | vectors)
  np.testing.assert_array_equal(out["top"][: len(raw.ids)], kept["top"])


@pytest.mark.parametrize("task", ["open_drawer", "lift_block"])
def test_calvins_data_go_there_and_back(tmp_path, task):
  rng, n = np.random.default_rng(0), 12
  for split in ("training", "validation"):
    with made_up_robot.FrameWriter(tmp_path / "source" / split) as writer:
      writer.write(
        rel_actions=np.append(rng.uniform(-1, 1, (n, 6)), rng.choice([-1.0, 1.0], (n, 1)), 1),
        robot_obs=rng.normal(size=(n, 15)),
        scene_obs=np.zeros((n, 24)) + np.where(np.arange(n) > 6, 0.2, 0.0)[:, None],
        rgb_static=rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
        rgb_gripper=rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
      )
      writer.commit((n,), [(task, 2, 10)], "table")
  lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "lerobot")
  selection = select(tmp_path / "lerobot", tasks=(task,))
  data = lerobot.open_data(selection)
  if task not in PREDICATES:  # nothing says when it is done
    assert data.success is None
    return
  demos = calvin.read_demos(tmp_path / "source/training", ("open_drawer",), image_size=16)
  assert data.robot == CALVIN and demos.frames.success.any()
  np.testing.assert_array_equal(data.success[2:10], demos.frames.success)
  assert lerobot.divide(data, selection)[0].windows == (("open_drawer", 2, 10),)


def test_nothing_is_overwritten(made, tmp_path):
  made_up_robot.write_dataset(tmp_path / "source")
  (tmp_path / "out").mkdir()
  with pytest.raises(DatasetError, match="there already"):
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")
  notes = tmp_path / "other.partial/notes.txt"
  notes.parent.mkdir()
  notes.touch()
  with pytest.raises(DatasetError, match="no unfinished conversion") as error:
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "other")
  assert error.value.file == notes.parent and list(notes.parent.iterdir()) == [notes]


def test_what_an_interruption_left_is_written_again(tmp_path, monkeypatch):
  made_up_robot.write_dataset(tmp_path / "source")
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(lerobot_writer._Writer, "_task_table", mock.Mock(side_effect=KeyboardInterrupt))
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with (
    locked(tmp_path / "out.partial" / lerobot_writer._BEGUN, wait=False),
    pytest.raises(DatasetError, match="another process"),
  ):
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")
  lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", FILE, "meta", "videos"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
  made_up_robot.write_dataset(tmp_path / "source")
  full = OSError(errno.ENOSPC, "No space left on device")
  with monkeypatch.context() as patched, pytest.raises(DatasetError, match="no room left") as error:
    patched.setattr(lerobot_writer._Video, "close", mock.Mock(side_effect=full))
    patched.setattr(lerobot_writer.parquet().ParquetWriter, "close", mock.Mock(side_effect=full))
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")
  assert error.value.file == tmp_path / "out.partial" and not (tmp_path / "out").exists()
  lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
  ("names", "shape", "size"),
  [(None, [24, 32, 3], (24, 32)), (None, [3, 24, 32], (24, 32)), (None, [1, 24, 3], (1, 24))],
)
def test_channels_may_stand_first(names, shape, size):
  assert lerobot_info.picture_size({"shape": shape, "names": names}) == size


def test_another_spelling_of_the_path_is_the_same_data(made, tmp_path, monkeypatch):
  monkeypatch.chdir(made.parent)
  first, second = (
    convert.convert(path, tmp_path / "out", image_size=SIDE, selection=select(path), log=lambda _: None)
    for path in (made.name, made)
  )
  assert first == second


def test_more_frames_than_ids_can_count(made, tmp_path, monkeypatch):
  monkeypatch.setattr(lerobot, "MAX_ID", 9)
  with pytest.raises(DatasetError, match=r"holds \d+ frames, more than 10,.*data.episodes"):
    convert.convert(made, tmp_path / "out", image_size=SIDE, selection=select(made), log=lambda _: None)


def test_videos_that_were_read_are_closed(tmp_path, monkeypatch):
  """A file for each episode and camera: only that of each camera which was read last stays open."""
  root = made_up.write(tmp_path / "cups", "v2.1")
  opened, closed = [], []

  class Watched(lerobot.Video):
    def __init__(self, *args):
      opened.append(self)
      super().__init__(*args)

    def close(self):
      closed.append(self)
      super().close()

  monkeypatch.setattr(lerobot, "Video", Watched)
  data = lerobot.open_data(select(root))
  read_all(data, SIDE)
  cameras = len(data.robot.cameras)
  assert len(opened) == cameras * len(LENGTHS) and len(opened) - len(closed) == cameras
  lerobot._check_videos(data)
  assert len(opened) - len(closed) == cameras


def test_a_frame_of_two_windows_is_that_of_the_later_one(monkeypatch):
  """Its success too, as predicates tell it."""
  done_from = {"open_drawer": 10, "turn_on_led": 25}
  monkeypatch.setattr(
    lerobot_writer.task_rules, "success", lambda task, _, scene: scene[:, 0] >= done_from[task]
  )
  windows = [("open_drawer", 0, 20), ("turn_on_led", 8, 30)]
  split = lerobot_writer._Split("training", None, windows)
  names, success = lerobot_writer._labels(split, np.arange(30), {"scene_obs": np.arange(30.0)[:, None]})
  assert names == ["open_drawer"] * 8 + ["turn_on_led"] * 22
  np.testing.assert_array_equal(success, np.arange(30) >= 25)


def test_a_key_of_one_split_only_is_refused(tmp_path):
  made_up_robot.write_frames(tmp_path / "source/training", CALVIN)
  made_up_robot.write_frames(tmp_path / "source/validation", CALVIN)
  for path in (tmp_path / "source/training").glob("episode_*.npz"):
    with np.load(path) as file:
      np.savez(path, **file, scene_obs=np.zeros(24))
  with pytest.raises(DatasetError, match="scene_obs.*one split only, of training and validation"):
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "lerobot")


def test_shared_frames_are_told(tmp_path):
  made_up_robot.write_frames(tmp_path / "source/training", CALVIN)
  made_up_robot.write_frames(tmp_path / "source/validation", CALVIN)
  ids = calvin.open_split(tmp_path / "source/validation", 0).ids
  first, last = int(ids[0]), int(ids[-1])
  middle = (first + last) // 2
  windows = [("open_drawer", first, middle + 2), ("turn_on_led", middle, last)]
  found = lambda folder: windows if folder.name == "validation" else []
  lines: list[str] = []
  with mock.patch.object(calvin, "read_raw_annotations", found):
    lerobot_writer.write_lerobot(tmp_path / "source", tmp_path / "lerobot", log=lines.append)
  assert len(lines) == 1 and "1 of 2 annotated windows of validation share frames" in lines[0]
