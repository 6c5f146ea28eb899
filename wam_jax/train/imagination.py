"""Dreams: rollouts inside the frozen world model.

The world model enters as a `World`: one function of (parameters, latent, action, key) and the sizes
of z. Its parameters are plain arguments everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from wam_jax.core import distributions, ppo
from wam_jax.core.actions import executable
from wam_jax.nn import rssm
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.train import sharding
from wam_jax.train.world_model import imagine_step, roll
from wam_jax.types import Dream, Latent, Metrics, Params, Policy, features, latent_from_features

HOLD = 4  # steps that a random action is held
FAMILIAR_SHARE = 0.95  # of the demos' frames, whose entropy is familiar


@dataclasses.dataclass(frozen=True)
class World:
  """What imagination needs of a world model.

  Attributes:
    imagine_step: (arranged params, latent [E, ...], action [E, 7], key) -> latent [E, ...].
    num_stoch: S.
    num_classes: C.
    arrange: params -> arranged params, once before many steps.
    robot_size: R, numbers of the robot's state in the latent.
  """

  imagine_step: Callable[[Params, Latent, jax.Array, jax.Array], Latent]
  num_stoch: int
  num_classes: int
  arrange: Callable[[Params], Params] = lambda params: params
  robot_size: int = 0

  def latent(self, feature: jax.Array) -> Latent:
    return latent_from_features(feature, self.num_stoch, self.num_classes, self.robot_size)


def make_world(model: Any, by_rows: bool | None = None, temperature: float = 1.0) -> World:
  """World of a `nn.world_model.WorldModel`.

  Args:
    model: the networks.
    by_rows: step as `nn.rssm.prior_step` does, which is faster with the few rows of dreams on a CPU and
      equal up to rounding. None: on CPUs, in float32.
    temperature: that the prior's logits are divided by before a code is drawn; above 1 dreams are less sure
      of what an action does than the world model is.
  """
  if by_rows is None:
    by_rows = jax.default_backend() == "cpu" and model.dtype in (None, jnp.float32)
  if not by_rows:
    return World(
      functools.partial(imagine_step, model, temperature=temperature),
      num_stoch=model.stoch,
      num_classes=model.classes,
      robot_size=model.robot_size,
    )

  def step(arranged: Params, latent: Latent, action: jax.Array, key: jax.Array) -> Latent:
    deter, robot, logits = rssm.prior_step(
      arranged, latent.deter, latent.stoch, latent.robot, action, model.norm_eps
    )
    uniform = jax.random.uniform(key, logits.shape[:-1])
    stoch = distributions.sample_one_hot(logits / temperature, uniform)
    return Latent(deter=deter, stoch=stoch, logits=logits, robot=robot)

  arrange = lambda params: rssm.arrange_for_prior_steps(params["rssm"])
  return World(step, model.stoch, model.classes, arrange, model.robot_size)


@struct.dataclass
class DreamState:
  """Dreams between two iterations, like environments that are not reset.

  Attributes:
    feature: [E, F].
    step: [E] int32, chunks done since the start.
  """

  feature: jax.Array
  step: jax.Array


@struct.dataclass
class StartFrames:
  """Features that dreams may start from, of one task.

  Attributes:
    feature: [S, F], padded at the end.
    count: scalar int32, how many count.
    failed: [S', F], frames of takes that failed, padded at the end; None without.
    failed_count: scalar int32, how many count.
    failed_share: share of draws that take one of these.
  """

  feature: jax.Array
  count: jax.Array
  failed: jax.Array | None = None
  failed_count: jax.Array | None = None
  failed_share: float = struct.field(pytree_node=False, default=0.0)

  def draw(self, key: jax.Array, num: int) -> jax.Array:
    """[num, F], with replacement."""
    drawn = self.feature[jax.random.randint(key, (num,), 0, self.count)]
    if self.failed is None or self.failed_count is None:
      return drawn
    row_key, choice_key = jax.random.split(jax.random.fold_in(key, 1))
    failed = self.failed[jax.random.randint(row_key, (num,), 0, self.failed_count)]
    return jnp.where(jax.random.bernoulli(choice_key, self.failed_share, (num, 1)), failed, drawn)


def make_starts(feature: np.ndarray, success: np.ndarray, mask: np.ndarray, frames: int = 1) -> StartFrames:
  """Start frames of demos: the first `frames` of each demo, as far as success is not there yet.

  Args:
    feature: [K, M, T, F].
    success: [K, M, T] bool.
    mask: [K, M, T] bool.
    frames: how many of each demo; 0: all.

  Returns:
    StartFrames stacked over K tasks.

  Raises:
    ValueError: a task without any start frame.
  """
  usable = mask & ~np.maximum.accumulate(success, axis=2)
  if frames:
    usable[:, :, frames:] = False
  rows = [np.flatnonzero(u) for u in usable.reshape(len(mask), -1)]
  counts = [len(r) for r in rows]
  if min(counts) == 0:
    raise ValueError(f"task {counts.index(0)}: no demo has a first frame without success")
  return StartFrames(*_stack_rows(feature, rows))


def add_failed_starts(
  starts: StartFrames, feature: np.ndarray, mask: np.ndarray, share: float
) -> StartFrames:
  """Lets a share of dreams start anywhere in takes that failed: where a policy finds itself after a miss.

  Args:
    starts: stacked over K tasks.
    feature: [K, M, T, F] of takes without any success.
    mask: [K, M, T] bool.
    share: of the draws, in [0, 1].

  Raises:
    ValueError: a task without a failed take.
  """
  rows = [np.flatnonzero(m) for m in mask.reshape(len(mask), -1)]
  if min(len(r) for r in rows) == 0:
    raise ValueError(f"task {[len(r) for r in rows].index(0)}: no failed take")
  failed, count = _stack_rows(feature, rows)
  return dataclasses.replace(starts, failed=failed, failed_count=count, failed_share=share)


def _stack_rows(feature: np.ndarray, rows: list[np.ndarray]) -> tuple[jax.Array, jax.Array]:
  """Rows of each task's features [K, M, T, F], padded to one length: [K, S, F]; and their numbers [K]."""
  counts = [len(r) for r in rows]
  flat = feature.reshape(len(feature), -1, feature.shape[-1])
  out = np.zeros((len(feature), max(counts), feature.shape[-1]), np.float32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = flat[i, row]
  return jnp.asarray(out), jnp.asarray(counts, jnp.int32)


def start_dreams(starts: StartFrames, key: jax.Array, num_dreams: int) -> DreamState:
  """E fresh dreams."""
  return DreamState(feature=starts.draw(key, num_dreams), step=jnp.zeros(num_dreams, jnp.int32))


def imagine_actions(
  world: World, world_params: Params, feature: jax.Array, action: jax.Array, key: jax.Array
) -> jax.Array:
  """Features of an open-loop rollout.

  Args:
    world: the world model.
    world_params: its parameters.
    feature: [B, F] to start from.
    action: [B, T, 7], executable.
    key: for the prior's samples.

  Returns:
    [B, T, F]; entry t is the feature after action t.
  """
  step = functools.partial(world.imagine_step, world.arrange(world_params))
  return jnp.swapaxes(roll(step, world.latent(feature), action, key, features)[1], 0, 1)


def random_actions(key: jax.Array, num: int, length: int) -> jax.Array:
  """Actions that know nothing of the task.

  Half of the sequences draw anew at every step, half hold a draw for HOLD steps and so travel.
  Motion is uniform in [-1, 1]; the gripper keeps its sign for HOLD steps in both.

  Args:
    key: random key.
    num: B.
    length: T.

  Returns:
    [B, T, 7], executable.
  """
  motion_key, gripper_key = jax.random.split(key)
  motion = jax.random.uniform(motion_key, (num, length, 6), minval=-1.0)
  held = jnp.arange(length) // HOLD * HOLD
  travels = (jnp.arange(num) % 2 == 1)[:, None, None]
  motion = jnp.where(travels, motion[:, held], motion)
  gripper = jax.random.bernoulli(gripper_key, 0.5, (num, length, 1))[:, held]
  return jnp.concatenate([motion, jnp.where(gripper, 1.0, -1.0)], -1)


def _imagine_chunk(
  world: World, world_params: Params, feature: jax.Array, chunk: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Feature [E, F] after the H actions of a chunk [E, H, 7], and the prior's mean entropy [E].

  The parameters are arranged.
  """
  step = functools.partial(world.imagine_step, world_params)
  uncertainty = lambda latent: distributions.entropy(latent.logits)
  latent, entropy = roll(step, world.latent(feature), executable(chunk), key, uncertainty)
  return features(latent), entropy.mean(0)


def familiar_entropy(
  world: World,
  world_params: Params,
  feature: jax.Array,
  action: jax.Array,
  mask: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """Entropy of the prior that demos rarely exceed: how unsure the world model is where it has been.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    feature: [M, T, F] of one task's demos.
    action: [M, T, 7].
    mask: [M, T] bool, with at least one entry.
    key: of the prior's samples, which do not matter to the entropy of one step.

  Returns:
    Scalar, nats.
  """
  flat = lambda x: x.reshape(-1, x.shape[-1])
  latent = world.imagine_step(world.arrange(world_params), world.latent(flat(feature)), flat(action), key)
  entropy = jnp.where(mask.reshape(-1), distributions.entropy(latent.logits), jnp.nan)
  return jnp.nanquantile(entropy, FAMILIAR_SHARE)


def dream(
  world: World,
  world_params: Params,
  policy: Policy,
  policy_params: Params,
  value: Callable[[jax.Array, jax.Array], jax.Array],
  classifier: SuccessClassifier,
  classifier_params: Params,
  starts: StartFrames,
  state: DreamState,
  key: jax.Array,
  *,
  num_chunks: int,
  horizon_chunks: int,
  log_prob_min: float = -5.0,
  log_prob_max: float = 2.0,
  entropy_limit: jax.Array | float = 0.0,
  entropy_penalty: float = 0.0,
  mesh: Mesh | None = None,
) -> tuple[DreamState, Dream, Metrics]:
  """Imagined rollout of E dreams over N chunks.

  A chunk is sampled, its H actions are imagined one prior step each, and the classifier looks at the
  last feature. Success terminates; `horizon_chunks` chunks truncate; a dream that ended starts again
  from a start frame.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    policy: what acts.
    policy_params: {"base", "tuned"}.
    value: (feature [..., F], time left [...]) -> [...].
    classifier: sizes.
    classifier_params: of this task.
    starts: start frames of this task.
    state: where the dreams stand.
    key: random key.
    num_chunks: N.
    horizon_chunks: chunks until a dream is cut.
    log_prob_min: clamp of each element's log-probability.
    log_prob_max: the same, above.
    entropy_limit: nats; entropy of the prior that is not held against a dream (`familiar_entropy`).
    entropy_penalty: taken off the reward of a chunk per nat above.
    mesh: devices that the dreams are divided over.

  Returns:
    The new state, the rollout, and metrics: imagined_success (share of the dreams ended here that
    succeeded), ended, chunks_to_success, prior_entropy (mean, nats), prior_entropy_above (the limit, mean).
  """
  num_dreams = state.step.shape[0]
  world_params = world.arrange(world_params)

  def chunk_step(state: DreamState, key: jax.Array) -> tuple[DreamState, tuple[Dream, jax.Array, jax.Array]]:
    noise_key, world_key, start_key = jax.random.split(key, 3)
    time_left = 1 - state.step / horizon_chunks
    x_init, noise = policy.draw_noise(noise_key, (num_dreams,))
    x_init, noise = sharding.split(x_init, mesh), sharding.split(noise, mesh, axis=1)
    chunk, chain = policy.sample_chain(policy_params, state.feature, x_init, noise)
    log_prob = policy.log_prob_of_noise(noise)
    log_prob = ppo.mean_log_prob(log_prob, log_prob_min, log_prob_max)
    feature, entropy = _imagine_chunk(world, world_params, state.feature, chunk, world_key)
    above = jax.nn.relu(entropy - entropy_limit)
    step = state.step + 1
    terminated = classifier.success(classifier_params, feature)
    truncated = (step >= horizon_chunks) & ~terminated
    ended = terminated | truncated
    out = Dream(
      feature=state.feature,
      chain=chain,
      log_prob=log_prob,
      reward=terminated - entropy_penalty * above,
      value=jnp.zeros(num_dreams),  # values follow, of all chunks at once
      terminated=terminated,
      truncated=truncated,
      bootstrap_value=jnp.zeros(num_dreams),
      time_left=time_left,
    )
    start = sharding.split(starts.draw(start_key, num_dreams), mesh)
    state = DreamState(
      feature=jnp.where(ended[:, None], start, feature),
      step=jnp.where(ended, 0, step),
    )
    return state, (out, feature, jnp.stack([entropy.mean(), above.mean()]))

  state = sharding.split(state, mesh)
  state, (out, reached, entropy) = jax.lax.scan(chunk_step, state, jax.random.split(key, num_chunks))
  values = value(out.feature, out.time_left)
  # A dream that goes on has the value of its next chunk; only at the cuts a value must be computed.
  going_on = jnp.concatenate([values[1:], value(state.feature, 1 - state.step / horizon_chunks)[None]])
  at_cut = jnp.argsort(~out.truncated, axis=0)[: math.ceil(num_chunks / horizon_chunks)]  # of each dream
  cut = value(jnp.take_along_axis(reached, at_cut[..., None], 0), jnp.zeros(at_cut.shape))
  cut = jnp.zeros_like(values).at[at_cut, jnp.arange(num_dreams)].set(cut)
  out = out.replace(value=values, bootstrap_value=jnp.where(out.truncated, cut, going_on))
  succeeded, ended = out.terminated.sum(), (out.terminated | out.truncated).sum()
  chunks = (1 - out.time_left) * horizon_chunks + 1
  metrics = {
    "imagined_success": succeeded / jnp.maximum(ended, 1),
    "ended": ended.astype(jnp.float32),
    "chunks_to_success": (chunks * out.terminated).sum() / jnp.maximum(succeeded, 1),
    "prior_entropy": entropy[:, 0].mean(),
    "prior_entropy_above": entropy[:, 1].mean(),
  }
  return state, out, metrics


def dream_scores(
  world: World,
  world_params: Params,
  policy: Policy,
  policy_params: Params,
  score: Callable[[jax.Array], jax.Array],
  feature: jax.Array,
  key: jax.Array,
  *,
  horizon_chunks: int,
  deterministic: bool = True,
) -> jax.Array:
  """Largest score that each dream ever gets where the reward would look, of one task.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    policy: what acts.
    policy_params: {"base", "tuned"}.
    score: feature [E, F] -> [E].
    feature: [E, F], one dream from each.
    key: random key.
    horizon_chunks: length of a dream.
    deterministic: which variant of the policy.

  Returns:
    [E].
  """

  def step(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
    feature, best = carry
    policy_key, world_key = jax.random.split(key)
    chunk = policy.sample(policy_params, feature, policy_key, deterministic)
    feature, _ = _imagine_chunk(world, world_params, feature, chunk, world_key)
    return (feature, jnp.maximum(best, score(feature))), None

  world_params = world.arrange(world_params)
  best = jnp.full(feature.shape[0], -jnp.inf)
  (_, best), _ = jax.lax.scan(step, (feature, best), jax.random.split(key, horizon_chunks))
  return best


def imagined_success(
  world: World,
  world_params: Params,
  policy: Policy,
  policy_params: Params,
  classifier: SuccessClassifier,
  classifier_params: Params,
  feature: jax.Array,
  key: jax.Array,
  *,
  horizon_chunks: int,
) -> jax.Array:
  """Which dreams the classifier ever calls a success, of one task: [E] bool. Arguments as `dream_scores`."""
  success = lambda feature: classifier.success(classifier_params, feature).astype(jnp.float32)
  actor = policy, policy_params
  return dream_scores(world, world_params, *actor, success, feature, key, horizon_chunks=horizon_chunks) > 0
