"""The networks of finished artifacts: world model, policy, classifier, with their parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.policies.gaussian import GaussianPolicy
from wam_jax.nn.world_model import WorldModel, make_world_model
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.saved_params import check_params, load_params
from wam_jax.train import world_model as wm
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
    content = json.loads((artifact.path / STATISTICS).read_text(encoding="utf-8"))
    statistics = (content["mean"], content["std"])
  with _of_this_version(artifact):
    model = model_of(artifact.config, statistics)
  params = load_params(artifact.path / "params")
  check_params(params, jax.eval_shape(lambda: wm.init_params(model, jax.random.key(0))), artifact.path)
  return model, params


@contextlib.contextmanager
def _of_this_version(artifact: Artifact) -> Iterator[None]:
  """Raises CheckpointError where the config of an artifact lacks a field that is read inside."""
  try:
    yield
  except (KeyError, AttributeError) as error:
    raise CheckpointError(
      f"{artifact.path}: its config has no {error}: made by another version of wam_jax; train it again"
    ) from error


def model_of(config: Mapping[str, Any], statistics: tuple[Any, Any] | None) -> WorldModel:
  """The networks of a config as plain dicts, with the mean and deviation of the robot state."""
  return make_world_model(_Attributes(config["world_model"]), config["env"]["image_size"], statistics)


class _Attributes(dict):
  __getattr__ = dict.__getitem__


def make_policy(config: Mapping[str, Any], feature_size: int) -> Policy:
  """Policy of a whole config (a ConfigDict or an artifact's plain dict), as it is trained."""
  cloning, ppo = config["behaviour_cloning"], config["ppo"]
  sizes = {"feature_size": feature_size} | {name: cloning[name] for name in ("chunk", "hidden", "blocks")}
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
    CheckpointError: made by another version of wam_jax.
  """
  params = load_params(artifact.path / "params")
  if artifact.stage == "behaviour_cloning":
    params = {"base": params, "tuned": params}
  else:
    del params["critic"]
  if selected:
    params["tuned"] = load_params(artifact.path / "selected" / selected / "params")
  return described_policy(artifact, params["base"]), params


def described_policy(artifact: Artifact, network: Params) -> Policy:
  """The policy of a stacked network by the config saved next to it.

  Raises:
    CheckpointError: made by another version of wam_jax.
  """
  with _of_this_version(artifact):
    return make_policy(artifact.config, feature_size(network))


def make_classifier(config: Mapping[str, Any], feature_size: int) -> SuccessClassifier:
  """Classifier of a whole config (a ConfigDict or an artifact's plain dict)."""
  part = config["classifier"]
  return SuccessClassifier(feature_size, tuple(part["embed"]), part["hidden"], part["ensemble"])


def load_classifier(artifact: Artifact) -> tuple[SuccessClassifier, Params]:
  """The classifier, and {"network", "threshold"} stacked over tasks."""
  params = load_params(artifact.path / "params")
  first = "embed0" if len(artifact.config["classifier"]["embed"]) > 1 else "embedding"
  size = params["network"][first]["kernel"].shape[-2]
  return make_classifier(artifact.config, size), params
