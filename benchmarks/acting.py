"""Latency of one policy step at the published size, on one core: from pictures to the action.

python benchmarks/acting.py                   # with pictures of 64 pixels, then as CALVIN has them
python benchmarks/acting.py --frames=4000     # more frames per percentile

One robot, random weights (they do not change the work), one thread pinned to one core, `ActingPolicy.act`
as a robot calls it, checks and shrinking included. Median and 99th percentile of the frames that only filter,
and of those that also sample a chunk in 20 denoising steps. 30 Hz leave 33 ms. Wall time is what counts, on
a machine with nothing else to do; CPU time is printed too, for one that has other work.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

if __name__ == "__main__":  # before JAX starts its threads
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import numpy as np

from wam_jax.acting.models import make_policy
from wam_jax.acting.policy import ActingPolicy
from wam_jax.config import default_config
from wam_jax.nn.world_model import make_world_model
from wam_jax.training import world_model as wm

TARGET = 33.3  # ms, at 30 Hz
SIDES = {"as the model has them": (64, 64), "as CALVIN has them": (200, 84)}


def random_policy(config: Any) -> ActingPolicy:
  """The networks of a config with random weights."""
  model = make_world_model(config.world_model, config.env.image_size)
  params = wm.init_params(model, jax.random.key(0))
  policy = make_policy(config, model.feature_size)
  network = jax.tree.map(lambda x: x[None], policy.init(jax.random.key(1)))
  return ActingPolicy(model, params, policy, {"base": network, "tuned": network}, "benchmark")


def latencies(policy: ActingPolicy, sides: tuple[int, int], frames: int) -> np.ndarray:
  """Wall and CPU milliseconds of each frame: [2, frames]."""
  rng = np.random.default_rng(0)
  picture = lambda side: rng.integers(0, 256, (side, side, 3), np.uint8)
  seen: list[dict[str, Any]] = [
    {"rgb_static": picture(sides[0]), "rgb_gripper": picture(sides[1])} for _ in range(16)
  ]
  policy.reset()
  for observation in seen:  # compiles
    policy.act(observation)
  policy.reset()
  times = np.zeros((2, frames))
  for t in range(frames):
    wall, cpu = time.perf_counter(), time.process_time()
    policy.act(seen[t % len(seen)])
    times[:, t] = time.perf_counter() - wall, time.process_time() - cpu
  return 1e3 * times


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--frames", type=int, default=1200, help="frames measured")
  arguments = parser.parse_args()
  begin = time.perf_counter()
  policy = random_policy(default_config())  # `paper`
  made = time.perf_counter()
  rng = np.random.default_rng(1)
  policy.act({camera: rng.integers(0, 256, (64, 64, 3), np.uint8) for camera in policy.cameras})
  print(f"weights made in {made - begin:.1f} s, first frame {time.perf_counter() - made:.1f} s (compiling)")
  for name, sides in SIDES.items():
    times = latencies(policy, sides, arguments.frames)
    samples = np.arange(arguments.frames) % policy.chunk == 0
    print(f"pictures {name}, {sides[0]} and {sides[1]} pixels a side, {arguments.frames} frames")
    for what, chosen in (("filters only", ~samples), ("filters and samples", samples)):
      (wall, late), (cpu, cpu_late) = np.percentile(times[:, chosen], [50, 99], axis=1).T
      verdict = "met" if late < TARGET else "MISSED"
      print(f"  {what:20s} median {wall:5.1f} ms, 99 % {late:5.1f} ms; {TARGET} ms {verdict};", end=" ")
      print(f"CPU {cpu:5.1f} and {cpu_late:5.1f} ms", flush=True)


if __name__ == "__main__":
  main()
