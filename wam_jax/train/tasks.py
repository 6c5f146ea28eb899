"""Running one function for every task: parameters and data stacked on a leading task axis."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def task_keys(key: jax.Array, num_tasks: int) -> jax.Array:
  """One key per task that does not depend on how many tasks there are."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_tasks))


def over_tasks(
  fn: Callable[..., Any], static: Sequence[int] = (), threads: int | None = None
) -> Callable[..., Any]:
  """Compiles `fn(task, shared, *static)` for all tasks at once.

  On an accelerator the tasks are one vmapped program. On a CPU they run one after the other inside a
  program (a batched product of small matrices is no faster there than one at a time), and the tasks are dealt out to
  one such program per core, in threads: small matrices leave most cores idle otherwise. A task's
  result does not depend on the thread that computed it.

  Args:
    fn: (task, shared, ...) -> tree of arrays. `task` is the tree of one task, without the task axis.
    static: positions of further arguments, from 2 on, that are compile-time constants.
    threads: programs side by side; None: one per core on a CPU, otherwise one.

  Returns:
    Function of (task with a leading task axis, shared, ...) to results with a leading task axis.

  Raises:
    ValueError: (when called) leaves of `task` differ in their leading axis.
  """
  on_cpu = jax.default_backend() == "cpu"
  if threads is None:
    threads = len(os.sched_getaffinity(0)) if on_cpu else 1

  def mapped(task: Any, shared: Any, *rest: Any) -> Any:
    one = lambda t: fn(t, shared, *rest)  # noqa: E731
    return jax.lax.map(one, task) if on_cpu else jax.vmap(one)(task)

  jitted = jax.jit(mapped, static_argnums=tuple(static))
  compiled: dict[Any, Any] = {}
  lock = threading.Lock()

  def program(*args: Any) -> Any:
    """Compiled once per shape, whichever thread comes first."""
    shapes = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), [a for i, a in enumerate(args) if i not in static])
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2)
    signature = (tuple(leaves), structure, tuple(args[i] for i in static))
    with lock:
      if signature not in compiled:
        compiled[signature] = jitted.lower(*args).compile()
    return compiled[signature]

  def call(task: Any, shared: Any, *rest: Any) -> Any:
    sizes = {x.shape[0] for x in jax.tree.leaves(task)}
    if len(sizes) != 1:
      raise ValueError(f"leading task axes differ: {sorted(sizes)}")
    (num_tasks,) = sizes
    shards = np.array_split(np.arange(num_tasks), min(threads, num_tasks))
    dynamic = [a for i, a in enumerate(rest, 2) if i not in static]

    def run(rows: np.ndarray) -> Any:
      part = task if len(rows) == num_tasks else jax.tree.map(lambda x: x[rows[0] : rows[-1] + 1], task)
      return jax.block_until_ready(program(part, shared, *rest)(part, shared, *dynamic))

    if len(shards) == 1:
      return run(shards[0])
    with ThreadPoolExecutor(len(shards)) as pool:
      parts = list(pool.map(run, shards))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return call


def take_task(tree: Any, index: int) -> Any:
  """One task's part of a stacked tree."""
  return jax.tree.map(lambda x: x[index], tree)


def task_metrics(tasks: Sequence[str], metrics: dict[str, jax.Array]) -> dict[str, Any]:
  """{name: [K]} to scalars: the mean over tasks as `name`, then each task's as `task/name`."""
  host = jax.device_get(metrics)
  out = {name: value.mean() for name, value in host.items()}
  for i, task in enumerate(tasks):
    out |= {f"{task}/{name}": value[i] for name, value in host.items()}
  return out
