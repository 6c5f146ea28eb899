"""Frames on disk: what is written is read back, CALVIN's raw format is read, bad input is named."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pathlib
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from unittest import mock

import numpy as np
import pytest

from wam_jax.core import image
from wam_jax.data import calvin, calvin_writer, files, frames_cache
from wam_jax.data import frames as frames_lib
from wam_jax.data import inspect as inspect_lib
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import frame_path
from wam_jax.embodiment import CALVIN

LENGTHS = (7, 5, 6)
ANNOTATIONS = [("open_drawer", 7, 12), ("turn_on_led", 12, 18), ("open_drawer", 13, 17)]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 183\n"


def _frames(n: int, size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  action = rng.uniform(-1, 1, (n, 7))
  action[:, 6] = rng.choice([-1.0, 1.0], n)
  return {
    "actions": rng.normal(size=(n, 7)),
    "rel_actions": action,
    "robot_obs": rng.normal(size=(n, 15)),
    "scene_obs": rng.normal(size=(n, 24)),
    "rgb_static": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
    "rgb_gripper": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
  }


def _write(folder: pathlib.Path, frames: dict[str, np.ndarray], first: int = 0, extra=None) -> int:
  with calvin_writer.FrameWriter(folder, first) as writer:
    for rows in (slice(0, 10), slice(10, None)):
      writer.write(**{key: array[rows] for key, array in frames.items()})
    return writer.commit(LENGTHS, ANNOTATIONS, "table", extra)


@pytest.fixture(name="root")
def _root(tmp_path):
  """A small dataset of our own: 18 frames in 3 episodes per split."""
  following = _write(tmp_path / "data/training", _frames(18))
  _write(tmp_path / "data/validation", _frames(18, seed=1), following)
  return tmp_path / "data"


def _edit(folder: pathlib.Path, frame: int, **changes) -> None:
  """Rewrites keys of one frame with plain NumPy; None deletes a key."""
  path = frame_path(folder, frame)
  content = {**np.load(path), **changes}
  np.savez(path, **{key: value for key, value in content.items() if value is not None})


def test_reads_what_it_wrote(root):
  written = _frames(18)
  split = calvin.read_split(root / "training", image_size=8)
  frames = split.frames
  np.testing.assert_array_equal(frames.pictures["rgb_static"], written["rgb_static"])
  np.testing.assert_array_equal(frames.pictures["rgb_gripper"], written["rgb_gripper"])
  np.testing.assert_array_equal(frames.action, written["rel_actions"].astype(np.float32))
  np.testing.assert_array_equal(frames.robot_obs, written["robot_obs"].astype(np.float32))
  np.testing.assert_array_equal(frames.scene_obs, written["scene_obs"].astype(np.float32))
  np.testing.assert_array_equal(frames.starts, [0, 7, 12])
  np.testing.assert_array_equal(frames.ends, [7, 12, 18])
  np.testing.assert_array_equal(np.flatnonzero(frames.is_first), [0, 7, 12])
  assert split.windows("open_drawer") == [(7, 12), (13, 17)]
  assert frames.num_frames == 18


def test_ids_of_validation_continue(root):
  assert calvin.read_episode_ids(root / "training").tolist() == [[0, 6], [7, 11], [12, 17]]
  assert calvin.read_episode_ids(root / "validation").tolist() == [[18, 24], [25, 29], [30, 35]]
  split = calvin.read_split(root / "validation", image_size=8)
  assert split.windows("turn_on_led") == [(12, 18)]
  np.testing.assert_array_equal(split.frames.ids, np.arange(18, 36))


def test_numpy_reads_our_files(root):
  """The archives are made by hand here: NumPy's own reader must see the same values."""
  written = _frames(18)
  with np.load(frame_path(root / "training", 11)) as file:
    assert set(file.files) == set(written)
    for key, array in written.items():
      np.testing.assert_array_equal(file[key], array[11])
      assert file[key].dtype == array.dtype
  assert np.load(root / "training/ep_lens.npy").tolist() == list(LENGTHS)
  content = np.load(root / "training/lang_annotations/auto_lang_ann.npy", allow_pickle=True).item()
  assert content["info"]["indx"][0] == (7, 12) and len(content["language"]["ann"]) == 3
  assert np.load(root / "validation/scene_info.npy", allow_pickle=True).item() == {"table": (18, 35)}


def test_same_frames_give_the_same_bytes(root, tmp_path):
  _write(tmp_path / "again", _frames(18))
  for path in sorted((root / "training").rglob("*.*")):
    assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root / "training")).read_bytes()


def test_read_demos_takes_only_the_windows(root):
  whole = calvin.read_split(root / "training", image_size=8).frames
  demos = calvin.read_demos(root / "training", ("turn_on_led", "open_drawer"), image_size=8)
  assert [a.task for a in demos.annotations] == ["turn_on_led", "open_drawer", "open_drawer"]
  assert [(a.start, a.end) for a in demos.annotations] == [(0, 6), (6, 11), (11, 15)]
  rows = np.r_[12:18, 7:12, 13:17]
  np.testing.assert_array_equal(demos.frames.pictures["rgb_static"], whole.pictures["rgb_static"][rows])
  np.testing.assert_array_equal(demos.frames.ids, rows)
  one = calvin.read_demos(root / "training", ("open_drawer",), limit=1, image_size=8)
  assert one.frames.num_frames == 5


# Frames of several splits as one.


def _demos(root, tasks=("turn_on_led", "open_drawer"), limit=None):
  return [(root / "validation", calvin.demo_spans(root / "validation", tasks, limit)[1])]


