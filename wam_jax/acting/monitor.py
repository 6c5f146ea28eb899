"""What a policy's world model and classifier say of an episode while it runs: is it solved, is it strange?"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting import models
from wam_jax.host.regular_files import open_file
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact, ArtifactError
from wam_jax.storage.records import read_record
from wam_jax.training import certificate as train_certificate
from wam_jax.training.imagination import make_world
from wam_jax.types import Latent, Params, features


class MonitorError(Exception):
  """The run of a policy lacks what monitoring needs."""


class Monitor:
  """Reads along with a policy: one reading per frame that it acts on.

  Args:
    model: world-model networks.
    model_params: their parameters.
    classifier: networks.
    classifier_params: {"network", "threshold"} of the policy's task.
    spread: of the surprise on held-out takes, an entry of `monitor.json`.
    window: frames that the flag looks at.

  Attributes:
    readings: of the episode so far, oldest first; emptied by the policy's `reset`. For a batch of robots each
      value is a list.
    spread: as given.
  """

  def __init__(
    self,
    model: Any,
    model_params: Params,
    classifier: Any,
    classifier_params: Params,
    spread: Mapping[str, float],
    window: int,
  ):
    self.readings: list[dict[str, Any]] = []
    self.spread, self._window = dict(spread), window
    world = make_world(model)
    self._arranged = jax.jit(world.arrange)(model_params)  # once, not for every frame
    self._classifier_params = jax.device_put(classifier_params)

    def read(arranged: Params, judge: Params, before: Any, after: Any) -> tuple[jax.Array, ...]:
      feature, seen = _feature(before), _feature(after)
      # The action that led from the frame before to this one.
      surprise = train_certificate.surprise(world, arranged, feature, before["prev_action"], seen)
      return classifier(judge, seen), classifier.success(judge, seen), surprise

    self._read = jax.jit(read)
    self._recent: collections.deque[np.ndarray] = collections.deque(maxlen=window)

  def reset(self) -> None:
    """Begins a new episode."""
    self.readings = []
    self._recent.clear()

  def see(self, before: Mapping[str, jax.Array], after: Mapping[str, jax.Array], single: bool) -> None:
    """Takes a reading.

    Args:
      before: the policy's state before the frame.
      after: with the frame.
      single: whether it is one robot without a batch axis.
    """
    probability, success, surprise = map(
      np.asarray, self._read(self._arranged, self._classifier_params, before, after)
    )
    first = not self.readings  # nothing was expected of the first frame
    if not first:
      self._recent.append(surprise)
    strange = np.zeros(len(surprise), bool)
    if len(self._recent) == self._window:
      strange = np.mean(self._recent, 0) > self.spread["limit"]
    plain = lambda x: x[0].item() if single else x.tolist()
    self.readings.append(
      {
        "frame": len(self.readings),
        "success_probability": plain(probability),
        "success": plain(success),
        "surprise": None if first else plain(surprise),
        "unfamiliar": plain(strange),
      }
    )

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the readings of the episode, one JSON object a line; the file is replaced.

    Args:
      path: of the file.
    """
    text = "".join(json.dumps(reading) + "\n" for reading in self.readings)
    with open_file(path, "w", encoding="utf-8") as file:
      file.write(text)


def _feature(state: Mapping[str, jax.Array]) -> jax.Array:
  """Feature of a policy's state (`acting.step.start_state`): [B, F]."""
  stoch = jnp.asarray(state["stoch"])
  return features(Latent(state["deter"], stoch, jnp.zeros_like(stoch), state.get("robot")))


def open_monitor(policy: Artifact, task: str, index: int, model: Any, model_params: Params) -> Monitor:
  """Monitor of a policy, from the certificate of its run.

  Args:
    policy: artifact that the policy was loaded from.
    task: its name.
    index: its place among the tasks of the run.
    model: world-model networks of the policy.
    model_params: their parameters.

  Raises:
    MonitorError: the run was not certified, or its classifier is gone.
  """
  hint = "run stage certify: --config.stage=certify"
  try:
    certified = artifact_lib.load_artifact(policy.path.parent, "certify")
  except ArtifactError as error:
    raise MonitorError(f"{error}; {hint}") from None
  if certified.inputs.get(policy.stage) != policy.fingerprint:
    raise MonitorError(f"{certified.path}: the certificate of another {policy.stage}; {hint}")
  artifact, reasons = artifact_lib.search_input(certified, "classifier", certified.inputs["classifier"])
  if artifact is None:
    raise MonitorError("\n".join([f"{certified.path}: its classifier is not to be found", *reasons]))
  classifier, params = models.load_classifier(artifact)
  content = read_record(certified.path, "monitor.json", tasks={task: {str: float}})
  params = jax.tree.map(lambda x: x[index], params)
  return Monitor(model, model_params, classifier, params, content["tasks"][task], content["window"])
