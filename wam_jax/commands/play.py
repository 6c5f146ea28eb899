"""Shows a policy at work in the embedded simulator: runs episodes, writes an animation of them.

python -m wam_jax.play --task=open_drawer                          # the policies that come with the package
python -m wam_jax.play --task=turn_on_led --policy=runs/calvin_wam_demo --episodes=4 --out=led.gif
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import TRAINED
from wam_jax.config import TASKS
from wam_jax.embodiment import CALVIN, CONTROL_HZ, EmbodimentError
from wam_jax.host import console, machine, surroundings
from wam_jax.host.gymnasium_id import ENV_ID
from wam_jax.host.words import count


def play(policy: Any, seed: int, max_steps: int) -> dict[str, Any]:
  """One episode.

  Args:
    policy: from `wam_jax.load_policy`.
    seed: of start state and noise.
    max_steps: actions after which it ends.

  Returns:
    success, steps, robot_obs [T+1, 15], scene_obs [T+1, 24].
  """
  import gymnasium
  import numpy as np

  env = gymnasium.make(ENV_ID, task=policy.task, image_size=policy.image_size, max_steps=max_steps)
  observation, info = env.reset(seed=seed)
  policy.reset(seed=seed)
  states, done = [observation], False
  while not done:
    observation, _, terminated, truncated, info = env.step(policy.act(observation))
    states.append(observation)
    done = terminated or truncated
  env.close()
  stacked = {name: np.stack([state[name] for state in states]) for name in ("robot_obs", "scene_obs")}
  return {"success": bool(info["success"]), "steps": len(states) - 1, **stacked}


def animate(episodes: Sequence[dict[str, Any]], size: int) -> Any:
  """Animation [T, H, W, 3] uint8 of the static camera, episodes side by side, at most four in a row."""
  from wam_jax.envs.play_table import renderer
  from wam_jax.reporting import media

  render = renderer.make_renderer(size, workers=1)
  films = []
  for episode in episodes:
    shown = media.shown_times(episode["steps"])
    films.append(render(episode["robot_obs"][shown], episode["scene_obs"][shown])["rgb_static"])
  return media.side_by_side(films, min(4, len(films)))


def film(episodes: Sequence[dict[str, Any]], size: int, kind: str = "webp") -> bytes:
  """The animation of `animate` as a file: 'webp', which is smaller, 'gif' or 'mp4'."""
  from wam_jax.reporting import media

  return media.animation_bytes(animate(episodes, size), CONTROL_HZ / media.FRAME_STEP, kind=kind)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--task", default="open_drawer", help=f"one of the policy's, of {', '.join(TASKS)}")
  parser.add_argument(
    "--policy",
    type=machine.local_path,
    help="a run's folder, or packed policies (folder or file); default: what comes with the package",
  )
  parser.add_argument("--which", choices=TRAINED, help="of a run's folder; default: ppo if finished")
  parser.add_argument("--episodes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0, help="of the first episode; the others follow")
  parser.add_argument("--max_steps", type=int, default=72, help="at 30 Hz")
  parser.add_argument(
    "--out", type=machine.local_path, help="*.webp, *.gif or, with PyAV, *.mp4; default: TASK.webp"
  )
  parser.add_argument("--size", type=int, default=200, help="pixels of the animation")
  arguments = parser.parse_args(argv)
  out = arguments.out or pathlib.Path(f"{arguments.task}.webp")
  for name, value in (("episodes", arguments.episodes), ("max_steps", arguments.max_steps)):
    if value < 1:
      parser.error(f"--{name}: expected at least 1, got {value}")
  if not 16 <= arguments.size <= 512:
    parser.error(f"--size: expected 16 to 512, got {arguments.size}")
  if out.suffix not in (".webp", ".gif", ".mp4"):
    parser.error(f"--out: expected a name that ends with .webp, .gif or .mp4, got {out}")
  if not out.parent.is_dir():
    parser.error(f"--out: there is no folder {out.parent}")

  import wam_jax
  from wam_jax.reporting import media
  from wam_jax.storage.artifact import ArtifactError
  from wam_jax.storage.checksums import CheckpointError

  if out.suffix == ".mp4" and not media.has_mp4():
    parser.error(f"--out: {out} needs PyAV (pip install av); .webp and .gif do not")
  try:
    surroundings.start_jax()
    policy = wam_jax.load_policy(arguments.policy, arguments.task, arguments.which)
    policy.embodiment.check("the policy", CALVIN, "the play table")
    if policy.task not in TASKS:
      raise PolicyError(f"{policy.task}: the play table has no such task; it has {', '.join(TASKS)}")
  except (
    PolicyError,
    ArtifactError,
    CheckpointError,
    EmbodimentError,
    surroundings.SurroundingsError,
  ) as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  episodes = []
  for i in range(arguments.episodes):
    episode = play(policy, arguments.seed + i, arguments.max_steps)
    word = "success" if episode["success"] else "no success"
    print(
      f"{policy.task}, start {arguments.seed + i}: {word} after {count(episode['steps'], 'step')}", flush=True
    )
    episodes.append(episode)
  solved = sum(episode["success"] for episode in episodes)
  out.write_bytes(film(episodes, arguments.size, out.suffix[1:]))
  print(f"{solved} of {len(episodes)} succeeded. Animation: {out.absolute()}")
  return 0


if __name__ == "__main__":
  console.run_program(main)
