"""What a simulator must offer, and nothing about any one of them.

A simulator is two classes. `Simulator` says what robot it has and which tasks it knows, and is cheap to make:
plans and checks ask it. Its `make` gives an `Environment`, which moves. Both have few methods that must be
written, and others that add what it can do besides.

- Written always: `Simulator.name`, `.embodiment`, `.tasks`, `.make`; `Environment.reset`, `.step`, `.state`,
  `.success`, `.pictures`. Policies are evaluated with them, measured during PPO and improved by `online_ppo`.
- `Simulator.experts` and `Environment.expert`: stage `collect` records their demos, and failed takes.
- `Environment.possible`, `.begin` and `.wander`: play that tries one task after the other.
- `Environment.sample_start`: other starts than seeds.
- `Environment.snapshot` and `Simulator.make_renderer` instead of `.pictures`: states are recorded, and drawn
  later in batches, which a batched renderer does many times as fast.

A start is an array [W] that the simulator understands: a state to restore or, where none can be restored, a
seed. The same start and the same actions must give the same episode: those without `snapshot` are shown by
running them again.
"""

from __future__ import annotations

import abc
import contextlib
import os
import pathlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from wam_jax.embodiment import Embodiment

Act = Callable[[], "np.ndarray | None"]  # the next action [A] in [-1, 1]; None: it is over
Pictures = dict[str, np.ndarray]


class NotOffered(NotImplementedError):
  """The simulator has no such thing, or its code fails; the text says what, and what to do."""


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
  """Around code that is not ours: whatever it raises becomes NotOffered, with the user's own line.

  A change of folder is undone: a run's own may be relative.
  """
  here = os.getcwd()
  try:
    try:
      yield
    finally:
      if os.getcwd() != here:
        os.chdir(here)
  except NotOffered:
    raise
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    others = (str(pathlib.Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"], "<")
    own = [f for f in frames if not f.filename.startswith(others) and "site-packages" not in f.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    raise NotOffered(f"{what} raised {type(error).__name__}: {error}{place}") from error


class Environment(abc.ABC):
  """One simulation.

  Attributes:
    ended: the episode cannot go on. `step` then changes nothing, until `reset`.
  """

  ended: bool = False

  @abc.abstractmethod
  def reset(self, start: np.ndarray, task: str = "") -> None:
    """Begins an episode.

    Args:
      start: [W], from `sample_start`, `snapshot` or a dataset.
      task: one of the simulator's, which `success` is about; empty: play, with whatever task it likes.

    Raises:
      ValueError: it cannot start there, or does not know the task.
    """

  @abc.abstractmethod
  def step(self, action: np.ndarray) -> None:
    """Executes an action [A] in [-1, 1], its binary numbers exactly -1 or +1, for 1 / control_hz seconds."""

  @abc.abstractmethod
  def state(self) -> np.ndarray:
    """[state_size] float64, what the robot reports now."""

  @abc.abstractmethod
  def success(self) -> bool:
    """Whether the task is done now, relative to `reset` or `begin`; false without a task."""

  def pictures(self) -> Pictures | None:
    """What each camera sees now, [H, W, 3] uint8. None: `snapshot` and a renderer are there instead."""
    return None

  def snapshot(self) -> np.ndarray | None:
    """[W] float64, all of the state: `reset` starts there, a renderer draws it. None: only seeds start it."""
    return None

  def sample_start(self, task: str, rng: np.random.Generator) -> np.ndarray:
    """A random start [W] of a task (empty: of play); where the simulation stands afterwards is open."""
    del task
    return np.array([rng.integers(2**31)], np.float64)

  def expert(
    self, task: str, rng: np.random.Generator, aim_error: float = 0.0, wrist_error: float = 0.0
  ) -> Act:
    """A scripted controller of a task, from wherever the simulation is now.

    Args:
      task: of `Simulator.experts`.
      rng: source of the small variation between demonstrations.
      aim_error: standard deviation, in its own unit, of one displacement of the whole attempt.
      wrist_error: standard deviation [rad] of one turn of the hand that lasts the whole attempt.

    Raises:
      NotOffered: it has none.
    """
    raise NotOffered(f"there is no scripted expert of {task}")

  def possible(self) -> Sequence[str]:
    """Tasks with an expert that are not done and can be begun now; `begin` takes them."""
    return ()

  def begin(self, task: str) -> None:  # noqa: B027
    """From now on `success` is about this task, one of `possible`."""

  def wander(self, rng: np.random.Generator) -> Act | None:
    """Aimless motion for play, which never ends. None: smooth random actions do."""
    return None

  def extras(self, action: np.ndarray) -> Mapping[str, np.ndarray]:
    """What else a dataset holds of the frame at which `action` was taken, asked for after it."""
    del action
    return {}


class Renderer(Protocol):
  """Draws all cameras of many states at once."""

  def __call__(self, snapshots: np.ndarray) -> Pictures:
    """[N, W] of `Environment.snapshot` -> camera -> [N, S, S, 3] uint8."""
    ...


class VectorStepper(Protocol):
  """`num` environments, stepped and drawn together. `active` [n] bool: only these; None: all."""

  num: int

  def reset(self, starts: np.ndarray, tasks: Sequence[str], active: np.ndarray | None = None) -> None:
    """Begins an episode in each: starts [n, W], n tasks."""
    ...

  def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
    """Executes actions [n, A]."""
    ...

  def observe(self, active: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Each camera's pictures [n, S, S, 3] uint8 and 'robot_obs' [n, state_size]. Not active: old pictures."""
    ...

  def state(self) -> np.ndarray:
    """[n, state_size] float64."""
    ...

  def success(self) -> np.ndarray:
    """[n] bool, whether each one's task is done now."""
    ...

  def snapshot(self) -> np.ndarray | None:
    """[n, W], or None."""
    ...


class Simulator(abc.ABC):
  """What there is to know of a simulator before one is started.

  Attributes:
    name: as in `env.name`.
    embodiment: of its robot. Cameras of a renderer are square, of the size asked for.
    tasks: that it knows. A task's place is part of the seed of its recordings.
    experts: those of them with a scripted expert.
    threads: whether environments may be stepped in other threads than they were made in.
    largest_picture: shortest side [pixels] of what its cameras see; None: any size is drawn.
    settings: `config.env`, or what of it makes a simulator.
  """

  name: str
  embodiment: Embodiment
  tasks: tuple[str, ...]
  experts: tuple[str, ...] = ()
  threads: bool = False
  largest_picture: int | None = None

  def __init__(self, settings: Mapping[str, Any]):
    """Args: settings: as above. Starts nothing that is slow to start."""
    self.settings = settings

  @abc.abstractmethod
  def make(self) -> Environment:
    """One environment; each call a new one. Raises NotOffered or ValueError where there cannot be one."""

  def missing(self) -> str:
    """What to do about what it lacks on this machine, such as an install command; empty: nothing."""
    return ""

  def make_renderer(self, image_size: int, workers: int = 0) -> Renderer | None:
    """Draws snapshots at this size [pixels]; None: environments draw themselves, as they go.

    Raises ValueError: a number out of range.
    """
    del image_size, workers
    return None

  def make_vector(self, num: int, workers: int, image_size: int) -> VectorStepper | None:
    """`num` environments at once, where it knows better than `vector.make_vector`."""
    del num, workers, image_size
    return None

  def describe(self) -> dict[str, Any]:
    """For `results.json`: its name, and what to find the very same one by."""
    return {"name": self.name}
