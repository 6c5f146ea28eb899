"""Success of expert, random weights, cloned and fine-tuned policies in the simulator, per task.

All policies start from the same held-out states. Files: `results.json`, `rollouts.npz` (of each task a
success and a failure of the final policy, and the dreams of their starts and actions) and `<policy>.npz` (all
episodes; a policy that has one is not run again).
The processes of a run share the episodes; the noise of an episode depends on which others run along with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wam_jax.acting import rollout
from wam_jax.acting import step as acting_step
from wam_jax.acting.episodes import KEPT, draw_episodes, read_episodes
from wam_jax.acting.policy_table import COMPARED, POLICIES, SELECTED
from wam_jax.acting.rollout import Rollouts
from wam_jax.core import intervals
from wam_jax.data import calvin
from wam_jax.data.calvin import dataset_path
from wam_jax.data.files import DatasetError
from wam_jax.data.windows import rest_actions
from wam_jax.envs import registry
from wam_jax.envs.vector import make_vector
from wam_jax.host import processes
from wam_jax.host.logger import Logger
from wam_jax.host.provenance import provenance
from wam_jax.host.regular_files import open_file
from wam_jax.host.words import count
from wam_jax.reporting import media
from wam_jax.running.ppo_monitor import read_selection
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.artifact import Artifact, ArtifactError
from wam_jax.storage.records import read_arrays, write_record
from wam_jax.types import features

FORMAT = 1  # of results.json


def run(stage: StageRun) -> None:
  """Evaluates all policies and writes results.json and rollouts.npz."""
  runner, episodes = measure(stage, policies(stage.config, stage.inputs["ppo"], stage.logger))
  if processes.is_first():
    shown = shown_episodes(stage.config.tasks, episodes["ppo"])
    _save_npz(stage.workdir / "rollouts.npz", shown | dream_again(stage, runner, shown))


def measure(stage: StageRun, names: Sequence[str]) -> tuple[PolicyRunner, dict[str, dict[str, np.ndarray]]]:
  """Runs policies, or takes what an interrupted run has left of them, and writes results.json.

  Args:
    stage: evaluate or evaluate_cloned; with a classifier among its inputs policies are also imagined.
    names: of policies, of POLICIES.

  Returns:
    (what ran them, policy -> arrays of its episodes; in processes but the first, less).
  """
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  tasks = tuple(config.tasks)
  workdir.mkdir(parents=True, exist_ok=True)
  starts = start_states(inputs["collect"], tasks, config.evaluate.episodes)
  shares = [starts.shape[1] * i // processes.count() for i in range(processes.count() + 1)]
  share = slice(*shares[processes.index() : processes.index() + 2])
  runner = PolicyRunner(config, inputs, tasks, starts[:, share], logger)
  episodes: dict[str, dict[str, np.ndarray]] = {}
  for name in names:
    path = workdir / f"{name}.npz"
    stored = load_episodes(path, starts)
    if not processes.gather(stored is not None)[0]:
      stored = run_shared(runner, name, workdir)
      if stored is None:
        continue  # the first process goes on with it
      _save_npz(path, stored | {"start": starts})
    elif stored is None:
      continue  # the first process has it
    else:
      logger.info(f"{POLICIES[name].label}: taken from {path.name}")
    episodes[name] = stored | {"start": starts}
    rate = stored["success"].mean()
    dreamed = f", {stored['imagined'].mean():.0%} imagined" if "imagined" in stored else ""
    logger.info(f"{POLICIES[name].label}: {rate:.1%} of {count(stored['success'].size, 'episode')}{dreamed}")

  restarts = sum(processes.gather(runner.restarts))
  if not processes.is_first():
    return runner, episodes
  results = summarise(tasks, episodes)
  # The robot's numbers before the others', as studies have them from before starts were one array.
  parts = np.split(starts, [inputs["collect"].embodiment.state_size], -1)
  digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
  results |= {
    "experiment": config.experiment,
    "preset": config.preset,
    "seed": config.seed,
    "max_steps": config.env.max_steps,
    "start_states": {
      "per_task": starts.shape[1],
      "sha256": digest,
      "in": "start of <policy>.npz",
    },
    "simulator": registry.load(config.env).describe(),
    "simulator_restarts": restarts,
    "provenance": provenance(),
    "config": json.loads(config.to_json_best_effort()),
  }
  write_record(workdir, "results.json", results)
  logger.truncate_after(-1)  # of a run that was killed just before it was done
  logger.write(0, {f"evaluate/{name}/success": episodes[name]["success"].mean() for name in episodes})
  return runner, episodes


def run_shared(runner: PolicyRunner, name: str, workdir: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Episodes of one policy from all processes, in the order of their starts; None but in the first one."""
  arrays = runner.run(name) if runner.num else None
  if processes.count() == 1:
    return arrays
  part = lambda i: workdir / f"{name}.part{i}.npz"
  if arrays is not None:
    _save_npz(part(processes.index()), arrays)
  ran = processes.gather(arrays is not None)
  if not processes.is_first():
    return None
  parts = []
  for path in (part(i) for i, episodes_run in enumerate(ran) if episodes_run):
    parts.append(read_arrays(path))
    path.unlink()
  out = {}
  for key, x in parts[0].items():
    values = [episodes_run[key] for episodes_run in parts]
    if x.ndim > 1:
      out[key] = np.concatenate(values, 1)  # [K, M, ...]
    else:  # imagined success [K]; seconds, which the processes spent at the same time
      episodes = [episodes_run["success"].shape[1] for episodes_run in parts]
      out[key] = np.average(values, 0, weights=episodes) if x.ndim else np.max(values)
  return out


