"""Records episodes of the scripted experts as states and actions, without pictures.

Only a simulator that draws nothing but its present moment (CALVIN's) has its pictures recorded too. Files and
processes are `recording_workers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from wam_jax.envs import experts, registry
from wam_jax.envs import tasks as task_rules
from wam_jax.envs.base import Skill, TaughtEnvironment

SUCCESS_FRAMES = 10  # frames kept after a demo's success first holds: the classifier's positives
MAX_ATTEMPTS = 50  # at one demo, before giving up
_WANDER_RATE = 0.25  # share of play in which the arm wanders instead of trying a skill
_WANDER_STEPS = (5, 20)
_BREAK_OFF_STEPS = (3, 25)  # of an attempt that is broken off
_REST_STEPS = 5  # after an expert is done without success
_LINGER_STEPS = 5  # at most, after a skill of play has succeeded
_KINDS = (
  "play",
  "demo",
  "heldout",
  "start",
  "heldout_play",
  "failed",
)  # position in it is part of the seed: append only


@dataclasses.dataclass(frozen=True)
class Job:
  """One episode to record.

  Attributes:
    kind: play, demo, heldout (a demo for validation), start (a start state only), heldout_play (play for
      validation) or failed (a clumsy attempt that failed).
    task: its task; empty for play.
    index: number among those of the same kind and task.
  """

  kind: str
  task: str
  index: int

  @property
  def name(self) -> str:
    """File name without suffix."""
    return f"{self.kind}-{self.task}-{self.index:05d}" if self.task else f"{self.kind}-{self.index:05d}"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What recording depends on, besides the job."""

  seed: int
  env: str
  max_steps: int
  play_episode_frames: int
  play_frames: int
  action_noise: float
  failed_attempt_rate: float
  heldout_play_frames: int = 0
  clumsy_attempt_rate: float = 0.0
  aim_error: float = 0.0
  wrist_error: float = 0.0
  calvin_root: str = ""
  image_size: int = 64  # of pictures recorded here


def draws_itself(env: TaughtEnvironment) -> bool:
  """Whether pictures must be taken while an episode is recorded; else its states are drawn afterwards."""
  return hasattr(env, "pictures")


class _Episode:
  """Steps an environment from where it is and remembers every frame."""

  def __init__(self, env: TaughtEnvironment, image_size: int, drawn: bool = True):
    self._env, self._image_size, self._drawn = env, image_size, drawn and draws_itself(env)
    self._rows: list[dict[str, np.ndarray]] = []
    self.state = env.state()

  def __len__(self) -> int:
    return len(self._rows)

  def step(self, action: np.ndarray) -> None:
    robot_obs, scene_obs = self.state
    pictures = self._pictures()
    self._env.step(action)
    self.state = self._env.state()
    target = np.concatenate([*self._env.target_pose(), action[6:]])
    row = {"actions": target, "rel_actions": action, "robot_obs": robot_obs, "scene_obs": scene_obs}
    self._rows.append(row | pictures)

  def _pictures(self) -> dict[str, np.ndarray]:
    """Both pictures of this moment, shrunk, if only this simulator in this moment can draw them."""
    if not self._drawn:
      return {}
    from wam_jax.core.image import area_resize  # brings JAX along, which other recordings do without

    size, pictures = self._image_size, cast(Any, self._env).pictures()
    return {key: area_resize(picture, size, size) for key, picture in pictures.items()}

  def arrays(self) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}


def possible_tasks(skills: Mapping[str, Skill], scene_obs: np.ndarray) -> list[str]:
  """Tasks that have an expert and can still be done from here.

  Args:
    skills: of the simulator.
    scene_obs: [24].

  Returns:
    Names, in the table's order.
  """
  return [name for name, skill in skills.items() if skill.route and skill.task.goal.possible(scene_obs)]


def _record_play(
  env: TaughtEnvironment, rng: np.random.Generator, frames: int, settings: Settings
) -> dict[str, Any]:
  """One episode of task-free play: skills with the hand turned, some clumsy or broken off, and wandering."""
  skills = registry.load_skills(env.name).SKILLS
  env.reset(*experts.sample_start(None, rng, env))
  episode = _Episode(env, settings.image_size)
  attempts: dict[str, tuple[int, int]] = {}
  while len(episode) < frames:
    possible, counted = possible_tasks(skills, episode.state[1]), False
    if not possible or rng.random() < _WANDER_RATE:
      act: Callable[[], np.ndarray | None] = experts.make_wanderer(env, rng)
      task, steps = "", int(rng.integers(*_WANDER_STEPS, endpoint=True))
    else:
      task = possible[int(rng.integers(len(possible)))]
      clumsy = rng.random() < settings.clumsy_attempt_rate
      aim_error = settings.aim_error if clumsy else 0.0
      act = experts.make_expert(task, env, rng, aim_error, settings.wrist_error)
      broken = rng.random() < settings.failed_attempt_rate
      steps = int(rng.integers(*_BREAK_OFF_STEPS, endpoint=True)) if broken else settings.max_steps
      counted = not (clumsy or broken)
    start, succeeded = episode.state[1], False
    while steps > 0 and len(episode) < frames:
      action = act()
      if action is None:
        break
      episode.step(experts.add_noise(action, rng, settings.action_noise))
      steps -= 1
      if task and not succeeded and task_rules.success(task, start, episode.state[1]):
        succeeded = True
        steps = min(steps, int(rng.integers(_LINGER_STEPS, endpoint=True)))
    if counted and (succeeded or len(episode) < frames):  # not those cut by the episode's end
      tried, successes = attempts.get(task, (0, 0))
      attempts[task] = (tried + 1, successes + succeeded)
  return {**episode.arrays(), "attempts": attempts}


