"""Scripted experts, start states and wandering for the play table.

An expert sees the furniture when it is made and then only the target pose and the gripper's pose; it steers
straight along a few waypoints with the gripper closed.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable

import numpy as np

from wam_jax.envs import base, tasks
from wam_jax.envs.play_table import scene, simulator

FINGERS_DOWN = (math.pi, 0.0, math.pi / 2)  # Euler angles of the hand in most skills
LEVER_TILT = (math.pi - 0.5, 0.0, 2.1)  # at the lever a vertical hand is out of the arm's reach
CLOSED, OPEN = -1.0, 1.0

_WORKSPACE_LOW, _WORKSPACE_HIGH = np.array([-0.25, -0.30, 0.53]), np.array([0.25, -0.10, 0.70])
_SAFE_HEIGHT = 0.55  # m, above everything that stands on the desk
_REACHED_TARGET, _REACHED_TCP, _REACHED_ANGLE = 0.012, 0.03, 0.2
_REACHED_LAST = 0.006
_PATIENCE = 8  # steps without getting nearer before a waypoint is given up

# Where furniture may start: anywhere from which the task can still be done, with a little to spare.
_START_RANGE = {
  "open_drawer": ("drawer", 0.0, 0.09),
  "close_drawer": ("drawer", 0.13, 0.22),
  "move_slider_left": ("slider", 0.0, 0.12),
  "move_slider_right": ("slider", 0.16, 0.28),
  "turn_on_lightbulb": ("switch", 0.0, 0.034),
  "turn_off_lightbulb": ("switch", 0.054, 0.088),
}

_Act = Callable[[], "np.ndarray | None"]
_cache = threading.local()


def _arm() -> simulator.ArmKinematics:
  if not hasattr(_cache, "arm"):
    _cache.arm = simulator.ArmKinematics()
  return _cache.arm


def _wrap(angle: np.ndarray) -> np.ndarray:
  return (angle + np.pi) % (2 * np.pi) - np.pi


def _sample_posture(rng: np.random.Generator) -> np.ndarray:
  """robot_obs [15] with the gripper at a random reachable place above the desk."""
  arm = _arm()
  while True:
    position = rng.uniform(_WORKSPACE_LOW, _WORKSPACE_HIGH)
    euler = np.array(FINGERS_DOWN) + rng.uniform(-0.15, 0.15, 3)
    joints = arm.inverse(np.array(scene.ARM_HOME), position, euler, iterations=40)
    reached, reached_euler = arm.forward(joints)
    if np.abs(reached - position).max() < 0.01 and np.abs(_wrap(reached_euler - euler)).max() < 0.05:
      break
  gripper = rng.choice([CLOSED, OPEN])
  robot_obs = np.empty(base.ROBOT_OBS)
  robot_obs[:3], robot_obs[3:6] = reached, reached_euler
  robot_obs[6] = 2 * scene.FINGER_RANGE[1] if gripper == OPEN else 0.0
  robot_obs[7:14], robot_obs[14] = joints, gripper
  return robot_obs


def _sample_blocks(rng: np.random.Generator) -> np.ndarray:
  """[18] blocks lying on the desk, apart from each other, the button and the lever."""
  blocks = np.zeros((3, 6))
  placed: list[np.ndarray] = []
  for block, name in zip(blocks, scene.BLOCKS, strict=True):
    while True:
      place = rng.uniform((-0.38, -0.14), (0.38, -0.04))
      clear = np.linalg.norm(place - scene.BUTTON_XY) > 0.10
      clear &= place[0] < scene.SWITCH_ORIGIN[0] - 0.12  # the hand comes to the lever low over the desk
      if clear and all(np.linalg.norm(place - other) > 0.10 for other in placed):
        break
    placed.append(place)
    block[:2], block[2] = place, scene.DESK_TOP + scene.BLOCK_HALF_SIZE[name][2]
    block[5] = rng.uniform(-np.pi, np.pi)
  return blocks.ravel()


def sample_start(task: str | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """A random state from which a task can be done.

  Args:
    task: one of `tasks.TASKS`; None for play, where everything may be anywhere.
    rng: source of randomness.

  Returns:
    robot_obs [15], scene_obs [24].

  Raises:
    ValueError: unknown task.
  """
  if task is not None and task not in tasks.PREDICATES:
    raise ValueError(f"unknown task {task!r}; known: {', '.join(tasks.TASKS)}")
  scene_obs = np.zeros(base.SCENE_OBS)
  for i, joint in enumerate(scene.FURNITURE_JOINTS):
    if joint != "button":
      low, high = scene.FURNITURE_RANGE[joint]
      # Closed and open ends are more frequent than chance would have them, as they are in use.
      scene_obs[i] = np.clip(rng.uniform(low - 0.2 * (high - low), high + 0.2 * (high - low)), low, high)
  if task in _START_RANGE:
    joint, low, high = _START_RANGE[task]
    scene_obs[scene.FURNITURE_JOINTS.index(joint)] = rng.uniform(low, high)
  scene_obs[tasks.BULB] = float(scene_obs[tasks.SWITCH] > scene.BULB_THRESHOLD)
  scene_obs[tasks.LED] = float(rng.integers(2))
  if task in ("turn_on_led", "turn_off_led"):
    scene_obs[tasks.LED] = float(task == "turn_off_led")
  scene_obs[6:] = _sample_blocks(rng)
  return _sample_posture(rng), scene_obs


def add_noise(action: np.ndarray, rng: np.random.Generator, std: float) -> np.ndarray:
  """Gaussian noise on an action's motion.

  Args:
    action: [7].
    rng: source of randomness.
    std: standard deviation in action units.

  Returns:
    [7], motion clipped to [-1, 1], gripper unchanged.
  """
  noisy = np.array(action, np.float64)
  noisy[:6] = np.clip(noisy[:6] + rng.normal(0.0, std, 6), -1.0, 1.0)
  return noisy


@dataclasses.dataclass(frozen=True)
class _Skill:
  """Waypoints [W, 3] of the tcp in m, in the order they are visited, and the hand's Euler angles [3]."""

  waypoints: list[np.ndarray]
  euler: tuple[float, float, float] = FINGERS_DOWN


