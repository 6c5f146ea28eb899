"""The play table as a standard gymnasium environment.

After `import wam_jax`: gymnasium.make("wam_jax/PlayTable-v0", task="open_drawer"). A program without that
import names this module too: gymnasium.make("wam_jax.envs.play_table.gym:wam_jax/PlayTable-v0").
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from wam_jax.embodiment import ACTION, CAMERAS, CONTROL_HZ, ROBOT_OBS, SCENE_OBS
from wam_jax.envs.play_table import renderer, simulator, skills
from wam_jax.envs.table import find_skill
from wam_jax.host.numbers import real, whole

RENDER_SIZE = 256  # pixels: the pictures that policies see are too small for people


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
      render_mode: None, or 'rgb_array': `render` draws the static camera's picture for people.

    Raises:
      ValueError: unknown task or render mode, a number that is out of range or not whole.
    """
    if task is not None:
      find_skill(skills.SKILLS, task)
    if render_mode not in (None, *self.metadata["render_modes"]):
      raise ValueError(
        f"unknown render_mode {render_mode!r}; known: {', '.join(self.metadata['render_modes'])}"
      )
    self.task, self.render_mode = task, render_mode
    self.max_steps = whole("max_steps", max_steps, 1)
    self._env = simulator.PlayTable()
    self._renderer = renderer.make_renderer(image_size, workers=1)
    large = max(image_size, RENDER_SIZE)
    self._film_renderer = renderer.make_renderer(large, workers=1) if render_mode is not None else None
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
    action = real("action", action)
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
    """The static camera's picture [R, R, 3] uint8, R at least RENDER_SIZE; None without a render mode."""
    if self._film_renderer is None:
      return None
    return self._film_renderer(*(state[None] for state in self._env.state()))["rgb_static"][0]