def policies(config: Any, ppo: Artifact, logger: Logger) -> tuple[str, ...]:
  """Names of the policies to evaluate; of PPO the last one, and those it selected on the way."""
  selection = read_selection(ppo.path)
  selected = list(selection["selected"])
  if "real" in selected and config.evaluate.episodes > selection["first_start"]:
    selected.remove("real")
    logger.info(
      f"{POLICIES['ppo_real'].label}: left out: evaluate.episodes reaches the start states it was selected by"
    )
  first = [
    name
    for name, enabled in (("expert", config.evaluate.expert), ("random", config.evaluate.random_policy))
    if enabled
  ]
  return (*first, *COMPARED, *(SELECTED[by] for by in selected))


def start_states(collect: Artifact, tasks: Sequence[str], episodes: int) -> np.ndarray:
  """Held-out starts [K, M, W], the first M of each task.

  Raises:
    DatasetError: the data has too few of them.
  """
  root = dataset_path(collect)
  starts = calvin.read_start_states(root, tasks, episodes)
  for task, rows in starts.items():
    if len(rows) < episodes:
      raise DatasetError(
        root / "validation",
        f"{len(rows)} start states of {task}, evaluate.episodes = {episodes} are needed.",
        fix=f"set config.evaluate.episodes={len(rows)} or collect more.",
      )
  return np.stack([starts[task] for task in tasks])


