"""Improves the cloned policies by PPO in the frozen world model, all tasks side by side.

With `ppo.eval_every` the policies are measured on the way, and the best are kept: see `ppo_monitor`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.data.features import DemoFeatures, load_features
from wam_jax.host.processes import is_first
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.running import ppo_monitor, ppo_setup
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import NotFiniteError, train_loop
from wam_jax.stages import classifier as classifier_stage
from wam_jax.storage.records import write_record
from wam_jax.storage.saved_params import save_params
from wam_jax.train import ppo as train
from wam_jax.train.imagination import (
  World,
  add_failed_starts,
  familiar_entropy,
  imagined_success,
  make_starts,
  make_world,
)
from wam_jax.train.sharding import make_mesh, put
from wam_jax.train.tasks import over_tasks, repeat, task_keys, task_metrics
from wam_jax.types import Params, Policy


def run(stage: StageRun) -> None:
  """Writes `params` ({"base", "tuned", "critic"}, stacked over tasks) and `result.json`.

  Raises:
    GateError: the classifier rewards random-action dreams.
    ValueError: policy, classifier and features of different sizes or tasks, or a policy of another kind.
  """
  config, inputs, workdir = stage.config, stage.inputs, stage.workdir
  if config.classifier.enforce_gate:
    classifier_stage.check_gate(inputs["classifier"], config.tasks, config.classifier.max_false_positives)
  networks = ppo_setup.load_networks(stage)
  world_params, policy, classifier = networks.world_params, networks.policy, networks.classifier
  demos, heldout, world = networks.demos, networks.heldout, make_world(networks.model)
  num_tasks = len(demos.tasks)
  starts = make_starts(demos.feature, demos.success, demos.mask, config.ppo.start_frames)
  if config.ppo.failed_starts:
    failed = load_features(inputs["featurize"].path / "failed.npz")
    starts = add_failed_starts(starts, failed.feature, failed.mask, config.ppo.failed_starts)
  frozen = networks.frozen(starts, entropy_limits(world, world_params, demos))
  key = jax.random.fold_in(jax.random.key(config.seed), 5)
  init_key, train_key, test_key = jax.random.split(key, 3)
  state = networks.initial_state(config.ppo, frozen, init_key)
  mesh = make_mesh(config.training.devices)
  dreamt = make_world(networks.model, temperature=config.ppo.prior_temperature)
  iterate_task = train.make_iteration(dreamt, policy, classifier, config.ppo, mesh)

  def iterate(task: Any, shared: Any) -> Any:
    (state, frozen, key), (world_params, num) = task, shared
    return repeat(lambda state, key: iterate_task(state, frozen, world_params, key), state, key, num)

  iterate_tasks = over_tasks(iterate, mesh=mesh)
  frozen_everywhere, world_everywhere = put((frozen, world_params), mesh)

  def update(state: Any, key: jax.Array, num: int) -> tuple[Any, dict[str, Any]]:
    keys, count = put((task_keys(key, num_tasks), jax.device_put(np.int32(num))), mesh)
    after, metrics = iterate_tasks((state, frozen_everywhere, keys), (world_everywhere, count))
    metrics = jax.device_get(metrics)
    problem = train.not_finite(demos.tasks, metrics)
    if problem:
      raise NotFiniteError(problem)
    return after, task_metrics(demos.tasks, metrics)

  monitor = None
  if config.ppo.eval_every and is_first():
    monitor = ppo_monitor.Monitor(
      stage, networks, frozen, "ppo", config.ppo.eval_every, config.ppo.iterations
    )
  state = train_loop(
    stage,
    state,
    update,
    total=config.ppo.iterations,
    per_call=1,
    key=train_key,
    description="PPO in imagination",
    prefix="ppo",
    mesh=mesh,
    best=("imagined_success", "max"),
    started=monitor,
    batch_done=monitor,
  )
  result: dict[str, Any] = {}
  tuned = {"base": frozen.base, "tuned": state.params["actor"]}
  starts = make_starts(heldout.feature, heldout.success, heldout.mask)
  count = config.evaluate.imagined_episodes
  draw = jax.vmap(lambda starts, key: starts.draw(key, count))
  start = draw(starts, task_keys(jax.random.fold_in(test_key, 0), num_tasks))
  for name, params in (("cloned", networks.cloned), ("ppo", tuned)):
    rate = imagined_rates(
      world,
      world_params,
      policy,
      params,
      classifier,
      networks.classifier_params,
      start,
      test_key,
      horizon_chunks=config.ppo.horizon_steps // policy.chunk,
    )
    result[f"imagined_success_{name}"] = dict(zip(demos.tasks, rate.tolist(), strict=True))
  write_record(workdir, "result.json", result)
  save_params(workdir / "params", tuned | {"critic": state.params["critic"]})


def imagined_rates(
  world: World,
  world_params: Params,
  policy: Policy,
  policy_params: Params,
  classifier: SuccessClassifier,
  classifier_params: Params,
  start: jax.Array,
  key: jax.Array,
  *,
  horizon_chunks: int,
) -> np.ndarray:
  """Share of dreams called a success, per task, with the deterministic policy.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    policy: what acts.
    policy_params: {"base", "tuned"}, stacked over K tasks.
    classifier: sizes.
    classifier_params: stacked over K tasks.
    start: [K, E, F], start features, one dream from each.
    key: random key.
    horizon_chunks: length of a dream.

  Returns:
    [K] float.
  """

  def success_of_task(task: Any, world_params: Params) -> jax.Array:
    policy_params, classifier_params, feature, key = task
    return imagined_success(
      world,
      world_params,
      policy,
      policy_params,
      classifier,
      classifier_params,
      feature,
      key,
      horizon_chunks=horizon_chunks,
    )

  task = (policy_params, classifier_params, jnp.asarray(start), task_keys(key, len(start)))
  return np.asarray(over_tasks(success_of_task)(task, world_params)).mean(1)


def entropy_limits(world: World, world_params: Params, demos: DemoFeatures) -> jax.Array:
  """`familiar_entropy` of each task's demos: [K]."""

  def limit_of_task(task: Any, world_params: Params) -> jax.Array:
    feature, action, mask = task
    return familiar_entropy(world, world_params, feature, action, mask, jax.random.key(0))

  arrays = tuple(jnp.asarray(x) for x in (demos.feature, demos.action, demos.mask))
  return over_tasks(limit_of_task)(arrays, world_params)
