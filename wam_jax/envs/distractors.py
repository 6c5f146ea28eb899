"""Distractors over a simulator's pictures: coloured patches that wander, and light that flickers.

What they are is part of the state, so that pictures remain a function of it: a snapshot is the simulator's,
followed by the distractors' numbers. Physics, tasks and experts know nothing of them: with and without, the
same seeds give the same episodes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.envs import base

SPREAD = 0.25  # standard deviation of a patch's place around the middle, in sides of the picture
LIGHT_KEPT = 0.5  # of the light's deviation, from one step to the next
OPACITY = 0.85
# None is that of a lamp that is lit.
COLOURS = np.array(
  [[230, 60, 200], [40, 200, 210], [240, 150, 30], [250, 170, 180], [130, 70, 230], [120, 20, 60]], np.float32
)


def patches(level: int) -> int:
  """Patches over each camera."""
  return 2 * level


def side(level: int) -> float:
  """Side of a patch, in sides of the picture."""
  return 0.1 + 0.02 * level


def kept(level: int) -> float:
  """Share of a patch's displacement from the middle that is kept in a step: the less, the faster it moves."""
  return 1.0 - 0.05 * level


def flicker(level: int) -> float:
  """Standard deviation of the brightness, as a share of it."""
  return 0.06 * level


class Distractors:
  """The distractors of one episode: an AR(1) process with a standard normal distribution at each step.

  Its noise is a function of the episode's seed and the step, so that a restored state goes on as before.

  Attributes:
    numbers: [N] float64: of each camera and patch its horizontal and vertical displacement, the light, and
      the seed and the step.
  """

  def __init__(self, level: int, cameras: int):
    """Args: level: how much of everything there is, at least 1. cameras: of the robot."""
    moving = 2 * patches(level) * cameras
    self._kept = np.append(np.full(moving, kept(level)), LIGHT_KEPT)
    self.numbers = np.zeros(moving + 3)

  def begin(self, seed: int) -> None:
    """An episode's first step."""
    self.numbers[-2:] = seed, 0
    self.numbers[:-2] = self._noise()

  def step(self) -> None:
    """One control step."""
    self.numbers = self.numbers.copy()  # snapshots may hold the former
    self.numbers[-1] += 1
    self.numbers[:-2] = self._kept * self.numbers[:-2] + np.sqrt(1 - self._kept**2) * self._noise()

  def _noise(self) -> np.ndarray:
    return np.random.default_rng([int(n) for n in self.numbers[-2:]]).standard_normal(len(self._kept))


def draw_over(pictures: np.ndarray, displacements: np.ndarray, light: np.ndarray, level: int) -> np.ndarray:
  """Puts patches and light over pictures of one camera.

  Args:
    pictures: [N, S, S, 3] uint8.
    displacements: [N, P, 2] horizontal and vertical, standard normal.
    light: [N] standard normal.
    level: of the distractors.

  Returns:
    [N, S, S, 3] uint8. A picture depends on nothing but its own numbers.
  """
  size, half = pictures.shape[1], side(level) / 2
  middles = np.arange(size, dtype=np.float32) + 0.5
  places = ((0.5 + SPREAD * displacements) * size).astype(np.float32)  # [N, P, 2] in pixels
  # How much of each column and row of pixels a patch covers: edges lie between pixels too.
  covers = np.clip(half * size + 0.5 - np.abs(middles - places[..., None]), 0.0, 1.0)  # [N, P, 2, S]
  drawn = pictures.astype(np.float32)
  for i in range(places.shape[1]):
    share = OPACITY * (covers[:, i, 1, :, None] * covers[:, i, 0, None, :])[..., None]
    drawn += share * (COLOURS[i % len(COLOURS)] - drawn)
  drawn *= np.maximum(1.0 + flicker(level) * light, 0.0).astype(np.float32)[:, None, None, None]
  return np.rint(drawn).clip(0, 255).astype(np.uint8)


