"""The pytrees and Protocols that rooms hand to each other.

Shape letters, here and everywhere: B batch, T time, H chunk, A action (CALVIN's: 7), D deter, S stochastic
variables, C classes per variable, P robot state, R robot state and its change (2 P, or 0), F feature
(D + S*C + R), K denoising steps, E dreams, N chunks.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

Params = Any
Metrics = dict[str, jax.Array]


class Latent(struct.PyTreeNode):
  """State of the recurrent state-space model.

  Attributes:
    deter: [..., D] float, hidden state h_t of the GRU.
    stoch: [..., S, C] float, z_t, one-hot in the forward pass.
    logits: [..., S, C] float, unnormalised log-probabilities z_t was drawn from.
    robot: [..., R] float, the robot's state s_t and its last change, where the model carries them
      (`nn.rssm.RobotDynamics`); else None.
  """

  deter: jax.Array
  stoch: jax.Array
  logits: jax.Array
  robot: jax.Array | None = None


def features(latent: Latent) -> jax.Array:
  """Feature f_t = [h_t, z_t], or [h_t, z_t, robot] of a model that carries the robot's state.

  Args:
    latent: deter [..., D], stoch [..., S, C], robot [..., R] or None.

  Returns:
    [..., D + S*C + R].
  """
  parts = [latent.deter, latent.stoch.reshape(*latent.stoch.shape[:-2], -1)]
  return jnp.concatenate(parts if latent.robot is None else [*parts, latent.robot], -1)


def latent_from_features(feature: jax.Array, num_stoch: int, num_classes: int, robot_size: int = 0) -> Latent:
  """Inverse of `features`, for starting a dream from a stored feature.

  Args:
    feature: [..., D + S*C + R].
    num_stoch: S.
    num_classes: C.
    robot_size: R; 0 for a model that does not carry the robot's state.

  Returns:
    Latent whose logits are zero: they are not part of the feature, and no step reads them.
  """
  stoch_end = feature.shape[-1] - robot_size
  stoch_start = stoch_end - num_stoch * num_classes
  flat = feature[..., stoch_start:stoch_end]
  stoch = flat.reshape(*flat.shape[:-1], num_stoch, num_classes)
  return Latent(
    deter=feature[..., :stoch_start],
    stoch=stoch,
    logits=jnp.zeros_like(stoch),
    robot=feature[..., stoch_end:] if robot_size else None,
  )


class Batch(struct.PyTreeNode):
  """A batch of windows of frames.

  The alignment of action and observation is stated here and nowhere else: `action[:, t]` is taken
  at the observation of frame t and leads to frame t + 1; `prev_action[:, t]` led to frame t, and
  at an episode's first frame it is `Embodiment.rest_action`: of CALVIN's robot no motion, the gripper open.

  Attributes:
    pictures: camera -> [B, T, S, S, 3] uint8 (float is taken as normalised to [-1, 1] already).
    robot_obs: [B, T, state_size] float32, what the robot reports; CALVIN's: tcp xyz [m], Euler angles [rad],
      gripper width [m], 7 joints [rad], last gripper action.
    action: [B, T, A] float32 in [-1, 1].
    prev_action: [B, T, A] float32 in [-1, 1].
    is_first: [B, T] bool, true at the first frame of an episode.
    mask: [B, T] bool, false at padding.
  """

  pictures: dict[str, jax.Array]
  robot_obs: jax.Array
  action: jax.Array
  prev_action: jax.Array
  is_first: jax.Array
  mask: jax.Array


class Takes(struct.PyTreeNode):
  """Takes of one task, filtered through the frozen world model (stacked over tasks: a leading axis K more).

  Attributes:
    feature: [M, T, F] float32 of M takes, padded at the end to T frames.
    action: [M, T, A] float32 in [-1, 1], taken at that frame.
    success: [M, T] bool, the task's predicate holds, relative to the take's first frame.
    mask: [M, T] bool, false at padding.
  """

  feature: Any  # on the host until a program takes them
  action: Any
  success: Any
  mask: Any


class Dream(struct.PyTreeNode):
  """An imagined rollout of E environments over N chunks (time-major inside scans).

  Attributes:
    feature: [N, E, F], feature that the chunk was sampled at.
    chain: [N, E, K'+1, H, A], denoising chain, noisiest first, the executed chunk last.
    log_prob: [N, E, K'], clamped mean log-probability of each denoising step.
    reward: [N, E], 1 for success, less a penalty where the world model is unsure (by config).
    value: [N, E], critic at `feature`.
    terminated: [N, E] bool, the task succeeded.
    truncated: [N, E] bool, the horizon was reached without success.
    bootstrap_value: [N, E], value of the feature that the dream's own chunk led to, also where it was cut
      there; without meaning where terminated.
    time_left: [N, E] in [0, 1], share of the horizon left at `feature`.
  """

  feature: jax.Array
  chain: jax.Array
  log_prob: jax.Array
  reward: jax.Array
  value: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  bootstrap_value: jax.Array
  time_left: jax.Array


class TrainState(struct.PyTreeNode):
  """What a training stage carries and saves.

  Random keys are derived from (seed, stage, step) and need no saving.

  Attributes:
    step: scalar int32, updates done.
    params: parameters being trained.
    opt_state: optax state.
    ema_params: exponential moving average of params, or None.
    carry: state that the next update starts from, beside the parameters, or None: the Latent [B, ...]
      of the world model's carried windows.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  ema_params: Params = None
  carry: Any = None


class Policy(Protocol):
  """A policy on features: static sizes and pure functions of its parameters.

  Parameters of one network are a tree; the policy's are {"base": network, "tuned": network}. A chunk comes
  out of a chain of K' + 1 entries whose K' transitions are what PPO trains, each a Gaussian; a policy
  that is a single Gaussian has K' = 1.
  """

  @property
  def feature_size(self) -> int:
    """F."""
    ...

  @property
  def chunk(self) -> int:
    """H."""
    ...

  @property
  def fine_tuned_steps(self) -> int:
    """K'."""
    ...

  def init(self, key: jax.Array) -> Params:
    """Random parameters of one network."""
    ...

  def cloning_loss(self, network: Params, feature: jax.Array, chunk: jax.Array, key: jax.Array) -> jax.Array:
    """Loss of demo chunks, [B, F] and [B, H, A] in [-1, 1] -> scalar."""
    ...

  def draw_noise(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """x_init [*shape, H, A] and noise [K, *shape, H, A] for `sample_chain`."""
    ...

  def sample_chain(
    self,
    params: Params,
    feature: jax.Array,
    x_init: jax.Array,
    noise: jax.Array,
    deterministic: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """[..., F] -> chunk [..., H, A] and chain [..., K'+1, H, A], which ends with the chunk."""
    ...

  def sample(
    self, params: Params, feature: jax.Array, key: jax.Array, deterministic: bool = False
  ) -> jax.Array:
    """[..., F] -> chunk [..., H, A], motion not yet clipped, gripper not yet set to its sign."""
    ...

  def log_prob(self, network: Params, feature: jax.Array, chain: jax.Array) -> jax.Array:
    """Log-densities of a chain's transitions, [..., K'+1, H, A] -> [..., K', H, A]."""
    ...

  def log_prob_of_noise(self, noise: jax.Array) -> jax.Array:
    """`log_prob` of the stochastic chain that `noise` drew, [K, ..., H, A] -> [..., K', H, A]."""
    ...
