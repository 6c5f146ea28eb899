"""Reading of LUMOS checkpoints, and the way of the weights into our parameters and back."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import Call, function, tensor, write_archive

from wam_jax.config import default_config
from wam_jax.foreign import lumos, safetensors_file
from wam_jax.nn.world_model import make_world_model
from wam_jax.storage.checksums import CheckpointError
from wam_jax.training import world_model as wm

SMALL = {"depth": 2, "embed": 64, "deter": 12, "stoch": 3, "classes": 4, "hidden": 10}
OTHER = {"depth": 3, "embed": 40, "deter": 9, "stoch": 2, "classes": 5, "hidden": 7, "proprio": "zscore"}
NAME = "rssm_core.cell.init_h"  # enough to be taken for a world model


def expected_shapes(**changes):
  """Shapes of our parameters, with the networks that LUMOS has not."""
  c = default_config().world_model
  c.update(
    {"learned_initial_state": True, "compute_dtype": "float32"}
    | {"embedding_image_weight": 1.0, "robot_obs_weight": 1.0}
    | changes
  )
  model = make_world_model(c)
  return jax.eval_shape(lambda: wm.init_params(model, jax.random.key(0)))


def random_like(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def random_state(**changes):
  return lumos.to_state_dict(random_like(expected_shapes(**changes)))


def lightning(state):
  """A checkpoint as Lightning writes it, with objects of classes that are not installed."""
  return {
    "epoch": 3,
    "state_dict": collections.OrderedDict(state),
    "hyper_parameters": Call(
      "omegaconf.dictconfig.DictConfig", {}, state={"_content": {"deter": 48}, "_metadata": None}
    ),
    "callbacks": {Call("not_installed.Key"): [Call("not_installed.Thing", 1, 2)]},
    "optimizer_states": [{"state": {0: {"exp_avg": tensor("Float", "missing", 6, (6,), (1,))}}}],
  }


def test_lightning_checkpoint_without_torch(tmp_path):
  values = np.arange(24, dtype=np.float32)
  state = {
    "encoder.fuse.0.bias": tensor("Float", "0", 24, (4,), (1,), offset=3),
    "encoder.fuse.0.weight": tensor("Float", "0", 24, (2, 3), (1, 4), offset=1),  # shared, transposed
    NAME: Call(
      "torch._utils._rebuild_parameter", tensor("Half", "1", 2, (2,), (1,)), True, collections.OrderedDict()
    ),
    "rssm_core.cell.init_z": tensor("BFloat16", "2", 2, (2,), (1,)),
    "rssm_core.cell.a_mlp.weight": tensor("Float", "0", 24, (), ()),
    "rssm_core.cell.z_mlp.bias": tensor("Float", "0", 24, (0, 3), (3, 1)),
  }
  storages = {
    "0": values.tobytes(),
    "1": np.array([1.5, -2.0], np.float16).tobytes(),
    "2": np.asarray(jnp.asarray([0.1, -3e38], jnp.bfloat16)).tobytes(),
  }
  write_archive(tmp_path / "last.ckpt", lightning(state), storages)
  before = set(sys.modules)
  read = lumos.read_state_dict(tmp_path / "last.ckpt")
  assert not {name for name in set(sys.modules) - before if "torch" in name or "omegaconf" in name}
  assert read.keys() == state.keys()
  np.testing.assert_array_equal(read["encoder.fuse.0.bias"], values[3:7])
  np.testing.assert_array_equal(read["encoder.fuse.0.weight"], values[1:13].reshape(3, 4).T[:2])
  np.testing.assert_array_equal(read[NAME], np.array([1.5, -2.0], np.float16))
  widened = np.asarray(jnp.asarray([0.1, -3e38], jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_array_equal(read["rssm_core.cell.init_z"], widened)
  assert read["rssm_core.cell.init_z"].dtype == np.float32
  assert read["rssm_core.cell.a_mlp.weight"] == 0 and read["rssm_core.cell.a_mlp.weight"].shape == ()
  assert read["rssm_core.cell.z_mlp.bias"].shape == (0, 3)


def test_big_endian_archive(tmp_path):
  data = np.array([1.5, -2.25], ">f4").tobytes()
  write_archive(tmp_path / "a.pt", {NAME: tensor("Float", "0", 2, (2,), (1,))}, {"0": data}, byteorder="big")
  np.testing.assert_array_equal(lumos.read_state_dict(tmp_path / "a.pt")[NAME], [1.5, -2.25])


def test_nothing_in_a_file_is_run(tmp_path):
  """Code in hyper-parameters, in a weight, and as the whole object."""
  marker = tmp_path / "was_run"
  attack = Call(f"{os.system.__module__}.system", f"touch {marker}")
  evil = {
    "evil": [attack, Call("builtins.exec", f"open({str(marker)!r}, 'w')"), Call("builtins.eval", "1/0")],
    "attributes": Call("builtins.getattr", function("os.system"), "__globals__", state={"a": 1}),
  }
  write_archive(
    tmp_path / "a.ckpt",
    {"hyper_parameters": evil, "state_dict": {NAME: tensor("Float", "0", 1, (1,), (1,))}},
    {"0": np.float32(7).tobytes()},
  )
  with zipfile.ZipFile(tmp_path / "a.ckpt") as archive, contextlib.suppress(Exception):
    pickle.Unpickler(archive.open("last/data.pkl")).load()
  assert marker.exists()  # it is a real attack
  marker.unlink()
  np.testing.assert_array_equal(lumos.read_state_dict(tmp_path / "a.ckpt")[NAME], [7.0])

  write_archive(tmp_path / "b.ckpt", attack, {})
  with pytest.raises(lumos.LumosError, match="holds an object of class .*system, not weights"):
    lumos.read_state_dict(tmp_path / "b.ckpt")
  write_archive(tmp_path / "c.ckpt", {NAME: attack}, {})
  with pytest.raises(lumos.LumosError, match=f"'{NAME}' is no plain tensor but a .*system"):
    lumos.read_state_dict(tmp_path / "c.ckpt")
  assert not marker.exists()


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (("Float", "0", 4, (2, 3), (3, 1)), "reaches number 5 of a storage of 4"),
    (("Float", "0", 4, (2,), (1,), 3), "reaches number 4"),
    (("Float", "7", 4, (2,), (1,)), "no item named 'last/data/7'"),
    (("QInt8", "0", 4, (2,), (1,)), "torch.QInt8Storage are not read"),
    (("Float", "0", 4, (2,), (-1,)), "damaged pickle"),
    (("Float", "0", 4, (2, 2), (1,)), "damaged pickle"),
  ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, entry, message):
  write_archive(tmp_path / "a.pt", {NAME: tensor(*entry)}, {"0": np.ones(4, np.float32).tobytes()})
  with pytest.raises(lumos.LumosError, match=message) as error:
    lumos.read_state_dict(tmp_path / "a.pt")
  assert str(tmp_path / "a.pt") in str(error.value) and error.value.fix


def test_prefixes(tmp_path):
  def write(*names):
    np.savez(tmp_path / "a.npz", **{name: np.full(2, i) for i, name in enumerate(names)})

  path = tmp_path / "a.npz"
  for prefix in ("", "world_model.", "model.", "agent._orig_mod."):
    write("actor.weight", f"{prefix}{NAME}", f"{prefix}encoder.fuse.0.bias")
    read = lumos.read_state_dict(path)
    if prefix:
      assert read.keys() == {NAME, "encoder.fuse.0.bias"}
    else:  # nothing can be told apart: the stranger is reported when the weights are put in
      assert read.keys() == {NAME, "encoder.fuse.0.bias", "actor.weight"}
    assert (read[NAME] == 1).all()
  write(f"world_model.{NAME}", f"target.{NAME}")
  with pytest.raises(lumos.LumosError, match=r"2 world models, under \['target\.', 'world_model\.'\]"):
    lumos.read_state_dict(path)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda w: {"epoch": 1, "model": w},
    lambda w: {"model_state_dict": w, "optimizer": {"state": {0: w}}},
    lambda w: {"state_dict": {f"world_model._orig_mod.{n}": x for n, x in w.items()}},
    lambda w: {n.replace(".", "._orig_mod.module.", 1): x for n, x in w.items()},
    lambda w: {"state_dict": {**_other("world_model.", w), **{f"ema_world_model.{n}": w[n] for n in w}}},
    lambda w: {"model": _other("", w), "model_ema": {"n_averaged": 3, **{f"module.{n}": w[n] for n in w}}},
    lambda w: {**_other("online_model.", w), "ema_model": {"module": w}},
    lambda w: {"n_averaged": 3, **{f"module.{n}": w[n] for n in w}},
  ],
)
def test_weights_where_people_keep_them(tmp_path, wrap):
  """Under a key, compiled, wrapped; and of two copies the averaged one."""
  weights = {name: tensor("Float", "0", 2, (2,), (1,)) for name in (NAME, "encoder.fuse.0.bias")}
  storages = {"0": np.ones(2, np.float32).tobytes(), "1": np.zeros(2, np.float32).tobytes()}
  write_archive(tmp_path / "a.ckpt", wrap(weights), storages)
  read = lumos.read_state_dict(tmp_path / "a.ckpt")
  assert read.keys() == weights.keys() and all((x == 1).all() for x in read.values())


def _other(prefix, weights):
  return {f"{prefix}{name}": tensor("Float", "1", 2, (2,), (1,)) for name in weights}


def test_dicts_that_hold_themselves_and_each_other(tmp_path):
  tree = {NAME: tensor("Float", "0", 2, (2,), (1,))}
  for _ in range(40):
    tree = {"state_dict": tree, **{f"a{i}": tree for i in range(30)}}
  tree["itself"] = tree
  write_archive(tmp_path / "a.ckpt", tree, {"0": np.ones(2, np.float32).tobytes()})
  with pytest.raises(lumos.LumosError, match="hold themselves"):
    lumos.read_state_dict(tmp_path / "a.ckpt")


def safetensors(entries, data=b"", header=None):
  """A file of the format: {name: (dtype, shape, offsets)}, and the numbers."""
  rows = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entries.items()}
  text = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode() if header is None else header
  return struct.pack("<Q", len(text)) + text + data


def test_safetensors(tmp_path):
  path, brain = tmp_path / "a.safetensors", np.asarray(jnp.asarray([0.1, -3e38], jnp.bfloat16))
  values = np.arange(6, dtype=np.float32)
  entries = {
    "model." + NAME: ("F32", [2, 3], [0, 24]),
    "model.encoder.fuse.0.bias": ("BF16", [2], [24, 28]),
    "model.rssm_core.cell.a_mlp.weight": ("F16", [], [28, 30]),
    "model.rssm_core.cell.z_mlp.bias": ("I64", [0, 3], [30, 30]),
    "critic.weight": ("F8_E4M3", [2], [30, 32]),
  }
  data = values.tobytes() + brain.tobytes() + np.float16(1.5).tobytes() + b"xx"
  path.write_bytes(safetensors(entries, data))
  read = lumos.read_state_dict(path)
  np.testing.assert_array_equal(read[NAME], values.reshape(2, 3))
  np.testing.assert_array_equal(read["encoder.fuse.0.bias"], brain.astype(np.float32))
  assert read["rssm_core.cell.a_mlp.weight"] == 1.5 and read["rssm_core.cell.z_mlp.bias"].shape == (0, 3)
  assert len(read) == 4 and not read[NAME].flags.writeable
  path.write_bytes(safetensors({NAME: ("F8_E4M3", [2], [0, 2])}, b"xx"))
  with pytest.raises(lumos.LumosError, match=f"'{NAME}' cannot be read: numbers of type F8_E4M3"):
    lumos.read_state_dict(path)


def test_safetensors_written_are_those_read(tmp_path):
  rng, path = np.random.default_rng(0), tmp_path / "a.safetensors"
  arrays = {"b/é": rng.normal(size=(2, 3)).astype(np.float16), "a": rng.normal(size=5).astype(np.float32)}
  arrays |= {"flag": np.array([True, False, True]), "step": np.array(7), "none": np.zeros((0, 4), np.uint16)}
  safetensors_file.write_arrays(path, arrays)
  entries = safetensors_file.read_entries(path)
  assert set(entries) == set(arrays)
  for name, entry in entries.items():
    read = safetensors_file.read_array(path, entry)
    assert read.dtype == arrays[name].dtype and entry.begin % read.itemsize == 0, name
    np.testing.assert_array_equal(read, arrays[name])
  with pytest.raises(KeyError):
    safetensors_file.write_arrays(path, {"a": np.array([1j])})


ROW = b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
  "content",
  [
    safetensors({NAME: ("F32", [2], [0, 8])}, b"1234"),  # cut off
    safetensors({NAME: ("F32", [1], [0, 4])}, b"12345678"),  # more than is named
    safetensors({NAME: ("F32", [2], [0, 4])}, b"1234"),  # of another size
    safetensors({NAME: ("F32", [2**61, 2], [0, 0])}),  # a product that overflows
    safetensors({NAME: ("F32", [2**62, 0], [0, 0])}),  # nothing, of a shape that no array can have
    safetensors({NAME: ("F32", [0] * 70, [0, 0])}),
    safetensors({NAME: ("F32", [-1], [0, -4])}),
    safetensors({NAME: ("F32", [True], [0, 4])}, b"1234"),
    safetensors({NAME: ("F32", [1], [4, 8])}, b"12345678"),  # a gap
    safetensors({NAME: ("F32", [1], [0, 4]), "x": ("F32", [1], [0, 4])}, b"1234"),  # overlapping
    safetensors({NAME: (["F32"], [1], [0, 4])}, b"1234"),
    safetensors({NAME: ("F32", 1, [0, 4])}, b"1234"),
    safetensors({NAME: ("F32", [1], [0, 4, 8])}, b"1234"),
    safetensors({}, b"1234", b'{"%s": %s, "%s": %s}' % (NAME.encode(), ROW, NAME.encode(), ROW)),
    safetensors({}, b"", b'{"%s": 1}' % NAME.encode()),
    safetensors({}, b"", b"{" * 100_000),
    safetensors({}, b"", b'{"a": ' * 100_000),
    safetensors({}, b"", b'{"\xff'),
  ],
)
def test_safetensors_that_break_the_format(tmp_path, content):
  path = tmp_path / "a.safetensors"
  path.write_bytes(content)
  with pytest.raises(lumos.LumosError, match="not a whole safetensors file") as error:
    lumos.read_state_dict(path)
  assert str(path) in str(error.value) and error.value.fix


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 183\n", "git lfs pull"),
    (b"/annex/objects/SHA256E-s1--0.ckpt\n", "git annex get"),
    (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "a web page"),
    (b"\xef\xbb\xbf<HTML>", "a web page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "answer of a server"),
    (b'{"error": "Invalid username or password."}', "JSON"),
    (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
    (b"\0" * 257 + b"ustar\0", "tar archive"),
    (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before torch 1.6"),
    (b"\x80\x04\x95", "pickle"),
    (b"", "empty"),
    (b"\0\1\2\3", "damaged"),
  ],
)
def test_files_that_are_no_checkpoint_are_called_what_they_are(tmp_path, content, words):
  (tmp_path / "a.ckpt").write_bytes(content)
  with pytest.raises(lumos.LumosError, match=words) as error:
    lumos.read_state_dict(tmp_path / "a.ckpt")
  assert "a.ckpt" in str(error.value) and error.value.fix


def test_npz_under_param(tmp_path):
  np.savez(tmp_path / "a.npz", **{f"param/{NAME}": np.ones(2), f"grad/{NAME}": np.zeros(2), "input/x": 1})
  read = lumos.read_state_dict(tmp_path / "a.npz")
  assert read.keys() == {NAME} and (read[NAME] == 1).all()


def test_files_that_cannot_be_read(tmp_path):
  path = tmp_path / "x.ckpt"

  def refuses(match, data=None):
    if data is not None:
      path.write_bytes(data)
    with pytest.raises(lumos.LumosError, match=match) as error:
      lumos.read_state_dict(path)
    assert str(path) in str(error.value)
    assert isinstance(error.value, CheckpointError)

  refuses("no such file")
  refuses(
    "neither a file of torch.save nor an npz", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
  )  # before 1.6
  write_archive(path, {NAME: tensor("Float", "0", 2, (2,), (1,))}, {"0": np.ones(2, np.float32).tobytes()})
  whole = path.read_bytes()
  refuses("neither a file of torch.save nor an npz", whole[:-40])
  refuses("damaged archive", whole.replace(np.ones(2, np.float32).tobytes(), b"\1" * 8))
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("last/data.pkl", b"\x80\x02}q\x00(X")
  refuses("damaged pickle")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("readme.txt", "x")
  refuses("neither of torch.save nor an npz")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("m/data.pkl", b"")
    archive.writestr("m/constants.pkl", b"")
  refuses("TorchScript")
  write_archive(path, [1, 2], {})
  refuses("holds a list, not a state dict")
  write_archive(path, {"state_dict": {"policy.weight": 1}}, {})
  refuses("no weights of a LUMOS world model; it has 'state_dict.policy.weight'")
  with path.open("wb") as file:
    np.savez(file, **{NAME: np.array([object()])})
  refuses("not an npz of plain arrays")
  path.unlink()
  path.mkdir()
  refuses("cannot be read")


def test_files_that_torch_writes(tmp_path):
  """All sizes of our tree through torch's own writer, in all float types, shared and not contiguous."""
  torch = pytest.importorskip("torch")
  state = {name: torch.from_numpy(x) for name, x in random_state(**SMALL).items()}
  for suffix in ("weight", "bias"):  # one layer under two names
    state[f"decoder.decoder_gripper.0.{suffix}"] = state[f"decoder.decoder_static.0.{suffix}"]
  name = "rssm_core.cell.z_mlp.weight"
  state[name] = state[name].t().contiguous().t()
  assert not state[name].is_contiguous()
  state[NAME] = torch.nn.Parameter(torch.cat([torch.zeros(2), state[NAME]])[2:])
  for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    cast = {name: x if kind == torch.float32 else x.to(kind) for name, x in state.items()}
    checkpoint = {
      "state_dict": collections.OrderedDict((f"world_model.{name}", x) for name, x in cast.items()),
      "hyper_parameters": types.SimpleNamespace(path=pathlib.PurePosixPath("x"), device=torch.device("cpu")),
      "scaler": torch.ones(2, dtype=torch.complex64),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
      torch.load(tmp_path / "last.ckpt", weights_only=True)
    read = lumos.read_state_dict(tmp_path / "last.ckpt")
    assert read.keys() == state.keys()
    for name, x in cast.items():
      np.testing.assert_array_equal(read[name], x.detach().to(torch.float64).numpy(), err_msg=name)
  torch.save(state, tmp_path / "plain.pt")
  plain = lumos.to_params(lumos.read_state_dict(tmp_path / "plain.pt"), expected_shapes(**SMALL))
  np.testing.assert_array_equal(plain["rssm"]["initial_deter"], state[NAME].detach().numpy())
  torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
  with pytest.raises(lumos.LumosError, match="object of class torch.nn.modules.linear.Linear, not weights"):
    lumos.read_state_dict(tmp_path / "module.pt")
  torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
  with pytest.raises(lumos.LumosError, match="before torch 1.6"):
    lumos.read_state_dict(tmp_path / "old.pt")


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, OTHER], ids=["small", "other"])
def test_round_trip(size):
  shapes = expected_shapes(**size)
  params = random_like(shapes, seed=1)
  state = lumos.to_state_dict(params)
  back = lumos.to_params(state, shapes)
  assert back.keys() == params.keys() - set(lumos.OURS_ALONE)
  jax.tree.map(np.testing.assert_array_equal, back, {name: params[name] for name in back})
  again = lumos.to_state_dict(back)
  assert again.keys() == state.keys()
  for name, x in state.items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)
    assert x.dtype == np.float32 and x.flags.c_contiguous


