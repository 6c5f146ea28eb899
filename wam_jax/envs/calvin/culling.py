"""Leaves out of CALVIN's pictures what a camera cannot see: the same pixels in two thirds of the time.

PyBullet's own renderer works through every vertex of every mesh for every picture, and the arm has most of
them: about 11 of the 16 ms of the wrist camera's picture go to six links that it does not show. What is fully
transparent is skipped. So a link of the robot outside the camera's view is made transparent for that picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wam_jax.host.regular_files import read_text

_MARGIN = 0.02  # m: PyBullet draws links where they were up to one physics step ago, at up to 2 m/s
_DIRECTIONS = 256


def hull(vertices: np.ndarray) -> np.ndarray:
  """The few vertices [M, 3] that lie farthest in one of many directions, of [N, 3] in m.

  What is left out reaches over them by less than a hundredth of the mesh's radius.
  """
  i = np.arange(_DIRECTIONS) + 0.5
  height, turn = 1 - 2 * i / _DIRECTIONS, np.pi * (1 + 5**0.5) * i  # spread evenly: Fibonacci's lattice
  radius = np.sqrt(1 - height**2)
  directions = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], -1)
  return vertices[np.unique(np.argmax(vertices @ directions.T, axis=0))]


def out_of_view(points: np.ndarray, to_clip: np.ndarray, margin: float = _MARGIN) -> bool:
  """Whether a convex body lies wholly beyond one side of a camera's view, or behind the camera.

  Args:
    points: [N, 3] in m; the body is their hull, and whatever is less than `margin` away from it.
    to_clip: [4, 4], row vectors of homogeneous points to OpenGL's clip coordinates.
    margin: in m.
  """
  x, y, _, w = to_clip.T
  for side in (w + x, w - x, w + y, w - y, w):  # inside: points @ side[:3] + side[3] >= 0
    if (points @ side[:3] + side[3]).max() < -margin * np.linalg.norm(side[:3]):
      return True
  return False


class Culling:
  """Stands for the module `pybullet` in a camera of calvin_env, and hides links while it draws."""

  def __init__(self, bullet: Any, body: int) -> None:
    """Reads the meshes of a body's links; its base, simple shapes and links of several shapes stay."""
    self._bullet, self._body = bullet, body
    shapes: dict[int, list[Any]] = {}
    for shape in bullet.getVisualShapeData(body):
      shapes.setdefault(shape[1], []).append(shape)
    self._hulls: dict[int, np.ndarray] = {}
    self._colours: dict[int, Any] = {}
    self._hidden: set[int] = set()
    for link, (shape, *more) in shapes.items():
      path = shape[4].decode()
      if link < 0 or more or not path.endswith(".obj"):
        continue
      lines = read_text(path).splitlines()
      vertices = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], float)
      turn = np.reshape(bullet.getMatrixFromQuaternion(shape[6]), (3, 3))
      self._hulls[link] = hull(vertices * shape[3]) @ turn.T + shape[5]
      self._colours[link] = shape[7]

  def __getattr__(self, name: str) -> Any:
    return getattr(self._bullet, name)

  def getCameraImage(self, *, viewMatrix: Any, projectionMatrix: Any, **settings: Any) -> Any:
    """PyBullet's `getCameraImage`."""
    to_clip = np.reshape(viewMatrix, (4, 4)) @ np.reshape(projectionMatrix, (4, 4))
    self.hide(self._out_of_view(to_clip))
    return self._bullet.getCameraImage(viewMatrix=viewMatrix, projectionMatrix=projectionMatrix, **settings)

  def _out_of_view(self, to_clip: np.ndarray) -> set[int]:
    links, hidden = list(self._hulls), set()
    for link, state in zip(links, self._bullet.getLinkStates(self._body, links), strict=True):
      turn = np.reshape(self._bullet.getMatrixFromQuaternion(state[5]), (3, 3))
      if out_of_view(self._hulls[link] @ turn.T + state[4], to_clip):
        hidden.add(link)
    return hidden

  def hide(self, links: set[int]) -> None:
    """Shows all links but these."""
    for link in links ^ self._hidden:
      *colour, alpha = self._colours[link]
      rgba = [*colour, 0 if link in links else alpha]
      self._bullet.changeVisualShape(self._body, link, rgbaColor=rgba)
    self._hidden = links
