"""Streaming: the cache of frames, windows from disk equal to windows from memory, which source, bad input."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from wam_jax.config import preset_config
from wam_jax.core.backend import compiling_for
from wam_jax.data import calvin, frames_cache, statistics, stream, windows
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import Frames, frame_path
from wam_jax.embodiment import CALVIN
from wam_jax.stages import world_model

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = (9, 5, 26)
SIZE, BATCH, LENGTH = 8, 3, 7


@pytest.fixture(name="split")
def _split(tmp_path, write_split):
  write_split(tmp_path / "data/training", LENGTHS, SIZE)
  return tmp_path / "data/training"


@pytest.fixture(name="cache")
def _cache(split, tmp_path):
  return frames_cache.open_cache(tmp_path / "cache", split, SIZE)


def _carried(update):
  return windows.carried_starts(np.asarray(update), sum(LENGTHS), BATCH, LENGTH)


def fresh_starts(num_frames, batch_size, length, seed=3):
  sampler = windows.Sampler(num_frames, batch_size, length)
  return stream.starts_on_host(sampler, lambda step: jax.random.fold_in(jax.random.key(seed), step))


FRESH = fresh_starts(sum(LENGTHS), BATCH, LENGTH)
REGIMES = pytest.mark.parametrize("starts", [FRESH, _carried], ids=["fresh", "carried"])


def _updates(pieces):
  """Pieces -> one Batch of NumPy arrays per update."""
  return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], p) for p in pieces for i in range(len(p.action))]


def _assert_equal(got, expected):
  assert len(got) == len(expected)
  for a, b in zip(got, expected, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---------------------------------------------------------------------------------------------
# The cache.


def test_cache_holds_what_the_files_hold(split, cache):
  frames, loaded = calvin.read_frames(split, SIZE), cache.load()
  for name in ("action", "robot_obs", "scene_obs", "starts", "ends", "ids"):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(frames, name))
    assert getattr(loaded, name).dtype == getattr(frames, name).dtype
  _assert_equal([loaded.pictures], [frames.pictures])
  np.testing.assert_array_equal(cache.is_first, frames.is_first)
  np.testing.assert_array_equal(
    np.load(cache.path / "rgb_static.npy"), frames.pictures["rgb_static"]
  )  # plain npy files


def test_cache_shrinks_pictures(tmp_path, write_split):
  write_split(tmp_path / "training", LENGTHS, 12)
  cache = frames_cache.open_cache(tmp_path / "cache", tmp_path / "training", SIZE)
  np.testing.assert_array_equal(
    cache.load().pictures["rgb_gripper"],
    calvin.read_frames(tmp_path / "training", SIZE).pictures["rgb_gripper"],
  )


def test_cache_is_made_once_and_again_when_a_file_changes(split, tmp_path):
  lines = []
  ask = lambda: frames_cache.open_cache(tmp_path / "cache", split, SIZE, log=lines.append)
  first = ask()
  stamp = (first.path / "rgb_static.npy").stat().st_mtime_ns
  ask()
  assert (first.path / "rgb_static.npy").stat().st_mtime_ns == stamp
  assert "none there yet" in lines[0] and lines[1].endswith("40 frames")
  path = frame_path(split, 17)
  content = dict(np.load(path))
  content["rgb_static"] = 255 - content["rgb_static"]
  np.savez(path, **content)
  np.testing.assert_array_equal(ask().load().pictures["rgb_static"][17], content["rgb_static"])
  assert "changed" in lines[2]


@pytest.mark.parametrize("damage", ["short", "absent", "manifest", "vectors"])
def test_damaged_cache_is_made_anew(split, cache, tmp_path, damage):
  expected = cache.load()
  path = cache.path / {"manifest": "manifest.json", "vectors": "vectors.npz"}.get(damage, "rgb_gripper.npy")
  if damage in ("short", "manifest"):
    os.truncate(path, path.stat().st_size - 5)
  else:
    path.unlink()
  lines = []
  again = frames_cache.open_cache(tmp_path / "cache", split, SIZE, log=lines.append)
  assert "reading" in lines[0]
  np.testing.assert_array_equal(again.load().pictures["rgb_gripper"], expected.pictures["rgb_gripper"])


def test_splits_and_sizes_share_a_folder(split, tmp_path, write_split):
  write_split(tmp_path / "other/training", LENGTHS, SIZE, seed=1)
  paths = {
    frames_cache.open_cache(tmp_path / "cache", folder, size).path
    for folder in (split, tmp_path / "other/training")
    for size in (SIZE, 4)
  }
  assert len(paths) == 4


def test_cache_of_a_split_with_takes_of_another(split, tmp_path, write_split):
  write_split(tmp_path / "data/failed", (8, 6), SIZE, seed=1)
  extra = [(tmp_path / "data/failed", np.array([[2, 6], [8, 13]]))]
  lines = []
  ask = lambda extra: frames_cache.open_cache(
    tmp_path / "cache", split, SIZE, workers=2, log=lines.append, extra=extra
  )
  cache, frames = ask(extra), calvin.read_frames(split, SIZE, extra=extra)
  loaded = cache.load()
  for name in ("action", "robot_obs", "scene_obs", "starts", "ends", "ids"):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(frames, name))
  _assert_equal([loaded.pictures], [frames.pictures])
  assert cache.num_frames == 40 + 11 and cache.starts[-2:].tolist() == [40, 45]
  np.testing.assert_array_equal(cache.is_first, frames.is_first)
  fewer = [(extra[0][0], extra[0][1][:1])]
  paths = [frames_cache.cache_path(tmp_path / "cache", split, SIZE, e) for e in ((), extra, fewer)]
  assert paths[1] == cache.path and len(set(paths)) == 3
  assert ask(()).num_frames == 40 and ask(extra).path == cache.path
  assert [("reading" in line) for line in lines] == [True, True, False]
  path = frame_path(tmp_path / "data/failed", 4)
  content = dict(np.load(path))
  np.savez(path, **content | {"rgb_static": 255 - content["rgb_static"]})
  np.testing.assert_array_equal(ask(extra).load().pictures["rgb_static"][42], 255 - content["rgb_static"])
  assert "changed" in lines[-1]


_KILLED = """
import sys, time
from wam_jax.data import frames, frames_cache
read = frames.FrameReader.read
def slow(self, begin, stop, out):
  read(self, begin, stop, out)
  if begin:
    print("midway", flush=True)
    time.sleep(60)