@pytest.mark.parametrize("size", [SMALL, OTHER], ids=["small", "other"])
def test_sizes(size):
  state = random_state(**size)
  found = lumos.sizes(state, size["classes"])
  assert found == {
    "vision": "conv",
    "cameras": ("rgb_static", "rgb_gripper"),
    "proprio": "none",
    "learned_initial_state": True,
    **size,
  }
  default_config().world_model.update(found)  # all are fields, of the right type
  with pytest.raises(lumos.LumosError, match="which 7 classes do not divide"):
    lumos.sizes(state, 7)
  wide = state | {"rssm_core.cell.post_mlp_e.weight": np.ones((size["hidden"], size["embed"] + 3))}
  with pytest.raises(lumos.LumosError, match="15 more"):
    lumos.sizes(wide, size["classes"])
  del state["encoder.encoder_static.0.weight"]
  with pytest.raises(lumos.LumosError, match="depth are missing"):
    lumos.sizes(state, size["classes"])


def test_orientation_of_the_joining_layer():
  """A number at (channel, row, column) of torch's flattening comes to (row, column, channel) of ours."""
  depth, embed = SMALL["depth"], SMALL["embed"]
  channels, state = 8 * depth, random_state(**SMALL)
  weight = state["encoder.fuse.0.weight"].reshape(embed, 2, channels, 2, 2)
  params = lumos.to_params(state, expected_shapes(**SMALL))
  kernel = params["fuse"]["kernel"].reshape(2, 2, 2, channels, embed)
  assert kernel[1, 0, 1, 5, 3] == weight[3, 1, 5, 0, 1]
  conv = params["encoder_rgb_gripper"]["conv_1"]["kernel"]
  assert conv[3, 0, 1, 2] == state["encoder.encoder_gripper.2.weight"][2, 1, 3, 0]
  transposed = params["decoder"]["rgb_static"]["conv_2"]["kernel"]
  assert transposed[5, 0, 1, 0] == state["decoder.decoder_static.6.weight"][1, 0, 5, 0]


