"""Judges a world model without a policy: open-loop prediction, linear probes, inverse dynamics.

The robot's hand is measured against a linear recursion, furniture and lamps against keeping the last reading,
both on held-out play and on held-out takes of the skills.

Files: `judge.json` (all numbers), `judge.md`, `strip.png` and `strip.webp` (a held-out window as it was and
as it was imagined). `config.judge.compare` names other world models, which are judged on the same data:
`comparison.json`, `comparison.md`. A comparison is made again when the stage is finished already.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.acting.models import load_world_model
from wam_jax.core import probes, recursion
from wam_jax.data import calvin, windows
from wam_jax.data.calvin import dataset_path
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import Frames
from wam_jax.envs import tasks
from wam_jax.host import tables
from wam_jax.host.logger import Logger
from wam_jax.host.provenance import provenance
from wam_jax.reporting import media
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.artifact import Artifact, load_artifact, write_text
from wam_jax.train import judging
from wam_jax.train.world_model import ACTION_NAMES
from wam_jax.types import Batch

FORMAT = 3  # of judge.json and comparison.json

WINDOWS_PER_CALL = 16
STRIP_FRAMES = 4  # imagined frames shown beside those of the horizons
FPS = 10  # of the animated strip: a third of real time


@dataclasses.dataclass(frozen=True)
class Target:
  """What a probe reads: number `index` of `source` (robot_obs or scene_obs), or an on/off state."""

  name: str
  source: str
  index: int
  unit: str = "m"
  binary: bool = False


TARGETS = (
  Target("tcp_x", "robot_obs", 0),
  Target("tcp_y", "robot_obs", 1),
  Target("tcp_z", "robot_obs", 2),
  Target("gripper_width", "robot_obs", 6),
  Target("drawer", "scene_obs", tasks.DRAWER),
  Target("slider", "scene_obs", tasks.SLIDER),
  Target("switch", "scene_obs", tasks.SWITCH),
  Target("bulb", "scene_obs", tasks.BULB, "", True),
  Target("led", "scene_obs", tasks.LED, "", True),
)
BINARY = np.array([target.binary for target in TARGETS])
HAND = slice(0, 3)  # of TARGETS: the position of the hand


class JudgeError(Exception):
  """World models that cannot be compared; the text says why."""


def run(stage: StageRun) -> None:
  """Judges the run's world model, and those of `config.judge.compare` beside it."""
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  workdir.mkdir(parents=True, exist_ok=True)
  own = inputs["world_model"]
  others = [load_artifact(path, "world_model") for path in config.judge.compare]
  check_comparable([own, *others])
  data = None
  judge = _read_json(workdir / "judge.json")
  if judge is None:
    data = read_data(config, inputs["collect"], own, logger)
    model, pictures = judge_model(config, own, data, logger)
    judge = data.facts | {"models": [model | {"same_data": _same_data(own, inputs)}]}
    judge |= {"format": FORMAT, "seed": config.seed, "provenance": provenance()}
    strip, animation = draw_strip(pictures, judge["context"], judge["horizons"])
    media.save_png(workdir / "strip.png", strip)
    media.save_animation(workdir / "strip.webp", animation, FPS)
    write_text(workdir / "judge.md", markdown(judge))
    logger.truncate_after(-1)  # of a run that was killed just before it was done
    logger.write(0, metrics(judge))
    write_text(workdir / "judge.json", json.dumps(judge, indent=2) + "\n")
  for _, rows in tables.judge_tables(judge):
    logger.info("\n" + tables.markdown_table(rows))
  if not others:
    return

  known = (_read_json(workdir / "comparison.json") or {"models": []})["models"][1:]
  models = list(judge["models"])
  for other in others:
    entry = next((each for each in known if each["fingerprint"] == other.fingerprint), None)
    if entry is None:
      data = data or read_data(config, inputs["collect"], own, logger)
      entry, _ = judge_model(config, other, data, logger)
    models.append(entry | {"path": str(other.path), "same_data": _same_data(other, inputs)})
  comparison = judge | {"models": name_models(models), "provenance": provenance()}
  write_text(workdir / "comparison.json", json.dumps(comparison, indent=2) + "\n")
  write_text(workdir / "comparison.md", comparison_markdown(comparison))
  logger.info("\n" + tables.markdown_table(tables.comparison_rows(comparison)))


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _same_data(artifact: Artifact, inputs: Mapping[str, Artifact]) -> bool:
  foreign = artifact.config.get("inputs", {}).get("lumos_checkpoint")
  return not foreign and artifact.inputs.get("collect") == inputs["collect"].fingerprint


