"""What every policy does with what it is given, whoever computes its actions: here, or an exported file.

`export` writes `Observer` and `Actor` into run_policy.py, where there is no wam_jax: of this package they use
nothing but MAX_SEED, `area_resize` and `whole`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wam_jax.core.image import area_resize
from wam_jax.host.numbers import whole

MAX_SEED = 2**31 - 1


class Observer:
  """Checks frames of robots side by side, and makes them what compiled programs take.

  Attributes:
    cameras: pictures that are needed.
    image_size: S, their side; larger ones are shrunk by area averaging.
    camera_sizes: height and width of the pictures that were learned from, where the data say them; others of
      the same shape will do.
    needs_robot_obs: whether the robot state is needed.
    state_size: numbers of the robot state.
  """

  cameras: tuple[str, ...]
  image_size: int
  camera_sizes: Mapping[str, tuple[int, int]]
  needs_robot_obs: bool
  state_size: int
  _batch_size: int | None
  _when_not_finite = ""  # what to do then

  def _read(self, observation: Mapping[str, Any]) -> dict[str, Any]:
    """What the compiled step takes: pictures [B, S, S, 3] uint8, robot_obs [B, state_size] float32."""
    if not isinstance(observation, Mapping):
      raise ValueError(f"observation: expected a dict of arrays, got {type(observation).__name__}")
    keys = (*self.cameras, "robot_obs") if self.needs_robot_obs else self.cameras
    missing = [name for name in keys if name not in observation]
    if missing:
      raise ValueError(
        f"observation: {', '.join(missing)} missing; needed are {', '.join(keys)}, "
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
      height, width = self.camera_sizes.get(camera, picture.shape[1:3])
      if picture.shape[1] * width != picture.shape[2] * height:
        raise ValueError(
          f"{camera}: expected pictures of the shape of {height} x {width} pixels, as in training, "
          f"got {list(observation[camera].shape)}"
        )
      inputs[camera] = area_resize(picture, size, size)
    if self.needs_robot_obs:
      robot_obs = self._rows("robot_obs", observation["robot_obs"], 1)
      if robot_obs.shape[1] != self.state_size or robot_obs.dtype.kind not in "fiu":
        raise ValueError(
          f"robot_obs: expected {self._lead()}{self.state_size}] numbers, got {robot_obs.dtype} "
          f"{list(np.shape(observation['robot_obs']))}"
        )
      with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(robot_obs, np.float32)).all(0)
      if not finite.all():
        raise ValueError(
          f"robot_obs: NaN or infinity at {np.flatnonzero(~finite).tolist()}{self._when_not_finite}"
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


class Actor(Observer, abc.ABC):
  """Holds a policy's state from frame to frame. `_begin` and `_advance` of a subclass compute.

  Attributes:
    task: the skill's name.
    action_ranges: [A, 2] lowest and highest value of each number of an action, in the robot's unit.
    chunk: H, frames from one chunk to the next.
  """

  task: str
  action_ranges: np.ndarray
  chunk: int
  _when_not_finite = (
    "; the policy's state is as it was: repeat the last action or hold the robot, and call act with the next "
    "frame"
  )

  @abc.abstractmethod
  def _begin(self, batch_size: int, seed: int) -> Any:
    """State of `batch_size` robots before their first frame."""

  @abc.abstractmethod
  def _advance(self, state: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """(next state, action [B, A] in [-1, 1]) after a frame as `_read` gives it."""

  def reset(self, batch_size: int | None = None, seed: int = 0) -> None:
    """Begins new episodes.

    Args:
      batch_size: B robots side by side; None: one robot, without a batch axis.
      seed: of all noise, 0 to 2**31 - 1; the same seed and observations give the same actions.

    Raises:
      ValueError: batch_size or seed is no whole number or out of range; exported files: another batch size.
    """
    if batch_size is not None:
      batch_size = whole("batch_size", batch_size, 1)
    seed = whole("seed", seed, 0, MAX_SEED)
    self._state = self._begin(batch_size or 1, seed)
    self._batch_size = batch_size

  def act(self, observation: Mapping[str, Any]) -> np.ndarray:
    """Action for the frame just seen. Every frame must be given, also those inside a chunk.

    Args:
      observation: each of `cameras` uint8 [S, S, 3], or larger, and 'robot_obs' [state_size] if
        `needs_robot_obs`; after `reset(batch_size=B)` each with a leading axis B. More keys are ignored.
        Pictures that are not square are squeezed to S x S, as in training.

    Returns:
      float32 [A], or [B, A], in `action_ranges`; of CALVIN's robot motion in [-1, 1], gripper -1 or 1.

    Raises:
      ValueError: a missing key, a wrong shape or dtype, a number that is not finite, or another batch size
        than that of `reset`; the state is then as before.
    """
    inputs = self._read(observation)
    self._state, action = self._advance(self._state, inputs)
    result, (low, high) = np.asarray(action), np.transpose(self.action_ranges)
    if (low != -1).any() or (high != 1).any():
      result = (low + (result + 1) / 2 * (high - low)).astype(np.float32)
    return result[0] if self._batch_size is None else result
