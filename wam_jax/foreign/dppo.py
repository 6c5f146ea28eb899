"""Weights of DPPO's and DiWA's diffusion policies (PyTorch) as parameters of our noise network.

Neither torch nor their code is needed; see `torch_file` for how a checkpoint is read. Their network is
`DiffusionMLP` with residual_style=True and no layer norm. Its first layer acts on [chunk, time embedding,
feature] side by side; ours is held as one matrix for each of the three.

The number of denoising steps leaves no trace in the weights: `behaviour_cloning.denoising_steps` must be
what the policy was trained with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.foreign.state_names import averaged_first, flat_entries
from wam_jax.foreign.torch_file import (
  Shape,
  StateDict,
  WeightsError,
  differences,
  read_weights,
  readings,
)
from wam_jax.storage.saved_params import check_finite

Tree = dict[str, Any]

MARK = "time_embedding.1.weight"  # by this name a noise network is known
FIRST = "mlp_mean.layers.0"
FIRST_PARTS = ("chunk_in", "time_in", "feature_in")  # in the order of their inputs
FROM_DPPO = (
  "use a checkpoint of DPPO's or DiWA's pre-training (checkpoint/state_*.pt), or save its state_dict()."
)
ALONE = "save the state dict of one of them as a file of its own."


class DppoError(WeightsError):
  """Weights that cannot be used: says where, what is wrong and what to do."""


def _last(prefix: str) -> str:
  """Name of the network that a prefix leads to: 'ema.network.' -> 'network'."""
  return prefix.rstrip("./").replace("/", ".").rsplit(".", 1)[-1]


def _cloned_prefix(path: str | os.PathLike[str], found: list[str]) -> str:
  """Which of several networks in a file is the pre-trained policy.

  The averaged weights ("ema") go before the others, as when DPPO loads them. A fine-tuned file holds the
  pre-trained network twice, as `network` and `actor`, beside the fine-tuned `actor_ft`.
  """
  left = averaged_first(found)
  left = [prefix for prefix in left if not _last(prefix).endswith("_ft")] or left
  twins = {prefix.removesuffix("network.") + "actor." for prefix in left if _last(prefix) == "network"}
  left = [prefix for prefix in left if prefix not in twins]
  if len(left) > 1:
    raise DppoError(path, f"holds {len(left)} policies, under {sorted(left)}.", fix=ALONE)
  return left[0]


def read_state_dict(path: str | os.PathLike[str], *, prefix: str | None = None) -> tuple[StateDict, str]:
  """Weights of one noise network from a file, by DPPO's names. Nothing in the file is run.

  Args:
    path: a checkpoint of pre-training or fine-tuning, or a saved state dict (torch.save since torch 1.6),
      safetensors, or an npz of a state dict, its names plain or under "param/".
    prefix: what precedes the network's names in the file ("model.actor_ft."), with the names of the dicts
      that hold them; None: the pre-trained network, averaged if there is an average.

  Returns:
    torch name -> read-only array in torch's layout, and the prefix taken.

  Raises:
    DppoError: no such file, damaged, of another format, or without such a network in it.
  """
  taken = ""

  def select(root: dict[Any, Any]) -> dict[str, Any]:
    nonlocal taken
    entries = flat_entries(root)
    ends = [name.removesuffix(MARK) for name in entries if name.endswith(MARK)]
    found = [prefix for prefix in ends if prefix == "" or prefix[-1] in "./"]
    if not found:
      shown = ", ".join(repr(name) for name in list(entries)[:5]) + (", ..." if len(entries) > 5 else "")
      raise DppoError(path, f"holds no diffusion policy of DPPO; it has {shown or 'nothing'}.", fix=FROM_DPPO)
    if prefix is not None and prefix not in found:
      raise DppoError(path, f"holds no policy under prefix '{prefix}', but under {sorted(found)}.")
    taken = _cloned_prefix(path, found) if prefix is None else prefix
    # A network without a prefix may share the file with a critic and with whole models in dicts.
    parts = ("time_embedding.", "mlp_mean.", "cond_mlp.") if taken == "" else ("",)
    return {
      name.removeprefix(taken): value
      for name, value in entries.items()
      if name.startswith(taken) and name.removeprefix(taken).startswith(parts)
    }

  weights = read_weights(path, select, error_type=DppoError, wanted=FROM_DPPO)
  return weights, taken


def _layers(blocks: int) -> dict[str, tuple[str, ...]]:
  """torch name of each layer but the first -> its path in our tree."""
  layers: dict[str, tuple[str, ...]] = {
    "time_embedding.1": ("time_first",),
    "time_embedding.3": ("time_second",),
  }
  for i in range(blocks):
    layers[f"mlp_mean.layers.{i + 1}.l1"] = ("body", f"block{i}_first")
    layers[f"mlp_mean.layers.{i + 1}.l2"] = ("body", f"block{i}_second")
  return layers | {f"mlp_mean.layers.{blocks + 1}": ("body", "output")}


def _fields(name: str) -> str:
  """The config fields that speak for the shape of a weight, or for its being there."""
  layer = name.rpartition(".")[0]
  if layer.startswith("time_embedding."):
    return "behaviour_cloning.time_dim"
  if name == f"{FIRST}.weight":
    return "behaviour_cloning.hidden, chunk, time_dim; the feature by world_model.deter, stoch, classes"
  if layer == FIRST:
    return "behaviour_cloning.hidden"
  if layer.startswith("mlp_mean.layers."):
    inside = layer.endswith((".l1", ".l2"))
    return f"behaviour_cloning.hidden, {'' if inside else 'chunk, '}blocks"
  return "no part of the policy known here: residual_style=True, no layer norm, no cond_mlp"


def _readings(state: Mapping[str, np.ndarray]) -> dict[str, int]:
  """Sizes that the shapes tell, as far as the weights are there."""
  blocks = sum(name.endswith(".l1.weight") for name in state)
  places = {
    "hidden": (f"{FIRST}.weight", 0),
    "time_dim": (MARK, 1),
    "chunk * action": (f"mlp_mean.layers.{blocks + 1}.weight", 0),
    "inputs": (f"{FIRST}.weight", 1),
  }
  found = readings(state, places)
  inputs = found.pop("inputs", None)
  if inputs is not None and {"time_dim", "chunk * action"} <= found.keys():
    found["feature"] = inputs - found["time_dim"] - found["chunk * action"]
  return found | {"blocks": blocks}


def to_params(
  state: Mapping[str, np.ndarray], expected: Mapping[str, Any], source: str = "DPPO weights"
) -> Tree:
  """Weights of a noise network as parameters of ours.

  Args:
    state: from `read_state_dict`.
    expected: nested dicts with shapes at the leaves (`jax.eval_shape` of the policy's `init`).
    source: named in errors.

  Returns:
    Nested dicts of float32 arrays.

  Raises:
    DppoError: any weight is missing, not expected, or of another shape; lists all of them, each with the
      config field that speaks for it.
    CheckpointError: NaN or infinity in a weight.
  """
  layers = _layers(sum(name.endswith("_first") and name.startswith("block") for name in expected["body"]))
  kernels = [tuple(expected[part]["kernel"].shape) for part in FIRST_PARTS]
  rows, hidden = [shape[0] for shape in kernels], kernels[0][1]
  wanted: dict[str, Shape] = {f"{FIRST}.weight": (hidden, sum(rows)), f"{FIRST}.bias": (hidden,)}
  for name, path in layers.items():
    node = expected
    for key in path:
      node = node[key]
    inputs, outputs = node["kernel"].shape
    wanted |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

  lines = differences(state, wanted).lines(_fields)
  if lines:
    told = ", ".join(f"{name} {value}" for name, value in _readings(state).items())
    raise DppoError(
      source,
      "not the weights of this policy (names and shapes as in torch):\n" + "\n".join(lines) + "\n ",
      fix=f"set the fields named to what the weights were made with (they tell: {told}), or use others.",
    )

  def array(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)

  parts = np.split(np.asarray(state[f"{FIRST}.weight"]).T, np.cumsum(rows)[:-1])
  tree: Tree = {name: {"kernel": array(part)} for name, part in zip(FIRST_PARTS, parts, strict=True)}
  tree["feature_in"]["bias"] = array(state[f"{FIRST}.bias"])
  for name, path in layers.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = {"kernel": array(state[f"{name}.weight"].T), "bias": array(state[f"{name}.bias"])}
  check_finite(tree, source)
  return tree
