"""Predicts the real success of the cloned policies and of those after PPO from held-out takes: no simulator.

Files: `certificate.json` (per task deploy, collect or do not trust, with every number behind it and its
colour), `monitor.json` (how much frames of held-out takes surprise the world model, for
`load_policy(...).monitor`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting import models
from wam_jax.acting.policy_table import COMPARED, POLICIES
from wam_jax.core import certificate, discrimination
from wam_jax.data.features import DemoFeatures, load_features
from wam_jax.host import tables
from wam_jax.running import ppo_setup
from wam_jax.running.ppo_setup import Networks
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.records import read_record, write_record
from wam_jax.training import certificate as train_certificate
from wam_jax.training.imagination import Dreamer, DreamerParams, make_world
from wam_jax.training.ppo_actor import kl_to_cloned
from wam_jax.training.tasks import over_tasks, task_keys
from wam_jax.types import Params

FORMAT = 1  # of certificate.json
DREAMS_PER_TAKE = 4
FAMILIAR_DISTANCE_SHARE = 0.95  # of the held-out takes' frames: what is as near to a training take
LEVELS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}  # of the surprise
WINDOW = 4  # frames that are strange in a row


def run(stage: StageRun) -> None:
  """Writes certificate.json and monitor.json."""
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  networks = ppo_setup.load_networks(stage)
  _, tuned = models.load_policy(inputs["ppo"])
  quality = read_record(inputs["classifier"].path, "quality.json")
  measured = Dreams(config, inputs["featurize"].path, networks)
  policies = dict(zip(COMPARED, (networks.cloned, tuned), strict=True))
  content = certify(measured, quality, policies, config.certify.required_success)
  write_record(workdir, "certificate.json", content)
  write_record(workdir, "monitor.json", measured.surprise())
  logger.truncate_after(-1)  # of a run that was killed just before it was done
  logger.info("\n" + tables.markdown_table(tables.certificate_rows(content)))
  for task, verdict in content["verdicts"].items():
    if verdict["verdict"] != "deploy":
      logger.info(f"{task}: {tables.certificate_reasons(content)[task]}")
  for name, entry in content["policies"].items():
    logger.write(0, {f"certify/{name}/{key}": entry["mean"][key] for key in ("value", "low", "high")})


class Dreams:
  """What is measured in dreams that begin at held-out takes.

  Args:
    config: the run's.
    features: folder of stage featurize.
    networks: world model, cloned policies, classifiers and demos.
  """

  def __init__(self, config: Any, features: pathlib.Path, networks: Networks):
    self._networks = networks
    policy = models.for_acting(networks.policy, config.behaviour_cloning.ddim_steps)
    chunks = -(-config.env.max_steps // policy.chunk)
    self._dreamer = Dreamer(make_world(networks.model), policy, networks.classifier, chunks)
    self.tasks = networks.heldout.tasks
    self._takes, self._known = [networks.heldout], [networks.demos]
    if config.data.failed_takes_per_task:
      self._takes.append(load_features(features / "heldout_failed.npz"))
      self._known.append(load_features(features / "failed.npz"))
    self._key = jax.random.fold_in(jax.random.key(config.seed), 9)
    self._dream_tasks = over_tasks(self._dream)
    self._limits = [
      np.quantile(self._distances(k, self._frames(self._takes, k)[::3]), FAMILIAR_DISTANCE_SHARE)
      for k in range(len(self.tasks))
    ]

  def follows_actions(self) -> np.ndarray:
    """Share of pairs in which random actions lead a dream further from itself than chance does: [K]."""
    heldout = self._networks.heldout
    one = lambda task, shared: train_certificate.action_distances(self._dreamer.world, shared, *task)
    keys = task_keys(jax.random.fold_in(self._key, 0), len(self.tasks))
    takes = jax.tree.map(jnp.asarray, heldout.takes)
    others, again = over_tasks(one)((takes, keys), self._networks.world_params)
    valid = np.asarray(heldout.mask.any(-1))
    pairs = zip(np.asarray(others), np.asarray(again), valid, strict=True)
    wins = [discrimination.pair_wins(a[v][:, None], b[v][:, None]).mean() for a, b, v in pairs]
    return np.array(wins)

  def of_policy(self, params: Params) -> dict[str, Any]:
    """Of the dreams of a policy's tasks: `called` ([M] of each task, share of a take's dreams that a
    classifier calls a success), and [K] `disagreement` (None of one), `unfamiliar`, `kl_to_cloned`."""
    starts = [
      np.concatenate([takes.feature[k][takes.mask[k].any(-1), 0] for takes in self._takes])
      for k in range(len(self.tasks))
    ]
    most = max(map(len, starts))
    # Tasks with fewer takes repeat theirs; only the first of each are counted, but for the mean divergence.
    start = jnp.asarray(np.stack([np.resize(rows, (most, rows.shape[-1])) for rows in starts]))
    keys = task_keys(jax.random.fold_in(self._key, 1), len(self.tasks))
    task = params, self._networks.classifier_params, start, keys
    called, visited, divergence = jax.device_get(self._dream_tasks(task, self._networks.world_params))
    out: dict[str, Any] = {"called": [], "disagreement": [], "unfamiliar": [], "kl_to_cloned": divergence}
    for k, rows in enumerate(starts):
      by_member = called[k].reshape(-1, most, DREAMS_PER_TAKE)[:, : len(rows)]
      out["called"].append(by_member.mean((0, 2)))
      split = (by_member.any(0) & ~by_member.all(0)).mean()
      out["disagreement"].append(split if len(by_member) > 1 else None)
      seen = visited[k][: len(rows)].reshape(-1, visited.shape[-1])
      out["unfamiliar"].append((self._distances(k, seen) > self._limits[k]).mean())
    return out

  def _dream(self, task: Any, world_params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one task (policy, classifier, starts [E, F], key): what each of C classifiers calls a success
    [C, E'] of E' = E * DREAMS_PER_TAKE dreams, features [E, N, F] of the first dream of each start, and the
    divergence from the cloned policy after the first chunk."""
    params, judge, start, key = task
    dream_key, chain_key = jax.random.split(key)
    dreamer_params = DreamerParams(world_params, params, judge)
    start = jnp.repeat(start, DREAMS_PER_TAKE, 0)
    reached = self._dreamer.follow(dreamer_params, start, dream_key, lambda feature: feature)
    feature = jnp.swapaxes(reached, 0, 1)  # [E', N, F]
    above = self._networks.classifier.margins(judge["network"], feature) > judge["threshold"]
    visited = feature[::DREAMS_PER_TAKE]
    return above.any(-1), visited, kl_to_cloned(self._networks.policy, params, visited[:, 0], chain_key)

  def surprise(self) -> dict[str, Any]:
    """Content of monitor.json: of each task quantiles of how much a frame of held-out takes surprises the
    world model, in nats, and `limit`, exceeded by the mean of `window` frames in one take of twenty."""
    world = self._dreamer.world
    arranged = jax.jit(world.arrange)(self._networks.world_params)
    measure = jax.jit(lambda arranged, *rows: train_certificate.surprise(world, arranged, *rows))
    out: dict[str, Any] = {}
    for k, task in enumerate(self.tasks):
      frames, peaks = [], []
      for takes in self._takes:
        feature, action, mask = takes.feature[k], takes.action[k], takes.mask[k]
        rows = (x.reshape(-1, x.shape[-1]) for x in (feature[:, :-1], action[:, :-1], feature[:, 1:]))
        measured = np.asarray(measure(arranged, *rows)).reshape(len(mask), -1)
        for m in np.flatnonzero(mask.sum(-1) > WINDOW):
          values = measured[m][mask[m, 1:]]
          frames.append(values)
          peaks.append(np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid").max())
      flat = np.concatenate(frames)
      out[task] = {name: float(np.quantile(flat, level)) for name, level in LEVELS.items()}
      out[task]["limit"] = float(np.quantile(peaks, 0.95))
    return {"window": WINDOW, "tasks": out}

  def _frames(self, takes: list[DemoFeatures], k: int) -> np.ndarray:
    """Features of all frames of a task's takes, [N, F]."""
    return np.concatenate([part.feature[k][part.mask[k]] for part in takes])

  def _distances(self, k: int, feature: np.ndarray) -> np.ndarray:
    return np.asarray(_nearest(feature, self._frames(self._known, k)))


_nearest = jax.jit(train_certificate.nearest_distance)


def certify(
  dreams: Dreams, quality: Mapping[str, Any], policies: Mapping[str, Params], required: float
) -> dict[str, Any]:
  """Content of certificate.json.

  Args:
    dreams: of the run.
    quality: content of the classifier's quality.json.
    policies: name -> {"base", "tuned"}, stacked over tasks.
    required: real success that a policy must have.
  """
  tasks, shared = dreams.tasks, _of_tasks(dreams, quality)
  told_apart = [shared[task]["told_apart"] for task in tasks]
  content: dict[str, Any] = {"format": FORMAT, "tasks": list(tasks), "required_success": required}
  content["policies"] = {}
  for name, params in policies.items():
    measured = dreams.of_policy(params)
    predicted = certificate.predict(measured["called"], told_apart)
    corrected = _corrected(measured["called"], tasks, quality)
    rows = {}
    for k, task in enumerate(tasks):
      own = {rule: measured[rule][k] for rule in ("disagreement", "unfamiliar", "kl_to_cloned")}
      own = {rule: None if value is None else float(value) for rule, value in own.items()}
      rows[task] = {
        "predicted": predicted["tasks"][k],
        "imagined": float(measured["called"][k].mean()),
        "called": np.round(measured["called"][k], 3).tolist(),
        "rogan_gladen": corrected[k],
        "numbers": {
          rule: {"value": value, "colour": certificate.RULES[rule].colour(value)}
          for rule, value in (shared[task] | own).items()
        },
      }
    imagined = float(np.mean([row["imagined"] for row in rows.values()]))
    content["policies"][name] = {
      "label": POLICIES[name].label,
      "mean": predicted["mean"] | {"imagined": imagined},
      "per_task": rows,
    }
  content["verdicts"] = {
    task: certificate.verdict(
      {name: entry["per_task"][task]["predicted"] for name, entry in content["policies"].items()},
      {
        name: {rule: cell["value"] for rule, cell in entry["per_task"][task]["numbers"].items()}
        for name, entry in content["policies"].items()
      },
      required,
    )
    for task in tasks
  }
  return content


def _of_tasks(dreams: Dreams, quality: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """task -> the numbers that do not depend on the policy, by rule; None where there were no failed takes."""
  follows, out = dreams.follows_actions(), {}
  for k, task in enumerate(dreams.tasks):
    content = quality["tasks"][task]
    told = content.get("discrimination")
    value = lambda kind, name, told=told: None if told is None else told[kind][name]["value"]
    out[task] = {
      "told_apart": value("dreamt", "difference"),
      "auc": value("dreamt", "auc"),
      "told_apart_seen": value("real", "difference"),
      "follows_actions": float(follows[k]),
      "random_success": content["random_dreams"]["false_positives"],
    }
  return out


def _corrected(
  called: list[np.ndarray], tasks: tuple[str, ...], quality: Mapping[str, Any]
) -> list[dict[str, float] | None]:
  """Imagined success of each task corrected for the errors of dreams of held-out takes; None without."""
  if "discrimination" not in quality:
    return [None] * len(tasks)
  rows = [quality["tasks"][task] for task in tasks]
  rate = lambda name: [row["discrimination"]["dreamt"][name]["value"] for row in rows]
  count = lambda kind: [row["takes"][kind] for row in rows]
  return certificate.corrected(
    called, (rate("sensitivity"), count("good")), (rate("specificity"), count("failed"))
  )