class PolicyRunner:
  """Runs one policy after the other; opens simulators and models when the first one needs them.

  Args:
    config: the run's.
    inputs: artifacts; what `run` is not asked for may be missing.
    tasks: K names.
    starts: [K, M, W] where the episodes start.
    logger: shows progress.
  """

  def __init__(
    self,
    config: Any,
    inputs: Mapping[str, Artifact],
    tasks: tuple[str, ...],
    starts: np.ndarray,
    logger: Logger,
  ):
    self._config, self._inputs, self._tasks, self._logger = config, inputs, tasks, logger
    self._starts: dict[str, Any] = {"tasks": tasks, "starts": starts}
    self.num = starts.shape[0] * starts.shape[1]
    self._max_steps = config.env.max_steps
    self._environment: Any = None

  def run(self, name: str) -> dict[str, np.ndarray]:
    """Episodes of one policy as arrays to store; with a classifier, its imagined success too."""
    began = time.perf_counter()
    if name == "expert":
      with self._logger.progress(self.num, POLICIES[name].label) as progress:
        arrays = _arrays(self._expert(progress.update))
    else:
      policy, params = self._policy(name)
      environment = self._open()
      model, model_params = self.world_model
      note = f"{count(self.num, 'episode')} side by side"
      with self._logger.progress(self._max_steps, POLICIES[name].label, note=note) as progress:
        episodes = rollout.rollout_policies(
          model,
          model_params,
          policy,
          params,
          **self._starts,
          environment=environment,
          key=jax.random.key(self._config.seed),  # the same noise for every policy
          max_steps=self._max_steps,
          progress=progress.update,
        )
      arrays = _arrays(episodes)
      if name != "random" and "classifier" in self._inputs:
        arrays["imagined"] = self._imagined(policy, params, episodes.first_feature)
    return arrays | {"wall_seconds": np.asarray(time.perf_counter() - began)}

  def _expert(self, update: Callable[[int], None]) -> Rollouts:
    simulator = registry.load(self._config.env)
    return rollout.rollout_experts(
      **self._starts,
      environment=simulator.make(),
      action_size=simulator.embodiment.action_size,
      seed=self._config.seed,
      max_steps=self._max_steps,
      progress=update,
    )

  def _policy(self, name: str) -> tuple[Any, Any]:
    """(policy, parameters stacked over tasks)."""
    from wam_jax.acting import models

    row = POLICIES[name]
    policy, params = models.load_policy(self._inputs[row.stage or "behaviour_cloning"], row.selected)
    if name == "random":
      keys = jax.random.split(jax.random.key(self._config.seed + 1), len(self._tasks))
      network = jax.vmap(policy.init)(keys)
      params = dict.fromkeys(params, network)
    return models.for_acting(policy, self._config.behaviour_cloning.ddim_steps), params

  def _open(self) -> Any:
    """The simulators, side by side."""
    if self._environment is None:
      env, simulator = self._config.env, registry.load(self._config.env)
      model = self.world_model[0]
      model.embodiment.check("the world model", simulator.embodiment, f"the simulator {env.name}")
      self._environment = make_vector(simulator, self.num, env.workers, model.image_size)
    return self._environment

  @functools.cached_property
  def world_model(self) -> tuple[Any, Any]:
    """(networks, parameters)."""
    from wam_jax.acting import models

    model, params = models.load_world_model(self._inputs["world_model"])
    return model, jax.device_put(params)

  @property
  def restarts(self) -> int:
    """Simulator processes that died and were replaced."""
    return getattr(self._environment, "restarts", 0)

  @functools.cached_property
  def classifier(self) -> tuple[Any, Any]:
    """(networks, parameters stacked over tasks)."""
    from wam_jax.acting import models

    return models.load_classifier(self._inputs["classifier"])

  def _imagined(self, policy: Any, params: Any, first_feature: np.ndarray | None) -> np.ndarray:
    """Share of dreams, from the very same start frames, that the classifier calls a success: [K]."""
    from wam_jax.training.tasks import task_keys

    assert first_feature is not None  # only experts have none
    model, model_params = self.world_model
    classifier, classifier_params = self.classifier
    rows = np.arange(self._config.evaluate.imagined_episodes) % first_feature.shape[1]
    chunks = -(-self._max_steps // policy.chunk)
    feature = jax.numpy.asarray(first_feature[:, rows])
    keys = task_keys(jax.random.key(self._config.seed + 2), len(feature))
    score = _make_score(model, policy, classifier, chunks)
    scores = score((params, classifier_params, feature, keys), model_params)
    return np.asarray(scores > 0).mean(1)


@functools.lru_cache(maxsize=4)
def _make_score(model: Any, policy: Any, classifier: Any, chunks: int) -> Any:
  """Compiled `Dreamer.score_tasks`, the same for all policies of one form."""
  from wam_jax.training import imagination

  return imagination.Dreamer(imagination.make_world(model), policy, classifier, chunks).score_tasks()


def _arrays(episodes: Rollouts) -> dict[str, np.ndarray]:
  arrays = {name: array for name in KEPT if (array := getattr(episodes, name)) is not None}
  return arrays | {f"seconds_{part}": np.asarray(value) for part, value in episodes.seconds.items()}


def _save_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  temporary = path.with_name(path.name + ".tmp")
  with open_file(temporary, "wb") as file:
    np.savez_compressed(file, allow_pickle=False, **arrays)
  temporary.replace(path)


def load_episodes(path: pathlib.Path, starts: np.ndarray) -> dict[str, np.ndarray] | None:
  """Episodes stored by an interrupted run; None if there are none from these starts, or damaged."""
  try:
    stored = read_episodes(path)
    same_starts = np.array_equal(stored.pop("start"), starts)
  except (ArtifactError, KeyError):
    return None
  return stored if same_starts else None


def summarise(tasks: Sequence[str], episodes: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
  """Counts, rates and 95 % intervals.

  Args:
    tasks: K names.
    episodes: policy -> arrays with success [K, M] and steps [K, M], optionally imagined [K] in [0, 1].

  Returns:
    {"format", "tasks", "policies": {policy: {"label", "per_task": {task: row}, "mean": row}}, and, when both
    were run, "ppo_minus_cloned"}. A row has n, successes, rate, low, high, steps (mean of the successful
    episodes, null without any), and where measured imagined and gap = imagined - rate.
  """
  summary: dict[str, Any] = {"format": FORMAT, "tasks": list(tasks), "policies": {}}
  for name, arrays in episodes.items():
    success, steps, imagined = arrays["success"], arrays["steps"], arrays.get("imagined")
    counts, trials = [int(n) for n in success.sum(1)], [success.shape[1]] * len(tasks)
    rows = {}
    for k, task in enumerate(tasks):
      low, high = intervals.wilson_interval(counts[k], trials[k])
      row = _row(trials[k], counts[k], counts[k] / trials[k], low, high, steps[k][success[k]])
      rows[task] = _with_imagined(row, None if imagined is None else float(imagined[k]))
    mean = _row(sum(trials), sum(counts), *intervals.mean_interval(counts, trials), steps[success])
    mean = _with_imagined(mean, None if imagined is None else float(imagined.mean()))
    label = POLICIES[name].label if name in POLICIES else name
    summary["policies"][name] = {"label": label, "per_task": rows, "mean": mean}
  if all(name in episodes for name in COMPARED):
    cloned, improved = (episodes[name]["success"].ravel().tolist() for name in COMPARED)
    difference, low, high = intervals.paired_difference(cloned, improved)
    summary["ppo_minus_cloned"] = {"difference": difference, "low": low, "high": high}
  return summary


def _row(n: int, successes: int, rate: float, low: float, high: float, steps: np.ndarray) -> dict[str, Any]:
  mean_steps = float(steps.mean()) if steps.size else None
  return {"n": n, "successes": successes, "rate": rate, "low": low, "high": high, "steps": mean_steps}


def _with_imagined(row: dict[str, Any], imagined: float | None) -> dict[str, Any]:
  return row if imagined is None else row | {"imagined": imagined, "gap": imagined - row["rate"]}


def shown_episodes(tasks: Sequence[str], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Of each task the first episode that succeeded and the first that failed, as far as there are both.

  Args:
    tasks: K names.
    arrays: start [K, M, W] and, of each [K, M], the KEPT.

  Returns:
    task [N], episode [N], start [N, W] and, of each [N], the KEPT; the episodes of a task follow each other.
  """
  success = arrays["success"]
  chosen = [
    (k, int((success[k] == outcome).argmax()))
    for k in range(len(tasks))
    for outcome in (True, False)
    if (success[k] == outcome).any()
  ]
  rows, episodes = (np.asarray(column) for column in zip(*chosen, strict=True))
  names = [name for name in ("start", *KEPT) if name in arrays]
  return {"task": np.asarray(list(tasks))[rows], "episode": episodes} | {
    name: arrays[name][rows, episodes] for name in names
  }


def dream_again(
  stage: StageRun, runner: PolicyRunner, shown: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """What the world model imagines from the same start frames and the same actions.

  Args:
    stage: evaluate.
    runner: of the stage's policies.
    shown: from `shown_episodes`.

  Returns:
    dream_camera: its name; dream [sum of T', S, S, 3] uint8: the frames at `media.shown_times` of one episode
    after the other, the first of each seen and all others imagined; dream_success [N] bool: whether the
    classifier calls a frame a success where the reward of PPO would look, at the ends of chunks. The last
    chunk goes on with the episode's last action.
  """
  from wam_jax.nn import vision
  from wam_jax.training import imagination
  from wam_jax.training import world_model as wm

  config, num = stage.config, len(shown["task"])
  chunk = config.behaviour_cloning.chunk
  model, params = runner.world_model
  classifier, classifier_params = runner.classifier
  env, camera = config.env, model.cameras[0]
  drawn = draw_episodes(registry.load(env), shown, [[0]] * num, env.image_size, env.workers)
  observation = {name: np.concatenate(frames) for name, frames in drawn.items()}
  observation["robot_obs"] = shown["robot_obs"][:, 0].astype(np.float32)
  key = jax.random.fold_in(jax.random.key(config.seed), 9)
  before = wm.initial_latent(model, params, num)
  filter_frame = jax.jit(functools.partial(acting_step.filter_frame, model))
  seen = features(
    filter_frame(params, before, observation, rest_actions(model.embodiment, num), np.ones(num, bool), key)
  )
  imagine = jax.jit(imagination.make_world(model).imagine_actions)
  action = held_to_chunk_ends(shown["action"], shown["steps"], chunk)
  feature = jax.numpy.concatenate([seen[:, None], imagine(params, seen, action, key)], 1)
  decode = jax.jit(lambda params, x: vision.denormalise(wm.decode(model, params, x)[camera]))
  pictures, success = [], []
  for k, steps in enumerate(shown["steps"].tolist()):
    task = list(config.tasks).index(shown["task"][k])
    of_task = jax.tree.map(lambda x, task=task: x[task], classifier_params)
    success.append(bool(classifier.success(of_task, feature[k, chunk : steps + chunk : chunk]).any()))
    pictures.append(np.asarray(decode(params, feature[k]))[media.shown_times(steps)])
  return {
    "dream_camera": np.asarray(camera),
    "dream": np.concatenate(pictures),
    "dream_success": np.asarray(success),
  }


def held_to_chunk_ends(action: np.ndarray, steps: np.ndarray, chunk: int) -> np.ndarray:
  """Actions [N, T, A] of episodes of `steps` [N], the last of each repeated: [N, T', A], whole chunks."""
  length = -(-action.shape[1] // chunk) * chunk
  times = np.minimum(np.arange(length), np.asarray(steps)[:, None] - 1)
  return np.take_along_axis(action, times[..., None], 1)
