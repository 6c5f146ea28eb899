"""The world model's networks: encoders, recurrent model, decoders, inverse dynamics."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax.nn import vision
from wam_jax.nn.layers import MLP, NormedSum
from wam_jax.nn.rssm import RSSM

CAMERAS = ("rgb_static", "rgb_gripper")
ACTION = 7


class Decoder(nn.Module):
  """Vector -> both cameras' pictures.

  With `conv` vision, one Linear is shared by the cameras, as in LUMOS; with `patch` each has its own.
  """

  vision: str
  depth: int
  image_size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """[N, X] -> {camera: [N, S, S, 3]}."""
    if self.vision == "conv":
      x = nn.Dense(32 * self.depth, name="shared")(x)
      return {camera: vision.ConvDecoder(self.depth, name=camera)(x) for camera in CAMERAS}
    return {camera: vision.PatchDecoder(self.depth, self.image_size, name=camera)(x) for camera in CAMERAS}


class WorldModel(nn.Module):
  """DreamerV2's world model with an inverse-dynamics head on encoder embeddings (WAM).

  Attributes follow `config.world_model`; see `make_world_model`.
  """

  vision: str
  depth: int
  embed: int
  deter: int
  stoch: int
  classes: int
  hidden: int
  proprio: bool
  inverse_dynamics_hidden: int
  decode_embedding: bool
  image_size: int

  @property
  def feature_size(self) -> int:
    return self.deter + self.stoch * self.classes

  def setup(self) -> None:
    encoder = vision.ConvEncoder if self.vision == "conv" else vision.PatchEncoder
    self.encoders = {camera: encoder(self.depth, name=f"encoder_{camera}") for camera in CAMERAS}
    self.fuse = nn.Dense(self.embed)
    self.fuse_norm = NormedSum()
    self.rssm = RSSM(self.deter, self.stoch, self.classes, self.hidden)
    self.decoder = Decoder(self.vision, self.depth, self.image_size)
    width = self.inverse_dynamics_hidden
    self.inverse_dynamics_head = MLP((width, width), ACTION)
    if self.decode_embedding:
      self.embedding_decoder = Decoder(self.vision, self.depth, self.image_size)

  def encode(self, rgb_static: jax.Array, rgb_gripper: jax.Array, proprio: jax.Array) -> jax.Array:
    """uint8 [..., S, S, 3] twice and proprio [..., P] -> e [..., E]."""
    lead = rgb_static.shape[:-3]
    parts = []
    for camera, picture in zip(CAMERAS, (rgb_static, rgb_gripper), strict=True):
      flat = picture.reshape(-1, *picture.shape[-3:])
      parts.append(self.encoders[camera](vision.normalise(flat)))
    if self.proprio:
      parts.append(proprio.reshape(-1, proprio.shape[-1]))
    return self.fuse_norm(self.fuse(jnp.concatenate(parts, -1))).reshape(*lead, self.embed)

  def decode(self, feature: jax.Array) -> dict[str, jax.Array]:
    """[..., F] -> {camera: [..., S, S, 3]} in about [-1, 1]."""
    return _over_leading(self.decoder, feature)

  def decode_from_embedding(self, embed: jax.Array) -> dict[str, jax.Array]:
    """[..., E] -> {camera: [..., S, S, 3]}; exists only with `decode_embedding`."""
    return _over_leading(self.embedding_decoder, embed)

  def inverse_dynamics(self, embed: jax.Array, next_embed: jax.Array) -> jax.Array:
    """Predicted action between two frames: e_t, e_{t+1} [..., E] -> [..., 7]."""
    return self.inverse_dynamics_head(jnp.concatenate([embed, next_embed], -1))

  def action_term(self, action: jax.Array) -> jax.Array:
    return self.rssm.action_term(action)

  def embed_term(self, embed: jax.Array) -> jax.Array:
    return self.rssm.embed_term(embed)

  def recur(self, deter: jax.Array, stoch: jax.Array, action_term: jax.Array) -> jax.Array:
    return self.rssm.recur(deter, stoch, action_term)

  def prior_logits(self, deter: jax.Array) -> jax.Array:
    return self.rssm.prior_logits(deter)

  def posterior_logits(self, deter: jax.Array, embed_term: jax.Array) -> jax.Array:
    return self.rssm.posterior_logits(deter, embed_term)

  def __call__(self, rgb_static: jax.Array, rgb_gripper: jax.Array, proprio: jax.Array) -> Any:
    """Touches every parameter once; used to initialise."""
    embed = self.encode(rgb_static, rgb_gripper, proprio)
    lead = embed.shape[:-1]
    deter, stoch = jnp.zeros((*lead, self.deter)), jnp.zeros((*lead, self.stoch, self.classes))
    deter = self.recur(deter, stoch, self.action_term(jnp.zeros((*lead, ACTION))))
    self.prior_logits(deter)
    stoch = self.posterior_logits(deter, self.embed_term(embed))
    if self.decode_embedding:
      self.decode_from_embedding(embed)
    self.inverse_dynamics(embed, embed)
    return self.decode(jnp.concatenate([deter, stoch.reshape(*lead, -1)], -1))


def _over_leading(decoder: nn.Module, x: jax.Array) -> dict[str, jax.Array]:
  pictures = decoder(x.reshape(-1, x.shape[-1]))
  return {camera: p.reshape(*x.shape[:-1], *p.shape[1:]) for camera, p in pictures.items()}


def make_world_model(config: Any, image_size: int = 64) -> WorldModel:
  """Builds the module described by `config.world_model`."""
  return WorldModel(
    vision=config.vision,
    depth=config.depth,
    embed=config.embed,
    deter=config.deter,
    stoch=config.stoch,
    classes=config.classes,
    hidden=config.hidden,
    proprio=config.proprio,
    inverse_dynamics_hidden=config.inverse_dynamics_hidden,
    decode_embedding=config.embedding_image_weight > 0,
    image_size=image_size,
  )