def _attempt(
  env: TaughtEnvironment,
  rng: np.random.Generator,
  task: str,
  settings: Settings,
  aim_error: float = 0.0,
  wrist_error: float = 0.0,
  drawn: bool = True,
) -> tuple[dict[str, np.ndarray], bool]:
  """One attempt at a task, and whether success held at its end."""
  env.reset(*experts.sample_start(task, rng, env))
  episode = _Episode(env, settings.image_size, drawn)
  act = experts.make_expert(task, env, rng, aim_error, wrist_error)
  start, gripper = episode.state[1], episode.state[0][14]
  end, succeeded, resting = settings.max_steps, False, False
  while len(episode) < end:
    action = None if resting else act()
    if action is None:
      if not resting and not succeeded:
        end = min(end, len(episode) + _REST_STEPS)  # what was set in motion may still arrive
      resting, action = True, np.append(np.zeros(6), gripper)
    gripper = action[6]
    episode.step(experts.add_noise(action, rng, settings.action_noise))
    if not succeeded and task_rules.success(task, start, episode.state[1]):
      succeeded, end = True, len(episode) + SUCCESS_FRAMES
  arrays = episode.arrays()
  return arrays, bool(task_rules.success(task, start, arrays["scene_obs"][-1]))


def _record_demo(
  env: TaughtEnvironment, rng: np.random.Generator, task: str, settings: Settings
) -> dict[str, Any]:
  """One successful demo from a varied start, cut a few frames after success first holds.

  Failed attempts are counted but not kept. Raises RuntimeError: MAX_ATTEMPTS failures in a row.
  """
  for tried in range(1, MAX_ATTEMPTS + 1):
    arrays, succeeded = _attempt(env, rng, task, settings)
    if succeeded:
      return {**arrays, "attempts": {task: [tried, 1]}}
  raise RuntimeError(
    f"the scripted expert failed {MAX_ATTEMPTS} times in a row at {task}; is the "
    "simulator's scene changed, or action_noise too high?"
  )


def _record_failure(
  env: TaughtEnvironment, rng: np.random.Generator, task: str, settings: Settings
) -> dict[str, Any]:
  """One attempt that never succeeded, of a hand that gets clumsier until it fails, without `attempts`.

  Raises RuntimeError: MAX_ATTEMPTS successes in a row.
  """

  def failing(aim_error: float, drawn: bool) -> dict[str, np.ndarray] | None:
    arrays, _ = _attempt(env, rng, task, settings, aim_error, settings.wrist_error, drawn)
    succeeded = task_rules.success(task, arrays["scene_obs"][:1], arrays["scene_obs"]).any()
    return None if succeeded else arrays

  for tried in range(MAX_ATTEMPTS):
    aim_error, chance = settings.aim_error * (1 + tried / 10), rng.bit_generator.state
    arrays = failing(aim_error, drawn=False)
    if arrays is not None and draws_itself(env):  # most attempts succeed: pictures only of one that does not
      rng.bit_generator.state = chance
      arrays = failing(aim_error, drawn=True)
    if arrays is not None:
      return {**arrays, "attempts": {}}
  raise RuntimeError(f"{MAX_ATTEMPTS} clumsy attempts at {task} all succeeded; raise data.aim_error")


def record(env: TaughtEnvironment, job: Job, settings: Settings) -> dict[str, Any]:
  """Does one job. What comes out depends on job and settings only (PyBullet repeats itself to about 1e-3).

  Args:
    env: simulator to use; its state does not matter.
    job: what to record.
    settings: how.

  Returns:
    actions [T, 7], rel_actions, robot_obs, scene_obs, from CALVIN's simulator also rgb_static and rgb_gripper
    [T, S, S, 3]; `attempts` {task: [tried, succeeded]} of the attempts neither clumsy nor broken off. For a
    start state one row of robot_obs [1, 15] and scene_obs [1, 24] only.

  Raises:
    RuntimeError: the expert fails, or a clumsy one succeeds, MAX_ATTEMPTS times in a row.
  """
  names = list(registry.load_skills(env.name).SKILLS)
  task_number = names.index(job.task) if job.task else 0
  key = (_KINDS.index(job.kind), task_number, job.index)
  rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))
  if job.kind in ("play", "heldout_play"):
    total = settings.play_frames if job.kind == "play" else settings.heldout_play_frames
    frames = min(settings.play_episode_frames, total - job.index * settings.play_episode_frames)
    return _record_play(env, rng, frames, settings)
  if job.kind == "start":
    robot_obs, scene_obs = experts.sample_start(job.task, rng, env)
    return {"robot_obs": robot_obs[None], "scene_obs": scene_obs[None], "attempts": {}}
  if job.kind == "failed":
    return _record_failure(env, rng, job.task, settings)
  return _record_demo(env, rng, job.task, settings)
