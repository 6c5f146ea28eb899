"""The programs of a config as its stages build them, with the shapes of their arguments instead of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from wam_jax.acting import models
from wam_jax.acting import policy as acting
from wam_jax.acting.step import start_state
from wam_jax.config import robot_of_data
from wam_jax.data import stream
from wam_jax.data.windows import FrameStore
from wam_jax.nn.world_model import WorldModel, make_world_model
from wam_jax.stages import behaviour_cloning, classifier, ppo, world_model
from wam_jax.training import behaviour_cloning as bc
from wam_jax.training import ppo as ppo_training
from wam_jax.training import sharding
from wam_jax.training import world_model as wm
from wam_jax.training import world_model_training as wm_training
from wam_jax.training.classifier_pool import SHARES, Pool
from wam_jax.training.imagination import Dreamer, StartFrames, make_world
from wam_jax.training.tasks import task_keys, update_over_tasks
from wam_jax.types import Batch

Shape: Any = jax.ShapeDtypeStruct  # stands for arrays
_FLOAT, _INT, _BYTE = jnp.float32, jnp.int32, jnp.uint8


@dataclasses.dataclass(frozen=True)
class Program:
  """A program and what it is called with.

  Attributes:
    jitted: to be traced with `arguments`.
    arguments: shapes on the devices.
    unit: what it does again and again.
    units: how often a whole run does it; 0: as long as the robot moves.
    per_call: units in a call, as far as they are counted: the loop of `training.tasks.repeat`, whose length
      the program does not know, counts as one.
    steps: gradient steps in a call, by which the outermost loop of known length is known.
  """

  jitted: Any
  arguments: tuple[Any, ...]
  unit: str
  units: int
  per_call: int = 1
  steps: int = 1


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


def _stacked(tree: Any, size: int) -> Any:
  return jax.tree.map(lambda x: Shape((size, *x.shape), x.dtype), tree)


class Programs:
  """What a config compiles on some devices.

  Args:
    config: from `config.finalize`, or with all of its fields.
    devices: of one mesh; they need not exist.
    num_frames: of the training split.
    memory: bytes of a device, which decide whether the frames stay there.
  """

  def __init__(self, config: Any, devices: list[Any], num_frames: int, memory: int):
    self.config, self.num_frames = config, num_frames
    self.mesh: Mesh | None = sharding.make_mesh(config.training.devices, devices)
    on_all = SingleDeviceSharding(devices[0]) if self.mesh is None else self._split()
    self._on_all: Sharding = on_all
    w = config.world_model
    self._robot = robot_of_data(config)
    self._model: WorldModel = make_world_model(w, config.env.image_size, embodiment=self._robot)
    self._world = wm.param_shapes(self._model)
    self._policy = models.make_policy(config, self._model.feature_size, self._robot.action_size)
    self._num_tasks = len(config.tasks)
    self.streamed = self._source(memory) == "stream"

  def names(self) -> dict[str, Callable[[], Program]]:
    """Name -> what builds the program, in the order of the stages."""
    return {
      "world model": self.world_model,
      "classifier": self.classifier,
      "cloning": self.cloning,
      "PPO": self.ppo,
      "acting": self.acting,
    }

  def _split(self, *axes: str | None) -> Sharding:
    assert self.mesh is not None
    return NamedSharding(self.mesh, PartitionSpec(*axes))

  def _put(self, tree: Any, where: Sharding | None = None) -> Any:
    return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=where or self._on_all), tree)

  def _source(self, memory: int) -> str:
    """As `stages.world_model.open_frames` chooses on a device of so much memory."""
    c = self.config
    num_parameters = sum(x.size for x in jax.tree.leaves(self._world))
    reserve = world_model.memory_reserve(c, num_parameters, self._robot)
    limit = c.data.memory_limit_gb or memory / 1e9
    return stream.choose_source(
      self.num_frames,
      c.env.image_size,
      self._robot,
      residency=c.data.residency,
      limit_gb=limit,
      reserve=reserve,
    )[0]

  def world_model(self) -> Program:
    w, size, robot = self.config.world_model, self.config.env.image_size, self._robot
    optimizer = wm_training.make_optimizer(w, self._world)
    state = jax.eval_shape(
      lambda params: world_model.initial_state(w, self._model, optimizer, params), self._world
    )
    sampler = world_model.make_sampler(w, self.num_frames, self.mesh, self._robot)
    rows: tuple[int, ...] = (self.num_frames,)
    per_call = self.config.training.log_every
    if self.streamed:
      picture_bytes = sampler.rows * w.sequence_length * len(robot.cameras) * size**2 * 3
      per_call = stream.updates_per_piece(per_call, picture_bytes)
      rows = (per_call, sampler.rows, w.sequence_length)
    picture = (size, size, 3) if self.streamed else (size * size * 3,)
    frames = {
      "pictures": {camera: Shape((*rows, *picture), _BYTE) for camera in robot.camera_names},
      "robot_obs": Shape((*rows, robot.state_size), _FLOAT),
      "action": Shape((*rows, robot.action_size), _FLOAT),
      "prev_action": Shape((*rows, robot.action_size), _FLOAT),
      "is_first": Shape(rows, jnp.bool_),
    }
    if self.streamed:
      update = world_model.streamed_update(w, self._model, optimizer, sampler, self.mesh)
      where = None if self.mesh is None else self._split(None, sharding.AXIS)
      source: Any = self._put(Batch(**frames, mask=Shape(rows, jnp.bool_)), where)
    else:
      update = world_model.resident_update(w, self._model, optimizer, sampler, self.mesh)
      source = self._put(FrameStore(**frames))
    arguments = self._put(state), source, self._put(_key()), per_call
    return Program(update, arguments, "update", w.updates, per_call, per_call)

  def _of_tasks(self, update_task: Any, init: Any, data: Any, num: int) -> Program:
    """As `training.tasks.make_task_update` compiles it; `data` is one task's."""
    keys = jax.eval_shape(lambda key: task_keys(key, self._num_tasks), _key())
    task = jax.eval_shape(init, keys), _stacked(data, self._num_tasks), keys
    rows, count = Shape((self._num_tasks,), _INT), Shape((), _INT)
    updates = update_over_tasks(update_task, self.mesh)
    return Program(updates.jitted, self._put(updates.arguments(task, rows, count)), "update", num)

  def cloning(self) -> Program:
    c = self.config
    init, update_task = behaviour_cloning.training(c.behaviour_cloning, self._policy, self.mesh)
    rows = (c.data.demos_per_task + c.data.play_successes_per_task) * c.env.max_steps
    feature = Shape((rows, self._model.feature_size), _FLOAT)
    action = Shape((rows, self._robot.action_size), _FLOAT)
    data = bc.CloningData(feature, action, Shape((rows,), _INT), Shape((), _INT))
    return self._of_tasks(update_task, init, data, c.behaviour_cloning.updates)

  def classifier(self) -> Program:
    c = self.config
    network = models.make_classifier(c, self._model.feature_size)
    init, update_task = classifier.training(c.classifier, network, self.mesh)
    dreams = classifier.DREAMS // 2 * (c.ppo.horizon_steps // c.behaviour_cloning.chunk)
    rows = 2 * (c.data.demos_per_task + c.data.failed_takes_per_task) * c.env.max_steps + dreams
    groups = max(SHARES) if c.data.failed_takes_per_task else min(SHARES)
    pool = Pool(
      Shape((rows, self._model.feature_size), _FLOAT), Shape((groups, rows), _INT), Shape((groups,), _INT)
    )
    return self._of_tasks(update_task, init, pool, c.classifier.updates)

  def ppo(self) -> Program:
    c = self.config
    network = models.make_classifier(c, self._model.feature_size)
    world = make_world(self._model, temperature=c.ppo.prior_temperature)
    dreamer = Dreamer(world, self._policy, network, c.ppo.horizon_steps // self._policy.chunk)
    base, judge = jax.eval_shape(self._policy.init, _key()), jax.eval_shape(network.init, _key())
    frames = lambda takes: Shape((takes, self._model.feature_size), _FLOAT)
    starts = StartFrames(
      frames(c.data.demos_per_task * (c.ppo.start_frames or c.env.max_steps)), Shape((), _INT)
    )
    if c.ppo.failed_starts:
      failed = frames(c.data.failed_takes_per_task * c.env.max_steps)
      starts = dataclasses.replace(
        starts, failed=failed, failed_count=Shape((), _INT), failed_share=c.ppo.failed_starts
      )
    frozen = ppo_training.Frozen(
      base=base,
      classifier={"network": judge, "threshold": Shape((), _FLOAT)},
      starts=starts,
      entropy_limit=Shape((), _FLOAT),
      held=Shape((), jnp.bool_),
    )
    state = jax.eval_shape(
      lambda frozen, key: ppo_training.init_state(self._policy, c.ppo, frozen, key), frozen, _key()
    )
    num = self._num_tasks
    task = _stacked((state, frozen), num)
    keys = jax.eval_shape(lambda key: task_keys(key, num), _key())
    iterate = ppo.iterations(dreamer, c.ppo, self.mesh)
    arguments = iterate.arguments((*task, keys), Shape((num,), _INT), (self._world, Shape((), _INT)))
    steps = c.ppo.epochs * c.ppo.minibatches
    return Program(iterate.jitted, self._put(arguments), "iteration", c.ppo.iterations, steps=steps)

  def acting(self) -> Program:
    c, size = self.config, self.config.env.image_size
    policy = models.for_acting(self._policy, c.behaviour_cloning.ddim_steps)
    network = _stacked(jax.eval_shape(policy.init, _key()), 1)
    step = acting.programs(self._model, policy)[1]
    state = jax.eval_shape(lambda params: start_state(self._model, params, 1, policy.chunk, 0), self._world)
    observation = {camera: Shape((1, size, size, 3), _BYTE) for camera in self._model.cameras}
    if self._model.proprio != "none":
      observation["robot_obs"] = Shape((1, self._robot.state_size), _FLOAT)
    arguments = self._world, {"base": network, "tuned": network}, state, observation
    return Program(step, self._put(arguments), "control step", 0)
