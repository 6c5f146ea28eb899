"""Pictures of the play table from a ray-caster in JAX: no GL, the same everywhere.

Rays are cut with every box, capsule and sphere. The nearest hit is kept as one int32 whose high bits are
the distance and whose low bits number the surface, so that finding the nearest surface and remembering
which one it was is a single minimum. A surface is one of a box's three pairs of faces, which are shaded
flat, or a whole capsule or sphere, which are shaded smoothly. Geoms are scanned. What the resting camera
sees of resting geoms is computed once. Frames are drawn one by one: several in one call leave the
processor's caches, and each takes longer.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.core.backend import cpu_device
from wam_jax.embodiment import CAMERAS, ROBOT_OBS, SCENE_OBS
from wam_jax.envs.physics import mujoco
from wam_jax.envs.play_table import scene, simulator
from wam_jax.host import machine, surroundings
from wam_jax.host.numbers import whole

# Where in a pixel (column, row) the rays of each camera go. The resting camera is far away, and furniture
# that moves by less than a pixel must still show there; CALVIN gets the same by averaging larger pictures.
SAMPLES = (((0.25, 0.35), (0.75, 0.65)), ((0.5, 0.5),))

_SURFACE_MASK = 255  # low bits that hold the surface; the distance keeps 15 bits, 0.1 mm at the desk
_FAR = np.float32(1e6)
_NEAR = 1e-3
_SUN = np.array([0.35, -0.65, 0.68], np.float32) / np.float32(np.linalg.norm([0.35, -0.65, 0.68]))
_AMBIENT, _HEADLIGHT, _SUNLIGHT = 0.34, 0.40, 0.38
_FLOOR, _SKY = (0.36, 0.43, 0.50), (0.60, 0.70, 0.80)
_BOX, _CAPSULE, _SPHERE = range(3)


@dataclasses.dataclass(frozen=True)
class _Geoms:
  """The drawn geoms: boxes first, then capsules, then spheres.

  Attributes:
    index: [G] geom numbers in the MuJoCo model.
    kind: [G] _BOX, _CAPSULE or _SPHERE.
    size: [G, 3] half sizes in m; capsule: radius, half length, 0; sphere: radius, 0, 0.
    colour: [G, 3] in [0, 1].
    surface: [G] number of the geom's first surface; boxes have three, others one.
    moving: [G] bool, belongs to a body that can move.
    bulb, led: positions in these arrays.
  """

  index: np.ndarray
  kind: np.ndarray
  size: np.ndarray
  colour: np.ndarray
  surface: np.ndarray
  moving: np.ndarray
  bulb: int
  led: int


def _drawn_geoms(model: mujoco.MjModel) -> _Geoms:
  kinds = {
    int(mujoco.mjtGeom.mjGEOM_BOX): _BOX,
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): _CAPSULE,
    int(mujoco.mjtGeom.mjGEOM_SPHERE): _SPHERE,
  }
  kind = np.array([kinds.get(int(kind), -1) for kind in model.geom_type])
  index = np.concatenate([np.flatnonzero(kind == k) for k in (_BOX, _CAPSULE, _SPHERE)])
  return _Geoms(
    index=index,
    kind=kind[index],
    size=np.where(kind[index, None] == _SPHERE, [[1, 0, 0]], 1) * model.geom_size[index].astype(np.float32),
    colour=model.geom_rgba[index, :3].astype(np.float32),
    surface=np.cumsum(np.append(0, np.where(kind[index] == _BOX, 3, 1)))[:-1],
    moving=model.body_weldid[model.geom_bodyid[index]] != 0,
    bulb=int(np.flatnonzero(index == model.geom("bulb").id)[0]),
    led=int(np.flatnonzero(index == model.geom("led").id)[0]),
  )


def _pixel_rays(image_size: int, samples: tuple[tuple[float, float], ...], fovy: float) -> np.ndarray:
  """Unit directions [3, len(samples)*S*S] in the camera's frame (x right, y up, looking along -z)."""
  scale = 2 * math.tan(math.radians(fovy) / 2) / image_size
  pixel = np.arange(image_size) - image_size / 2
  grids = [np.meshgrid((pixel + column) * scale, -(pixel + row) * scale) for column, row in samples]
  x, y = np.stack([grid[0] for grid in grids]), np.stack([grid[1] for grid in grids])
  rays = np.stack([x, y, -np.ones_like(x)]).reshape(3, -1)
  return (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)


