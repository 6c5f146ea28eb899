"""Improves the cloned policies by PPO in the frozen world model, all tasks side by side.

With `ppo.eval_every` the policies are measured on the way, and the best are kept: see `ppo_monitor`. The
policies of tasks whose dreams do not tell success from failure stay as they were cloned.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wam_jax.data.features import load_features
from wam_jax.host.processes import is_first
from wam_jax.running import ppo_monitor, ppo_setup
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import NotFiniteError, train_loop
from wam_jax.stages import classifier as classifier_stage
from wam_jax.storage.records import write_record
from wam_jax.storage.saved_params import save_params
from wam_jax.training import ppo
from wam_jax.training.imagination import Dreamer, add_failed_starts, draw_starts, make_starts
from wam_jax.training.sharding import make_mesh, put
from wam_jax.training.tasks import TaskProgram, over_tasks, repeat, task_keys, task_metrics


def iterations(dreamer: Dreamer, part: Any, mesh: Mesh | None) -> TaskProgram:
  """The program of PPO: ((state, frozen, keys), (world_params, num)) -> (state, metrics).

  Args:
    dreamer: of the dreams to learn from.
    part: `config.ppo`.
    mesh: devices to run on.
  """
  iterate_task = ppo.make_iteration(dreamer, part, mesh)

  def iterate(task: Any, shared: Any) -> Any:
    (state, frozen, key), (world_params, num) = task, shared
    return repeat(lambda state, key: iterate_task(state, frozen, world_params, key), state, key, num)

  # The state is not donated: of an iteration that is not finite, the state before it is saved.
  return over_tasks(iterate, mesh=mesh)


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
  left = classifier_stage.not_told_apart(inputs["classifier"], config.tasks, config.ppo.min_discrimination)
  if left:
    listed = ", ".join(f"{task} {100 * difference:.0f}" for task, difference in left.items())
    stage.logger.info(
      f"left as cloned: {listed} points told apart in dreams, ppo.min_discrimination is "
      f"{100 * config.ppo.min_discrimination:.0f}"
    )
  world_params, demos = networks.world_params, networks.demos
  dreamer, num_tasks = networks.dreamer(config.ppo), len(demos.tasks)
  starts = make_starts(demos.takes, config.ppo.start_frames)
  if config.ppo.failed_starts:
    failed = load_features(inputs["featurize"].path / "failed.npz")
    starts = add_failed_starts(starts, failed.takes, config.ppo.failed_starts)
  limits = over_tasks(lambda takes, params: dreamer.world.familiar_entropy(params, takes))
  frozen = networks.frozen(starts, limits(jax.tree.map(jnp.asarray, demos.takes), world_params), held=left)
  key = jax.random.fold_in(jax.random.key(config.seed), 5)
  init_key, train_key, test_key = jax.random.split(key, 3)
  state = networks.initial_state(config.ppo, frozen, init_key)
  mesh = make_mesh(config.training.devices)
  warmed = networks.dreamer(config.ppo, config.ppo.prior_temperature)
  iterate_tasks = iterations(warmed, config.ppo, mesh)
  frozen_everywhere, world_everywhere = put((frozen, world_params), mesh)

  def update(state: Any, key: jax.Array, num: int) -> tuple[Any, dict[str, Any]]:
    keys, count = put((task_keys(key, num_tasks), jax.device_put(np.int32(num))), mesh)
    after, metrics = iterate_tasks((state, frozen_everywhere, keys), (world_everywhere, count))
    metrics = jax.device_get(metrics)
    problem = ppo.not_finite(demos.tasks, metrics)
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
    total=0 if len(left) == num_tasks else config.ppo.iterations,
    per_call=1,
    key=train_key,
    description="PPO in imagination",
    prefix="ppo",
    mesh=mesh,
    best=("imagined_success", "max"),
    watch=monitor,
  )
  result: dict[str, Any] = {}
  tuned = {"base": frozen.base, "tuned": state.params["actor"]}
  start_keys = task_keys(jax.random.fold_in(test_key, 0), num_tasks)
  feature = draw_starts(make_starts(networks.heldout.takes), start_keys, config.evaluate.imagined_episodes)
  score, keys = dreamer.score_tasks(), task_keys(test_key, num_tasks)
  for name, params in (("cloned", networks.cloned), ("ppo", tuned)):
    scores = score((params, networks.classifier_params, feature, keys), world_params)
    rate = np.asarray(scores > 0).mean(1)
    result[f"imagined_success_{name}"] = dict(zip(demos.tasks, rate.tolist(), strict=True))
  result["left_as_cloned"] = left
  write_record(workdir, "result.json", result)
  save_params(workdir / "params", tuned | {"critic": state.params["critic"]})
