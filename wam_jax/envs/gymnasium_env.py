"""Any gymnasium environment with pictures and numbers as a `base.Simulator`.

An episode starts from a seed. One step tells what observation and info hold; `config.env` can say it, too.
A scripted expert is a method `expert(observation) -> action` of the environment or one of its wrappers, or a
function of (unwrapped environment, observation). Its action is one that the environment as made takes, or
None when it is done.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from wam_jax.embodiment import ActionDimension, Camera, Embodiment, EmbodimentError, StateDimension
from wam_jax.envs import base
from wam_jax.envs.table import ACTION_TRANSLATION

TERMINATED = "terminated"  # as env.success: the end of an episode is its success
RENDERED = "render"  # camera of an environment whose observation has no picture
_SUCCESS_KEYS = ("success", "is_success")
_FRAMES_PER_SECOND = 30.0  # of an environment that does not say how many

Make = Callable[..., gymnasium.Env]


class GymnasiumSimulator(base.Simulator):
  """A gymnasium environment.

  Args:
    settings: `config.env`.
    make: makes the environment; takes `render_mode` if it can draw.
    load_expert: from `module:attribute` to what is there.

  Raises:
    NotOffered: what this package needs and the environment lacks.
    ValueError: a setting that names nothing in the observation or info.
  """

  def __init__(self, settings: Mapping[str, Any], make: Make, load_expert: Callable[[str], Any]):
    super().__init__(settings)
    self.name = str(settings["name"])
    self._make = make
    env = self._start()
    try:
      self._probe(env, load_expert)
    except gymnasium.error.Error as error:  # a package is missing, most often
      raise self._lack(str(error)) from None
    finally:
      env.close()

  def _start(self) -> gymnasium.Env:
    takes = inspect.signature(self._make)
    options = {"render_mode": "rgb_array"} if "render_mode" in takes.parameters else {}
    try:
      takes.bind(**options)
    except TypeError as error:
      raise self._lack(
        f"it cannot be made without arguments ({error}); name a function that gives them"
      ) from None
    env = self._make(**options)
    if not isinstance(env, gymnasium.Env):
      raise self._lack(f"what it makes is a {type(env).__name__}, not a gymnasium.Env")
    return env

  def _lack(self, what: str) -> base.NotOffered:
    return base.NotOffered(f"{self.name}: {what}")

  def _probe(self, env: gymnasium.Env, load_expert: Callable[[str], Any]) -> None:
    settings = self.settings
    own = env.get_wrapper_attr("tasks") if env.has_wrapper_attr("tasks") else ()
    self.tasks = tuple(settings.get("tasks") or own or (_slug(self.name),))
    self.told_tasks = len(self.tasks) > 1  # else there is nothing to tell
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f" or len(space.shape) != 1:
      rule = "actions must be a Box [A] of floats"
      raise self._lack(f"{rule}, but are {space}; wrap it (gymnasium.ActionWrapper) into one that has them")
    # As they were written: 0.1 is no float32.
    low, high = (np.array([float(str(x)) for x in bounds]) for bounds in (space.low, space.high))
    if not np.isfinite([low, high]).all():
      fix = "wrap it in gymnasium.wrappers.RescaleAction, or correct its action_space"
      raise self._lack(f"the range of its actions must be finite, but is {space}; {fix}")
    observation, _ = env.reset(seed=0, options={"task": self.tasks[0]} if self.told_tasks else None)
    self._find_parts(env, observation)
    self._find_success(env, (low + high) / 2)
    place = settings.get("expert", "")
    self.expert_function = load_expert(place) if place else None
    self.experts = self.tasks if place or env.has_wrapper_attr("expert") else ()
    parts = dict(_parts(observation))
    actions = zip(low.tolist(), high.tolist(), strict=True)
    try:
      self.embodiment = Embodiment(
        tuple(Camera(name) for name in self.pictures_of(env, observation)),
        tuple(
          ActionDimension(f"action {i}", range=(a, b), rest=min(max(0.0, a), b))
          for i, (a, b) in enumerate(actions)
        ),
        tuple(
          StateDimension(f"{key} {i}".strip()) for key in self._state_keys for i in range(parts[key].size)
        ),
        float(env.metadata.get("render_fps") or _FRAMES_PER_SECOND),
      )
    except EmbodimentError as error:
      raise self._lack(str(error)) from None

  def _find_parts(self, env: gymnasium.Env, observation: Any) -> None:
    """Which parts of the observation are pictures, and which are the state."""
    parts = dict(_parts(observation))
    known = ", ".join(f"{key or 'all of it'} {list(part.shape)}" for key, part in parts.items())
    asked = {name: tuple(self.settings.get(name, ())) for name in ("pictures", "state")}
    for name, keys in asked.items():
      if missing := [key for key in keys if key not in parts and (name, key) != ("pictures", RENDERED)]:
        raise ValueError(f"env.{name}: {self.name} has no {missing[0]} in its observation; it has {known}")
    pictures = asked["pictures"] or tuple(key for key, part in parts.items() if _is_picture(part))
    # Without a picture in it, an environment draws itself.
    self._picture_keys = pictures or (RENDERED,)
    self._state_keys = asked["state"] or tuple(
      key for key, part in parts.items() if part.dtype.kind == "f" and part.ndim <= 1 and key not in pictures
    )
    if not self.state_of(observation).size:
      raise self._lack(
        f"nothing tells the robot's state: no vector of floats in its observation, which has {known}"
      )
    try:
      drawn = self.pictures_of(env, observation)
    except Exception as error:  # of any kind: it has no `render`, or the machine has no OpenGL
      raise self._lack(
        f"there is no uint8 [H, W, 3] in its observation, which has {known}, and it cannot draw itself "
        f"({type(error).__name__}: {error})"
      ) from error
    for name, picture in drawn.items():
      if not _is_picture(picture):
        what = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else str(picture)
        fix = "name others in env.pictures, or let it draw with render_mode='rgb_array'"
        raise self._lack(f"pictures must be uint8 [H, W, 3], but {name} is {what}; {fix}")
    self.largest_picture = min(min(picture.shape[:2]) for picture in drawn.values())

  def _find_success(self, env: gymnasium.Env, action: np.ndarray) -> None:
    """What says that a task is done, by one step."""
    *_, info = env.step(action.astype(env.action_space.dtype))
    key = self.settings.get("success", "") or next((key for key in _SUCCESS_KEYS if key in info), "")
    if not key or key not in (*info, TERMINATED):
      had = ", ".join(map(str, info)) or "nothing"
      raise self._lack(
        f"nothing says whether a task is done: its info has {had}, not {key or ' or '.join(_SUCCESS_KEYS)}; "
        f"set env.success to a key of its info, or to {TERMINATED} where only success ends an episode"
      )
    self.success_key = key

  def pictures_of(self, env: gymnasium.Env, observation: Any) -> base.Pictures:
    """camera -> [H, W, 3] uint8."""
    parts = dict(_parts(observation))
    seen: dict[str, Any] = {key: parts[key] if key in parts else env.render() for key in self._picture_keys}
    # Copies: an environment may draw the next one into the same memory.
    copied = lambda picture: picture.copy() if isinstance(picture, np.ndarray) else picture
    return {_slug(key) or "picture": copied(picture) for key, picture in seen.items()}

  def state_of(self, observation: Any) -> np.ndarray:
    """[state_size] float64."""
    parts = dict(_parts(observation))
    return np.concatenate([np.zeros(0), *(np.ravel(parts[key]).astype(float) for key in self._state_keys)])

  def make(self) -> GymnasiumEnvironment:
    """See `base.Simulator`."""
    return GymnasiumEnvironment(self, self._start())


class GymnasiumEnvironment(base.Environment):
  """One of them; it stands still where it was truncated or terminated."""

  def __init__(self, simulator: GymnasiumSimulator, env: gymnasium.Env):
    """Takes an environment over."""
    self._simulator, self._env, self._task = simulator, env, ""
    self._observation: Any = None
    self._success = False

  def reset(self, start: np.ndarray, task: str = "") -> None:
    """See `base.Environment`; `start` is [1], a seed, which for play draws the task too."""
    known, seed = self._simulator.tasks, int(np.asarray(start).reshape(-1)[0])
    if task and task not in known:
      raise ValueError(f"unknown task {task!r}; known to {self._simulator.name}: {', '.join(known)}")
    if np.shape(start) != (1,) or seed != start[0] or seed < 0:
      raise ValueError(f"start: {self._simulator.name} starts from one seed, not from {np.array(start)}")
    self._task = task or known[seed % len(known)]
    options = {"task": self._task} if self._simulator.told_tasks else None
    self._observation, _ = self._env.reset(seed=seed, options=options)
    self.ended = self._success = False

  def step(self, action: np.ndarray) -> None:
    """See `base.Environment`."""
    if self.ended:
      return
    simulator, space = self._simulator, self._env.action_space
    own = simulator.embodiment.from_unit(np.asarray(action, np.float64)).astype(space.dtype)
    inside = np.clip(own, space.low, space.high)  # type: ignore[attr-defined]  # rounding
    self._observation, _, terminated, truncated, info = self._env.step(inside)
    self.ended = bool(terminated or truncated)
    key = simulator.success_key
    self._success = bool(terminated if key == TERMINATED else info.get(key, False))

  def state(self) -> np.ndarray:
    """See `base.Environment`."""
    return self._simulator.state_of(self._observation)

  def success(self) -> bool:
    """See `base.Environment`."""
    return self._success

  def pictures(self) -> base.Pictures:
    """See `base.Environment`."""
    return self._simulator.pictures_of(self._env, self._observation)

  def expert(
    self, task: str, rng: np.random.Generator, aim_error: float = 0.0, wrist_error: float = 0.0
  ) -> base.Act:
    """See `base.Environment`. Aim errors of 0.02 (CALVIN's unit, in m) are one unit of an action here."""
    function, robot = self._simulator.expert_function, self._simulator.embodiment
    if task not in self._simulator.experts:
      raise base.NotOffered(f"{self._simulator.name} has no scripted expert of {task}; {FIX_EXPERT}")
    own = self._env.get_wrapper_attr
    ask = functools.partial(function, self._env.unwrapped) if function is not None else own("expert")
    beside = rng.normal(0.0, aim_error / ACTION_TRANSLATION, robot.action_size) if aim_error else 0.0

    def act() -> np.ndarray | None:
      action = ask(self._observation)
      if action is None:
        return None
      return np.clip(robot.to_unit(np.asarray(action, np.float64)) + beside, -1.0, 1.0)

    return act

  def possible(self) -> list[str]:
    """Its one task, while it is not done."""
    able = self._task in self._simulator.experts and not self._success and not self.ended
    return [self._task] if able else []


FIX_EXPERT = (
  "write a method expert(self, observation) of the environment, or name a function of "
  "(env, observation) in env.expert=module:function"
)


def make_registered(env_id: str) -> Make:
  """Makes what gymnasium has under a name, without its limit of steps: `env.max_steps` is ours."""

  def make(render_mode: str) -> gymnasium.Env:
    options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
    try:
      try:
        return gymnasium.make(env_id, render_mode=render_mode, **options)
      except TypeError:  # it does not take a render_mode
        return gymnasium.make(env_id, **options)
    except (gymnasium.error.Error, ImportError) as error:
      raise base.NotOffered(f"gymnasium:{env_id}: {error}") from None

  return make


def _parts(observation: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
  """Dotted key -> array of all that an observation holds; one that is an array has the key ''."""
  if not isinstance(observation, Mapping):
    return [(prefix, np.asarray(observation))]
  items = ((f"{prefix}.{key}" if prefix else str(key), part) for key, part in observation.items())
  return [item for key, part in items for item in _parts(part, key)]


def _is_picture(part: Any) -> bool:
  return isinstance(part, np.ndarray) and part.dtype == np.uint8 and part.ndim == 3 and part.shape[2] == 3


def _slug(name: str) -> str:
  """A name of letters, digits and _, of an environment or a key."""
  return re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"-v\d+$", "", name.rpartition(":")[2])).strip("_")
