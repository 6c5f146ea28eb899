"""Leaves out of CALVIN's pictures what need not be drawn: the same pixels in half of the time.

PyBullet's own renderer works through every vertex of every mesh for every picture, and skips what is fully
transparent. The arm has most of the vertices: about 11 of the 16 ms of the wrist camera's picture go to six
links that it does not show. So a link of the robot outside a camera's view is transparent for that picture.
Floor and table are drawn once for the camera that never moves, and everything else before them: 8 of 22 ms.
Where parts lie flush one pixel in millions may show the other of the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from wam_jax.host.regular_files import read_text

_MARGIN = 0.02  # m: PyBullet draws links where they were up to one physics step ago, at up to 2 m/s
_DIRECTIONS = 256
_NEAR = (
  2.0  # m from the fixed camera, which no arm comes within 3 m of. With its own 1 cm depths hardly differ
)


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


def _with_near_plane(projection: Any) -> list[float]:
  """OpenGL's projection matrix [16], column by column, with its near plane at _NEAR."""
  out = list(projection)
  far = out[14] / (out[10] + 1)
  out[10], out[14] = -(far + _NEAR) / (far - _NEAR), -2 * far * _NEAR / (far - _NEAR)
  return out


def nearer(picture: Any, backdrop: Any) -> Any:
  """Of two pictures by the same camera, at each pixel the one that shows something nearer; else `picture`'s.

  Args:
    picture, backdrop: as `getCameraImage` gives them: width, height, then colour, depth and the object there.
  """
  behind = backdrop[3] < picture[3]
  colour = np.where(behind[..., None], backdrop[2], picture[2])
  return *picture[:2], colour, *(np.where(behind, backdrop[i], picture[i]) for i in (3, 4))


class Culling:
  """Stands for the module `pybullet` in the cameras of calvin_env, and hides parts while it draws.

  A part is a body's link, (body, link); link -1 is the body's base.
  """

  def __init__(self, bullet: Any, robot: int, fixed: Any = None) -> None:
    """Reads the meshes of the robot's links, and which bases can never move.

    Parts of several shapes stay as they are; so do the robot's base and simple shapes, which cost little.

    Args:
      bullet: the module.
      robot: its body.
      fixed: viewMatrix and projectionMatrix of a camera that never moves.
    """
    self._bullet, self._robot = bullet, robot
    self._fixed = None if fixed is None else np.concatenate(fixed)
    self._backdrop: Any = None
    self._hulls: dict[int, np.ndarray] = {}
    self._colours: dict[tuple[int, int], Any] = {}
    self._hidden: set[tuple[int, int]] = set()
    shapes: dict[tuple[int, int], list[Any]] = {}
    for shape in self._shapes():
      shapes.setdefault(shape[:2], []).append(shape)
    single = {part: found[0] for part, found in shapes.items() if len(found) == 1}
    for (body, link), shape in single.items():
      path = shape[4].decode()
      if body != robot or link < 0 or not path.endswith(".obj"):
        continue
      lines = read_text(path).splitlines()
      vertices = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], float)
      turn = np.reshape(bullet.getMatrixFromQuaternion(shape[6]), (3, 3))
      self._hulls[link] = hull(vertices * shape[3]) @ turn.T + shape[5]
      self._colours[body, link] = shape[7]
    # PyBullet's mass of a base that cannot move is 0.
    self._scenery = {p for p in single if p[1] < 0 and p[0] != robot and not bullet.getDynamicsInfo(*p)[0]}
    self._colours |= {part: single[part][7] for part in self._scenery}

  def __getattr__(self, name: str) -> Any:
    return getattr(self._bullet, name)

  def _shapes(self) -> list[Any]:
    """All that is drawn: tuples that begin with body and link, colour in place 7."""
    bodies = [self._bullet.getBodyUniqueId(i) for i in range(self._bullet.getNumBodies())]
    return [shape for body in bodies for shape in self._bullet.getVisualShapeData(body)]

  def getCameraImage(self, *, viewMatrix: Any, projectionMatrix: Any, **settings: Any) -> Any:
    """PyBullet's `getCameraImage`; depths of the fixed camera are those of a near plane at 2 m."""
    draw = functools.partial(self._bullet.getCameraImage, viewMatrix=viewMatrix, **settings)
    to_clip = np.reshape(viewMatrix, (4, 4)) @ np.reshape(projectionMatrix, (4, 4))
    out_of_view = self._out_of_view(to_clip)
    if self._fixed is None or not np.array_equal(self._fixed, [*viewMatrix, *projectionMatrix]):
      self.hide(out_of_view)
      return draw(projectionMatrix=projectionMatrix)
    draw_exactly = functools.partial(draw, projectionMatrix=_with_near_plane(projectionMatrix))
    if self._backdrop is None:
      self._backdrop = self._draw_scenery(draw_exactly)
    self.hide(out_of_view | self._scenery)
    return nearer(draw_exactly(), self._backdrop)

  def _draw_scenery(self, draw: Callable[[], Any]) -> Any:
    """A picture of nothing but what can never move."""
    self.hide(set())
    others = [shape for shape in self._shapes() if shape[:2] not in self._scenery]
    for body, link, *_ in others:
      self._bullet.changeVisualShape(body, link, rgbaColor=(0, 0, 0, 0))
    picture = draw()
    for shape in others:
      self._bullet.changeVisualShape(*shape[:2], rgbaColor=shape[7])
    return picture

  def _out_of_view(self, to_clip: np.ndarray) -> set[tuple[int, int]]:
    links, found = list(self._hulls), set()
    for link, state in zip(links, self._bullet.getLinkStates(self._robot, links), strict=True):
      turn = np.reshape(self._bullet.getMatrixFromQuaternion(state[5]), (3, 3))
      if out_of_view(self._hulls[link] @ turn.T + state[4], to_clip):
        found.add((self._robot, link))
    return found

  def hide(self, parts: set[tuple[int, int]]) -> None:
    """Shows all parts but these."""
    for part in parts ^ self._hidden:
      *colour, alpha = self._colours[part]
      rgba = [*colour, 0 if part in parts else alpha]
      self._bullet.changeVisualShape(*part, rgbaColor=rgba)
    self._hidden = parts
