"""Speed of the embedded simulator and success of its scripted experts.

python benchmarks/simulator.py --starts=50 --noise=0.3
python benchmarks/simulator.py --calvin_root=calvin_env   # the experts on CALVIN's own simulator
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from wam_jax.envs import base, recording, registry
from wam_jax.envs.play_table import simulator as play_table
from wam_jax.envs.play_table import skills
from wam_jax.envs.vector import make_vector

MAX_STEPS = 72


def physics(steps: int) -> float:
  """Control steps per CPU-second of one thread: random actions from random starts, state read each step."""
  rng, env = np.random.default_rng(0), play_table.PlayTable()
  spent = 0.0
  for _ in range(max(1, steps // MAX_STEPS)):
    env.reset(*skills.sample_start(None, rng))
    actions = np.concatenate([rng.uniform(-1, 1, (MAX_STEPS, 6)), rng.choice([-1.0, 1.0], (MAX_STEPS, 1))], 1)
    begin = time.thread_time()
    for action in actions:
      env.step(action)
      env.state()
    spent += time.thread_time() - begin
  return max(1, steps // MAX_STEPS) * MAX_STEPS / spent


def random_states(num: int, rng: np.random.Generator) -> np.ndarray:
  """[num, 39] of the embedded simulator."""
  return np.stack([np.concatenate(skills.sample_start(None, rng)) for _ in range(num)])


def vector(num: int, steps: int, workers: int) -> float:
  """Control steps per second of wall time of `num` environments in `workers` threads."""
  rng, env = np.random.default_rng(0), make_vector(registry.load("play_table"), num, workers)
  env.reset(random_states(num, rng), [""] * num)
  begin = time.perf_counter()
  for _ in range(steps):
    env.step(np.concatenate([rng.uniform(-1, 1, (num, 6)), np.ones((num, 1))], 1))
  return num * steps / (time.perf_counter() - begin)


def pictures(image_size: int, frames: int) -> tuple[float, float]:
  """Pictures per CPU-second and per second of wall time on all cores; a frame is two pictures."""
  states = random_states(frames, np.random.default_rng(0))
  draw = registry.load("play_table").make_renderer(image_size)
  assert draw is not None
  draw(states[:1])  # compiles
  wall, cpu = time.perf_counter(), time.process_time()
  draw(states)
  return 2 * frames / (time.process_time() - cpu), 2 * frames / (time.perf_counter() - wall)


def expert_success(
  simulator: base.Simulator, env: base.Environment, task: str, starts: int, noise: float
) -> list[int]:
  """Steps to success of each successful episode."""
  lengths = []
  for seed in range(starts):
    rng = np.random.default_rng([seed, simulator.tasks.index(task)])
    env.reset(env.sample_start(task, rng), task)
    act = env.expert(task, rng)
    for step in range(MAX_STEPS):
      action = act()
      if action is None:
        break
      env.step(recording.add_noise(action, rng, noise, simulator.embodiment))
      if env.success():
        lengths.append(step + 1)
        break
  return lengths


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--starts", type=int, default=50, help="starts per task for the experts; 0: leave them out"
  )
  parser.add_argument(
    "--noise", type=float, default=0.3, help="standard deviation of the experts' action noise"
  )
  parser.add_argument("--steps", type=int, default=3000, help="control steps for the speed of physics")
  parser.add_argument("--frames", type=int, default=512, help="frames for the speed of 64x64 pictures")
  parser.add_argument("--calvin_root", default="", help="checkout of calvin_env: the experts there, only")
  arguments = parser.parse_args()
  root = arguments.calvin_root
  simulator = registry.load({"name": "calvin", "calvin_root": root} if root else "play_table")
  if not root:
    speeds(arguments.steps, arguments.frames)
  env = simulator.make()
  for task in simulator.experts if arguments.starts else ():
    lengths = expert_success(simulator, env, task, arguments.starts, arguments.noise)
    steps = f"steps {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}" if lengths else ""
    print(f"{task:20s} {len(lengths):3d}/{arguments.starts} {steps}")


def speeds(steps: int, frames: int) -> None:
  """Prints the speed of physics and pictures."""
  print(f"physics              {physics(steps):7.0f} control steps per core-second, without pictures")
  for workers in (1, 0):
    speed, name = vector(64, max(1, steps // 64), workers), "1 thread" if workers else "all cores"
    print(f"64 environments      {speed:7.0f} control steps per second, {name}")
  for size, drawn in ((64, frames), (200, max(1, frames // 8))):
    cpu, wall = pictures(size, drawn)
    print(f"{size:3d}x{size:<3d} pictures     {cpu:7.0f} per core-second, {wall:.0f} per second on all cores")


if __name__ == "__main__":
  main()
