"""Conversion to TFDS: nothing is lost, interruptions and damage are survived or named, others can read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import made_up_robot
import numpy as np
import pytest

from wam_jax.data import calvin, calvin_writer, convert, converted, examples, files, frames_cache, inspect
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import frame_path
from wam_jax.embodiment import CALVIN
from wam_jax.host.locks import locked
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import convert as convert_stage

LENGTHS = (9, 5, 12)
WINDOWS = [("open_drawer", 2, 8), ("turn_on_led", 9, 14), ("open_drawer", 15, 26)]
TASKS = ("open_drawer", "turn_on_led")
FRAMES = ("pictures", "action", "robot_obs", "scene_obs", "starts", "ends", "ids")


@pytest.fixture(autouse=True)
def _small_examples(monkeypatch):
  monkeypatch.setattr(examples, "EXAMPLE_FRAMES", 4)
  monkeypatch.setattr(convert, "SHARD_EXAMPLES", 2)


@pytest.fixture(name="source")
def _source(tmp_path):
  """26 frames in 3 episodes per split, with pictures of 12 pixels."""
  first, rng = 0, np.random.default_rng(0)
  for split in ("training", "validation"):
    with calvin_writer.FrameWriter(tmp_path / "source" / split, first) as writer:
      writer.write(
        actions=rng.normal(size=(26, 7)),
        rel_actions=np.append(rng.uniform(-1, 1, (26, 6)), rng.choice([-1.0, 1.0], (26, 1)), 1),
        robot_obs=rng.normal(size=(26, 15)),
        scene_obs=rng.normal(size=(26, 24)),
        rgb_static=rng.integers(0, 256, (26, 12, 12, 3), dtype=np.uint8),
        rgb_gripper=rng.integers(0, 256, (26, 12, 12, 3), dtype=np.uint8),
      )
      first = writer.commit(LENGTHS, WINDOWS, "table")
  return tmp_path / "source"


def _convert(source, out, **options):
  return convert.convert(
    source, out, image_size=options.pop("image_size", 8), log=lambda text: None, **options
  )


def _same(a, b):
  for name in FRAMES:
    jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))


def _truncate(folder, frame):
  path = frame_path(folder, frame)
  path.write_bytes(path.read_bytes()[:500])


def test_every_reader_gives_the_same(source, tmp_path):
  manifest = _convert(source, tmp_path / "out")
  assert {name: split["frames"] for name, split in manifest["splits"].items()} == {
    "training": 26,
    "validation": 26,
  }
  assert len(manifest["splits"]["training"]["shards"]) == 4  # 3 + 2 + 3 examples, two in a shard
  for split in ("training", "validation"):
    raw, ours = source / split, tmp_path / "out" / split
    a, b = calvin.read_split(raw, 8), calvin.read_split(ours, 8)
    _same(a.frames, b.frames)
    assert a.annotations == b.annotations
    _same(calvin.read_demos(raw, TASKS, 1, 8).frames, calvin.read_demos(ours, TASKS, 1, 8).frames)
    np.testing.assert_array_equal(
      calvin.read_vectors(raw, "robot_obs"), calvin.read_vectors(ours, "robot_obs")
    )
    _same(
      calvin.read_windows(raw, [[ids := a.frames.ids[3], ids + 4]], 8),
      calvin.read_windows(ours, [[ids, ids + 4]], 8),
    )
  cache = frames_cache.open_cache(tmp_path / "cache", tmp_path / "out/training", 8)
  _same(cache.load(), calvin.read_frames(source / "training", 8))
  for task, states in calvin.read_start_states(source, TASKS).items():
    np.testing.assert_array_equal(states[0], calvin.read_start_states(tmp_path / "out", TASKS)[task][0])
  counts = calvin.check_dataset(tmp_path / "out", TASKS, 8)
  assert counts == calvin.check_dataset(source, TASKS, 8)
  smaller = calvin.read_frames(tmp_path / "out/training", 4)
  assert (
    np.abs(
      smaller.pictures["rgb_static"].astype(int)
      - calvin.read_frames(source / "training", 4).pictures["rgb_static"]
    ).max()
    <= 1
  )


def test_tfds_and_grain_read_it_without_tensorflow_and_without_us(source, tmp_path):
  _convert(source, tmp_path / "out")
  program = f"""