def test_spans_of_demos(root):
  names, spans = calvin.demo_spans(root / "training", ("turn_on_led", "open_drawer"))
  assert names == ["turn_on_led", "open_drawer", "open_drawer"]
  assert spans.tolist() == [[12, 17], [7, 11], [13, 16]] and spans.dtype == np.int64
  names, spans = calvin.demo_spans(root / "validation", ("open_drawer", "turn_on_led"), limit=1)
  assert names == ["open_drawer", "turn_on_led"] and spans.tolist() == [[25, 29], [30, 35]]
  with pytest.raises(DatasetError, match="no window of close_drawer"):
    calvin.demo_spans(root / "training", ("open_drawer", "close_drawer"))
  content = {"language": {"task": ["open_drawer"]}, "info": {"indx": [(5, 9)]}}
  np.save(root / "training" / calvin.ANNOTATION_FILE, content, allow_pickle=True)
  with pytest.raises(DatasetError, match="one episode"):
    calvin.demo_spans(root / "training", ("open_drawer",))


@pytest.mark.parametrize("block", [256, 5])
def test_takes_of_another_split_are_read_behind_a_splits_own_frames(root, monkeypatch, block):
  monkeypatch.setattr(frames_lib, "BLOCK", block)
  joined = calvin.read_frames(root / "training", 8, extra=_demos(root))
  own = calvin.read_frames(root / "training", 8)
  takes = calvin.read_demos(root / "validation", ("turn_on_led", "open_drawer"), image_size=8).frames
  for name in ("action", "robot_obs", "scene_obs", "ids"):
    both = np.concatenate([getattr(own, name), getattr(takes, name)])
    np.testing.assert_array_equal(getattr(joined, name), both)
    assert getattr(joined, name).dtype == getattr(own, name).dtype
  for camera, pictures in joined.pictures.items():
    np.testing.assert_array_equal(pictures, np.concatenate([own.pictures[camera], takes.pictures[camera]]))
  np.testing.assert_array_equal(joined.starts, [*own.starts, *takes.starts + 18])
  np.testing.assert_array_equal(joined.ends, [*own.ends, *takes.ends + 18])
  assert calvin.count_frames(root / "training", _demos(root)) == joined.num_frames == 18 + 15
  assert calvin.count_frames(root / "training") == 18


def test_any_frames_of_joined_splits(root):
  one = [(root / "validation", np.array([[20, 22]]))]  # frames 33 to 35, after three takes
  reader = calvin.open_split(root / "training", 8, [*_demos(root), *one])
  frames = calvin.read_frames(root / "training", 8, extra=[*_demos(root), *one])
  assert len(reader.ids) == 36 and reader.ids[-3:].tolist() == [20, 21, 22]
  np.testing.assert_array_equal(reader.starts, frames.starts)
  np.testing.assert_array_equal(reader.ends, frames.ends)
  for begin, stop in ((0, 18), (18, 33), (16, 20), (5, 36), (17, 18), (18, 19), (35, 36)):
    out = {key: np.empty((stop - begin, width), np.float32) for key, width in reader.widths.items()}
    out |= {camera: np.empty((stop - begin, 8, 8, 3), np.uint8) for camera in CALVIN.camera_names}
    reader.read(begin, stop, out)
    np.testing.assert_array_equal(out["rgb_static"], frames.pictures["rgb_static"][begin:stop])
    np.testing.assert_array_equal(out["rel_actions"], frames.action[begin:stop])
    vectors = reader.read_vectors(begin, stop, ("scene_obs", "robot_obs"))
    assert list(vectors) == ["scene_obs", "robot_obs"]
    np.testing.assert_array_equal(vectors["robot_obs"].astype(np.float32), frames.robot_obs[begin:stop])
  assert not isinstance(calvin.open_split(root / "training", 8), frames_lib.JoinedReader)


@pytest.mark.parametrize("frame", [("training", 3), ("validation", 26)])
def test_the_signature_changes_with_either_part(root, frame):
  signature = lambda extra: calvin.open_split(root / "training", 8, extra).signature()
  extra = _demos(root)
  before = signature(extra)
  assert signature(extra) == before
  others = [(), _demos(root, limit=1), _demos(root, ("open_drawer", "turn_on_led")), [*extra, *extra]]
  assert len({before, *map(signature, others)}) == 5
  os.utime(frame_path(root / frame[0], frame[1]), (1, 1))
  assert signature(extra) != before


@pytest.mark.parametrize(("split", "frame"), [("training", 3), ("validation", 26)])
def test_bad_frames_of_either_part_are_named(root, split, frame):
  _edit(root / split, frame, robot_obs=np.full(15, np.nan))
  with pytest.raises(DatasetError, match=f"{split}/episode_00000{frame:02d}.npz.*finite"):
    calvin.read_frames(root / "training", 8, extra=_demos(root))


def test_progress_counts_every_frame(root):
  counted = []

  class Bar:
    def __enter__(self):
      return self

    def __exit__(self, *_):
      return None

    def update(self, n=1):
      counted.append(n)

  calvin.read_frames(root / "training", 8, progress=lambda total, text: counted.append(-total) or Bar())
  assert sum(counted) == 0 and counted[0] == -18


# CALVIN's own format.


