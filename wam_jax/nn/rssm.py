"""Recurrent state-space model with discrete latents, LUMOS's layout."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax.nn.layers import GRU, NormedSum, gru_gates
from wam_jax.types import Params

CHANGE_SCALE = 5.0  # of the robot's last change in the latent: it is about a fifth of a unit a frame at 30 Hz
RESIDUAL_SCALE = 0.1  # of the network's part of a predicted change


class RobotDynamics(nn.Module):
  """Next state of the robot: s_t + A [change; action] + a small network's correction, zero at the start.

  `robot` [..., 2 P] is the state s_t and its last change, CHANGE_SCALE (s_t - s_{t-1}). The prediction does
  not read the recurrent state: what that gets wrong in a dream would move the robot (docs/EXPERIMENTS.md).

  Attributes:
    state: P, numbers of the state.
    hidden: width of the network.
    dtype: of its matrix products; states are in the dtype of `robot`.

  Source: none; the published model has discrete codes alone. A robot reports its own state, and codes with a
  KL term do not hold three lengths to a millimetre.
  """

  state: int
  hidden: int
  dtype: Any = None

  @nn.compact
  def __call__(self, robot: jax.Array, action: jax.Array) -> jax.Array:
    """robot [..., 2 P] of frame t - 1, action [..., A] taken there -> robot [..., 2 P] of frame t."""
    zeros = nn.initializers.zeros
    before, change = robot[..., : self.state], robot[..., self.state :]
    linear = nn.Dense(self.state, kernel_init=zeros, name="linear")(jnp.concatenate([change, action], -1))
    x = nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(jnp.concatenate([before, change, action], -1))
    residual = nn.Dense(self.state, kernel_init=zeros, name="residual")(nn.elu(x).astype(robot.dtype))
    moved = linear + RESIDUAL_SCALE * residual
    return jnp.concatenate([before + moved, CHANGE_SCALE * moved], -1)


def seen_robot(state: jax.Array, before: jax.Array, is_first: jax.Array) -> jax.Array:
  """`robot` of a frame whose state is reported.

  Args:
    state: [..., P].
    before: [..., 2 P], robot of the frame before.
    is_first: [...] bool; no change is known there.

  Returns:
    [..., 2 P].
  """
  change = CHANGE_SCALE * (state - before[..., : state.shape[-1]])
  return jnp.concatenate([state, jnp.where(is_first[..., None], 0.0, change)], -1)


class RSSM(nn.Module):
  """h_t = GRU(ELU(LN(W_z z_{t-1} + W_a a_{t-1})), h_{t-1}); prior p(z_t | h_t), posterior q(z_t | h_t, e_t).

  Products with inputs that do not depend on the state (`action_term`, `embed_term`) are methods of
  their own, to be taken over all frames before the scan.

  With `robot_state` the latent also holds the robot's state and its last change (`RobotDynamics`): the
  recurrent unit and the prior read them, and `predict_robot` predicts them.

  Attributes:
    deter: D.
    stoch: S.
    classes: C.
    hidden: width of the layers between.
    norm_eps: of the layer norms.
    learned_initial_state: hold parameters for the state before the first frame (LUMOS), instead of zeros.
    robot_state: P, numbers of the robot's state in the latent; 0: none.
    memory_frames: of `nn.layers.GRU`.
    dtype: of the matrix products; states and logits keep the dtype of the state.
  """

  deter: int
  stoch: int
  classes: int
  hidden: int
  norm_eps: float = 1e-3
  learned_initial_state: bool = False
  robot_state: int = 0
  memory_frames: int = 0
  dtype: Any = None

  def setup(self) -> None:
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    norm = functools.partial(NormedSum, self.norm_eps)
    self.from_stoch = dense(self.hidden)
    self.from_action = dense(self.hidden, use_bias=False)
    self.input_norm = norm()
    self.gru = GRU(self.deter, self.memory_frames, self.dtype)
    self.prior_hidden = dense(self.hidden)
    self.prior_norm = norm()
    self.prior_output = dense(self.stoch * self.classes)
    self.posterior_hidden = dense(self.hidden)
    self.from_embed = dense(self.hidden, use_bias=False)
    self.posterior_norm = norm()
    self.posterior_output = dense(self.stoch * self.classes)
    if self.robot_state:
      self.from_robot = dense(self.hidden, use_bias=False)
      self.prior_robot = dense(self.hidden, use_bias=False)
      self.robot_dynamics = RobotDynamics(self.robot_state, self.hidden, self.dtype)
    if self.learned_initial_state:
      self.initial_deter = self.param("initial_deter", nn.initializers.zeros, (self.deter,))
      self.initial_stoch = self.param("initial_stoch", nn.initializers.zeros, (self.stoch * self.classes,))

  def initial_state(self) -> tuple[jax.Array, jax.Array]:
    """Learned state before the first frame: deter [D] and stoch [S, C] (not one-hot)."""
    return self.initial_deter, self.initial_stoch.reshape(self.stoch, self.classes)

  def action_term(self, action: jax.Array) -> jax.Array:
    """[..., A] -> [..., hidden]."""
    return self.from_action(action)

  def embed_term(self, embed: jax.Array) -> jax.Array:
    """[..., E] -> [..., hidden]."""
    return self.from_embed(embed)

  def recur(
    self,
    deter: jax.Array,
    stoch: jax.Array,
    robot: jax.Array | None,
    action_term: jax.Array,
  ) -> jax.Array:
    """One step of what does not depend on the next picture.

    Args:
      deter: [..., D].
      stoch: [..., S, C].
      robot: [..., 2 P], or None without `robot_state`.
      action_term: [..., hidden], of the action.

    Returns:
      Next deter [..., D].
    """
    terms = [self.from_stoch(stoch.reshape(*stoch.shape[:-2], -1)), action_term]
    if robot is not None:
      terms.append(self.from_robot(robot))
    next_deter: jax.Array = self.gru(deter, self.input_norm(*terms))
    return next_deter

  def predict_robot(self, robot: jax.Array, action: jax.Array) -> jax.Array:
    """`RobotDynamics`: robot [..., 2 P], action [..., A] -> [..., 2 P]."""
    predicted: jax.Array = self.robot_dynamics(robot, action)
    return predicted

  def prior_logits(self, deter: jax.Array, robot: jax.Array | None) -> jax.Array:
    """deter [..., D], robot [..., 2 P] of the same frame or None -> [..., S, C]."""
    terms = [self.prior_hidden(deter)]
    if robot is not None:
      terms.append(self.prior_robot(robot))
    logits = self.prior_output(self.prior_norm(*terms))
    return logits.reshape(*deter.shape[:-1], self.stoch, self.classes).astype(deter.dtype)

  def posterior_logits(self, deter: jax.Array, embed_term: jax.Array) -> jax.Array:
    """deter [..., D], embed_term [..., hidden] -> [..., S, C]."""
    logits = self.posterior_output(self.posterior_norm(self.posterior_hidden(deter), embed_term))
    return logits.reshape(*deter.shape[:-1], self.stoch, self.classes).astype(deter.dtype)


def arrange_for_prior_steps(params: Params) -> Params:
  """RSSM parameters laid out for `prior_step`; to be done once, outside the loop over steps.

  The kernels of the large products are transposed: with few rows, as in dreams, they are then read in
  the order in which they lie in memory.
  """
  out = dict(params)
  for path in (("gru", "input"), ("gru", "recurrent"), ("prior_hidden",), ("prior_output",)):
    layer = params
    for name in path:
      layer = layer[name]
    # The barrier keeps XLA from taking the transposition back.
    kernel = jax.lax.optimization_barrier(layer["kernel"].T)
    out["/".join(path)] = {"kernel": kernel, "bias": layer["bias"]}
  return out


def prior_step(
  arranged: Params,
  deter: jax.Array,
  stoch: jax.Array,
  robot: jax.Array | None,
  action: jax.Array,
  norm_eps: float,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
  """`recur` and `prior_logits` of a `RSSM` in float32, faster on a CPU; not for training.

  Args:
    arranged: from `arrange_for_prior_steps`.
    deter: [E, D].
    stoch: [E, S, C], exactly one-hot: its product is a sum of S rows of the kernel.
    robot: [E, 2 P], or None of a model that does not carry it.
    action: [E, A].
    norm_eps: of the layer norms.

  Returns:
    deter [E, D], robot [E, 2 P] or None, and logits [E, S, C].
  """
  _, num, classes = stoch.shape

  def product(name: str, x: jax.Array) -> jax.Array:
    layer = arranged[name]
    return jax.lax.dot_general(x, layer["kernel"], (((1,), (1,)), ((), ()))) + layer["bias"]

  def norm(name: str, *terms: jax.Array) -> jax.Array:
    out: Any = NormedSum(norm_eps).apply({"params": arranged[name]}, *terms)
    return out

  rows = (stoch * jnp.arange(classes)).sum(-1).astype(jnp.int32) + jnp.arange(num) * classes
  table, bias = arranged["from_stoch"]["kernel"], arranged["from_stoch"]["bias"]
  start = jnp.broadcast_to(bias, (len(deter), len(bias)))
  from_stoch = jax.lax.fori_loop(0, num, lambda i, total: total + table[rows[:, i]], start)
  terms = [from_stoch, action @ arranged["from_action"]["kernel"]]
  if robot is not None:
    terms.append(robot @ arranged["from_robot"]["kernel"])
  x = norm("input_norm", *terms)
  deter = gru_gates(deter, product("gru/input", x), product("gru/recurrent", deter))
  terms = [product("prior_hidden", deter)]
  if robot is not None:
    dynamics = RobotDynamics(robot.shape[-1] // 2, arranged["robot_dynamics"]["hidden"]["bias"].shape[0])
    predicted: Any = dynamics.apply({"params": arranged["robot_dynamics"]}, robot, action)
    robot = predicted
    terms.append(robot @ arranged["prior_robot"]["kernel"])
  logits = product("prior_output", norm("prior_norm", *terms))
  return deter, robot, logits.reshape(stoch.shape)
