"""Agreement with DPPO's numbers (fixtures dppo_policy.npz and dppo_ppo_loss.npz).

The folder is WAM_FIXTURES, by default `fixtures` beside this file. Every size and constant comes
from the files. Tolerances are those the fixtures' README suggests: loose where the schedule tables
are our own, tight where the stored tables are put in.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import diffusion, returns
from wam_jax.core import ppo as ppo_loss
from wam_jax.nn.policies.critic import Critic
from wam_jax.nn.policies.diffusion import DiffusionPolicy, time_embedding

FOLDER = pathlib.Path(os.environ.get("WAM_FIXTURES", pathlib.Path(__file__).parent / "fixtures"))


class Fixture:
  """One file: arrays by name, constants by `c`, and networks in our layout."""

  def __init__(self, name: str):
    path = FOLDER / name
    if not path.exists():
      pytest.skip(f"no {path}")
    self.arrays = dict(np.load(path, allow_pickle=False))

  def __getitem__(self, key: str) -> np.ndarray:
    return self.arrays[key]

  def c(self, key: str):
    value = self.arrays[f"config/{key}"]
    return value.item() if value.ndim == 0 else value.tolist()

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    found = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
    assert found, prefix
    return found

  def policy(self) -> DiffusionPolicy:
    dims = self.c("actor_mlp_dims")
    return DiffusionPolicy(
      feature_size=self.c("cond_dim"),
      chunk=self.c("horizon_steps"),
      action=self.c("action_dim"),
      hidden=dims[0],
      blocks=(len(dims) - 1) // 2,
      time_dim=self.c("time_dim"),
      denoising_steps=self.c("denoising_steps"),
      fine_tuned_steps=self.c("ft_denoising_steps"),
      min_sampling_std=self.c("min_sampling_denoising_std"),
      min_log_prob_std=self.c("min_logprob_denoising_std"),
    )

  def actor(self, weights: dict[str, np.ndarray]) -> dict:
    """Torch weights (or gradients) of a noise network in our layout."""
    chunk = self.c("horizon_steps") * self.c("action_dim")
    time = self.c("time_dim")
    first = weights["mlp_mean.layers.0.weight"].T
    body = _residual(weights, "mlp_mean.layers.")
    return {
      "time_first": _dense(weights, "time_embedding.1"),
      "time_second": _dense(weights, "time_embedding.3"),
      "chunk_in": {"kernel": first[:chunk]},
      "time_in": {"kernel": first[chunk : chunk + time]},
      "feature_in": {"kernel": first[chunk + time :], "bias": weights["mlp_mean.layers.0.bias"]},
      "body": body,
    }

  def critic(self, weights: dict[str, np.ndarray]) -> dict:
    return {"input": _dense(weights, "Q1.layers.0"), "body": _residual(weights, "Q1.layers.")}

  def critic_module(self) -> Critic:
    return Critic(tuple(self.c("critic_mlp_dims")))

  def stored_schedule(self) -> diffusion.Schedule:
    t = self.group("schedule/")
    return diffusion.Schedule(
      beta=t["betas"],
      alpha_bar=t["alphas_cumprod"],
      sqrt_alpha_bar=t["sqrt_alphas_cumprod"],
      sqrt_one_minus_alpha_bar=t["sqrt_one_minus_alphas_cumprod"],
      sqrt_recip_alpha_bar=t["sqrt_recip_alphas_cumprod"],
      sqrt_recipm1_alpha_bar=t["sqrt_recipm1_alphas_cumprod"],
      posterior_std=np.exp(0.5 * t["ddpm_logvar_clipped"]),
      posterior_x0=t["ddpm_mu_coef1"],
      posterior_xt=t["ddpm_mu_coef2"],
    )


def _dense(weights: dict[str, np.ndarray], name: str) -> dict:
  return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def _residual(weights: dict[str, np.ndarray], prefix: str) -> dict:
  count = max(int(k.removeprefix(prefix).split(".")[0]) for k in weights if k.startswith(prefix))
  out = {"output": _dense(weights, f"{prefix}{count}")}
  for i in range(count - 1):
    out[f"block{i}_first"] = _dense(weights, f"{prefix}{i + 1}.l1")
    out[f"block{i}_second"] = _dense(weights, f"{prefix}{i + 1}.l2")
  return out


@pytest.fixture(scope="module")
def pre():
  return Fixture("dppo_policy.npz")


@pytest.fixture(scope="module")
def loss():
  return Fixture("dppo_ppo_loss.npz")


def close(actual, expected, atol):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def grads_close(actual, expected, share):
  """Every array within `share` of its own largest entry."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(lambda a, e: close(a, e, share * np.abs(e).max()), actual, expected)


