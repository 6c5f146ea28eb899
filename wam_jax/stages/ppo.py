"""Improves the cloned policies by PPO in the frozen world model, all tasks side by side."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.data.features import load_features
from wam_jax.io import checkpoint
from wam_jax.io.artifact import Artifact, write_text
from wam_jax.io.logger import Logger
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.stages import behaviour_cloning
from wam_jax.stages import classifier as classifier_stage
from wam_jax.stages.training_loop import train_loop
from wam_jax.stages.world_model import load_world_model
from wam_jax.train import ppo as train
from wam_jax.train.imagination import World, imagined_success, make_starts, make_world
from wam_jax.train.tasks import over_tasks, repeat, task_keys, task_metrics
from wam_jax.types import Params, Policy

REQUIRES = ("collect", "world_model", "featurize", "behaviour_cloning", "classifier")
CONFIG = (
  "seed",
  "tasks",
  "ppo",
  "classifier.enforce_gate",
  "classifier.max_false_positives",
)

START_FRAMES = 4  # first frames of a demo that dreams start from
MONITOR_EPISODES = 20  # real episodes per task of a monitoring evaluation, at most


def run(config: Any, inputs: dict[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Writes `params` ({"base", "tuned", "critic"}, stacked over tasks) and `result.json`.

  Raises:
    GateError: the classifier rewards random-action dreams.
    ValueError: policy, classifier and features of different sizes or tasks, or a policy of another kind.
  """
  if config.classifier.enforce_gate:
    classifier_stage.check_gate(inputs["classifier"], config.tasks, config.classifier.max_false_positives)
  model, world_params = load_world_model(inputs["world_model"])
  world, world_params = make_world(model), jax.device_put(world_params)
  demos = load_features(inputs["featurize"].path / "train.npz")
  cloned_policy, cloned = behaviour_cloning.load_policy(inputs["behaviour_cloning"])
  policy = behaviour_cloning.make_policy(config, cloned_policy.feature_size)
  if type(policy) is not type(cloned_policy):
    raise ValueError(
      f"behaviour_cloning.policy={config.behaviour_cloning.policy}, but "
      f"{inputs['behaviour_cloning'].path} holds a {type(cloned_policy).__name__}"
    )
  classifier, classifier_params = classifier_stage.load_classifier(inputs["classifier"])
  sizes = {model.feature_size, demos.feature.shape[-1], policy.feature_size, classifier.feature_size}
  if len(sizes) != 1:
    raise ValueError(
      f"world model, demos, policy and classifier have different feature sizes: {sorted(sizes)}"
    )
  num_tasks = len(demos.tasks)
  frozen = jax.device_put(
    train.Frozen(
      base=cloned["base"],
      classifier=classifier_params,
      starts=make_starts(demos.feature, demos.success, demos.mask, START_FRAMES),
    )
  )
  key = jax.random.fold_in(jax.random.key(config.seed), 5)
  init_key, train_key, test_key = jax.random.split(key, 3)
  state = jax.jit(jax.vmap(lambda f, k: train.init_state(policy, config.ppo, f, k)))(
    frozen, task_keys(init_key, num_tasks)
  )
  iterate_task = train.make_iteration(world, policy, classifier, config.ppo)

  def iterate(task: Any, shared: Any) -> Any:
    (state, frozen, key), (world_params, num) = task, shared
    return repeat(lambda state, key: iterate_task(state, frozen, world_params, key), state, key, num)

  iterate_tasks = over_tasks(iterate)

  def update(state: Any, key: jax.Array, num: int) -> tuple[Any, dict[str, Any]]:
    task = state, frozen, task_keys(key, num_tasks)
    state, metrics = iterate_tasks(task, (world_params, jnp.int32(num)))
    return state, task_metrics(demos.tasks, metrics)

  monitor = (
    _Monitor(config, inputs, logger, policy, frozen, model, world_params) if config.ppo.eval_every else None
  )
  state = train_loop(
    state=state,
    update=update,
    total=config.ppo.iterations,
    per_call=1,
    key=train_key,
    workdir=workdir,
    logger=logger,
    description="PPO in imagination",
    checkpoint_minutes=config.training.checkpoint_minutes,
    metric_prefix="ppo",
    batch_done=monitor,
  )
  result: dict[str, Any] = {}
  tuned = {"base": frozen.base, "tuned": state.params["actor"]}
  heldout = load_features(inputs["featurize"].path / "heldout.npz")
  starts = make_starts(heldout.feature, heldout.success, heldout.mask)
  count = config.evaluate.imagined_episodes
  draw = jax.vmap(lambda starts, key: starts.draw(key, count))
  start = draw(starts, task_keys(jax.random.fold_in(test_key, 0), num_tasks))
  for name, params in (("cloned", cloned), ("ppo", tuned)):
    rate = imagined_rates(
      world,
      world_params,
      policy,
      params,
      classifier,
      classifier_params,
      start,
      test_key,
      horizon_chunks=config.ppo.horizon_steps // policy.chunk,
    )
    result[f"imagined_success_{name}"] = dict(zip(demos.tasks, rate.tolist(), strict=True))
  write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
  checkpoint.save_params(workdir / "params", tuned | {"critic": state.params["critic"]})


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

  def one(task: Any, world_params: Params) -> jax.Array:
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
  return np.asarray(over_tasks(one)(task, world_params)).mean(1)


