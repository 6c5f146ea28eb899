"""All policies of a run, packed: half-precision weights, of the world model only what acting reads.

Decoders, critic and the inverse-dynamics head are left out. They are a folder as model hubs hold models
(settings in CONFIG, weights in WEIGHTS, and a CARD), or one file *.npz; one comes with the package. At the
sizes of the `demo` preset either has 12 MB. `python -m wam_jax.pack` makes them.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from wam_jax.acting import models
from wam_jax.acting.policy import ActingPolicy, PolicyError, index_of
from wam_jax.config.fields import FIELDS
from wam_jax.data.files import DatasetError, read_npz
from wam_jax.embodiment import or_calvin
from wam_jax.foreign import safetensors_file
from wam_jax.foreign.torch_file import WeightsError, read_weights
from wam_jax.host.regular_files import open_file, read_text
from wam_jax.storage import checksums
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import misfit
from wam_jax.storage.saved_params import check_finite, check_params
from wam_jax.training import world_model as wm
from wam_jax.types import Params, Policy

FORMAT = 1
SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained" / "demo.npz"
# Networks of the world model that acting does without.
UNUSED = ("decoder", "embedding_decoder", "robot_decoder", "inverse_dynamics_head")
META = "meta"  # name in an npz of everything that is no weight, as JSON
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"  # in a folder, as hubs expect them
PACK_AGAIN = "Copy or download it again, or write it again with python -m wam_jax.pack."
_WEIGHTS_SEAL = "weights"  # in CONFIG: the digest of the arrays
# Of config.env what says which simulator it is, and is no folder or code.
_SIMULATOR: dict[str, Any] = {
  **dict.fromkeys(("name", "calvin_scene", "success", "renderer"), str),
  **{name: [str] for name in ("tasks", "pictures", "state")},
  "distractors": int,
}
_FORM = {
  "format": int,
  "tasks": [str],
  "which": str,
  "feature_size": int,
  "made_from": {str: str},
  "embodiment?": dict,
  "statistics": [[(int, float)]],
  "world_model": {
    "world_model": dict,
    "env": {"image_size": int, **{f"{name}?": kind for name, kind in _SIMULATOR.items()}},
  },
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
  card: str = "",
) -> None:
  """Writes the policies of an artifact, whole or not at all.

  Args:
    out: *.npz: a file to write; any other name: a new folder.
    artifact: of behaviour_cloning or ppo.
    which: of its policies, as for `load_policy`.
    tasks: in the order of the parameters.
    policy: networks.
    policy_params: stacked over tasks.
    world: artifact of the world model.
    card: what people should know, in Markdown; goes into the folder, or next to the file.

  Raises:
    PolicyError: weights that half precision cannot hold, or the folder is there already and not empty.
    CheckpointError: the world model cannot be read.
  """
  model, model_params = models.load_world_model(world)
  used = {name: value for name, value in model_params.items() if name not in UNUSED}
  flat = traverse_util.flatten_dict({"world_model": used, "policy": policy_params}, sep="/")
  kept = ("image_size", *_SIMULATOR)  # but for what is empty or off, as it is by default
  env = {name: value for name, value in world.config["env"].items() if name in kept and value}
  meta = {
    "format": FORMAT,
    "tasks": list(tasks),
    "which": which,
    "feature_size": policy.feature_size,
    "made_from": {artifact.stage: artifact.fingerprint, "world_model": world.fingerprint},
    "embodiment": model.embodiment.to_dict(),
    "statistics": [list(model.robot_obs_mean), list(model.robot_obs_std)],
    "world_model": {"world_model": world.config["world_model"], "env": env},
    "policy": {name: artifact.config[name] for name in ("behaviour_cloning", "ppo")},
  }
  arrays = {name: _halved(name, np.asarray(value)) for name, value in flat.items()}
  if not is_file_name(out):
    meta[_WEIGHTS_SEAL] = checksums.seal({}, arrays)
    try:
      with checksums.new_folder(out) as folder:
        safetensors_file.write_arrays(folder / WEIGHTS, arrays)
        checksums.write_json(folder / CONFIG, checksums.seal(meta))
        checksums.write_text(folder / CARD, card)
    except FileExistsError as error:
      raise PolicyError(f"{out} {error.strerror}. Choose another name") from error
    return
  meta = checksums.seal(meta, arrays)
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_name(out.name + ".tmp")
  with open_file(temporary, "wb") as file:
    np.savez_compressed(file, allow_pickle=False, **{META: np.asarray(json.dumps(meta))}, **arrays)
  temporary.replace(out)
  if card:
    checksums.write_text(out.with_suffix(".md"), card)


def is_file_name(out: pathlib.Path) -> bool:
  """Whether policies are packed under this name as a file, not as a folder."""
  return out.suffix == ".npz"


def is_packed(path: pathlib.Path) -> bool:
  """Whether a path is a file, or a folder that looks like packed policies and not like a stage's."""
  if path.is_file() or os.path.lexists(path / WEIGHTS):
    return True
  return os.path.lexists(path / CONFIG) and not os.path.lexists(path / "artifact.json")


