"""Windows: alignment of actions, episode borders, padding; and the file of demo features."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.data import features, windows
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import Frames

STARTS, ENDS = np.array([0, 9, 14]), np.array([9, 14, 20])
REST = [0, 0, 0, 0, 0, 0, 1]


def _frames() -> Frames:
  """20 frames in 3 episodes; the first pixel of a picture is the frame's number."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (2, 20, 4, 4, 3), dtype=np.uint8)
  pictures[:, :, 0, 0, 0] = np.arange(20)
  action = rng.uniform(-1, 1, (20, 7)).astype(np.float32)
  return Frames(
    pictures={"rgb_static": pictures[0], "rgb_gripper": pictures[1]},
    action=action,
    robot_obs=rng.normal(size=(20, 15)).astype(np.float32),
    scene_obs=rng.normal(size=(20, 24)).astype(np.float32),
    starts=STARTS,
    ends=ENDS,
    ids=np.arange(20),
  )


def test_store_aligns_previous_actions():
  frames = _frames()
  store = windows.make_store(frames)
  for t in range(20):
    expected = REST if t in STARTS else frames.action[t - 1]
    np.testing.assert_array_equal(store.prev_action[t], np.asarray(expected, np.float32))
  np.testing.assert_array_equal(np.flatnonzero(store.is_first), STARTS)


def test_sampled_windows_are_consecutive_frames():
  frames = _frames()
  store = windows.make_store(frames)
  sample = jax.jit(windows.Sampler(20, 256, 6).sample)
  batch = sample(store, jax.random.key(0), jnp.int32(3))
  number = np.asarray(batch.pictures["rgb_static"][:, :, 0, 0, 0]).astype(int)
  assert set(number[:, 0]) == set(range(15))  # every start there is, and no other
  np.testing.assert_array_equal(number, number[:, :1] + np.arange(6))
  np.testing.assert_array_equal(batch.pictures["rgb_static"], frames.pictures["rgb_static"][number])
  np.testing.assert_array_equal(batch.pictures["rgb_gripper"], frames.pictures["rgb_gripper"][number])
  np.testing.assert_array_equal(batch.action, frames.action[number])
  np.testing.assert_array_equal(batch.robot_obs, frames.robot_obs[number])
  first = np.isin(number, STARTS)
  first[:, 0] = True
  np.testing.assert_array_equal(batch.is_first, first)
  np.testing.assert_array_equal(batch.prev_action[first], np.tile(REST, (first.sum(), 1)))
  np.testing.assert_array_equal(batch.prev_action[~first], frames.action[number - 1][~first])
  assert np.asarray(batch.mask).all()
  assert not np.array_equal(batch.action, sample(store, jax.random.key(1), jnp.int32(3)).action)


def test_carried_windows_come_to_the_last_frame():
  starts = windows.carried_starts(np.arange(3), 3, 1, 1)
  assert starts.tolist() == [[0], [1], [2]]


