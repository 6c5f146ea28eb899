"""What a robot has: cameras, dimensions of its action and state, control rate. CALVIN's robot is `CALVIN`.

An embodiment comes with a dataset (`embodiment.json` in its root) or a simulator, and goes into every
artifact and file made from it. Where none is given, it is CALVIN's. Imports nothing of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FILE = "embodiment.json"  # in the root of a dataset
EXAMPLE = "docs/guides/own_data.md says how"
ACTION_KINDS = ("continuous", "binary")
STATE_KINDS = ("scaled", "angle", "binary", "plain")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # cameras name files and parameters
# What else recordings and observations have, next to the pictures of cameras.
_TAKEN = (
  "actions",
  "rel_actions",
  "robot_obs",
  "scene_obs",
  "success",
  "start",
  "snapshot",
  "lengths",
  "attempts",
)


class EmbodimentError(ValueError):
  """A description of a robot that breaks a rule, or two that differ."""


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera.

  Attributes:
    name: of its pictures in recordings and observations.
    size: height and width of its pictures [pixels]; None: square pictures of any size. Whatever the size,
      pictures are resized to S x S by area averaging: those that are not square are squeezed, not cropped.
  """

  name: str
  size: tuple[int, int] | None = None

  @property
  def shape(self) -> str:
    """Height to width in lowest terms: all that matters once pictures are resized."""
    height, width = self.size or (1, 1)
    divisor = math.gcd(height, width)
    return f"{height // divisor}:{width // divisor}"


@dataclasses.dataclass(frozen=True)
class ActionDimension:
  """A number of an action.

  Attributes:
    name: of the number.
    kind: "continuous", or "binary": one of the two values of `range`.
    range: lowest and highest value that the robot takes; networks see it as [-1, 1].
    rest: value before an episode's first frame, in the robot's unit.
  """

  name: str
  kind: str = "continuous"
  range: tuple[float, float] = (-1.0, 1.0)
  rest: float = 0.0


