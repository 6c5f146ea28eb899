"""wam_jax.main with something broken: `python broken_main.py FAULT ARGUMENTS`.

FAULT is `clock` (time.time jumps back by 40 days again and again), `nan:STAGE:N` (one weight of a stage is
NaN from update N on) or `stuck:STAGE:N` (update N of a stage takes ten minutes).
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


def break_update(stage: str, after: int, broken) -> None:
  """Gives the states of a stage from update `after` on to `broken`, and updates what that returns."""
  from wam_jax.host import surroundings

  surroundings.prepare_jax()
  from wam_jax.running import training_loop

  loop = training_loop.train_loop

  def train_loop(run, state, update, **settings):
    def maybe_broken(state, key, num):
      return update(broken(state) if _step(state) >= after else state, key, num)

    return loop(run, state, maybe_broken if settings["prefix"] == stage else update, **settings)

  training_loop.train_loop = train_loop


def _step(state) -> int:
  import numpy as np

  return int(np.ravel(state.step)[0])


def with_nan(state):
  import jax
  import numpy as np

  leaves, tree = jax.tree.flatten(state.params)
  with jax.transfer_guard("allow"):
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(np.nan)
  return state.replace(params=tree.unflatten(leaves))


def after_ten_minutes(state):
  time.sleep(600)
  return state


if __name__ == "__main__":
  name, *details = sys.argv[1].split(":")
  if name == "clock":
    break_clock()
  else:
    broken = {"nan": with_nan, "stuck": after_ten_minutes}[name]
    break_update(details[0], int(details[1]), broken)
  sys.argv = ["wam_jax/main.py", *sys.argv[2:]]
  runpy.run_module("wam_jax.main", run_name="__main__", alter_sys=True)
