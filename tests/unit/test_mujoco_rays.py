"""Pictures by rays against geometry worked out by hand."""

from __future__ import annotations

import concurrent.futures
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from wam_jax.envs.mujoco_rays import RayRenderer
from wam_jax.envs.physics import mujoco

SIZE, FOVY, HEIGHT = 64, 60.0, 2.0  # a camera above the origin that looks down, its top towards +y
HALF = HEIGHT * math.tan(math.radians(FOVY / 2))  # m from the middle of the ground to its edge


def make(body, lights="", headlight='ambient="0 0 0" diffuse="1 1 1"', assets="", height=SIZE, width=SIZE):
  """Renderer, and data, of a scene."""
  camera = f'<camera name="above" pos="0 0 {HEIGHT}" fovy="{FOVY}"/>'
  model = mujoco.MjModel.from_xml_string(
    f'<mujoco><visual><headlight {headlight} specular="0 0 0"/></visual><asset>{assets}</asset>'
    f"<worldbody>{camera}{lights}{body}</worldbody></mujoco>"
  )
  data = mujoco.MjData(model)
  mujoco.mj_forward(model, data)
  return RayRenderer(model, height, width), data


def draw(*args, **settings):
  renderer, data = make(*args, **settings)
  return renderer(data, "above")


def pixel(x, y):
  """Row and column of a place on the ground."""
  return int((HALF - y) / (2 * HALF) * SIZE), int((x + HALF) / (2 * HALF) * SIZE)