def _halved(name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype != np.float32:
    return value
  if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
    raise PolicyError(f"{name}: too large for half precision")
  return value.astype(np.float16)


def environment(path: pathlib.Path) -> dict[str, Any]:
  """Of `config.env` what says in which simulator packed policies were trained. Errors as of `load_packed`."""
  path = path.parent if path.name in (CONFIG, WEIGHTS) else path
  env = _read(path)[0]["world_model"]["env"]
  return {"name": "play_table"} | {name: value for name, value in env.items() if name in _SIMULATOR}


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """What packed policies say of themselves, and their weights.

  Raises:
    PolicyError: damaged, changed after they were written, or not such a file or folder.
    WeightsError: of a folder, the file of weights is.
  """
  if path.is_dir():
    return _read_folder(path)
  try:
    flat = read_npz(path)
    meta = json.loads(str(flat.pop(META)))
    # None: earlier versions relied on the archive's CRCs.
    sealed = checksums.unseal(meta, flat) if isinstance(meta, dict) else False
  except DatasetError as error:
    raise PolicyError(f"{path}: not a file of packed policies: {error.rule} {PACK_AGAIN}") from error
  except (ValueError, KeyError, RecursionError) as error:
    raise PolicyError(f"{path}: not a file of packed policies ({error!r:.200}). {PACK_AGAIN}") from error
  _check(path, meta, f"in {META} ", changed=sealed is False)
  return meta, flat


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """`_read` of a folder. Its files may be links, as hubs' caches have them, and other files next to them."""
  file = folder / CONFIG
  try:
    meta = json.loads(read_text(file))
    sealed = isinstance(meta, dict) and checksums.unseal(meta)
  except OSError as error:
    raise PolicyError(f"{file}: {(error.strerror or str(error)).lower()}. {PACK_AGAIN}") from error
  except (ValueError, RecursionError) as error:
    raise PolicyError(
      f"{file}: not the settings of packed policies ({error!r:.200}). {PACK_AGAIN}"
    ) from error
  _check(file, meta, "", changed=not sealed)
  file = folder / WEIGHTS
  if file.is_file() and zipfile.is_zipfile(file):  # torch's archives may share numbers among arrays
    raise WeightsError(file, "not in the format safetensors.", fix=PACK_AGAIN)
  flat = read_weights(file, dict, error_type=WeightsError, wanted=PACK_AGAIN)
  seal = meta.pop(_WEIGHTS_SEAL, None)
  if not isinstance(seal, dict) or not checksums.unseal(seal, flat):
    raise WeightsError(
      folder / WEIGHTS, f"not the weights that {CONFIG} was written with (sha256).", fix=PACK_AGAIN
    )
  return meta, flat


def _check(file: pathlib.Path, meta: Any, where: str, changed: bool) -> None:
  """Raises PolicyError where the settings are not of their form, of another format, or changed."""
  if problem := misfit(meta, _FORM):
    raise PolicyError(f"{file}: not of packed policies: {where}{problem}. {PACK_AGAIN}")
  if meta["format"] != FORMAT:
    raise PolicyError(f"{file}: format {meta['format']}, this version reads {FORMAT}")
  if changed:
    raise PolicyError(f"{file}: changed after it was written (sha256). {PACK_AGAIN}")


def _check_sizes(path: pathlib.Path, meta: dict[str, Any], arrays: int) -> None:
  """Before any network is made of them. Raises PolicyError: settings that the config would not take."""
  world = meta["world_model"]
  parts = {"world_model": world["world_model"], "env": {"image_size": world["env"]["image_size"]}}
  settings = {
    f"{part}.{name}": value
    for part, values in (parts | meta["policy"]).items()
    for name, value in values.items()
  }
  for name, value in settings.items():
    known = tuple(value) if isinstance(value, list) else value
    wrong = [problem.rule for problem in FIELDS[name].problems(known)] if name in FIELDS else []
    if not wrong and name == "behaviour_cloning.blocks" and value > arrays:
      wrong = ["no more than there are weights"]
    if wrong:
      raise PolicyError(f"{path}: {name} = {value!r:.100}: {wrong[0]}; {PACK_AGAIN}")


def load_packed(
  path: pathlib.Path, task: str | None = None, which: str | None = None, ddim_steps: int = 0
) -> ActingPolicy:
  """A packed policy.

  Args:
    path: file or folder from `pack`, or a file in that folder.
    task: one of its tasks; None: its only one.
    which: of `policy_table.TRAINED`; None: what the file holds.
    ddim_steps: as for `load.load_policy`.

  Raises:
    PolicyError: not such a file or folder, damaged or changed, no such task, or it holds other policies.
    CheckpointError: weights are missing, damaged, not wanted, of another shape, NaN or infinite.
    ValueError: `ddim_steps` out of range.
  """
  path = path.parent if path.name in (CONFIG, WEIGHTS) else path
  meta, flat = _read(path)
  if which not in (None, meta["which"]):
    raise PolicyError(f"{path}: holds the policies {meta['which']}, not {which}")
  k = index_of(path, meta["tasks"], task)
  _check_sizes(path, meta, len(flat))
  try:
    params = traverse_util.unflatten_dict(flat, sep="/")
    mean, std = map(tuple, meta["statistics"])
    robot = or_calvin(meta.get("embodiment"))
    model = models.model_of(meta["world_model"], (mean, std), robot)
    policy = models.make_policy(meta["policy"], meta["feature_size"], robot.action_size)
    world = wm.param_shapes(model)
    actors = models.policy_shapes(policy, len(meta["tasks"]))
  except (KeyError, IndexError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
    raise PolicyError(f"{path}: its settings describe no networks ({error}); {PACK_AGAIN}") from error
  used = {name: network for name, network in world.items() if name not in UNUSED}
  check_params(params, {"world_model": used, "policy": actors}, path)
  params = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, params)
  check_finite(params, path)
  policy = models.for_acting(policy, ddim_steps)
  actor = jax.tree.map(lambda x: x[k : k + 1], params["policy"])
  return ActingPolicy(model, params["world_model"], policy, actor, meta["tasks"][k], meta["made_from"])
