"""Recurrent state-space model with discrete latents, LUMOS's layout."""

from __future__ import annotations

import flax.linen as nn
import jax

from wam_jax.nn.layers import GRU, NormedSum


class RSSM(nn.Module):
  """h_t = GRU(ELU(LN(W_z z_{t-1} + W_a a_{t-1})), h_{t-1}); prior p(z_t | h_t), posterior q(z_t | h_t, e_t).

  Products with inputs that do not depend on the state (`action_term`, `embed_term`) are methods of
  their own, to be taken over all frames before the scan.

  Attributes:
    deter: D.
    stoch: S.
    classes: C.
    hidden: width of the layers between.
  """

  deter: int
  stoch: int
  classes: int
  hidden: int

  def setup(self) -> None:
    self.from_stoch = nn.Dense(self.hidden)
    self.from_action = nn.Dense(self.hidden, use_bias=False)
    self.input_norm = NormedSum()
    self.gru = GRU(self.deter)
    self.prior_hidden = nn.Dense(self.hidden)
    self.prior_norm = NormedSum()
    self.prior_output = nn.Dense(self.stoch * self.classes)
    self.posterior_hidden = nn.Dense(self.hidden)
    self.from_embed = nn.Dense(self.hidden, use_bias=False)
    self.posterior_norm = NormedSum()
    self.posterior_output = nn.Dense(self.stoch * self.classes)

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
    return logits.reshape(*deter.shape[:-1], self.stoch, self.classes)

  def posterior_logits(self, deter: jax.Array, embed_term: jax.Array) -> jax.Array:
    """deter [..., D], embed_term [..., hidden] -> [..., S, C]."""
    logits = self.posterior_output(self.posterior_norm(self.posterior_hidden(deter), embed_term))
    return logits.reshape(*deter.shape[:-1], self.stoch, self.classes)