@pytest.fixture(name="raw")
def _raw(tmp_path):
  """One episode as CALVIN stores it: large compressed pictures of two sizes, depth, noise in the ids."""
  rng = np.random.default_rng(5)
  folder = tmp_path / "training"
  (folder / "lang_annotations").mkdir(parents=True)
  frames = _frames(4, seed=6)
  frames["rgb_static"] = rng.integers(0, 256, (4, 200, 200, 3), dtype=np.uint8)
  frames["rgb_gripper"] = rng.integers(0, 256, (4, 84, 84, 3), dtype=np.uint8)
  frames["rel_actions"][2, 1] = 1.00001  # rounding
  for i in range(4):
    np.savez_compressed(
      frame_path(folder, 100 + i),
      **{k: v[i] for k, v in frames.items()},
      depth_static=rng.normal(size=(200, 200)).astype(np.float32),
    )
  np.save(folder / calvin.IDS_FILE, np.array([[100, 103]]))
  content = {
    "language": {"ann": ["x"], "task": ["close_drawer"], "emb": np.ones((1, 1, 4))},
    "info": {"episodes": [], "indx": [(101, 104)]},
  }
  np.save(folder / calvin.ANNOTATION_FILE, content, allow_pickle=True)
  return folder, frames


def test_reads_calvins_own_format(raw):
  folder, written = raw
  split = calvin.read_split(folder, image_size=64, tasks=("close_drawer",))
  assert (
    split.frames.pictures["rgb_static"].shape == split.frames.pictures["rgb_gripper"].shape == (4, 64, 64, 3)
  )
  np.testing.assert_array_equal(
    split.frames.pictures["rgb_gripper"], image.area_resize(written["rgb_gripper"], 64, 64)
  )
  np.testing.assert_array_equal(
    split.frames.pictures["rgb_static"], image.area_resize(written["rgb_static"], 64, 64)
  )
  assert split.windows("close_drawer") == [(1, 4)]
  assert split.frames.action[2, 1] == 1.0


def test_start_states_of_annotated_windows(raw):
  folder, written = raw
  shutil.copytree(folder, folder.with_name("validation"))
  states = calvin.read_start_states(folder.parent, ("close_drawer",))
  expected = np.concatenate([written["robot_obs"], written["scene_obs"]], 1)[1:2]
  np.testing.assert_array_equal(states["close_drawer"], expected)


def test_start_states_from_their_file(tmp_path):
  rng = np.random.default_rng(8)
  states = {
    "task": np.array(["turn_on_led", "open_drawer", "turn_on_led"]),
    "robot_obs": rng.normal(size=(3, 15)),
    "scene_obs": rng.normal(size=(3, 24)),
  }
  _write(tmp_path / "training", _frames(18))
  _write(tmp_path / "validation", _frames(18), 18, {calvin.START_STATES_FILE: states})
  read = calvin.read_start_states(tmp_path, ("turn_on_led",), limit=5)
  expected = np.concatenate([states["robot_obs"], states["scene_obs"]], 1)[[0, 2]]
  np.testing.assert_array_equal(read["turn_on_led"], expected)
  joined = {"task": states["task"], "start": np.concatenate([states["robot_obs"], states["scene_obs"]], 1)}
  np.savez(tmp_path / "training" / calvin.START_STATES_FILE, **joined)
  again = calvin.read_start_states(tmp_path, ("turn_on_led",), limit=5, split="training")
  np.testing.assert_array_equal(again["turn_on_led"], expected)
  with pytest.raises(DatasetError, match="no start state of close_drawer"):
    calvin.read_start_states(tmp_path, ("close_drawer",))
  states["robot_obs"][1, 3] = np.nan
  np.savez(tmp_path / "validation" / calvin.START_STATES_FILE, **states)
  with pytest.raises(DatasetError, match="open_drawer must be finite"):
    calvin.read_start_states(tmp_path, ("open_drawer",))


# Bad input.


def _missing(folder):
  frame_path(folder, 8).unlink()


def _truncated(folder):
  path = frame_path(folder, 8)
  path.write_bytes(path.read_bytes()[:-100])


def _overwritten(folder):
  path = frame_path(folder, 8)
  data = bytearray(path.read_bytes())
  data[data.index(_frames(18)["rgb_static"][8].tobytes()) + 50] ^= 255
  path.write_bytes(data)


def _action(column, value):
  def edit(folder):
    action = _frames(18)["rel_actions"][8]
    action[column] = value
    _edit(folder, 8, rel_actions=action)

  return edit


def _set(**changes):
  return lambda folder: _edit(folder, 8, **changes)


