"""The ray-caster: what a picture shows and what it may not depend on."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from wam_jax.envs.play_table import renderer, scene, simulator, skills

SIZE = 32


@pytest.fixture(scope="module")
def draw():
  return renderer.make_renderer(SIZE, workers=2)


@pytest.fixture(scope="module")
def states():
  rng = np.random.default_rng(0)
  robot_obs, scene_obs = zip(*(skills.sample_start(None, rng) for _ in range(21)), strict=True)
  return np.stack(robot_obs), np.stack(scene_obs)


def test_pictures_do_not_depend_on_batch_order_or_workers(draw, states):
  robot_obs, scene_obs = states
  all_at_once = draw(robot_obs, scene_obs)
  order = np.random.default_rng(1).permutation(len(robot_obs))
  shuffled = draw(robot_obs[order], scene_obs[order])
  single_worker = renderer.make_renderer(SIZE, workers=1)(robot_obs[3:12], scene_obs[3:12])
  for key in ("rgb_static", "rgb_gripper"):
    assert all_at_once[key].shape == (21, SIZE, SIZE, 3) and all_at_once[key].dtype == np.uint8
    assert np.array_equal(shuffled[key], all_at_once[key][order])
    assert np.array_equal(single_worker[key], all_at_once[key][3:12])
    assert np.array_equal(draw(robot_obs[17:18], scene_obs[17:18])[key][0], all_at_once[key][17])
    assert len(np.unique(all_at_once[key].reshape(21, -1), axis=0)) == 21  # pictures differ
  assert draw(robot_obs[:0], scene_obs[:0])["rgb_static"].shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize(("index", "lit"), [(4, (1, 1, 0)), (5, (0, 1, 0))])
def test_a_lamp_shows_when_lit(draw, states, index, lit):
  robot_obs, scene_obs = (array[:6].copy() for array in states)
  scene_obs[:, index] = 0
  off = draw(robot_obs, scene_obs)["rgb_static"].astype(int)
  scene_obs[:, index] = 1
  on = draw(robot_obs, scene_obs)["rgb_static"].astype(int)
  changed = np.abs(on - off).max(-1) > 60
  assert (changed.sum((1, 2)) >= 4).mean() > 0.8  # the arm may hide a lamp now and then
  assert changed.sum((1, 2)).max() < 0.05 * SIZE**2  # and nothing else changes
  colour = on[changed].mean(0)
  assert (colour[np.array(lit) == 1] > 120).all() and (colour[np.array(lit) == 0] < 110).all()


@pytest.mark.parametrize(("index", "low", "high"), [(0, 0.0, 0.28), (1, 0.0, 0.22), (3, 0.0, 0.088)])
def test_furniture_shows(draw, states, index, low, high):
  robot_obs, scene_obs = (array[:6].copy() for array in states)
  pictures = []
  for value in (low, high):
    scene_obs[:, index] = value
    pictures.append(draw(robot_obs, scene_obs)["rgb_static"].astype(int))
  assert (np.abs(pictures[0] - pictures[1]).max(-1) > 20).sum((1, 2)).max() >= 6


def test_rays_hit_what_mujoco_hits(states):
  """Colours of the wrist camera's picture against MuJoCo's own ray-casting of the same rays."""
  size = 24
  picture = renderer.make_renderer(size, workers=1)(states[0][:2], states[1][:2])["rgb_gripper"]
  state = simulator.SceneState()
  camera = state.model.camera("gripper").id
  directions = renderer._pixel_rays(size, ((0.5, 0.5),), float(state.model.cam_fovy[camera])).T.astype(float)
  agree = []
  for frame in range(2):
    state.set_state(states[0][frame], states[1][frame])
    mujoco.mj_camlight(state.model, state.data)
    origin, rotation = state.data.cam_xpos[camera], state.data.cam_xmat[camera].reshape(3, 3)
    for pixel, direction in zip(picture[frame].reshape(-1, 3) / 255, directions @ rotation.T, strict=True):
      geom = np.full((1, 1), -1, np.int32)
      mujoco.mj_ray(state.model, state.data, origin, direction, None, 1, -1, geom)
      name = state.model.geom(int(geom[0, 0])).name if geom[0, 0] >= 0 else "floor"
      if name in ("floor", "bulb", "led"):
        continue
      colour = state.model.geom_rgba[geom[0, 0], :3]
      # Shading scales a colour: its direction remains.
      cosine = pixel @ colour / (np.linalg.norm(pixel) * np.linalg.norm(colour) + 1e-9)
      agree.append(cosine > 0.99)
  assert len(agree) > 200 and np.mean(agree) > 0.98


def test_lit_colours_are_far_from_unlit_ones():
  for off, on in (scene.BULB_COLOURS, scene.LED_COLOURS):
    assert np.abs(np.subtract(on, off)).max() > 0.5


def test_bad_input(draw, states):
  robot_obs, scene_obs = states
  with pytest.raises(ValueError, match=r"robot_obs: expected shape \[N, 15\], got \[15\]"):
    draw(robot_obs[0], scene_obs[0])
  with pytest.raises(ValueError, match="robot_obs has 2 frames, scene_obs 3"):
    draw(robot_obs[:2], scene_obs[:3])
  broken = scene_obs[:3].copy()
  broken[1, 8] = np.nan
  with pytest.raises(ValueError, match=r"scene_obs\[1, 8\] = nan"):
    draw(robot_obs[:3], broken)
  with pytest.raises(ValueError, match="image_size.*0"):
    renderer.make_renderer(0)
