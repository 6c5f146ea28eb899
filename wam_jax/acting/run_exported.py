"""Runs a policy written by `wam_jax.export`: copied into its folder as run_policy.py. Needs jax (with
flatbuffers) and numpy, nothing else.

python run_policy.py                       # times it on random pictures

from run_policy import Policy
policy = Policy(FOLDER)                    # acts as the policy of wam_jax.load_policy does
policy.reset(seed=0)                       # before every episode; a batch of B: reset(batch_size=B)
action = policy.act(observation)           # for every frame; policy.json says what goes in and comes out
"""

from __future__ import annotations

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

from wam_jax.acting.actor import Actor

PARTS = ("policy.json", "params.npz", "start.jaxexport", "step.jaxexport")


def read_parts(folder: pathlib.Path) -> dict[str, bytes]:
  """The files of an exported policy, each as it was written: JAX crashes on a damaged program.

  Raises:
    ValueError: a file is missing or differs from what was written.
  """
  parts = {}
  try:
    absent = [name for name in ("manifest.json", *PARTS) if not (folder / name).is_file()]
    if absent:  # or a pipe, which would never end
      raise ValueError(f"no file {', no '.join(absent)}")
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


class Policy(Actor):
  """The policy in a folder.

  Args:
    folder: written by `wam_jax.export`; the one of this file.

  Attributes:
    about: what policy.json says.
    batch: B, robots next to each other, for whom the files were written.
  """

  def __init__(self, folder: str | pathlib.Path = pathlib.Path(__file__).parent) -> None:
    parts = read_parts(pathlib.Path(folder))
    self.about = json.loads(parts["policy.json"])
    self.task, self.batch, self.chunk = (self.about[name] for name in ("task", "batch", "chunk"))
    inputs = self.about["observation"]
    self.needs_robot_obs = "robot_obs" in inputs
    self.cameras = tuple(name for name in inputs if name != "robot_obs")
    self.image_size = inputs[self.cameras[0]]["shape"][1]
    self.state_size = inputs["robot_obs"]["shape"][1] if self.needs_robot_obs else 0
    # Files of earlier versions name neither: they are CALVIN's.
    self.action_ranges = np.array(self.about["action"].get("ranges", [[-1, 1]]))
    cameras = self.about.get("embodiment", {"cameras": []})["cameras"]
    self.camera_sizes = {camera["name"]: tuple(camera["size"]) for camera in cameras if camera["size"]}
    with np.load(io.BytesIO(parts["params.npz"]), allow_pickle=False) as file:
      self.params = jax.device_put({name: file[name] for name in file.files})
    read = lambda name: jax.jit(jax_export.deserialize(bytearray(parts[name])).call)
    self._start, self._step = read("start.jaxexport"), read("step.jaxexport")
    self.reset(None if self.batch == 1 else self.batch)

  def _begin(self, batch_size: int, seed: int) -> Any:
    if batch_size != self.batch:
      raise ValueError(
        f"batch_size: these files are for {self.batch}, got {batch_size}; for others export with --batch"
      )
    return self._start(self.params, np.int32(seed))

  def _advance(self, state: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    return self._step(self.params, state, inputs)


def main() -> None:
  """Times the policy of this folder on random pictures."""
  policy = Policy()
  policy.reset(batch_size=policy.batch)
  rng = np.random.default_rng(0)
  specs = policy.about["observation"].items()
  shape_of = lambda name, shape: [shape[0], *policy.camera_sizes.get(name, shape[1:3]), *shape[3:]]
  shapes = {name: shape_of(name, spec["shape"]) for name, spec in specs}
  for t in range(9):
    inputs = {name: rng.integers(0, 255, shapes[name]).astype(spec["dtype"]) for name, spec in specs}
    begin = time.perf_counter()
    action = policy.act(inputs)
    print(f"frame {t}: {1e3 * (time.perf_counter() - begin):7.1f} ms, action {np.round(action, 3).tolist()}")


if __name__ == "__main__":
  main()
