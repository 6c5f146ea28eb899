"""A policy as a folder of compiled programs that needs none of this package to act."""

from __future__ import annotations

import inspect
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

import wam_jax
from wam_jax.acting import run_exported
from wam_jax.acting.actor import MAX_SEED, Actor, Observer
from wam_jax.acting.policy import ActingPolicy
from wam_jax.acting.step import act_step, start_state
from wam_jax.core import image
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host.numbers import whole
from wam_jax.storage import checksums

FORMAT = 1  # of policy.json
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
CALVIN_MEANING = {
  "rgb_static": "picture of the fixed camera, values 0 to 255, shrunk to this size by area averaging",
  "rgb_gripper": "picture of the wrist camera, likewise",
  "robot_obs": "tcp xyz [m], Euler angles [rad], gripper width [m], 7 joints [rad], last gripper action",
}
CALVIN_ACTION = (
  "relative motion in [-1, 1], xyz in units of 0.02 m and Euler angles in units of 0.05 rad; gripper 1 open, "
  "-1 closed"
)


class ExportError(Exception):
  """A policy cannot be written as asked; the text says why."""


def export_policy(
  policy: ActingPolicy, out: Any, platforms: Sequence[str] | None = None, batch: int = 1
) -> pathlib.Path:
  """Writes the folder.

  Args:
    policy: from `wam_jax.load_policy`.
    out: folder to make; must not exist or be empty.
    platforms: of PLATFORMS, on which the functions will run; None: this machine's.
    batch: B, robots side by side.

  Returns:
    The folder, written whole or not at all.

  Raises:
    ExportError: the folder holds files, or an unknown platform.
    ValueError: batch is below 1, or no whole number.
  """
  batch = whole("batch", batch, 1)
  platforms = tuple(platforms or (jax_export.default_export_platform(),))
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown:
    raise ExportError(f"unknown platform {', '.join(unknown)}; there are {', '.join(PLATFORMS)}")
  out = pathlib.Path(out).expanduser()
  try:
    with checksums.new_folder(out) as partial:
      _write(policy, partial, platforms, batch)
  except FileExistsError as error:
    raise ExportError(f"{out} {error.strerror}. Choose another --out") from error
  return out


def _write(policy: ActingPolicy, folder: pathlib.Path, platforms: Sequence[str], batch: int) -> None:
  """Fills the folder of `export_policy`."""
  params = _flat(policy.params)
  observation = _observation(policy, batch)
  seed = jax.ShapeDtypeStruct((), np.int32)
  start, step = (jax_export.export(jax.jit(f), platforms=platforms) for f in _functions(policy, batch))
  state = jax.eval_shape(_functions(policy, batch)[0], _shapes(params), seed)
  # Written twice: the first time tells which parameters the functions read (no decoder, no prior).
  first = start(_shapes(params), seed), step(_shapes(params), state, observation)
  used = {i for function in first for i in function.module_kept_var_idx}
  params = {name: params[name] for i, name in enumerate(sorted(params)) if i in used}
  exported = {"start": start(_shapes(params), seed), "step": step(_shapes(params), state, observation)}

  for name, function in exported.items():
    (folder / f"{name}.jaxexport").write_bytes(function.serialize())
  with (folder / "params.npz").open("wb") as file:
    np.savez(file, allow_pickle=False, **{name: np.asarray(value) for name, value in params.items()})
  about = describe(policy, batch, platforms, state, observation)
  (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
  checksums.write_manifest(folder)
  (folder / "run_policy.py").write_text(program(), encoding="utf-8")


def program() -> str:
  """Source of run_policy.py: that of `run_exported`, with what it uses of this package written into it."""
  parts: tuple[Any, ...] = (whole, image.area_taps, image.area_resize, Observer, Actor)
  used = "import abc\nimport functools\nimport operator\n\nimport jax.numpy as jnp\n\n"
  used += f"{MAX_SEED = }\n\n\n" + "\n\n".join(map(inspect.getsource, parts))
  before, after = inspect.getsource(run_exported).split("from wam_jax.acting.actor import Actor\n")
  return before + used + after


def describe(
  policy: ActingPolicy,
  batch: int,
  platforms: Sequence[str],
  state: Mapping[str, Any],
  observation: Mapping[str, Any],
) -> dict[str, Any]:
  """What policy.json says."""
  spec = lambda value: {"shape": list(value.shape), "dtype": str(value.dtype)}
  return {
    "format": FORMAT,
    "task": policy.task,
    "batch": batch,
    "chunk": policy.chunk,
    "platforms": list(platforms),
    "compute_dtype": "float32" if policy.model.dtype is None else np.dtype(policy.model.dtype).name,
    "seed": f"int32, 0 to {MAX_SEED}; the same seed and observations give the same actions",
    "observation": {
      name: spec(value) | {"meaning": _meaning(policy.embodiment, name)}
      for name, value in observation.items()
    },
    "state": {name: spec(value) for name, value in state.items()},
    "action": {
      "shape": [batch, policy.embodiment.action_size],
      "dtype": "float32",
      "ranges": policy.action_ranges.tolist(),
      "meaning": _meaning(policy.embodiment, "action"),
    },
    "embodiment": policy.embodiment.to_dict(),
    "made_from": policy.made_from,
    "wam_jax": wam_jax.__version__,
    "jax": jax.__version__,
  }


def _meaning(robot: Embodiment, name: str) -> str:
  """What an input, or the action, is, in words."""
  if robot == CALVIN:
    return CALVIN_ACTION if name == "action" else CALVIN_MEANING[name]
  if name == "robot_obs":
    return ", ".join(dimension.name for dimension in robot.state)
  if name == "action":
    return "; ".join(f"{d.name} in [{d.range[0]:g}, {d.range[1]:g}]" for d in robot.action)
  return f"picture of the camera {name}, values 0 to 255, resized to this size by area averaging"


def _functions(policy: ActingPolicy, batch: int) -> tuple[Any, Any]:
  """(start, step) on flat dicts of parameters."""

  def start(params: Any, seed: Any) -> Any:
    return start_state(policy.model, _nested(params)[0], batch, policy.chunk, seed)

  def step(params: Any, state: Any, observation: Any) -> Any:
    return act_step(policy.model, policy.policy, *_nested(params), state, observation)

  return start, step


def _observation(policy: ActingPolicy, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
  side = policy.image_size
  specs = {camera: jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8) for camera in policy.cameras}
  if policy.needs_robot_obs:
    specs["robot_obs"] = jax.ShapeDtypeStruct((batch, policy.state_size), np.float32)
  return specs


def _shapes(params: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in params.items()}


def _flat(params: tuple[Any, Any]) -> dict[str, Any]:
  """(world model's, policy's) nested dicts -> {"world_model/.../kernel": array}."""
  both = dict(zip(("world_model", "policy"), params, strict=True))
  return {"/".join(key.key for key in keys): leaf for keys, leaf in jax.tree.leaves_with_path(both)}


def _nested(flat: Mapping[str, Any]) -> tuple[Any, Any]:
  """The inverse of `_flat`, of what is left of it."""
  tree: dict[str, Any] = {"world_model": {}, "policy": {}}
  for name, value in flat.items():
    *path, last = name.split("/")
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = value
  return tree["world_model"], tree["policy"]
