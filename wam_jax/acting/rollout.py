"""Episodes of policies and experts in a simulator, many side by side.

Source: evaluation protocol of DiWA (arXiv 2508.03645) on CALVIN: every real frame is filtered through
the world model, also those inside a chunk; success as soon as the predicate holds.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wam_jax.acting import step
from wam_jax.acting.episodes import KEPT
from wam_jax.data.windows import rest_actions
from wam_jax.envs.base import Environment, VectorStepper
from wam_jax.training import world_model as wm
from wam_jax.types import Latent, Params, features


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """Episodes of K tasks, M each.

  Attributes:
    success: [K, M] bool.
    steps: [K, M] int32, control steps executed; at most `max_steps`.
    robot_obs: [K, M, T+1, state_size], states from the start on; after the end the last one is repeated.
    snapshot: [K, M, T+1, W], likewise; None where the simulator has none.
    action: [K, M, T, A] float32, executed actions; zero after the end.
    first_feature: [K, M, F] float32 after the first frame, or None for experts.
    seconds: where the time went: drawing, model, physics.
  """

  success: np.ndarray
  steps: np.ndarray
  robot_obs: np.ndarray
  snapshot: np.ndarray | None
  action: np.ndarray
  first_feature: np.ndarray | None
  seconds: dict[str, float]


@functools.lru_cache(maxsize=16)
def _make_steps(model: Any, policy: Any) -> tuple[Callable, Callable]:
  """Compiled (filter one frame, sample what is executed); kept, so that a second rollout compiles nothing."""

  @functools.partial(jax.jit, static_argnums=3)
  def sample_chunks(params: Params, latent: Latent, key: jax.Array, num_tasks: int) -> jax.Array:
    return step.sample_chunks(policy, params, latent, key, num_tasks, model.embodiment)

  return jax.jit(functools.partial(step.filter_frame, model)), sample_chunks


def rollout_policies(
  model: Any,
  wm_params: Params,
  policy: Any,
  policy_params: Params,
  *,
  tasks: Sequence[str],
  starts: np.ndarray,
  environment: VectorStepper,
  key: jax.Array,
  max_steps: int,
  progress: Callable[[int], None] | None = None,
) -> Rollouts:
  """Runs one policy per task from given start states, all episodes side by side.

  All chunks are in phase: a new one is sampled every `policy.chunk` control steps. Drawing dominates the
  time, so only episodes that still run are drawn and stepped; compiled shapes stay fixed, with stale
  pictures where an episode is over.

  Args:
    model: world-model networks.
    wm_params: their parameters.
    policy: `sample(params, feature [M, F], key, deterministic=...) -> [M, H, A]`.
    policy_params: stacked on a leading task axis K.
    tasks: K names.
    starts: [K, M, W] where the episodes start.
    environment: K * M environments, drawing at the size the world model was trained on.
    key: random key of posterior samples and of the policy's noise.
    max_steps: control steps until an episode has failed.
    progress: called with the number of control steps done since the last call (of `max_steps`).

  Returns:
    The episodes.

  Raises:
    ValueError: shapes that do not belong together.
  """
  num_tasks, episodes = _check_starts(tasks, starts)
  total, chunk = num_tasks * episodes, policy.chunk
  if environment.num != total:
    raise ValueError(
      f"{num_tasks} tasks x {episodes} episodes need {total} environments, got {environment.num}"
    )
  filter_frame, sample_chunks = _make_steps(model, policy)

  environment.reset(starts.reshape(total, -1), np.repeat(tasks, episodes).tolist())
  record = _Record(
    num_tasks, episodes, environment.state(), environment.snapshot(), max_steps, model.embodiment.action_size
  )
  latent = wm.initial_latent(model, wm_params, total)
  prev_action = rest_actions(model.embodiment, total)
  chunks, first_feature = np.zeros((total, chunk, model.embodiment.action_size), np.float32), None
  seconds = {"drawing": 0.0, "model": 0.0, "physics": 0.0}
  for t in range(max_steps):
    began = time.perf_counter()
    rendered = environment.observe(record.active)
    drawn = time.perf_counter()
    frame_key, chunk_key = step.frame_keys(key, t)
    observation = {camera: rendered[camera] for camera in model.cameras}
    observation["robot_obs"] = record.robot.astype(np.float32)
    is_first = np.full(total, t == 0)
    latent = filter_frame(wm_params, latent, observation, prev_action, is_first, frame_key)
    if t == 0:
      first_feature = np.asarray(features(latent)).reshape(num_tasks, episodes, -1)
    if t % chunk == 0:
      chunks = np.asarray(sample_chunks(policy_params, latent, chunk_key, num_tasks))
    action = chunks[:, t % chunk]
    jax.block_until_ready(latent)
    thought = time.perf_counter()
    environment.step(action, record.active)
    record.add(t, action, environment.state(), environment.snapshot(), environment.success())
    prev_action = action
    seconds["drawing"] += drawn - began
    seconds["model"] += thought - drawn
    seconds["physics"] += time.perf_counter() - thought
    if progress is not None:
      progress(1)
    if not record.active.any():
      if progress is not None:
        progress(max_steps - 1 - t)
      break
  return record.finish(first_feature, seconds)


def rollout_experts(
  *,
  tasks: Sequence[str],
  starts: np.ndarray,
  environment: Environment,
  action_size: int,
  seed: int,
  max_steps: int,
  progress: Callable[[int], None] | None = None,
) -> Rollouts:
  """Runs the scripted experts, without noise, from given start states.

  Args:
    tasks: K names.
    starts: [K, M, W] where the episodes start.
    environment: one simulator.
    action_size: A.
    seed: of the experts' choices.
    max_steps: control steps until an episode has failed.
    progress: called with 1 after every episode.

  Returns:
    The episodes.
  """
  num_tasks, episodes = _check_starts(tasks, starts)
  row = lambda x: None if x is None else x[None]
  results = []
  began = time.perf_counter()
  for k, task in enumerate(tasks):
    for m in range(episodes):
      environment.reset(starts[k, m], task)
      record = _Record(1, 1, environment.state()[None], row(environment.snapshot()), max_steps, action_size)
      act = environment.expert(task, np.random.default_rng([seed, k, m]))
      for t in range(max_steps):
        action = act()
        if action is None:
          break
        environment.step(action)
        success = np.array([environment.success()])
        record.add(t, action[None], environment.state()[None], row(environment.snapshot()), success)
        if not record.active.any():
          break
      results.append(record.finish(None, {}))
      if progress is not None:
        progress(1)

  def stack(name: str) -> np.ndarray | None:
    values = [getattr(r, name) for r in results]
    if values[0] is None:
      return None
    parts = np.concatenate(values, 1)[0]
    return parts.reshape(num_tasks, episodes, *parts.shape[1:])

  arrays: dict[str, Any] = {name: stack(name) for name in KEPT}
  return Rollouts(**arrays, first_feature=None, seconds={"physics": time.perf_counter() - began})


def _check_starts(tasks: Sequence[str], starts: np.ndarray) -> tuple[int, int]:
  if starts.ndim != 3 or starts.shape[0] != len(tasks):
    raise ValueError(f"starts must be [K, M, W] with K = {len(tasks)}, got {list(starts.shape)}")
  return starts.shape[0], starts.shape[1]


class _Record:
  """Book-keeping of running episodes: flat [K * M], task-major."""

  def __init__(
    self,
    num_tasks: int,
    episodes: int,
    robot: np.ndarray,
    snapshot: np.ndarray | None,
    max_steps: int,
    action_size: int,
  ):
    self.max_steps, self.action_size = max_steps, action_size
    self.shape, total = (num_tasks, episodes), num_tasks * episodes
    self.robot = np.array(robot, np.float64)
    self._snapshot = None if snapshot is None else np.array(snapshot, np.float64)
    self.active = np.ones(total, bool)
    self.success = np.zeros(total, bool)
    self.steps = np.zeros(total, np.int32)
    self._robots: list[np.ndarray] = [self.robot.copy()]
    self._snapshots: list[np.ndarray] = [] if self._snapshot is None else [self._snapshot.copy()]
    self._actions: list[np.ndarray] = []

  def add(
    self,
    t: int,
    action: np.ndarray,
    robot: np.ndarray,
    snapshot: np.ndarray | None,
    success: np.ndarray,
  ) -> None:
    """Takes over what the running episodes are after step `t` and marks those that succeeded."""
    running = self.active.copy()
    self.robot[running] = robot[running]
    if self._snapshot is not None and snapshot is not None:
      self._snapshot[running] = snapshot[running]
      self._snapshots.append(self._snapshot.copy())
    self.steps[running] = t + 1
    self.success |= running & success
    self.active &= ~self.success
    self._robots.append(self.robot.copy())
    self._actions.append(np.where(running[:, None], action, 0).astype(np.float32))

  def finish(self, first_feature: np.ndarray | None, seconds: dict[str, float]) -> Rollouts:
    missing = self.max_steps - len(self._actions)
    none = np.zeros((len(self.active), self.action_size), np.float32)
    fold: Callable[[np.ndarray], np.ndarray] = lambda x: x.reshape(*self.shape, *x.shape[1:])
    filled = lambda parts, last: fold(np.stack(parts + [last] * missing, 1))
    return Rollouts(
      success=fold(self.success),
      steps=fold(self.steps),
      robot_obs=filled(self._robots, self.robot),
      snapshot=None if self._snapshot is None else filled(self._snapshots, self._snapshot),
      action=filled(self._actions, none),
      first_feature=first_feature,
      seconds=seconds,
    )
