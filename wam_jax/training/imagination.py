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

from wam_jax.core import distributions
from wam_jax.core import ppo as ppo_loss
from wam_jax.core.actions import executable
from wam_jax.core.backend import backend
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.nn import rssm
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.training import sharding
from wam_jax.training.tasks import over_tasks
from wam_jax.training.world_model import imagine_step, roll
from wam_jax.types import Dream, Latent, Metrics, Params, Policy, Takes, features, latent_from_features

HOLD = 4  # steps that a random action is held
FAMILIAR_SHARE = 0.95  # of the demos' frames, whose entropy is familiar


@dataclasses.dataclass(frozen=True)
class World:
  """What imagination needs of a world model.

  Attributes:
    imagine_step: (arranged params, latent [E, ...], action [E, A], key) -> latent [E, ...].
    num_stoch: S.
    num_classes: C.
    arrange: params -> arranged params, once before many steps.
    robot_size: R, numbers of the robot's state in the latent.
    embodiment: of the robot that acts.
  """

  imagine_step: Callable[[Params, Latent, jax.Array, jax.Array], Latent]
  num_stoch: int
  num_classes: int
  arrange: Callable[[Params], Params] = lambda params: params
  robot_size: int = 0
  embodiment: Embodiment = CALVIN

  def latent(self, feature: jax.Array) -> Latent:
    return latent_from_features(feature, self.num_stoch, self.num_classes, self.robot_size)

  def imagine_actions(
    self, params: Params, feature: jax.Array, action: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Features of an open-loop rollout.

    Args:
      params: of the world model.
      feature: [B, F] to start from.
      action: [B, T, A], executable.
      key: for the prior's samples.

    Returns:
      [B, T, F]; entry t is the feature after action t.
    """
    step = functools.partial(self.imagine_step, self.arrange(params))
    return jnp.swapaxes(roll(step, self.latent(feature), action, key, features)[1], 0, 1)

  def imagine_chunk(
    self, arranged: Params, feature: jax.Array, chunk: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Feature [E, F] after the H actions of a chunk [E, H, A], and the prior's mean entropy [E]."""
    step = functools.partial(self.imagine_step, arranged)
    uncertainty = lambda latent: distributions.entropy(latent.logits)
    latent, entropy = roll(
      step, self.latent(feature), executable(chunk, self.embodiment.binary), key, uncertainty
    )
    return features(latent), entropy.mean(0)

  def prior_logits(self, arranged: Params, feature: jax.Array, action: jax.Array) -> jax.Array:
    """Logits of the prior [B, S, C] one step after features [B, F] and actions [B, A]."""
    key = jax.random.key(0)  # of a sample that is not read
    return self.imagine_step(arranged, self.latent(feature), action, key).logits

  def familiar_entropy(self, params: Params, takes: Takes) -> jax.Array:
    """Entropy of the prior that takes rarely exceed: how unsure the world model is where it has been.

    Args:
      params: of the world model.
      takes: of one task, with at least one frame.

    Returns:
      Scalar, nats.
    """
    flat = lambda x: x.reshape(-1, x.shape[-1])
    logits = self.prior_logits(self.arrange(params), flat(takes.feature), flat(takes.action))
    entropy = jnp.where(takes.mask.reshape(-1), distributions.entropy(logits), jnp.nan)
    return jnp.nanquantile(entropy, FAMILIAR_SHARE)


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
    by_rows = backend() == "cpu" and model.dtype in (None, jnp.float32)
  if not by_rows:
    return World(
      functools.partial(imagine_step, model, temperature=temperature),
      num_stoch=model.stoch,
      num_classes=model.classes,
      robot_size=model.robot_size,
      embodiment=model.embodiment,
    )

  def step(arranged: Params, latent: Latent, action: jax.Array, key: jax.Array) -> Latent:
    deter, robot, logits = rssm.prior_step(
      arranged, latent.deter, latent.stoch, latent.robot, action, model.norm_eps
    )
    uniform = jax.random.uniform(key, logits.shape[:-1])
    stoch = distributions.sample_one_hot(logits / temperature, uniform)
    return Latent(deter=deter, stoch=stoch, logits=logits, robot=robot)

  arrange = lambda params: rssm.arrange_for_prior_steps(params["rssm"])
  return World(step, model.stoch, model.classes, arrange, model.robot_size, model.embodiment)


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


def make_starts(demos: Takes, frames: int = 1) -> StartFrames:
  """Start frames of demos: the first `frames` of each demo, as far as success is not there yet.

  Args:
    demos: stacked over K tasks.
    frames: how many of each demo; 0: all.

  Returns:
    StartFrames stacked over K tasks.

  Raises:
    ValueError: a task without any start frame.
  """
  usable = demos.mask & ~np.maximum.accumulate(demos.success, axis=2)
  if frames:
    usable[:, :, frames:] = False
  return StartFrames(*_stack_rows(demos.feature, usable, "no demo has a first frame without success"))


def add_failed_starts(starts: StartFrames, failed: Takes, share: float) -> StartFrames:
  """Lets a share of dreams start anywhere in takes that failed: where a policy finds itself after a miss.

  Args:
    starts: stacked over K tasks.
    failed: takes without any success, likewise.
    share: of the draws, in [0, 1].

  Raises:
    ValueError: a task without a failed take.
  """
  rows, count = _stack_rows(failed.feature, failed.mask, "no failed take")
  return dataclasses.replace(starts, failed=rows, failed_count=count, failed_share=share)


def _stack_rows(feature: np.ndarray, usable: np.ndarray, none: str) -> tuple[jax.Array, jax.Array]:
  """Frames of each task [K, M, T, F] that are usable [K, M, T]: [K, S, F], padded, and their numbers [K]."""
  counts = usable.sum((1, 2))
  if counts.min() == 0:
    raise ValueError(f"task {counts.argmin()}: {none}")
  out = np.zeros((len(feature), counts.max(), feature.shape[-1]), np.float32)
  for k, count in enumerate(counts):
    out[k, :count] = feature[k][usable[k]]
  return jnp.asarray(out), jnp.asarray(counts, jnp.int32)


def draw_starts(starts: StartFrames, keys: jax.Array, num: int) -> jax.Array:
  """`StartFrames.draw` of K tasks with keys [K]: [K, num, F]."""
  return jax.vmap(lambda starts, key: starts.draw(key, num))(starts, keys)


def start_dreams(starts: StartFrames, key: jax.Array, num_dreams: int) -> DreamState:
  """E fresh dreams."""
  return DreamState(feature=starts.draw(key, num_dreams), step=jnp.zeros(num_dreams, jnp.int32))


def random_actions(key: jax.Array, num: int, length: int, binary: np.ndarray) -> jax.Array:
  """Actions that know nothing of the task.

  Half of the sequences draw anew at every step, half hold a draw for HOLD steps and so travel.
  Motion is uniform in [-1, 1]; binary numbers keep their sign for HOLD steps in both.

  Args:
    key: random key.
    num: B.
    length: T.
    binary: [A] bool, `Embodiment.binary`.

  Returns:
    [B, T, A], executable.
  """
  motion_key, gripper_key = jax.random.split(key)
  motion = jax.random.uniform(motion_key, (num, length, int((~binary).sum())), minval=-1.0)
  held = jnp.arange(length) // HOLD * HOLD
  travels = (jnp.arange(num) % 2 == 1)[:, None, None]
  motion = jnp.where(travels, motion[:, held], motion)
  gripper = jax.random.bernoulli(gripper_key, 0.5, (num, length, int(binary.sum())))[:, held]
  drawn = jnp.concatenate([motion, jnp.where(gripper, 1.0, -1.0)], -1)
  return drawn[..., np.argsort(np.argsort(binary, kind="stable"))]


@struct.dataclass
class DreamerParams:
  """Parameters of a `Dreamer`, of one task.

  Attributes:
    world: of the frozen world model, which the tasks share.
    policy: {"base", "tuned"}.
    classifier: {"network", "threshold"}.
  """

  world: Params
  policy: Params
  classifier: Params


@dataclasses.dataclass(frozen=True)
class Dreamer:
  """A policy that acts inside a world model, and a classifier that says when it has succeeded.

  Attributes:
    world: the frozen world model.
    policy: what acts.
    classifier: looks at the last feature of each chunk.
    horizon_chunks: chunks until a dream is cut.
  """

  world: World
  policy: Policy
  classifier: SuccessClassifier
  horizon_chunks: int

  def dream(
    self,
    params: DreamerParams,
    value: Callable[[jax.Array, jax.Array], jax.Array],
    starts: StartFrames,
    state: DreamState,
    key: jax.Array,
    *,
    num_chunks: int,
    log_prob_min: float,
    log_prob_max: float,
    entropy_limit: jax.Array | float = 0.0,
    entropy_penalty: float = 0.0,
    mesh: Mesh | None = None,
  ) -> tuple[DreamState, Dream, Metrics]:
    """Imagined rollout of E dreams over N chunks.

    A chunk is sampled, its H actions are imagined one prior step each, and the classifier looks at the
    last feature. Success terminates; `horizon_chunks` chunks truncate; a dream that ended starts again
    from a start frame.

    Args:
      params: of this task.
      value: (feature [..., F], time left [...]) -> [...].
      starts: start frames of this task.
      state: where the dreams stand.
      key: random key.
      num_chunks: N.
      log_prob_min: clamp of each element's log-probability.
      log_prob_max: the same, above.
      entropy_limit: nats; entropy of the prior that is not held against a dream (`World.familiar_entropy`).
      entropy_penalty: taken off the reward of a chunk per nat above.
      mesh: devices that the dreams are divided over.

    Returns:
      The new state, the rollout, and metrics: imagined_success (share of the dreams ended here that
      succeeded), ended, chunks_to_success, prior_entropy (mean, nats), prior_entropy_above (the limit, mean).
    """
    num_dreams, policy, horizon_chunks = state.step.shape[0], self.policy, self.horizon_chunks
    world_params = self.world.arrange(params.world)

    def chunk_step(
      state: DreamState, key: jax.Array
    ) -> tuple[DreamState, tuple[Dream, jax.Array, jax.Array]]:
      noise_key, world_key, start_key = jax.random.split(key, 3)
      time_left = 1 - state.step / horizon_chunks
      x_init, noise = policy.draw_noise(noise_key, (num_dreams,))
      x_init, noise = sharding.split(x_init, mesh), sharding.split(noise, mesh, axis=1)
      chunk, chain = policy.sample_chain(params.policy, state.feature, x_init, noise)
      log_prob = policy.log_prob_of_noise(noise)
      log_prob = ppo_loss.mean_log_prob(log_prob, log_prob_min, log_prob_max)
      feature, entropy = self.world.imagine_chunk(world_params, state.feature, chunk, world_key)
      above = jax.nn.relu(entropy - entropy_limit)
      step = state.step + 1
      terminated = self.classifier.success(params.classifier, feature)
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
      # Divided here too, or the partitioner would collect them on all devices chunk by chunk.
      return sharding.split((state, (out, feature, jnp.stack([entropy, above], -1))), mesh)

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
      "prior_entropy": entropy[..., 0].mean(),
      "prior_entropy_above": entropy[..., 1].mean(),
    }
    return state, out, metrics

  def follow(
    self, params: DreamerParams, feature: jax.Array, key: jax.Array, read: Callable[[jax.Array], Any]
  ) -> Any:
    """Dreams of the policy to the horizon, of one task; nothing ends them.

    Args:
      params: of this task; the policy acts by its evaluation variant.
      feature: [E, F], one dream from each.
      key: random key.
      read: what is kept of the features [E, F] after a chunk.

    Returns:
      What was read after each of the N chunks, stacked: leaves [N, ...].
    """
    world_params = self.world.arrange(params.world)

    def step(feature: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
      policy_key, world_key = jax.random.split(key)
      chunk = self.policy.sample(params.policy, feature, policy_key, deterministic=True)
      feature, _ = self.world.imagine_chunk(world_params, feature, chunk, world_key)
      return feature, read(feature)

    return jax.lax.scan(step, feature, jax.random.split(key, self.horizon_chunks))[1]

  def scores(self, params: DreamerParams, feature: jax.Array, key: jax.Array) -> jax.Array:
    """Largest score that each dream ever gets where the reward would look, of one task.

    Args:
      params: of this task.
      feature: [E, F], one dream from each.
      key: random key.

    Returns:
      [E], log-odds above the classifier's threshold: a dream above 0 is a success.
    """
    return self.follow(params, feature, key, lambda x: self.classifier.score(params.classifier, x)).max(0)

  def score_tasks(self) -> Callable[[Any, Params], jax.Array]:
    """Compiles `scores` for K tasks: ((policy, classifier, feature [K, E, F], keys [K]), world) -> [K, E].

    Policy and classifier stand for their parameters, stacked over tasks; world for those of the world model.
    """
    return over_tasks(lambda task, world: self.scores(DreamerParams(world, *task[:2]), *task[2:]))
