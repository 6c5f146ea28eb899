"""Pictures of any MuJoCo model without OpenGL, by MuJoCo's own rays.

Drawn are geoms of the groups that MuJoCo shows, in their own or their material's colour, with the mean colour
of a texture in its place, by the model's lights and headlight, with shadows; nothing shines or mirrors. Geoms
less than half opaque are left out, and so are sites, tendons, skins and flexible bodies.
"""

from __future__ import annotations

import copy

import numpy as np

from wam_jax.envs.physics import mujoco

_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # of geoms, as MuJoCo's own renderer shows
_NO_COLOUR = (0.5, 0.5, 0.5, 1.0)  # of a geom that leaves it to its material
_FAR = 1e3  # model sizes from which a directional light shines
_SKIN = 1e-3  # model sizes by which a surface may seem to lie in front of itself


class RayRenderer:
  """Draws what a camera sees.

  Several threads may draw with one of it, each from data of its own: it remembers nothing, and MuJoCo casts
  rays outside Python's lock.
  """

  def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
    """Takes the model's colours, lights and cameras as they are now.

    Args:
      model: any.
      height: of pictures in pixels.
      width: of pictures in pixels.

    Raises:
      ValueError: a size below 1.
    """
    if min(height, width) < 1:
      raise ValueError(f"size: must be at least 1 x 1 pixels, not {height} x {width}")
    self._height, self._width = height, width
    textures = _mean_colours(model)
    self._sky = np.zeros(3)
    for texture in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
      self._sky = textures[texture]
    rgba = np.array(model.geom_rgba)
    self._emission, self._texture = np.zeros(model.ngeom), np.ones((model.ngeom, 3))
    for geom in np.flatnonzero(model.geom_matid >= 0):
      material = model.geom_matid[geom]
      if tuple(rgba[geom]) == _NO_COLOUR:
        rgba[geom] = model.mat_rgba[material]
      texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]
      if texture >= 0:
        self._texture[geom] = textures[texture]
      self._emission[geom] = model.mat_emission[material]
    self._rgb = rgba[:, :3].astype(np.float64)
    self._model = copy.copy(model)
    self._model.geom_matid[:] = -1
    self._model.geom_rgba[:, 3] = rgba[:, 3] >= 0.5  # rays pass through what has no alpha

  def __call__(self, data: mujoco.MjData, camera: str | None = None) -> np.ndarray:
    """One picture.

    Args:
      data: of the model, its poses brought up to date: `mj_forward`, or `mj_kinematics` and `mj_camlight`.
      camera: name; None: MuJoCo's free one, which shows all of the model.

    Returns:
      [height, width, 3] uint8.

    Raises:
      ValueError: the model has no such camera, or it is orthographic.
    """
    view = _view(self._model, camera)
    origin, forward, up, right = (np.zeros(3) for _ in range(4))
    mujoco.mjv_cameraFrame(origin, forward, up, right, data, view)
    rays = self._rays(view) @ np.stack([right, up, -forward])
    geoms, distances, normals = self._cast(data, origin, rays)
    picture = np.broadcast_to(self._sky, rays.shape).copy()
    hit = geoms >= 0
    if hit.any():
      points, normals, geoms = origin + distances[hit, None] * rays[hit], normals[hit], geoms[hit]
      normals *= -np.sign(np.sum(normals * rays[hit], -1, keepdims=True))  # of meshes seen from inside
      light = self._headlight(normals, -forward) + self._lights(data, points, normals)
      shone = np.clip(self._rgb[geoms] * (light + self._emission[geoms, None]), 0.0, 1.0)
      picture[hit] = shone * self._texture[geoms]  # in OpenGL's order
    picture = np.rint(255 * picture).astype(np.uint8)
    return picture.reshape(self._height, self._width, 3)

  def _rays(self, view: mujoco.MjvCamera) -> np.ndarray:
    """Directions [height * width, 3], of length 1, in the camera's frame: to the right, up, backwards."""
    vertical, horizontal, clip = (np.zeros(2, np.float32) for _ in range(3))
    mujoco.mjv_cameraFrustum(vertical, horizontal, clip, self._model, view)
    above, below = vertical / clip[0]
    sides = horizontal / clip[0]
    left, right = sides if sides.any() else (above * self._width / self._height,) * 2
    x = -left + (left + right) * (np.arange(self._width) + 0.5) / self._width
    y = above - (above + below) * (np.arange(self._height) + 0.5) / self._height
    rays = np.stack([*np.meshgrid(x, y), np.full((self._height, self._width), -1.0)], -1).reshape(-1, 3)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

  def _cast(
    self, data: mujoco.MjData, origin: np.ndarray, rays: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Geom [N] that rays [N, 3] from one point hit, or -1; distance [N]; normal [N, 3]."""
    count = len(rays)
    geoms, distances, normals = np.empty(count, np.int32), np.empty(count), np.zeros((count, 3))
    mujoco.mj_multiRay(
      self._model,
      data,
      np.array(origin),
      rays.ravel(),
      _GROUPS,
      True,
      -1,
      geoms,
      distances,
      normals.reshape(-1),
      count,
      mujoco.mjMAXVAL,
    )
    return geoms, distances, normals

  def _headlight(self, normals: np.ndarray, backwards: np.ndarray) -> np.ndarray:
    """Light [N, 3] on surfaces from the camera, which looks against `backwards` [3]."""
    headlight = self._model.vis.headlight
    if not headlight.active:
      return np.zeros_like(normals)
    return headlight.ambient + headlight.diffuse * np.maximum(normals @ backwards, 0.0)[:, None]

  def _lights(self, data: mujoco.MjData, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Light [N, 3] on surfaces from the model's lights."""
    model, kinds = self._model, mujoco.mjtLightType
    out = np.zeros_like(points)
    for i in map(int, np.flatnonzero(model.light_active & (model.light_type != kinds.mjLIGHT_IMAGE))):
      position, direction = data.light_xpos[i], data.light_xdir[i]
      if model.light_type[i] == kinds.mjLIGHT_DIRECTIONAL:
        position = model.stat.center - _FAR * model.stat.extent * direction
        strength = np.maximum(normals @ -direction, 0.0)
      else:
        strength = self._lamp(i, direction, points - position, normals)
      if model.light_castshadow[i]:
        self._shade(data, position, points, strength)
      out += model.light_ambient[i] + strength[:, None] * model.light_diffuse[i]
    return out

  def _lamp(self, light: int, direction: np.ndarray, ways: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Strength [N] of a light that shines from a point, on surfaces at the ends of `ways` [N, 3] from it."""
    model = self._model
    lengths = np.maximum(np.linalg.norm(ways, axis=-1), mujoco.mjMINVAL)
    ways = ways / lengths[:, None]
    strength = np.maximum(-np.sum(ways * normals, -1), 0.0)
    strength /= lengths[:, None] ** np.arange(3) @ model.light_attenuation[light]
    if model.light_type[light] == mujoco.mjtLightType.mjLIGHT_SPOT:
      cosines = np.maximum(ways @ direction, 0.0)
      inside = cosines >= np.cos(np.deg2rad(model.light_cutoff[light]))
      strength *= inside * cosines ** model.light_exponent[light]
    return strength

  def _shade(self, data: mujoco.MjData, origin: np.ndarray, points: np.ndarray, strength: np.ndarray) -> None:
    """Puts the strength [N] of a light at `origin` to 0 where something is in its way."""
    lit = np.flatnonzero(strength)
    if lit.size:
      ways = points[lit] - origin
      lengths = np.linalg.norm(ways, axis=-1)
      geoms, distances, _ = self._cast(data, origin, ways / lengths[:, None])
      strength[lit[(geoms >= 0) & (distances < lengths - _SKIN * self._model.stat.extent)]] = 0.0


def _view(model: mujoco.MjModel, camera: str | None) -> mujoco.MjvCamera:
  """A camera of the model, or the free one, as MuJoCo's functions take it."""
  view = mujoco.MjvCamera()
  if camera is None:
    mujoco.mjv_defaultFreeCamera(model, view)
    flat = view.orthographic
  else:
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
    if index < 0:
      names = ", ".join(model.camera(i).name for i in range(model.ncam))
      raise ValueError(f"the model has no camera {camera!r}; it has {names or 'none: add one, or take None'}")
    view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
    flat = model.cam_projection[index] == mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC
  if flat:
    raise ValueError(f"camera {camera!r} is orthographic, and only perspective ones are drawn")
  return view


def _mean_colours(model: mujoco.MjModel) -> np.ndarray:
  """The mean colour [ntex, 3] of each texture, from 0 to 1."""
  out = np.ones((model.ntex, 3))
  for i in range(model.ntex):
    channels = int(model.tex_nchannel[i])
    first = int(model.tex_adr[i])
    pixels = model.tex_data[first : first + int(model.tex_height[i]) * int(model.tex_width[i]) * channels]
    shades = pixels.reshape(-1, channels) / 255
    if model.tex_colorspace[i] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB:  # OpenGL takes them for light
      shades = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    mean = shades.mean(0)
    out[i] = mean[:3] if channels >= 3 else mean[0]
  return out