def test_carried_windows_follow_each_other():
  frames = _frames()
  store = windows.make_store(frames)
  sample = jax.jit(windows.Sampler(20, 3, 4, carry_state=True).sample)
  last = None
  for step in range(12):
    batch = sample(store, jax.random.key(step), jnp.int32(step))
    number = np.asarray(batch.pictures["rgb_static"][:, :, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(number[:, 0], windows.carried_starts(np.int64(step), 20, 3, 4))
    np.testing.assert_array_equal(number, number[:, :1] + np.arange(4))
    first = np.isin(number, STARTS)
    if last is None:
      np.testing.assert_array_equal(number[:, 0], [0, 6, 12])
      first[:, 0] = True
    else:
      first[:, 0] |= number[:, 0] != last + 1
    np.testing.assert_array_equal(batch.is_first, first)
    last = number[:, -1]
  assert sum(not x for x in np.asarray(batch.is_first)[:, 0]) > 0


def test_random_resets_come_at_their_rate():
  store = windows.make_store(_frames())
  samplers = [windows.Sampler(20, 2000, 10, carry_state=True, reset_probability=p) for p in (0.0, 0.3)]
  calm, wild = (sampler.sample(store, jax.random.key(0), jnp.int32(5)) for sampler in samplers)
  free = ~np.asarray(calm.is_first)
  assert abs(np.asarray(wild.is_first)[free].mean() - 0.3) < 0.02
  assert np.asarray(wild.is_first)[~free].all()
  np.testing.assert_array_equal(wild.prev_action, calm.prev_action)


def test_a_window_may_be_the_whole_data_but_not_more():
  store = windows.make_store(_frames())
  assert windows.Sampler(20, 2, 20).sample(store, jax.random.key(0), jnp.int32(0)).action.shape == (2, 20, 7)
  with pytest.raises(ValueError, match="20 frames"):
    windows.Sampler(20, 2, 21)


def test_episode_batch():
  frames = _frames()
  batch = windows.episode_batch(frames, [(9, 14), (2, 9)], 8)
  np.testing.assert_array_equal(batch.mask.sum(1), [5, 7])
  for row, (start, end) in enumerate([(9, 14), (2, 9)]):
    n = end - start
    assert batch.mask[row, :n].all() and not batch.mask[row, n:].any()
    np.testing.assert_array_equal(
      batch.pictures["rgb_static"][row, :n], frames.pictures["rgb_static"][start:end]
    )
    np.testing.assert_array_equal(
      batch.pictures["rgb_gripper"][row, :n], frames.pictures["rgb_gripper"][start:end]
    )
    np.testing.assert_array_equal(batch.action[row, :n], frames.action[start:end])
    np.testing.assert_array_equal(batch.prev_action[row, 0], REST)
    np.testing.assert_array_equal(batch.prev_action[row, 1:n], frames.action[start : end - 1])
    np.testing.assert_array_equal(batch.robot_obs[row, :n], frames.robot_obs[start:end])
    np.testing.assert_array_equal(np.flatnonzero(batch.is_first[row]), [0])
    np.testing.assert_array_equal(batch.action[row, n:], np.tile(REST, (8 - n, 1)))
    assert not batch.pictures["rgb_static"][row, n:].any()


@pytest.mark.parametrize("wrong", [[], [(3, 3)], [(0, 9)], [(15, 21)], [(-1, 3)]])
def test_episode_batch_refuses(wrong):
  with pytest.raises(ValueError, match="window"):
    windows.episode_batch(_frames(), wrong, 8)


def _demo_features() -> features.DemoFeatures:
  rng = np.random.default_rng(4)
  return features.DemoFeatures(
    feature=rng.normal(size=(2, 3, 5, 6)).astype(np.float32),
    action=rng.normal(size=(2, 3, 5, 7)).astype(np.float32),
    success=rng.random((2, 3, 5)) < 0.5,
    mask=rng.random((2, 3, 5)) < 0.5,
    tasks=("open_drawer", "turn_on_led"),
  )


def test_features_round_trip(tmp_path):
  demo = _demo_features()
  features.save_features(tmp_path / "train.npz", demo)
  read = features.load_features(tmp_path / "train.npz")
  assert read.tasks == demo.tasks and [p.name for p in tmp_path.iterdir()] == ["train.npz"]
  for name in ("feature", "action", "success", "mask"):
    np.testing.assert_array_equal(getattr(read, name), getattr(demo, name))
    assert getattr(read, name).dtype == getattr(demo, name).dtype


def test_features_refuse_what_does_not_fit(tmp_path):
  demo = _demo_features()
  with pytest.raises(ValueError, match="mask"):
    dataclasses.replace(demo, mask=demo.mask[:, :, 1:])
  with pytest.raises(ValueError, match="1 tasks"):
    dataclasses.replace(demo, tasks=("open_drawer",))
  features.save_features(tmp_path / "x.npz", demo)
  content = dict(np.load(tmp_path / "x.npz"))
  np.savez(tmp_path / "x.npz", **{**content, "action": content["action"][:, :, 1:]})
  with pytest.raises(DatasetError, match="x.npz.*action"):
    features.load_features(tmp_path / "x.npz")
  (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-10])
  with pytest.raises(DatasetError, match="truncated"):
    features.load_features(tmp_path / "x.npz")
