"""PPO on denoising chains inside the frozen world model: one iteration is one program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from wam_jax.core import ppo as ppo_loss
from wam_jax.core import returns
from wam_jax.nn.policies.critic import Critic
from wam_jax.training import sharding
from wam_jax.training.imagination import Dreamer, DreamerParams, DreamState, StartFrames, start_dreams
from wam_jax.training.ppo_actor import Sample, actor_gradient
from wam_jax.training.state import make_optimizer
from wam_jax.types import Dream, Metrics, Params, Policy


@struct.dataclass
class PPOState:
  """What PPO carries from one iteration to the next, of one task.

  Attributes:
    step: scalar int32, iterations done.
    params: {"actor": the tuned network, "critic"}.
    opt_state: {"actor", "critic"}, optax states.
    dreams: where the dreams stand.
    scale: running scale of rewards.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  dreams: DreamState
  scale: returns.RewardScale


@struct.dataclass
class Frozen:
  """What PPO reads and never changes, of one task. (The world model is shared by the tasks.)

  Attributes:
    base: the cloned network.
    classifier: {"network", "threshold"}.
    starts: start frames of dreams.
    entropy_limit: scalar, nats; see `imagination.Dreamer.dream`.
    held: scalar bool, whether the actor stays as it was cloned.
  """

  base: Params
  classifier: Params
  starts: StartFrames
  entropy_limit: jax.Array | float = 0.0
  held: jax.Array | bool = False


def make_critic(config: Any) -> Critic:
  """Critic of `config.ppo`; it sees the time left where the horizon is an end."""
  return Critic(tuple(config.value_hidden), time_left=config.horizon == "terminal")


def make_optimizers(config: Any) -> dict[str, optax.GradientTransformation]:
  """AdamW of actor and critic, constant learning rates."""
  rest = {"weight_decay": config.weight_decay, "grad_clip": config.grad_clip}
  return {
    "actor": make_optimizer(config.actor_learning_rate, 1, **rest),
    "critic": make_optimizer(config.critic_learning_rate, 1, **rest),
  }


def init_state(policy: Policy, config: Any, frozen: Frozen, key: jax.Array) -> PPOState:
  """State before the first iteration: the actor is the cloned network.

  Args:
    policy: what acts.
    config: `config.ppo`.
    frozen: of one task.
    key: random key.
  """
  critic_key, dream_key = jax.random.split(key)
  feature = jnp.zeros((1, policy.feature_size))
  critic = make_critic(config).init(critic_key, feature, jnp.ones(1))["params"]
  params = {"actor": jax.tree.map(jnp.copy, frozen.base), "critic": critic}
  optimizers = make_optimizers(config)
  return PPOState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={name: optimizers[name].init(params[name]) for name in params},
    dreams=start_dreams(frozen.starts, dream_key, config.dreams),
    scale=returns.init_reward_scale(config.dreams),
  )


# Tensors of an iteration in the order in which they are made: of each chunk, then of the update.
OF_CHUNKS = ("feature", "chain", "log_prob", "value")
OF_UPDATE = ("reward", "advantage", "target", "actor", "critic")


def first_not_finite(rollout: Dream, sample: Sample, params: Params) -> jax.Array:
  """Which tensor of an iteration first holds a number that is not finite.

  Args:
    rollout: leaves [N, E, ...].
    sample: made from it.
    params: {"actor", "critic"} after the update.

  Returns:
    Scalar float32, an index into OF_CHUNKS + OF_UPDATE; -1 if all numbers are finite. Of several tensors the
    earliest chunk's counts, for what follows it is bad too.
  """
  finite = lambda x, axes=None: jnp.isfinite(x).all(axes)
  chunks = [getattr(rollout, name) for name in OF_CHUNKS]
  good = jnp.stack([finite(x, tuple(range(1, x.ndim))) for x in chunks], 1).reshape(-1)  # chunk by chunk
  tree = lambda tree: jnp.stack([finite(x) for x in jax.tree.leaves(tree)]).all()
  last = [finite(rollout.reward), finite(sample.advantage), finite(sample.target)]
  good = jnp.concatenate([good, jnp.stack([*last, tree(params["actor"]), tree(params["critic"])])])
  first, of_chunks = jnp.argmin(good), len(good) - len(OF_UPDATE)
  index = jnp.where(first < of_chunks, first % len(OF_CHUNKS), len(OF_CHUNKS) + first - of_chunks)
  return jnp.where(good.all(), -1, index).astype(jnp.float32)


def not_finite(tasks: Sequence[str], metrics: dict[str, jax.Array]) -> str:
  """Takes the metric `first_not_finite` [K] out and says what it means; empty if all is well."""
  found = np.asarray(metrics.pop("first_not_finite")).astype(int)
  names = (*OF_CHUNKS, *OF_UPDATE)
  bad = [f"{names[i]} of {task}" for task, i in zip(tasks, found, strict=True) if i >= 0]
  return f"not finite: {', '.join(bad)} (of each task the first tensor of the iteration)" if bad else ""


