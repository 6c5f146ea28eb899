"""Weights of LUMOS world models (github nematoli/lumos, PyTorch) to and from our parameters.

Neither torch nor LUMOS is needed; see `torch_file` for how a checkpoint is read.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wam_jax.embodiment import CAMERAS, ROBOT_OBS
from wam_jax.foreign.state_names import averaged_first, flat_entries
from wam_jax.foreign.torch_file import (
  Shape,
  StateDict,
  WeightsError,
  differences,
  read_weights,
  readings,
  titled,
)
from wam_jax.storage.saved_params import check_finite

Tree = dict[str, Any]

LUMOS_CAMERAS = dict(zip(("static", "gripper"), CAMERAS, strict=True))  # its name -> ours
OURS_ALONE = ("inverse_dynamics_head", "embedding_decoder", "robot_decoder")  # LUMOS has no such networks
FROM_LUMOS = "use a checkpoint of LUMOS's world model (scripts/train_wm.py), or save its state_dict()."


class LumosError(WeightsError):
  """Weights that cannot be used: says where, what is wrong and what to do."""


class MismatchError(LumosError):
  """Weights of another model than expected.

  Attributes:
    missing: torch name -> shape, expected and not there.
    unexpected: torch name -> shape, there and not expected.
    different: torch name -> (shape there, shape expected).
    foreign: parameters of our model that no LUMOS model has, by path.
  """

  missing: dict[str, Shape]
  unexpected: dict[str, Shape]
  different: dict[str, tuple[Shape, Shape]]
  foreign: dict[str, Shape]


def _under_prefix(path: str | os.PathLike[str], root: dict[Any, Any]) -> dict[str, Any]:
  """The entries of the world model, without what comes before their LUMOS names."""
  entries = flat_entries(root)
  found = {
    name.removesuffix(known) for name in entries for known in _BY_NAME if f".{name}".endswith(f".{known}")
  }
  if not found:
    shown = ", ".join(map(repr, list(entries)[:5])) + (", ..." if len(entries) > 5 else "")
    raise LumosError(
      path, f"holds no weights of a LUMOS world model; it has {shown or 'nothing'}.", fix=FROM_LUMOS
    )
  if len(chosen := averaged_first(found)) > 1:
    fix = "save the state dict of one of them as a file of its own."
    raise LumosError(path, f"holds {len(chosen)} world models, under {chosen}.", fix=fix)
  (prefix,) = chosen
  return {name.removeprefix(prefix): entries[name] for name in entries if name.startswith(prefix)}


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
  """Weights of a world model from a file, by LUMOS's names.

  Nothing in the file is run, whatever it is: a checkpoint's hyper-parameters and other objects are passed
  over. Storages that no weight refers to (an optimiser's) are not read.

  Args:
    path: a Lightning checkpoint or a saved state dict (torch.save since torch 1.6), safetensors, or an npz of
      a state dict, its names plain or under "param/". What precedes LUMOS's names is found from them: of the
      averaged copy if there is one. Other entries are left out.

  Returns:
    torch name -> read-only array in torch's layout and the file's dtype (bfloat16 as float32).

  Raises:
    LumosError: no such file, damaged, of another format, or without a world model in it.
  """
  select = lambda root: _under_prefix(path, root)
  return read_weights(path, select, error_type=LumosError, wanted=FROM_LUMOS)


# ---------------------------------------------------------------------------------------------
# The table: every weight of LUMOS, where it stands in our tree, and how its axes lie.
# torch: Linear [out, in], Conv2d [out, in, ky, kx], ConvTranspose2d [in, out, ky, kx].
# Ours: Dense [in, out], both convolutions [ky, kx, in, out], the transposed one not flipped.


@dataclasses.dataclass(frozen=True)
class _Weight:
  """One weight.

  Attributes:
    name: in LUMOS's state dict.
    path: in our tree.
    layout: a key of `_AXES`, or "fuse".
    fields: fields of config.world_model that its shape depends on.
  """

  name: str
  path: tuple[str, ...]
  layout: str
  fields: str


_AXES = {"vector": (0,), "dense": (1, 0), "conv": (2, 3, 1, 0), "deconv": (2, 3, 0, 1)}


def _layer(name: str, path: str, layout: str, fields: str, *, bias: bool = True) -> list[_Weight]:
  kernel = "scale" if layout == "vector" else "kernel"
  out = [_Weight(f"{name}.weight", (*path.split("/"), kernel), layout, fields)]
  if bias:
    out.append(_Weight(f"{name}.bias", (*path.split("/"), "bias"), "vector", fields))
  return out


def _table() -> list[_Weight]:
  out = []
  for theirs, camera in LUMOS_CAMERAS.items():
    for i in range(4):
      network = f"encoder.encoder_{theirs}.{2 * i}"
      out += _layer(network, f"encoder_{camera}/conv_{i}", "conv", "vision, cameras, depth")
  out += _layer("encoder.fuse.0", "fuse", "fuse", "depth, embed")
  out += _layer("encoder.fuse.1", "fuse_norm/norm", "vector", "embed")
  for theirs, camera in LUMOS_CAMERAS.items():
    # One layer under two names: the second one is checked and dropped.
    out += _layer(
      f"decoder.decoder_{theirs}.0", "decoder/shared", "dense", "vision, depth, deter, stoch, classes"
    )
    for i in range(4):
      network = f"decoder.decoder_{theirs}.{2 * i + 2}"
      out += _layer(network, f"decoder/{camera}/conv_{i}", "deconv", "vision, cameras, depth")
  cell, latent = "rssm_core.cell", "stoch, classes"
  out += [
    _Weight(f"{cell}.init_h", ("rssm", "initial_deter"), "vector", "learned_initial_state, deter"),
    _Weight(f"{cell}.init_z", ("rssm", "initial_stoch"), "vector", f"learned_initial_state, {latent}"),
  ]
  for theirs, ours in (("ih", "input"), ("hh", "recurrent")):
    path = ("rssm", "gru", ours)
    out += [
      _Weight(f"{cell}.gru.layers.0.weight_{theirs}", (*path, "kernel"), "dense", "deter, hidden"),
      _Weight(f"{cell}.gru.layers.0.bias_{theirs}", (*path, "bias"), "vector", "deter"),
    ]
  out += _layer(f"{cell}.z_mlp", "rssm/from_stoch", "dense", f"{latent}, hidden")
  out += _layer(f"{cell}.a_mlp", "rssm/from_action", "dense", "hidden", bias=False)
  out += _layer(f"{cell}.in_norm", "rssm/input_norm/norm", "vector", "hidden")
  for theirs, ours in (("prior", "prior"), ("post", "posterior")):
    out += _layer(f"{cell}.{theirs}_mlp_h", f"rssm/{ours}_hidden", "dense", "deter, hidden")
    out += _layer(f"{cell}.{theirs}_norm", f"rssm/{ours}_norm/norm", "vector", "hidden")
    out += _layer(f"{cell}.{theirs}_mlp", f"rssm/{ours}_output", "dense", f"hidden, {latent}")
  out += _layer(f"{cell}.post_mlp_e", "rssm/from_embed", "dense", "embed, proprio, hidden", bias=False)
  return out


_TABLE = _table()
_BY_NAME = {weight.name: weight for weight in _TABLE}
_CHANNELS = ("encoder_rgb_static", "conv_3", "bias")  # its length is that of the encoder's last channels


def _fuse_grid(inputs: int, channels: int) -> tuple[int, int, int]:
  """(cameras, side, side) of the encoders' last grids, from the inputs of the layer that joins them."""
  side = math.isqrt(inputs // (len(CAMERAS) * channels))
  return len(CAMERAS), side, side


def _to_ours(weight: _Weight, x: np.ndarray, channels: int) -> np.ndarray:
  if weight.layout == "fuse":  # torch flattens (channel, row, column), ours (row, column, channel)
    cameras, rows, columns = _fuse_grid(x.shape[1], channels)
    grid = x.reshape(x.shape[0], cameras, channels, rows, columns)
    return grid.transpose(1, 3, 4, 2, 0).reshape(-1, x.shape[0])
  return x.transpose(_AXES[weight.layout])


def _to_torch(weight: _Weight, x: np.ndarray, channels: int) -> np.ndarray:
  if weight.layout == "fuse":
    grid = x.reshape(*_fuse_grid(x.shape[0], channels), channels, x.shape[1])
    return grid.transpose(4, 0, 3, 1, 2).reshape(x.shape[1], -1)
  return x.transpose(np.argsort(_AXES[weight.layout]))


def _torch_shape(weight: _Weight, shape: Shape) -> Shape:
  axes = _AXES.get(weight.layout, (1, 0))
  if len(shape) != len(axes):
    return shape
  return tuple(shape[i] for i in np.argsort(axes))


def _flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
  out: dict[tuple[str, ...], Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      out |= _flatten(value, (*path, key))
    else:
      out[(*path, key)] = value
  return out


def _unflatten(leaves: Mapping[tuple[str, ...], Any]) -> Tree:
  tree: Tree = {}
  for path, leaf in leaves.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


# ---------------------------------------------------------------------------------------------


def _readings(state: Mapping[str, np.ndarray]) -> dict[str, int]:
  """Sizes that the shapes tell, as far as the weights are there."""
  cell = "rssm_core.cell"
  places = {
    "depth": ("encoder.encoder_static.0.weight", 0),
    "embed": ("encoder.fuse.0.weight", 0),
    "deter": (f"{cell}.gru.layers.0.weight_hh", 1),
    "stoch * classes": (f"{cell}.z_mlp.weight", 1),
    "hidden": (f"{cell}.z_mlp.weight", 0),
    "posterior's input": (f"{cell}.post_mlp_e.weight", 1),
  }
  return readings(state, places)


def sizes(state: Mapping[str, np.ndarray], classes: int) -> dict[str, Any]:
  """Fields of `config.world_model` that weights were made with.

  Args:
    state: from `read_state_dict`.
    classes: C. The shapes hold S * C only; this factor comes from the target config (LUMOS has 32).

  Returns:
    vision, cameras, depth, embed, deter, stoch, classes, hidden, proprio, learned_initial_state.

  Raises:
    LumosError: a weight that tells a size is missing, C does not divide S * C, or the posterior's input is
      neither the embedding nor the embedding and 15 numbers of robot state.
  """
  found, where = _readings(state), "LUMOS weights"
  names = ("depth", "embed", "deter", "stoch * classes", "hidden", "posterior's input")
  if absent := [name for name in names if name not in found]:
    raise LumosError(where, f"the weights that tell {', '.join(absent)} are missing.", fix=FROM_LUMOS)
  latent, appended = found["stoch * classes"], found["posterior's input"] - found["embed"]
  if classes < 1 or latent % classes:
    raise LumosError(
      where,
      f"the latent has {latent} numbers (stoch * classes), which {classes} classes do not divide.",
      fix="set world_model.classes to what the weights were trained with; LUMOS has 32.",
    )
  if appended not in (0, ROBOT_OBS):
    raise LumosError(
      where,
      f"the posterior sees {found['embed'] + appended} numbers, the embedding has {found['embed']}: only "
      f"{ROBOT_OBS} more (the robot state) or none are known.",
      fix="use a model trained with proprioception_dims robot_full or with_proprio=false.",
    )
  return {
    "vision": "conv",
    "cameras": CAMERAS,
    **{name: found[name] for name in ("depth", "embed", "deter", "hidden")},
    "stoch": latent // classes,
    "classes": classes,
    "proprio": "zscore" if appended else "none",
    "learned_initial_state": True,
  }


def _mismatch(
  source: str, state: Mapping[str, np.ndarray], expected: Mapping[tuple[str, ...], Shape]
) -> MismatchError | None:
  """All differences between the weights there and those expected (path -> shape in our layout)."""
  wanted = {w.name: _torch_shape(w, expected[w.path]) for w in _TABLE if w.path in expected}
  known = {w.path for w in _TABLE}
  foreign = {"/".join(path): shape for path, shape in expected.items() if path not in known}

  def fields(name: str) -> str:
    return f"world_model: {_BY_NAME[name].fields}" if name in _BY_NAME else "no part of a LUMOS world model"

  found = differences(state, wanted)
  rows = [f"{name} {list(shape)}" for name, shape in foreign.items()]
  lines = [*found.lines(fields), *titled("parameters of this model that LUMOS has not", rows)]
  if not lines:
    return None
  told = ", ".join(f"{name} {value}" for name, value in _readings(state).items()) or "nothing"
  error = MismatchError(
    source,
    "not the weights of this world model (names and shapes as in torch):\n" + "\n".join(lines) + "\n ",
    fix=f"set the fields named to what the weights were made with (they tell: {told}; LUMOS also has vision "
    "conv, both cameras, learned_initial_state), or use other weights.",
  )
  error.missing, error.unexpected = found.missing, found.unexpected
  error.different, error.foreign = found.different, foreign
  return error


def to_params(
  state: Mapping[str, np.ndarray], expected: Mapping[str, Any], source: str = "LUMOS weights"
) -> Tree:
  """LUMOS's weights as parameters of our world model.

  Args:
    state: from `read_state_dict`.
    expected: nested dicts with shapes at the leaves (`jax.eval_shape` of the model's initialisation).
    source: named in errors.

  Returns:
    Nested dicts of float32 arrays of what LUMOS has: without the inverse-dynamics head and the embedding's
    decoder, which `merge` leaves as initialised.

  Raises:
    MismatchError: any weight is missing, not expected, or of another shape; lists all of them.
    LumosError: the first layers of the two decoders differ; in LUMOS they are one.
    CheckpointError: NaN or infinity in a weight.
  """
  shapes = {path: tuple(leaf.shape) for path, leaf in _flatten(expected).items() if path[0] not in OURS_ALONE}
  if (error := _mismatch(source, state, shapes)) is not None:
    raise error
  (channels,) = shapes[_CHANNELS]
  leaves: dict[tuple[str, ...], np.ndarray] = {}
  for weight in _TABLE:
    value = np.ascontiguousarray(_to_ours(weight, np.asarray(state[weight.name]), channels), np.float32)
    if weight.path in leaves and not np.array_equal(leaves[weight.path], value):
      raise LumosError(
        source,
        f"'{weight.name}' differs from '{weight.name.replace('gripper', 'static')}': the decoders of the two "
        "cameras share their first layer in LUMOS and here.",
        fix="use weights of a model whose decoders share this layer.",
      )
    leaves[weight.path] = value
  tree = _unflatten(leaves)
  check_finite(tree, source)
  return tree


def to_state_dict(params: Mapping[str, Any]) -> StateDict:
  """Our parameters, or a gradient of theirs, by LUMOS's names and in torch's layout.

  The inverse-dynamics head and the embedding's decoder have no place in LUMOS and are left out. A model
  without a learned initial state starts from zeros, which is what is written for it. The layer shared by the
  decoders is written under both names.

  Args:
    params: nested dicts of arrays, conv vision and both cameras.

  Returns:
    torch name -> float32 array.

  Raises:
    LumosError: parameters that LUMOS has no place for, or lacks.
  """
  where = "parameters for LUMOS"
  leaves = {path: x for path, x in _flatten(params).items() if path[0] not in OURS_ALONE}
  initial = {w.path: w for w in _TABLE if w.name.startswith("rssm_core.cell.init_")}
  known = {w.path for w in _TABLE}
  foreign = sorted("/".join(path) for path in leaves.keys() - known)
  missing = sorted("/".join(path) for path in known - leaves.keys() - initial.keys())
  if foreign or missing:
    raise LumosError(
      where,
      f"LUMOS has no place for {foreign or 'none'}, and {missing or 'none'} are missing.",
      fix="only models with world_model.vision=conv, both cameras and 64 x 64 pictures can be written.",
    )
  (channels,) = leaves[_CHANNELS].shape
  if not initial.keys() <= leaves.keys():
    deter = leaves["rssm", "gru", "recurrent", "kernel"].shape[0]
    latent = leaves["rssm", "from_stoch", "kernel"].shape[0]
    leaves["rssm", "initial_deter"], leaves["rssm", "initial_stoch"] = np.zeros(deter), np.zeros(latent)
  to_torch: Callable[[_Weight], np.ndarray] = lambda w: _to_torch(w, np.asarray(leaves[w.path]), channels)
  return {w.name: np.ascontiguousarray(to_torch(w), np.float32) for w in _TABLE}


def merge(initial: Mapping[str, Any], imported: Mapping[str, Any]) -> Tree:
  """`initial` with the leaves of `imported` in their places; neither is changed.

  Raises:
    LumosError: `imported` has a leaf that `initial` has not, or of another shape.
  """
  leaves = _flatten(initial)
  for path, value in _flatten(imported).items():
    if path not in leaves or leaves[path].shape != value.shape:
      there = list(leaves[path].shape) if path in leaves else "absent"
      raise LumosError(
        "imported parameters", f"{'/'.join(path)} {list(value.shape)} is {there} in the initial ones."
      )
    leaves[path] = value
  return _unflatten(leaves)