def _dot(a, b):
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _pack(distance: jax.Array, hit: jax.Array, surface: jax.Array) -> jax.Array:
  """Positive floats order like their bits, so the least packed value is the nearest hit."""
  distance = jnp.where(hit & (distance > _NEAR), distance, _FAR)
  return (jax.lax.bitcast_convert_type(distance, jnp.int32) & ~jnp.int32(_SURFACE_MASK)) | surface


def _hit_box(origin, rays, position, rotation, size, surface):
  """Slab test.

  Args:
    origin: [3] of the camera.
    rays: [3, P].
    position: [3].
    rotation: [3, 3].
    size: [3].
    surface: number of the faces across the box's x; y and z follow.

  Returns:
    [P] packed.
  """
  offset = origin - position
  first, last = [], []
  for j in range(3):
    axis = rotation[:, j]
    along = _dot(axis, rays)
    inverse = 1.0 / jnp.where(jnp.abs(along) < 1e-12, 1e-12, along)
    centre, half = -_dot(axis, offset) * inverse, size[j] * jnp.abs(inverse)
    first.append(centre - half)
    last.append(centre + half)
  near_xy = jnp.maximum(first[0], first[1])
  near = jnp.maximum(near_xy, first[2])
  far = jnp.minimum(jnp.minimum(last[0], last[1]), last[2])
  face = jnp.where(first[2] > near_xy, 2, jnp.where(first[1] > first[0], 1, 0))
  return _pack(near, near <= far, surface + face)


def _hit_round(origin, rays, sun, position, rotation, size, surface):
  """Capsule along the geom's z; a sphere is one of length 0.

  Args:
    origin: [3] of the camera.
    rays: [3, P].
    sun: [P], cosine between ray and sun.
    position: [3].
    rotation: [3, 3].
    size: [3], radius and half length.
    surface: its number.

  Returns:
    [P] packed and [P] light.
  """
  axis, radius, half = rotation[:, 2], size[0], size[1]
  offset = origin - position
  along, height = _dot(axis, rays), _dot(axis, offset)
  centre, offset_squared = _dot(offset, rays), _dot(offset, offset)
  a = jnp.maximum(1.0 - along * along, 1e-9)
  b = centre - height * along
  h = b * b - a * (offset_squared - height * height - radius * radius)
  distance = (-b - jnp.sqrt(jnp.maximum(h, 0))) / a
  distance = jnp.where(
    (h >= 0) & (jnp.abs(height + distance * along) < half) & (distance > 0), distance, _FAR
  )
  for end in (-half, half):
    b = centre - end * along
    h = b * b - (offset_squared - 2 * end * height + end * end - radius * radius)
    ball = -b - jnp.sqrt(jnp.maximum(h, 0))
    distance = jnp.minimum(distance, jnp.where((h > 0) & (ball > 0), ball, _FAR))
  foot = jnp.clip(height + distance * along, -half, half)  # nearest point of the axis
  facing = (centre + distance - foot * along) / radius
  sunny = (_dot(offset, _SUN) + distance * sun - foot * _dot(axis, _SUN)) / radius
  return _pack(distance, distance < _FAR, surface), _light(facing, sunny)


def _light(facing, sunny):
  """Brightness of a surface from the cosines between its normal and view and sun."""
  light = _AMBIENT + _HEADLIGHT * jnp.abs(facing) + _SUNLIGHT * jnp.maximum(sunny, 0.0)
  return jnp.minimum(light, 1.0)