BAD = {
  "missing frame": (_missing, "", "missing frame.*episode from 7 to 11"),
  "truncated": (_truncated, "", "truncated"),
  "overwritten": (_overwritten, "", "checksum"),
  "empty file": (lambda f: frame_path(f, 8).write_bytes(b""), "", "truncated"),
  "pointer of git lfs": (lambda f: frame_path(f, 8).write_bytes(LFS), "", "Git LFS pointer"),
  "absent key": (_set(rgb_gripper=None), "rgb_gripper", "absent"),
  "shape": (_set(robot_obs=np.ones(14)), "robot_obs", "15 floats"),
  "dtype": (_set(scene_obs=np.ones(24, np.int64)), "scene_obs", "24 floats"),
  "picture dtype": (_set(rgb_static=np.ones((8, 8, 3), np.float32)), "rgb_static", "uint8"),
  "picture shape": (_set(rgb_static=np.ones((9, 8, 3), np.uint8)), "rgb_static", "shape"),
  "action": (_action(2, 1.01), "rel_actions", r"\[-1, 1\].*number 2 is 1.01"),
  "gripper": (_action(6, 0.9), "rel_actions", "gripper.*exactly"),
  "gripper zero": (_action(6, 0.0), "rel_actions", "gripper.*exactly"),
  "action nan": (_action(0, np.nan), "rel_actions", "finite"),
  "nan": (_set(robot_obs=np.r_[np.ones(14), np.nan]), "robot_obs", "finite.*number 14"),
  "infinite": (_set(scene_obs=np.r_[np.inf, np.ones(23)]), "scene_obs", "finite.*number 0"),
  "objects": (_set(robot_obs=np.array([{}], object)), "robot_obs", "never unpickled"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_are_named(root, name):
  damage, key, rule = BAD[name]
  damage(root / "training")
  with pytest.raises(DatasetError, match="(?s)" + rule) as caught:
    calvin.read_split(root / "training", image_size=8)
  assert "episode_0000008.npz" in str(caught.value) and "What to do:" in str(caught.value)
  assert key in str(caught.value)


def test_a_flipped_byte_never_passes_as_other_values(root):
  path = frame_path(root / "training", 8)
  whole, keys = path.read_bytes(), tuple(_frames(1))
  expected = files.read_npz(path, keys)
  refused = 0
  for position in range(0, len(whole), 5):
    data = bytearray(whole)
    data[position] ^= 255
    path.write_bytes(data)
    try:
      read = files.read_npz(path, keys)
    except DatasetError:
      refused += 1
    else:
      for key in keys:
        np.testing.assert_array_equal(read[key], expected[key])
  assert refused > 0.5 * len(range(0, len(whole), 5))


def test_pictures_are_never_enlarged(root):
  with pytest.raises(DatasetError, match="rgb_static.*at least 16 pixels"):
    calvin.read_frames(root / "training", image_size=16)


def test_not_a_calvin_folder(tmp_path, root):
  with pytest.raises(DatasetError, match="no such folder"):
    calvin.read_frames(tmp_path / "nowhere")
  with pytest.raises(DatasetError, match="not a split"):
    calvin.read_frames(root)
  with pytest.raises(DatasetError, match="no training/"):
    calvin.check_root(root / "validation")


@pytest.mark.parametrize(
  "ids",
  [
    np.array([[0, 6], [6, 17]]),
    np.array([[5, 4]]),
    np.array([0, 17]),
    np.array([[0.0, 17.0]]),
    np.zeros((0, 2), int),
    np.array([[0, 6, 7]]),
  ],
)
def test_bad_ids(root, ids):
  np.save(root / "training" / calvin.IDS_FILE, ids)
  with pytest.raises(DatasetError, match=calvin.IDS_FILE):
    calvin.read_frames(root / "training", 8)


def test_truncated_ids(root):
  path = root / "training" / calvin.IDS_FILE
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(DatasetError, match="truncated"):
    calvin.read_episode_ids(root / "training")


@pytest.mark.parametrize(
  ("tasks", "indx", "rule"),
  [
    ([], [], "there are no demos"),
    (["open_drawer"], [(0, 5), (7, 9)], "one task for each"),
    (["open_drawer"], [(5, 9)], "one episode"),
    (["open_drawer"], [(16, 19)], "one episode"),
    (["open_drawer"], [(9, 9)], "one episode"),
    (["turn_on_led"], [(0, 5)], "no window of open_drawer; it has turn_on_led"),
  ],
)
def test_bad_annotations(root, tasks, indx, rule):
  content = {"language": {"task": tasks}, "info": {"indx": indx}}
  np.save(root / "training" / calvin.ANNOTATION_FILE, content, allow_pickle=True)
  with pytest.raises(DatasetError, match=rule):
    calvin.read_split(root / "training", 8, tasks=("open_drawer",))


def test_annotations_without_their_keys(root):
  path = root / "training" / calvin.ANNOTATION_FILE
  np.save(path, {"language": {}}, allow_pickle=True)
  with pytest.raises(DatasetError, match="language.task"):
    calvin.read_split(root / "training", 8)
  path.unlink()
  assert calvin.read_split(root / "training", 8).annotations == ()
  with pytest.raises(DatasetError, match="no window of open_drawer"):
    calvin.read_demos(root / "training", ("open_drawer",), image_size=8)


@pytest.mark.parametrize("place", ["lang_paraphrase-MiniLM-L3-v2", "lang_all-mpnet-base-v2", "."])
def test_annotations_in_the_places_that_calvins_loaders_know(root, place):
  folder = root / "training"
  windows = calvin.read_raw_annotations(folder)
  (folder / place).mkdir(exist_ok=True)
  (folder / calvin.ANNOTATION_FILE).rename(folder / place / "auto_lang_ann.npy")
  assert calvin.read_raw_annotations(folder) == windows and len(windows) == 3


@pytest.mark.parametrize(
  "name",
  [lambda i: f"frame_{i:06d}", lambda i: f"{i}", lambda i: f"take2_{i:03d}", lambda i: f"episode_{i:09d}"],
)
def test_frames_of_another_name(root, name):
  """Prefix and number of digits are looked up; macOS's hidden twins of the files are passed over."""
  folder = root / "training"
  before = calvin.read_frames(folder, 8)
  for i in before.ids.tolist():
    frame_path(folder, i).rename(folder / f"{name(i)}.npz")
    (folder / f"._{name(i)}.npz").touch()
  np.testing.assert_array_equal(calvin.read_frames(folder, 8).action, before.action)
  assert inspect_lib.inspect_dataset(root, tasks=TWO, image_size=8)["trainable"]
  (folder / f"{name(5)}.npz").unlink()
  with pytest.raises(DatasetError, match=f"{name(5)}.npz: missing frame"):
    calvin.read_frames(folder, 8)


@pytest.mark.parametrize("name", [files.IDS_FILE, calvin.ANNOTATION_FILE])
def test_pointers_in_place_of_a_splits_own_files(root, name):
  (root / "training" / name).write_bytes(LFS)
  with pytest.raises(DatasetError, match="Git LFS pointer") as error:
    calvin.read_split(root / "training", 8)
  assert error.value.file == root / "training" / name and "git lfs pull" in error.value.fix


def test_frames_that_are_no_npz(root):
  for path in (root / "training").glob("*.npz"):
    path.rename(path.with_suffix(".pkl"))
  with pytest.raises(DatasetError, match=r"episode_0000000\.pkl.*as an npz"):
    calvin.read_frames(root / "training", 8)


@pytest.mark.parametrize("ids", [[[0, 10_000_000]], [[0, 2**63 - 1]], [[-(2**63), 3]]])
def test_ids_that_no_file_can_have(root, ids):
  np.save(root / "training" / calvin.IDS_FILE, np.array(ids, np.int64))
  with pytest.raises(DatasetError, match="seven digits"):
    calvin.count_frames(root / "training")


def test_far_more_ids_than_files_are_refused_quickly(root):
  np.save(root / "training" / calvin.IDS_FILE, np.array([[0, 9_999_999]]))
  with pytest.raises(DatasetError, match=r"episode_0000018.npz: missing frame.*9999982 frames are missing"):
    calvin.read_frames(root / "training", 8)
  with pytest.raises(DatasetError, match="missing frame"):
    calvin.check_dataset(root, ("open_drawer",), 8)
  (problem,) = inspect_lib.inspect_dataset(root, tasks=("open_drawer",), image_size=8)["problems"]
  assert "9999982 of 10000000" in problem["rule"]


_LAUGHS: object = "x"
for _ in range(60):
  _LAUGHS = [_LAUGHS] * 2  # a name of 2^60 letters, if anyone asks for its text


@pytest.mark.parametrize(
  ("content", "rule"),
  [
    (np.zeros(3), "language.task"),
    ("text", "language.task"),
    ({"language": {"task": [_LAUGHS]}, "info": {"indx": [(0, 5)]}}, "nest too deep"),
    ({"language": {"task": [3]}, "info": {"indx": [(0, 5)]}}, "language.task"),
    ({"language": {"task": ["open_drawer"]}, "info": {"indx": [(0, np.inf)]}}, "whole numbers"),
    ({"language": {"task": ["open_drawer"]}, "info": {"indx": [(-1, 10**30)]}}, "whole numbers"),
    ({"language": {"task": ["open_drawer"]}, "info": {"indx": [("0", "5")]}}, "whole numbers"),
  ],
)
def test_annotations_of_the_wrong_kind(root, content, rule):
  calvin_writer.save_pickled(root / "training" / calvin.ANNOTATION_FILE, content)
  with pytest.raises(DatasetError, match=rule):
    calvin.read_split(root / "training", 8, tasks=("open_drawer",))


_EMPTY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"


@pytest.mark.parametrize(
  "steps",
  [
    b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b"x.",  # 64 GB
    b"cnumpy\nndarray\n(I10000000000\ntR.",
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I10000000000\ntVb\ntR.",
    _EMPTY + b"(I1\n(I1000000000000\ntcnumpy\ndtype\n(VS0\nI00\nI01\ntRI00\nC\0tb.",  # 10^12 empty texts
    b"cnumpy\ndtype\n(VV8\nI00\nI01\ntR.",  # fields anywhere in memory
  ],
)
def test_pickles_that_ask_for_memory(tmp_path, steps):
  np.save(tmp_path / "x.npy", None, allow_pickle=True)
  header = (tmp_path / "x.npy").read_bytes()[:128]
  (tmp_path / "x.npy").write_bytes(header + steps)
  with memory(2**28), pytest.raises(DatasetError, match="damaged"):
    files.load_pickled(tmp_path / "x.npy")
  # Nothing, remembered as number 2^31: 32 GB of the unpickler in C.
  (tmp_path / "x.npy").write_bytes(header + b"\x80\x04Nr\xff\xff\xff\x7f.")
  with memory(2**28):
    assert files.load_pickled(tmp_path / "x.npy") is None


@contextlib.contextmanager
def memory(more: int):
  """Lets the process take this many bytes more."""
  before = resource.getrlimit(resource.RLIMIT_AS)
  taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def zeros():
  """Half a megabyte that unpacks to 2**29 zeros."""
  return zlib.compress(bytes(2**29), wbits=-15)


@pytest.mark.parametrize("declared", [0, 2**20, 2**29, 2**32 - 2])
def test_archives_that_unpack_to_more_than_they_say(tmp_path, declared, zeros):
  common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(zeros), declared, 5, 0)
  body = b"PK\x03\x04" + common + b"a.npy" + zeros
  directory = b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"a.npy"
  end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), len(body), 0)
  (tmp_path / "x.npz").write_bytes(body + directory + end)
  with memory(2**27), pytest.raises(DatasetError, match="checksum|would unpack"):
    files.read_npz(tmp_path / "x.npz", ("a",))


