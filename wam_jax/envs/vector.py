"""Many environments at once: physics in threads, pictures in batches."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence

import numpy as np

from wam_jax.envs import base
from wam_jax.host import machine


class VectorEnvironment:
  """`num` environments of one simulator, stepped and drawn together; a `base.VectorStepper`.

  Attributes:
    num: number of environments.
    environments: the single ones.
  """

  def __init__(
    self,
    environments: Sequence[base.Environment],
    renderer: base.Renderer | None,
    workers: int = 0,
    image_size: int = 64,
  ) -> None:
    """Takes the environments.

    Args:
      environments: of one simulator.
      renderer: draws their snapshots; None: they draw themselves.
      workers: threads for physics; 0: one per core; 1: none but the caller's.
      image_size: S, to which pictures that they draw themselves are brought.

    Raises:
      ValueError: no environments.
    """
    if not environments:
      raise ValueError("environments: expected at least 1, got none")
    self.num = len(environments)
    self.environments = list(environments)
    self._workers = min(workers or machine.available_cores(), self.num)
    self._pool = concurrent.futures.ThreadPoolExecutor(self._workers, "physics")
    self._renderer, self._image_size = renderer, image_size
    self._pictures: base.Pictures = {}

  def _for_rows(self, task: Callable[[int], None], indices: np.ndarray) -> None:
    """Calls task(i) for all indices, split among the threads."""

    def run_part(part: np.ndarray) -> None:
      for i in part:
        task(int(i))

    parts = np.array_split(indices, self._workers)
    list(map(run_part, parts) if self._workers == 1 else self._pool.map(run_part, parts))

  def _rows(self, name: str, array: np.ndarray, width: int | None = None) -> np.ndarray:
    array = np.asarray(array)
    shape = (self.num,) if width is None else (self.num, width)
    if array.shape != shape:
      raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    return array

  def _chosen(self, active: np.ndarray | None) -> np.ndarray:
    return np.arange(self.num) if active is None else np.flatnonzero(self._rows("active", active))

  def reset(self, starts: np.ndarray, tasks: Sequence[str], active: np.ndarray | None = None) -> None:
    """See `base.VectorStepper`; rows of those that are not active are not looked at."""
    starts = self._rows("starts", starts, np.shape(starts)[-1])
    self._rows("tasks", np.asarray(tasks))
    self._for_rows(lambda i: self.environments[i].reset(starts[i], tasks[i]), self._chosen(active))
    if active is None:
      self._pictures = {}

  def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> None:
    """See `base.VectorStepper`; rows of those that are not active are not looked at."""
    actions = self._rows("actions", actions, np.shape(actions)[-1])
    self._for_rows(lambda i: self.environments[i].step(actions[i]), self._chosen(active))

  def state(self) -> np.ndarray:
    """[n, state_size]."""
    return np.stack([environment.state() for environment in self.environments])

  def success(self) -> np.ndarray:
    """[n] bool."""
    return np.array([environment.success() for environment in self.environments])

  def snapshot(self) -> np.ndarray | None:
    """[n, W], or None."""
    snapshots = [environment.snapshot() for environment in self.environments]
    return None if snapshots[0] is None else np.stack(snapshots)  # type: ignore[arg-type]

  def _draw(self, rows: np.ndarray) -> base.Pictures:
    if self._renderer is not None:
      return self._renderer(np.stack([self.environments[i].snapshot() for i in rows]))
    drawn = [resized(self.environments[i].pictures(), self._image_size) for i in rows]
    return {camera: np.stack([pictures[camera] for pictures in drawn]) for camera in drawn[0]}

  def observe(self, active: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """States and pictures.

    Args:
      active: [n] bool, environments to draw; the others keep their last picture. None: all. The first call
        after a reset draws all.

    Returns:
      Each camera's pictures [n, S, S, 3] uint8, and 'robot_obs' [n, state_size].
    """
    if active is None or not self._pictures:
      self._pictures = self._draw(np.arange(self.num))
    elif len(drawn := self._chosen(active)):
      fresh = self._draw(drawn)
      # Copies, so that pictures handed out before stay as they are.
      self._pictures = {key: picture.copy() for key, picture in self._pictures.items()}
      for key, picture in fresh.items():
        self._pictures[key][drawn] = picture
    return {**self._pictures, "robot_obs": self.state()}


def make_vector(
  simulator: base.Simulator, num: int, workers: int = 0, image_size: int = 64
) -> base.VectorStepper:
  """`num` environments of a simulator.

  Args:
    simulator: of which.
    num: how many.
    workers: threads, or processes; 0: one per core.
    image_size: S [pixels] of their pictures.
  """
  if (own := simulator.make_vector(num, workers, image_size)) is not None:
    return own
  environments = [simulator.make() for _ in range(num)]
  renderer = simulator.make_renderer(image_size, workers)
  return VectorEnvironment(environments, renderer, workers if simulator.threads else 1, image_size)


def resized(pictures: base.Pictures | None, size: int) -> base.Pictures:
  """Pictures [H, W, 3], at least as large, as squares [S, S, 3] by area averaging."""
  from wam_jax.core.image import area_resize  # brings JAX along, which recordings of states do without

  return {camera: area_resize(picture, size, size) for camera, picture in (pictures or {}).items()}