Rollout = Callable[[PPOState, Frozen, Params, jax.Array], tuple[DreamState, Dream, Metrics]]
Update = Callable[[PPOState, Frozen, DreamState, Dream, jax.Array, jax.Array], tuple[PPOState, Metrics]]
Iteration = Callable[[PPOState, Frozen, Params, jax.Array], tuple[PPOState, Metrics]]


def make_rollout(dreamer: Dreamer, config: Any, mesh: Mesh | None = None) -> Rollout:
  """Builds the rollout of an iteration of one task, with values.

  Args:
    dreamer: world model, policy and classifier.
    config: `config.ppo`.
    mesh: devices that the dreams are divided over.

  Returns:
    `rollout(state, frozen, world_params, key) -> (dreams, dream, metrics)`.
  """
  value = _value_fn(config)

  def rollout(
    state: PPOState, frozen: Frozen, world_params: Params, key: jax.Array
  ) -> tuple[DreamState, Dream, Metrics]:
    policy_params = {"base": frozen.base, "tuned": state.params["actor"]}
    return dreamer.dream(
      DreamerParams(world_params, policy_params, frozen.classifier),
      functools.partial(value, state.params["critic"]),
      frozen.starts,
      state.dreams,
      key,
      num_chunks=config.chunks_per_iteration,
      log_prob_min=config.log_prob_min,
      log_prob_max=config.log_prob_max,
      entropy_limit=frozen.entropy_limit,
      entropy_penalty=config.entropy_penalty,
      mesh=mesh,
    )

  return rollout


def _value_fn(config: Any) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
  critic = make_critic(config)

  def value(params: Params, feature: jax.Array, time_left: jax.Array) -> jax.Array:
    out: Any = critic.apply({"params": params}, feature, time_left)
    return out

  return value


def make_sample(
  policy: Policy,
  config: Any,
  state: PPOState,
  frozen: Frozen,
  dreams: DreamState,
  rollout: Dream,
  key: jax.Array,
  mesh: Mesh | None = None,
) -> tuple[PPOState, Sample, Metrics]:
  """What the epochs of an iteration learn from: rewards scaled, advantages, chains to regularise with.

  Args:
    policy: what acts.
    config: `config.ppo`.
    state: before the iteration.
    frozen: of this task.
    dreams: where the dreams stand after the rollout.
    rollout: leaves [N, E, ...].
    key: of the chains.
    mesh: devices that the chunks are divided over.

  Returns:
    The state with `dreams` and the new scale of rewards; the sample; metrics.
  """
  horizon_chunks = config.horizon_steps // policy.chunk
  num_chunks = config.dreams * config.chunks_per_iteration
  critic_params = state.params["critic"]
  # A dream's first chunk is where all of its time is left.
  reward, scale = returns.scale_rewards(
    state.scale, rollout.reward, rollout.time_left >= 1, config.gamma, config.reward_clip
  )
  last_value = _value_fn(config)(critic_params, dreams.feature, 1 - dreams.step / horizon_chunks)
  advantage, target = returns.horizon_advantages(
    config.horizon,
    reward,
    rollout.value,
    rollout.bootstrap_value,
    rollout.terminated,
    rollout.truncated,
    last_value,
    config.gamma,
    config.gae_lambda,
  )
  metrics = {
    "advantage_std": advantage.std(),
    "value": rollout.value.mean(),
    "explained_variance": 1 - (target - rollout.value).var() / jnp.maximum(target.var(), 1e-8),
  }
  flat = jax.tree.map(
    lambda x: x.reshape(num_chunks, *x.shape[2:]),
    {
      "feature": rollout.feature,
      "time_left": rollout.time_left,
      "chain": rollout.chain,
      "log_prob": rollout.log_prob,
      "advantage": ppo_loss.normalise(advantage),
      "target": target,
    },
  )
  flat = sharding.split(flat, mesh)
  flat["regulariser"] = None
  if config.bc_weight > 0:
    x_init, noise = policy.draw_noise(key, (num_chunks,))
    x_init, noise = sharding.split(x_init, mesh), sharding.split(noise, mesh, axis=1)
    if config.bc_form == "frozen_chains":
      cloned = {"base": frozen.base, "tuned": frozen.base}
      flat["regulariser"] = policy.sample_chain(cloned, flat["feature"], x_init, noise)[1]
    else:
      flat["regulariser"] = jnp.moveaxis(jnp.concatenate([x_init[None], noise]), 0, 1)
  return dataclasses.replace(state, dreams=dreams, scale=scale), Sample(**flat), metrics