@dataclasses.dataclass(frozen=True)
class StateDimension:
  """A number of the state that the robot reports.

  Attributes:
    name: of the number.
    kind: how networks see it: "scaled": times `scale`, which should bring it to about 1 (lengths in
      decimetres); "angle" [rad]: its sine and cosine; "binary": as it is; "plain": normalised by the
      mean and standard deviation of the training data.
    scale: of the kind "scaled".
  """

  name: str
  kind: str = "plain"
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Embodiment:
  """What a robot has. Hashable: it is a static part of the networks.

  Attributes:
    cameras: at least one, with names of their own.
    action: at least one number.
    state: numbers of the reported state; maybe none.
    control_hz: actions per second.

  Raises:
    EmbodimentError: names the field that breaks a rule.
  """

  cameras: tuple[Camera, ...]
  action: tuple[ActionDimension, ...]
  state: tuple[StateDimension, ...]
  control_hz: float

  def __post_init__(self) -> None:
    for field in ("cameras", "action", "state"):
      names = [item.name for item in getattr(self, field)]
      if not names and field != "state":
        raise EmbodimentError(f"{field}: at least one is needed")
      if repeated := {name for name in names if names.count(name) > 1}:
        raise EmbodimentError(f"{field}: names must differ, but {', '.join(sorted(repeated))} occurs twice")
    for camera in self.cameras:
      if not _NAME.fullmatch(camera.name):
        raise EmbodimentError(f"cameras: {camera.name!r} must consist of letters, digits and _")
      if camera.name in _TAKEN:
        raise EmbodimentError(f"cameras: {camera.name!r} is what recordings call another thing; rename it")
      if camera.size is not None and min(camera.size) < 1:
        raise EmbodimentError(f"cameras.{camera.name}.size: must be above 0, not {list(camera.size)}")
    for action in self.action:
      low, high = action.range
      if action.kind not in ACTION_KINDS:
        raise EmbodimentError(
          f"action.{action.name}.kind: one of {', '.join(ACTION_KINDS)}, not {action.kind!r}"
        )
      if not -math.inf < low < high < math.inf:
        raise EmbodimentError(f"action.{action.name}.range: must be [lowest, highest], not [{low}, {high}]")
      if not low <= action.rest <= high or (action.kind == "binary" and action.rest not in (low, high)):
        within = f"{low} or {high}" if action.kind == "binary" else f"within [{low}, {high}]"
        raise EmbodimentError(f"action.{action.name}.rest: must be {within}, not {action.rest}")
    for state in self.state:
      if state.kind not in STATE_KINDS:
        raise EmbodimentError(f"state.{state.name}.kind: one of {', '.join(STATE_KINDS)}, not {state.kind!r}")
      if not 0 < state.scale < math.inf:
        raise EmbodimentError(f"state.{state.name}.scale: must be above 0, not {state.scale}")
    if not 0 < self.control_hz < math.inf:
      raise EmbodimentError(f"control_hz: must be above 0, not {self.control_hz}")

  @property
  def camera_names(self) -> tuple[str, ...]:
    return tuple(camera.name for camera in self.cameras)

  @property
  def action_names(self) -> tuple[str, ...]:
    return tuple(dimension.name for dimension in self.action)

  @property
  def action_size(self) -> int:
    """A."""
    return len(self.action)

  @property
  def state_size(self) -> int:
    """Numbers of the state as the robot reports it."""
    return len(self.state)

  @property
  def state_features(self) -> int:
    """P, numbers of the state as networks see it: an angle takes two."""
    return sum(1 + (dimension.kind == "angle") for dimension in self.state)

  @property
  def binary(self) -> np.ndarray:
    """[A] bool, the binary dimensions of the action."""
    return np.array([dimension.kind == "binary" for dimension in self.action])

  @property
  def plain(self) -> np.ndarray:
    """[state_size] bool, numbers of the state that need the data's statistics."""
    return np.array([dimension.kind == "plain" for dimension in self.state], bool)

  @property
  def rest_action(self) -> np.ndarray:
    """[A] float32 in [-1, 1], the action before an episode's first frame."""
    return self.to_unit(np.array([dimension.rest for dimension in self.action])).astype(np.float32)

  def to_unit(self, action: np.ndarray) -> np.ndarray:
    """Actions [..., A] in the robot's units -> the same in [-1, 1]."""
    low, high = self.action_ranges.T
    return action if self._is_unit else (2 * (action - low) / (high - low) - 1).astype(action.dtype)

  def from_unit(self, action: np.ndarray) -> np.ndarray:
    """Inverse of `to_unit`."""
    low, high = self.action_ranges.T
    return action if self._is_unit else (low + (action + 1) * (high - low) / 2).astype(action.dtype)

  @property
  def action_ranges(self) -> np.ndarray:
    """[A, 2] float64, lowest and highest value of each number of an action."""
    return np.array([dimension.range for dimension in self.action], np.float64)

  @property
  def in_units(self) -> Embodiment:
    """The same robot where actions are in [-1, 1] already."""
    rest = self.rest_action.astype(float).round(6).tolist()
    actions = zip(self.action, rest, strict=True)
    unit = (dataclasses.replace(d, range=(-1.0, 1.0), rest=value) for d, value in actions)
    return dataclasses.replace(self, action=tuple(unit))

  @property
  def _is_unit(self) -> bool:
    return all(dimension.range == (-1.0, 1.0) for dimension in self.action)

  def differences(self, other: Embodiment) -> list[str]:
    """What another robot has otherwise, in words; empty where data of one serve networks of the other.

    Pictures of the same shape but another size are no difference: they are resized.
    """
    out = []
    if self.camera_names != other.camera_names:
      out.append(f"cameras {', '.join(self.camera_names)}, not {', '.join(other.camera_names)}")
    else:
      out += [
        f"pictures of {one.name} are {one.shape} (height to width), not {two.shape}"
        for one, two in zip(self.cameras, other.cameras, strict=True)
        if one.shape != two.shape
      ]
    pairs: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
      ("action", self.action, other.action),
      ("state", self.state, other.state),
    )
    for what, ours, theirs in pairs:
      if len(ours) != len(theirs):
        out.append(f"{len(ours)} numbers of {what}, not {len(theirs)}")
        continue
      for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        out += [
          f"{field} of number {index} of the {what} ({one.name}) is {mine}, not {yours}"
          for field, mine in dataclasses.asdict(one).items()
          if mine != (yours := getattr(two, field))
        ]
    if self.control_hz != other.control_hz:
      out.append(f"{self.control_hz:g} actions per second, not {other.control_hz:g}")
    return out

  def check(self, whose: str, other: Embodiment, others: str) -> None:
    """Raises EmbodimentError that names each difference, if there is one.

    Args:
      whose: what this embodiment is of, such as "the world model".
      other: to compare with.
      others: what that one is of.
    """
    if differences := self.differences(other):
      raise EmbodimentError(
        f"{whose} and {others} are of different robots: {whose} has {'; '.join(differences)} as {others} has"
      )

  def to_json(self) -> str:
    """As `from_json` reads it. Numbers may be NumPy's."""
    return json.dumps(dataclasses.asdict(self), indent=2, default=lambda number: number.item()) + "\n"

  def to_dict(self) -> dict[str, Any]:
    """As `from_dict` reads it: plain values, as JSON has them."""
    content: dict[str, Any] = json.loads(self.to_json())
    return content