def _drawer(task: str, opened: float, rng: np.random.Generator) -> _Skill:
  x = scene.DRAWER_ORIGIN[0] + rng.uniform(-0.03, 0.03)
  z = 0.349 + rng.uniform(-0.004, 0.004)
  if task == "open_drawer":  # between front and handle, then pull
    y = -0.221 - opened
    return _Skill([np.array([x, y, 0.48]), np.array([x, y, z]), np.array([x, y - 0.24, z])])
  y = -0.295 - opened  # before the handle, then push
  return _Skill([np.array([x, y, 0.45]), np.array([x, y, z]), np.array([x, y + 0.26, z])])


def _slider(task: str, opened: float, rng: np.random.Generator) -> _Skill:
  handle = np.array(scene.SLIDER_ORIGIN) + 0.06 * scene.SLOPE_NORMAL - np.array([opened, 0, 0])
  side = 1.0 if task == "move_slider_left" else -1.0
  before = handle + np.array(
    [side * (0.05 + rng.uniform(0, 0.01)), -0.10, 0.012 + rng.uniform(-0.006, 0.006)]
  )
  beside = before.copy()
  beside[1] = handle[1] + rng.uniform(-0.004, 0.004)
  beside -= 0.010 * scene.SLOPE_NORMAL  # deeper than the handle's middle, or a noisy hand slips off
  return _Skill([before, beside, beside - np.array([side * 0.30, 0, 0])])


def _lightbulb(task: str, position: float, rng: np.random.Generator) -> _Skill:
  lever = np.array(scene.SWITCH_ORIGIN) + 0.05 * scene.SLOPE_NORMAL + position * scene.SLOPE_UP
  lever[0] += rng.uniform(-0.02, 0.02)
  # Strokes go a little deeper than the lever's middle, or a noisy hand slips off.
  if task == "turn_on_lightbulb":  # from below, then up the slope
    depth = 0.008 * scene.SLOPE_NORMAL
    before, under = lever + np.array([0, -0.09, 0]), lever + np.array([0, -0.03, -0.008])
    touching = lever + np.array([0, -0.012, -0.003]) - depth
    return _Skill([before, under, touching, lever + 0.12 * scene.SLOPE_UP - depth], LEVER_TILT)
  depth = 0.010 * scene.SLOPE_NORMAL
  above, touching = lever + np.array([0, -0.03, 0.10]), lever + np.array([0, -0.002, 0.035]) - depth
  return _Skill(
    [above, touching, lever - 0.11 * scene.SLOPE_UP + np.array([0, -0.002, 0]) - depth], LEVER_TILT
  )