import json, sys, grain, tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(tmp_path / "out" / converted.TFDS_FOLDER)!r})
source = builder.as_data_source("train")
shuffled = grain.MapDataset.source(source).shuffle(seed=1)
firsts = [int(shuffled[i]["frame_id"][0]) for i in range(len(shuffled))]
example = source[1]
assert "tensorflow" not in sys.modules and not any(name.startswith("wam_jax") for name in sys.modules)
import wam_jax.data.tfds_builder
assert len(tfds.data_source("calvin_play", data_dir={str(tmp_path / "out")!r}, split="validation")) == 8
info = builder.info
print(json.dumps([len(source), firsts, example["frame_id"].tolist(),
            [task.decode() for task in example["window_task"]],
            example["window"].tolist(),
            "mees2022calvin" in info.citation, example["rgb_static"].shape]))
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert not done.returncode, done.stderr
  count, firsts, ids, tasks, window, cited, shape = json.loads(done.stdout)
  assert count == 8 and sorted(firsts) == [0, 4, 8, 9, 13, 14, 18, 22] != firsts
  assert ids == [4, 5, 6, 7] and tasks == ["open_drawer"] and window == [[2, 8]]
  assert cited and shape == [4, 8, 8, 3]


def test_the_builder_makes_the_same_examples(source, tmp_path):
  from wam_jax.data import tfds_builder

  _convert(source, tmp_path / "out")
  builder = tfds_builder.CalvinPlay(
    source=str(source), image_size=8, data_dir=tmp_path / "tfds", file_format="array_record"
  )
  builder.download_and_prepare()
  made = builder.as_data_source("train")
  reader = calvin.open_reader(
    tmp_path / "out/training", calvin.read_episode_ids(tmp_path / "out/training"), 8
  )
  assert len(made) == 8
  for example in made:
    ids = example["frame_id"]
    out = {key: np.empty((len(ids), 8, 8, 3), np.uint8) for key in ("rgb_static", "rgb_gripper")}
    out |= {
      key: np.empty((len(ids), n)) for key, n in (("rel_actions", 7), ("robot_obs", 15), ("scene_obs", 24))
    }
    reader.read(int(ids[0]), int(ids[-1]) + 1, out)
    for key, array in out.items():
      np.testing.assert_array_equal(example[key], array)