def test_sphere():
  radius = 0.5
  picture = draw(f'<geom type="sphere" size="{radius}" rgba="1 0.5 0 1"/>')
  covered = picture.any(-1).sum()
  # The cone that touches the sphere has half the angle asin(r / h).
  seen = HEIGHT * math.tan(math.asin(radius / HEIGHT)) / (2 * HALF) * SIZE
  assert covered == pytest.approx(math.pi * seen**2, rel=0.03)
  # A ray at x pixels from the middle meets it at sine h sin(a) / r to its normal; the light comes along -z.
  angle = math.atan(0.25 * HALF / HEIGHT)
  beyond = math.asin(HEIGHT * math.sin(angle) / radius) - angle
  row, column = SIZE // 2, round(0.625 * SIZE)
  bright = [255 * math.cos(beyond), 127.5 * math.cos(beyond), 0]
  np.testing.assert_allclose(picture[row, column], bright, atol=9)  # half a pixel either way
  np.testing.assert_allclose(picture[SIZE // 2, SIZE // 2], [255, 127.5, 0], atol=1.5)


def test_boxes_stand_where_they_are():
  boxes = '<geom type="box" size=".2 .1 .001" pos=".6 .4 0" rgba="1 0 0 1"/>'
  boxes += '<geom type="box" size=".1 .1 .001" pos="-.6 -.4 0" rgba="0 0 1 1"/>'
  picture = draw(boxes)
  for channel, (x, y, half_x, half_y) in {0: (0.6, 0.4, 0.2, 0.1), 2: (-0.6, -0.4, 0.1, 0.1)}.items():
    rows, columns = np.nonzero(picture[..., channel])
    (top, left), (bottom, right) = pixel(x - half_x, y + half_y), pixel(x + half_x, y - half_y)
    np.testing.assert_allclose([rows.min(), rows.max() + 1], [top, bottom], atol=1)
    np.testing.assert_allclose([columns.min(), columns.max() + 1], [left, right], atol=1)


DIRECTIONAL = '<light type="directional" dir="1 0 -1" diffuse=".8 .8 .8" ambient=".1 .1 .1" castshadow="{}"/>'
GROUND = '<geom type="plane" size="5 5 1" rgba="1 1 1 1"/>'
CUBE = '<geom type="box" size=".1 .1 .1" pos="0 0 .5" rgba="0 0 1 1"/>'


@pytest.mark.parametrize("shadow", [True, False])
def test_slanted_light_and_shadow(shadow):
  picture = draw(GROUND + CUBE, DIRECTIONAL.format(str(shadow).lower()), headlight='active="0"')
  lit = 255 * (0.1 + 0.8 * math.cos(math.pi / 4))
  # The light falls at 45 degrees towards +x: the cube at height .5 throws its shadow to x = .5.
  np.testing.assert_allclose(picture[pixel(0.5, 0.0)], 25.5 if shadow else lit, atol=1.5)
  for place in ((-0.5, 0.0), (0.5, 0.3), (0.9, 0.0)):
    np.testing.assert_allclose(picture[pixel(*place)], lit, atol=1.5)
  np.testing.assert_allclose(picture[pixel(0, 0)], [0, 0, lit], atol=1.5)  # its lit top


def test_lamp_with_a_cone():
  lamp = (
    '<light type="{}" pos="0 0 1" dir="0 0 -1" cutoff="30" exponent="0" diffuse="1 1 1" attenuation="1 0 1"/>'
  )
  spot, point = (draw(GROUND, lamp.format(kind), headlight='active="0"') for kind in ("spot", "point"))
  inside, outside = pixel(0.4, 0.0), pixel(0.8, 0.0)
  # At 0.4 m to the side: cosine 1 / 1.077 to the ground, and 1 / (1 + 1.16) by the distance.
  np.testing.assert_allclose(spot[inside], 255 / math.hypot(1, 0.4) / 2.16, atol=3)
  assert not spot[outside].any()
  np.testing.assert_allclose(point[inside], spot[inside])
  np.testing.assert_allclose(point[outside], 255 / math.hypot(1, 0.8) / 2.64, atol=3)


def test_colours():
  assets = '<material name="red" rgba="1 0 0 1" emission=".2"/><material name="glass" rgba="0 1 0 .3"/>'
  assets += (
    '<texture name="half" type="2d" builtin="checker" rgb1="0 0 1" rgb2="1 1 1" width="8" height="8"/>'
  )
  assets += '<material name="checked" texture="half" rgba="1 1 1 1"/>'
  bodies = "".join(
    f'<geom type="box" size=".1 .1 .01" pos="{x} 0 0" {look}/>'
    for x, look in [
      (-0.8, 'material="red"'),
      (-0.4, 'material="red" rgba="0 0 1 1"'),
      (0.0, 'material="glass"'),
      (0.4, 'material="checked"'),
      (0.8, 'rgba="1 1 1 1" group="3"'),
    ]
  )
  picture = draw(bodies, headlight='ambient=".5 .5 .5" diffuse="0 0 0"', assets=assets)
  expected = {-0.8: (0.7, 0, 0), -0.4: (0, 0, 0.7), 0.0: (0, 0, 0), 0.4: (0.25, 0.25, 0.5), 0.8: (0, 0, 0)}
  for x, colour in expected.items():
    np.testing.assert_allclose(picture[pixel(x, 0.0)], 255 * np.array(colour), atol=1.5, err_msg=str(x))


@pytest.mark.parametrize(
  "how", ['fovy="40"', 'sensorsize=".02 .01" focal=".01 .02" principal=".002 .001" resolution="8 4"']
)
def test_frame_is_the_one_of_mujocos_own_renderer(how):
  model = mujoco.MjModel.from_xml_string(
    f'<mujoco><worldbody><camera name="a" {how}/><geom size=".1"/></worldbody></mujoco>'
  )
  data = mujoco.MjData(model)
  mujoco.mj_forward(model, data)
  view = mujoco.MjvCamera()
  view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
  scene = mujoco.MjvScene(model, maxgeom=10)
  mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
  frame = scene.camera[0]
  height, width = 30, 60
  half = frame.frustum_width or (frame.frustum_top - frame.frustum_bottom) / 2 * width / height
  rays = RayRenderer(model, height, width)._rays(view).reshape(height, width, 3)
  x, y = rays[..., 0] / -rays[..., 2], rays[..., 1] / -rays[..., 2]
  step = 2 * half / frame.frustum_near / width
  left, right = ((frame.frustum_center + side * half) / frame.frustum_near for side in (-1, 1))
  np.testing.assert_allclose([x[0, 0], x[-1, -1]], [left + step / 2, right - step / 2], rtol=1e-4)
  upright = (frame.frustum_top - frame.frustum_bottom) / frame.frustum_near / height
  assert y[0, 0] == pytest.approx(frame.frustum_top / frame.frustum_near - upright / 2, rel=1e-4)
  assert y[-1, 0] == pytest.approx(frame.frustum_bottom / frame.frustum_near + upright / 2, rel=1e-4)


def test_free_camera_shows_all_of_the_model():
  renderer, data = make(
    '<geom size=".3" pos="3 -2 1" rgba="1 0 0 1"/><geom size=".3" pos="4 -2 1" rgba="0 0 1 1"/>'
  )
  picture = renderer(data)
  for channel in (0, 2):
    rows, columns = np.nonzero(picture[..., channel])
    assert len(rows) > 10
    assert min(rows.min(), columns.min()) > 0
    assert max(rows.max(), columns.max()) < SIZE - 1


def test_threads_share_a_renderer():
  renderer, _ = make('<body name="b"><freejoint/><geom size=".3" rgba="1 1 1 1"/></body>')
  places = np.linspace(-0.8, 0.8, 12)

  def show(x):
    data = mujoco.MjData(renderer._model)
    data.qpos[0] = x
    mujoco.mj_forward(renderer._model, data)
    return renderer(data, "above")

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    together = list(pool.map(show, places))
  np.testing.assert_array_equal(together, [show(x) for x in places])
  assert len({picture.tobytes() for picture in together}) == len(places)


def test_what_cannot_be_drawn_is_named():
  renderer, data = make('<camera name="flat" projection="orthographic" pos="0 0 1"/><geom size=".1"/>')
  with pytest.raises(ValueError, match="'side'.*above, flat"):
    renderer(data, "side")
  with pytest.raises(ValueError, match="flat"):
    renderer(data, "flat")
  with pytest.raises(ValueError, match="0 x 64"):
    RayRenderer(renderer._model, 0, 64)


_BOTH = """
import mujoco, numpy as np
from wam_jax.envs.base import NotOffered
from wam_jax.envs.mujoco_gl import GlRenderer, works
from wam_jax.envs.mujoco_rays import RayRenderer
model = mujoco.MjModel.from_xml_string('''<mujoco>
  <visual><headlight diffuse=".3 .3 .3" specular="0 0 0"/></visual>
  <asset><material name="red" rgba="1 0 0 1" specular="0"/>
  <material name="grey" rgba=".6 .6 .6 1" specular="0"/></asset>
  <worldbody>
  <light type="directional" dir="1 -.5 -1" diffuse=".5 .5 .5" specular="0 0 0" castshadow="false"/>
  <camera name="a" pos=".3 -1.5 1.5" xyaxes="1 0 0 0 .7 .7"/><site name="goal" pos="0 0 1" size=".2"/>
  <geom type="plane" size="5 5 1" material="grey"/>
  <geom type="box" size=".2 .2 .3" pos="0 0 .3" material="red"/>
  <geom type="capsule" size=".1 .3" pos=".6 .2 .4" rgba="0 0 1 1"/></worldbody></mujoco>''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
try:
  gl = GlRenderer(model, 64, 64)
except NotOffered as error:
  assert not works()
  print(error)
else:
  assert works()
  rays = RayRenderer(model, 64, 64)
  pairs = (gl(data, "a"), rays(data, "a")), (gl(data), rays(data))
  print(max(np.abs(one.astype(int) - two).mean() for one, two in pairs))
"""


@pytest.mark.parametrize("platform", ["disabled", "", "egl"])
def test_as_mujocos_own_renderer(platform):
  """Where OpenGL works the pictures are the same; where it does not, the error says what to set."""
  environment = {**os.environ, "MUJOCO_GL": platform}
  done = subprocess.run(
    [sys.executable, "-c", _BOTH], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  refused = "MUJOCO_GL" in done.stdout
  assert refused or platform != "disabled"
  if platform == "egl" and refused:
    pytest.skip("no OpenGL through EGL here")
  assert refused or float(done.stdout) < 2  # OpenGL's edges are smooth