@pytest.mark.parametrize(
  "header",
  [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 10**30)}",
    f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {10**30})}}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -4)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 'abcdefgh')}",
    "{'descr': ('<f8', (1000000000,)), 'fortran_order': False, 'shape': ()}",
    "{'descr': '<f8', 'fortran_order': 'no', 'shape': (8,)}",
    "(" * 9000,
    "-" * 9000,
    "[" * 60_000,
  ],
)
def test_headers_that_describe_no_array(tmp_path, header):
  text = header.encode()
  content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(64)
  (tmp_path / "x.npy").write_bytes(content)
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
    file.writestr("a.npy", content)
  with memory(2**28):
    with pytest.raises(DatasetError, match="npy file"):
      files.read_npy(tmp_path / "x.npy")
    with pytest.raises(DatasetError, match="not a NumPy array"):
      files.read_npz(tmp_path / "x.npz", ("a",))


@pytest.mark.parametrize("value", [1e39, -1.7e308])
def test_numbers_too_large_for_float32(root, value):
  _edit(root / "training", 8, robot_obs=np.r_[np.ones(14), value])
  with pytest.raises(DatasetError, match="finite as float32, but number 14"):
    calvin.read_frames(root / "training", 8)


def test_states_that_are_no_floats(root):
  _edit(root / "training", 8, robot_obs=np.array(["x"] * 15))
  with pytest.raises(DatasetError, match="15 floats"):
    calvin.read_vectors(root / "training", "robot_obs")