frames.FrameReader.read, frames.BLOCK = slow, 8
frames_cache.open_cache(sys.argv[1], sys.argv[2], 8, workers=1)
"""


def test_killed_midway_leaves_no_cache(split, tmp_path):
  root = tmp_path / "cache"
  command = [sys.executable, "-c", _KILLED, str(root), str(split)]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"midway\n"
    assert any(path.name.endswith(".partial") for path in root.iterdir())
    process.send_signal(signal.SIGKILL)
  assert not frames_cache.cache_path(root, split, SIZE).exists()
  lines = []
  cache = frames_cache.open_cache(root, split, SIZE, log=lines.append)  # the dead process holds no lock
  assert "none there yet" in lines[0] and not list(root.glob("*.partial"))
  np.testing.assert_array_equal(
    cache.load().pictures["rgb_static"], calvin.read_frames(split, SIZE).pictures["rgb_static"]
  )


def test_full_disk_is_said_and_leaves_nothing(split, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "posix_fallocate", refuse)
  with pytest.raises(DatasetError, match=r"needs 0.0 GB, and .* GB were free.*config.data.cache"):
    frames_cache.open_cache(tmp_path / "cache", split, SIZE)
  assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_two_at_once_make_it_once(split, tmp_path):
  lines, shapes = [], []
  ask = lambda: shapes.append(
    frames_cache.open_cache(tmp_path / "cache", split, SIZE, log=lines.append)
    .load()
    .pictures["rgb_static"]
    .shape
  )
  threads = [threading.Thread(target=ask) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert shapes == [(40, SIZE, SIZE, 3)] * 4
  assert len(lines) == 4 and sum("reading" in line for line in lines) == 1


def test_folder_that_cannot_be_written(split, tmp_path):
  (tmp_path / "cache").write_text("a file")
  with pytest.raises(DatasetError, match="cannot be written: .*config.data.cache"):
    frames_cache.open_cache(tmp_path / "cache", split, SIZE)


def test_errors_of_the_split_pass_through(split, tmp_path):
  path = frame_path(split, 17)
  content = dict(np.load(path))
  del content["rgb_gripper"]
  np.savez(path, **content)
  with pytest.raises(DatasetError, match=r"episode_0000017.npz, key 'rgb_gripper': is absent"):
    frames_cache.open_cache(tmp_path / "cache", split, SIZE)
  assert not frames_cache.cache_path(tmp_path / "cache", split, SIZE).exists()


# ---------------------------------------------------------------------------------------------
# The stream.


@REGIMES
@pytest.mark.parametrize("threads", [0, 2])
def test_stream_equals_windows_from_memory(split, cache, starts, threads):
  store = windows.make_store(calvin.read_frames(split, SIZE))
  expected = [windows.gather(store, starts(update), LENGTH) for update in range(11)]
  options = {"first_update": 0, "total": 11, "per_call": 4, "threads": threads}
  with stream.WindowStream(cache, starts, LENGTH, **options) as source:
    got = [_updates(source.take(num)) for num in (4, 4, 3)]
  assert [len(call) for call in got] == [4, 4, 3]
  _assert_equal([batch for call in got for batch in call], expected)


@REGIMES
def test_starts_in_the_middle(cache, starts):
  whole = stream.WindowStream(cache, starts, LENGTH, first_update=0, total=9, per_call=3)
  late = stream.WindowStream(cache, starts, LENGTH, first_update=5, total=9, per_call=3)  # 3 and 1 remain
  with whole, late:
    expected = _updates([piece for _ in range(3) for piece in whole.take(3)])
    _assert_equal(_updates([*late.take(3), *late.take(1)]), expected[5:])


def test_pieces_of_a_call(cache, monkeypatch):
  update_bytes = BATCH * LENGTH * 2 * SIZE * SIZE * 3
  assert stream.updates_per_piece(50, 61_440_000) == 2
  monkeypatch.setattr(stream, "PIECE_BYTES", 69)
  assert stream.updates_per_piece(7, 10) == 1  # no divisor between
  assert stream.updates_per_piece(5, 10**12) == 1
  monkeypatch.setattr(stream, "PIECE_BYTES", 3 * update_bytes)
  with stream.WindowStream(cache, FRESH, LENGTH, first_update=0, total=20, per_call=8, stops=(11,)) as source:
    assert source.per_piece == 2
    sizes = [[len(piece.action) for piece in source.take(num)] for num in (8, 3, 8, 1)]
    assert sizes == [[2, 2, 2, 2], [2, 1], [2, 2, 2, 2], [1]]
    assert not list(source.take(0))
    with pytest.raises(ValueError, match="no call of 1 updates"):
      next(source.take(1))


def test_reads_ahead_in_order_and_not_too_far(cache, monkeypatch):
  seen, ready = [], threading.Event()

  def starts(update):
    seen.append(update)
    if len(set(seen)) >= 3:
      ready.set()
    return FRESH(update)

  update_bytes = BATCH * LENGTH * 2 * SIZE * SIZE * 3
  monkeypatch.setattr(stream, "AHEAD_BYTES", 2 * update_bytes)
  with stream.WindowStream(cache, starts, LENGTH, first_update=0, total=9, per_call=1, threads=1) as source:
    list(source.take(1))
    assert ready.wait(10)  # updates 1 and 2 are read although nobody has asked for them
    time.sleep(0.2)
    assert seen[1:] == [0, 1, 2]  # the first look is for the batch size
    list(source.take(1))


def test_close_ends_the_threads(cache):
  before = threading.active_count()
  source = stream.WindowStream(cache, FRESH, LENGTH, first_update=0, total=1000, per_call=1)
  list(source.take(1))
  source.close()
  source.close()
  deadline = time.monotonic() + 10
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before
  with pytest.raises(ValueError, match="closed"):
    list(source.take(1))


def test_nothing_left(cache):
  with stream.WindowStream(cache, FRESH, LENGTH, first_update=5, total=5, per_call=2) as source:
    assert not list(source.take(0))


def test_put_is_run_on_each_piece(cache):
  put = lambda piece: piece.action.shape
  with stream.WindowStream(cache, FRESH, LENGTH, first_update=0, total=4, per_call=2, put=put) as source:
    assert list(source.take(2)) == [(2, BATCH, LENGTH, 7)]


def test_errors_of_the_threads_arrive(cache):
  bad = lambda update: FRESH(update) + (100 if update == 2 else 0)
  with stream.WindowStream(cache, bad, LENGTH, first_update=0, total=4, per_call=1) as source:
    list(source.take(1))
    list(source.take(1))
    with pytest.raises(ValueError, match=r"starts of windows in \[0, 33\]"):
      list(source.take(1))
  (cache.path / "rgb_static.npy").unlink()
  with (
    stream.WindowStream(cache, FRESH, LENGTH, first_update=0, total=4, per_call=1) as source,
    pytest.raises(DatasetError, match="rgb_static.npy: cannot be read"),
  ):
    list(source.take(1))


def test_truncated_while_in_use(cache):
  os.truncate(cache.path / "rgb_gripper.npy", 1000)
  with pytest.raises(DatasetError, match="ends too early"):
    cache.load()


def test_fresh_starts():
  draw = fresh_starts(50, 4000, 10)
  starts = draw(7)
  assert starts.min() == 0 and starts.max() == 40
  assert np.bincount(starts).min() > 50  # of 98 expected
  np.testing.assert_array_equal(starts, fresh_starts(50, 4000, 10)(7))
  assert (draw(8) != starts).any() and (fresh_starts(50, 4000, 10, seed=4)(7) != starts).any()
  store = windows.FrameStore(**{name: np.arange(50) for name in windows.FIELDS} | {"pictures": {}})
  taken = windows.gather(
    store, windows.Sampler(50, 4000, 10).starts(jax.random.fold_in(jax.random.key(3), 7), 7), 10
  )
  np.testing.assert_array_equal(taken.action, starts[:, None] + np.arange(10))  # what the device would take


_MEMORY = """
import json, pathlib, sys
import jax
from wam_jax.data import frames_cache, stream, windows
peak = lambda: 1024 * int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
jax.numpy.zeros(1).block_until_ready()
import grain.python
before = peak()
cache = frames_cache.open_cache(sys.argv[1], sys.argv[2], 64, workers=1)
made = peak()
key_of = lambda step: jax.random.fold_in(jax.random.key(0), step)
starts = stream.starts_on_host(windows.Sampler(cache.num_frames, 4, 16), key_of)
with stream.WindowStream(cache, starts, 16, first_update=0, total=200, per_call=5) as source:
  for _ in range(40):
    for piece in source.take(5):
      jax.block_until_ready(piece)