def from_json(text: str) -> Embodiment:
  """Reads what `Embodiment.to_json` wrote, or a hand that follows it.

  Raises:
    EmbodimentError: not JSON, or names the field that is wrong.
  """
  try:
    content = json.loads(text)
  except (ValueError, RecursionError):
    raise EmbodimentError("not JSON") from None
  return from_dict(content)


def from_dict(content: Any) -> Embodiment:
  """Reads what `Embodiment.to_dict` gave. Raises EmbodimentError that names the field that is wrong."""
  fields = _fields(
    "", content, {"cameras": _list, "action": _list, "state": _list, "control_hz": _number}, ()
  )
  return Embodiment(
    cameras=_items("cameras", Camera, fields["cameras"], {"name": _text, "size": _size}),
    action=_items(
      "action",
      ActionDimension,
      fields["action"],
      {"name": _text, "kind": _text, "range": _pair, "rest": _number},
    ),
    state=_items("state", StateDimension, fields["state"], {"name": _text, "kind": _text, "scale": _number}),
    control_hz=fields["control_hz"],
  )


def or_calvin(content: Any) -> Embodiment:
  """Of a record that may not name its robot: those of before did not, and were CALVIN's."""
  return CALVIN if content is None else from_dict(content)


def _items(field: str, build: type, items: list, readers: dict[str, Callable]) -> tuple:
  optional = tuple(name for name in readers if name != "name")
  return tuple(build(**_fields(f"{field}[{i}].", item, readers, optional)) for i, item in enumerate(items))


def _fields(
  where: str, content: Any, readers: dict[str, Callable], optional: Sequence[str]
) -> dict[str, Any]:
  if not isinstance(content, dict):
    raise EmbodimentError(f"{where.rstrip('.') or 'all of it'}: must be an object with {', '.join(readers)}")
  if unknown := sorted(set(content) - set(readers)):
    raise EmbodimentError(f"{where}{unknown[0]}: no such field; known are {', '.join(readers)}")
  if missing := [name for name in readers if name not in content and name not in optional]:
    raise EmbodimentError(f"{where}{missing[0]}: missing")
  return {name: readers[name](f"{where}{name}", value) for name, value in content.items()}


def _expect(holds: bool, where: str, rule: str, value: Any) -> None:
  if not holds:
    raise EmbodimentError(f"{where}: must be {rule}, not {str(value)[:40]!r}")


def _text(where: str, value: Any) -> str:
  _expect(isinstance(value, str) and 0 < len(value) < 100, where, "a name", value)
  return str(value)


def _number(where: str, value: Any) -> float:
  _expect(type(value) in (int, float) and abs(value) < 1e30, where, "a finite number", value)
  return float(value)


def _list(where: str, value: Any) -> list[Any]:
  _expect(isinstance(value, list), where, "a list", value)
  return list(value)


def _pair(where: str, value: Any) -> tuple[float, float]:
  _expect(isinstance(value, list) and len(value) == 2, where, "two numbers", value)
  return _number(where, value[0]), _number(where, value[1])


def _size(where: str, value: Any) -> tuple[int, int] | None:
  if value is None:
    return None
  _expect(
    isinstance(value, list) and [type(x) for x in value] == [int, int],
    where,
    "null or two whole numbers",
    value,
  )
  return value[0], value[1]


_length = functools.partial(StateDimension, kind="scaled", scale=10.0)  # [m], networks see decimetres
_angle = functools.partial(StateDimension, kind="angle")

CALVIN = Embodiment(
  cameras=(Camera("rgb_static"), Camera("rgb_gripper")),
  # Relative motion of the tcp, xyz and Euler xyz; the gripper: +1 opens, -1 closes.
  action=(
    *(ActionDimension(name) for name in ("x", "y", "z", "roll", "pitch", "yaw")),
    ActionDimension("gripper", "binary", rest=1.0),
  ),
  # The joints [rad] do not wrap.
  state=(
    *map(_length, ("tcp x", "tcp y", "tcp z")),
    *map(_angle, ("tcp roll", "tcp pitch", "tcp yaw")),
    _length("gripper width"),
    *(StateDimension(f"joint {i}", "scaled") for i in range(1, 8)),
    StateDimension("last gripper action", "binary"),
  ),
  control_hz=30.0,
)

# For what is CALVIN's alone: its simulators and formats.
ACTION = CALVIN.action_size
ROBOT_OBS = CALVIN.state_size
ROBOT_FEATURES = CALVIN.state_features
CAMERAS = CALVIN.camera_names
CONTROL_HZ = int(CALVIN.control_hz)
SCENE_OBS = 24  # slider, drawer, button, switch [m], bulb, led {0, 1}, 3 blocks x (xyz [m], Euler [rad])