@pytest.mark.parametrize("task", [np.array("open_drawer"), np.arange(3), np.array([["open_drawer"] * 3] * 3)])
def test_start_states_without_names(root, task):
  states = {"task": task, "robot_obs": np.ones((3, 15)), "scene_obs": np.ones((3, 24))}
  np.savez(root / "validation" / calvin.START_STATES_FILE, **states)
  with pytest.raises(DatasetError, match="key 'task': must be names"):
    calvin.read_start_states(root, ("open_drawer",))


def test_a_frame_that_links_to_nowhere(root):
  path = frame_path(root / "training", 8)
  path.unlink()
  path.symlink_to("nowhere")
  with pytest.raises(DatasetError, match="episode_0000008.npz"):
    frames_cache.open_cache(root / "cache", root / "training", 8)


class _Malicious:
  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("nested", [False, True])
def test_malicious_annotations_run_nothing(root, tmp_path, nested):
  trace = tmp_path / "was_run"
  content = {"language": {"task": [_Malicious(trace)]}} if nested else _Malicious(trace)
  holder = np.empty((), object)
  holder[()] = content
  path = root / "training" / calvin.ANNOTATION_FILE
  np.save(path, holder, allow_pickle=True)
  with pytest.raises(DatasetError, match="mkdir.*nothing was run"):
    calvin.read_split(root / "training", 8)
  assert not trace.exists()
  pickle.loads(pickle.dumps(_Malicious(trace)))  # the file would have done it
  assert trace.exists()


def test_unpickler_admits_all_numpy_and_containers(tmp_path):
  content = {
    "a": [np.float64(0.5), (1, "x", None, True)],
    "b": np.arange(6).reshape(2, 3).T,
    "c": {1, 2},
    "d": np.array(["p", "qq"]),
    "e": np.array([{"z": 1}], object),
  }
  np.save(tmp_path / "x.npy", content, allow_pickle=True)
  read = files.load_pickled(tmp_path / "x.npy")
  assert read["a"] == content["a"] and read["c"] == {1, 2} and read["e"][0] == {"z": 1}
  np.testing.assert_array_equal(read["b"], content["b"])


def test_unpickler_reads_numpy_1_names(tmp_path):
  np.save(tmp_path / "x.npy", {"a": np.arange(3)}, allow_pickle=True)
  data = (tmp_path / "x.npy").read_bytes()
  assert b"numpy._core" in data
  # In protocol 4 a short string is preceded by its length.
  old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
  begin = old.index(b"\x80\x04\x95") + 3
  size = int.from_bytes(old[begin : begin + 8], "little") - (len(data) - len(old))
  (tmp_path / "x.npy").write_bytes(old[:begin] + size.to_bytes(8, "little") + old[begin + 8 :])
  np.testing.assert_array_equal(files.load_pickled(tmp_path / "x.npy")["a"], np.arange(3))


def test_check_dataset(root):
  counts = calvin.check_dataset(root, ("open_drawer", "turn_on_led"), image_size=8)
  assert counts["training"] == {"frames": 18, "episodes": 3, "windows": 3, "without": []}
  assert calvin.check_dataset(root, ("fly",), image_size=8)["training"]["without"] == ["fly"]
  _missing(root / "training")
  with pytest.raises(DatasetError, match="missing frame"):
    calvin.check_dataset(root, ("open_drawer",), image_size=8)


# Writing.


def test_nothing_half_written_is_taken_for_whole(tmp_path):
  folder = tmp_path / "training"
  with pytest.raises(KeyboardInterrupt) as stopped, calvin_writer.FrameWriter(folder) as writer:
    writer.write(**_frames(4))
    raise KeyboardInterrupt
  kept = calvin_writer.partial_folder(folder)
  assert not folder.exists() and str(kept) in stopped.value.__notes__[0]
  with pytest.raises(FileExistsError, match=str(kept)):
    calvin_writer.FrameWriter(folder)
  shutil.rmtree(kept)
  _write(folder, _frames(18))
  assert len(list(folder.glob("episode_*"))) == 18 and [p.name for p in tmp_path.iterdir()] == ["training"]
  with pytest.raises(FileExistsError):
    calvin_writer.FrameWriter(folder)


