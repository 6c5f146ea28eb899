"""Reading of DPPO and DiWA policies, and the way of their weights into our noise network."""

from __future__ import annotations

import collections
import os
import pathlib

import jax
import numpy as np
import pytest
from torch_writer import Call, tensor, write_archive

from wam_jax.foreign import dppo
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.saved_params import check_params

FIXTURES = pathlib.Path(os.environ.get("WAM_FIXTURES", pathlib.Path(__file__).parents[1] / "golden/fixtures"))
FILE = FIXTURES / "dppo_policy.npz"
# The fixture's sizes, so that a wrong one below is wrong in one thing only.
SIZES = {"feature_size": 20, "chunk": 4, "hidden": 64, "blocks": 1, "time_dim": 16, "denoising_steps": 20}


@pytest.fixture(scope="module", name="fixture")
def _fixture():
  return dict(np.load(FILE, allow_pickle=False))


@pytest.fixture(scope="module", name="weights")
def _weights(fixture):
  """Torch name -> array of the pre-trained and the fine-tuned network."""

  def group(prefix):
    return {name.removeprefix(prefix): x for name, x in fixture.items() if name.startswith(prefix)}

  return {name: group(f"param/actor_{name}/") for name in ("base", "ft")}


def make_policy(**changes):
  return DiffusionPolicy(**SIZES | changes)


def expected_shapes(**changes):
  return jax.eval_shape(make_policy(**changes).init, jax.random.key(0))


def close(actual, expected, atol):
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def write(path, tree):
  """Saves nested dicts of arrays as torch.save would, without torch."""
  storages = {}

  def entry(x):
    if isinstance(x, dict):
      return collections.OrderedDict((name, entry(value)) for name, value in x.items())
    if not isinstance(x, np.ndarray):
      return x
    key = str(len(storages))
    storages[key] = np.ascontiguousarray(x, np.float32).tobytes()
    stride = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides)
    return tensor("Float", key, x.size, x.shape, stride)

  write_archive(path, entry(tree), storages)


def under(prefix, weights):
  return {f"{prefix}{name}": x for name, x in weights.items()}


@pytest.mark.parametrize("name", ["base", "ft"])
def test_imported_weights_predict_the_noise_that_dppo_predicts(fixture, name):
  state, prefix = dppo.read_state_dict(FILE, prefix=f"actor_{name}/")
  assert prefix == f"actor_{name}/"
  params = dppo.to_params(state, expected_shapes())
  check_params(params, expected_shapes(), "imported")
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
  eps = jax.jit(make_policy().eps)(
    params, fixture["input/eps_x"], fixture["input/eps_t"], fixture["input/state"][:, 0]
  )
  close(eps, fixture[f"eps/{name}"], 5e-6)
  other = {"base": "ft", "ft": "base"}[name]
  assert np.abs(eps - fixture[f"eps/{other}"]).max() > 1e-2  # the two are told apart


def same(read, weights):
  assert read.keys() == weights.keys()
  for name, x in weights.items():
    np.testing.assert_array_equal(read[name], x, err_msg=name)


def test_which_network_of_a_checkpoint_is_taken(tmp_path, weights):
  base, tuned, path = weights["base"], weights["ft"], tmp_path / "state_1.pt"
  critic = {"critic.Q1.layers.0.weight": np.ones((2, 3), np.float32)}
  # Pre-training: the averaged network.
  write(path, {"epoch": 1, "model": under("network.", tuned), "ema": under("network.", base)})
  read, prefix = dppo.read_state_dict(path)
  assert prefix == "ema.network."
  same(read, base)
  same(dppo.read_state_dict(path, prefix="model.network.")[0], tuned)
  # Fine-tuning: the pre-trained network, which is there twice.
  model = under("network.", base) | under("actor.", base) | under("actor_ft.", tuned) | critic
  write(path, {"itr": 1, "model": model})
  read, prefix = dppo.read_state_dict(path)
  assert prefix == "model.network."
  same(read, base)
  same(dppo.read_state_dict(path, prefix="model.actor_ft.")[0], tuned)
  write(path, {"model": {k.replace(".", "._orig_mod.", 1): x for k, x in model.items()}})  # compiled
  read, prefix = dppo.read_state_dict(path)
  assert prefix == "model.network."
  same(read, base)
  write(path, under("actor_ft.", tuned))  # the only one there
  same(dppo.read_state_dict(path)[0], tuned)
  # State dicts of the network alone, and of the fixture's npz.
  for prefix in ("", "actor.", "agent.policy.network."):
    write(path, under(prefix, base) | critic)
    read, found = dppo.read_state_dict(path)
    assert found == prefix
    same(read, base)
  assert dppo.read_state_dict(FILE)[1] == "actor_base/"
  np.savez(tmp_path / "plain.npz", **under("network.", base))
  same(dppo.read_state_dict(tmp_path / "plain.npz")[0], base)
  # Two policies that nothing tells apart.
  write(path, under("drawer.network.", base) | under("led.network.", tuned))
  with pytest.raises(dppo.DppoError, match=r"2 policies, under \['drawer.network.', 'led.network.'\]"):
    dppo.read_state_dict(path)
  with pytest.raises(dppo.DppoError, match="no policy under prefix 'x.'"):
    dppo.read_state_dict(path, prefix="x.")


