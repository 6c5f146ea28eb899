from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import returns


def column(*values):
  return jnp.asarray(values, jnp.float32)[:, None]


def flags(*values):
  return jnp.asarray(values, bool)[:, None]


# gamma 0.5, lambda 0.5, so that the recursion multiplies by 0.25.
REWARD, VALUE = column(1, 2, 3, 4), column(10, 20, 30, 40)
NEXT = column(20, 100, 40, 60)  # step 1 ended: its own last state is worth 100, not 30


def test_truncated_bootstraps_from_its_own_last_state_and_cuts_the_recursion():
  # deltas: 1 + 10 - 10 = 1; 2 + 50 - 20 = 32; 3 + 20 - 30 = -7; 4 + 30 - 40 = -6.
  # From the end: -6; -7 - 1.5 = -8.5; 32 (cut); 1 + 8 = 9.
  got = returns.gae(REWARD, VALUE, NEXT, flags(0, 0, 0, 0), flags(0, 1, 0, 0), 0.5, 0.5)
  np.testing.assert_allclose(got[0][:, 0], [9, 32, -8.5, -6])
  np.testing.assert_allclose(got[1][:, 0], [19, 52, 21.5, 34])


@pytest.mark.parametrize("truncated", [0, 1])
def test_terminated_cuts_both_also_when_truncated_too(truncated):
  # deltas: 1; 2 - 20 = -18; -7; -6.  From the end: -6; -8.5; -18 (cut); 1 - 4.5 = -3.5.
  got = returns.gae(REWARD, VALUE, NEXT, flags(0, 1, 0, 0), flags(0, truncated, 0, 0), 0.5, 0.5)
  np.testing.assert_allclose(got[0][:, 0], [-3.5, -18, -8.5, -6])


def test_horizons():
  args = REWARD, VALUE, NEXT, flags(0, 0, 0, 0), flags(0, 1, 0, 0)
  run = lambda name: returns.horizon_advantages(name, *args, jnp.array([60.0]), 0.5, 0.5)[0][:, 0]
  np.testing.assert_allclose(run("bootstrap"), [9, 32, -8.5, -6])
  np.testing.assert_allclose(run("terminal"), [-3.5, -18, -8.5, -6])
  # diwa: step 1 is followed by the next dream's 30: delta 2 + 15 - 20 = -3; -3 - 2.125 = -5.125;
  # 1 - 1.28125 = -0.28125.
  np.testing.assert_allclose(run("diwa"), [-0.28125, -5.125, -8.5, -6])
  with pytest.raises(ValueError, match="unknown horizon"):
    run("none")


def test_shape_mismatch_raises():
  off = flags(0, 0, 0, 0)
  with pytest.raises(ValueError, match="next_value"):
    returns.gae(REWARD, VALUE, NEXT[:1], off, off, 0.5, 0.5)
  with pytest.raises(ValueError, match="terminated"):
    returns.gae(REWARD, VALUE, NEXT, off[:, 0], off, 0.5, 0.5)
  with pytest.raises(ValueError, match="ret"):
    returns.scale_rewards(returns.init_reward_scale(3), REWARD, off, 0.9)


def test_reward_scale_is_the_standard_deviation_of_the_discounted_return():
  rng = np.random.default_rng(0)
  reward = rng.normal(3, 2, (50, 4)).astype(np.float32)
  first = rng.random((50, 4)) < 0.2
  first[0] = True
  state = returns.init_reward_scale(4)
  seen, ret = [], np.zeros(4)
  for part in (slice(0, 20), slice(20, 50)):
    scaled, state = returns.scale_rewards(
      state, jnp.asarray(reward[part]), jnp.asarray(first[part]), 0.9, 0.5
    )
    for r, f in zip(reward[part], first[part], strict=True):
      ret = np.where(f, 0, 0.9 * ret) + r
      seen.append(ret)
  deviation = np.std(seen, ddof=1)
  # DPPO divides by count - 1 but merges with count: a hair too large after the first call.
  np.testing.assert_allclose(jnp.sqrt(state.var), deviation, rtol=5e-3)
  np.testing.assert_allclose(scaled, np.clip(reward[20:] / deviation, -0.5, 0.5), rtol=5e-3)
  assert 0.2 < (np.abs(scaled) == 0.5).mean() < 0.8
  np.testing.assert_allclose(state.ret, ret, rtol=1e-5)


def test_no_reward_stays_finite():
  state = returns.init_reward_scale(2)
  zero = jnp.zeros((5, 2))
  scaled, state = returns.scale_rewards(state, zero, jnp.ones((5, 2), bool), 0.99)
  assert jnp.isfinite(scaled).all() and (scaled == 0).all() and jnp.isfinite(state.var)
