"""Collects frames from the embedded simulator, or checks an existing dataset; LeRobot's are converted.

States are recorded first, by worker processes, and kept as small files; pictures are drawn from them
afterwards in large batches and written in CALVIN's format. Simulators without a renderer draw as they record.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wam_jax.data import calvin, calvin_writer, convert, lerobot
from wam_jax.data.frames import num_workers
from wam_jax.envs import recording_workers, registry
from wam_jax.envs.base import Renderer, Simulator
from wam_jax.envs.recording import Job, Settings
from wam_jax.host.logger import Logger
from wam_jax.running.stage_run import StageRun
from wam_jax.storage.checksums import CheckpointError, read_json, write_json

_NOT_PER_FRAME = ("attempts", "lengths", "start")
_DRAW_BLOCK = 1024  # frames drawn and written at a time: 25 MB of pictures at 64x64


def make_jobs(config: Any) -> dict[str, list[Job]]:
  """All episodes to record: split -> jobs, in the order in which they are written.

  Args:
    config: `tasks` and `data` are read.

  Returns:
    'training': play, then demos task by task; 'validation': held-out demos, then held-out play; 'starts':
    start states; 'failed': failed takes task by task, those held out last, if there are any.
  """
  sizes = config.data

  def play(kind: str, frames: int) -> list[Job]:
    return [Job(kind, "", i) for i in range(-(-frames // sizes.play_episode_frames))]

  def per_task(kind: str, count: int) -> list[Job]:
    return [Job(kind, task, i) for task in config.tasks for i in range(count)]

  jobs = {
    "training": play("play", sizes.play_frames) + per_task("demo", sizes.demos_per_task),
    "validation": per_task("heldout", sizes.heldout_demos_per_task)
    + play("heldout_play", sizes.heldout_play_frames),
    "starts": per_task("start", sizes.heldout_starts_per_task),
  }
  if sizes.failed_takes_per_task:
    jobs[calvin.FAILED] = per_task(
      "failed", sizes.failed_takes_per_task + sizes.heldout_failed_takes_per_task
    )
  return jobs


def _with_pictures(
  episodes: Sequence[dict[str, Any]],
  jobs: Sequence[Job],
  states: pathlib.Path,
  make_renderer: Callable[[], Renderer | None],
) -> Iterator[dict[str, np.ndarray]]:
  """All frames of the episodes in order, in blocks: those recorded with pictures one by one, else drawn."""

  def named(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    kept = {name: array for name, array in arrays.items() if name not in _NOT_PER_FRAME}
    if "scene_obs" in kept:  # CALVIN's predicates tell success by it
      del kept["success"]
    return kept

  if "snapshot" not in episodes[0]:
    for job in jobs:
      yield named(recording_workers.load(states, job))
    return
  renderer = make_renderer()
  assert renderer is not None
  parts = [named(episode) for episode in episodes]
  frames = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  for begin in range(0, len(frames["rel_actions"]), _DRAW_BLOCK):
    block = {name: array[begin : begin + _DRAW_BLOCK] for name, array in frames.items()}
    snapshots = block.pop("snapshot")
    yield block | renderer(snapshots)


def _lengths(episode: dict[str, Any]) -> list[int]:
  """Frames of each episode of a recording: play may be several."""
  return list(episode.get("lengths", [len(episode["rel_actions"])]))


def _draw_split(
  folder: pathlib.Path,
  jobs: Sequence[Job],
  states: pathlib.Path,
  first_id: int,
  simulator: Simulator,
  make_renderer: Callable[[], Renderer | None],
  config: Any,
  logger: Logger,
  starts: Sequence[Job],
) -> tuple[float, float]:
  """Draws the recorded episodes and writes them as a split, with the start states of some jobs.

  Returns:
    Seconds of drawing and of writing.
  """
  robot = simulator.embodiment
  episodes = [recording_workers.load(states, job, without=robot.camera_names) for job in jobs]
  lengths = [_lengths(episode) for episode in episodes]
  totals = [sum(parts) for parts in lengths]
  annotations = [
    (job.task, int(end) - length, int(end))
    for job, length, end in zip(jobs, totals, np.cumsum(totals), strict=True)
    if job.task
  ]
  found = [recording_workers.load(states, job, without=robot.camera_names)["start"] for job in starts]
  extra = {"task": np.array([job.task for job in starts]), "start": np.stack(found)} if starts else {}
  drawing = writing = 0.0
  shutil.rmtree(calvin_writer.partial_folder(folder), ignore_errors=True)  # of an interrupted run
  with (
    calvin_writer.FrameWriter(folder, first_id, config.env.workers, robot) as writer,
    logger.progress(sum(totals), f"drawing {folder.name}") as bar,
  ):
    before = time.monotonic()
    for block in _with_pictures(episodes, jobs, states, make_renderer):
      between = time.monotonic()
      block["rel_actions"] = robot.from_unit(block["rel_actions"])
      writer.write(**block)
      drawing, writing = drawing + between - before, writing + time.monotonic() - between
      bar.update(len(block["rel_actions"]))
      before = time.monotonic()
    writer.commit(
      [length for parts in lengths for length in parts],
      annotations,
      scene=config.env.name,
      extra={calvin.START_STATES_FILE: extra} if starts else {},
    )
  return drawing, writing


def _summarise(
  jobs: dict[str, list[Job]], states: pathlib.Path, cameras: Sequence[str], seconds: dict[str, float]
) -> dict[str, Any]:
  """What was collected, for people and for the report."""
  frames: dict[str, int] = {"play": 0, "demo": 0, "heldout": 0, "heldout_play": 0, "failed": 0}
  episodes = dict(frames)
  per_task: dict[str, dict[str, Any]] = {}
  for job in jobs["training"] + jobs["validation"] + jobs.get(calvin.FAILED, []):
    episode = recording_workers.load(states, job, without=cameras)
    length = len(episode["rel_actions"])
    frames[job.kind] += length
    episodes[job.kind] += len(_lengths(episode))
    for task, (tried, succeeded) in episode["attempts"].items():
      entry = per_task.setdefault(task, {"lengths": [], "demo": [0, 0], "play": [0, 0]})
      counts = entry["demo" if job.task else "play"]
      counts[0] += tried
      counts[1] += succeeded
      if job.task:
        entry["lengths"].append(length)
  tasks = {}
  for task, entry in per_task.items():
    lengths = entry["lengths"]
    tasks[task] = {
      "demo_frames": {"min": min(lengths), "mean": round(float(np.mean(lengths)), 1), "max": max(lengths)}
      if lengths
      else None,
      "demo_attempts": entry["demo"][0],
      "demo_success": round(entry["demo"][1] / entry["demo"][0], 3) if entry["demo"][0] else None,
      "play_attempts": entry["play"][0],
      "play_success": round(entry["play"][1] / entry["play"][0], 3) if entry["play"][0] else None,
    }
  return {
    "source": "embedded",
    "frames": {**frames, "total": sum(frames.values())},
    "episodes": episodes,
    "start_states": len(jobs["starts"]),
    "tasks": tasks,
    "seconds": {name: round(value, 1) for name, value in seconds.items()},
  }


def _collect(config: Any, workdir: pathlib.Path, logger: Logger) -> dict[str, Any]:
  data, simulator = config.data, registry.load(config.env)
  settings = Settings(
    seed=config.seed,
    env=registry.identity(config.env),
    max_steps=config.env.max_steps,
    image_size=config.env.image_size,
    **{field.name: data[field.name] for field in dataclasses.fields(Settings) if field.name in data},
  )
  jobs = make_jobs(config)
  everything = [job for part in jobs.values() for job in part]
  dataset, states, settings_file = workdir / "dataset", workdir / "states", workdir / "states.json"
  made_with = {
    "settings": dataclasses.asdict(settings),
    "tasks": list(config.tasks),
    "image_size": config.env.image_size,
  }
  try:
    begun = read_json(settings_file)
  except CheckpointError:  # there is none, or it was being written
    begun = None
  if begun != made_with:
    for leftover in (dataset, states):  # of an interrupted run with other settings
      shutil.rmtree(leftover, ignore_errors=True)
    (workdir / "summary.json").unlink(missing_ok=True)
  elif (summary := _finished(workdir)) is not None:  # killed just before it was marked as done
    shutil.rmtree(states, ignore_errors=True)
    return summary
  states.mkdir(parents=True, exist_ok=True)
  write_json(settings_file, made_with)

  begin = time.monotonic()
  with logger.progress(len(everything), "recording episodes") as bar:
    restarts = recording_workers.record_all(
      everything, settings, states, num_workers(config.env.workers), bar.update
    )
  seconds = {"physics": time.monotonic() - begin, "drawing": 0.0, "writing": 0.0}

  first_id = 0
  make_renderer = functools.cache(lambda: simulator.make_renderer(config.env.image_size, config.env.workers))
  for split in ("training", "validation", calvin.FAILED):
    if split not in jobs:
      continue
    # Demos are where real training episodes start.
    starts = {"training": [job for job in jobs[split] if job.task], "validation": jobs["starts"]}.get(
      split, []
    )
    if (dataset / split).is_dir():
      logger.info(f"{split} is already written")
    else:
      drawing, writing = _draw_split(
        dataset / split, jobs[split], states, first_id, simulator, make_renderer, config, logger, starts
      )
      seconds["drawing"] += drawing
      seconds["writing"] += writing
    without = simulator.embodiment.camera_names
    loaded = (recording_workers.load(states, job, without) for job in jobs[split])
    first_id += sum(len(episode["rel_actions"]) for episode in loaded)
  summary = _summarise(jobs, states, simulator.embodiment.camera_names, seconds) | {
    "worker_restarts": restarts
  }
  write_json(workdir / "summary.json", summary)
  shutil.rmtree(states)
  return summary


def _finished(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The summary, which is written when all splits are."""
  try:
    return read_json(workdir / "summary.json")
  except CheckpointError:
    return None


