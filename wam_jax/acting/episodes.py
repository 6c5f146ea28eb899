"""Episodes as the evaluation keeps them: their arrays, and their pictures drawn again."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.envs.base import Pictures, Simulator
from wam_jax.envs.vector import resized
from wam_jax.storage.records import read_arrays

KEPT = ("success", "steps", "robot_obs", "snapshot", "action")  # of `Rollouts`; and `start`, where they began


def read_episodes(path: pathlib.Path, names: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """Arrays of a file of episodes, and of older versions' too, which hold robot_obs and scene_obs.

  Args:
    path: `<policy>.npz` or `rollouts.npz` of stage evaluate.
    names: that must be there; empty: all that there are.

  Raises:
    ArtifactError: missing or damaged, or an array is missing.
  """
  arrays = read_arrays(path)
  if "scene_obs" in arrays:
    arrays["snapshot"] = np.concatenate([arrays["robot_obs"], arrays.pop("scene_obs")], -1)
    arrays["start"] = arrays["snapshot"][..., 0, :]
  if "start_scene_obs" in arrays:
    arrays["start"] = np.concatenate([arrays.pop(f"start_{key}") for key in ("robot_obs", "scene_obs")], -1)
  if not set(names) <= set(arrays):
    return read_arrays(path, names)  # raises
  return {name: arrays[name] for name in names or arrays}


def draw_episodes(
  simulator: Simulator,
  episodes: Mapping[str, Any],
  times: Sequence[Any],
  image_size: int,
  workers: int = 0,
) -> dict[str, list[np.ndarray]]:
  """Pictures of recorded episodes: of their snapshots, or by running them again where there are none.

  Args:
    simulator: that they ran in.
    episodes: of N: snapshot [N, T+1, W]; or task [N], start [N, W] and action [N, T, A].
    times: of each episode [T'] int, ascending.
    image_size: S [pixels]; pictures that the simulator draws smaller stay smaller.
    workers: threads; 0: one per core.

  Returns:
    camera -> of each episode [T', S, S, 3] uint8.
  """
  render = simulator.make_renderer(image_size, workers) if "snapshot" in episodes else None
  if render is not None:
    states = [snapshots[list(t)] for snapshots, t in zip(episodes["snapshot"], times, strict=True)]
    borders = np.cumsum([len(t) for t in times])[:-1]
    drawn = render(np.concatenate(states))
    return {camera: np.split(frames, borders) for camera, frames in drawn.items()}
  environment = simulator.make()
  films: dict[str, list[np.ndarray]] = {name: [] for name in simulator.embodiment.camera_names}

  def draw() -> Pictures:
    pictures = environment.pictures() or {}
    return resized(pictures, min(image_size, *(min(picture.shape[:2]) for picture in pictures.values())))

  for k, shown in enumerate(times):
    environment.reset(episodes["start"][k], str(episodes["task"][k]))
    frames = []
    for t in range(max(shown) + 1):
      if t:
        environment.step(episodes["action"][k][t - 1])
      if t in shown:
        frames.append(draw())
    for camera, film in films.items():
      film.append(np.stack([pictures[camera] for pictures in frames]))
  return films
