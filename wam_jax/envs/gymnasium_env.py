"""Any gymnasium environment with pictures and numbers as a `base.Simulator`.

An episode starts from a seed. One step tells what observation and info hold; `config.env` can say it, too.
A scripted expert is a method `expert(observation) -> action` of the environment or one of its wrappers, or a
function of (unwrapped environment, observation). Its action is one that the environment as made takes, or
None when it is done.
"""

from __future__ import annotations

import contextlib
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
_RETURNS = {
  "reset": "(observation, info)",
  "step": "(observation, reward, terminated, truncated, info)",
}

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
      with base.calling(f"{self.name}: its tasks, metadata or action_space"):
        own = env.get_wrapper_attr("tasks") if env.has_wrapper_attr("tasks") else ()
        space, fps = env.action_space, float((env.metadata or {}).get("render_fps") or _FRAMES_PER_SECOND)
      self._find_tasks(own)
      self._probe(env, space, fps, load_expert)
    finally:
      with contextlib.suppress(Exception):  # what matters is known by now
        env.close()

  def _start(self) -> gymnasium.Env:
    if not callable(self._make):
      raise self._lack(f"it is a {type(self._make).__name__}, not a class or function that makes one")
    with base.calling(f"{self.name}: its arguments"):
      takes = inspect.signature(self._make)
    kinds = {name: parameter.kind for name, parameter in takes.parameters.items()}
    drawing = "render_mode" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()
    options = {"render_mode": "rgb_array"} if drawing else {}
    try:
      takes.bind(**options)
    except TypeError as error:
      raise self._lack(
        f"it cannot be made without arguments ({error}); name a function that gives them"
      ) from None
    with base.calling(f"{self.name}: making it"):
      env = self._make(**options)
    if not isinstance(env, gymnasium.Env):
      raise self._lack(f"what it makes is a {type(env).__name__}, not a gymnasium.Env")
    return env

  def _lack(self, what: str) -> base.NotOffered:
    return base.NotOffered(f"{self.name}: {what}")

  def ask(self, env: gymnasium.Env, method: str, results: int, *args: Any, **options: Any) -> tuple[Any, ...]:
    """Calls `reset` or `step`. Raises NotOffered: it fails, or does not return what gymnasium's does."""
    with base.calling(f"{self.name}: {method}{f'({options})' if options else ''}"):
      returned = getattr(env, method)(*args, **options)
    if not isinstance(returned, tuple) or len(returned) != results or not isinstance(returned[-1], Mapping):
      raise self._lack(f"{method} must return {results} things, the last a dict, as {_RETURNS[method]}")
    return returned

  def _find_tasks(self, own: Any) -> None:
    """Those of the settings, else the environment's `own`, else one named like it."""
    if not isinstance(own, (tuple, list)) or not all(isinstance(task, str) for task in own):
      raise self._lack(f"tasks must be a tuple of names, not {own!r}")
    self.tasks = tuple(self.settings.get("tasks") or own or (_slug(self.name),))
    if unknown := [task for task in self.tasks if own and task not in own]:
      raise ValueError(f"env.tasks: {self.name} has no task {unknown[0]}; it has {', '.join(own)}")
    # They name files.
    if odd := [
      task for task in self.tasks if not re.fullmatch(r"\w[\w.-]*", task) or self.tasks.count(task) > 1
    ]:
      raise self._lack(f"tasks must be different names of letters, digits, _ and -, but one is {odd[0]!r}")
    self.told_tasks = bool(own) or len(self.tasks) > 1  # else there is nothing to tell

  def _probe(self, env: gymnasium.Env, space: Any, fps: float, load_expert: Callable[[str], Any]) -> None:
    settings = self.settings
    if (
      not isinstance(space, gymnasium.spaces.Box)
      or space.dtype.kind != "f"
      or len(space.shape) != 1
      or not space.shape[0]
    ):
      rule = "actions must be a Box [A] of floats"
      raise self._lack(f"{rule}, but are {space}; wrap it (gymnasium.ActionWrapper) into one that has them")
    # As they were written: 0.1 is no float32.
    low, high = (np.array([float(str(x)) for x in bounds]) for bounds in (space.low, space.high))
    if not np.isfinite([low, high]).all():
      fix = "wrap it in gymnasium.wrappers.RescaleAction, or correct its action_space"
      raise self._lack(f"the range of its actions must be finite, but is {space}; {fix}")
    first = {"seed": 0, "options": {"task": self.tasks[0]} if self.told_tasks else None}
    observation, _ = self.ask(env, "reset", 2, **first)
    with base.calling(f"{self.name}: reading its observation"):
      parts = dict(_parts(observation))
    self._find_parts(env, observation)
    place = settings.get("expert", "")
    self.expert_function = load_expert(place) if place else None
    self.experts = self.tasks if place or env.has_wrapper_attr("expert") else ()
    if self.experts:
      self.ask_expert(env, observation, len(low))
    self._find_success(env, (low + high) / 2, first)
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
        fps,
      )
    except EmbodimentError as error:
      raise self._lack(str(error)) from None

  def _find_parts(self, env: gymnasium.Env, observation: Any) -> None:
    """Which parts of the observation are pictures, and which are the state."""
    parts = dict(_parts(observation))
    known = ", ".join(f"{key or 'all of it'} {_kind(part)}" for key, part in parts.items())
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
    # What every later observation must have again.
    self._state_shapes = {key: parts[key].shape for key in self._state_keys}
    if not self.state_of(observation).size:
      raise self._lack(
        f"nothing tells the robot's state: no vector of floats in its observation, which has {known}; "
        "add one, or name other numbers in env.state"
      )
    self._picture_shapes: dict[str, tuple[int, ...]] = {}
    try:
      drawn = self.pictures_of(env, observation)
    except base.NotOffered as error:  # it has no `render`, or the machine has no OpenGL
      if pictures:
        raise
      fix = "give it one (gymnasium.wrappers.TransformObservation), or a render() for render_mode='rgb_array'"
      what = f"there is no picture uint8 [H, W, 3] in its observation, which has {known}, and it draws none"
      raise self._lack(f"{what} ({str(error).removeprefix(f'{self.name}: ')}); {fix}") from error
    self._picture_shapes = {key: picture.shape for key, picture in drawn.items()}
    if len(drawn) < len(self._picture_keys):
      raise self._lack(f"two of its pictures are both {', '.join(drawn)} as a camera; rename one")
    self.largest_picture = min(min(picture.shape[:2]) for picture in drawn.values())

  def _find_success(self, env: gymnasium.Env, action: np.ndarray, first: Mapping[str, Any]) -> None:
    """What says that a task is done, by one step; and that the same seed gives the same episode."""

    def one_step() -> tuple[Any, ...]:
      return self.ask(env, "step", 5, action.astype(env.action_space.dtype))

    once, *_, terminated, _, info = one_step()
    key = self.settings.get("success", "") or next((key for key in _SUCCESS_KEYS if key in info), "")
    if not key or key not in (*info, TERMINATED):
      had = ", ".join(map(str, info)) or "nothing"
      raise self._lack(
        f"nothing says whether a task is done: its info has {had}, not {key or ' or '.join(_SUCCESS_KEYS)}; "
        f"set env.success to a key of the info of every step, or to {TERMINATED} where only success ends an "
        "episode"
      )
    self.success_key = key
    self.succeeded(terminated, info)
    state, pictures = self.state_of(once), self.pictures_of(env, once)
    self.ask(env, "reset", 2, **first)
    again, *_ = one_step()
    same = np.allclose(self.state_of(again), state, rtol=1e-3, atol=1e-5)
    for name, picture in self.pictures_of(env, again).items():  # rendering may differ by a rounding
      same = same and np.abs(picture.astype(float) - pictures[name]).mean() < 1
    if not same:
      fix = "draw all that is random from self.np_random, after super().reset(seed=seed)"
      raise self._lack(f"one step after reset(seed=0) is not the same the second time; {fix}")

  def succeeded(self, terminated: Any, info: Mapping[str, Any]) -> bool:
    """Whether a step's task is done. Raises NotOffered: what says so is neither true nor false."""
    value = terminated if self.success_key == TERMINATED else info.get(self.success_key)
    number = np.asarray(False if value is None else value)
    if number.size != 1 or number.dtype.kind not in "biuf" or not np.isfinite(number).all():
      raise self._lack(f"info[{self.success_key!r}] must be true or false, but is {value!r}")
    return bool(number.item())

  def pictures_of(self, env: gymnasium.Env, observation: Any) -> base.Pictures:
    """camera -> [H, W, 3] uint8. Raises NotOffered: they are something else, or no longer as at first."""
    parts, drawn = dict(_parts(observation)), {}
    for key in self._picture_keys:
      name = _camera(key)
      picture: Any = parts.get(key)
      if picture is None and key == RENDERED:
        with base.calling(f"{self.name}: render()"):
          picture = env.render()
      if not _is_picture(picture):
        fix = "name others in env.pictures, or let it draw with render_mode='rgb_array'"
        raise self._lack(f"pictures must be uint8 [H, W, 3], but {name} is {_kind(picture)}; {fix}")
      if picture.shape != self._picture_shapes.get(name, picture.shape):
        was = list(self._picture_shapes[name])
        raise self._lack(
          f"picture {name} was {was} at first, and is now {list(picture.shape)}; keep its size"
        )
      drawn[name] = picture.copy()  # an environment may draw the next one into the same memory
    return drawn

  def state_of(self, observation: Any) -> np.ndarray:
    """[state_size] float64. Raises NotOffered: it is not finite, or no longer as at first."""
    parts = dict(_parts(observation))
    for key, shape in self._state_shapes.items():
      part = parts.get(key)
      if part is None or part.shape != shape or part.dtype.kind not in "biuf" or not np.isfinite(part).all():
        now = "missing" if part is None else f"{list(part.shape)}: {part}"
        rule = f"state {key or 'of its observation'} must always be {list(shape)} finite numbers"
        raise self._lack(f"{rule}, but is {now}; mend its observation, or name others in env.state")
    return np.concatenate([np.zeros(0), *(np.ravel(parts[key]).astype(float) for key in self._state_keys)])

  def ask_expert(self, env: gymnasium.Env, observation: Any, size: int) -> np.ndarray | None:
    """Its next action [size], in its own unit; None: it is done. Raises NotOffered: it is something else."""
    function = self.expert_function
    with base.calling(f"{self.name}: its expert"):
      own = functools.partial(function, env.unwrapped) if function else env.get_wrapper_attr("expert")
      action = own(observation)
      action = None if action is None else np.asarray(action, np.float64)
    if action is not None and (action.shape != (size,) or not np.isfinite(action).all()):
      rule = f"its expert must return {size} finite numbers, or None when it is done"
      raise self._lack(f"{rule}, but returned {action} of shape {list(action.shape)}")
    return action

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
    self._observation, _ = self._simulator.ask(self._env, "reset", 2, seed=seed, options=options)
    self.ended = self._success = False

  def step(self, action: np.ndarray) -> None:
    """See `base.Environment`."""
    if self.ended:
      return
    simulator, space = self._simulator, self._env.action_space
    own = simulator.embodiment.from_unit(np.asarray(action, np.float64)).astype(space.dtype)
    inside = np.clip(own, space.low, space.high)  # type: ignore[attr-defined]  # rounding
    self._observation, _, terminated, truncated, info = simulator.ask(self._env, "step", 5, inside)
    self.ended = bool(terminated or truncated)
    self._success = simulator.succeeded(terminated, info)

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
    simulator, robot = self._simulator, self._simulator.embodiment
    if task not in simulator.experts:
      raise base.NotOffered(f"{simulator.name} has no scripted expert of {task}; {FIX_EXPERT}")
    beside = rng.normal(0.0, aim_error / ACTION_TRANSLATION, robot.action_size) if aim_error else 0.0

    def act() -> np.ndarray | None:
      action = simulator.ask_expert(self._env, self._observation, robot.action_size)
      return None if action is None else np.clip(robot.to_unit(action) + beside, -1.0, 1.0)

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
  if isinstance(observation, tuple):  # of a Tuple space: its places are keys
    observation = dict(enumerate(observation))
  if not isinstance(observation, Mapping):
    return [(prefix, np.asarray(observation))]
  items = ((f"{prefix}.{key}" if prefix else str(key), part) for key, part in observation.items())
  return [item for key, part in items for item in _parts(part, key)]


def _is_picture(part: Any) -> bool:
  return isinstance(part, np.ndarray) and part.dtype == np.uint8 and part.ndim == 3 and part.shape[2] == 3


def _kind(part: Any) -> str:
  if isinstance(part, np.ndarray):
    return f"{part.dtype} {list(part.shape)}"
  return "None" if part is None else f"a {type(part).__name__}"


def _camera(key: str) -> str:
  """Name of the camera whose pictures have this key in the observation."""
  name = _slug(key)
  return name if name[:1].isalpha() else f"picture_{name}".rstrip("_")


def _slug(name: str) -> str:
  """A name of letters, digits and _, of an environment or a key."""
  return re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"-v\d+$", "", name.rpartition(":")[2])).strip("_")
