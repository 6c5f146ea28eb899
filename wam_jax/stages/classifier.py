"""Trains one success classifier per task and measures what PPO would live off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wam_jax.acting.models import load_world_model, make_classifier
from wam_jax.core.discrimination import discrimination
from wam_jax.data.features import DemoFeatures, load_features
from wam_jax.host import tables
from wam_jax.nn.classifier import SuccessClassifier
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import train_loop
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import read_record, write_record
from wam_jax.storage.saved_params import save_params
from wam_jax.training import classifier as classifier_training
from wam_jax.training.classifier_pool import demo_dreams, make_pool
from wam_jax.training.imagination import World, draw_starts, make_starts, make_world
from wam_jax.training.sharding import make_mesh
from wam_jax.training.state import make_optimizer, make_train_state
from wam_jax.training.tasks import make_task_update, over_tasks, task_keys
from wam_jax.types import Params, TrainState

DREAMS_PER_TAKE = 4  # in which good and failed takes must be told apart
DREAMS = 256  # random-action dreams per task in calibration and in the gate; half as many in training
START_FRAMES = 4  # first frames of a demo that such dreams start from


class GateError(Exception):
  """The classifier calls too many random-action dreams a success to be PPO's reward."""


def run(stage: StageRun) -> None:
  """Writes `params` (networks and thresholds, stacked over tasks) and `quality.json`.

  Raises:
    ValueError: a task whose demos never show success.
  """
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  model, world_params = load_world_model(inputs["world_model"])
  world, world_params = make_world(model), jax.device_put(world_params)
  demos = load_features(inputs["featurize"].path / "train.npz")
  heldout = load_features(inputs["featurize"].path / "heldout.npz")
  failed = heldout_failed = None
  if config.data.failed_takes_per_task:
    failed, heldout_failed = (
      load_features(inputs["featurize"].path / f"{name}.npz") for name in ("failed", "heldout_failed")
    )
  part, num_tasks = config.classifier, len(demos.tasks)
  stride, length = config.behaviour_cloning.chunk, config.ppo.horizon_steps
  classifier = make_classifier(config, demos.feature.shape[-1])
  key = jax.random.fold_in(jax.random.key(config.seed), 4)
  pool_key, init_key, train_key, start_key, calibrate_key, test_key = jax.random.split(key, 6)

  logger.info("dreaming the demos, random actions and other tasks' actions")
  start = _starts(demos, start_key)
  pool = make_pool(
    world,
    world_params,
    demos.takes,
    start,
    pool_key,
    num_dreams=DREAMS // 2,
    length=length,
    stride=stride,
    failed=None if failed is None else failed.takes,
  )
  mesh = make_mesh(config.training.devices)
  init, update_task = training(part, classifier, mesh)
  state = train_loop(
    stage,
    jax.jit(init)(task_keys(init_key, num_tasks)),
    make_task_update(update_task, pool, demos.tasks, mesh),
    total=part.updates,
    per_call=config.training.log_every,
    key=train_key,
    description="success classifiers",
    prefix="classifier",
    mesh=mesh,
  )

  margins = over_tasks(
    lambda task, shared: classifier_training.random_dream_margins(
      world, shared, classifier, *task, length=length, stride=stride
    )
  )
  fresh = margins((state.params, start, task_keys(calibrate_key, num_tasks)), world_params)
  # Half of what the gate allows: the gate is measured on held-out starts.
  threshold = classifier_training.calibrate(np.asarray(fresh), part.threshold, part.max_false_positives / 2)
  params = {"network": state.params, "threshold": jnp.asarray(threshold)}
  quality = _quality(world, world_params, classifier, params, heldout, heldout_failed, margins, test_key)
  save_params(workdir / "params", params)
  write_record(workdir, "quality.json", quality)
  if "discrimination" in quality:
    logger.info("\n" + tables.markdown_table(tables.discrimination_rows(quality)))
  worst = max(quality["tasks"], key=lambda t: quality["tasks"][t]["random_dreams"]["false_positives"])
  share = quality["tasks"][worst]["random_dreams"]["false_positives"]
  logger.info(f"random-action dreams called a success: at most {share:.1%} ({worst})")


def training(
  part: Any, classifier: SuccessClassifier, mesh: Mesh | None
) -> tuple[Callable[[jax.Array], TrainState], Any]:
  """What starts training, and the updates of one task.

  Args:
    part: `config.classifier`.
    classifier: networks.
    mesh: devices to run on.

  Returns:
    (keys [K] -> states stacked over K tasks; `training.classifier.make_update`).
  """
  optimizer = make_optimizer(part.learning_rate, part.updates, weight_decay=part.weight_decay)
  init = jax.vmap(lambda key: make_train_state(classifier.init(key), optimizer))
  return init, classifier_training.make_update(classifier, optimizer, part, mesh)


def _starts(demos: DemoFeatures, key: jax.Array) -> jax.Array:
  """Start features of dreams: [K, DREAMS, F]."""
  return draw_starts(make_starts(demos.takes, START_FRAMES), task_keys(key, len(demos.tasks)), DREAMS)