def _button(rng: np.random.Generator) -> _Skill:
  above = np.array([*scene.BUTTON_XY, 0.54]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
  return _Skill([above, above - np.array([0, 0, 0.08])])


def _skill(task: str, scene_obs: np.ndarray, rng: np.random.Generator) -> _Skill:
  if task in ("open_drawer", "close_drawer"):
    return _drawer(task, scene_obs[tasks.DRAWER], rng)
  if task in ("move_slider_left", "move_slider_right"):
    return _slider(task, scene_obs[tasks.SLIDER], rng)
  if task in ("turn_on_lightbulb", "turn_off_lightbulb"):
    return _lightbulb(task, scene_obs[tasks.SWITCH], rng)
  return _button(rng)


def _way_out(tcp: np.ndarray) -> list[np.ndarray]:
  """Waypoints from a place among the furniture to the free space above the desk."""
  x, y, z = tcp
  if z < 0.50 and y < -0.17:  # in front of the desk
    return [np.array([x, y, _SAFE_HEIGHT])]
  if z < 0.50 or y > -0.07:
    return [np.array([x, min(y, -0.11), max(z, _SAFE_HEIGHT)])]
  return []


class WaypointExpert:
  """Steers the target pose along waypoints.

  Source: rules of the thumb; CALVIN's own demonstrations were teleoperated.
  """

  def __init__(self, env: simulator.PlayTable, skill: _Skill) -> None:
    self._env = env
    self._waypoints = _way_out(env.state()[0][:3]) + skill.waypoints
    self._euler = np.array(skill.euler)
    self._next = 0
    self._closest, self._waited = math.inf, 0

  def _advance(self, position: np.ndarray, angle_error: float, tcp: np.ndarray) -> None:
    """Turns to the following waypoint when this one is reached or cannot be."""
    waypoint = self._waypoints[self._next]
    distance = float(np.linalg.norm(waypoint - tcp))
    off_target = float(np.linalg.norm(waypoint - position))
    if distance < self._closest - 0.002:
      self._closest, self._waited = distance, 0
    else:
      self._waited += 1
    last = self._next == len(self._waypoints) - 1  # a stroke against a resistance: go all the way
    near = _REACHED_LAST if last else _REACHED_TCP
    reached = off_target < _REACHED_TARGET and distance < near and angle_error < _REACHED_ANGLE
    if reached or self._waited > _PATIENCE:
      self._next += 1
      self._closest, self._waited = math.inf, 0

  def __call__(self) -> np.ndarray | None:
    """The next action [7], or None after the last waypoint."""
    position, euler = self._env.target_pose()
    turn = _wrap(self._euler - euler)
    self._advance(position, float(np.abs(turn).max()), self._env.state()[0][:3])
    if self._next == len(self._waypoints):
      return None
    move = self._waypoints[self._next] - position
    action = np.empty(base.ACTION)
    action[:3] = move / max(simulator.ACTION_TRANSLATION, float(np.abs(move).max()))  # a straight line
    action[3:6] = np.clip(turn / simulator.ACTION_ROTATION, -1, 1)
    action[6] = CLOSED
    return action


def make_expert(
  task: str, env: simulator.PlayTable, rng: np.random.Generator, aim_error: float = 0.0
) -> _Act:
  """An expert for one task, from wherever the environment is now.

  Args:
    task: one of `tasks.TASKS`.
    env: the environment that the actions will be given to.
    rng: source of the small variation between demonstrations.
    aim_error: standard deviation [m], along each axis, of one displacement of the whole path: a clumsy hand
      that lands beside the handle.

  Returns:
    act() -> action [7], or None when the skill is over. Whether it succeeded is for `tasks.success` to say.

  Raises:
    ValueError: unknown task.
  """
  if task not in tasks.PREDICATES:
    raise ValueError(f"unknown task {task!r}; known: {', '.join(tasks.TASKS)}")
  skill = _skill(task, env.state()[1], rng)
  if aim_error:
    beside = rng.normal(0.0, aim_error, 3)
    skill = dataclasses.replace(skill, waypoints=[waypoint + beside for waypoint in skill.waypoints])
  return WaypointExpert(env, skill)


def make_wanderer(env: simulator.PlayTable, rng: np.random.Generator) -> Callable[[], np.ndarray]:
  """Smooth drifting through the workspace, for play.

  Args:
    env: the environment that the actions will be given to.
    rng: source of randomness.

  Returns:
    act() -> action [7]; it never ends. Each destination is approached with a speed of its own; at some
    the gripper opens or closes.
  """
  goals = [(place, np.array(FINGERS_DOWN), 1.0) for place in _way_out(env.state()[0][:3])]
  memory = {"gripper": float(env.state()[0][14]), "steps": 0}

  def new_goal() -> tuple[np.ndarray, np.ndarray, float]:
    if rng.random() < 0.3:
      memory["gripper"] = -memory["gripper"]
    memory["steps"] = 0
    place = rng.uniform(_WORKSPACE_LOW - 0.05, _WORKSPACE_HIGH + 0.02)
    return place, np.array(FINGERS_DOWN) + rng.uniform(-0.3, 0.3, 3), rng.uniform(0.3, 1.0)

  def act() -> np.ndarray:
    position, euler = env.target_pose()
    memory["steps"] += 1
    if not goals:
      goals.append(new_goal())
    if np.linalg.norm(goals[0][0] - position) < 0.02 or memory["steps"] > 40:
      goals[:] = goals[1:] or [new_goal()]
    place, angles, speed = goals[0]
    move = place - position
    action = np.empty(base.ACTION)
    action[:3] = speed * move / max(simulator.ACTION_TRANSLATION, float(np.abs(move).max()))
    action[3:6] = np.clip(speed * _wrap(angles - euler) / simulator.ACTION_ROTATION, -1, 1)
    action[6] = memory["gripper"]
    return action

  return act
