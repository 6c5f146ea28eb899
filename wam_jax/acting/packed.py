"""All policies of a run in one small file: half-precision weights, of the world model only what acting reads.

Decoders, critic and the inverse-dynamics head are left out. A file of the `demo` preset has 12 MB; one comes
with the package. `python -m wam_jax.pack` makes them.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from wam_jax.acting import models
from wam_jax.acting.policy import ActingPolicy, PolicyError, index_of
from wam_jax.data.files import DatasetError, read_npz
from wam_jax.host.regular_files import open_file
from wam_jax.storage import checksums
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import misfit
from wam_jax.storage.saved_params import check_finite, check_params
from wam_jax.train import world_model as wm
from wam_jax.types import Params, Policy

FORMAT = 1
SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained" / "demo.npz"
# Networks of the world model that acting does without.
UNUSED = ("decoder", "embedding_decoder", "robot_decoder", "inverse_dynamics_head")
META = "meta"  # name in the file of everything that is no weight, as JSON
PACK_AGAIN = "Copy it again, or write it again with python -m wam_jax.pack."
_FORM = {
  "format": int,
  "tasks": [str],
  "which": str,
  "feature_size": int,
  "made_from": {str: str},
  "statistics": [[(int, float)]],
  "world_model": {"world_model": dict, "env": {"image_size": int}},
  "policy": {"behaviour_cloning": dict, "ppo": dict},
}


def write_packed(
  out: pathlib.Path,
  artifact: Artifact,
  which: str,
  tasks: Sequence[str],
  policy: Policy,
  policy_params: Params,
  world: Artifact,
) -> None:
  """Writes the policies of an artifact into one file.

  Args:
    out: file to write, *.npz.
    artifact: of behaviour_cloning or ppo.
    which: of its policies, as for `load_policy`.
    tasks: in the order of the parameters.
    policy: networks.
    policy_params: stacked over tasks.
    world: artifact of the world model.

  Raises:
    PolicyError: weights that half precision cannot hold.
    CheckpointError: the world model cannot be read.
  """
  model, model_params = models.load_world_model(world)
  used = {name: value for name, value in model_params.items() if name not in UNUSED}
  flat = traverse_util.flatten_dict({"world_model": used, "policy": policy_params}, sep="/")
  meta = {
    "format": FORMAT,
    "tasks": list(tasks),
    "which": which,
    "feature_size": policy.feature_size,
    "made_from": {artifact.stage: artifact.fingerprint, "world_model": world.fingerprint},
    "statistics": [list(model.robot_obs_mean), list(model.robot_obs_std)],
    "world_model": {"world_model": world.config["world_model"], "env": world.config["env"]},
    "policy": {name: artifact.config[name] for name in ("behaviour_cloning", "ppo")},
  }
  arrays = {name: _halved(name, np.asarray(value)) for name, value in flat.items()}
  meta = checksums.seal(meta, arrays)
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_name(out.name + ".tmp")
  with open_file(temporary, "wb") as file:
    np.savez_compressed(file, allow_pickle=False, **{META: np.asarray(json.dumps(meta))}, **arrays)
  temporary.replace(out)


def _halved(name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype != np.float32:
    return value
  if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
    raise PolicyError(f"{name}: too large for half precision")
  return value.astype(np.float16)


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """What a packed file says of itself, and its weights.

  Raises:
    PolicyError: damaged, changed after it was written, or not such a file.
  """
  try:
    flat = read_npz(path)
    meta = json.loads(str(flat.pop(META)))
  except DatasetError as error:
    raise PolicyError(f"{path}: not a file of packed policies: {error.rule} {PACK_AGAIN}") from error
  except (ValueError, KeyError, RecursionError) as error:
    raise PolicyError(f"{path}: not a file of packed policies ({error!r:.200}). {PACK_AGAIN}") from error
  if problem := misfit(meta, _FORM):
    raise PolicyError(f"{path}: not a file of packed policies: in {META} {problem}. {PACK_AGAIN}")
  if meta["format"] != FORMAT:
    raise PolicyError(f"{path}: format {meta['format']}, this version reads {FORMAT}")
  if checksums.unseal(meta, flat) is False:  # None: earlier versions relied on the archive's CRCs
    raise PolicyError(f"{path}: changed after it was written (sha256). {PACK_AGAIN}")
  return meta, flat


def load_packed(
  path: pathlib.Path, task: str | None = None, which: str | None = None, ddim_steps: int = 0
) -> ActingPolicy:
  """A policy of a packed file.

  Args:
    path: from `pack`.
    task: one of its tasks; None: its only one.
    which: of `policy_table.TRAINED`; None: what the file holds.
    ddim_steps: as for `load.load_policy`.

  Raises:
    PolicyError: not such a file, damaged or changed, no such task, or it holds other policies.
    CheckpointError: weights are missing, not wanted, of another shape, NaN or infinite.
    ValueError: `ddim_steps` out of range.
  """
  meta, flat = _read(path)
  if which not in (None, meta["which"]):
    raise PolicyError(f"{path}: holds the policies {meta['which']}, not {which}")
  k = index_of(path, meta["tasks"], task)
  arrays = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in flat.items()}
  params = traverse_util.unflatten_dict(arrays, sep="/")
  try:
    mean, std = map(tuple, meta["statistics"])
    model = models.model_of(meta["world_model"], (mean, std))
    policy = models.make_policy(meta["policy"], meta["feature_size"])
    world = jax.eval_shape(lambda: wm.init_params(model, jax.random.key(0)))
    actors = models.policy_shapes(policy, len(meta["tasks"]))
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    raise PolicyError(f"{path}: its settings describe no networks ({error}); {PACK_AGAIN}") from error
  used = {name: network for name, network in world.items() if name not in UNUSED}
  check_params(params, {"world_model": used, "policy": actors}, path)
  check_finite(params, path)
  policy = models.for_acting(policy, ddim_steps)
  actor = jax.tree.map(lambda x: x[k : k + 1], params["policy"])
  return ActingPolicy(model, params["world_model"], policy, actor, meta["tasks"][k], meta["made_from"])