class DistractedEnvironment(base.Environment):
  """An environment whose snapshots hold distractors too."""

  def __init__(self, plain: base.Environment, level: int, cameras: int):
    """Takes an environment over, which has snapshots."""
    self._plain, self._level, self._cameras = plain, level, cameras
    self._distractors = Distractors(level, cameras)

  @property
  def ended(self) -> bool:  # type: ignore[override]
    """See `base.Environment`."""
    return self._plain.ended

  def reset(self, start: np.ndarray, task: str = "") -> None:
    """See `base.Environment`."""
    start = np.asarray(start, np.float64)
    width = len(self._snapshot()) + len(self._distractors.numbers)
    if start.shape != (width,):
      raise ValueError(
        f"start: expected shape [{width}], a state with distractors of level {self._level}, "
        f"got {list(start.shape)}; was it recorded with another env.distractors?"
      )
    state, numbers = np.split(start, [width - len(self._distractors.numbers)])
    if not (np.isfinite(numbers).all() and (numbers[-2:] >= 0).all() and (numbers[-2:] % 1 == 0).all()):
      raise ValueError("start: distractors must be finite, their seed and step whole numbers of at least 0")
    self._plain.reset(state, task)
    self._distractors.numbers = numbers.copy()

  def _snapshot(self) -> np.ndarray:
    snapshot = self._plain.snapshot()
    if snapshot is None:
      raise base.NotOffered("distractors are part of a state that can be restored; there is none")
    return snapshot

  def step(self, action: np.ndarray) -> None:
    """See `base.Environment`."""
    self._plain.step(action)
    self._distractors.step()

  def state(self) -> np.ndarray:
    """See `base.Environment`."""
    return self._plain.state()

  def success(self) -> bool:
    """See `base.Environment`."""
    return self._plain.success()

  def snapshot(self) -> np.ndarray:
    """The plain one, followed by the distractors' numbers."""
    return np.concatenate([self._snapshot(), self._distractors.numbers])

  def sample_start(self, task: str, rng: np.random.Generator) -> np.ndarray:
    """A start of the plain environment, whose state is also the distractors' seed: `rng` goes on as there."""
    start = self._plain.sample_start(task, rng)
    fresh = Distractors(self._level, self._cameras)
    fresh.begin(zlib.crc32(np.ascontiguousarray(start, np.float64).tobytes()))
    return np.concatenate([start, fresh.numbers])

  def expert(
    self, task: str, rng: np.random.Generator, aim_error: float = 0.0, wrist_error: float = 0.0
  ) -> base.Act:
    """See `base.Environment`."""
    return self._plain.expert(task, rng, aim_error, wrist_error)

  def possible(self) -> Sequence[str]:
    """See `base.Environment`."""
    return self._plain.possible()

  def begin(self, task: str) -> None:
    """See `base.Environment`."""
    self._plain.begin(task)

  def wander(self, rng: np.random.Generator) -> base.Act | None:
    """See `base.Environment`."""
    return self._plain.wander(rng)

  def extras(self, action: np.ndarray) -> Mapping[str, np.ndarray]:
    """See `base.Environment`."""
    return self._plain.extras(action)


class DistractedSimulator(base.Simulator):
  """A simulator with distractors over its pictures, which a renderer draws from snapshots."""

  def __init__(self, plain: base.Simulator, level: int):
    """Args: plain: without them. level: at least 1."""
    super().__init__(plain.settings)
    self._plain, self._level = plain, level
    self.name, self.embodiment, self.tasks = plain.name, plain.embodiment, plain.tasks
    self.experts, self.threads, self.largest_picture = plain.experts, plain.threads, plain.largest_picture

  def make(self) -> DistractedEnvironment:
    """See `base.Simulator`."""
    return DistractedEnvironment(self._plain.make(), self._level, len(self.embodiment.camera_names))

  def missing(self) -> str:
    """See `base.Simulator`."""
    return self._plain.missing()

  def make_renderer(self, image_size: int, workers: int = 0) -> base.Renderer:
    """See `base.Simulator`. Raises base.NotOffered: the plain one has none."""
    plain, level = self._plain.make_renderer(image_size, workers), self._level
    if plain is None:
      raise base.NotOffered(f"distractors are drawn over what a renderer drew; {self.name} has none")
    cameras = len(self.embodiment.camera_names)
    shape = (-1, cameras, patches(level), 2)
    moving = math.prod(shape[1:])

    def draw(snapshots: np.ndarray) -> base.Pictures:
      states, displacements, light, _ = np.split(snapshots, [-3 - moving, -3, -2], -1)
      pictures = plain(states)
      displacements = displacements.reshape(shape)
      return {
        camera: draw_over(pictures[camera], displacements[:, i], light[:, 0], level)
        for i, camera in enumerate(self.embodiment.camera_names)
      }

    return draw

  def describe(self) -> dict[str, Any]:
    """With the level."""
    return self._plain.describe() | {"distractors": self._level}