def test_an_interrupted_recording_goes_on(tmp_path):
  frames = _frames(18)
  _write(tmp_path / "whole/training", frames, first=5)
  folder = tmp_path / "parts/training"
  for rows in (slice(0, 10), slice(10, 18)):
    with (
      pytest.warns(RuntimeWarning, match="not committed"),
      calvin_writer.FrameWriter(folder, 5, go_on=True) as writer,
    ):
      writer.write(**{key: array[rows] for key, array in frames.items()})
  with calvin_writer.FrameWriter(folder, 5, go_on=True) as writer:
    assert writer.num_frames == 18
    assert writer.commit(LENGTHS, ANNOTATIONS, "table") == 23
  for path in (tmp_path / "whole/training").rglob("*.*"):
    assert path.read_bytes() == (folder / path.relative_to(tmp_path / "whole/training")).read_bytes()


def test_two_writers_of_one_split_are_kept_apart(tmp_path):
  folder, frames = tmp_path / "training", _frames(18)
  with calvin_writer.FrameWriter(folder) as writer:
    writer.write(**frames)
    with pytest.raises(FileExistsError, match="another writer"):
      calvin_writer.FrameWriter(folder, go_on=True)
    assert writer.commit(LENGTHS, ANNOTATIONS, "table") == 18
  assert not (folder / calvin_writer.LOCK).exists()


@pytest.mark.parametrize(
  ("first", "damage", "rule"),
  [
    (0, lambda path: os.truncate(path, 400), "truncated"),
    (0, lambda path: path.unlink(), "follow each other"),
    (1, lambda path: None, "follow each other"),
    (0, lambda path: np.savez(path, rel_actions=np.zeros(7)), "expected"),
  ],
)
def test_frames_that_cannot_be_gone_on_from_are_named_and_kept(tmp_path, first, damage, rule):
  folder = tmp_path / "training"
  with pytest.raises(KeyboardInterrupt), calvin_writer.FrameWriter(folder) as writer:
    writer.write(**_frames(4))
    raise KeyboardInterrupt
  kept = calvin_writer.partial_folder(folder)
  damage(frame_path(kept, 2))
  before = sorted(kept.iterdir())
  with pytest.raises(DatasetError, match=rule) as error:
    calvin_writer.FrameWriter(folder, first, go_on=True)
  assert error.value.file in (kept, frame_path(kept, 2)) and sorted(kept.iterdir()) == before


@pytest.mark.parametrize(
  ("key", "change", "error"),
  [
    ("rel_actions", lambda a: a * 2, DatasetError),
    ("robot_obs", lambda a: a * np.nan, DatasetError),
    ("scene_obs", lambda a: a[:, :-1], ValueError),
    ("rgb_static", lambda a: a.astype(np.float32), ValueError),
    ("rgb_gripper", lambda a: a[1:], ValueError),
  ],
)
def test_writer_refuses(tmp_path, key, change, error):
  frames = _frames(3)
  frames[key] = change(frames[key])
  with calvin_writer.FrameWriter(tmp_path / "x") as writer, pytest.raises(error):
    writer.write(**frames)


@pytest.mark.parametrize(
  ("changes", "rule"),
  [
    ({"lengths": [7, 5, 7]}, "19 frames in all, but 18"),
    ({"lengths": [7.0, 5.0, 6.0]}, "whole numbers"),
    ({"lengths": [7, 11, 0]}, "above 0"),
    ({"lengths": 18}, "one for each episode"),
    ({"annotations": [("open_drawer", 5, 9)]}, "frames 5 to 9 of open_drawer.*episode 0 goes from 0 to 7"),
    ({"annotations": [("open_drawer", 12, 19)]}, "episode 2 goes from 12 to 18"),
    ({"annotations": [("open_drawer", -2, 3)]}, "one episode"),
    ({"annotations": [("open_drawer", 20, 30)]}, "one episode"),
    ({"annotations": [("open_drawer", 3, 3)]}, "one episode"),
    ({"annotations": [("open_drawer", 7, 12), ("", 1, 2)]}, r"annotations\[1\]"),
    ({"annotations": [(1, 2)]}, r"annotations\[0\]"),
    ({"annotations": {"open_drawer": (7, 12)}}, "a list of"),
    ({"scene": None}, "scene"),
    ({"extra": {"../starts.npz": {}}}, "name of an npz file"),
  ],
)
def test_commit_refuses_and_keeps_what_was_written(tmp_path, changes, rule):
  right = {"lengths": LENGTHS, "annotations": ANNOTATIONS, "scene": "table"}
  with calvin_writer.FrameWriter(tmp_path / "x") as writer:
    writer.write(**_frames(18))
    with pytest.raises(ValueError, match=rule) as error:
      writer.commit(**right | changes)
    kept = calvin_writer.partial_folder(tmp_path / "x")
    assert str(kept) in str(error.value) and len(list(kept.glob("episode_*"))) == 18
    writer.commit(**right)
  assert calvin.read_frames(tmp_path / "x", 8).num_frames == 18


def test_a_write_that_the_disk_stops_can_be_repeated(tmp_path, monkeypatch):
  monkeypatch.setattr(calvin_writer, "BLOCK", 4)
  real = calvin_writer._NpzTemplate.fill
  frames, outcomes = _frames(18), itertools.chain([None] * 9, [OSError(errno.ENOSPC, "No space")])

  def fill(template, arrays):
    if (outcome := next(outcomes, None)) is not None:
      raise outcome
    return real(template, arrays)

  monkeypatch.setattr(calvin_writer._NpzTemplate, "fill", fill)
  with calvin_writer.FrameWriter(tmp_path / "x") as writer:
    with pytest.raises(OSError, match="No space"):
      writer.write(**frames)
    assert not writer.num_frames and not list(calvin_writer.partial_folder(tmp_path / "x").glob("episode_*"))
    writer.write(**frames)
    writer.commit(LENGTHS, ANNOTATIONS, "table")
  assert calvin.read_frames(tmp_path / "x", 8).num_frames == 18


