"""The networks of finished artifacts: world model, policy, classifier, with their parameters."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host.numbers import whole
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.policies.gaussian import GaussianPolicy
from wam_jax.nn.world_model import WorldModel, make_world_model
from wam_jax.storage.artifact import Artifact, how_to_remake
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.records import read_record
from wam_jax.storage.saved_params import check_params, load_params
from wam_jax.training import world_model as wm
from wam_jax.types import Params, Policy

STATISTICS = "statistics.json"  # mean and deviation of the robot state, where the model needs them


def load_world_model(artifact: Artifact) -> tuple[WorldModel, Params]:
  """The model that an artifact describes, and its parameters.

  Raises:
    CheckpointError: the parameters are not those that the config next to them describes, or were written
      by a version with other settings.
  """
  statistics = None
  if (artifact.path / STATISTICS).exists():
    content = read_record(artifact.path, STATISTICS)
    statistics = (content["mean"], content["std"])
  with _of_this_version(artifact):
    model = model_of(artifact.config, statistics, artifact.embodiment)
    expected = wm.param_shapes(model)
  params = load_params(artifact.path / "params")
  check_params(params, expected, artifact.path)
  return model, params


@contextlib.contextmanager
def _of_this_version(artifact: Artifact) -> Iterator[None]:
  """Raises CheckpointError where an artifact's config or parameters lack what is read, or do not fit."""
  try:
    yield
  except (KeyError, AttributeError) as error:
    raise CheckpointError(
      f"{artifact.path}: its config or parameters have no {error}: made by another version of wam_jax; "
      "train it again"
    ) from error
  except (TypeError, ValueError) as error:
    raise CheckpointError(
      f"{artifact.path}: its config describes no networks ({error}). {how_to_remake(artifact.path)}"
    ) from error


def model_of(
  config: Mapping[str, Any], statistics: tuple[Any, Any] | None, embodiment: Embodiment
) -> WorldModel:
  """The networks of a config as plain dicts, with the mean and deviation of the robot state."""
  size = config["env"]["image_size"]
  return make_world_model(_Attributes(config["world_model"]), size, statistics, embodiment)


class _Attributes(dict):
  __getattr__ = dict.__getitem__


def make_policy(config: Mapping[str, Any], feature_size: int, action: int = CALVIN.action_size) -> Policy:
  """Policy of a whole config (a ConfigDict or an artifact's plain dict), as it is trained; `action` is A."""
  cloning, ppo = config["behaviour_cloning"], config["ppo"]
  sizes = {"feature_size": feature_size, "action": action} | {
    name: cloning[name] for name in ("chunk", "hidden", "blocks")
  }
  if cloning["policy"] == "gaussian":
    return GaussianPolicy(
      **sizes,
      sampling_std=ppo["min_sampling_std"],
      log_prob_std=ppo["min_log_prob_std"],
    )
  return DiffusionPolicy(
    **sizes,
    time_dim=cloning["time_dim"],
    denoising_steps=cloning["denoising_steps"],
    fine_tuned_steps=ppo["fine_tuned_steps"],
    min_sampling_std=ppo["min_sampling_std"],
    min_log_prob_std=ppo["min_log_prob_std"],
  )


def for_acting(policy: Policy, ddim_steps: int) -> Policy:
  """The policy as it is evaluated: a diffusion policy that samples in so many DDIM steps (0: as trained)."""
  ddim_steps = whole("ddim_steps", ddim_steps, 0)
  if isinstance(policy, DiffusionPolicy):
    return dataclasses.replace(policy, ddim_steps=ddim_steps)
  return policy


def feature_size(network: Params) -> int:
  """F that a stacked network was made for."""
  return network["feature_in"]["kernel"].shape[-2]


def load_policy(artifact: Artifact, selected: str = "") -> tuple[Policy, Params]:
  """The policy that a stage trained, and its networks {"base", "tuned"}, stacked over tasks.

  Args:
    artifact: of behaviour_cloning, whose two networks are the same, of ppo or of online_ppo.
    selected: of `policy_table.SELECTED`, after PPO; empty: the last one.

  Raises:
    CheckpointError: made by another version of wam_jax, or the parameters are not those that the config
      next to them describes.
  """
  params = load_params(artifact.path / "params")
  if artifact.stage == "behaviour_cloning":
    params = {"base": params, "tuned": params}
  if selected:
    params["tuned"] = load_params(artifact.path / "selected" / selected / "params")
  with _of_this_version(artifact):
    params = {name: params[name] for name in ("base", "tuned")}
    policy = make_policy(artifact.config, feature_size(params["base"]), artifact.embodiment.action_size)
    expected = policy_shapes(policy, jax.tree.leaves(params)[0].shape[0])
  check_params(params, expected, artifact.path)
  return policy, params


def policy_shapes(policy: Policy, tasks: int) -> Any:
  """Shapes of {"base", "tuned"} of a policy, stacked over so many tasks."""
  network = jax.eval_shape(jax.vmap(policy.init), jax.random.split(jax.random.key(0), tasks))
  return {"base": network, "tuned": network}


def make_classifier(config: Mapping[str, Any], feature_size: int) -> SuccessClassifier:
  """Classifier of a whole config (a ConfigDict or an artifact's plain dict)."""
  part = config["classifier"]
  return SuccessClassifier(feature_size, tuple(part["embed"]), part["hidden"], part["ensemble"])


def load_classifier(artifact: Artifact) -> tuple[SuccessClassifier, Params]:
  """The classifier, and {"network", "threshold"} stacked over tasks."""
  params = load_params(artifact.path / "params")
  with _of_this_version(artifact):
    first = "embed0" if len(artifact.config["classifier"]["embed"]) > 1 else "embedding"
    size = params["network"][first]["kernel"].shape[-2]
    return make_classifier(artifact.config, size), params