def make_update(policy: Policy, config: Any, mesh: Mesh | None = None) -> Update:
  """Builds the update of an iteration of one task: advantages, then epochs of minibatches.

  Args:
    policy: what acts.
    config: `config.ppo`.
    mesh: devices that minibatches are divided over.

  Returns:
    `update(state, frozen, dreams, rollout, chain_key, epoch_key) -> (state, metrics)`, with what
    `make_rollout` gives; the keys draw the frozen chains and the order of each epoch.
  """
  value = _value_fn(config)
  optimizers = make_optimizers(config)
  num_chunks = config.dreams * config.chunks_per_iteration

  def apply(name: str, grad: Params, params: Params, opt_state: Any) -> tuple[Params, Any]:
    updates, opt_state = optimizers[name].update(grad, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def critic_step(params: Params, opt_state: Any, sample: Sample) -> tuple[Params, Any, jax.Array]:
    def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
      loss = ppo_loss.value_loss(value(params, sample.feature, sample.time_left), sample.target)
      return config.value_weight * loss, loss

    grad, loss = jax.grad(loss_fn, has_aux=True)(params)
    return *apply("critic", grad, params, opt_state), loss

  def actor_step(params: Params, opt_state: Any, base: Params, sample: Sample) -> tuple[Params, Any, Metrics]:
    block = len(sample.feature) if mesh is not None else None  # blocks would not lie on one device each
    grad, metrics = actor_gradient(policy, config, params, base, sample, block)
    new = apply("actor", grad, params, opt_state)
    # How far the actor has moved already decides whether it may move further.
    far = metrics["kl"] > config.target_kl
    params, opt_state = jax.tree.map(lambda n, o: jnp.where(far, o, n), new, (params, opt_state))
    return params, opt_state, metrics

  Carry = tuple[Params, Any, jax.Array]

  def minibatch_step(carry: Carry, base: Params, sample: Sample, warm: jax.Array) -> tuple[Carry, Metrics]:
    params, opt_state, stopped = carry
    critic_params, critic_opt, value_loss = critic_step(params["critic"], opt_state["critic"], sample)
    actor = params["actor"], opt_state["actor"], base, sample
    like = jax.eval_shape(actor_step, *actor)[2]

    def hold(params: Params, opt_state: Any, *unused: Any) -> tuple[Params, Any, Metrics]:
      return params, opt_state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    rests = stopped | warm
    actor_params, actor_opt, metrics = jax.lax.cond(rests, hold, actor_step, *actor)
    stopped = stopped | (metrics["kl"] > config.target_kl)
    params = {"actor": actor_params, "critic": critic_params}
    metrics |= {"value_loss": value_loss, "acted": (~rests).astype(jnp.float32)}
    return (params, {"actor": actor_opt, "critic": critic_opt}, stopped), metrics

  def update(
    state: PPOState,
    frozen: Frozen,
    dreams: DreamState,
    rollout: Dream,
    chain_key: jax.Array,
    epoch_key: jax.Array,
  ) -> tuple[PPOState, Metrics]:
    warm = (state.step < config.critic_warmup_iterations) | frozen.held
    state, sample, metrics = make_sample(policy, config, state, frozen, dreams, rollout, chain_key, mesh)

    def run(carry: Carry, rows: jax.Array) -> tuple[Carry, Metrics]:
      # The whole batch needs no order, and its features no copy.
      whole = config.minibatches == 1
      part = sharding.split(sample if whole else jax.tree.map(lambda x: x[rows], sample), mesh)
      return minibatch_step(carry, frozen.base, part, warm)

    keys = jax.random.split(epoch_key, config.epochs)
    rows = jax.vmap(lambda k: jax.random.permutation(k, num_chunks))(keys)
    rows = rows.reshape(config.epochs * config.minibatches, -1)
    carry = (state.params, state.opt_state, jnp.zeros((), bool))
    (params, opt_state, stopped), history = jax.lax.scan(run, carry, rows)
    value_loss, acted = history.pop("value_loss"), history.pop("acted").sum()
    # Where the actor rested there is nothing to average.
    metrics |= {name: values.sum() / jnp.maximum(acted, 1) for name, values in history.items()}
    metrics |= {"value_loss": value_loss.mean()}
    metrics |= {"kl": history["kl"].max(), "stopped_early": stopped.astype(jnp.float32)}
    metrics["first_not_finite"] = first_not_finite(rollout, sample, params)
    state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    return state, metrics

  return update


def make_iteration(dreamer: Dreamer, config: Any, mesh: Mesh | None = None) -> Iteration:
  """Builds one iteration of one task: rollout, advantages, epochs of minibatches.

  Args:
    dreamer: world model, policy and classifier; their parameters are arguments of the iteration.
    config: `config.ppo`.
    mesh: devices that dreams and minibatches are divided over.

  Returns:
    `iteration(state, frozen, world_params, key) -> (state, metrics)`, a pure function to be jitted
    and mapped over tasks.
  """
  make_dreams = make_rollout(dreamer, config, mesh)
  update = make_update(dreamer.policy, config, mesh)

  def iteration(
    state: PPOState, frozen: Frozen, world_params: Params, key: jax.Array
  ) -> tuple[PPOState, Metrics]:
    rollout_key, epoch_key = jax.random.split(key)
    dream_key, chain_key = jax.random.split(rollout_key)
    dreams, rollout, metrics = make_dreams(state, frozen, world_params, dream_key)
    state, more = update(state, frozen, dreams, rollout, chain_key, epoch_key)
    return state, metrics | more

  return iteration
