"""Scripted experts, start states and wandering; the routes are in each simulator's table of skills.

An expert sees the furniture when it is made and then only the target pose and the gripper's pose; it steers
straight along a few waypoints with the gripper closed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from wam_jax.envs import registry, table
from wam_jax.envs.steering import CLOSED, steer, wrap_angle
from wam_jax.envs.table import FINGERS_DOWN, Route, Skill, Skills, TaughtTable

_REACHED_TARGET, _REACHED_TCP, _REACHED_ANGLE = 0.012, 0.03, 0.2
_REACHED_LAST = 0.006
_AMONG_FURNITURE_Y = -0.07  # m, beyond which a hand is among door, switch and lamp
_PATIENCE = 8  # steps without getting nearer before a waypoint is given up

_Act = Callable[[], "np.ndarray | None"]


def sample_start(
  task: str | None, rng: np.random.Generator, env: TaughtTable
) -> tuple[np.ndarray, np.ndarray]:
  """A random state from which a task can be done.

  Args:
    task: of the simulator's `SKILLS`; None for play, where everything may be anywhere.
    rng: source of randomness.
    env: simulator that the state is for; afterwards it stands anywhere.

  Returns:
    robot_obs [15], scene_obs [24].

  Raises:
    ValueError: unknown task.
  """
  return registry.load_skills(env.name).sample_start(task, rng, env)


def possible_tasks(skills: Mapping[str, Skill], scene_obs: np.ndarray) -> list[str]:
  """Tasks that have an expert and can still be done from here.

  Args:
    skills: of the simulator.
    scene_obs: [24].

  Returns:
    Names, in the table's order.
  """
  return [name for name, skill in skills.items() if skill.route and skill.task.goal.possible(scene_obs)]


def _way_out(skills: Skills, tcp: np.ndarray) -> list[np.ndarray]:
  """Waypoints from a place [3] among the furniture to the free space above the table."""
  x, y, z = tcp
  if z < skills.LOW_HEIGHT or y > _AMONG_FURNITURE_Y:
    return [np.array([x, min(y, skills.FREE_Y), max(z, skills.SAFE_HEIGHT)])]
  return []


class WaypointExpert:
  """Steers the target pose along waypoints.

  Source: rules of the thumb; CALVIN's own demonstrations were teleoperated.
  """

  def __init__(self, env: TaughtTable, route: Route) -> None:
    self._env = env
    self._waypoints = _way_out(registry.load_skills(env.name), env.state()[0][:3]) + route.waypoints
    self._euler = np.array(route.euler)
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
    turn = wrap_angle(self._euler - euler)
    self._advance(position, float(np.abs(turn).max()), self._env.state()[0][:3])
    if self._next == len(self._waypoints):
      return None
    return steer(self._env, self._waypoints[self._next], self._euler, CLOSED)


def make_expert(
  task: str,
  env: TaughtTable,
  rng: np.random.Generator,
  aim_error: float = 0.0,
  wrist_error: float = 0.0,
) -> _Act:
  """An expert for one task, from wherever the environment is now.

  Args:
    task: of the simulator's `SKILLS`.
    env: the environment that the actions will be given to.
    rng: source of the small variation between demonstrations.
    aim_error: standard deviation [m], along each axis, of one displacement of the whole path: a clumsy hand
      that lands next to the handle.
    wrist_error: standard deviation [rad], about each axis, of one turn of the hand that lasts the whole path.

  Returns:
    act() -> action [7], or None when the skill is over. Whether it succeeded is for `tasks.success` to say.

  Raises:
    ValueError: unknown task, or one without an expert in this simulator.
  """
  skill = table.find_skill(registry.load_skills(env.name).SKILLS, task)
  if skill.route is None:
    raise ValueError(f"{task}: has no scripted expert in simulator {env.name!r}")
  route = skill.route(env.state()[1], rng)
  if aim_error:
    beside = rng.normal(0.0, aim_error, 3)
    route = dataclasses.replace(route, waypoints=[waypoint + beside for waypoint in route.waypoints])
  if wrist_error:
    x, y, z = np.array(route.euler) + rng.normal(0.0, wrist_error, 3)
    route = dataclasses.replace(route, euler=(x, y, z))
  return WaypointExpert(env, route)


def make_wanderer(env: TaughtTable, rng: np.random.Generator) -> Callable[[], np.ndarray]:
  """Smooth drifting through the workspace, for play.

  Args:
    env: the environment that the actions will be given to.
    rng: source of randomness.

  Returns:
    act() -> action [7]; it never ends. Each destination is approached with its own speed; at some
    the gripper opens or closes.
  """
  skills = registry.load_skills(env.name)
  low, high = skills.WORKSPACE
  goals = [(place, np.array(FINGERS_DOWN), 1.0) for place in _way_out(skills, env.state()[0][:3])]
  memory = {"gripper": float(env.state()[0][14]), "steps": 0}

  def new_goal() -> tuple[np.ndarray, np.ndarray, float]:
    if rng.random() < 0.3:
      memory["gripper"] = -memory["gripper"]
    memory["steps"] = 0
    place = rng.uniform(low - 0.05, high + 0.02)
    return place, np.array(FINGERS_DOWN) + rng.uniform(-0.3, 0.3, 3), rng.uniform(0.3, 1.0)

  def act() -> np.ndarray:
    memory["steps"] += 1
    if not goals:
      goals.append(new_goal())
    if np.linalg.norm(goals[0][0] - env.target_pose()[0]) < 0.02 or memory["steps"] > 40:
      goals[:] = goals[1:] or [new_goal()]
    place, angles, speed = goals[0]
    return steer(env, place, angles, memory["gripper"], speed)

  return act