def test_files_without_a_policy_and_what_is_in_them_is_not_run(tmp_path, weights):
  path, marker = tmp_path / "a.pt", tmp_path / "was_run"
  write(path, {"model": {"encoder.weight": np.ones(2, np.float32)}})
  with pytest.raises(dppo.DppoError, match="no diffusion policy of DPPO; it has 'model.encoder.weight'"):
    dppo.read_state_dict(path)
  with pytest.raises(dppo.DppoError, match="no such file") as error:
    dppo.read_state_dict(tmp_path / "missing.pt")
  assert isinstance(error.value, CheckpointError) and "missing.pt" in str(error.value)
  attack = Call(f"{os.system.__module__}.system", f"touch {marker}")
  write(path, {"cfg": attack, "ema": under("network.", weights["base"])})
  same(dppo.read_state_dict(path)[0], weights["base"])
  write(path, {"network.time_embedding.1.weight": attack})
  with pytest.raises(dppo.DppoError, match=r"'time_embedding.1.weight' is no plain tensor but a .*system"):
    dppo.read_state_dict(path)
  assert not marker.exists()


def test_a_file_that_torch_writes(tmp_path, fixture, weights):
  torch = pytest.importorskip("torch")
  state = {name: torch.nn.Parameter(torch.from_numpy(x)) for name, x in weights["base"].items()}
  checkpoint = {
    "epoch": 5000,
    "model": collections.OrderedDict((f"network.{name}", x + 1) for name, x in state.items()),
    "ema": collections.OrderedDict((f"network.{name}", x) for name, x in state.items()),
  }
  torch.save(checkpoint, tmp_path / "state_5000.pt")
  read, prefix = dppo.read_state_dict(tmp_path / "state_5000.pt")
  assert prefix == "ema.network."
  same(read, weights["base"])
  params = dppo.to_params(read, expected_shapes())
  args = fixture["input/eps_x"], fixture["input/eps_t"], fixture["input/state"][:, 0]
  close(make_policy().eps(params, *args), fixture["eps/base"], 5e-6)


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (
      {"hidden": 63},
      ["layers.0.bias: is [64], expected [63] (behaviour_cloning.hidden)", "they tell: hidden 64"],
    ),
    (
      {"feature_size": 21},
      ["mlp_mean.layers.0.weight: is [64, 64], expected [64, 65]", "world_model.deter", "feature 20"],
    ),
    (
      {"chunk": 5},
      [
        "mlp_mean.layers.2.weight: is [28, 64], expected [35, 64] (behaviour_cloning.hidden, chunk, blocks)",
        "chunk * action 28",
      ],
    ),
    (
      {"time_dim": 8},
      ["time_embedding.1.weight: is [32, 16], expected [16, 8] (behaviour_cloning.time_dim)", "time_dim 16"],
    ),
    (
      {"blocks": 2},
      ["missing", "mlp_mean.layers.3.weight [28, 64] (behaviour_cloning.hidden, chunk, blocks)", "blocks 1"],
    ),
  ],
)
def test_other_sizes_are_refused_with_the_field_that_speaks_for_them(weights, change, named):
  with pytest.raises(dppo.DppoError, match="not the weights of this policy") as error:
    dppo.to_params(weights["base"], expected_shapes(**change), "x.pt")
  for text in ("x.pt", *named):
    assert text in str(error.value)


def test_missing_and_unknown_weights_are_all_named(weights):
  state = dict(weights["base"])
  del state["time_embedding.3.bias"], state["mlp_mean.layers.0.bias"]
  state["mlp_mean.layers.1.norm1.weight"] = np.ones(64, np.float32)
  state["cond_mlp.0.weight"] = np.ones((3, 20), np.float32)
  with pytest.raises(dppo.DppoError) as error:
    dppo.to_params(state, expected_shapes())
  missing, unknown = str(error.value).split("not expected:")
  for name in ("time_embedding.3.bias [16]", "mlp_mean.layers.0.bias [64]"):
    assert name in missing
  for name in ("mlp_mean.layers.1.norm1.weight [64]", "cond_mlp.0.weight [3, 20]", "no layer norm"):
    assert name in unknown
  assert "of another shape" not in unknown
  state = weights["base"] | {"time_embedding.1.weight": np.ones(3, np.float32)}
  with pytest.raises(dppo.DppoError, match=r"time_embedding.1.weight: is \[3\], expected \[32, 16\]"):
    dppo.to_params(state, expected_shapes())
