"""wam_jax.main with something broken: `python broken_main.py FAULT ARGUMENTS`.

FAULT is `clock` (time.time jumps back by 40 days again and again) or `nan:STAGE:N` (one weight of a stage is
NaN from update N on).
"""

from __future__ import annotations

import runpy
import sys
import time


def break_clock() -> None:
  real, began = time.time, time.monotonic()
  day = 86400.0

  def jumping() -> float:
    return real() - 40 * day * int((time.monotonic() - began) / 0.5)

  time.time = jumping
  time.time_ns = lambda: int(jumping() * 1e9)


def break_weight(stage: str, after: int) -> None:
  from wam_jax.stages import runner

  runner.use_compilation_cache()
  import jax
  import numpy as np

  from wam_jax.stages import training_loop

  loop = training_loop.train_loop

  def train_loop(**settings):
    update = settings["update"]

    def broken(state, key, num):
      if int(np.ravel(state.step)[0]) >= after:
        leaves, tree = jax.tree.flatten(state.params)
        with jax.transfer_guard("allow"):
          leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(np.nan)
        state = state.replace(params=tree.unflatten(leaves))
      return update(state, key, num)

    if settings["metric_prefix"] == stage:
      settings["update"] = broken
    return loop(**settings)

  training_loop.train_loop = train_loop


if __name__ == "__main__":
  name, *details = sys.argv[1].split(":")
  if name == "clock":
    break_clock()
  else:
    break_weight(details[0], int(details[1]))
  sys.argv = ["wam_jax/main.py", *sys.argv[2:]]
  runpy.run_module("wam_jax.main", run_name="__main__", alter_sys=True)