def _nearest(hits, origin, rays, geoms: _Geoms, chosen: np.ndarray, positions, rotations):
  """Adds the chosen geoms to a picture.

  Args:
    hits: [P] packed nearest hits so far and [P] light there, for round geoms.
    origin: [3] of the camera.
    rays: [3, P].
    geoms: G drawn geoms.
    chosen: [G] bool.
    positions: [G, 3].
    rotations: [G, 3, 3].

  Returns:
    Both [P] with the chosen geoms.
  """
  best, light = (jnp.asarray(array) for array in hits)
  sun = _dot(_SUN, rays)

  def add_box(best, x):
    return jnp.minimum(best, _hit_box(origin, rays, *x)), None

  def add_round(carry, x):
    best, light = carry
    new, new_light = _hit_round(origin, rays, sun, *x)
    return (jnp.minimum(best, new), jnp.where(new < best, new_light, light)), None

  def select(ids):
    return (
      positions[ids],
      rotations[ids],
      jnp.asarray(geoms.size[ids]),
      jnp.asarray(geoms.surface[ids], jnp.int32),
    )

  best, _ = jax.lax.scan(add_box, best, select(np.flatnonzero(chosen & (geoms.kind == _BOX))))
  (best, light), _ = jax.lax.scan(
    add_round, (best, light), select(np.flatnonzero(chosen & (geoms.kind != _BOX)))
  )
  return best, light


def _surface_colours(origin, forward, geoms: _Geoms, positions, rotations, colours, glow):
  """Colour of every surface as one int32, 8 bits each; light is in it for boxes and glowing geoms.

  Args:
    origin: [3] of the camera.
    forward: [3] direction in which it looks.
    geoms: G drawn geoms.
    positions: [G, 3].
    rotations: [G, 3, 3].
    colours: [G, 3] in [0, 1].
    glow: [G] 1 for a geom that shines by itself.

  Returns:
    [surfaces] int32.
  """
  boxes = int((geoms.kind == _BOX).sum())
  normals = jnp.swapaxes(rotations[:boxes], 1, 2)  # [boxes, axis, 3]
  outside = jnp.einsum("gjk,gk->gj", normals, origin - positions[:boxes])
  normals = normals * jnp.sign(outside)[..., None]  # of the face on the camera's side
  light = _light(normals @ forward, normals @ _SUN)
  light = jnp.where(glow[:boxes, None] > 0, 1.0, light)
  flat = (colours[:boxes, None] * light[..., None]).reshape(-1, 3)
  rgb = (jnp.clip(jnp.concatenate([flat, colours[boxes:]]), 0, 1) * 255).astype(jnp.int32)
  return (rgb[:, 0] << 16) | (rgb[:, 1] << 8) | rgb[:, 2]


def _shade(hits, rays, geoms: _Geoms, surface_colours, glow):
  """Colours of the nearest hits.

  Args:
    hits: [P] packed, [P] light of round geoms.
    rays: [3, P].
    geoms: G drawn geoms.
    surface_colours: [surfaces] int32.
    glow: [G].

  Returns:
    Red, green and blue, each [P] float in [0, 255].
  """
  best, light = hits
  surface = best & _SURFACE_MASK
  first_round = 3 * int((geoms.kind == _BOX).sum())
  light = jnp.where(surface < first_round, 1.0, light)
  bulb = int(geoms.surface[geoms.bulb])
  light = jnp.where((surface == bulb) & (glow[geoms.bulb] > 0), 1.0, light)
  empty = best >= int(np.float32(_FAR * 0.5).view(np.int32))
  packed = surface_colours[surface]
  down = rays[2] < 0
  return [
    jnp.where(
      empty,
      jnp.where(down, 255 * _FLOOR[i], 255 * _SKY[i]),
      ((packed >> (16 - 8 * i)) & 255).astype(jnp.float32) * light,
    )
    for i in range(3)
  ]


