"""Trains the world model on all frames of the training split, or takes LUMOS's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wam_jax.acting.models import STATISTICS
from wam_jax.data import calvin, frames_cache, statistics, stream, windows
from wam_jax.data.calvin import dataset_path
from wam_jax.data.frames import Frames
from wam_jax.embodiment import Embodiment
from wam_jax.foreign import lumos
from wam_jax.host import processes
from wam_jax.host.regular_files import read_text
from wam_jax.nn.world_model import WorldModel, compute_dtype, make_world_model, needs_statistics
from wam_jax.running.stage_run import StageRun
from wam_jax.running.training_loop import Clock, train_loop
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.records import write_record
from wam_jax.storage.saved_params import save_params
from wam_jax.training import sharding
from wam_jax.training import state as train_state
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training
from wam_jax.types import Params, TrainState


def run(stage: StageRun) -> None:
  """Writes `params`; the networks are described by the config saved next to them."""
  config, inputs, workdir, logger = stage.config, stage.inputs, stage.workdir, stage.logger
  w, size = config.world_model, config.env.image_size
  folder = dataset_path(inputs["collect"]) / "training"
  if config.inputs.lumos_checkpoint:
    take_lumos(stage, folder)
    return
  init_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
  extra = failed_takes(config, folder.parent)
  num_frames, own_frames = calvin.count_frames(folder, extra), calvin.count_frames(folder)
  robot = inputs["collect"].embodiment
  shapes = wm.param_shapes(make_world_model(w, size, None, robot))
  num_params = sum(x.size for x in jax.tree.leaves(shapes))
  frames = open_frames(stage, folder, extra, num_frames, num_params)
  warning = stream.check_windows(folder, frames.starts, frames.ends, w.sequence_length)
  if warning:
    logger.info(warning)

  statistics_of_data = write_statistics(config, robot, folder, frames.robot_obs[:own_frames], workdir)
  model = make_world_model(w, size, statistics_of_data, robot)
  params = wm.init_params(model, init_key)
  logger.info(f"world model: {num_params / 1e6:.1f} M parameters, {num_frames:,} frames")
  mesh, clock = sharding.make_mesh(config.training.devices), Clock()
  sampler = make_sampler(w, num_frames, mesh, robot)
  optimizer = wm_training.make_optimizer(w, params)
  state = initial_state(w, model, optimizer, params)

  def keep_snapshot(step: int, state: Any) -> None:
    if step in w.snapshots:
      save_snapshot(workdir, step, state.params)
      logger.info(f"snapshot of update {step}: {workdir / 'snapshots' / str(step)}")

  keys = sharding.put(train_key, mesh)
  with contextlib.ExitStack() as stack:
    if isinstance(frames, Frames):
      store = sharding.put(windows.make_store(frames), mesh)
      update_resident = resident_update(w, model, optimizer, sampler, mesh)
      update: Any = lambda state, _, num: update_resident(state, store, keys, num)
    else:
      update = Streamed(config, sampler, model, optimizer, frames, train_key, stack, mesh, clock)
    state = train_loop(
      stage,
      state,
      update,
      total=w.updates,
      per_call=config.training.log_every,
      key=train_key,
      description="world model",
      prefix="world_model",
      mesh=mesh,
      frames=w.batch_size * w.sequence_length,
      clock=clock,
      best=("loss/total", "min"),
      watch=keep_snapshot,
      stops=w.snapshots,
    )
  save_params(workdir / "params", state.params)


def make_sampler(w: Any, num_frames: int, mesh: Mesh | None, robot: Embodiment) -> windows.Sampler:
  """Which windows an update of `config.world_model` sees of so many frames, padded for the devices."""
  padding = sharding.padded(w.batch_size, mesh, w.accumulate) - w.batch_size
  return windows.Sampler(
    num_frames, w.batch_size, w.sequence_length, w.carry_state, w.reset_probability, padding, robot
  )


def initial_state(w: Any, model: WorldModel, optimizer: Any, params: Params) -> TrainState:
  """State before the first update of `config.world_model`."""
  carry = wm.initial_latent(model, params, w.batch_size) if w.carry_state else None
  return train_state.make_train_state(params, optimizer, carry=carry)


def resident_update(
  w: Any, model: WorldModel, optimizer: Any, sampler: windows.Sampler, mesh: Mesh | None
) -> Any:
  """The program of frames on the device: `wm_training.make_update` whose source is a FrameStore."""
  sample = lambda store, key, step, i: sampler.sample(store, key, step)
  return wm_training.make_update(model, w, optimizer, sample, mesh)


def streamed_update(
  w: Any, model: WorldModel, optimizer: Any, sampler: windows.Sampler, mesh: Mesh | None
) -> Any:
  """The program of streamed frames: `wm_training.make_update` whose source is windows [num, B, T]."""

  def sample(pieces: Any, key: jax.Array, step: jax.Array, i: jax.Array) -> Any:
    return sampler.finish(jax.tree.map(lambda x: x[i], pieces), key, step)

  return wm_training.make_update(model, w, optimizer, sample, mesh)


def memory_reserve(config: Any, num_params: int, robot: Embodiment) -> int:
  """Bytes that training needs beside the frames, of so many parameters."""
  w = config.world_model
  at_once = math.ceil(w.batch_size / w.accumulate / (wm_training.REMAT_PARTS if w.remat else 1))
  size, cameras = config.env.image_size, len(robot.cameras)
  dtype = "float32" if compute_dtype(w.compute_dtype) is None else "bfloat16"
  return stream.training_bytes(num_params, at_once, w.sequence_length, size, cameras, dtype)


def open_frames(
  stage: StageRun, folder: pathlib.Path, extra: list[calvin.Spans], num_frames: int, num_params: int
) -> Frames | frames_cache.FrameCache:
  """The frames of the training split and of `extra`: in memory, for the device, or a cache to stream from."""
  config, logger = stage.config, stage.logger
  size, robot = config.env.image_size, stage.inputs["collect"].embodiment
  source, why = stream.choose_source(
    num_frames,
    size,
    robot,
    residency=config.data.residency,
    limit_gb=config.data.memory_limit_gb,
    reserve=memory_reserve(config, num_params, robot),
    processes=processes.count(),
  )
  logger.info(why)
  if source == "device" and not config.data.cache:
    return calvin.read_frames(folder, size, config.env.workers, logger.progress, extra)
  root = pathlib.Path(config.data.cache or stage.workdir / "frames_cache")
  with processes.first_goes_first():
    cache = frames_cache.open_cache(
      root, folder, size, config.env.workers, logger.progress, logger.info, extra
    )
  return cache.load(logger.progress) if source == "device" else cache


def failed_takes(config: Any, root: pathlib.Path) -> list[calvin.Spans]:
  """Spans of the failed takes that the world model trains on: those that are not held out."""
  if not (config.world_model.failed_takes and config.data.failed_takes_per_task):
    return []
  folder = root / calvin.FAILED
  return [(folder, calvin.demo_spans(folder, config.tasks, config.data.failed_takes_per_task)[1])]


class Streamed:
  """`update` of the training loop on windows that are read from disk while the ones before are used.

  The windows of an update are those that it would see with all frames on the device.
  """

  def __init__(
    self,
    config: Any,
    sampler: windows.Sampler,
    model: WorldModel,
    optimizer: Any,
    cache: frames_cache.FrameCache,
    key: jax.Array,
    stack: contextlib.ExitStack,
    mesh: Mesh | None,
    clock: Clock,
  ):
    self._config, self._cache, self._stack, self._mesh, self._clock = config, cache, stack, mesh, clock
    self._key = sharding.put(key, mesh)
    self._length, self._rows = sampler.sequence_length, sampler.rows
    self._stream: stream.WindowStream | None = None
    self._update = streamed_update(config.world_model, model, optimizer, sampler, mesh)
    self._starts = stream.starts_on_host(sampler, lambda step: wm_training.step_keys(key, step)[0])

  def __call__(self, state: Any, _: jax.Array, num: int) -> tuple[Any, dict[str, np.ndarray]]:
    if self._stream is None:
      self._stream = self._stack.enter_context(
        stream.WindowStream(
          self._cache,
          self._starts,
          self._length,
          rows=sharding.own_rows(self._rows, self._mesh),
          put=lambda batch: sharding.put_rows(batch, self._mesh, axis=1),
          first_update=int(jax.device_get(state.step)),
          total=self._config.world_model.updates,
          per_call=self._config.training.log_every,
          stops=self._config.world_model.snapshots,
        )
      )
    parts = []
    pieces = self._stream.take(num)
    while True:
      with self._clock.count("data"):
        piece = next(pieces, None)
      if piece is None:
        break
      state, metrics = self._update(state, piece, self._key, piece.mask.shape[0])
      parts.append(jax.device_get(metrics))
    return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_statistics(
  config: Any, robot: Embodiment, folder: pathlib.Path, robot_obs: np.ndarray | None, workdir: pathlib.Path
) -> tuple[Any, Any] | None:
  """Mean and deviation of the robot state, kept in the artifact, if the model normalises by them."""
  if robot_obs is None or not needs_statistics(config.world_model, robot):
    return None
  mean, std = statistics.robot_statistics(folder, robot_obs)
  std = np.where(std == 0, 1.0, std)  # as LUMOS
  content = {"mean": mean.tolist(), "std": std.tolist()}
  write_record(workdir, STATISTICS, content)
  return content["mean"], content["std"]


def take_lumos(stage: StageRun, folder: pathlib.Path) -> None:
  """Writes the parameters of `inputs.lumos_checkpoint` instead of training.

  What LUMOS does not have, the inverse-dynamics head, keeps its random start.
  """
  config, workdir, logger = stage.config, stage.workdir, stage.logger
  w, path = config.world_model, config.inputs.lumos_checkpoint
  robot_obs = None
  robot = stage.inputs["collect"].embodiment
  if needs_statistics(w, robot):
    robot_obs = calvin.read_vectors(folder, "robot_obs", config.env.workers, logger.progress)
    logger.info(
      f"the robot state is normalised by {folder / statistics.STATISTICS_FILE}; the weights expect the "
      "statistics of the data they were trained on"
    )
  statistics_of_data = write_statistics(config, robot, folder, robot_obs, workdir)
  model = make_world_model(w, config.env.image_size, statistics_of_data, robot)
  imported = lumos.to_params(lumos.read_state_dict(path), wm.param_shapes(model), path)
  initial = wm.init_params(model, jax.random.fold_in(jax.random.key(config.seed), 1))
  params = lumos.merge(initial, imported)
  untrained = sorted(set(params) - set(imported))
  logger.info(f"took the world model of {path}; not trained there, and random here: {', '.join(untrained)}")
  save_params(workdir / "params", params)


def save_snapshot(workdir: pathlib.Path, step: int, params: Params) -> None:
  """Keeps the model of an update as a separate artifact, for `inputs.world_model` and comparisons.

  Args:
    workdir: the stage's folder, whose artifact.json the runner has written.
    step: update.
    params: parameters after it.
  """
  artifact = artifact_lib.read_artifact(workdir)
  if artifact is None:
    raise ValueError(f"{workdir}: no artifact.json")
  part = artifact.part | {"snapshot": step}
  snapshot = dataclasses.replace(
    artifact,
    path=workdir / "snapshots" / str(step),
    part=part,
    fingerprint=artifact_lib.fingerprint(part, artifact.inputs, artifact.schema),
  )
  artifact_lib.write_artifact(snapshot, done=False)
  save_params(snapshot.path / "params", params)
  if (workdir / STATISTICS).exists():
    artifact_lib.write_text(snapshot.path / STATISTICS, read_text(workdir / STATISTICS))
  artifact_lib.write_artifact(snapshot, done=True)