def run(stage: StageRun) -> None:
  """Makes the dataset of the run: dataset/ (embedded, lerobot) or dataset.json (calvin), and summary.json.

  Raises:
    DatasetError: data.calvin_path or data.path does not hold a dataset that can be used.
    ValueError: unknown data.source.
  """
  config, workdir, logger = stage.config, stage.workdir, stage.logger
  workdir.mkdir(parents=True, exist_ok=True)
  if config.data.source == "calvin":
    # A link is kept as it is: it may be turned to where the dataset has moved.
    named = config.data.calvin_path or os.environ.get("CALVIN_DATA", "")
    root = pathlib.Path(os.path.abspath(os.path.expanduser(named)))
    counts = calvin.check_dataset(root, config.tasks, config.env.image_size)
    for split, found in counts.items():
      if found["without"]:
        logger.info(
          f"{root / split} has no annotated window of {', '.join(found['without'])}: a world model can be "
          "trained and judged on it, but no policy of these tasks"
        )
    write_json(workdir / "dataset.json", {"root": str(root)})
    summary: dict[str, Any] = {"source": "calvin", "root": str(root), "splits": counts}
    write_json(workdir / "summary.json", summary)
    logger.info(
      f"{root}: {counts['training']['frames']} frames for training, {counts['validation']['frames']} held out"
    )
  elif config.data.source == "lerobot":
    selection = lerobot.Selection.of(config)
    manifest = convert.convert(
      selection.path[0],
      workdir / "dataset",
      image_size=config.env.image_size,
      selection=selection,
      workers=config.env.workers,
      progress=logger.progress,
      log=logger.info,
    )
    counts = {
      name: {key: split[key] for key in ("frames", "episodes", "windows")}
      for name, split in manifest["splits"].items()
    }
    write_json(workdir / "summary.json", {"source": "lerobot", "root": selection.path, "splits": counts})
  elif config.data.source == "embedded":
    summary = _collect(config, workdir, logger)
    frames, seconds = summary["frames"], summary["seconds"]
    logger.info(
      f"{frames['total']} frames (play {frames['play']}, demos {frames['demo']}, held out "
      f"{frames['heldout_play']} of play and {frames['heldout']} of demos) in {sum(seconds.values()):.0f} s"
    )
  else:
    raise ValueError(f"data.source: {config.data.source!r} is none of 'embedded', 'calvin' and 'lerobot'")