def test_all_mismatches_are_listed():
  state = random_state(**SMALL)
  del state["encoder.fuse.1.bias"], state["rssm_core.cell.post_mlp.weight"]
  state["actor.weight"] = np.ones((2, 2))
  state["rssm_core.cell.a_mlp.weight"] = np.ones((10, 6))
  with pytest.raises(lumos.MismatchError) as caught:
    lumos.to_params(state, expected_shapes(**(SMALL | {"embed": 63})), source="last.ckpt")
  error, text = caught.value, str(caught.value)
  assert text.startswith("last.ckpt: ")
  assert error.missing == {"encoder.fuse.1.bias": (63,), "rssm_core.cell.post_mlp.weight": (12, 10)}
  assert error.unexpected == {"actor.weight": (2, 2)}
  assert error.different == {
    "encoder.fuse.0.weight": ((64, 128), (63, 128)),
    "encoder.fuse.0.bias": ((64,), (63,)),
    "encoder.fuse.1.weight": ((64,), (63,)),
    "rssm_core.cell.post_mlp_e.weight": ((10, 64), (10, 63)),
    "rssm_core.cell.a_mlp.weight": ((10, 6), (10, 7)),
  }
  for name in (*error.missing, *error.unexpected, *error.different):
    assert name in text
  assert "encoder.fuse.0.weight: is [64, 128], expected [63, 128] (world_model: depth, embed)" in text
  assert "embed 64" in text  # what the weights tell
  assert not error.foreign


