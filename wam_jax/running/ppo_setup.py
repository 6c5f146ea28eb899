"""What the PPO stages and the certificate begin with: finished networks that fit each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax

from wam_jax.acting import models
from wam_jax.data.features import DemoFeatures, load_features
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.nn.world_model import WorldModel
from wam_jax.running.stage_run import StageRun
from wam_jax.training import ppo
from wam_jax.training.imagination import Dreamer, StartFrames, make_world
from wam_jax.training.tasks import task_keys
from wam_jax.types import Params, Policy


@dataclasses.dataclass(frozen=True)
class Networks:
  """World model, cloned policies and classifiers of K tasks, and the demos that they come from.

  Attributes:
    model: world-model networks.
    world_params: their parameters, on the device.
    policy: networks of the policy that PPO trains.
    cloned: {"base", "tuned"}, stacked over K tasks.
    classifier: networks.
    classifier_params: {"network", "threshold"}, stacked over K tasks.
    demos: features of the training demos.
    heldout: features of the held-out ones.
  """

  model: WorldModel
  world_params: Params
  policy: Policy
  cloned: Params
  classifier: SuccessClassifier
  classifier_params: Params
  demos: DemoFeatures
  heldout: DemoFeatures

  def dreamer(self, config: Any, temperature: float = 1.0) -> Dreamer:
    """Dreams that `config` (`config.ppo`) cuts; `temperature` as in `make_world`."""
    world = make_world(self.model, temperature=temperature)
    return Dreamer(world, self.policy, self.classifier, config.horizon_steps // self.policy.chunk)

  def frozen(self, starts: StartFrames, entropy_limit: jax.Array, held: Collection[str] = ()) -> ppo.Frozen:
    """What no update changes, on the device.

    Args:
      starts: where dreams begin.
      entropy_limit: [K], of the prior on demos.
      held: tasks whose actor stays as it was cloned.
    """
    return jax.device_put(
      ppo.Frozen(
        base=self.cloned["base"],
        classifier=self.classifier_params,
        starts=starts,
        entropy_limit=entropy_limit,
        held=jax.numpy.array([task in held for task in self.demos.tasks]),
      )
    )

  def initial_state(self, config: Any, frozen: ppo.Frozen, key: jax.Array) -> ppo.PPOState:
    """State before the first iteration, stacked over K tasks.

    Args:
      config: `config.ppo`.
      frozen: from `frozen`.
      key: random key.
    """
    make = jax.jit(jax.vmap(lambda frozen, key: ppo.init_state(self.policy, config, frozen, key)))
    return make(frozen, task_keys(key, len(self.demos.tasks)))


def load_networks(stage: StageRun) -> Networks:
  """Reads the inputs of a stage that dreams.

  Raises:
    ValueError: policy, classifier and features of different sizes.
    CheckpointError: files that cannot be read.
  """
  config, inputs = stage.config, stage.inputs
  model, world_params = models.load_world_model(inputs["world_model"])
  demos, heldout = (load_features(inputs["featurize"].path / f"{name}.npz") for name in ("train", "heldout"))
  cloned_policy, cloned = models.load_policy(inputs["behaviour_cloning"])
  policy = models.make_policy(config, cloned_policy.feature_size, model.embodiment.action_size)
  classifier, classifier_params = models.load_classifier(inputs["classifier"])
  sizes = {model.feature_size, demos.feature.shape[-1], policy.feature_size, classifier.feature_size}
  if len(sizes) != 1:
    raise ValueError(
      f"world model, demos, policy and classifier have different feature sizes: {sorted(sizes)}"
    )
  return Networks(
    model, jax.device_put(world_params), policy, cloned, classifier, classifier_params, demos, heldout
  )
