"""Records episodes of the scripted experts as snapshots and actions, without pictures.

Only of simulators that draw nothing but their present moment pictures are recorded too. Files and processes
are `recording_workers`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from wam_jax.embodiment import Embodiment
from wam_jax.envs.base import Act, Environment, Simulator
from wam_jax.envs.vector import resized

SUCCESS_FRAMES = 10  # frames kept after a demo's success first holds: the classifier's positives
MAX_ATTEMPTS = 50  # at one demo, before giving up
_WANDER_RATE = 0.25  # share of play in which the arm wanders instead of trying a skill
_WANDER_STEPS = (5, 20)
_HOLD_STEPS, _SWITCH_RATE = (2, 8), 0.3  # of smooth random actions, and of their binary numbers
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
  env: dict[str, Any]  # of config.env, what makes the simulator
  max_steps: int
  play_episode_frames: int
  play_frames: int
  action_noise: float
  failed_attempt_rate: float
  heldout_play_frames: int = 0
  clumsy_attempt_rate: float = 0.0
  aim_error: float = 0.0
  wrist_error: float = 0.0
  image_size: int = 64  # of pictures recorded here


class RecordingError(RuntimeError):
  """An episode could not be recorded; the text says why."""


class _Take:
  """Steps an environment from where it is and remembers every frame."""

  def __init__(self, env: Environment, image_size: int, drawn: bool = True):
    self._env, self._image_size, self._drawn = env, image_size, drawn
    self._rows: list[dict[str, Any]] = []

  def __len__(self) -> int:
    return len(self._rows)

  def step(self, action: np.ndarray) -> None:
    env = self._env
    row: dict[str, Any] = {"rel_actions": action, "robot_obs": env.state(), "success": env.success()}
    pictures = env.pictures() if self._drawn else None
    if pictures is not None:
      row |= resized(pictures, self._image_size)
    elif (snapshot := env.snapshot()) is not None:
      row["snapshot"] = snapshot
    env.step(action)
    self._rows.append(row | dict(env.extras(action)))

  def arrays(self) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in self._rows]) for name in self._rows[0]}


class _Recorder:
  """Records with one environment.

  Args:
    simulator: that `env` is of.
    env: its state does not matter.
    settings: how to record.
    rng: source of all that is random.
  """

  def __init__(
    self, simulator: Simulator, env: Environment, settings: Settings, rng: np.random.Generator
  ) -> None:
    self.robot, self.env, self.settings, self.rng = simulator.embodiment, env, settings, rng

  def _noisy(self, action: np.ndarray) -> np.ndarray:
    return add_noise(action, self.rng, self.settings.action_noise, self.robot)

  def play(self, frames: int) -> dict[str, Any]:
    """Task-free play: skills with the hand turned, some clumsy or broken off, and wandering.

    As many episodes as it takes: one ends only where the environment does.
    """
    parts: list[dict[str, np.ndarray]] = []
    attempts: dict[str, tuple[int, int]] = {}
    missing = frames
    while missing > 0:
      take = self._play_episode(missing, attempts)
      missing -= len(take)
      parts.append(take.arrays())
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lengths = np.array([len(part["rel_actions"]) for part in parts])
    return {**arrays, "lengths": lengths, "attempts": attempts}

  def _play_episode(self, frames: int, attempts: dict[str, tuple[int, int]]) -> _Take:
    env, rng, settings = self.env, self.rng, self.settings
    env.reset(env.sample_start("", rng))
    take = _Take(env, settings.image_size)
    while len(take) < frames and not (env.ended and len(take)):
      possible, counted = env.possible(), False
      if not possible or rng.random() < _WANDER_RATE:
        act: Act = env.wander(rng) or _Wanderer(self.robot, rng)
        task, steps = "", int(rng.integers(*_WANDER_STEPS, endpoint=True))
      else:
        task = possible[int(rng.integers(len(possible)))]
        env.begin(task)
        clumsy = rng.random() < settings.clumsy_attempt_rate
        aim_error = settings.aim_error if clumsy else 0.0
        act = env.expert(task, rng, aim_error, settings.wrist_error)
        broken = rng.random() < settings.failed_attempt_rate
        steps = int(rng.integers(*_BREAK_OFF_STEPS, endpoint=True)) if broken else settings.max_steps
        counted = not (clumsy or broken)
      succeeded = False
      while steps > 0 and len(take) < frames and not (env.ended and len(take)):
        action = act()
        if action is None:
          break
        take.step(self._noisy(action))
        steps -= 1
        if task and not succeeded and env.success():
          succeeded = True
          steps = min(steps, int(rng.integers(_LINGER_STEPS, endpoint=True)))
      if counted and (succeeded or len(take) < frames):  # not those cut by the episode's end
        tried, successes = attempts.get(task, (0, 0))
        attempts[task] = (tried + 1, successes + succeeded)
    return take

  def _attempt(
    self, task: str, aim_error: float = 0.0, wrist_error: float = 0.0, drawn: bool = True
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One attempt at a task, and at which of its frames success held."""
    env, settings = self.env, self.settings
    start = env.sample_start(task, self.rng)
    env.reset(start, task)
    take = _Take(env, settings.image_size, drawn)
    act = env.expert(task, self.rng, aim_error, wrist_error)
    binary, rest = self.robot.binary, self.robot.rest_action.astype(np.float64)
    end, succeeded, resting = settings.max_steps, False, False
    while len(take) < end:
      action = None if resting or env.ended else act()
      if action is None:
        if not resting and not succeeded:
          end = min(end, len(take) + _REST_STEPS)  # what was set in motion may still arrive
        resting, action = True, rest
      rest = np.where(binary, action, rest)
      take.step(self._noisy(action))
      if not succeeded and env.success():
        succeeded, end = True, len(take) + SUCCESS_FRAMES
    arrays = take.arrays()
    return {**arrays, "start": start}, arrays["success"]

  def demo(self, task: str) -> dict[str, Any]:
    """One successful demo from a varied start, cut a few frames after success first holds.

    Failed attempts are counted but not kept. Raises RecordingError: MAX_ATTEMPTS failures in a row.
    """
    for tried in range(1, MAX_ATTEMPTS + 1):
      arrays, success = self._attempt(task)
      if success[-1]:
        return {**arrays, "attempts": {task: [tried, 1]}}
    raise RecordingError(
      f"the scripted expert failed {MAX_ATTEMPTS} times in a row at {task}; is the "
      "simulator's scene changed, env.max_steps too low, or data.action_noise too high?"
    )

  def failure(self, task: str) -> dict[str, Any]:
    """One attempt that never succeeded, of a hand that gets clumsier until it fails, without `attempts`.

    Raises RecordingError: MAX_ATTEMPTS successes in a row.
    """
    settings, rng = self.settings, self.rng

    def failing(aim_error: float, drawn: bool) -> dict[str, np.ndarray] | None:
      arrays, success = self._attempt(task, aim_error, settings.wrist_error, drawn)
      return None if success.any() else arrays

    for tried in range(MAX_ATTEMPTS):
      aim_error, chance = settings.aim_error * (1 + tried / 10), rng.bit_generator.state
      arrays = failing(aim_error, drawn=False)
      if arrays is not None and self.env.pictures() is not None:  # taken only of an attempt that fails
        rng.bit_generator.state = chance
        arrays = failing(aim_error, drawn=True)
      if arrays is not None:
        return {**arrays, "attempts": {}}
    raise RecordingError(f"{MAX_ATTEMPTS} clumsy attempts at {task} all succeeded; raise data.aim_error")


