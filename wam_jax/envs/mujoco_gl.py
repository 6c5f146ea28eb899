"""Pictures by MuJoCo's own renderer, where OpenGL works."""

from __future__ import annotations

import os
import sys

import numpy as np

from wam_jax.envs.base import NotOffered
from wam_jax.envs.physics import mujoco

HOW_TO = "set MUJOCO_GL to egl or osmesa, if the machine has one of them, or let rays draw"


class GlRenderer:
  """Draws what a camera sees, in the thread in which it was made.

  Sites are not drawn: they show where a task's goal is.
  """

  def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
    """Takes a model.

    Args:
      model: any.
      height: of pictures in pixels.
      width: of pictures in pixels.

    Raises:
      NotOffered: OpenGL does not work here.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    platform = os.environ.get("MUJOCO_GL", "").lower()
    if sys.platform == "linux" and platform not in ("egl", "osmesa") and not screen:
      # MuJoCo would end the process at the second try.
      raise NotOffered(f"MuJoCo's own renderer does not work here: there is no screen; {HOW_TO}")
    try:
      self._renderer = mujoco.Renderer(model, height, width)
    except Exception as error:  # PyOpenGL fails in many ways
      raise NotOffered(f"MuJoCo's own renderer does not work here: {error}; {HOW_TO}") from error
    self._options = mujoco.MjvOption()
    self._options.sitegroup[:] = 0

  def __call__(self, data: mujoco.MjData, camera: str | None = None) -> np.ndarray:
    """One picture [height, width, 3] uint8, as `mujoco_rays.RayRenderer` gives it."""
    self._renderer.update_scene(data, -1 if camera is None else camera, self._options)
    return np.array(self._renderer.render())


def works() -> bool:
  """Whether OpenGL does, as MUJOCO_GL has it."""
  try:
    GlRenderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
  except NotOffered:
    return False
  return True