class _Program:
  """The compiled drawing of a frame at one picture size, and the constants in it."""

  def __init__(self, image_size: int) -> None:
    self.device = cpu_device()
    state = simulator.SceneState()
    mujoco.mj_forward(state.model, state.data)
    self.geoms = _drawn_geoms(state.model)
    if self.geoms.surface[-1] > _SURFACE_MASK:
      raise ValueError(f"the scene has {self.geoms.surface[-1] + 1} surfaces, more than {_SURFACE_MASK + 1}")
    self.cameras = [state.model.camera(name).id for name in scene.CAMERAS]
    self._image_size = image_size
    static, gripper = (
      _pixel_rays(image_size, samples, float(state.model.cam_fovy[camera]))
      for samples, camera in zip(SAMPLES, self.cameras, strict=True)
    )
    rotation = state.data.cam_xmat[self.cameras[0]].reshape(3, 3).astype(np.float32)
    self._gripper_rays = gripper
    self._static_rays = rotation @ static
    self._static_forward = -rotation[:, 2]
    self._static_origin = state.data.cam_xpos[self.cameras[0]].astype(np.float32)
    index = self.geoms.index
    with jax.default_device(self.device):
      background = _nearest(
        self._nothing(0),
        self._static_origin,
        self._static_rays,
        self.geoms,
        ~self.geoms.moving,
        jnp.asarray(state.data.geom_xpos[index], jnp.float32),
        jnp.asarray(state.data.geom_xmat[index].reshape(-1, 3, 3), jnp.float32),
      )
    self._background = tuple(np.asarray(array) for array in background)
    self.draw = jax.jit(self._draw)

  def _nothing(self, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits and light where no geom is."""
    rays = self._image_size**2 * len(SAMPLES[camera])
    return np.full(rays, np.float32(_FAR).view(np.int32), np.int32), np.ones(rays, np.float32)

  def _draw(self, positions, rotations, camera_position, camera_rotation, lamps):
    """Both pictures of one frame.

    Args:
      positions: [G, 3] of the geoms.
      rotations: [G, 3, 3].
      camera_position: [3] of the wrist camera.
      camera_rotation: [3, 3].
      lamps: [2] bulb and LED, 0 or 1.

    Returns:
      Two [S, S, 3] uint8.
    """
    geoms, size = self.geoms, self._image_size
    glow = jnp.zeros(len(geoms.index)).at[jnp.array([geoms.bulb, geoms.led])].set(lamps)
    colours = jnp.asarray(geoms.colour)
    for lamp, number, (off, on) in ((0, geoms.bulb, scene.BULB_COLOURS), (1, geoms.led, scene.LED_COLOURS)):
      colours = colours.at[number].set(jnp.where(lamps[lamp] > 0.5, jnp.array(on), jnp.array(off)))
    views = (
      (self._static_origin, self._static_forward, self._static_rays, self._background, geoms.moving),
      (
        camera_position,
        -camera_rotation[:, 2],
        jnp.stack([_dot(camera_rotation[i], self._gripper_rays) for i in range(3)]),
        self._nothing(1),
        np.ones(len(geoms.index), bool),
      ),
    )
    pictures = []
    for samples, (origin, forward, rays, hits, chosen) in zip(SAMPLES, views, strict=True):
      hits = _nearest(hits, origin, rays, geoms, chosen, positions, rotations)
      surface_colours = _surface_colours(origin, forward, geoms, positions, rotations, colours, glow)
      picture = jnp.stack(_shade(hits, rays, geoms, surface_colours, glow), -1)
      pictures.append(picture.reshape(len(samples), size, size, 3).mean(0).astype(jnp.uint8))
    return tuple(pictures)


@functools.lru_cache(maxsize=8)
def _program(image_size: int) -> _Program:
  """Renderers of one size share what they compile."""
  return _Program(image_size)


class PlayTableRenderer:
  """Draws both cameras of many states.

  Threads draw frame by frame; a frame's picture depends on nothing but the frame.
  Pictures are drawn on the CPU also where an accelerator is present, so that they are the same there.
  """

  def __init__(self, image_size: int = 64, workers: int = 0) -> None:
    """Neither compiles nor starts JAX, so that a process may still be forked; the first call does.

    Args:
      image_size: S, height and width in pixels.
      workers: threads; 0 means one per core.

    Raises:
      ValueError: image_size or workers out of range.
    """
    self.image_size = whole("image_size", image_size, 1)
    self._workers = whole("workers", workers, 0)
    self._threads = self._workers or machine.available_cores()
    self._pool = concurrent.futures.ThreadPoolExecutor(self._threads, "renderer")
    self._local = threading.local()

  def __reduce__(self) -> tuple[type, tuple[int, int]]:
    """A copy draws the same and holds its own threads."""
    return PlayTableRenderer, (self.image_size, self._workers)

  def _draw_frame(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures [S, S, 3] of one state."""
    if not hasattr(self._local, "state"):
      self._local.state = simulator.SceneState()
    program, state = _program(self.image_size), self._local.state
    state.set_state(robot_obs, scene_obs)
    mujoco.mj_camlight(state.model, state.data)
    index, wrist, data = program.geoms.index, program.cameras[1], state.data
    places = data.geom_xpos[index], data.geom_xmat[index], data.cam_xpos[wrist], data.cam_xmat[wrist]
    positions, rotations, camera_position, camera_rotation, lamps = (
      np.array(array, np.float32) for array in (*places, scene_obs[4:6])
    )
    inputs = positions, rotations.reshape(-1, 3, 3), camera_position, camera_rotation.reshape(3, 3), lamps
    with jax.default_device(program.device):
      static, gripper = program.draw(*inputs)
    return np.asarray(static), np.asarray(gripper)

  def __call__(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> dict[str, np.ndarray]:
    """Draws states.

    Args:
      robot_obs: [N, 15] as in `envs.base`.
      scene_obs: [N, 24] as in `envs.base`.

    Returns:
      'rgb_static' and 'rgb_gripper', each [N, S, S, 3] uint8.

    Raises:
      ValueError: wrong shapes, or NaN.
      SurroundingsError: this process was forked after JAX had started.
    """
    surroundings.check_fork()
    robot_obs, scene_obs = np.asarray(robot_obs, np.float64), np.asarray(scene_obs, np.float64)
    for name, array, width in (
      ("robot_obs", robot_obs, ROBOT_OBS),
      ("scene_obs", scene_obs, SCENE_OBS),
    ):
      if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name}: expected shape [N, {width}], got {list(array.shape)}")
      if not np.isfinite(array).all():
        frame, index = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}[{frame}, {index}] = {array[frame, index]}: must be finite")
    if len(robot_obs) != len(scene_obs):
      raise ValueError(f"robot_obs has {len(robot_obs)} frames, scene_obs {len(scene_obs)}")
    count, size = len(robot_obs), self.image_size
    static, gripper = (np.empty((count, size, size, 3), np.uint8) for _ in range(2))

    @surroundings.own_settings()
    def draw(frames: range) -> None:
      for frame in frames:
        static[frame], gripper[frame] = self._draw_frame(robot_obs[frame], scene_obs[frame])

    list(self._pool.map(draw, (range(i, count, self._threads) for i in range(min(count, self._threads)))))
    return dict(zip(CAMERAS, (static, gripper), strict=True))


def make_renderer(image_size: int = 64, workers: int = 0) -> PlayTableRenderer:
  """A renderer of image_size x image_size pictures with `workers` threads (0: one per core)."""
  return PlayTableRenderer(image_size, workers)