def check_comparable(artifacts: Sequence[Artifact]) -> None:
  """Numbers of pictures compare only at one size and for the same cameras.

  Raises:
    JudgeError: naming what differs from the first.
  """
  first = artifacts[0]
  cameras = lambda a: tuple(a.config["world_model"].get("cameras", ("rgb_static", "rgb_gripper")))
  for other in artifacts[1:]:
    sizes = [a.config["env"]["image_size"] for a in (first, other)]
    if sizes[0] != sizes[1]:
      raise JudgeError(
        f"{other.path}: a world model of {sizes[1]} x {sizes[1]} pixels cannot be compared with one of "
        f"{sizes[0]} x {sizes[0]} ({first.path}): PSNR and SSIM depend on the size of the pictures."
      )
    if cameras(first) != cameras(other):
      raise JudgeError(
        f"{other.path}: a world model of the cameras {', '.join(cameras(other))} cannot be compared with one "
        f"of {', '.join(cameras(first))} ({first.path})."
      )


def name_models(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The models with different names: a number is put behind those that are equal."""
  names = [model["name"] for model in models]
  return [
    dict(model) | {"name": model["name"] if names.count(model["name"]) == 1 else f"{model['name']} {i}"}
    for i, model in enumerate(models, 1)
  ]


def _name(artifact: Artifact) -> str:
  """Experiment and folder of a world model; of a snapshot its update too."""
  parts = [part for part in artifact.path.absolute().parts if part not in ("world_model", "snapshots")]
  snapshot = "snapshots" in artifact.path.parts
  folder = "/".join(parts[-2:] if snapshot else parts[-1:])
  return f"{artifact.config.get('experiment', '?')} ({folder})"


# --- data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of frames, each an episode of its own.

  Attributes:
    frames: their frames.
    length: T, frames of the longest.
    kind: play, or what they are instead.
  """

  frames: Frames
  length: int
  kind: str

  def __len__(self) -> int:
    return len(self.frames.starts)

  @property
  def mask(self) -> np.ndarray:
    """[W, T] bool."""
    return np.arange(self.length) < (self.frames.ends - self.frames.starts)[:, None]

  @property
  def target(self) -> np.ndarray:
    """[W, T, K] float64, what the probes should read; zero in the padding."""
    sources = {"robot_obs": self.frames.robot_obs, "scene_obs": self.frames.scene_obs}
    columns = np.stack([sources[target.source][:, target.index] for target in TARGETS], -1)
    columns[:, BINARY] = np.round(columns[:, BINARY])
    return self.padded(columns)

  def padded(self, values: np.ndarray) -> np.ndarray:
    """Values of all frames [N, X] window by window: [W, T, X] float64, zero in the padding."""
    out = np.zeros((len(self), self.length, values.shape[1]))
    out[self.mask] = values  # windows lie one after the other, as the rows of the mask do
    return out

  def batch(self, rows: Sequence[int]) -> Batch:
    """Some windows side by side."""
    spans = [(int(self.frames.starts[row]), int(self.frames.ends[row])) for row in rows]
    return windows.episode_batch(self.frames, spans, self.length)


@dataclasses.dataclass(frozen=True)
class Data:
  """What models are judged on: `heldout` windows and `takes` of the skills, held out too (None without);
  probes are fitted on `fit`; `facts` for the report."""

  heldout: Windows
  takes: Windows | None
  fit: Windows
  facts: dict[str, Any]

  @property
  def judged(self) -> dict[str, Windows]:
    """What is imagined, by name: play, and takes where there are any."""
    return {"play": self.heldout} | ({} if self.takes is None else {"takes": self.takes})


def choose_windows(
  episodes: np.ndarray, is_demo: np.ndarray, length: int, count: int, least: int
) -> tuple[np.ndarray, str]:
  """Windows that do not overlap, spread evenly over the play of a split.

  Args:
    episodes: [E, 2] first and last id, both included.
    is_demo: [E] bool.
    length: frames of a window.
    count: windows at most.
    least: frames of a window at least, where no play is long enough.

  Returns:
    ([W, 2] first and last id, what they are). Without play of `length` frames these are the last frames,
    where things move, of all episodes that have `least`; W is 0 if none has.
  """
  lengths = episodes[:, 1] - episodes[:, 0] + 1
  found = [
    (low + i * length, low + (i + 1) * length - 1)
    for (low, _), frames, demo in zip(episodes.tolist(), lengths.tolist(), is_demo.tolist(), strict=True)
    if not demo
    for i in range(frames // length)
  ]
  kind = "play"
  if not found:
    found = [
      (max(low, high - length + 1), high) for low, high in episodes.tolist() if high - low + 1 >= least
    ]
    kind = f"ends of demonstrations and short episodes, as no play has {length} frames in a row"
  chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
  return np.array([found[i] for i in chosen], np.int64).reshape(-1, 2), kind


def read_windows(
  folder: pathlib.Path, length: int, count: int, least: int, image_size: int, config: Any, logger: Logger
) -> Windows:
  """Chooses windows of a split and reads their frames.

  Raises:
    DatasetError: no episode has `least` frames.
  """
  episodes = calvin.read_episode_ids(folder)
  ends = np.cumsum(episodes[:, 1] - episodes[:, 0] + 1)
  spans = {(a.start, a.end) for a in calvin.read_annotations(folder, episodes)}
  is_demo = np.array([span in spans for span in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)])
  chosen, kind = choose_windows(episodes, is_demo, length, count, least)
  if not len(chosen):
    raise DatasetError(
      folder,
      f"no episode has the {least} frames that one imagined frame takes.",
      fix="lower judge.context, or collect data.heldout_play_frames.",
    )
  frames = calvin.read_windows(folder, chosen, image_size, config.env.workers, logger.progress)
  return Windows(frames, int((chosen[:, 1] - chosen[:, 0]).max()) + 1, kind)


def read_takes(
  folder: pathlib.Path, length: int, count: int, least: int, image_size: int, config: Any, logger: Logger
) -> Windows | None:
  """The beginnings of annotated takes of a split, spread evenly; None if none has `least` frames."""
  annotations = calvin.read_raw_annotations(folder)
  spans = [(first, min(end, first + length) - 1) for _, first, end in annotations if end - first >= least]
  if not spans:
    return None
  rows = np.unique(np.linspace(0, len(spans) - 1, min(count, len(spans))).round().astype(int))
  chosen = np.array([spans[row] for row in rows], np.int64)
  frames = calvin.read_windows(folder, chosen, image_size, config.env.workers, logger.progress)
  return Windows(frames, int((chosen[:, 1] - chosen[:, 0]).max()) + 1, "takes of the skills")


def read_data(config: Any, collect: Artifact, world_model: Artifact, logger: Logger) -> Data:
  """Held-out windows and takes of the validation split, and windows of the training split for the probes."""
  j, root = config.judge, dataset_path(collect)
  length, size = j.context + j.horizons[-1], world_model.config["env"]["image_size"]
  read = lambda split, count: read_windows(root / split, length, count, j.context + 1, size, config, logger)
  heldout = read("validation", j.windows)
  fit = read("training", math.ceil(j.probe_frames / j.horizons[-1]))
  takes = read_takes(root / "validation", length, j.windows, j.context + 1, size, config, logger)
  seen = heldout.mask[:, j.context :]
  values = heldout.target[:, j.context :][seen]
  used = int(fit.mask[:, j.context :].sum())
  left = seen.sum(0)
  facts = {
    "context": j.context,
    "horizons": list(j.horizons),
    "windows_at_horizons": [int(left[h - 1]) if h <= len(left) else 0 for h in j.horizons],
    "targets": {
      target.name: {
        "score": "balanced accuracy" if target.binary else "R²",
        "unit": target.unit,
        "mean": float(values[:, k].mean()),  # of a binary target the share of frames where it is on
        "std": float(values[:, k].std()),
      }
      for k, target in enumerate(TARGETS)
    },
    "data": {
      "split": "validation",
      "kind": heldout.kind,
      "windows": len(heldout),
      "windows_asked": j.windows,
      "frames": heldout.length,
      "heldout_frames": int(seen.sum()),
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


# --- measuring ------------------------------------------------------------------------------------


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
  context = config.judge.context
  heldout, fit = data.heldout, data.fit
  ahead = heldout.length - context
  reached = [h for h in config.judge.horizons if h <= ahead]
  key = jax.random.fold_in(jax.random.key(config.seed), 7)
  filter_windows = judging.make_filter(model, context)
  imagine_windows = judging.make_imagine(model, context, reached)

  def parts(of: Windows) -> list[list[int]]:
    """Rows of each call, the last ones repeated: one shape, one compilation."""
    size = min(WINDOWS_PER_CALL, len(of))
    return [[min(i, len(of) - 1) for i in range(first, first + size)] for first in range(0, len(of), size)]

  takes = data.takes
  names = (
    "fit",
    "fit_embed",
    "posterior",
    "embed",
    "action",
    "imagined",
    "takes_posterior",
    "takes_imagined",
  )
  out: dict[str, list[Any]] = {name: [] for name in names}
  per_camera: dict[str, list[Any]] = {camera: [] for camera in model.cameras}
  shown_row, shown = _most_moved(heldout), {}
  total = len(fit) + len(heldout) + (0 if takes is None else len(takes))
  with logger.progress(total, f"judging {_name(artifact)}") as progress:
    for number, rows in enumerate(parts(fit)):
      batch = jax.tree.map(jnp.asarray, fit.batch(rows))
      filtered = filter_windows(params, batch, jax.random.fold_in(key, number))
      new = len(set(rows))
      out["fit"].append(np.asarray(filtered["feature"][:new, context:]))
      out["fit_embed"].append(np.asarray(filtered["embed"][:new]))
      progress.update(new)
    for number, rows in enumerate(parts(heldout)):
      batch = jax.tree.map(jnp.asarray, heldout.batch(rows))
      observe_key, imagine_key = jax.random.split(jax.random.fold_in(key, len(fit) + number))
      filtered = filter_windows(params, batch, observe_key)
      imagined = imagine_windows(params, batch, filtered["feature"], filtered["last"], imagine_key)
      new = len(set(rows))
      out["posterior"].append(np.asarray(filtered["feature"][:new, context - 1 :]))
      out["embed"].append(np.asarray(filtered["embed"][:new]))
      out["action"].append(np.asarray(filtered["action"][:new]))
      out["imagined"].append(np.asarray(imagined["feature"][:new]))
      for camera in model.cameras:
        pictures = imagined[camera].pop("pictures")
        per_camera[camera].append(
          {k: None if v is None else np.asarray(v[:new]) for k, v in imagined[camera].items()}
        )
        if shown_row in rows[:new]:
          i, frames = rows.index(shown_row), int(heldout.mask[shown_row].sum())
          shown[camera] = tuple(np.asarray(x[i, :frames]) for x in (getattr(batch, camera), pictures))
      progress.update(new)
    imagine_features = judging.make_imagine_features(model, context)
    for number, rows in enumerate([] if takes is None else parts(takes)):
      assert takes is not None
      batch = jax.tree.map(jnp.asarray, takes.batch(rows))
      observe_key, imagine_key = jax.random.split(jax.random.fold_in(key, len(fit) + len(heldout) + number))
      filtered = filter_windows(params, batch, observe_key)
      new = len(set(rows))
      out["takes_posterior"].append(np.asarray(filtered["feature"][:new, context - 1 :]))
      out["takes_imagined"].append(
        np.asarray(imagine_features(params, batch, filtered["last"], imagine_key)[:new])
      )
      progress.update(new)
  features = {name: np.concatenate(blocks) for name, blocks in out.items() if blocks}
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
  for camera, blocks in per_camera.items():
    joined = {
      name: None if blocks[0][name] is None else np.concatenate([block[name] for block in blocks])
      for name in blocks[0]
    }
    own, repeated = summarise_pictures(joined, heldout.mask[:, context:], config.judge.horizons)
    numbers["open_loop"][camera], numbers["repeated"][camera] = own, repeated
  readings = read_probes(features, data, context)
  horizons = config.judge.horizons
  numbers["probes"] = judge_probes(readings, "play", heldout, context, horizons)
  numbers["hand"] = {
    name: judge_hand(readings, name, judged, context, horizons) for name, judged in data.judged.items()
  }
  if takes is not None:
    numbers["takes"] = judge_probes(readings, "takes", takes, context, horizons)
  numbers["inverse_dynamics"] = judge_actions(features, heldout, fit)
  numbers["seconds"] = round(time.perf_counter() - began, 2)
  return numbers, shown


def _most_moved(of: Windows) -> int:
  """The window in which the joints move most and the lamps change; chosen by the data alone."""
  furniture = [k for k, target in enumerate(TARGETS) if target.source == "scene_obs"]
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
  """Means over windows of what `train.judging.make_imagine` returns for one camera.

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
  own = of(psnr[:, 1:], None if ssim is None else ssim[:, 1:])
  own["reconstruction_psnr"] = float(psnr[:, 0].mean())
  own["reconstruction_ssim"] = None if ssim is None else float(ssim[:, 0].mean())
  return own, of(measured["repeated_psnr"], measured["repeated_ssim"])


@dataclasses.dataclass(frozen=True)
class Readings:
  """What linear probes read off features.

  Attributes:
    fitted: the probes, fitted on the posterior of the training windows.
    posterior: play or takes -> [W, T-C+1, K], from frame C - 1.
    imagined: play or takes -> [W, T-C, K].
  """

  fitted: probes.Probes
  posterior: dict[str, np.ndarray]
  imagined: dict[str, np.ndarray]


def read_probes(features: Mapping[str, np.ndarray], data: Data, context: int) -> Readings:
  """Fits probes and reads what is judged.

  Args:
    features: `fit` [W', T'-C, F] and `posterior` [W, T-C+1, F], from frame C - 1, and `imagined` [W, T-C, F];
      where there are takes, `takes_posterior` and `takes_imagined` likewise.
    data: the windows.
    context: C.
  """
  seen = data.fit.mask[:, context:]
  groups = np.broadcast_to(np.arange(len(seen))[:, None], seen.shape)
  fitted = probes.fit(features["fit"][seen], data.fit.target[:, context:][seen], BINARY, groups[seen])
  prefixes = {"play": "", "takes": "takes_"}
  read = lambda kind: {name: fitted.read(features[prefixes[name] + kind]) for name in data.judged}
  return Readings(fitted, read("posterior"), read("imagined"))


def judge_hand(
  readings: Readings, name: str, judged: Windows, context: int, horizons: Sequence[int]
) -> dict[str, Any]:
  """Error of the hand's position, as the probes read it.

  Args:
    readings: from `read_probes`.
    name: play or takes.
    judged: the windows that were imagined.
    context: C.
    horizons: frames imagined.

  Returns:
    `posterior` and `imagined` (at the horizons): {"median", "rms"} of the distance [m], None without windows.
  """
  valid, truth = judged.mask[:, context:], judged.target[:, context:, HAND]
  posterior, imagined = (read[name][..., HAND] for read in (readings.posterior, readings.imagined))
  return {
    "posterior": distance((posterior[:, 1:] - truth)[valid]),
    "imagined": distances_at(imagined - truth, valid, horizons),
  }


def distance(error: np.ndarray) -> dict[str, float] | None:
  """Median and root mean square of the length of errors [N, 3]; None without any."""
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
  """`judge_hand`'s `imagined` of a linear recursion fitted on the training windows; play or takes -> list.

  None where the context is too short for it, or no training window is long enough.
  """
  if context < recursion.ACTIONS or data.fit.mask.shape[1] <= recursion.ACTIONS:
    return None
  of = lambda judged: (judged.target[..., HAND], judged.padded(judged.frames.action))
  coefficients = recursion.fit(*of(data.fit), data.fit.mask)
  out = {}
  for name, judged in data.judged.items():
    position, action = of(judged)
    error = recursion.predict(coefficients, position, action, context) - position[:, context:]
    out[name] = distances_at(error, judged.mask[:, context:], horizons)
  return out


def judge_probes(
  readings: Readings, name: str, judged: Windows, context: int, horizons: Sequence[int]
) -> dict[str, Any]:
  """Scores of what probes read off the posterior and the imagination of held-out windows.

  Args:
    readings: from `read_probes`.
    name: play or takes.
    judged: the windows that were imagined.
    context: C.
    horizons: frames imagined.

  Returns:
    target -> `posterior`, and at the horizons `imagined` and `kept` (the reading of the last frame seen):
    scores of `core.probes.score`; `error`: of the posterior's readings, in the target's unit, and
    `regularisation`.
  """
  fitted, posterior, imagined = readings.fitted, readings.posterior[name], readings.imagined[name]
  valid, truth = judged.mask[:, context:], judged.target[:, context:]
  at_posterior = probes.score(fitted, posterior[:, 1:][valid], truth[valid], BINARY)
  variance = truth[valid].var(0)  # of all held-out frames: at one horizon a joint may hardly differ
  error = np.sqrt(np.square(posterior[:, 1:][valid] - truth[valid]).mean(0))

  def at(readings: np.ndarray, horizon: int) -> list[float | str | None]:
    if horizon > valid.shape[1]:
      return [None] * len(TARGETS)
    there, t = valid[:, horizon - 1], horizon - 1
    here = readings[there, t if readings.shape[1] > 1 else 0]
    return probes.score(fitted, here, truth[there, t], BINARY, variance)

  by_horizon = [at(imagined, h) for h in horizons]
  kept = [at(posterior[:, :1], h) for h in horizons]
  return {
    target.name: {
      "posterior": at_posterior[k],
      "imagined": [scores[k] for scores in by_horizon],
      "kept": [scores[k] for scores in kept],
      "error": None if target.binary else float(error[k]),
      "regularisation": float(fitted.regularisation[k]),
    }
    for k, target in enumerate(TARGETS)
  }


def judge_actions(
  features: Mapping[str, np.ndarray], heldout: Windows, fit: Windows
) -> dict[str, dict[str, float]]:
  """Squared error of the action between two frames, by dimension.

  Args:
    features: `action` [W, T-1, 7], the inverse dynamics' predictions; `embed` [W, T, E] and `fit_embed`
      [W', T', E].
    heldout: the windows that are predicted.
    fit: windows of the training split.

  Returns:
    dimension -> `error` of the inverse dynamics, `linear`: of ridge regression on both embeddings, and
    `mean_action`: of the training data's mean.
  """
  pairs, fitted = heldout.mask[:, 1:], fit.mask[:, 1:]
  both = lambda embed: np.concatenate([embed[:, :-1], embed[:, 1:]], -1)
  action, known = (of.padded(of.frames.action)[:, :-1] for of in (heldout, fit))
  action, known = action[pairs], known[fitted]
  groups = np.broadcast_to(np.arange(len(fitted))[:, None], fitted.shape)[fitted]
  linear = probes.fit(both(features["fit_embed"])[fitted], known, np.zeros(known.shape[1], bool), groups)
  readings = {
    "error": features["action"][pairs].astype(np.float64),
    "linear": linear.read(both(features["embed"])[pairs]),
    "mean_action": fit.frames.action.mean(0, dtype=np.float64),
  }
  errors = {name: np.square(reading - action).mean(0) for name, reading in readings.items()}
  return {
    dimension: {name: float(error[i]) for name, error in errors.items()}
    for i, dimension in enumerate(ACTION_NAMES)
  }


def metrics(judge: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of the first model as metrics; what is missing or constant is left out."""
  model, out = judge["models"][0], {}
  for i, horizon in enumerate(judge["horizons"]):
    for camera, own in model["open_loop"].items():
      for kind in ("psnr", "ssim"):
        out[f"{kind}/{camera}_{horizon}"] = own[kind][i]
    for name, probe in model["probes"].items():
      out[f"probe/{name}_imagined_{horizon}"] = probe["imagined"][i]
  for name, probe in model["probes"].items():
    out[f"probe/{name}_posterior"] = probe["posterior"]
  for name, errors in model["inverse_dynamics"].items():
    out[f"inverse_dynamics/error_{name}"] = errors["error"]
  for i, horizon in enumerate(judge["horizons"]):
    for name, hand in model["hand"].items():
      out[f"hand/{name}_imagined_{horizon}"] = (hand["imagined"][i] or {}).get("rms")
  return {f"judge_world_model/{name}": value for name, value in out.items() if isinstance(value, float)}


# --- pictures and text ----------------------------------------------------------------------------


def draw_strip(
  pictures: Mapping[str, tuple[np.ndarray, np.ndarray]], context: int, horizons: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """One window as a strip and as an animation.

  Args:
    pictures: camera -> (true, predicted) [T, S, S, 3] uint8.
    context: C, frames seen.
    horizons: frames imagined that are shown, beside some between.

  Returns:
    (strip [H, W, 3], animation [T, H', W', 3]): true, predicted and error of each camera.
  """
  length, size = next(iter(pictures.values()))[0].shape[:2]
  seen = sorted({0, context - 1})
  between = np.linspace(context, length - 1, min(STRIP_FRAMES, length - context)).round().astype(int)
  later = sorted({*between.tolist(), *(context - 1 + h for h in horizons if context - 1 + h < length)})
  columns, scale = [*seen, *later], max(1, round(128 / size))
  rows, films = [], []
  for camera, (true, predicted) in pictures.items():
    error = media.error_picture(true, predicted)
    shown = (
      (f"{tables.CAMERA_NAMES.get(camera, camera)}: true", true),
      ("predicted", predicted),
      ("error", error),
    )
    rows += [(label, film[columns]) for label, film in shown]
    films.append([film for _, film in shown])
  labels = [f"{i - context + 1:+d}" if i != context - 1 else "0" for i in columns]
  strip = media.make_strip(rows, len(seen), labels, scale)
  frames = []
  for t in range(length):
    colour = media.CONTEXT_COLOUR if t < context else media.IMAGINED_COLOUR
    cells = [media.add_border(media.upscale(film[t], scale), colour, 3) for row in films for film in row]
    frames.append(media.tile(np.stack(cells), len(films[0]), 6))
  return strip, np.stack(frames)


def notes(judge: Mapping[str, Any]) -> list[str]:
  """What a reader must know to judge the numbers."""
  data, targets = judge["data"], judge["targets"]
  lines = [
    tables.described(judge),
    "Windows at the horizons: "
    + ", ".join(f"{n} at {h}" for h, n in zip(judge["horizons"], judge["windows_at_horizons"], strict=True))
    + ". `missing`: no window is long enough.",
    (
      f"A balanced accuracy over {data['windows']} windows has a standard error of about "
      f"{0.5 / data['windows'] ** 0.5:.2f}, more where windows of one episode are alike."
    ),
    "R²: 1 is perfect, 0 as good as the mean of all held-out frames. Balanced accuracy: 0.5 is chance. "
    "`constant`: the quantity does not change there. On in the held-out frames: "
    + ", ".join(f"{name} {100 * targets[name]['mean']:.0f} %" for name in ("bulb", "led"))
    + ". The first frames of a window, which are the context, are not read.",
  ]
  if data["kind"] != "play":
    lines.append(f"The held-out frames are not play but {data['kind']}.")
  for model in judge["models"]:
    if not model["same_data"]:
      lines.append(f"{model['name']} was trained on other data than that of this run.")
    if model["inverse_dynamics_input"] == "feature":
      lines.append(f"{model['name']}: inverse dynamics on features, which hold the action already.")
  return lines


def markdown(judge: Mapping[str, Any]) -> str:
  """judge.md."""
  parts = [f"# {judge['models'][0]['name']}", ""]
  for _, rows in tables.judge_tables(judge):
    parts += [tables.markdown_table(rows), ""]
  parts += ["![true, predicted, error](strip.png)", "", *(f"- {line}" for line in notes(judge)), ""]
  return "\n".join(parts)


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
  """comparison.md."""
  table = tables.markdown_table(tables.comparison_rows(comparison))
  paths = [f"- {model['name']}: {model['path']}" for model in comparison["models"]]
  lines = [f"- {line}" for line in notes(comparison)]
  return "\n".join(["# World models compared", "", table, "", *paths, *lines, ""])
