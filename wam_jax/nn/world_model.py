"""The world model's networks: encoders, recurrent model, decoders, inverse dynamics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.core.backend import backend
from wam_jax.embodiment import CALVIN, Embodiment, EmbodimentError, StateDimension
from wam_jax.nn import vision
from wam_jax.nn.layers import MLP, NormedSum, bias_in_float32, dense
from wam_jax.nn.rssm import RSSM
from wam_jax.types import Latent, features


def proprio_features(
  robot_obs: jax.Array, robot: Embodiment = CALVIN, statistics: tuple[Any, Any] | None = None
) -> jax.Array:
  """Robot state for networks. Angles become sine and cosine: CALVIN's roll sits at +-pi and jumps. Lengths
  are scaled, so that no number is lost beside the embedding's, which vary by about 1.

  Args:
    robot_obs: [..., state_size], as the robot reports it.
    robot: says of each number what it is.
    statistics: mean and standard deviation [state_size], for numbers of the kind plain; None: 0 and 1.

  Returns:
    [..., P], in the order of the numbers; of neighbouring angles first all sines, then all cosines.

  Raises:
    ValueError: another number of states.
  """
  if robot_obs.shape[-1:] != (robot.state_size,):
    raise ValueError(f"robot_obs: expected [..., {robot.state_size}], got {list(robot_obs.shape)}")
  parts = [robot_obs[..., :0]]
  for kind, scale, part in _alike(robot):
    x = robot_obs[..., part]
    if kind == "angle":
      parts += [jnp.sin(x), jnp.cos(x)]
    elif kind == "plain" and statistics is not None:
      mean, std = (np.asarray(values, np.float32)[part] for values in statistics)
      parts.append((x - mean) / std)
    else:
      parts.append(scale * x if kind == "scaled" and scale != 1 else x)
  return jnp.concatenate(parts, -1)


def _alike(robot: Embodiment) -> Iterator[tuple[str, float, slice]]:
  """Kind, scale and place of neighbouring numbers of the state that networks see alike."""
  alike = lambda item: (item[1].kind, item[1].scale)
  for (kind, scale), items in itertools.groupby(enumerate(robot.state), alike):
    numbers: list[tuple[int, StateDimension]] = list(items)
    yield kind, scale, slice(numbers[0][0], numbers[-1][0] + 1)


def reported_state(
  seen: jax.Array, robot: Embodiment, statistics: tuple[Any, Any] | None = None
) -> jax.Array:
  """What `proprio_features` was made of, or would be: [..., P] -> [..., state_size]; angles in [-pi, pi]."""
  parts, at = [seen[..., :0]], 0
  for kind, scale, part in _alike(robot):
    size = part.stop - part.start
    x = seen[..., at : at + size]
    at += size
    if kind == "angle":
      parts.append(jnp.arctan2(x, seen[..., at : at + size]))
      at += size
    elif kind == "plain" and statistics is not None:
      mean, std = (np.asarray(values, np.float32)[part] for values in statistics)
      parts.append(x * std + mean)
    else:
      parts.append(x / scale if kind == "scaled" else x)
  return jnp.concatenate(parts, -1)


class Decoder(nn.Module):
  """Vector -> the pictures of all cameras.

  With `conv` vision, one Linear is shared by the cameras, as in LUMOS; with `patch` each has its own.
  """

  vision: str
  cameras: Sequence[str]
  depth: int
  image_size: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """[N, X] -> {camera: [N, S, S, 3]}."""
    network: Any = vision.PatchDecoder
    if self.vision == "conv":
      x = dense(x, 32 * self.depth, self.dtype, "shared")
      network = vision.ConvDecoder
    return {
      camera: network(self.depth, self.image_size, self.dtype, name=camera)(x) for camera in self.cameras
    }


class WorldModel(nn.Module):
  """DreamerV2's world model with an inverse-dynamics head on encoder embeddings (WAM).

  The embedding e_t has E numbers of the pictures and, with proprioception, P of the robot state after
  them, as in LUMOS. The inverse-dynamics head and the embedding's decoder see the E numbers only: the
  robot state would give the action away. With `proprio = latent` these P numbers become a part of the latent.

  Attributes follow `config.world_model` and the robot; see `make_world_model`.
  """

  vision: str
  cameras: Sequence[str]
  depth: int
  embed: int
  deter: int
  stoch: int
  classes: int
  hidden: int
  proprio: str
  inverse_dynamics_input: str
  inverse_dynamics_hidden: int
  decode_embedding: bool
  decode_robot: bool
  learned_initial_state: bool
  memory_frames: int
  norm_eps: float
  image_size: int
  robot_obs_mean: Sequence[float]
  robot_obs_std: Sequence[float]
  embodiment: Embodiment
  dtype: Any

  @property
  def feature_size(self) -> int:
    return self.deter + self.stoch * self.classes + self.robot_size

  @property
  def carries_robot(self) -> bool:
    """Whether the robot's state is a part of the latent."""
    return self.proprio == "latent"

  @property
  def robot_size(self) -> int:
    """R, numbers of the robot's state and its last change in the latent."""
    return 2 * self.embodiment.state_features if self.carries_robot else 0

  def setup(self) -> None:
    encoder = vision.ConvEncoder if self.vision == "conv" else vision.PatchEncoder
    self.encoders = {
      camera: encoder(self.depth, dtype=self.dtype, name=f"encoder_{camera}") for camera in self.cameras
    }
    self.fuse = nn.Dense(self.embed, dtype=self.dtype, promote_dtype=bias_in_float32)
    self.fuse_norm = NormedSum(self.norm_eps)
    self.rssm = RSSM(
      self.deter,
      self.stoch,
      self.classes,
      self.hidden,
      self.norm_eps,
      self.learned_initial_state,
      self.robot_size // 2,
      self.memory_frames,
      self.dtype,
    )
    self.decoder = Decoder(self.vision, self.cameras, self.depth, self.image_size, self.dtype)
    width = self.inverse_dynamics_hidden
    self.inverse_dynamics_head = MLP((width, width), self.embodiment.action_size, self.dtype)
    if self.decode_embedding:
      self.embedding_decoder = Decoder(self.vision, self.cameras, self.depth, self.image_size, self.dtype)
    if self.decode_robot:
      self.robot_decoder = MLP((self.hidden,), self.embodiment.state_features, self.dtype)

  def encode(self, pictures: dict[str, jax.Array], robot_obs: jax.Array) -> jax.Array:
    """Embedding e_t of {camera: [..., S, S, 3]} and robot_obs [..., state_size]: [..., E + P]."""
    lead = robot_obs.shape[:-1]
    parts = []
    for camera in self.cameras:
      picture = pictures[camera]
      flat = vision.normalise(picture.reshape(-1, *picture.shape[-3:]))
      parts.append(self.encoders[camera](flat))
    embed = self.fuse_norm(self.fuse(jnp.concatenate(parts, -1))).reshape(*lead, self.embed)
    return jnp.concatenate([embed, self._proprio(robot_obs).astype(embed.dtype)], -1)

  def _proprio(self, robot_obs: jax.Array) -> jax.Array:
    if self.proprio == "none":
      return robot_obs[..., :0]
    if self.proprio in ("sincos", "latent"):
      return self.state_features(robot_obs)
    return (robot_obs - jnp.asarray(self.robot_obs_mean)) / jnp.asarray(self.robot_obs_std)

  def state_features(self, robot_obs: jax.Array) -> jax.Array:
    """`proprio_features` of this robot: [..., state_size] -> [..., P]."""
    return proprio_features(robot_obs, self.embodiment, (self.robot_obs_mean, self.robot_obs_std))

  def decode(self, feature: jax.Array) -> dict[str, jax.Array]:
    """[..., F] -> {camera: [..., S, S, 3]} in about [-1, 1]."""
    return _over_leading(self.decoder, feature)

  def decode_from_embedding(self, embed: jax.Array) -> dict[str, jax.Array]:
    """[..., E + P] -> {camera: [..., S, S, 3]}; exists only with `decode_embedding`."""
    return _over_leading(self.embedding_decoder, embed[..., : self.embed])

  def decode_robot_obs(self, feature: jax.Array) -> jax.Array:
    """[..., F] -> robot state as `proprio_features` [..., P]; exists only with `decode_robot`."""
    return self.robot_decoder(feature).astype(feature.dtype)

  def reported_state(self, feature: jax.Array) -> jax.Array | None:
    """[..., F] -> the robot's state as it would report it [..., state_size]; None if nothing predicts it."""
    if self.carries_robot:
      seen = feature[..., -self.robot_size :][..., : self.embodiment.state_features]
    elif self.decode_robot:
      seen = self.decode_robot_obs(feature)
    else:
      return None
    return reported_state(seen, self.embodiment, (self.robot_obs_mean, self.robot_obs_std))

  def inverse_dynamics(self, first: jax.Array, second: jax.Array) -> jax.Array:
    """Action between two frames, from their embeddings [..., E + P] or features [..., F]: [..., A]."""
    if self.inverse_dynamics_input == "embedding":
      first, second = first[..., : self.embed], second[..., : self.embed]
    predicted = self.inverse_dynamics_head(jnp.concatenate([first, second], -1))
    return predicted.astype(first.dtype)

  def __call__(self, pictures: dict[str, jax.Array], robot_obs: jax.Array) -> Any:
    """Touches every parameter once; used to initialise."""
    embed = self.encode(pictures, robot_obs)
    lead = embed.shape[:-1]
    deter, stoch = jnp.zeros((*lead, self.deter)), jnp.zeros((*lead, self.stoch, self.classes))
    robot = jnp.zeros((*lead, self.robot_size)) if self.carries_robot else None
    action = jnp.zeros((*lead, self.embodiment.action_size))
    deter = self.rssm.recur(deter, stoch, robot, self.rssm.action_term(action))
    robot = None if robot is None else self.rssm.predict_robot(robot, action)
    self.rssm.prior_logits(deter, robot)
    stoch = self.rssm.posterior_logits(deter, self.rssm.embed_term(embed))
    feature = features(Latent(deter=deter, stoch=stoch, logits=stoch, robot=robot))
    if self.decode_embedding:
      self.decode_from_embedding(embed)
    if self.decode_robot:
      self.decode_robot_obs(feature)
    source = embed if self.inverse_dynamics_input == "embedding" else feature
    self.inverse_dynamics(source, source)
    return self.decode(feature)


