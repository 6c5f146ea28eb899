"""The linear recursion: data that obey it give it back, and it predicts them without seeing them."""

import numpy as np
import pytest

from wam_jax.core import recursion


def moved(rng, coefficients, windows=9, frames=16):
  """Positions [W, T, 3] that obey the recursion, frame by frame, and the actions [W, T, 7]."""
  position = rng.normal(size=(windows, frames, 3))
  action = rng.uniform(-1, 1, (windows, frames, 7))
  for t in range(2, frames - 1):
    for axis in range(3):
      own, newest, middle, oldest = np.split(coefficients[axis], [1, 4, 7])
      change = own[0] * (position[:, t, axis] - position[:, t - 1, axis])
      for weight, when in ((newest, t), (middle, t - 1), (oldest, t - 2)):
        change = change + action[:, when, :3] @ weight
      position[:, t + 1, axis] = position[:, t, axis] + change
  return position, action


@pytest.fixture
def rng():
  return np.random.default_rng(6)


@pytest.fixture
def coefficients(rng):
  return np.append(rng.uniform(-0.8, 0.8, (3, 1)), rng.normal(size=(3, 9)), 1)


def test_coefficients_are_found_and_padding_is_not_looked_at(rng, coefficients):
  position, action = moved(rng, coefficients)
  lengths = np.array([16, 15, 9, 5, 4, 3, 2, 16, 1])
  mask = np.arange(16) < lengths[:, None]
  position[~mask], action[~mask] = 1e3 * rng.normal(size=((~mask).sum(), 3)), 50.0
  np.testing.assert_allclose(recursion.fit(position, action, mask), coefficients, rtol=1e-9, atol=1e-9)
  position[0, 7] += 0.1  # one frame off is seen
  assert np.abs(recursion.fit(position, action, mask) - coefficients).max() > 1e-3


def test_it_is_the_least_squares_solution(rng, coefficients):
  """With noise: no other coefficients have a smaller error."""
  position, action = moved(rng, coefficients)
  position += 0.1 * rng.normal(size=position.shape)
  mask = np.ones(position.shape[:2], bool)
  fitted = recursion.fit(position, action, mask)

  def error(candidate):  # one step ahead, each from the true frames before
    each = [recursion.predict(candidate, position[:, : t + 1], action[:, : t + 1], t) for t in range(3, 16)]
    return np.square(np.concatenate(each, 1) - position[:, 3:]).sum()

  least = error(fitted)
  assert least > 0.1
  for _ in range(20):
    assert error(fitted + 1e-3 * rng.normal(size=fitted.shape)) > least


@pytest.mark.parametrize("context", [3, 8, 15])
def test_open_loop_prediction_is_exact_and_sees_no_later_frame(rng, coefficients, context):
  position, action = moved(rng, coefficients)
  seen, known = position.copy(), action.copy()
  seen[:, context:] = np.nan
  seen[:, : context - 2] = np.nan  # the last change is all that counts
  known[:, : context - 3], known[..., 3:] = np.nan, np.nan  # translations from two frames before on
  known[:, -1] = np.nan  # leads out of the window
  predicted = recursion.predict(coefficients, seen, known, context)
  assert predicted.shape == (9, 16 - context, 3)
  np.testing.assert_allclose(predicted, position[:, context:], rtol=1e-8, atol=1e-8)


def test_windows_too_short_to_fit(rng):
  position, action = rng.normal(size=(4, 10, 3)), rng.normal(size=(4, 10, 7))
  for frames in (0, 3):
    with pytest.raises(ValueError, match="no window has 4 frames"):
      recursion.fit(position, action, np.broadcast_to(np.arange(10) < frames, (4, 10)))
  for length in (2, 3):
    mask = np.ones((4, length), bool)
    with pytest.raises(ValueError, match="no window has 4 frames"):
      recursion.fit(position[:, :length], action[:, :length], mask)


@pytest.mark.parametrize("context", [0, 2])
def test_a_context_without_three_actions_is_refused(rng, coefficients, context):
  with pytest.raises(ValueError, match="at least 3 frames"):
    recursion.predict(coefficients, rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 7)), context)
