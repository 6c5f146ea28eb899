"""Shows a policy at work in the simulator of its run: runs episodes, writes an animation of them.

python -m wam_jax.play --task=open_drawer                          # the policies that come with the package
python -m wam_jax.play --task=turn_on_led --policy=runs/calvin_wam_demo --episodes=4 --out=led.gif
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import TRAINED
from wam_jax.embodiment import EmbodimentError
from wam_jax.envs import registry
from wam_jax.envs.base import NotOffered, Simulator
from wam_jax.envs.vector import VectorEnvironment
from wam_jax.host import console, machine, surroundings
from wam_jax.host.words import count, printable


def play(policy: Any, seed: int, max_steps: int, simulator: Simulator | None = None) -> dict[str, Any]:
  """One episode.

  Args:
    policy: from `wam_jax.load_policy`.
    seed: of start and noise.
    max_steps: actions after which it ends.
    simulator: that the policy acts in; None: the embedded one.

  Returns:
    success, steps, task, start [W], action [T, A], robot_obs [T+1, state_size] and, where the simulator has
    them, snapshot [T+1, W].
  """
  simulator = simulator or registry.load("play_table")
  env = simulator.make()
  start = env.sample_start(policy.task, np.random.default_rng(seed))
  env.reset(start, policy.task)
  # Drawn by itself where it can be: CALVIN's pictures of a state that it is put into are not quite these.
  render = simulator.make_renderer(policy.image_size, workers=1) if env.pictures() is None else None
  vector = VectorEnvironment([env], render, 1, policy.image_size)
  vector.reset(start[None], [policy.task])
  policy.reset(seed=seed)
  states, snapshots, success = [env.state()], [env.snapshot()], False
  actions: list[np.ndarray] = []
  while len(actions) < max_steps and not success and not env.ended:
    observation = {name: values[0] for name, values in vector.observe().items()}
    actions.append(simulator.embodiment.to_unit(policy.act(observation)))
    env.step(actions[-1])
    states.append(env.state())
    snapshots.append(env.snapshot())
    success = env.success()
  episode: dict[str, Any] = {"success": success, "steps": len(actions), "task": policy.task, "start": start}
  episode |= {"action": np.stack(actions), "robot_obs": np.stack(states)}
  kept = [snapshot for snapshot in snapshots if snapshot is not None]
  return episode | ({"snapshot": np.stack(kept)} if kept else {})


def film(
  episodes: Sequence[dict[str, Any]], size: int, kind: str = "webp", simulator: Simulator | None = None
) -> bytes:
  """Animation of episodes of `play` as a file, side by side, at most four in a row.

  Args:
    episodes: from `play`.
    size: of a picture in pixels; of a simulator that draws smaller ones, theirs.
    kind: 'webp', which is smaller, 'gif' or 'mp4'.
    simulator: as of `play`. Its first camera is shown.
  """
  from wam_jax.acting.episodes import draw_episodes
  from wam_jax.reporting import media

  simulator = simulator or registry.load("play_table")
  columns = {name: [episode[name] for episode in episodes] for name in episodes[0]}
  times = [media.shown_times(n) for n in columns["steps"]]
  films = draw_episodes(simulator, columns, times, size, workers=1)[simulator.embodiment.camera_names[0]]
  shown = media.side_by_side(films, min(4, len(films)))
  return media.animation_bytes(shown, simulator.embodiment.control_hz / media.FRAME_STEP, kind=kind)


def simulator_of(path: pathlib.Path | None, name: str = "", which: str | None = None) -> Simulator:
  """The simulator that the run with a policy was of.

  Args:
    path: of the policy; None: of those that come with the package.
    name: as `env.name`, instead of the run's; its other settings are taken from there.
    which: as for `load_policy`.

  Raises:
    PolicyError, ArtifactError: as `load_policy`.
    ValueError, NotOffered: it cannot be had here, or is code that must be named by hand.
  """
  from wam_jax.acting import load, packed

  env: dict[str, Any] = {"name": "play_table"}
  if path is not None and packed.is_packed(path):
    env = packed.environment(path)
  elif path is not None:
    env = registry.without_code(load.find_policy(path, which).config["env"])
  if not name:
    try:
      registry.check_known(env)
    except NotOffered as error:
      raise NotOffered(f"{error}; if you trust it: --simulator={env['name']}") from None
  return registry.load(env | {"name": name or env["name"]})


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m wam_jax.play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--task", help="one of the policy's; default: its only one, of the package's open_drawer"
  )
  parser.add_argument(
    "--policy",
    type=machine.local_path,
    help="a run's folder, or packed policies (folder or file); default: what comes with the package",
  )
  parser.add_argument(
    "--simulator", default="", help="as env.name; default: that of the run, if it is no code of its own"
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
  task = arguments.task or (None if arguments.policy else "open_drawer")
  out = arguments.out or pathlib.Path(f"{task or 'episode'}.webp")
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
    policy = wam_jax.load_policy(arguments.policy, task, arguments.which)
    simulator = simulator_of(arguments.policy, arguments.simulator, arguments.which)
    policy.embodiment.check("the policy", simulator.embodiment, f"the simulator {simulator.name}")
    if policy.task not in simulator.tasks:
      raise NotOffered(f"the simulator {simulator.name} does not know the task {policy.task}")
  except (
    PolicyError,
    ArtifactError,
    CheckpointError,
    EmbodimentError,
    NotOffered,
    ValueError,
    surroundings.SurroundingsError,
  ) as error:
    print(f"\n{printable(str(error))}", file=sys.stderr)
    return 1
  episodes = []
  for i in range(arguments.episodes):
    episode = play(policy, arguments.seed + i, arguments.max_steps, simulator)
    word = "success" if episode["success"] else "no success"
    print(
      f"{policy.task}, start {arguments.seed + i}: {word} after {count(episode['steps'], 'step')}", flush=True
    )
    episodes.append(episode)
  solved = sum(episode["success"] for episode in episodes)
  out.write_bytes(film(episodes, arguments.size, out.suffix[1:], simulator))
  print(f"{solved} of {len(episodes)} succeeded. Animation: {out.absolute()}")
  return 0


if __name__ == "__main__":
  console.run_program(main)
