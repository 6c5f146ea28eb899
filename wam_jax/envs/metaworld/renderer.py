"""Draws snapshots of Meta-World's scenes: with MuJoCo's rays in threads, or with its own renderer."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
from typing import Any

import numpy as np

from wam_jax.envs.base import Pictures
from wam_jax.envs.metaworld import scenes
from wam_jax.envs.metaworld.scenes import NAMES, TASKS
from wam_jax.envs.mujoco_gl import GlRenderer
from wam_jax.envs.mujoco_rays import RayRenderer
from wam_jax.envs.physics import mujoco
from wam_jax.host import machine

_CORNER2 = (0.75, 0.075, 0.7)  # m, nearer than in the package: Seo et al. 2022, "Masked World Models"


@functools.cache
def _scene(file: str) -> Any:
  """A scene's model, as it is drawn."""
  from metaworld.asset_path_utils import full_V3_path_for

  model = mujoco.MjModel.from_xml_path(full_V3_path_for(f"sawyer_xyz/{file}.xml"))
  model.camera("corner2").pos = _CORNER2
  model.light_castshadow[:] = False  # of one light in three, for as much time again
  return model


class _Stage:
  """One thread's copies of the scenes."""

  def __init__(self, image_size: int, draws: type[RayRenderer] | type[GlRenderer]):
    self._size, self._draws = image_size, draws
    self._scenes: dict[str, tuple[Any, Any, RayRenderer | GlRenderer]] = {}

  def draw(self, snapshot: np.ndarray) -> list[np.ndarray]:
    """A picture [S, S, 3] of each camera."""
    parts = scenes.split(scenes.check_snapshot(snapshot))
    task = TASKS[NAMES[int(parts["task"][0])]]
    if task.scene not in self._scenes:
      model = copy.copy(_scene(task.scene))
      self._scenes[task.scene] = model, mujoco.MjData(model), self._draws(model, self._size, self._size)
    model, data, render = self._scenes[task.scene]
    model.body(task.furniture).pos = parts["place"]
    data.qpos[:], data.mocap_pos[0] = parts["qpos"], parts["target"]
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    return [render(data, camera) for camera in scenes.SAWYER.camera_names]


class MetaWorldRenderer:
  """A `base.Renderer`."""

  def __init__(self, image_size: int, workers: int = 0, renderer: str = "rays"):
    """Sets up.

    Args:
      image_size: S [pixels].
      workers: threads; 0: one per core. OpenGL draws in one.
      renderer: rays or gl.

    Raises:
      ValueError: a number out of range. Drawing raises NotOffered where OpenGL does not work.
    """
    if image_size < 1 or workers < 0:
      raise ValueError(f"image_size must be above 0 and workers not below, not {image_size} and {workers}")
    draws, workers = (GlRenderer, 1) if renderer == "gl" else (RayRenderer, workers)
    self._stages = [_Stage(image_size, draws) for _ in range(workers or machine.available_cores())]
    self._pool = concurrent.futures.ThreadPoolExecutor(len(self._stages), "pictures")

  def __call__(self, snapshots: np.ndarray) -> Pictures:
    """See `base.Renderer`."""

    def draw(stage: _Stage, part: np.ndarray) -> list[list[np.ndarray]]:
      return [stage.draw(snapshot) for snapshot in part]

    parts = np.array_split(snapshots, len(self._stages))
    drawn = itertools.chain.from_iterable(self._pool.map(draw, self._stages, parts))
    return {
      camera: np.stack(pictures)
      for camera, pictures in zip(scenes.SAWYER.camera_names, zip(*drawn, strict=True), strict=True)
    }