def add_noise(action: np.ndarray, rng: np.random.Generator, std: float, robot: Embodiment) -> np.ndarray:
  """Gaussian noise on an action's motion.

  Args:
    action: [A].
    rng: source of randomness.
    std: standard deviation in action units.
    robot: whose action it is.

  Returns:
    [A], continuous numbers clipped to [-1, 1], binary ones unchanged.
  """
  noisy, moved = np.array(action, np.float64), ~robot.binary
  noisy[moved] = np.clip(noisy[moved] + rng.normal(0.0, std, moved.sum()), -1.0, 1.0)
  return noisy


class _Wanderer:
  """Smooth random actions: each holds for a while; binary numbers seldom change."""

  def __init__(self, robot: Embodiment, rng: np.random.Generator):
    self._robot, self._rng = robot, rng
    self._action, self._steps = robot.rest_action.astype(np.float64), 0

  def __call__(self) -> np.ndarray:
    binary, rng, shape = self._robot.binary, self._rng, self._action.shape
    if not self._steps:
      drawn = rng.uniform(-1.0, 1.0, shape)
      kept = binary & (rng.random(shape) > _SWITCH_RATE)
      drawn = np.where(binary, np.where(drawn > 0, 1.0, -1.0), drawn)
      self._action, self._steps = (
        np.where(kept, self._action, drawn),
        int(rng.integers(*_HOLD_STEPS, endpoint=True)),
      )
    self._steps -= 1
    return np.array(self._action)


def record(simulator: Simulator, env: Environment, job: Job, settings: Settings) -> dict[str, Any]:
  """Does one job. What comes out depends on job and settings only (PyBullet repeats itself to about 1e-3).

  Args:
    simulator: that `env` is of.
    env: to use; its state does not matter.
    job: what to record.
    settings: how.

  Returns:
    rel_actions [T, A], robot_obs [T, state_size], success [T]; snapshot [T, W] or each camera's pictures
    [T, S, S, 3]; what else `Environment.extras` tells; `start` [W], of a task; `lengths` of several episodes,
    of play; `attempts` {task: [tried, succeeded]} of the attempts neither clumsy nor broken off. For a start
    only `start` and no attempts.

  Raises:
    RecordingError: the expert fails, or a clumsy one succeeds, MAX_ATTEMPTS times in a row.
  """
  task_number = simulator.tasks.index(job.task) if job.task else 0
  key = (_KINDS.index(job.kind), task_number, job.index)
  rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))
  recorder = _Recorder(simulator, env, settings, rng)
  if job.kind in ("play", "heldout_play"):
    total = settings.play_frames if job.kind == "play" else settings.heldout_play_frames
    return recorder.play(min(settings.play_episode_frames, total - job.index * settings.play_episode_frames))
  if job.kind == "start":
    return {"start": env.sample_start(job.task, rng), "attempts": {}}
  if job.kind == "failed":
    return recorder.failure(job.task)
  return recorder.demo(job.task)
