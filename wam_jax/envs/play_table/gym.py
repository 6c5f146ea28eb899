"""The play table as a standard gymnasium environment.

Importing this module registers it: gymnasium.make("wam_jax/PlayTable-v0", task="open_drawer"). Or in one go:
gymnasium.make("wam_jax.envs.play_table.gym:wam_jax/PlayTable-v0").
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from wam_jax.embodiment import ACTION, CAMERAS, CONTROL_HZ, ROBOT_OBS, SCENE_OBS
from wam_jax.envs.base import find_skill
from wam_jax.envs.play_table import renderer, simulator, skills

ENV_ID = "wam_jax/PlayTable-v0"


class PlayTableEnv(gymnasium.Env):
  """One play table with pictures.

  Observation: 'rgb_static' and 'rgb_gripper' [S, S, 3] uint8, 'robot_obs' [15] and 'scene_obs' [24] float64
  as in `envs.base`. Action: [7] in [-1, 1]; the gripper opens if its number is positive and closes otherwise,
  because samples of a Box are hardly ever exactly +1 or -1. With a task, the reward is 1 and the episode is
  over at success; without, the reward is always 0. Truncation after `max_steps` is this environment's own.
  `copy.deepcopy` and `pickle` give an environment that goes on from the same state. Making one does not
  start JAX, `reset` does: then processes can no longer be forked, only spawned.
  """

  metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012

  def __init__(
    self,
    task: str | None = None,
    image_size: int = 64,
    max_steps: int = 72,
    render_mode: str | None = None,
  ) -> None:
    """Makes the environment.

    Args:
      task: of `skills.SKILLS`, or None for play.
      image_size: height and width of the pictures in pixels.
      max_steps: actions after which an episode is truncated.
      render_mode: None, or 'rgb_array': `render` returns the static camera's picture.

    Raises:
      ValueError: unknown task or render mode.
    """
    if task is not None:
      find_skill(skills.SKILLS, task)
    if render_mode not in (None, *self.metadata["render_modes"]):
      raise ValueError(
        f"unknown render_mode {render_mode!r}; known: {', '.join(self.metadata['render_modes'])}"
      )
    self.task, self.max_steps, self.render_mode = task, max_steps, render_mode
    self._env = simulator.PlayTable()
    self._renderer = renderer.make_renderer(image_size, workers=1)
    picture = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    self.observation_space = gymnasium.spaces.Dict(
      {
        **dict.fromkeys(CAMERAS, picture),
        "robot_obs": gymnasium.spaces.Box(-np.inf, np.inf, (ROBOT_OBS,), np.float64),
        "scene_obs": gymnasium.spaces.Box(-np.inf, np.inf, (SCENE_OBS,), np.float64),
      }
    )
    self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

  def _observe(self) -> dict[str, np.ndarray]:
    robot_obs, scene_obs = self._env.state()
    pictures = self._renderer(robot_obs[None], scene_obs[None])
    self._picture = pictures["rgb_static"][0]
    return {key: value[0] for key, value in pictures.items()} | {
      "robot_obs": robot_obs,
      "scene_obs": scene_obs,
    }

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Starts an episode.

    Args:
      seed: seeds the random start.
      options: may hold 'robot_obs' [15] and 'scene_obs' [24], the state to start from.

    Returns:
      Observation and info, {'success': False}.

    Raises:
      ValueError: an unknown option, one state without the other, or a state that cannot be (`check_state`).
    """
    super().reset(seed=seed)
    options = options or {}
    option_names = set(options)
    if option_names and option_names != {"robot_obs", "scene_obs"}:
      raise ValueError(f"options must be 'robot_obs' and 'scene_obs' together, got {sorted(option_names)}")
    if option_names:
      state = options["robot_obs"], options["scene_obs"]
    else:
      state = skills.sample_start(self.task, self.np_random)
    self._env.reset(*state)
    self._start, self._steps = self._env.state()[1], 0
    return self._observe(), {"success": False}

  def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
    """Executes one action for 1/30 s. Raises ValueError if it leaves [-1, 1] or is NaN."""
    action = np.array(action, np.float64)
    if action.shape == (ACTION,) and abs(action[6]) <= 1.0:
      action[6] = 1.0 if action[6] > 0 else -1.0
    self._env.step(action)
    self._steps += 1
    observation = self._observe()
    success = self._succeeded(observation["scene_obs"])
    return observation, float(success), success, self._steps >= self.max_steps, {"success": success}

  def _succeeded(self, scene_obs: np.ndarray) -> bool:
    # Looked up each time: a goal may be a function that cannot be pickled.
    return self.task is not None and bool(skills.SKILLS[self.task].task.goal(self._start, scene_obs))

  def render(self) -> np.ndarray | None:
    """The static camera's picture [S, S, 3] uint8, or None without a render mode."""
    return self._picture.copy() if self.render_mode == "rgb_array" else None


def register() -> None:
  """Makes ENV_ID known to gymnasium; harmless when repeated."""
  if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point="wam_jax.envs.play_table.gym:PlayTableEnv")


register()
