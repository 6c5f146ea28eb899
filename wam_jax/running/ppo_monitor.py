"""What PPO is really doing while it runs: imagined next to real success, and which policies to keep.

Two policies are kept besides the last one, task by task: the best by what can be known without a simulator,
as on a robot, and the best by the simulator. They are `selected/<by>/params`; `selection.json` says from
which iteration.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.policy_table import SELECTED
from wam_jax.data import calvin
from wam_jax.data.calvin import dataset_path
from wam_jax.envs import registry
from wam_jax.envs.vector import make_vector
from wam_jax.host.logger import Logger
from wam_jax.running import simulator_fit
from wam_jax.running.ppo_setup import Networks
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import read_record, write_record
from wam_jax.storage.saved_params import load_params, save_params
from wam_jax.training import ppo
from wam_jax.training.imagination import draw_starts, make_starts
from wam_jax.training.ppo_actor import kl_to_cloned
from wam_jax.training.tasks import over_tasks, task_keys, task_metrics
from wam_jax.types import Params

QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
SELECTION = "selection.json"


class Monitor:
  """Measures the policies every so many iterations, the cloned ones first; for a training loop.

  Written for each task and as means, under `<prefix>/monitor/`: `imagined_success` (deterministic policy,
  dreams from held-out demos), `real_success` (where there is a simulator, from starts that stage evaluate
  leaves), `gap`, `kl_to_cloned` (nats per number of a denoising step, at what the dreams visit) and quantiles
  of `score`, the classifier's largest log-odds in a dream, above its threshold.
  """

  def __init__(
    self,
    stage: StageRun,
    networks: Networks,
    frozen: ppo.Frozen,
    prefix: str,
    every: int,
    last: int,
  ):
    """Args: the PPO stage, its networks, what it does not train, the metrics' prefix, iterations between
    measurements, and the last iteration, which is always measured."""
    config, heldout = stage.config, networks.heldout
    self._config, self._logger, self._networks, self._frozen = config, stage.logger, networks, frozen
    self._prefix, self._every, self._last = prefix, every, last
    self._tasks = tuple(heldout.tasks)
    self._starts = make_starts(heldout.takes)
    self._score = networks.dreamer(config.ppo).score_tasks()
    self._distance = over_tasks(lambda task, _: kl_to_cloned(networks.policy, *task))
    self._key = jax.random.fold_in(jax.random.key(config.seed), 6)
    self._real_starts = _real_starts(config, stage.inputs["collect"], self._tasks, stage.logger)
    self._environment: Any = None
    self._selection = Selection(stage.workdir, self._tasks, config.evaluate.episodes)

  def __call__(self, step: int, state: ppo.PPOState) -> None:
    """Measures if it is time to. Raises no errors itself."""
    if step % self._every and step != self._last:
      return
    per_task = self.measure(state)
    metrics = task_metrics(self._tasks, per_task)
    self._logger.write(step, {f"{self._prefix}/monitor/{name}": value for name, value in metrics.items()})
    for by in SELECTED:
      if f"{by}_success" in per_task:
        self._selection.offer(by, step, per_task[f"{by}_success"], state.params["actor"])

  def measure(self, state: ppo.PPOState) -> dict[str, Any]:
    """Metric -> [K]."""
    num_tasks = len(self._tasks)
    params = {"base": self._frozen.base, "tuned": state.params["actor"]}
    keys = task_keys(jax.random.fold_in(self._key, 0), num_tasks)
    start_keys, dream_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    feature = draw_starts(self._starts, start_keys, self._config.evaluate.imagined_episodes)
    task = params, self._frozen.classifier, feature, dream_keys
    score = np.asarray(self._score(task, self._networks.world_params))
    out = {"imagined_success": (score > 0).mean(1)}
    out |= {f"score/{name}": np.quantile(score, q, 1) for name, q in QUANTILES.items()}
    out["kl_to_cloned"] = np.asarray(self._distance((params, state.dreams.feature, keys), None))
    real = self.real_success(params)
    if real is not None:
      out |= {"real_success": real, "gap": out["imagined_success"] - real}
    return out

  @property
  def sees_real(self) -> bool:
    """Whether real success is measured."""
    return self._real_starts is not None

  def real_success(self, params: Params) -> np.ndarray | None:
    """Share of real episodes that succeed, [K]; None without start states.

    Args:
      params: {"base", "tuned"}, stacked over K tasks.
    """
    from wam_jax.acting import rollout

    if self._real_starts is None:
      return None
    starts, env = self._real_starts, self._config.env
    if self._environment is None:
      count = starts.shape[0] * starts.shape[1]
      size = self._networks.model.image_size
      self._environment = make_vector(registry.load(env), count, env.workers, size)
    episodes = rollout.rollout_policies(
      self._networks.model,
      self._networks.world_params,
      self._networks.policy,
      params,
      tasks=self._tasks,
      starts=starts,
      environment=self._environment,
      key=jax.random.fold_in(self._key, 1),
      max_steps=env.max_steps,
    )
    return episodes.success.mean(1)


def _real_starts(config: Any, collect: Artifact, tasks: Sequence[str], logger: Logger) -> np.ndarray | None:
  """Held-out starts [K, M, W] behind those of stage evaluate."""
  used, requested = config.evaluate.episodes, config.ppo.eval_episodes
  if not requested:
    return None
  if why := simulator_fit.obstacle(config, collect):
    logger.info(f"real success is not monitored: {why}")
    return None
  starts = calvin.read_start_states(dataset_path(collect), tasks, used + requested)
  count = min(map(len, starts.values())) - used
  if count < 1:
    logger.info(
      f"real success is not monitored: there are no start states beyond the evaluate.episodes={used}"
    )
    return None
  return np.stack([starts[task][used : used + count] for task in tasks])


class Selection:
  """The best policies so far, kept on disk, each task's by itself. Of equals the earliest stays.

  A run that is interrupted and goes on measures the same numbers again, which changes nothing here.
  """

  def __init__(self, workdir: pathlib.Path, tasks: tuple[str, ...], first_start: int):
    """Args: the stage's folder; K names; the first start state (of each task) of real episodes."""
    self._workdir, self._tasks, self._first_start = workdir, tasks, first_start
    kept = read_selection(workdir)
    self._best: dict[str, dict[str, dict[str, Any]]] = kept["selected"]
    if kept["first_start"] != first_start:  # evaluate.episodes was changed: of other episodes
      self._best.pop("real", None)

  def offer(self, by: str, step: int, score: np.ndarray, actor: Params) -> None:
    """Keeps what is better than before.

    Args:
      by: of SELECTED.
      step: iteration.
      score: [K].
      actor: networks stacked over K tasks.
    """
    scores = self._best.get(by, {})
    better = [t not in scores or float(score[k]) > scores[t]["score"] for k, t in enumerate(self._tasks)]
    if not any(better):
      return
    folder = self._workdir / "selected" / by / "params"
    networks = jax.device_get(actor)
    if not all(better):
      rows = np.flatnonzero(better)
      merge = lambda old, new: _replace_rows(np.asarray(old), new, rows)
      networks = jax.tree.map(merge, load_params(folder), networks)
    save_params(folder, networks)
    new = {t: {"iteration": step, "score": float(score[k])} for k, t in enumerate(self._tasks) if better[k]}
    self._best[by] = scores | new
    content = {"first_start": self._first_start, "selected": self._best}
    write_record(self._workdir, SELECTION, content)


def _replace_rows(old: np.ndarray, new: np.ndarray, rows: np.ndarray) -> np.ndarray:
  out = old.copy()
  out[rows] = new[rows]
  return out


def read_selection(workdir: pathlib.Path) -> dict[str, Any]:
  """{"selected": {by: {task: {"iteration", "score"}}}, "first_start"} of stage ppo, by Selection."""
  if not (workdir / SELECTION).exists():
    return {"selected": {}, "first_start": 0}
  return read_record(workdir, SELECTION)
