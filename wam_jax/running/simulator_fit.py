"""Whether a run's policies can act in its simulator: its robot, its tasks, and states to start from."""

from __future__ import annotations

from ml_collections import ConfigDict

from wam_jax.envs import registry
from wam_jax.storage.artifact import Artifact, ArtifactError


def obstacle(config: ConfigDict, collect: Artifact) -> str:
  """Why the simulator cannot take a run's data; "" if it can, and where the data's readers say what is wrong.

  Args:
    config: from `config.finalize`.
    collect: artifact of the data, finished or planned.
  """
  name, simulator = config.env.name, registry.load(config.env)
  if differences := collect.embodiment.differences(simulator.embodiment):
    return f"the data are of another robot than {name}'s: {'; '.join(differences)}"
  if unknown := [task for task in config.tasks if task not in simulator.tasks]:
    return f"{name} does not know {', '.join(unknown)}"
  if config.data.source == "embedded" and not config.inputs.collect:
    return ""  # the data are the simulator's own
  from wam_jax.data import calvin  # imports JAX
  from wam_jax.data.files import DatasetError

  recorded = collect.done or config.data.source == "calvin"  # LeRobot's data hold no scene
  try:
    root = calvin.dataset_path(collect) if collect.done else config.data.calvin_path
    if recorded and calvin.has_start_states(root):
      return ""
  except (DatasetError, ArtifactError):
    return ""
  return f"the data hold no scene_obs that {name} could start from"