def _quality(
  world: World,
  world_params: Params,
  classifier: SuccessClassifier,
  params: Params,
  heldout: DemoFeatures,
  failed: DemoFeatures | None,
  margins: Any,
  key: jax.Array,
) -> dict[str, Any]:
  """Everything that quality.json holds."""
  num_tasks = len(heldout.tasks)
  start_key, random_key, dream_key = jax.random.split(key, 3)

  def measure(task: Any, shared: Params) -> Any:
    params, takes, key = task
    feature, label, mask = demo_dreams(world, shared, takes, key)
    judged = lambda feature: (classifier.success(params, feature), classifier(params, feature))
    return judged(takes.feature), (judged(feature), label, mask)

  measured = params, jax.tree.map(jnp.asarray, heldout.takes), task_keys(dream_key, num_tasks)
  real, (dreamt, label, valid) = jax.device_get(over_tasks(measure)(measured, world_params))
  start = _starts(heldout, start_key)
  random = np.asarray(margins((params["network"], start, task_keys(random_key, num_tasks)), world_params))
  threshold = np.asarray(params["threshold"])
  tasks: dict[str, dict[str, Any]] = {}

  def judged(k: int, called: Any, label: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    predicted, probability = called
    quality = classifier_training.precision_recall(predicted[k], label[k], mask[k])
    return quality | classifier_training.calibration(probability[k], label[k], mask[k])

  for k, task in enumerate(heldout.tasks):
    tasks[task] = {
      "threshold": float(1 / (1 + np.exp(-threshold[k]))),
      "log_odds_threshold": float(threshold[k]),
      "heldout_demos": judged(k, real, heldout.success, heldout.mask),
      "heldout_demo_dreams": judged(k, dreamt, label, valid),
      "random_dreams": {
        "count": int(random.shape[1]),
        "false_positives": float((random[k] > threshold[k]).mean()),
      },
    }
  if failed is None:
    return {"tasks": tasks}
  separation_key = jax.random.fold_in(dream_key, 1)
  separation = told_apart(world, world_params, classifier, params, heldout, failed, separation_key)
  for k, task in enumerate(heldout.tasks):
    good_takes, failed_takes = (int(takes.mask[k].any(-1).sum()) for takes in (heldout, failed))
    tasks[task]["takes"] = {"good": good_takes, "failed": failed_takes}
    tasks[task]["discrimination"] = {kind: numbers["tasks"][k] for kind, numbers in separation.items()}
  return {"tasks": tasks, "discrimination": {kind: numbers["mean"] for kind, numbers in separation.items()}}


def told_apart(
  world: World,
  world_params: Params,
  classifier: SuccessClassifier,
  params: Params,
  good: DemoFeatures,
  failed: DemoFeatures,
  key: jax.Array,
) -> dict[str, dict[str, Any]]:
  """Whether the classifier tells held-out takes that succeeded from those that failed, seen and dreamt.

  Args:
    world: the frozen world model.
    world_params: its parameters.
    classifier: sizes.
    params: {"network", "threshold"}, stacked over K tasks.
    good: takes that succeeded, M of each task.
    failed: takes that failed.
    key: of the dreams, DREAMS_PER_TAKE of each take, with its own actions from its first frame.

  Returns:
    {"real", "dreamt"}: `core.discrimination.discrimination` of the real features and of the dreams.
  """

  def measure(task: Any, shared: Params) -> Any:
    params, takes, key = task
    return classifier_training.take_scores(world, shared, classifier, params, takes, key, DREAMS_PER_TAKE)

  def scores(takes: DemoFeatures, key: jax.Array) -> list[list[np.ndarray]]:
    """Of real features and of dreams, for each task those of its takes."""
    task = params, jax.tree.map(jnp.asarray, takes.takes), task_keys(key, len(takes.tasks))
    by_source = jax.device_get(over_tasks(measure)(task, world_params))
    valid_takes = np.asarray(takes.mask.any(-1))
    return [[margin[k][valid_takes[k]] for k in range(len(takes.tasks))] for margin in by_source]

  of_good, of_failed = scores(good, jax.random.fold_in(key, 0)), scores(failed, jax.random.fold_in(key, 1))
  return {kind: discrimination(of_good[i], of_failed[i]) for i, kind in enumerate(("real", "dreamt"))}


def check_gate(artifact: Artifact, tasks: tuple[str, ...], limit: float) -> None:
  """Refuses a classifier that rewards nonsense.

  Args:
    artifact: of this stage.
    tasks: those that will be trained.
    limit: largest share of random-action dreams called a success.

  Raises:
    GateError: naming the tasks above the limit.
  """
  quality = read_record(artifact.path, "quality.json")["tasks"]
  shares = {task: quality[task]["random_dreams"]["false_positives"] for task in tasks}
  above = {task: share for task, share in shares.items() if share > limit}
  if above:
    listed = ", ".join(f"{task} {share:.1%}" for task, share in above.items())
    raise GateError(
      f"the success classifier calls too many random-action dreams a success: {listed}; "
      f"classifier.max_false_positives is {limit:.1%}. PPO would learn to please the classifier. Train "
      "the world model or the classifier longer, or set classifier.enforce_gate=False to go on anyway."
    )


def not_told_apart(artifact: Artifact, tasks: tuple[str, ...], least: float) -> dict[str, float]:
  """Tasks whose dreams do not tell success from failure well enough to learn from.

  Args:
    artifact: of this stage.
    tasks: those that will be trained.
    least: share of good held-out takes called a success in dreams minus that of failed ones; 0: any.

  Returns:
    task -> its share, of those below `least`; empty where there were no failed takes to measure it on.
  """
  quality = read_record(artifact.path, "quality.json")["tasks"]
  shares = {
    task: quality[task]["discrimination"]["dreamt"]["difference"]["value"]
    for task in tasks
    if "discrimination" in quality[task]
  }
  return {task: share for task, share in shares.items() if least and share < least}