def _over_leading(decoder: nn.Module, x: jax.Array) -> dict[str, jax.Array]:
  """Decodes [..., X]; pictures come in the dtype of x, whatever the computation's is."""
  pictures = decoder(x.reshape(-1, x.shape[-1]))
  return {camera: p.reshape(*x.shape[:-1], *p.shape[1:]).astype(x.dtype) for camera, p in pictures.items()}


def make_world_model(
  config: Any,
  image_size: int = 64,
  robot_obs_statistics: tuple[Any, Any] | None = None,
  embodiment: Embodiment = CALVIN,
) -> WorldModel:
  """Builds the module described by `config.world_model`.

  Args:
    config: `config.world_model`.
    image_size: S.
    robot_obs_statistics: mean and standard deviation [state_size] of the robot state, where
      `needs_statistics`; None: 0 and 1.
    embodiment: of the robot; `config.cameras` are some of its cameras.

  Raises:
    EmbodimentError: the robot has no such camera.
  """
  if unknown := set(config.cameras) - set(embodiment.camera_names):
    raise EmbodimentError(
      f"world_model.cameras: the robot has no {', '.join(sorted(unknown))}; it has "
      f"{', '.join(embodiment.camera_names)}"
    )
  size = embodiment.state_size
  mean, std = robot_obs_statistics or ((0.0,) * size, (1.0,) * size)
  return WorldModel(
    vision=config.vision,
    cameras=tuple(config.cameras),
    depth=config.depth,
    embed=config.embed,
    deter=config.deter,
    stoch=config.stoch,
    classes=config.classes,
    hidden=config.hidden,
    proprio=config.proprio,
    inverse_dynamics_input=config.inverse_dynamics_input,
    inverse_dynamics_hidden=config.inverse_dynamics_hidden,
    decode_embedding=config.embedding_image_weight > 0,
    # In the latent the state needs no decoder.
    decode_robot=config.robot_obs_weight > 0 and config.proprio != "latent",
    learned_initial_state=config.learned_initial_state,
    memory_frames=config.memory_frames,
    norm_eps=config.norm_eps,
    image_size=image_size,
    robot_obs_mean=tuple(float(x) for x in mean),
    robot_obs_std=tuple(float(x) for x in std),
    embodiment=embodiment,
    dtype=compute_dtype(config.compute_dtype),
  )


def needs_statistics(config: Any, embodiment: Embodiment) -> bool:
  """Whether networks of `config.world_model` normalise the robot's state by the data's statistics."""
  reads_state = config.proprio != "none" or config.robot_obs_weight > 0
  return config.proprio == "zscore" or (reads_state and bool(embodiment.plain.any()))


def compute_dtype(name: str) -> Any:
  """dtype of the computation: that of the parameters (None), bfloat16, or, for auto, by the backend."""
  if name == "auto":
    name = "float32" if backend() == "cpu" else "bfloat16"
  return jnp.bfloat16 if name == "bfloat16" else None
