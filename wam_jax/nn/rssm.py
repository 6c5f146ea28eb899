"""Recurrent state-space model with discrete latents, LUMOS's layout."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax.nn.layers import GRU, NormedSum, gru_gates
from wam_jax.types import Params


class RSSM(nn.Module):
  """h_t = GRU(ELU(LN(W_z z_{t-1} + W_a a_{t-1})), h_{t-1}); prior p(z_t | h_t), posterior q(z_t | h_t, e_t).

  Products with inputs that do not depend on the state (`action_term`, `embed_term`) are methods of
  their own, to be taken over all frames before the scan.

  Attributes:
    deter: D.
    stoch: S.
    classes: C.
    hidden: width of the layers between.
    norm_eps: of the layer norms.
    learned_initial_state: hold parameters for the state before the first frame (LUMOS), instead of zeros.
    dtype: of the matrix products; states and logits keep the dtype of the state.
  """

  deter: int
  stoch: int
  classes: int
  hidden: int
  norm_eps: float = 1e-3
  learned_initial_state: bool = False
  dtype: Any = None

  def setup(self) -> None:
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    norm = functools.partial(NormedSum, self.norm_eps)
    self.from_stoch = dense(self.hidden)
    self.from_action = dense(self.hidden, use_bias=False)
    self.input_norm = norm()
    self.gru = GRU(self.deter, self.dtype)
    self.prior_hidden = dense(self.hidden)
    self.prior_norm = norm()
    self.prior_output = dense(self.stoch * self.classes)
    self.posterior_hidden = dense(self.hidden)
    self.from_embed = dense(self.hidden, use_bias=False)
    self.posterior_norm = norm()
    self.posterior_output = dense(self.stoch * self.classes)
    if self.learned_initial_state:
      self.initial_deter = self.param("initial_deter", nn.initializers.zeros, (self.deter,))
      self.initial_stoch = self.param("initial_stoch", nn.initializers.zeros, (self.stoch * self.classes,))

  def initial_state(self) -> tuple[jax.Array, jax.Array]:
    """Learned state before the first frame: deter [D] and stoch [S, C] (not one-hot)."""
    return self.initial_deter, self.initial_stoch.reshape(self.stoch, self.classes)

  def action_term(self, action: jax.Array) -> jax.Array:
    """[..., 7] -> [..., hidden]."""
    return self.from_action(action)

  def embed_term(self, embed: jax.Array) -> jax.Array:
    """[..., E] -> [..., hidden]."""
    return self.from_embed(embed)

  def recur(self, deter: jax.Array, stoch: jax.Array, action_term: jax.Array) -> jax.Array:
    """deter [..., D], stoch [..., S, C], action_term [..., hidden] -> next deter [..., D]."""
    flat = stoch.reshape(*stoch.shape[:-2], -1)
    return self.gru(deter, self.input_norm(self.from_stoch(flat), action_term))

  def prior_logits(self, deter: jax.Array) -> jax.Array:
    """[..., D] -> [..., S, C]."""
    logits = self.prior_output(self.prior_norm(self.prior_hidden(deter)))
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
  arranged: Params, deter: jax.Array, stoch: jax.Array, action: jax.Array, norm_eps: float
) -> tuple[jax.Array, jax.Array]:
  """`recur` and `prior_logits` of a `RSSM` in float32, faster on a CPU; not for training.

  Args:
    arranged: from `arrange_for_prior_steps`.
    deter: [E, D].
    stoch: [E, S, C], exactly one-hot: its product is a sum of S rows of the kernel.
    action: [E, 7].
    norm_eps: of the layer norms.

  Returns:
    deter [E, D] and logits [E, S, C].
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
  x = norm("input_norm", from_stoch, action @ arranged["from_action"]["kernel"])
  deter = gru_gates(deter, product("gru/input", x), product("gru/recurrent", deter))
  logits = product("prior_output", norm("prior_norm", product("prior_hidden", deter)))
  return deter, logits.reshape(stoch.shape)