def test_another_kind_of_model_is_named():
  state = random_state(**SMALL)
  with pytest.raises(
    lumos.MismatchError, match=r"init_h \[12\] \(world_model: learned_initial_state, deter\)"
  ):
    lumos.to_params(state, expected_shapes(**SMALL, learned_initial_state=False))
  with pytest.raises(lumos.MismatchError) as caught:
    lumos.to_params(state, expected_shapes(**SMALL, vision="patch"))
  assert "encoder_rgb_static/patch_0/kernel" in caught.value.foreign
  assert "encoder.encoder_static.0.weight" in caught.value.unexpected
  with pytest.raises(lumos.MismatchError) as caught:
    lumos.to_params(state, expected_shapes(**SMALL, cameras=("rgb_gripper",)))
  assert "encoder.encoder_static.0.weight" in caught.value.unexpected
  with pytest.raises(lumos.MismatchError, match="proprio") as caught:
    lumos.to_params(state, expected_shapes(**SMALL, proprio="zscore"))
  assert caught.value.different.keys() == {"rssm_core.cell.post_mlp_e.weight"}


@pytest.mark.parametrize("suffix", ["weight", "bias"])
def test_untied_decoders_are_refused(suffix):
  state = random_state(**SMALL)
  state[f"decoder.decoder_gripper.0.{suffix}"] = state[f"decoder.decoder_gripper.0.{suffix}"] + 1e-3
  with pytest.raises(lumos.LumosError, match=f"decoder_gripper.0.{suffix}' differs from"):
    lumos.to_params(state, expected_shapes(**SMALL))