def test_schedule_tables(pre):
  ours = diffusion.make_schedule(pre.c("denoising_steps"))
  for field in dataclasses.fields(ours):
    np.testing.assert_allclose(
      getattr(ours, field.name), getattr(pre.stored_schedule(), field.name), rtol=5e-5, atol=0
    )
    assert getattr(ours, field.name).dtype == np.float32


def test_time_embedding(pre):
  ours = time_embedding(jnp.arange(pre.c("denoising_steps")), pre.c("time_dim"))
  close(ours, pre["time_embedding"], 1e-6)


@pytest.mark.parametrize("name", ["base", "ft"])
def test_noise_prediction_and_posterior_mean(pre, name):
  policy, state = pre.policy(), pre["input/state"][:, 0]
  network = pre.actor(pre.group(f"param/actor_{name}/"))
  x, t = pre["input/eps_x"], pre["input/eps_t"]
  eps = jax.jit(policy.eps)(network, x, t, state)
  close(eps, pre[f"eps/{name}"], 5e-6)
  # Their mean of the tuned policy comes from the base network above K'.
  tuned = (t < policy.fine_tuned_steps)[:, None, None]
  eps = np.where(tuned, eps, pre["eps/base"])
  mean = diffusion.posterior_mean(policy.schedule, x, t, eps)
  close(mean, pre[f"p_mean_var/mean_{name}"], 3e-5)
  log_var = 2 * np.log(policy.schedule.posterior_std[t])
  close(log_var, pre["p_mean_var/logvar"].reshape(log_var.shape), 1e-5)


def test_bc_loss_and_gradient(pre):
  policy, state = pre.policy(), pre["input/state"][:, 0]
  x0, t, noise = pre["input/bc_x0"], pre["input/bc_t"], pre["input/bc_noise"]
  close(diffusion.q_sample(policy.schedule, x0, t, noise), pre["bc/x_noisy"], 5e-6)

  def bc_loss(network):
    x = diffusion.q_sample(policy.schedule, x0, t, noise)
    return jnp.mean(jnp.square(policy.eps(network, x, t, state) - noise))

  value, grad = jax.jit(jax.value_and_grad(bc_loss))(pre.actor(pre.group("param/actor_base/")))
  close(value, pre["bc/loss"], 5e-6)
  grads_close(grad, pre.actor(pre.group("bc/grad/")), 1e-5)


@pytest.mark.parametrize("tuned", ["ft", "base"])
@pytest.mark.parametrize("kind", ["stochastic", "deterministic"])
def test_sampled_chains(pre, kind, tuned):
  params = {
    "base": pre.actor(pre.group("param/actor_base/")),
    "tuned": pre.actor(pre.group(f"param/actor_{tuned}/")),
  }
  chunk, chain = jax.jit(pre.policy().sample_chain, static_argnums=4)(
    params,
    pre["input/state"][:, 0],
    pre[f"input/{kind}_x_init"],
    pre[f"input/{kind}_noise"],
    kind == "deterministic",
  )
  close(chunk, pre[f"sample/{kind}/{tuned}/trajectories"], 3e-5)
  close(chain, pre[f"sample/{kind}/{tuned}/chains"], 3e-5)