print(json.dumps({"make": made - before, "stream": peak() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_data(tmp_path, write_split):
  """4,000 frames are 98 MB; 200 updates of 4 x 16 frames are 315 MB, ten pieces of 8 MB at once."""
  write_split(tmp_path / "training", (2000, 2000), 64)
  command = [sys.executable, "-c", _MEMORY, str(tmp_path / "cache"), str(tmp_path / "training")]
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  grown = json.loads(out.splitlines()[-1])
  print(grown)
  assert grown["make"] < 40e6
  assert grown["stream"] < 130e6


def test_grain_is_imported_late():
  """A run that does not stream pays nothing for grain, and nobody imports TensorFlow."""
  code = (
    "import sys; import wam_jax, wam_jax.data.stream; print(sorted({m.split('.')[0] for m in sys.modules}))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  assert "'jax'" in out and "'grain'" not in out and "'tensorflow'" not in out


# ---------------------------------------------------------------------------------------------
# Which source.


def test_estimate_of_calvin():
  assert stream.estimate_bytes(512_046, 64) == pytest.approx(12.6e9, rel=0.01)
  frames = Frames(
    pictures={name: np.zeros((10, 4, 4, 3), np.uint8) for name in ("rgb_static", "rgb_gripper")},
    action=np.zeros((10, 7), np.float32),
    robot_obs=np.zeros((10, 15), np.float32),
    scene_obs=np.zeros((10, 24), np.float32),
    starts=np.array([0]),
    ends=np.array([10]),
    ids=np.arange(10),
  )
  store = windows.make_store(frames)
  assert sum(x.nbytes for x in jax.tree.leaves(store)) == stream.estimate_bytes(10, 4)


def test_memory_reserve_follows_the_dtype():
  config, reserve = preset_config("paper"), {}
  for dtype in ("float32", "bfloat16", "auto"):
    config.world_model.compute_dtype = dtype
    reserve[dtype] = world_model.memory_reserve(config, 10**6, CALVIN)
  assert reserve["auto"] == reserve["float32"] > 4 * reserve["bfloat16"] > 4 * 16e6  # on a CPU
  with compiling_for("tpu"):
    assert world_model.memory_reserve(config, 10**6, CALVIN) == reserve["bfloat16"]


def test_choice_by_size():
  choose = functools.partial(stream.choose_source, 40_000, 64)  # 0.99 GB
  assert choose(limit_gb=2)[0] == "device" and choose(limit_gb=0.9)[0] == "stream"
  assert choose(limit_gb=2, reserve=10**9)[0] == "device"
  source, line = choose(limit_gb=2, reserve=1_100_000_000)
  assert source == "stream"
  assert line == (
    "40,000 frames are streamed from disk: 0.99 GB of frames and 1.10 GB for training do not fit in the "
    "2.00 GB allowed by data.memory_limit_gb"
  )
  source, line = choose(limit_gb=0.5, residency="device")
  assert source == "device" and "asked for" in line and "do not fit" in line
  assert choose(limit_gb=100, residency="stream")[0] == "stream"
  assert "free on this machine" in stream.choose_source(100, 64)[1]
  with pytest.raises(ValueError, match="residency"):
    choose(residency="gpu")


@pytest.mark.parametrize(
  ("membership", "files", "expected"),
  [
    ("0::/", {}, 8192),
    ("0::/", {"memory.max": "5000", "memory.current": "3000"}, 2500),
    ("0::/a/b", {"a/memory.max": "5000", "a/memory.current": "3000", "a/b/memory.max": "max"}, 2500),
    (
      "4:memory:/x",
      {"memory/x/memory.limit_in_bytes": "4000", "memory/x/memory.usage_in_bytes": "3000"},
      1500,
    ),
    ("4:cpu:/x", {"memory.max": "5000", "memory.current": "3000"}, 8192),
  ],
)
def test_memory_of_the_control_group(tmp_path, membership, files, expected):
  (tmp_path / "proc/self").mkdir(parents=True)
  (tmp_path / "proc/meminfo").write_text("MemTotal: 16 kB\nMemAvailable: 8 kB\n")
  (tmp_path / "proc/self/cgroup").write_text(membership + "\n")
  for name, text in files.items():
    path = tmp_path / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (path.parent / "memory.stat").write_text("anon 10\ninactive_file 500\n")
  assert stream.host_bytes(tmp_path) == expected


# ---------------------------------------------------------------------------------------------
# Bad input.


def test_too_short(tmp_path):
  starts, ends = np.array([0, 9, 14]), np.array([9, 14, 40])
  with pytest.raises(DatasetError, match=r"has 40 frames, too few for one window of 41"):
    stream.check_windows("split", starts, ends, 41)
  assert stream.check_windows("split", starts, ends, 5) == ""
  line = stream.check_windows("split", starts, ends, 30)
  assert line.startswith("split: 3 of 3 episodes (100.0% of the frames) are shorter than a window of 30")
  assert "2 of 3 episodes (35.0%" in stream.check_windows("split", starts, ends, 10)


def test_stream_of_too_few_frames(cache):
  with pytest.raises(DatasetError, match="too few for one window"):
    stream.WindowStream(cache, FRESH, 41, first_update=0, total=4, per_call=1)


def test_cameras_of_different_length():
  content = {name: np.zeros((10, 4, 4, 3), np.uint8) for name in ("rgb_static", "rgb_gripper")}
  content["rgb_gripper"] = content["rgb_gripper"][:9]
  with pytest.raises(ValueError, match="rgb_static has 10, rgb_gripper has 9"):
    Frames(
      pictures=content,
      action=np.zeros((10, 7), np.float32),
      robot_obs=np.zeros((10, 15), np.float32),
      scene_obs=np.zeros((10, 24), np.float32),
      starts=np.array([0]),
      ends=np.array([10]),
      ids=np.arange(10),
    )


def test_statistics_are_read_and_fit(split, cache):
  mean, std = statistics.read_statistics(split)
  np.testing.assert_allclose(mean, cache.robot_obs.mean(0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(std, cache.robot_obs.std(0), rtol=1e-4)
  statistics.check_statistics(split, mean, std, cache.robot_obs)
  statistics.check_statistics(split, mean + 0.09 * std, 1.15 * std, cache.robot_obs)


def test_statistics_to_normalise_with(split, cache):
  stored = statistics.read_statistics(split)
  np.testing.assert_array_equal(statistics.robot_statistics(split, cache.robot_obs), stored)
  with pytest.raises(DatasetError, match="not the statistics of this split.*or remove it"):
    statistics.robot_statistics(split, cache.robot_obs + 1)
  (split / "statistics.yaml").unlink()
  np.testing.assert_allclose(
    statistics.robot_statistics(split, cache.robot_obs), stored, rtol=1e-4, atol=1e-6
  )


_LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
  "text",
  [
    f"robot_obs:\n- mean: [{', '.join(['1' * 400] * 15)}]\n  std: [{', '.join(['1'] * 15)}]\n",
    _LAUGHS + "robot_obs:\n- mean: *a39\n  std: *a39\n",  # 2^40 numbers, if anyone makes an array of them
    "[" * 3000,
    "a: !!bool x",
    "a: !!int ''",
  ],
)
def test_statistics_that_mean_harm(split, text):
  (split / "statistics.yaml").write_text(text)
  with pytest.raises(DatasetError, match="statistics.yaml"):
    statistics.read_statistics(split)


def test_statistics_of_other_data(split, cache):
  mean, std = statistics.read_statistics(split)
  wrong = mean.copy()
  wrong[6] += 2 * std[6]
  with pytest.raises(DatasetError, match=r"number 6 \(gripper width\) has mean .*1 of 15 numbers are off"):
    statistics.check_statistics(split, wrong, std, cache.robot_obs)
  wrong = std.copy()
  wrong[14] *= 1.5
  with pytest.raises(DatasetError, match=r"statistics.yaml, key 'robot_obs'.*number 14"):
    statistics.check_statistics(split, mean, wrong, cache.robot_obs)
  wrong[14] = 0
  with pytest.raises(DatasetError, match="number 14"):
    statistics.check_statistics(split, mean, wrong, cache.robot_obs)


def test_statistics_of_numbers_that_do_not_move(cache):
  still = cache.robot_obs.copy()
  still[:, 14] = -1
  mean, std = still.mean(0), still.std(0)
  statistics.check_statistics("split", mean + np.eye(15)[14] * 5e-4, std, still)
  with pytest.raises(DatasetError, match="number 14"):
    statistics.check_statistics("split", mean + np.eye(15)[14] * 5e-3, std, still)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("robot_obs: [", "not YAML"),
    ("robot_obs: !!python/object/apply:os.system ['true']", "not YAML of plain values"),
    ("- 1", "must hold a NormalizeVector"),
    ("robot_obs:\n- {mean: [1.0]}", "must hold a NormalizeVector"),
    ("robot_obs:\n- {mean: [1, 2], std: [1, 2]}", "mean must be 15 finite numbers"),
    ("robot_obs:\n- {mean: [a], std: [1]}", "mean must be 15 finite numbers"),
    (f"robot_obs:\n- {{mean: {[0.0] * 15}, std: {[-1.0] * 15}}}", "none negative"),
    (
      f"robot_obs:\n- {{mean: {[0.0] * 14 + [float('nan')]}, std: {[1.0] * 15}}}".replace("nan", ".nan"),
      "mean",
    ),
  ],
)
def test_damaged_statistics(tmp_path, text, message):
  (tmp_path / "statistics.yaml").write_text(text)
  with pytest.raises(DatasetError, match=message):
    statistics.read_statistics(tmp_path)


def test_statistics_in_calvins_own_form(tmp_path):
  """Indented lists, inline numbers, another transform before: OmegaConf's and hand-written files."""
  numbers = [round(0.1 * i, 1) for i in range(15)]
  (tmp_path / "statistics.yaml").write_text(
    f"act_max_bound: [1.0]\nrobot_obs:\n  - _target_: calvin_agent.utils.transforms.AddGaussianNoise\n"
    f"  - _target_: calvin_agent.utils.transforms.NormalizeVector\n    mean: {numbers}\n    std: {numbers}\n"
  )
  mean, std = statistics.read_statistics(tmp_path)
  np.testing.assert_array_equal(mean, numbers)
  np.testing.assert_array_equal(std, numbers)
  with pytest.raises(DatasetError, match="no such file"):
    statistics.read_statistics(tmp_path / "elsewhere")
