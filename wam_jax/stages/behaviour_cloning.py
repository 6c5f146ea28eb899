"""Clones the demos: one policy per task, all tasks side by side; or takes the policies of DPPO or DiWA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wam_jax.acting.models import make_policy
from wam_jax.config.surroundings import dppo_file
from wam_jax.data.features import load_cloned, load_features
from wam_jax.foreign import dppo
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import train_loop
from wam_jax.storage.records import write_record
from wam_jax.storage.saved_params import save_params
from wam_jax.training import behaviour_cloning as bc
from wam_jax.training.sharding import make_mesh
from wam_jax.training.state import make_optimizer, make_train_state
from wam_jax.training.tasks import make_task_update, over_tasks, task_keys
from wam_jax.types import Params, Policy, TrainState

_KNOWS_NOTHING = 0.7  # noise loss; 1 is that of a network that predicts none


def run(stage: StageRun) -> None:
  """Writes `params` (averaged networks, stacked over tasks) and `result.json`.

  Raises:
    ValueError: a task's demos are all shorter than a chunk.
    DppoError: `inputs.dppo_checkpoint` names policies of other sizes, or files that cannot be read.
  """
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  featurized, labelled = inputs["featurize"].path, inputs.get("label_play")
  play = labelled.path if labelled else featurized if config.data.play_successes_per_task else None
  demos = load_cloned(featurized, play)
  policy = make_policy(config, demos.feature.shape[-1], demos.action.shape[-1])
  cloning, tasks = config.behaviour_cloning, demos.tasks
  data = bc.make_data(demos.takes, cloning.chunk)
  unseen = load_features(featurized / "heldout.npz")
  heldout = bc.make_data(unseen.takes, cloning.chunk)
  key = jax.random.fold_in(jax.random.key(config.seed), 3)
  init_key, train_key, test_key = jax.random.split(key, 3)
  if config.inputs.dppo_checkpoint:
    networks, updates = take_dppo(config, policy, tasks, logger), 0
  else:
    networks = _train(stage, policy, data, tasks, init_key, train_key)
    updates = cloning.updates
  loss_tasks = over_tasks(lambda task, _: _losses(policy, *task))
  result = {}
  for name, split in (("train", data), ("heldout", heldout)):
    losses = jax.device_get(loss_tasks((networks, split, task_keys(test_key, len(tasks))), None))
    result[f"loss_{name}"] = dict(zip(tasks, losses.tolist(), strict=True))
  if config.inputs.dppo_checkpoint:
    _doubt_taken(result["loss_train"], logger)
  final = "behaviour_cloning/final/"
  logger.truncate_after(-1, prefix=final)  # of a run that was killed just before it was done
  logger.write(updates, {f"{final}{n}": sum(v.values()) / len(tasks) for n, v in result.items()})
  save_params(workdir / "params", networks)
  write_record(workdir, "result.json", result)


def training(
  cloning: Any, policy: Policy, mesh: Mesh | None
) -> tuple[Callable[[jax.Array], TrainState], Any]:
  """What starts cloning, and the updates of one task.

  Args:
    cloning: `config.behaviour_cloning`.
    policy: networks.
    mesh: devices to run on.

  Returns:
    (keys [K] -> states stacked over K tasks; `bc.make_update`).
  """
  optimizer = make_optimizer(
    cloning.learning_rate,
    cloning.updates,
    warmup_updates=cloning.warmup_updates,
    final_scale=cloning.final_learning_rate / cloning.learning_rate,
    weight_decay=cloning.weight_decay,
  )
  init = jax.vmap(lambda key: make_train_state(policy.init(key), optimizer, ema=True))
  return init, bc.make_update(policy, optimizer, cloning.batch_size, cloning.ema_decay, mesh)


def _train(
  stage: StageRun,
  policy: Policy,
  data: bc.CloningData,
  tasks: Sequence[str],
  init_key: jax.Array,
  train_key: jax.Array,
) -> Params:
  """Averaged networks, stacked over tasks."""
  config = stage.config
  mesh = make_mesh(config.training.devices)
  init, update_task = training(config.behaviour_cloning, policy, mesh)
  state = train_loop(
    stage,
    jax.jit(init)(task_keys(init_key, len(tasks))),
    make_task_update(update_task, data, tasks, mesh),
    total=config.behaviour_cloning.updates,
    per_call=config.training.log_every,
    key=train_key,
    description="cloning",
    prefix="behaviour_cloning",
    mesh=mesh,
  )
  return state.ema_params


def take_dppo(config: Any, policy: Policy, tasks: Sequence[str], logger: Logger) -> Params:
  """Networks of `inputs.dppo_checkpoint`, stacked over tasks, instead of training.

  Raises:
    DppoError: a file that cannot be read, or a policy of other sizes than the config's.
  """
  expected = jax.eval_shape(policy.init, jax.random.key(0))
  networks = []
  for task in tasks:
    file = dppo_file(config, task)
    state, prefix = dppo.read_state_dict(file)
    networks.append(dppo.to_params(state, expected, file))
    logger.info(f"{task}: took the policy{f' under {prefix}' if prefix else ''} of {file}")
  return jax.tree.map(lambda *x: jnp.stack(x), *networks)


def _doubt_taken(losses: dict[str, float], logger: Logger) -> None:
  """Warns of policies that know no more of the demos than random ones do."""
  for task, loss in losses.items():
    if loss > _KNOWS_NOTHING:
      logger.info(
        f"{task}: the policy taken does not know the demos: its loss on them is {loss:.2f}, and 1 where "
        "nothing is predicted. It was trained with another activation than Mish, with other denoising steps, "
        "or on another world model."
      )


def _losses(policy: Policy, network: Params, data: bc.CloningData, key: jax.Array) -> jax.Array:
  batch_key, loss_key = jax.random.split(key)
  return policy.cloning_loss(network, *bc.sample_batch(data, batch_key, 1024, policy.chunk), loss_key)
