"""Acting with a trained policy on observations from anywhere: one frame in, one action out.

Every frame is filtered through the world model with the action executed before it; every H-th frame a
chunk is sampled at the frame's feature, and its actions are executed one by one. `rollout` runs
the same functions side by side for many episodes, `wam_jax.export` writes them to files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wam_jax.acting.step import State, act_step, start_state
from wam_jax.core.image import area_resize
from wam_jax.embodiment import ROBOT_OBS
from wam_jax.host import surroundings
from wam_jax.types import Params

MAX_SEED = 2**31 - 1


class PolicyError(Exception):
  """There is no such policy, or its world model is not the one it was trained on."""


# --- the arithmetic ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _compiled(model: Any, policy: Any) -> tuple[Callable, Callable]:
  """Compiled (start_state, act_step)."""
  start = functools.partial(start_state, model)
  return jax.jit(start, static_argnums=(1, 2)), jax.jit(functools.partial(act_step, model, policy))


# --- a policy that holds its state ------------------------------------------------------------------


class ActingPolicy:
  """A policy for one robot or a batch of them.

  Args:
    model: world-model networks.
    model_params: their parameters.
    policy: networks of the policy.
    policy_params: {"base", "tuned"}, on a leading axis of length 1.
    task: the skill's name.
    made_from: stage -> fingerprint of the artifacts, kept for the record.

  Attributes:
    cameras: pictures that `act` needs.
    image_size: S, their side; larger ones are shrunk by area averaging.
    needs_robot_obs: whether `act` needs the robot state.
    chunk: H, frames from one chunk to the next.

  Raises:
    PolicyError: the policy and the world model have different feature sizes.
  """

  @surroundings.own_settings()
  def __init__(
    self,
    model: Any,
    model_params: Params,
    policy: Any,
    policy_params: Params,
    task: str,
    made_from: Mapping[str, str] | None = None,
  ):
    if model.feature_size != policy.feature_size:
      raise PolicyError(
        f"the policy of {task} reads features of size {policy.feature_size}, "
        f"the world model makes features of size {model.feature_size}"
      )
    self.model, self.policy, self.task, self.made_from = model, policy, task, dict(made_from or {})
    self.params = jax.device_put((model_params, policy_params))
    self.cameras: tuple[str, ...] = tuple(model.cameras)
    self.image_size: int = model.image_size
    self.needs_robot_obs: bool = model.proprio != "none"
    self.chunk: int = policy.chunk
    self._start, self._step = _compiled(model, policy)
    self.reset()

  @surroundings.own_settings()
  def reset(self, batch_size: int | None = None, seed: int = 0) -> None:
    """Begins new episodes.

    Args:
      batch_size: B robots side by side; None: one robot, without a batch axis.
      seed: of all noise, 0 to 2**31 - 1; the same seed and observations give the same actions.

    Raises:
      ValueError: batch_size below 1, or seed out of range.
    """
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"batch_size: expected at least 1, or None for one robot, got {batch_size}")
    if not 0 <= seed <= MAX_SEED:
      raise ValueError(f"seed: expected 0 to {MAX_SEED}, got {seed}")
    self._batch_size = batch_size
    self._state: State = self._start(self.params[0], batch_size or 1, self.chunk, seed)

  @surroundings.own_settings()
  def act(self, observation: Mapping[str, Any]) -> np.ndarray:
    """Action for the frame just seen. Every frame must be given, also those inside a chunk.

    Args:
      observation: 'rgb_static' and 'rgb_gripper' uint8 [S, S, 3], or larger, and 'robot_obs' [15], as
        far as the model reads them (`cameras`, `needs_robot_obs`); after `reset(batch_size=B)` each with
        a leading axis B. More keys are ignored.

    Returns:
      float32 [7], or [B, 7]: motion in [-1, 1], gripper -1 or 1.

    Raises:
      ValueError: a missing key, a wrong shape or dtype, a number that is not finite, or another batch size
        than that of `reset`; the state is then as before.
    """
    inputs = self._read(observation)
    self._state, action = self._step(*self.params, self._state, inputs)
    result = np.asarray(action)
    return result[0] if self._batch_size is None else result

  def _read(self, observation: Mapping[str, Any]) -> dict[str, Any]:
    """What the compiled step takes: pictures [B, S, S, 3] uint8, robot_obs [B, 15] float32."""
    if not isinstance(observation, Mapping):
      raise ValueError(f"observation: expected a dict of arrays, got {type(observation).__name__}")
    keys = (*self.cameras, "robot_obs") if self.needs_robot_obs else self.cameras
    missing = [name for name in keys if name not in observation]
    if missing:
      raise ValueError(
        f"observation: {', '.join(missing)} missing; this policy needs {', '.join(keys)}, "
        f"got {', '.join(map(str, observation)) or 'nothing'}"
      )
    size, inputs = self.image_size, {}
    for camera in self.cameras:
      picture = self._rows(camera, observation[camera], 3)
      if picture.dtype != np.uint8:
        raise ValueError(f"{camera}: expected uint8 in [0, 255], got {picture.dtype}")
      if picture.shape[-1] != 3 or min(picture.shape[1:3]) < size:
        raise ValueError(
          f"{camera}: expected {self._lead()}{size}, {size}, 3] or larger pictures, "
          f"got {list(observation[camera].shape)}"
        )
      inputs[camera] = area_resize(picture, size, size)
    if self.needs_robot_obs:
      robot_obs = self._rows("robot_obs", observation["robot_obs"], 1)
      if robot_obs.shape[1] != ROBOT_OBS or robot_obs.dtype.kind not in "fiu":
        raise ValueError(
          f"robot_obs: expected {self._lead()}{ROBOT_OBS}] numbers, got {robot_obs.dtype} "
          f"{list(np.shape(observation['robot_obs']))}"
        )
      with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(robot_obs, np.float32)).all(0)
      if not finite.all():
        raise ValueError(
          f"robot_obs: NaN or infinity at {np.flatnonzero(~finite).tolist()}; the policy's state is as it "
          "was: repeat the last action or hold the robot, and call act with the next frame"
        )
      inputs["robot_obs"] = robot_obs.astype(np.float32)
    return inputs

  def _lead(self) -> str:
    return "[" if self._batch_size is None else f"[{self._batch_size}, "

  def _rows(self, name: str, value: Any, ndim: int) -> Any:
    """`value` with a batch axis before its `ndim` own ones."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    batched = self._batch_size is not None
    if array.ndim != ndim + batched:
      fix = "reset() is for one robot" if batched else "reset(batch_size=B) is for a batch"
      raise ValueError(
        f"{name}: expected {ndim + batched} axes, {self._lead()}...], got {list(array.shape)}; {fix}"
      )
    if batched and array.shape[0] != self._batch_size:
      raise ValueError(
        f"{name}: {array.shape[0]} rows, but reset(batch_size={self._batch_size}) was called; "
        "another batch size needs another reset"
      )
    return array if batched else array[None]


# --- finding policy and world model -----------------------------------------------------------------


def index_of(path: Any, tasks: Sequence[str], task: str | None) -> int:
  """Place of a task among those of a policy; of None the only one.

  Raises:
    PolicyError: there is no such task, or one must be named.
  """
  if task is None and len(tasks) == 1:
    return 0
  if task is None or task not in tasks:
    problem = "name the task" if task is None else f"no policy for {task!r}"
    raise PolicyError(f"{path}: {problem}; it has {', '.join(tasks)}")
  return list(tasks).index(task)