def test_export():
  params = random_like(expected_shapes(**SMALL, learned_initial_state=False))
  state = lumos.to_state_dict(params)
  assert not state[NAME].any() and state[NAME].shape == (12,)
  assert state["rssm_core.cell.init_z"].shape == (12,)
  del params["rssm"]["from_action"]
  with pytest.raises(lumos.LumosError, match="rssm/from_action/kernel'] are missing"):
    lumos.to_state_dict(params)
  with pytest.raises(lumos.LumosError, match="no place for .*patch_0"):
    lumos.to_state_dict(random_like(expected_shapes(**SMALL, vision="patch")))


def test_merge():
  initial = {"a": {"w": np.zeros(2), "b": np.zeros(3)}, "head": np.zeros(1)}
  merged = lumos.merge(initial, {"a": {"w": np.ones(2)}})
  assert (merged["a"]["w"] == 1).all() and merged["a"]["b"] is initial["a"]["b"]
  assert merged["head"] is initial["head"] and not initial["a"]["w"].any()
  with pytest.raises(lumos.LumosError, match=r"a/w \[3\] is \[2\]"):
    lumos.merge(initial, {"a": {"w": np.ones(3)}})
  with pytest.raises(lumos.LumosError, match=r"c \[3\] is absent"):
    lumos.merge(initial, {"c": np.ones(3)})