def test_a_commit_that_the_disk_stops_can_be_repeated(tmp_path, monkeypatch):
  with calvin_writer.FrameWriter(tmp_path / "x") as writer:
    writer.write(**_frames(18))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
      patch.setattr(calvin_writer, "_statistics", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space")))
      writer.commit(LENGTHS, ANNOTATIONS, "table")
    writer.commit(LENGTHS, ANNOTATIONS, "table")
  assert len(calvin.read_raw_annotations(tmp_path / "x")) == len(ANNOTATIONS)


# Inspecting.

TWO = ("open_drawer", "turn_on_led")


def test_inspect_says_what_a_dataset_holds(root, capsys):
  arguments = [f"--source={root}", f"--tasks={','.join(TWO)}", "--frames=0", "--image_size=8"]
  assert inspect_lib.main([*arguments, "--json"]) == 0
  report = json.loads(capsys.readouterr().out)
  training = report["splits"]["training"]
  assert report["trainable"] and list(report["splits"]) == ["training", "validation"]
  assert (training["frames"], training["episodes"], training["ids"]) == (18, 3, [0, 17])
  assert training["episode_lengths"] == {"least": 5, "median": 6, "most": 7}
  assert training["windows"]["open_drawer"] == {"count": 2, "lengths": {"least": 4, "median": 4, "most": 5}}
  assert training["pictures"] == {"rgb_static": [8, 8, 3], "rgb_gripper": [8, 8, 3]}
  written = _frames(18)["robot_obs"]
  np.testing.assert_allclose(training["ranges"]["robot_obs"]["low"], written.min(0))
  np.testing.assert_allclose(training["ranges"]["robot_obs"]["high"], written.max(0))
  assert (training["read"], training["broken"], training["missing"]) == (18, 0, 0)
  assert report["splits"]["validation"]["start_states"] == {"open_drawer": 2, "turn_on_led": 1}
  assert inspect_lib.main(arguments) == 0
  text = capsys.readouterr().out
  assert "It can be trained on. 4 warnings" in text and "18 in 3 episodes of 5 to 7" in text


def test_inspect_lists_everything_wrong_at_once(root, capsys):
  folder = root / "training"
  frame_path(folder, 3).unlink()
  for broken in (0, 5):
    frame_path(folder, broken).write_bytes(frame_path(folder, broken).read_bytes()[:1000])
  _edit(folder, 9, robot_obs=np.full(15, np.nan))
  _edit(folder, 12, rgb_gripper=None)
  (root / "validation" / files.IDS_FILE).unlink()
  arguments = [f"--source={root}", "--tasks=open_drawer,fly", "--frames=0", "--image_size=8"]
  assert inspect_lib.main([*arguments, "--json"]) == 1
  report = json.loads(capsys.readouterr().out)
  training = report["splits"]["training"]
  assert (training["missing"], training["read"], training["broken"]) == (1, 17, 4)
  found = {(pathlib.Path(p["file"]).name, p["key"]) for p in report["problems"]}
  assert found == {
    ("auto_lang_ann.npy", "language.task"),  # fly
    (frame_path(folder, 3).name, ""),
    (frame_path(folder, 0).name, ""),
    (frame_path(folder, 5).name, ""),
    (frame_path(folder, 9).name, "robot_obs"),
    (frame_path(folder, 12).name, "rgb_gripper"),
    ("validation", ""),
  }
  assert all(problem["rule"] and problem["fix"] for problem in report["problems"])
  assert inspect_lib.main(arguments) == 1
  assert "It cannot be trained on: 7 problems." in capsys.readouterr().out


@pytest.mark.parametrize(
  ("split", "tasks", "problems"), [("training", TWO, 1), ("validation", TWO, 1), ("training", (), 0)]
)
def test_inspect_says_which_stages_play_without_annotations_allows(root, split, tasks, problems):
  (root / split / calvin.ANNOTATION_FILE).unlink()
  report = inspect_lib.inspect_dataset(root, tasks=tasks, image_size=8)
  assert report["stages"] == ["collect", "world_model", "judge_world_model"]
  assert len(report["problems"]) == problems and report["trainable"] == (not problems)
  assert "A world model can be trained and judged on it" in inspect_lib.format_report(report)


def test_inspect_counts_what_it_does_not_list(root):
  for frame in range(1, 15):
    _edit(root / "training", frame, scene_obs=np.zeros(3))
  report = inspect_lib.inspect_dataset(root, tasks=TWO, frames=0, image_size=8)
  assert report["splits"]["training"]["broken"] == 14 and len(report["problems"]) == 11
  assert "4 more frames are broken" in report["problems"][-1]["rule"]


def test_inspect_names_windows_that_leave_their_episode(root):
  content = files.load_pickled(root / "training" / calvin.ANNOTATION_FILE)
  content["info"]["indx"][1] = (5, 9)
  calvin_writer.save_pickled(root / "training" / calvin.ANNOTATION_FILE, content)
  report = inspect_lib.inspect_dataset(root, tasks=TWO, image_size=8)
  (problem,) = report["problems"]
  assert problem["key"] == "info.indx" and "(5, 9) of turn_on_led" in problem["rule"]


def test_inspect_of_no_dataset(tmp_path):
  report = inspect_lib.inspect_dataset(tmp_path / "nowhere")
  assert not report["trainable"] and "no such folder" in report["problems"][0]["rule"]
  assert not inspect_lib.inspect_dataset(tmp_path)["trainable"]
