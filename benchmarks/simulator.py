"""Speed of a simulator and success of its scripted experts.

python benchmarks/simulator.py --starts=50 --noise=0.3
python benchmarks/simulator.py --env=calvin --calvin_root=calvin_env   # CALVIN's own simulator
python benchmarks/simulator.py --env=metaworld
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from wam_jax.envs import base, registry
from wam_jax.envs.recording import add_noise
from wam_jax.envs.vector import make_vector

MAX_STEPS = 72  # of an episode whose speed is measured


def random_actions(simulator: base.Simulator, rng: np.random.Generator, num: int) -> np.ndarray:
  """[num, A] in [-1, 1], binary numbers -1 or +1."""
  actions = rng.uniform(-1, 1, (num, simulator.embodiment.action_size))
  return np.where(simulator.embodiment.binary, np.where(actions > 0, 1.0, -1.0), actions)


def physics(simulator: base.Simulator, steps: int) -> float:
  """Control steps per CPU-second of one thread: random actions from random starts, state read each step."""
  rng, env = np.random.default_rng(0), simulator.make()
  spent = 0.0
  for _ in range(max(1, steps // MAX_STEPS)):
    env.reset(env.sample_start("", rng))
    begin = time.thread_time()
    for action in random_actions(simulator, rng, MAX_STEPS):
      env.step(action)
      env.state()
    spent += time.thread_time() - begin
  return max(1, steps // MAX_STEPS) * MAX_STEPS / spent


def vector(simulator: base.Simulator, num: int, steps: int, workers: int) -> float:
  """Control steps per second of wall time of `num` environments in `workers` threads."""
  rng, env = np.random.default_rng(0), make_vector(simulator, num, workers)
  env.reset(starts(simulator, rng, num), [""] * num)
  begin = time.perf_counter()
  for _ in range(steps):
    env.step(random_actions(simulator, rng, num))
  return num * steps / (time.perf_counter() - begin)


def starts(simulator: base.Simulator, rng: np.random.Generator, num: int) -> np.ndarray:
  """[num, W] starts of play."""
  env = simulator.make()
  return np.stack([env.sample_start("", rng) for _ in range(num)])


def pictures(simulator: base.Simulator, image_size: int, frames: int) -> tuple[float, float] | None:
  """Pictures per CPU-second and per second of wall time on all cores; None: environments draw themselves."""
  draw = simulator.make_renderer(image_size)
  if draw is None:
    return None
  snapshots = starts(simulator, np.random.default_rng(0), frames)
  draw(snapshots[:1])  # compiles
  wall, cpu = time.perf_counter(), time.process_time()
  drawn = len(simulator.embodiment.camera_names) * frames
  draw(snapshots)
  return drawn / (time.process_time() - cpu), drawn / (time.perf_counter() - wall)


def expert_success(
  simulator: base.Simulator, env: base.Environment, task: str, num: int, noise: float, steps: int
) -> list[int]:
  """Steps to success of each successful episode out of `num`, of at most `steps`."""
  lengths = []
  for seed in range(num):
    rng = np.random.default_rng([seed, simulator.tasks.index(task)])
    env.reset(env.sample_start(task, rng), task)
    act = env.expert(task, rng)
    for step in range(steps):
      action = act()
      if action is None:
        break
      env.step(add_noise(action, rng, noise, simulator.embodiment))
      if env.success():
        lengths.append(step + 1)
        break
  return lengths


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--env", default="play_table", help="as --config.env.name")
  parser.add_argument(
    "--starts", type=int, default=50, help="starts per task for the experts; 0: leave them out"
  )
  parser.add_argument(
    "--noise", type=float, default=0.3, help="standard deviation of the experts' action noise"
  )
  parser.add_argument("--max_steps", type=int, default=MAX_STEPS, help="of an expert's episode")
  parser.add_argument("--steps", type=int, default=3000, help="control steps for the speed; 0: leave it out")
  parser.add_argument("--frames", type=int, default=512, help="frames for the speed of 64x64 pictures")
  parser.add_argument("--calvin_root", default="", help="checkout of calvin_env")
  arguments = parser.parse_args()
  simulator = registry.load({"name": arguments.env, "calvin_root": arguments.calvin_root})
  if arguments.steps:
    speeds(simulator, arguments.steps, arguments.frames)
  env = simulator.make()
  for task in simulator.experts if arguments.starts else ():
    lengths = expert_success(simulator, env, task, arguments.starts, arguments.noise, arguments.max_steps)
    steps = f"steps {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}" if lengths else ""
    print(f"{task:20s} {len(lengths):3d}/{arguments.starts} {steps}")


def speeds(simulator: base.Simulator, steps: int, frames: int) -> None:
  """Prints the speed of physics and pictures."""
  speed = physics(simulator, steps)
  print(f"physics              {speed:7.0f} control steps per core-second, without pictures")
  for workers in (1, 0) if simulator.threads else ():
    speed = vector(simulator, 64, max(1, steps // 64), workers)
    name = "1 thread" if workers else "all cores"
    print(f"64 environments      {speed:7.0f} control steps per second, {name}")
  for size, num in ((64, frames), (200, max(1, frames // 8))):
    if size <= (simulator.largest_picture or size) and (drawn := pictures(simulator, size, num)):
      cpu, wall = drawn
      print(
        f"{size:3d}x{size:<3d} pictures     {cpu:7.0f} per core-second, {wall:.0f} per second on all cores"
      )


if __name__ == "__main__":
  main()
