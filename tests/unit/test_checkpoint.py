from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam_jax.io.checkpoint import Checkpointer, CheckpointError, load_params, save_params
from wam_jax.types import TrainState


def make_state(seed, width=3):
  params = {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (2, width)), "bias": jnp.arange(3.0)}}
  return TrainState(step=jnp.int32(seed), params=params, opt_state=optax.adam(1e-3).init(params))


def test_params_round_trip(tmp_path):
  tree = {"a": {"w": jax.random.normal(jax.random.key(0), (3, 2)), "n": np.arange(4)}, "b": jnp.bfloat16(1.5)}
  save_params(tmp_path / "params", tree)
  save_params(tmp_path / "params", tree)  # replaces
  loaded = load_params(tmp_path / "params")
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
  jax.tree.map(np.testing.assert_array_equal, tree, loaded)
  assert loaded["b"].dtype == jnp.bfloat16


def test_state_round_trip_keeps_two(tmp_path):
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    assert checkpointer.latest_step() is None
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step))
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    assert checkpointer.latest_step() == 3
    restored = checkpointer.restore(make_state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(3))
    assert type(restored.opt_state[0]) is type(make_state(0).opt_state[0])
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0), step=2), make_state(2))
    with pytest.raises(CheckpointError):
      checkpointer.restore(make_state(0), step=1)


def test_missing_and_wrong_structure(tmp_path):
  with pytest.raises(CheckpointError, match="no parameters"):
    load_params(tmp_path / "nothing")
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    with pytest.raises(CheckpointError, match="no checkpoint"):
      checkpointer.restore(make_state(0))
    checkpointer.save(1, make_state(1))
    with pytest.raises(CheckpointError, match="does not fit"):
      checkpointer.restore(make_state(0, width=4))
    with pytest.raises(CheckpointError, match="ema_params"):
      checkpointer.restore(make_state(0).replace(ema_params={"w": jnp.ones(2)}))


def test_truncated_file_raises(tmp_path):
  save_params(tmp_path / "params", {"w": jax.random.normal(jax.random.key(0), (64, 64))})
  largest = max((f for f in (tmp_path / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  with pytest.raises(CheckpointError, match="cannot be read"):
    load_params(tmp_path / "params")
