"""Judges one world model on held-out windows: pictures, probes, the hand, inverse dynamics."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.models import load_world_model
from wam_jax.core import probes, recursion
from wam_jax.data.calvin import dataset_path
from wam_jax.data.judged_windows import (
  HAND,
  Data,
  Target,
  Windows,
  binary,
  read_takes,
  read_windows,
  targets_of,
)
from wam_jax.host.logger import Logger
from wam_jax.nn.world_model import WorldModel
from wam_jax.storage.artifact import Artifact
from wam_jax.training import judging
from wam_jax.types import Batch, Params

WINDOWS_PER_CALL = 16


def read_data(config: Any, collect: Artifact, world_model: Artifact, logger: Logger) -> Data:
  """Held-out windows and takes of the validation split, and windows of the training split for the probes."""
  j, root = config.judge, dataset_path(collect)
  length, size = j.context + j.horizons[-1], world_model.config["env"]["image_size"]
  read = lambda split, count: read_windows(root / split, length, count, j.context + 1, size, config, logger)
  heldout = read("validation", j.windows)
  fit = read("training", math.ceil(j.probe_frames / j.horizons[-1]))
  takes = read_takes(root / "validation", length, j.windows, j.context + 1, size, config, logger)
  mask = heldout.mask[:, j.context :]
  values = heldout.target[:, j.context :][mask]
  used = int(fit.mask[:, j.context :].sum())
  reaching = mask.sum(0)
  facts = {
    "context": j.context,
    "horizons": list(j.horizons),
    "windows_at_horizons": [int(reaching[h - 1]) if h <= len(reaching) else 0 for h in j.horizons],
    "targets": {
      target.name: {
        "score": "balanced accuracy" if target.binary else "R²",
        "unit": target.unit,
        "mean": float(values[:, k].mean()),  # of a binary target the share of frames where it is on
        "std": float(values[:, k].std()),
      }
      for k, target in enumerate(targets_of(heldout.frames))
    },
    "data": {
      "split": "validation",
      "kind": heldout.kind,
      "windows": len(heldout),
      "windows_asked": j.windows,
      "frames": heldout.length,
      "heldout_frames": int(mask.sum()),
      "probe_kind": fit.kind,
      "probe_windows": len(fit),
      "probe_frames": used,
      "takes": 0 if takes is None else len(takes),
      "collect": collect.fingerprint,
    },
  }
  data = Data(heldout, takes, fit, facts)
  facts["recursion"] = judge_recursion(data, j.context, j.horizons)
  return data


def judge_model(
  config: Any, artifact: Artifact, data: Data, logger: Logger
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Measures one model.

  Args:
    config: the run's.
    artifact: of a world model.
    data: what to judge it on.
    logger: shows progress.

  Returns:
    (numbers for judge.json, camera -> (true, predicted) [T, S, S, 3] uint8 of the window in which most
    furniture moves).
  """
  began = time.perf_counter()
  model, params = load_world_model(artifact)
  params = jax.device_put(params)
  context, horizons, heldout = config.judge.context, config.judge.horizons, data.heldout
  total = len(data.fit) + sum(map(len, data.judged.values()))
  with logger.progress(total, f"judging {_name(artifact)}") as progress:
    features, measured, shown = _run_model(config, model, params, data, progress.update)
  numbers: dict[str, Any] = {
    "name": _name(artifact),
    "path": str(artifact.path),
    "fingerprint": artifact.fingerprint,
    "experiment": artifact.config.get("experiment", ""),
    "image_size": model.image_size,
    "cameras": list(model.cameras),
    "updates": artifact.part.get("snapshot", artifact.config["world_model"]["updates"]),
    "parameters": int(sum(x.size for x in jax.tree.leaves(params))),
    "inverse_dynamics_input": model.inverse_dynamics_input,
    "open_loop": {},
    "repeated": {},
  }
  for camera, pictures in measured.items():
    model_scores, repeated = summarise_pictures(pictures, heldout.mask[:, context:], horizons)
    numbers["open_loop"][camera], numbers["repeated"][camera] = model_scores, repeated
  readings = read_probes(features, data, context, horizons)
  numbers["probes"] = readings["play"].scores()
  numbers["hand"] = {name: read.hand() for name, read in readings.items()} if data.has_hand else {}
  if "takes" in readings:
    numbers["takes"] = readings["takes"].scores()
  numbers["inverse_dynamics"] = judge_actions(features, heldout, data.fit)
  numbers["seconds"] = round(time.perf_counter() - began, 2)
  return numbers, shown


