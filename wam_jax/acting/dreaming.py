"""A trained world model by itself: frames and actions in, what follows in its imagination out."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.actor import MAX_SEED, Observer
from wam_jax.core.actions import executable
from wam_jax.host import surroundings
from wam_jax.host.numbers import whole
from wam_jax.nn import vision
from wam_jax.nn.world_model import WorldModel
from wam_jax.training import world_model as wm
from wam_jax.training.imagination import make_world
from wam_jax.types import Params, features


class Imagined(NamedTuple):
  """Frames 0 to N: those that were seen, as the model has them, and those that it imagines after them.

  Attributes:
    pictures: camera -> uint8 [N+1, S, S, 3].
    features: float32 [N+1, F], what policies and classifiers read.
    robot_obs: float32 [N+1, state_size] in the robot's units; None of a model that does not predict it.
  """

  pictures: dict[str, np.ndarray]
  features: np.ndarray
  robot_obs: np.ndarray | None


class DreamingModel(Observer):
  """A world model that dreams.

  Args:
    model: its networks.
    params: their parameters.
  """

  def __init__(self, model: WorldModel, params: Params):
    self.model, self.params, self.embodiment = model, jax.device_put(params), model.embodiment
    self.cameras, self.image_size = tuple(model.cameras), model.image_size
    self.camera_sizes = {camera.name: camera.size for camera in self.embodiment.cameras if camera.size}
    self.needs_robot_obs, self.state_size = model.proprio != "none", self.embodiment.state_size
    self._run = jax.jit(functools.partial(_imagine, model))

  @surroundings.own_settings()
  def imagine(self, observations: Mapping[str, Any], actions: Any, seed: int = 0) -> Imagined:
    """What follows frames that were seen, if the robot acts so.

    Args:
      observations: what `policy.act` takes, of one frame or, with an axis of time before all others, of C
        frames in a row, the first of them an episode's.
      actions: [N, A] in the robot's units; action t is taken at frame t, so that the first C - 1 led from one
        seen frame to the next. [B, N, A]: B sequences, each with its own frames if these have an axis B too.
      seed: of all noise, 0 to 2**31 - 1.

    Returns:
      Arrays with an axis B first where the actions have one.

    Raises:
      ValueError: a missing key, a wrong shape, an action outside of its range, too few actions.
    """
    seed = whole("seed", seed, 0, MAX_SEED)
    action = self._unit_actions(actions)
    lead, inputs = self._seen(observations)
    context = lead[-1] if lead else 1
    single, got = action.ndim == 2, f"got {list(action.shape)}"
    if len(lead) == 2 and (single or len(action) != lead[0]):
      raise ValueError(f"actions: expected {lead[0]} sequences, as the observations are, {got}")
    if action.shape[-2] < context - 1:
      raise ValueError(f"actions: too few to lead through {context} frames that were seen, {got}")
    rows = {name: x.reshape(-1, context, *x.shape[1:]) for name, x in inputs.items()}
    out = self._run(self.params, rows, action[None] if single else action, jax.random.key(seed))
    pictures, feature, state = jax.tree.map(lambda x: np.asarray(x[0] if single else x), out)
    return Imagined({camera: pictures[camera] for camera in self.cameras}, feature, state)

  def _seen(self, observations: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(axes before a frame's: (), (C,) or (B, C); all frames one after another, as `_read` gives them)."""
    self._batch_size, first = None, self.cameras[0]
    if not isinstance(observations, Mapping) or first not in observations:
      self._read(observations)  # raises
    shape = np.shape(observations[first])
    if len(shape) not in (3, 4, 5) or 0 in shape:
      raise ValueError(f"{first}: expected [S, S, 3], [C, S, S, 3] or [B, C, S, S, 3], got {list(shape)}")
    lead, rows = shape[:-3], {}
    for name in {*self.cameras, "robot_obs"} & set(observations):
      shape = np.shape(observations[name])
      if shape[: len(lead)] != lead:
        raise ValueError(f"{name}: expected {list(lead)} frames, as of {first}, got {list(shape)}")
      rows[name] = np.asarray(observations[name]).reshape(-1, *shape[len(lead) :])
    self._batch_size = math.prod(lead)
    return lead, self._read(rows)

  def _unit_actions(self, actions: Any) -> np.ndarray:
    """Actions in [-1, 1], checked."""
    robot = self.embodiment
    size = robot.action_size
    try:
      action = np.asarray(actions)
    except ValueError as error:  # rows of different lengths
      raise ValueError(f"actions: expected numbers [N, {size}] or [B, N, {size}]: {error}") from None
    if action.ndim not in (2, 3) or action.shape[-1] != size or action.dtype.kind not in "fiu":
      got = f"{action.dtype} {list(action.shape)}"
      raise ValueError(f"actions: expected numbers [N, {size}] or [B, N, {size}], got {got}")
    low, high = robot.action_ranges.T
    slack = 1e-5 * (high - low)
    outside = ~((action >= low - slack) & (action <= high + slack))  # also NaN
    if outside.any():
      *_, k = place = tuple(np.argwhere(outside)[0])
      rule = f"number {k} ({robot.action[k].name}) must lie in [{low[k]:g}, {high[k]:g}]"
      raise ValueError(f"actions: {rule}, got {action[place]:g}")
    return robot.to_unit(action.astype(np.float32))


def _imagine(
  model: WorldModel, params: Params, seen: Mapping[str, jax.Array], action: jax.Array, key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array | None]:
  """Pictures, features and robot state of frames [B, N+1, ...].

  Args:
    model: networks.
    params: their parameters.
    seen: pictures [B or 1, C, S, S, 3], robot_obs [B or 1, C, state_size].
    action: [B, N, A] in [-1, 1].
    key: of all noise.
  """
  pictures = {camera: seen[camera] for camera in model.cameras}
  lead = next(iter(pictures.values())).shape[:2]
  robot = model.embodiment
  robot_obs = seen.get("robot_obs", jnp.zeros((*lead, robot.state_size)))
  embed = wm.encode_observation(model, params, pictures, robot_obs)
  batch, context = len(action), lead[1]
  embed = jnp.broadcast_to(embed, (batch, *embed.shape[1:]))
  action = executable(action, robot.binary)
  rest = jnp.broadcast_to(jnp.asarray(robot.rest_action), (batch, 1, robot.action_size))
  before = jnp.concatenate([rest, action[:, : context - 1]], 1)
  first = jnp.broadcast_to(jnp.arange(context) == 0, (batch, context))
  seen_key, dream_key = jax.random.split(key)
  noise = wm.latent_noise(model, seen_key, (batch, context))
  posterior = features(wm.observe(model, params, embed, before, first, noise)[0])
  imagine = make_world(model).imagine_actions
  imagined = imagine(params, posterior[:, -1], action[:, context - 1 :], dream_key)
  feature = jnp.concatenate([posterior, imagined], 1)
  decoded = {camera: vision.denormalise(x) for camera, x in wm.decode(model, params, feature).items()}
  return decoded, feature, wm.apply(model, params, "reported_state", feature)
