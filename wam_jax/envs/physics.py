"""MuJoCo, of which only the physics is used: also where MUJOCO_GL names a renderer that does not work here.

MuJoCo tries that renderer when it is imported, and PyOpenGL fails in many ways.
"""

from __future__ import annotations

import os

try:
  import mujoco
except Exception:
  _renderer = os.environ.get("MUJOCO_GL")
  if _renderer is None:
    raise
  os.environ["MUJOCO_GL"] = "disabled"
  try:
    import mujoco
  finally:
    os.environ["MUJOCO_GL"] = _renderer

__all__ = ["mujoco"]