def _run_model(
  config: Any, model: WorldModel, params: Params, data: Data, update: Callable[[int], Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
  """Filters and imagines all windows.

  Returns:
    (features, as `read_probes` and `judge_actions` take them; camera -> what `training.judging.make_imagine`
    measures; camera -> (true, predicted) of the window that is shown).
  """
  context, heldout = config.judge.context, data.heldout
  key = jax.random.fold_in(jax.random.key(config.seed), 7)
  filter_windows = judging.make_filter(model, context)
  reached = [h for h in config.judge.horizons if h <= heldout.length - context]
  imagine_windows = judging.make_imagine(model, context, reached)
  imagine_features = judging.make_imagine_features(model, context)

  def calls(of: Windows, offset: int) -> Iterator[tuple[list[int], int, Batch, jax.Array]]:
    """(rows, how many are new, batch, key); the last rows are repeated: one shape, one compilation."""
    size = min(WINDOWS_PER_CALL, len(of))
    for number, first in enumerate(range(0, len(of), size)):
      rows = [min(i, len(of) - 1) for i in range(first, first + size)]
      new, batch = len(set(rows)), jax.tree.map(jnp.asarray, of.batch(rows))
      yield rows, new, batch, jax.random.fold_in(key, offset + number)
      update(new)

  out: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  measured: dict[str, list[Any]] = {camera: [] for camera in model.cameras}
  shown_row, shown = _most_moved(heldout), {}
  for _, new, batch, call_key in calls(data.fit, 0):
    filtered = filter_windows(params, batch, call_key)
    out["fit"].append(np.asarray(filtered["feature"][:new, context:]))
    out["fit_embed"].append(np.asarray(filtered["embed"][:new]))
  for rows, new, batch, call_key in calls(heldout, len(data.fit)):
    observe_key, imagine_key = jax.random.split(call_key)
    filtered = filter_windows(params, batch, observe_key)
    imagined = imagine_windows(params, batch, filtered["feature"], filtered["last"], imagine_key)
    out["posterior"].append(np.asarray(filtered["feature"][:new, context - 1 :]))
    out["embed"].append(np.asarray(filtered["embed"][:new]))
    out["action"].append(np.asarray(filtered["action"][:new]))
    out["imagined"].append(np.asarray(imagined["feature"][:new]))
    for camera in model.cameras:
      drawn = imagined[camera].pop("pictures")
      measured[camera].append(jax.tree.map(lambda x: np.asarray(x[:new]), imagined[camera]))
      if shown_row in rows[:new]:
        i, frames = rows.index(shown_row), int(heldout.mask[shown_row].sum())
        shown[camera] = tuple(np.asarray(x[i, :frames]) for x in (batch.pictures[camera], drawn))
  takes = () if data.takes is None else calls(data.takes, len(data.fit) + len(heldout))
  for _, new, batch, call_key in takes:
    observe_key, imagine_key = jax.random.split(call_key)
    filtered = filter_windows(params, batch, observe_key)
    out["takes_posterior"].append(np.asarray(filtered["feature"][:new, context - 1 :]))
    imagined_features = imagine_features(params, batch, filtered["last"], imagine_key)
    out["takes_imagined"].append(np.asarray(imagined_features[:new]))
  join = lambda *blocks: np.concatenate(blocks)
  pictures = {camera: jax.tree.map(join, *blocks) for camera, blocks in measured.items()}
  return {name: join(*blocks) for name, blocks in out.items()}, pictures, shown


def _most_moved(of: Windows) -> int:
  """The window in which the joints move most and the lamps change; chosen by the data alone."""
  targets = targets_of(of.frames)
  furniture = [k for k, target in enumerate(targets) if target.source == "scene_obs"]
  furniture = furniture or list(range(len(targets)))
  values = np.where(of.mask[..., None], of.target[..., furniture], np.nan)
  travel = np.nanmax(values, 1) - np.nanmin(values, 1)
  travel /= np.maximum(travel.max(0), 1e-9)
  return int((travel.sum(1) + of.mask.mean(1)).argmax())


def at_horizons(values: np.ndarray, horizons: Sequence[int]) -> list[Any]:
  """Values [T] of the frames 1 to T imagined, at the horizons; None where T is too short."""
  return [values[h - 1].item() if h <= len(values) else None for h in horizons]


def summarise_pictures(
  measured: Mapping[str, Any], valid: np.ndarray, horizons: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Means over windows of what `training.judging.make_imagine` returns for one camera.

  Args:
    measured: psnr [W, H+1], ssim [W, N+1], repeated_psnr [W, H], repeated_ssim [W, N], N the horizons that
      are at most H; SSIM may be None.
    valid: [W, H] bool, false where a window is over.
    horizons: all that were asked for.

  Returns:
    (of the model, of repeating the last frame seen): `psnr` and `ssim` at the horizons, None where no window
    is long enough, `psnr_curve` [H], and `mean_psnr` over all imagined frames; the model has
    `reconstruction_psnr` and `reconstruction_ssim` of the last frame seen, too.
  """
  count = valid.sum(0)  # at least one window has H imagined frames
  reached = [h for h in horizons if h <= valid.shape[1]]

  def mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, values, 0).sum(0) / np.maximum(mask.sum(0), 1)

  def of(psnr: np.ndarray, ssim: np.ndarray | None) -> dict[str, Any]:
    curve = mean(psnr, valid)
    at = mean(ssim, valid[:, [h - 1 for h in reached]]).tolist() if ssim is not None else []
    return {
      "psnr": at_horizons(curve, horizons),
      "ssim": [at[reached.index(h)] if h in reached and at else None for h in horizons],
      "psnr_curve": curve.round(4).tolist(),
      "mean_psnr": float((curve * count).sum() / count.sum()),
    }

  psnr, ssim = measured["psnr"], measured["ssim"]
  model_scores = of(psnr[:, 1:], None if ssim is None else ssim[:, 1:])
  model_scores["reconstruction_psnr"] = float(psnr[:, 0].mean())
  model_scores["reconstruction_ssim"] = None if ssim is None else float(ssim[:, 0].mean())
  return model_scores, of(measured["repeated_psnr"], measured["repeated_ssim"])


@dataclasses.dataclass(frozen=True)
class Readings:
  """What linear probes read off the features of held-out windows, next to what was there.

  Attributes:
    fitted: the probes, fitted on the posterior of the training windows.
    posterior: [W, T-C+1, K], from frame C - 1.
    imagined: [W, T-C, K].
    truth: [W, T-C, K].
    valid: [W, T-C] bool, false where a window is over.
    horizons: frames imagined, at which readings are judged.
    targets: what is read.
  """

  fitted: probes.Probes
  posterior: np.ndarray
  imagined: np.ndarray
  truth: np.ndarray
  valid: np.ndarray
  horizons: Sequence[int]
  targets: Sequence[Target]

  def hand(self) -> dict[str, Any]:
    """Error of the hand's position: `posterior`, and at the horizons `imagined`; see `distance`."""
    posterior, imagined = (read - self.truth for read in (self.posterior[:, 1:], self.imagined))
    return {
      "posterior": distance(posterior[..., HAND][self.valid]),
      "imagined": distances_at(imagined[..., HAND], self.valid, self.horizons),
    }

  def scores(self) -> dict[str, Any]:
    """Scores of all targets.

    Returns:
      target -> `posterior`, and at the horizons `imagined` and `kept` (the reading of the last frame seen):
      scores of `core.probes.score`; `error`: of the posterior's readings, in the target's unit, and
      `regularisation`.
    """
    on_or_off = binary(self.targets)
    fitted, posterior, valid, truth = self.fitted, self.posterior, self.valid, self.truth
    at_posterior = probes.score(fitted, posterior[:, 1:][valid], truth[valid], on_or_off)
    variance = truth[valid].var(0)  # of all held-out frames: at one horizon a joint may hardly differ
    error = np.sqrt(np.square(posterior[:, 1:][valid] - truth[valid]).mean(0))

    def at(readings: np.ndarray, horizon: int) -> list[float | str | None]:
      if horizon > valid.shape[1]:
        return [None] * len(self.targets)
      rows, t = valid[:, horizon - 1], horizon - 1
      held_readings = readings[rows, t if readings.shape[1] > 1 else 0]
      return probes.score(fitted, held_readings, truth[rows, t], on_or_off, variance)

    by_horizon = [at(self.imagined, h) for h in self.horizons]
    held_scores = [at(posterior[:, :1], h) for h in self.horizons]
    return {
      target.name: {
        "posterior": at_posterior[k],
        "imagined": [scores[k] for scores in by_horizon],
        "kept": [scores[k] for scores in held_scores],
        "error": None if target.binary else float(error[k]),
        "regularisation": float(fitted.regularisation[k]),
      }
      for k, target in enumerate(self.targets)
    }


def read_probes(
  features: Mapping[str, np.ndarray], data: Data, context: int, horizons: Sequence[int]
) -> dict[str, Readings]:
  """Fits probes and reads what is judged.

  Args:
    features: `fit` [W', T'-C, F] and `posterior` [W, T-C+1, F], from frame C - 1, and `imagined` [W, T-C, F];
      where there are takes, `takes_posterior` and `takes_imagined` likewise.
    data: the windows.
    context: C.
    horizons: frames imagined.

  Returns:
    play, and takes where there are any -> readings.
  """
  mask = data.fit.mask[:, context:]
  groups = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
  fitted = probes.fit(
    features["fit"][mask], data.fit.target[:, context:][mask], binary(data.targets), groups[mask]
  )
  prefixes = {"play": "", "takes": "takes_"}
  read = lambda name, kind: fitted.read(features[prefixes[name] + kind])
  return {
    name: Readings(
      fitted,
      read(name, "posterior"),
      read(name, "imagined"),
      judged.target[:, context:],
      judged.mask[:, context:],
      horizons,
      data.targets,
    )
    for name, judged in data.judged.items()
  }


def distance(error: np.ndarray) -> dict[str, float] | None:
  """`median` and root mean square, `rms`, of the length of errors [N, 3] in m; None without any."""
  if not len(error):
    return None
  length = np.linalg.norm(error, axis=-1)
  return {"median": float(np.median(length)), "rms": float(np.sqrt(np.square(length).mean()))}


def distances_at(
  error: np.ndarray, valid: np.ndarray, horizons: Sequence[int]
) -> list[dict[str, float] | None]:
  """`distance` of errors [W, T, 3] at frames imagined, where valid [W, T]."""
  return [distance(error[valid[:, h - 1], h - 1]) if h <= error.shape[1] else None for h in horizons]


def judge_recursion(data: Data, context: int, horizons: Sequence[int]) -> dict[str, Any] | None:
  """`Readings.hand`'s `imagined` of a linear recursion fitted on the training windows; play or takes -> list.

  None where the context is too short for it, or no training window is long enough.
  """
  if not data.has_hand or context < recursion.ACTIONS or data.fit.mask.shape[1] <= recursion.ACTIONS:
    return None
  of = lambda judged: (judged.target[..., HAND], judged.padded(judged.frames.action))
  coefficients = recursion.fit(*of(data.fit), data.fit.mask)
  out = {}
  for name, judged in data.judged.items():
    position, action = of(judged)
    error = recursion.predict(coefficients, position, action, context) - position[:, context:]
    out[name] = distances_at(error, judged.mask[:, context:], horizons)
  return out


def judge_actions(
  features: Mapping[str, np.ndarray], heldout: Windows, fit: Windows
) -> dict[str, dict[str, float]]:
  """Squared error of the action between two frames, by dimension.

  Args:
    features: `action` [W, T-1, A], the inverse dynamics' predictions; `embed` [W, T, E] and `fit_embed`
      [W', T', E].
    heldout: the windows that are predicted.
    fit: windows of the training split.

  Returns:
    dimension -> `error` of the inverse dynamics, `linear`: of ridge regression on both embeddings, and
    `mean_action`: of the training data's mean.
  """
  pairs, fitted = heldout.mask[:, 1:], fit.mask[:, 1:]
  paired = lambda embed: np.concatenate([embed[:, :-1], embed[:, 1:]], -1)
  action, fit_action = (of.padded(of.frames.action)[:, :-1] for of in (heldout, fit))
  action, fit_action = action[pairs], fit_action[fitted]
  groups = np.broadcast_to(np.arange(len(fitted))[:, None], fitted.shape)[fitted]
  linear = probes.fit(
    paired(features["fit_embed"])[fitted], fit_action, np.zeros(fit_action.shape[1], bool), groups
  )
  readings = {
    "error": features["action"][pairs].astype(np.float64),
    "linear": linear.read(paired(features["embed"])[pairs]),
    "mean_action": fit.frames.action.mean(0, dtype=np.float64),
  }
  errors = {name: np.square(reading - action).mean(0) for name, reading in readings.items()}
  return {
    dimension: {name: float(error[i]) for name, error in errors.items()}
    for i, dimension in enumerate(heldout.frames.embodiment.action_names)
  }


def _name(artifact: Artifact) -> str:
  """Experiment and folder of a world model; of a snapshot its update too."""
  parts = [part for part in artifact.path.absolute().parts if part not in ("world_model", "snapshots")]
  snapshot = "snapshots" in artifact.path.parts
  folder = "/".join(parts[-2:] if snapshot else parts[-1:])
  return f"{artifact.config.get('experiment', '?')} ({folder})"
