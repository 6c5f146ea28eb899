"""The same PPO in the simulator instead of the world model: what imagination saves in real steps.

Not part of a whole run: ask for it by `--config.stage=online_ppo`. Policies, features, losses and optimisers
are those of stage ppo; only rollouts differ: the simulator moves, every frame is drawn and filtered through
the world model, and the task's own predicate pays. Files: `params`, `online.json`, `online.md`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting import models
from wam_jax.acting.step import filter_frame
from wam_jax.core import ppo as ppo_loss
from wam_jax.core.actions import executable
from wam_jax.data import calvin
from wam_jax.data.calvin import dataset_path
from wam_jax.data.windows import rest_actions
from wam_jax.envs import registry
from wam_jax.envs.vector import make_vector
from wam_jax.host import tables
from wam_jax.host.logger import read_metrics
from wam_jax.running import ppo_monitor, ppo_setup
from wam_jax.running.plan import StageError
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import NotFiniteError, train_loop
from wam_jax.storage.artifact import Artifact, write_text
from wam_jax.storage.saved_params import save_params
from wam_jax.training import ppo
from wam_jax.training import world_model as wm
from wam_jax.training.imagination import DreamState, make_starts
from wam_jax.training.tasks import over_tasks, task_keys, task_metrics
from wam_jax.types import Dream, Params, features


def run(stage: StageRun) -> None:
  """Trains as stage ppo does, on real episodes, and says how many real steps its results took."""
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  networks = ppo_setup.load_networks(stage)
  policy, demos = networks.policy, networks.demos
  num_tasks = len(demos.tasks)
  # Only the monitor dreams, and only its dreams are judged by the classifier.
  starts = make_starts(demos.takes)
  frozen = networks.frozen(starts, jnp.zeros(num_tasks))
  key = jax.random.fold_in(jax.random.key(config.seed), 8)
  init_key, train_key = jax.random.split(key)
  state = networks.initial_state(config.ppo, frozen, init_key)
  episodes = Episodes(
    config, inputs["collect"], networks.model, networks.world_params, policy, networks.cloned["base"]
  )
  update_task = ppo.make_update(policy, config.ppo)
  update_tasks = over_tasks(lambda task, _: update_task(*task))

  def update(state: ppo.PPOState, key: jax.Array, num: int) -> tuple[ppo.PPOState, dict[str, Any]]:
    assert num == 1  # per_call
    rollout_key, chain_key, epoch_key = jax.random.split(key, 3)
    with jax.transfer_guard("allow"):  # pictures and actions travel at every step, by nature
      ends, rollout, real = episodes.rollout(state, rollout_key)
    keys = task_keys(chain_key, num_tasks), task_keys(epoch_key, num_tasks)
    after, metrics = update_tasks((state, frozen, ends, rollout, *keys), None)
    problem = ppo.not_finite(demos.tasks, metrics)
    if problem:
      raise NotFiniteError(problem)
    return after, task_metrics(demos.tasks, metrics | real)

  last = config.online.iterations
  monitor = ppo_monitor.Monitor(stage, networks, frozen, "online", config.online.eval_every, last)
  if not monitor.sees_real:
    raise StageError(
      "online_ppo counts the real steps that success takes, which cannot be measured here: it needs "
      "ppo.eval_episodes above 0, and held-out starts beyond those of evaluate.episodes"
    )
  state = train_loop(
    stage,
    state,
    update,
    total=last,
    per_call=1,
    key=train_key,
    description="PPO in the simulator",
    prefix="online",
    best=("success", "max"),
    watch=monitor,
  )
  _, imagined = models.load_policy(inputs["ppo"])
  comparison = compare(
    demos.tasks,
    read_metrics(workdir),
    monitor.real_success(imagined),
    steps_per_iteration=config.ppo.dreams * config.ppo.chunks_per_iteration * policy.chunk,
  )
  write_text(workdir / "online.json", json.dumps(comparison, indent=2) + "\n")
  text = tables.markdown_table(rows(comparison))
  write_text(workdir / "online.md", text + "\n")
  logger.info("\n" + text)
  params = {"base": frozen.base, "tuned": state.params["actor"], "critic": state.params["critic"]}
  save_params(workdir / "params", params)


def compare(
  names: tuple[str, ...],
  lines: list[dict[str, Any]],
  imagination: np.ndarray | None,
  *,
  steps_per_iteration: int,
) -> dict[str, Any]:
  """Real success over real steps, and when it reaches what imagination reached without them.

  Args:
    names: K tasks.
    lines: metrics of this stage.
    imagination: [K], real success of the policies of stage ppo, from the same starts; None: not measured.
    steps_per_iteration: control steps of one task in an iteration.

  Returns:
    {"curve": [{"iteration", "real_steps" of one task, "success": {task: rate}}], "imagination": {task:
    rate}, "real_steps_to_match": {task: real steps until its success is first as high, null: never}}.
  """
  key = lambda task: f"online/monitor/{task}/real_success"
  curve = [
    {
      "iteration": line["step"],
      "real_steps": line["step"] * steps_per_iteration,
      "success": {task: line[key(task)] for task in names},
    }
    for line in lines
    if all(key(task) in line for task in names)
  ]
  comparison: dict[str, Any] = {"curve": curve, "imagination": {}, "real_steps_to_match": {}}
  if imagination is not None:
    comparison["imagination"] = {task: float(rate) for task, rate in zip(names, imagination, strict=True)}
    for task, goal in comparison["imagination"].items():
      steps = [point["real_steps"] for point in curve if point["success"][task] >= goal - 1e-9]
      comparison["real_steps_to_match"][task] = min(steps, default=None)
  return comparison


def rows(comparison: Mapping[str, Any]) -> tables.Rows:
  """`compare` as a table, header first."""
  curve, imagination = comparison["curve"], comparison["imagination"]
  heads = ["Real success in %", *(f"{point['real_steps']:,} steps" for point in curve), "in imagination"]
  out = [[*heads, "real steps to match"]]
  for task in curve[0]["success"] if curve else ():
    steps = comparison["real_steps_to_match"].get(task)
    percent = [f"{100 * point['success'][task]:.0f}" for point in curve]
    reached = f"{100 * imagination[task]:.0f}" if task in imagination else tables.NOTHING
    never = "not reached" if imagination else tables.NOTHING
    out.append([task, *percent, reached, never if steps is None else f"{steps:,}"])
  return out


class Episodes:
  """Rollouts of all tasks' policies in the simulator, E environments of each, in the form of dreams.

  Environments restart in every iteration, so that an interrupted run goes on as if it had not been.
  """

  def __init__(
    self, config: Any, collect: Artifact, model: Any, world_params: Params, policy: Any, base: Params
  ):
    p, env = config.ppo, config.env
    self._tasks, self._num = tuple(config.tasks), p.dreams
    self._model, self._world_params, self._policy, self._base = model, world_params, policy, base
    self._chunks, self._horizon = p.chunks_per_iteration, p.horizon_steps // policy.chunk
    total = len(self._tasks) * self._num
    simulator = registry.load(env)
    model.embodiment.check("the world model", simulator.embodiment, f"the simulator {env.name}")
    self._environment = make_vector(simulator, total, env.workers, model.image_size)
    self._of = np.repeat(self._tasks, self._num).tolist()  # the task of each environment
    self._starts = training_starts(config, collect)
    self._filter = jax.jit(functools.partial(filter_frame, model))
    self._act = over_tasks(self._make_act(config))
    self._value = over_tasks(self._make_value(config))

  def _make_act(self, config: Any) -> Callable[[Any, Any], Any]:
    policy, p, binary = self._policy, config.ppo, self._model.embodiment.binary

    def act(task: Any, _: Any) -> Any:
      """Of one task: (networks, feature [E, F], key) -> chunk, chain, log_prob [E, K']."""
      base, tuned, feature, key = task
      x_init, noise = policy.draw_noise(key, feature.shape[:1])
      chunk, chain = policy.sample_chain({"base": base, "tuned": tuned}, feature, x_init, noise)
      log_prob = policy.log_prob_of_noise(noise)
      return (
        executable(chunk, binary),
        chain,
        ppo_loss.mean_log_prob(log_prob, p.log_prob_min, p.log_prob_max),
      )

    return act

  def _make_value(self, config: Any) -> Callable[[Any, Any], Any]:
    critic = ppo.make_critic(config.ppo)
    return lambda task, _: critic.apply({"params": task[0]}, *task[1:])

  def rollout(self, state: ppo.PPOState, key: jax.Array) -> tuple[DreamState, Dream, dict[str, np.ndarray]]:
    """N chunks in every environment.

    Args:
      state: of PPO, stacked over K tasks.
      key: random key.

    Returns:
      (where the episodes stand at the end, the rollout with leaves [K, N, E, ...], metrics [K]).
    """
    tasks, num, policy = self._tasks, self._num, self._policy
    shape, total = (len(tasks), num), len(tasks) * num
    fold = lambda x: np.asarray(x).reshape(*shape, *x.shape[1:])
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    actor, critic = state.params["actor"], state.params["critic"]
    environment = self._environment
    started = np.ones(total, bool)
    environment.reset(self._draw_starts(started, rng), self._of)
    latent = wm.initial_latent(self._model, self._world_params, total)
    rest_action = rest_actions(self._model.embodiment, total)
    latent = self._filter(
      self._world_params, latent, environment.observe(), rest_action, started, jax.random.fold_in(key, 0)
    )
    step = np.zeros(total, np.int32)
    out: list[dict[str, Any]] = []
    succeeded = ended_count = np.zeros(len(tasks))
    for n in range(self._chunks):
      act_key, frame_key, restart_key = jax.random.split(jax.random.fold_in(key, n + 1), 3)
      feature = fold(features(latent))
      time_left = fold(1 - step / self._horizon).astype(np.float32)
      value = self._value((critic, feature, time_left), None)
      networks = self._base, actor, feature, task_keys(act_key, len(tasks))
      chunk, chain, log_prob = self._act(networks, None)
      success = np.zeros(total, bool)
      actions = np.asarray(chunk).reshape(total, policy.chunk, -1)
      for h in range(policy.chunk):
        environment.step(actions[:, h])
        observation = environment.observe()
        success |= environment.success()
        frame = jax.random.fold_in(frame_key, h)
        latent = self._filter(
          self._world_params, latent, observation, actions[:, h], np.zeros(total, bool), frame
        )
      step = step + 1
      truncated = (step >= self._horizon) & ~success
      after = fold(1 - step / self._horizon).astype(np.float32)
      bootstrap = self._value((critic, fold(features(latent)), after), None)
      out.append(
        {
          "feature": feature,
          "chain": chain,
          "log_prob": log_prob,
          "reward": fold(success).astype(np.float32),
          "value": value,
          "terminated": fold(success),
          "truncated": fold(truncated),
          "bootstrap_value": bootstrap,
          "time_left": time_left,
        }
      )
      ended = success | truncated
      succeeded, ended_count = succeeded + fold(success).sum(1), ended_count + fold(ended).sum(1)
      step = np.where(ended, 0, step)
      if ended.any():
        environment.reset(self._draw_starts(ended, rng), self._of, ended)
        observation = environment.observe(ended)
        fresh = self._filter(self._world_params, latent, observation, rest_action, ended, restart_key)
        latent = jax.tree.map(
          lambda new, old, ended=ended: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old),
          fresh,
          latent,
        )
    rollout = Dream(**jax.tree.map(lambda *x: jnp.stack(x, 1), *out))
    ends = DreamState(feature=jnp.asarray(fold(features(latent))), step=jnp.asarray(fold(step)))
    real = {"success": succeeded / np.maximum(ended_count, 1), "ended": ended_count}
    return ends, rollout, real

  def _draw_starts(self, selected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[K * E, W], of those that `selected` names one of the demos' starts."""
    starts = np.zeros((len(selected), next(iter(self._starts.values())).shape[1]))
    for i in np.flatnonzero(selected):
      rows = self._starts[self._of[i]]
      starts[i] = rows[rng.integers(len(rows))]
    return starts


def training_starts(config: Any, collect: Artifact) -> dict[str, np.ndarray]:
  """task -> starts [M, W] of its training demos."""
  return calvin.read_start_states(
    dataset_path(collect), config.tasks, config.data.demos_per_task, split="training"
  )
