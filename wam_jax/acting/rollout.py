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
from wam_jax.data.windows import rest_actions
from wam_jax.embodiment import CALVIN
from wam_jax.envs import tasks as task_rules
from wam_jax.envs.base import VectorStepper
from wam_jax.train import world_model as wm
from wam_jax.types import Latent, Params, features


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """Episodes of K tasks, M each.

  Attributes:
    success: [K, M] bool.
    steps: [K, M] int32, control steps executed; at most `max_steps`.
    robot_obs: [K, M, T+1, 15], states from the start on; after the end the last one is repeated.
    scene_obs: [K, M, T+1, 24], likewise.
    action: [K, M, T, 7] float32, executed actions; zero after the end.
    first_feature: [K, M, F] float32 after the first frame, or None for experts.
    seconds: where the time went: drawing, model, physics.
  """

  success: np.ndarray
  steps: np.ndarray
  robot_obs: np.ndarray
  scene_obs: np.ndarray
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
  robot_obs: np.ndarray,
  scene_obs: np.ndarray,
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
    policy: `sample(params, feature [M, F], key, deterministic=...) -> [M, H, 7]`.
    policy_params: stacked on a leading task axis K.
    tasks: K names.
    robot_obs: [K, M, 15] start states.
    scene_obs: [K, M, 24] start states.
    environment: K * M environments, drawing at the size the world model was trained on.
    key: random key of posterior samples and of the policy's noise.
    max_steps: control steps until an episode has failed.
    progress: called with the number of control steps done since the last call (of `max_steps`).

  Returns:
    The episodes.

  Raises:
    ValueError: shapes that do not belong together.
  """
  num_tasks, episodes = _check_starts(tasks, robot_obs, scene_obs)
  total, chunk = num_tasks * episodes, policy.chunk
  if environment.num != total:
    raise ValueError(
      f"{num_tasks} tasks x {episodes} episodes need {total} environments, got {environment.num}"
    )
  filter_frame, sample_chunks = _make_steps(model, policy)

  environment.reset(robot_obs.reshape(total, -1), scene_obs.reshape(total, -1))
  record = _Record(tasks, episodes, *environment.state(), max_steps, model.embodiment.action_size)
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
    record.add(t, action, *environment.state())
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
  robot_obs: np.ndarray,
  scene_obs: np.ndarray,
  environment: Any,
  make_expert: Callable[[str, Any, np.random.Generator], Callable[[], np.ndarray | None]],
  seed: int,
  max_steps: int,
  progress: Callable[[int], None] | None = None,
) -> Rollouts:
  """Runs the scripted experts, without noise, from given start states.

  Args:
    tasks: K names.
    robot_obs: [K, M, 15] start states.
    scene_obs: [K, M, 24] start states.
    environment: one simulator (Protocol `Environment`).
    make_expert: (task, environment, generator) -> act() -> action [7], or None when done.
    seed: of the experts' choices.
    max_steps: control steps until an episode has failed.
    progress: called with 1 after every episode.

  Returns:
    The episodes.
  """
  num_tasks, episodes = _check_starts(tasks, robot_obs, scene_obs)
  results = []
  began = time.perf_counter()
  for k, task in enumerate(tasks):
    for m in range(episodes):
      environment.reset(robot_obs[k, m], scene_obs[k, m])
      robot, scene = environment.state()
      record = _Record([task], 1, robot[None], scene[None], max_steps, CALVIN.action_size)
      act = make_expert(task, environment, np.random.default_rng([seed, k, m]))
      for t in range(max_steps):
        action = act()
        if action is None:
          break
        environment.step(action)
        robot, scene = environment.state()
        record.add(t, action[None], robot[None], scene[None])
        if not record.active.any():
          break
      results.append(record.finish(None, {}))
      if progress is not None:
        progress(1)

  def stack(name: str) -> np.ndarray:
    parts = np.concatenate([getattr(r, name) for r in results], 1)[0]
    return parts.reshape(num_tasks, episodes, *parts.shape[1:])

  arrays = {name: stack(name) for name in ("success", "steps", "robot_obs", "scene_obs", "action")}
  return Rollouts(**arrays, first_feature=None, seconds={"physics": time.perf_counter() - began})


def _check_starts(tasks: Sequence[str], robot_obs: np.ndarray, scene_obs: np.ndarray) -> tuple[int, int]:
  if robot_obs.ndim != 3 or robot_obs.shape[0] != len(tasks) or robot_obs.shape[:2] != scene_obs.shape[:2]:
    raise ValueError(
      f"start states must be [K, M, 15] and [K, M, 24] with K = {len(tasks)}, "
      f"got {list(robot_obs.shape)} and {list(scene_obs.shape)}"
    )
  return robot_obs.shape[0], robot_obs.shape[1]


class _Record:
  """Book-keeping of running episodes: flat [K * M], task-major."""

  def __init__(
    self,
    tasks: Sequence[str],
    episodes: int,
    robot: np.ndarray,
    scene: np.ndarray,
    max_steps: int,
    action_size: int,
  ):
    self.tasks, self.episodes, self.max_steps, self.action_size = tasks, episodes, max_steps, action_size
    total = len(tasks) * episodes
    self.robot, self.scene = np.array(robot, np.float64), np.array(scene, np.float64)
    self.start = self.scene.copy()
    self.active = np.ones(total, bool)
    self.success = np.zeros(total, bool)
    self.steps = np.zeros(total, np.int32)
    self.robots, self.scenes = [self.robot.copy()], [self.scene.copy()]
    self.actions: list[np.ndarray] = []

  def add(self, t: int, action: np.ndarray, robot: np.ndarray, scene: np.ndarray) -> None:
    """Takes over the states after step `t` of the running episodes and marks those that succeeded."""
    running = self.active.copy()
    self.robot[running], self.scene[running] = robot[running], scene[running]
    self.steps[running] = t + 1
    holds = task_rules.successes(self.tasks, self.start, self.scene)
    self.success |= running & holds
    self.active &= ~self.success
    self.robots.append(self.robot.copy())
    self.scenes.append(self.scene.copy())
    self.actions.append(np.where(running[:, None], action, 0).astype(np.float32))

  def finish(self, first_feature: np.ndarray | None, seconds: dict[str, float]) -> Rollouts:
    missing = self.max_steps - len(self.actions)
    robots = np.stack(self.robots + [self.robot] * missing, 1)
    scenes = np.stack(self.scenes + [self.scene] * missing, 1)
    actions = np.stack(
      self.actions + [np.zeros((len(self.active), self.action_size), np.float32)] * missing, 1
    )
    fold: Callable[[np.ndarray], np.ndarray] = lambda x: x.reshape(
      len(self.tasks), self.episodes, *x.shape[1:]
    )
    return Rollouts(
      success=fold(self.success),
      steps=fold(self.steps),
      robot_obs=fold(robots),
      scene_obs=fold(scenes),
      action=fold(actions),
      first_feature=first_feature,
      seconds=seconds,
    )