def test_an_interrupted_conversion_goes_on(source, tmp_path, monkeypatch):
  whole = _convert(source, tmp_path / "whole")
  real, calls = convert._write_shard, []

  def interrupted(*args):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(*args)

  monkeypatch.setattr(convert, "_write_shard", interrupted)
  with pytest.raises(KeyboardInterrupt):
    _convert(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(DatasetError, match="no such folder"):
    calvin.check_root(tmp_path / "out")
  manifest = _convert(source, tmp_path / "out")
  assert len(calls) == 3 + 6  # of 8 shards, two were there
  assert manifest["splits"] == whole["splits"]
  assert not (tmp_path / "out.partial").exists()
  assert _convert(source, tmp_path / "out") == manifest and len(calls) == 9  # there already


@pytest.mark.parametrize("at", [0, 1, 5])
def test_killed_within_a_shard(source, tmp_path, at):
  program = f"""
import os, signal
from wam_jax.data import convert, examples
examples.EXAMPLE_FRAMES, convert.SHARD_EXAMPLES = 4, 2
real, calls = convert._checksum, []
def checksum(*arguments):
  calls.append(1)
  if len(calls) == 2 * {at} + 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*arguments)
convert._checksum = checksum
convert.convert({str(source)!r}, {str(tmp_path / "out")!r}, image_size=8)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True)
  assert done.returncode == -9 and not (tmp_path / "out").exists()
  _convert(source, tmp_path / "out")
  _same(calvin.read_frames(source / "training", 8), calvin.read_frames(tmp_path / "out/training", 8))


def test_broken_frames_are_an_error_or_left_out(source, tmp_path):
  folder = source / "training"
  _truncate(folder, 0)
  _truncate(folder, 11)
  frame_path(folder, 20).unlink()
  with pytest.raises(DatasetError, match=r"episode_0000020.npz: missing frame"):
    _convert(source, tmp_path / "out")
  manifest = _convert(source, tmp_path / "out", skip_broken=True)
  training = manifest["splits"]["training"]
  assert training["skipped"]["frames"] == 3 and training["skipped"]["windows"] == 2
  assert [i for i, _ in training["skipped"]["listed"]] == [0, 11, 20]
  spans = calvin.read_episode_ids(tmp_path / "out/training").tolist()
  assert spans == [[1, 8], [9, 10], [12, 13], [14, 19], [21, 25]]
  split = calvin.read_split(tmp_path / "out/training", 8)
  assert [(a.task, a.start, a.end) for a in split.annotations] == [("open_drawer", 1, 7)]
  raw = calvin.read_windows(folder, np.array(spans), 8)
  _same(split.frames, raw)
  assert "left out: 3 frames, 2 windows; 0, 11, 20" in convert.format_summary(manifest)


def test_a_broken_frame_in_the_middle_is_named(source, tmp_path):
  _truncate(source / "training", 17)
  with pytest.raises(DatasetError, match=r"episode_0000017.npz.*truncated"):
    _convert(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_no_window_left(source, tmp_path):
  for frame in (5, 10, 20):
    frame_path(source / "training", frame).unlink()
  with pytest.raises(DatasetError, match="no annotated window is without a broken frame"):
    _convert(source, tmp_path / "out", skip_broken=True)


def test_no_frame_left(source, tmp_path):
  """All pictures must have the shape of the first, and here that is the broken one."""
  path = frame_path(source / "training", 0)
  with np.load(path) as file:
    content = {**file, "rgb_static": np.zeros((20, 20, 3), np.uint8), "robot_obs": np.full(15, np.nan)}
  np.savez(path, **content)
  with pytest.raises(DatasetError, match="none of its frames can be read; of frame 0: must be finite"):
    _convert(source, tmp_path / "out", skip_broken=True)


def test_what_is_in_the_way(source, tmp_path):
  out = tmp_path / "out"
  _convert(source, out)
  with pytest.raises(DatasetError, match="other data or with other settings"):
    _convert(source, out, image_size=4)
  with pytest.raises(DatasetError, match="is converted already"):
    _convert(out, tmp_path / "again")
  (tmp_path / "full").mkdir()
  with pytest.raises(DatasetError, match="is there already, and is no converted dataset"):
    _convert(source, tmp_path / "full")
  with pytest.raises(DatasetError, match="pictures of 8 pixels a side, fewer than the 12"):
    calvin.read_frames(out / "training", 12)


@pytest.mark.parametrize(
  "files",
  [
    {"notes.txt": "mine"},
    {"settings.json": "{}"},
    {".lock": "", "tfds/a": "b"},
    {"settings.json": "no JSON"},
    None,
  ],
)
def test_a_folder_of_somebody_else_is_left_alone(source, tmp_path, files):
  partial = tmp_path / "out.partial"
  for name, text in (files or {}).items():
    (partial / name).parent.mkdir(parents=True, exist_ok=True)
    (partial / name).write_text(text)
  if files is None:
    partial.write_text("mine")
  with pytest.raises(DatasetError, match="no unfinished conversion") as error:
    _convert(source, tmp_path / "out")
  assert error.value.file == partial and not (tmp_path / "out").exists()
  there = {str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()}
  assert there == set(files or {})


@pytest.mark.parametrize("names", [[], [".lock"], [".lock", "settings.json.tmp"]])
def test_stopped_before_the_settings_were_written(source, tmp_path, names):
  (tmp_path / "out.partial").mkdir()
  for name in names:
    (tmp_path / "out.partial" / name).touch()
  _convert(source, tmp_path / "out")
  assert not {".lock", "settings.json.tmp"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_another_conversion_is_not_mixed_in(source, tmp_path, monkeypatch):
  def stopped(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(convert, "_finish", stopped)
  with pytest.raises(KeyboardInterrupt):
    _convert(source, tmp_path / "out")
  with pytest.raises(DatasetError, match="begun with another image_size"):
    _convert(source, tmp_path / "out", image_size=4)
  with (
    locked(tmp_path / "out.partial" / ".lock", wait=False),
    pytest.raises(DatasetError, match="another process"),
  ):
    _convert(source, tmp_path / "out")


def test_no_room(source, tmp_path, monkeypatch):
  usage = convert.shutil.disk_usage(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(convert.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(DatasetError, match="no room: 0.00 GB are needed"):
      _convert(source, tmp_path / "out")

  real = convert._serializer(CALVIN, converted._CALVIN_VECTORS)

  def full(example):
    if example["frame_id"][0] == 14:
      raise RuntimeError("[/x] Failed to write: No space left on device")
    return real(example)

  with monkeypatch.context() as patch:
    patch.setattr(convert, "_serializer", lambda *_: full)
    with pytest.raises(DatasetError, match="no room left on the disk.*goes on where it was"):
      _convert(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  _convert(source, tmp_path / "out")
  _same(calvin.read_frames(source / "training", 8), calvin.read_frames(tmp_path / "out/training", 8))


def test_what_cannot_be_read_back_is_written_again(source, tmp_path, monkeypatch):
  real = convert._serializer(CALVIN, converted._CALVIN_VECTORS)

  def wrong(example):
    return real({**example, "rgb_static": example["rgb_static"] ^ 1})

  with monkeypatch.context() as patch:
    patch.setattr(convert, "_serializer", lambda *_: wrong)
    with pytest.raises(DatasetError, match="does not hold what was written"):
      _convert(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(DatasetError, match="does not hold what was written"):  # the other wrong shards
    _convert(source, tmp_path / "out")


def _flip(path):
  data = bytearray(path.read_bytes())
  for i in range(len(data) // 2, len(data) // 2 + 64):
    data[i] ^= 0xFF
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_flip, "damaged at example|must have 2 examples"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "must be there and have"),
    (lambda path: path.unlink(), "must be there and have"),
  ],
)
def test_damage_of_a_file_is_named(source, tmp_path, damage, message):
  _convert(source, tmp_path / "out")
  file = sorted((tmp_path / "out" / converted.TFDS_FOLDER).glob("*train*"))[1]
  damage(file)
  with pytest.raises(DatasetError, match=message) as caught:
    calvin.read_frames(tmp_path / "out/training", 8)
  assert caught.value.file.name == file.name and "convert the dataset again" in caught.value.fix
  report = inspect.inspect_dataset(tmp_path / "out", tasks=TASKS, image_size=8)
  assert not report["trainable"] and any(file.name in p["file"] for p in report["problems"])


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1, "splits": {"training": {}}}', "[1]"])
def test_a_damaged_manifest(source, tmp_path, text):
  _convert(source, tmp_path / "out")
  (tmp_path / "out" / converted.MANIFEST).write_text(text)
  with pytest.raises(DatasetError, match=r"convert.json: damaged"):
    calvin.read_frames(tmp_path / "out/training", 8)


def test_manifest_of_a_later_version(source, tmp_path):
  _convert(source, tmp_path / "out")
  path = tmp_path / "out" / converted.MANIFEST
  path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
  with pytest.raises(DatasetError, match="is of version 2, this program reads 1"):
    calvin.read_frames(tmp_path / "out/training", 8)


def test_inspect_tells_the_form(source, tmp_path):
  _convert(source, tmp_path / "out")
  report = inspect.inspect_dataset(tmp_path / "out", tasks=TASKS, image_size=8, frames=0)
  before = inspect.inspect_dataset(source, tasks=TASKS, image_size=8, frames=0)
  assert report["trainable"], report["problems"]
  assert "TFDS" in report["form"] and "npz" in before["form"]
  for name in ("training", "validation"):
    for key in ("frames", "episodes", "windows", "ranges", "read", "missing"):
      assert report["splits"][name][key] == before["splits"][name][key]
  assert report["splits"]["training"]["pictures"]["rgb_static"] == [8, 8, 3]


def test_command_line(source, tmp_path, capsys):
  arguments = [f"--source={source}", f"--out={tmp_path / 'out'}", "--image_size=8"]
  assert convert.main(arguments) == 0
  assert "training 26 frames, 3 episodes, 3 windows" in capsys.readouterr().out
  assert convert.main([f"--source={tmp_path / 'nowhere'}", f"--out={tmp_path / 'b'}"]) == 1
  assert "no such folder" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    convert.main([*arguments, "--image_size=0"])


def test_stage(source, tmp_path):
  from wam_jax import config as config_lib

  config = config_lib.preset_config("demo")
  config.env.image_size = 8
  made = tmp_path / "collect"
  made.mkdir()
  os.symlink(source, made / "dataset")
  work = tmp_path / "convert"
  work.mkdir()
  convert_stage.run(StageRun(config, {"collect": made}, work, Logger(work, "convert")))
  _same(calvin.read_frames(source / "training", 8), calvin.read_frames(work / "dataset/training", 8))


@pytest.mark.parametrize(
  ("keys", "value"),
  [
    (("image_size",), "8"),
    (("image_size",), True),
    (("splits", "training", "shards"), []),
    (("splits", "training", "shards", 0, "file"), "../../../elsewhere"),
    (("splits", "training", "shards", 0, "examples"), "2"),
    (("splits", "training", "shards", 0, "examples"), -2),
    (("splits", "training", "shards", 0, "bytes"), 10**30),
  ],
)
def test_manifest_with_values_of_the_wrong_kind(source, tmp_path, keys, value):
  manifest = _convert(source, tmp_path / "out")
  part = manifest
  for key in keys[:-1]:
    part = part[key]
  part[keys[-1]] = value
  (tmp_path / "out" / converted.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(DatasetError, match=r"convert.json: damaged"):
    calvin.read_frames(tmp_path / "out/training", 8)


def test_manifest_nested_too_deeply(source, tmp_path):
  _convert(source, tmp_path / "out")
  (tmp_path / "out" / converted.MANIFEST).write_text("[" * 100_000)
  with pytest.raises(DatasetError, match=r"convert.json: damaged"):
    calvin.read_frames(tmp_path / "out/training", 8)


def test_examples_that_are_not_where_the_table_says(source, tmp_path):
  _convert(source, tmp_path / "out")
  path = tmp_path / "out/training" / converted.EXAMPLES
  table = np.load(path)
  np.save(path, table[::-1])
  with pytest.raises(DatasetError, match="without overlap"):
    calvin.read_frames(tmp_path / "out/training", 8)
  folder = tmp_path / "out" / converted.TFDS_FOLDER
  first, second = (folder / f"calvin_play-train.array_record-{i:05d}-of-00004" for i in (2, 3))
  assert first.is_file() and second.is_file()
  np.save(path, table)
  content = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)
  with pytest.raises(DatasetError, match="array_record"):
    calvin.read_frames(tmp_path / "out/training", 8)


@pytest.mark.parametrize("table", [np.zeros((0, 2), np.int64), np.array([["0", "3"]]), np.arange(4)])
def test_a_table_of_something_else(source, tmp_path, table):
  _convert(source, tmp_path / "out")
  np.save(tmp_path / "out/training" / converted.EXAMPLES, table)
  with pytest.raises(DatasetError, match=r"examples.npy: must be int64 \[examples, 2\]"):
    calvin.read_frames(tmp_path / "out/training", 8)
  report = inspect.inspect_dataset(tmp_path / "out", tasks=TASKS, image_size=8)
  assert any("examples.npy" in problem["file"] for problem in report["problems"])


def test_annotations_with_other_keys(source, tmp_path):
  """What is no list with a value for each window stands in nobody's way."""
  path = source / "training" / calvin.ANNOTATION_FILE
  content = files.load_pickled(path)
  content["language"] |= {"note": None, "by": {1: 2, 3: 4, 5: 6}, "emb": np.float64(2)}
  content["info"]["indx"] = np.array(content["info"]["indx"])
  calvin_writer.save_pickled(path, content)
  _convert(source, tmp_path / "out")
  assert len(calvin.read_demos(tmp_path / "out/training", TASKS, image_size=8).annotations) == 3


def test_labels_that_only_some_frames_have_are_refused(tmp_path):
  """Play comes first: success would be left out of all frames, those of demos too."""
  made_up_robot.write_dataset(tmp_path / "source")
  folder = tmp_path / "source" / "training"
  for i in range(made_up_robot.LENGTHS[0]):
    frame = files.read_npz(frame_path(folder, i))
    np.savez(frame_path(folder, i), **{key: value for key, value in frame.items() if key != "success"})
  with pytest.raises(DatasetError, match="has success, but frame 0 has not.*in all frames") as error:
    _convert(tmp_path / "source", tmp_path / "out")
  assert error.value.file == frame_path(folder, made_up_robot.LENGTHS[0])


def test_folders_that_may_not_be_read_are_one_sentence(source, monkeypatch):
  monkeypatch.setattr(
    os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
  )
  with pytest.raises(DatasetError, match=r"training: cannot be read \(Permission denied\)"):
    calvin.read_split(source / "training", 8)
  monkeypatch.setattr(os.path, "isdir", lambda _: False)
  with pytest.raises(DatasetError, match="no such folder, or one that you may not read"):
    calvin.check_root(source)