class _Monitor:
  """Real evaluation every so many iterations, beside the imagined one."""

  def __init__(
    self,
    config: Any,
    inputs: dict[str, Artifact],
    logger: Logger,
    policy: Policy,
    frozen: train.Frozen,
    model: Any,
    world_params: Params,
  ):
    self.config, self.inputs, self.logger = config, inputs, logger
    self.policy, self.frozen, self.model, self.world_params = policy, frozen, model, world_params
    self._tools: Any = None

  def __call__(self, step: int, state: train.PPOState) -> None:
    if step % self.config.ppo.eval_every:
      return
    self.logger.write(step, {f"ppo/{name}": value for name, value in self._measure(state).items()})

  def _measure(self, state: train.PPOState) -> dict[str, float]:
    from wam_jax import envs
    from wam_jax.data import calvin
    from wam_jax.stages import rollout
    from wam_jax.stages.collect import dataset_path

    config, tasks = self.config, tuple(self.config.tasks)
    if self._tools is None:
      starts = calvin.read_start_states(dataset_path(self.inputs["collect"]), tasks, MONITOR_EPISODES)
      count = min(len(robot) for robot, _ in starts.values())
      robot_obs, scene_obs = (np.stack([starts[task][i][:count] for task in tasks]) for i in range(2))
      environment = envs.make_vector(
        config.env.name, len(tasks) * count, workers=config.env.workers, image_size=config.env.image_size
      )
      self._tools = robot_obs, scene_obs, environment
    robot_obs, scene_obs, environment = self._tools
    episodes = rollout.rollout_policies(
      self.model,
      self.world_params,
      self.policy,
      {"base": self.frozen.base, "tuned": state.params["actor"]},
      tasks=tasks,
      robot_obs=robot_obs,
      scene_obs=scene_obs,
      environment=environment,
      key=jax.random.fold_in(jax.random.key(config.seed), 6),
      max_steps=config.env.max_steps,
      chunk=self.policy.chunk,
    )
    rates = episodes.success.mean(1)
    return {"real_success": rates.mean()} | {
      f"{t}/real_success": r for t, r in zip(tasks, rates, strict=True)
    }


def load_policy(artifact: Artifact) -> tuple[Policy, Params]:
  """The improved policy, and {"base", "tuned"} stacked over tasks."""
  params = checkpoint.load_params(artifact.path / "params")
  del params["critic"]
  return behaviour_cloning.described_policy(artifact, params["base"]), params
