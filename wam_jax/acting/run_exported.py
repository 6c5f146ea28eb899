"""Runs a policy written by `wam_jax.export`: copied into its folder as run_policy.py. Needs jax (with
flatbuffers) and numpy, nothing else.

python run_policy.py                       # times it on random pictures

from run_policy import Policy
policy = Policy(FOLDER)
policy.reset(seed=0)                       # before every episode
action = policy.act(observation)           # for every frame; policy.json says what goes in and comes out
"""

import hashlib
import io
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

PARTS = ("policy.json", "params.npz", "start.jaxexport", "step.jaxexport")


def read_parts(folder: pathlib.Path) -> dict[str, bytes]:
  """The files of an exported policy, each as it was written: JAX crashes on a damaged program.

  Raises:
    ValueError: a file is missing or differs from what was written.
  """
  parts = {}
  try:
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    for name in PARTS:
      parts[name] = (folder / name).read_bytes()
      if hashlib.sha256(parts[name]).hexdigest() != files[name]["sha256"]:
        raise ValueError(f"{name} differs from what was written (sha256)")
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{folder}: {error}. Copy the folder again, or write it again with python -m wam_jax.export (folders "
      "without manifest.json are of an earlier version)"
    ) from error
  return parts


class Policy:
  """Holds the state from frame to frame."""

  def __init__(self, folder: str | pathlib.Path = ".") -> None:
    parts = read_parts(pathlib.Path(folder))
    self.about = json.loads(parts["policy.json"])
    with np.load(io.BytesIO(parts["params.npz"]), allow_pickle=False) as file:
      self.params = jax.device_put({name: file[name] for name in file.files})
    function = lambda name: jax.jit(jax_export.deserialize(bytearray(parts[name])).call)
    self._start, self._step = function("start.jaxexport"), function("step.jaxexport")
    self.reset()

  def reset(self, seed: int = 0) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
      raise ValueError(f"seed: expected a whole number from 0 to {2**31 - 1}, got {seed!r}")
    self._state = self._start(self.params, np.int32(seed))

  def act(self, observation: Mapping[str, Any]) -> np.ndarray:
    """Arrays of policy.json's "observation" (more are ignored) -> action float32 [B, 7]."""
    inputs = {}
    for name, spec in self.about["observation"].items():
      array = np.asarray(observation[name])
      if list(array.shape) != spec["shape"] or (
        array.dtype != np.uint8 if spec["dtype"] == "uint8" else array.dtype.kind not in "fiu"
      ):
        raise ValueError(f"{name}: expected {spec['dtype']} {spec['shape']}, got {array.dtype} {array.shape}")
      inputs[name] = array.astype(spec["dtype"])
      if not np.isfinite(inputs[name]).all():
        raise ValueError(f"{name}: NaN or infinity; the state is as it was, repeat the last action or hold")
    self._state, action = self._step(self.params, self._state, inputs)
    return np.asarray(action)


if __name__ == "__main__":
  policy = Policy(pathlib.Path(__file__).parent)
  rng = np.random.default_rng(0)
  specs = policy.about["observation"].items()
  for t in range(9):
    inputs = {name: rng.integers(0, 255, spec["shape"]).astype(spec["dtype"]) for name, spec in specs}
    begin = time.perf_counter()
    action = policy.act(inputs)
    print(f"frame {t}: {1e3 * (time.perf_counter() - begin):7.1f} ms, action {np.round(action, 3).tolist()}")
