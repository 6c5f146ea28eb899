"""Successes that play contains."""

import numpy as np
import pytest

from wam_jax.data import calvin, play_successes
from wam_jax.data.features import DemoFeatures, load_cloned, save_features
from wam_jax.data.files import DatasetError
from wam_jax.embodiment import SCENE_OBS
from wam_jax.envs import tasks
from wam_jax.envs.goals import DRAWER


def _drawer(opening: np.ndarray) -> np.ndarray:
  """Scenes [T, 24] with the drawer so far open [m]."""
  scene = np.zeros((len(opening), SCENE_OBS), np.float32)
  scene[:, DRAWER] = opening
  return scene


def _opening(frames: int, *at: int) -> np.ndarray:
  """Open from each frame of `at` on, shut again 30 frames later."""
  opening = np.zeros(frames)
  for first in at:
    opening[first : first + 30] = 0.2
  return opening


@pytest.mark.parametrize("at", [(), (30,), (30, 120), (4,), (95,)])
def test_a_window_ends_where_the_task_is_done(at):
  scene = _drawer(_opening(100 if len(at) < 2 else 160, *at))
  windows = play_successes.success_windows("open_drawer", scene)
  # Too early, there is nothing before it; too late, too few frames see that it stays done: still a success.
  assert len(windows) == (0 if at in ((), (4,)) else len(at))
  last = 0
  for start, end in windows:
    done = tasks.success("open_drawer", scene[start : start + 1], scene[start:end])
    assert start >= last and not done[: play_successes.LEAST].any() and done[-1]
    assert done.argmax() + start in at and done[done.argmax() :].all() and done.sum() <= play_successes.AFTER
    last = end


def test_a_drawer_that_shuts_at_once_was_not_opened():
  opening = np.zeros(100)
  opening[40:44] = 0.2
  assert play_successes.success_windows("open_drawer", _drawer(opening)) == []


@pytest.fixture
def split(monkeypatch, tmp_path):
  """A split of two episodes, ids 100 to 199 and 300 to 399, whose drawer opens twice in the second."""
  scene = _drawer(np.concatenate([np.zeros(100), _opening(100, 12, 60)]))
  annotated = []
  monkeypatch.setattr(calvin, "read_episode_ids", lambda _: np.array([[100, 199], [300, 399]]))
  monkeypatch.setattr(calvin, "read_vectors", lambda folder, key, workers=0: {"scene_obs": scene}[key])
  monkeypatch.setattr(calvin, "read_raw_annotations", lambda _: annotated)
  return tmp_path, annotated


def test_windows_are_frame_ids_and_demos_of_the_task_are_left_out(split):
  folder, annotated = split
  names, spans = play_successes.find_successes(folder, ("close_drawer", "open_drawer"), 9)
  assert names == ["close_drawer", "close_drawer", "open_drawer", "open_drawer"]
  opened = spans[2:]
  assert (
    opened[:, 0].min() >= 300 and (opened[:, 0] < [312, 360]).all() and (opened[:, 1] == [321, 369]).all()
  )
  annotated.append(("open_drawer", 305, 320))
  annotated.append(("close_drawer", 340, 360))
  names, spans = play_successes.find_successes(folder, ("open_drawer",), 9)
  assert names == ["open_drawer"] and spans[0, 1] == 369
  names, _ = play_successes.find_successes(folder, ("open_drawer", "close_drawer"), 1)
  assert names == ["open_drawer", "close_drawer"]


def test_play_that_does_nothing_is_refused(split):
  with pytest.raises(DatasetError) as error:
    play_successes.find_successes(split[0], ("turn_on_led",), 9)
  assert error.value.key == "scene_obs"


def test_a_window_ends_behind_a_peak_of_the_classifier_s_score():
  frames = np.arange(400)
  bump = lambda at, height: height * np.exp(-(((frames - at) / 6) ** 2))
  low, doubt = -80.0, play_successes.DOUBT
  # Two peaks apart, one of two near each other, one that stays below, one too early, and one at the end.
  score = low + sum(bump(at, 78) for at in (60, 150, 396)) + bump(170, 76) + bump(260, 60) + bump(3, 79)
  found = play_successes.peak_windows(score)
  assert [peak for _, peak, _ in found] == [60, 150, 396]
  assert [(start, end) for start, _, end in found] == [(20, 70), (110, 160), (356, 400)]
  assert score[260] < doubt < score[170]
  assert play_successes.peak_windows(np.full(100, low)) == []
  close = low + bump(100, 78) + bump(135, 79)
  (_, _, before), (after, _, _) = play_successes.peak_windows(close)
  assert before <= after


def _demos(num: int, length: int, value: float) -> DemoFeatures:
  shape = (2, num, length)
  flags, vectors = np.ones(shape, bool), np.full((*shape, 7), value, np.float32)
  return DemoFeatures(vectors, vectors, flags, flags, ("a", "b"))


def test_play_is_cloned_behind_the_demos(tmp_path):
  save_features(tmp_path / "train.npz", _demos(2, 4, 1.0))
  save_features(tmp_path / "play.npz", _demos(3, 6, 2.0))
  assert load_cloned(tmp_path, play=None).mask.shape == (2, 2, 4)
  cloned = load_cloned(tmp_path, play=tmp_path)
  assert cloned.feature.shape == (2, 5, 6, 7) and cloned.tasks == ("a", "b")
  np.testing.assert_array_equal(cloned.mask.sum(-1), [[4, 4, 6, 6, 6]] * 2)
  np.testing.assert_array_equal(cloned.feature[..., 0].max(-1), [[1, 1, 2, 2, 2]] * 2)
  assert not cloned.success[:, :2, 4:].any()