@pytest.mark.parametrize("name", ["base", "ft"])
def test_chain_log_probs(pre, name, monkeypatch):
  network = pre.actor(pre.group(f"param/actor_{name}/"))
  args = network, pre["input/state"][:, 0], pre["input/logprob_chains"]
  log_prob = lambda: jax.jit(lambda *args: pre.policy().log_prob(*args))(*args)
  close(log_prob(), pre[f"logprobs/{name}"], 5e-4)
  monkeypatch.setattr(diffusion, "make_schedule", lambda *_: pre.stored_schedule())
  close(log_prob(), pre[f"logprobs/{name}"], 5e-5)


def test_critic(pre):
  state = pre["input/state"][:, 0]
  params = pre.critic(pre.group("param/critic/"))
  value = jax.jit(pre.critic_module().apply)({"params": params}, state, np.ones(len(state), np.float32))
  close(value, pre["value"][:, 0], 5e-6)


def _log_prob_bounds(network_log_prob, loss):
  # -5 and 2 are DPPO's; the fixtures do not list them among their constants.
  # DPPO can count the executed actions alone.
  return ppo_loss.mean_log_prob(network_log_prob[..., : loss.c("reward_horizon"), :], -5.0, 2.0)


def _chain_loss(loss, variant, network):
  """pg loss, metrics, and the raw log-probabilities, of the pair-wise or chain-wise form."""
  policy, state, chains = loss.policy(), loss["input/state"][:, 0], loss["input/chains"]
  steps = policy.fine_tuned_steps
  discount = ppo_loss.step_discount(steps, loss.c("gamma_denoising"))
  clip = ppo_loss.clip_range(
    steps, loss.c("clip_ploss_coef_base"), loss.c("clip_ploss_coef"), loss.c("clip_ploss_coef_rate")
  )
  log_prob = policy.log_prob(network, state, chains)
  old = loss["input/oldlogprobs"]
  if variant == "chainwise":
    advantage = ppo_loss.normalise(loss["input/advantages"])[:, None] * discount
    clip = jnp.broadcast_to(clip, advantage.shape)
  else:
    b, k = loss["input/batch_inds"], loss["input/denoising_inds"]
    log_prob, old = log_prob[b, k], old[b, k]
    advantage, clip = ppo_loss.normalise(loss["input/advantages"][b]) * discount[k], clip[k]
  new_mean, old_mean = _log_prob_bounds(log_prob, loss), _log_prob_bounds(old, loss)
  value, metrics = ppo_loss.clipped_chain_loss(new_mean, old_mean, advantage, clip)
  return value, (metrics, log_prob, jnp.exp(new_mean - old_mean), clip)


@pytest.mark.parametrize("stored_tables", [False, True])
@pytest.mark.parametrize("variant", ["head", "chainwise"])
def test_ppo_loss_and_gradient(pre, loss, variant, stored_tables, monkeypatch):
  if stored_tables:
    # The tables depend on K alone; only the other file holds them.
    if pre.c("denoising_steps") != loss.c("denoising_steps"):
      pytest.skip("the files differ in K")
    monkeypatch.setattr(diffusion, "make_schedule", lambda *_: pre.stored_schedule())
  network = loss.actor(loss.group("param/actor_ft/"))
  grad_fn = jax.jit(jax.value_and_grad(lambda n: _chain_loss(loss, variant, n), has_aux=True))
  (value, (metrics, log_prob, ratio, clip)), grad = grad_fn(network)
  close(value, loss[f"{variant}/pg_loss"], 5e-8 if stored_tables else 1e-6)
  close(metrics["kl"], loss[f"{variant}/approx_kl"], 1e-7)
  close(metrics["clip_fraction"], loss[f"{variant}/clipfrac"], 1e-6)
  close(metrics["ratio"], loss[f"{variant}/ratio"], 2e-6)
  close(log_prob, loss[f"{variant}/newlogprobs"], 5e-5 if stored_tables else 2e-3)
  if variant == "chainwise":
    close(ratio.ravel(), loss["chainwise/per_pair_ratio"], 5e-5)
    close(clip.ravel(), loss["chainwise/per_pair_clip_coef"], 1e-8)
  expected = loss.actor(loss.group(f"{variant}/grad_pg_loss/actor_ft/"))
  grads_close(grad, expected, 1e-5 if stored_tables else 2e-4)


@pytest.mark.parametrize("variant", ["head", "chainwise"])
def test_value_loss_and_gradient(loss, variant):
  index = np.arange(len(loss["input/returns"])) if variant == "chainwise" else loss["input/batch_inds"]
  state, target = loss["input/state"][index, 0], loss["input/returns"][index]

  def fn(params):
    value = loss.critic_module().apply({"params": params}, state, jnp.ones(len(state)))
    return ppo_loss.value_loss(value, target)

  value, grad = jax.jit(jax.value_and_grad(fn))(loss.critic(loss.group("param/critic/")))
  close(value, loss[f"{variant}/v_loss"], 2e-6)
  # The README's 1e-5 is for policy gradients with stored tables; the critic has no tables.
  grads_close(grad, loss.critic(loss.group(f"{variant}/grad_v_loss/critic/")), 2e-4)


def test_bc_regulariser_and_gradient(loss):
  policy, state = loss.policy(), loss["input/state"][:, 0]
  base = loss.actor(loss.group("param/actor_base/"))
  params = {"base": base, "tuned": base}
  _, chain = jax.jit(policy.sample_chain)(params, state, loss["input/bc_x_init"], loss["input/bc_noise"])

  def fn(network):
    return -ppo_loss.mean_log_prob(policy.log_prob(network, state, chain)).mean()

  value, grad = jax.jit(jax.value_and_grad(fn))(loss.actor(loss.group("param/actor_ft/")))
  close(value, loss["chainwise_bc/bc_loss"], 2e-6)
  grads_close(grad, loss.actor(loss.group("chainwise_bc/grad_bc_loss/actor_ft/")), 2e-4)


def test_gae(loss):
  names = ["rewards", "values", "terminated", "truncated"]
  reward, value, terminated, truncated = (loss[f"gae/{n}"] for n in names)
  follow = np.concatenate([value[1:], loss["gae/next_values"][None]])
  gamma, lam = loss.c("gae_gamma"), loss.c("gae_lambda")
  with jax.enable_x64(True):
    own = np.where(truncated & ~terminated, loss["gae/final_values"], follow)
    rest = jnp.asarray(terminated), jnp.asarray(truncated)
    got = returns.gae(jnp.asarray(reward), jnp.asarray(value), jnp.asarray(own), *rest, gamma, lam)
    close(got[0], loss["gae/bootstrap/advantages"], 1e-12)
    close(got[1], loss["gae/bootstrap/returns"], 1e-12)
    # DPPO's own loop ignores truncation: the `diwa` horizon.
    last = jnp.asarray(loss["gae/next_values"])
    got = returns.horizon_advantages(
      "diwa", jnp.asarray(reward), jnp.asarray(value), jnp.asarray(own), *rest, last, gamma, lam
    )
    close(got[0], loss["gae/dppo/advantages"], 1e-12)
    close(got[1], loss["gae/dppo/returns"], 1e-12)


def test_reward_scale(loss):
  calls = sorted({key.split("/")[0] for key in loss.group("scaler/")})
  with jax.enable_x64(True):
    state = returns.init_reward_scale(loss["scaler/call0/reward"].shape[1], jnp.float64)
    assert float(state.count) == loss.c("scaler_initial_count")
    for call in calls:
      part = loss.group(f"scaler/{call}/")
      scaled, state = returns.scale_rewards(
        state,
        jnp.asarray(part["reward"]),
        jnp.asarray(part["first"]) == 1,
        loss.c("scaler_gamma"),
        loss.c("scaler_cliprew"),
      )
      close(scaled, part["scaled"], 1e-12)
      for field in ("ret", "mean", "var", "count"):
        close(getattr(state, field), part[field], 1e-9 if field in ("ret", "var") else 1e-12)
