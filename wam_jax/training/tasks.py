"""Running one function for every task: parameters and data stacked on a leading task axis."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wam_jax.core.backend import backend
from wam_jax.host import machine
from wam_jax.training import sharding


def repeat(
  step: Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array]]],
  state: Any,
  key: jax.Array,
  num: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
  """Runs `step(state, key) -> (state, metrics)` `num` times and averages the metrics.

  `num` is an ordinary argument: a shorter last call does not compile anew.

  Args:
    step: one update.
    state: its state.
    key: random key; step i gets fold_in(key, i).
    num: scalar int32, at least 1.

  Returns:
    The state, and the mean of each metric over the steps.
  """
  like = jax.eval_shape(step, state, key)[1]
  total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)

  def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
    state, total = carry
    state, metrics = step(state, jax.random.fold_in(key, i))
    return state, jax.tree.map(jnp.add, total, metrics)

  state, total = jax.lax.fori_loop(0, num, body, (state, total))
  return state, jax.tree.map(lambda x: x / num, total)


def task_keys(key: jax.Array, num_tasks: int) -> jax.Array:
  """One key per task that does not depend on how many tasks there are."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_tasks))


@dataclasses.dataclass(frozen=True)
class TaskProgram:
  """What `over_tasks` makes: called with (task with a leading task axis, shared), it gives results with one.

  Attributes:
    call: runs it. Raises ValueError if leaves of `task` differ in their leading axis.
    jitted: what is compiled.
    arguments: (task, rows int32 [R], shared) -> those of `jitted`, which returns results of these rows of the
      task axis; on an accelerator they are all rows.
  """

  call: Callable[[Any, Any], Any]
  jitted: Any
  arguments: Callable[[Any, Any, Any], tuple[Any, ...]]

  def __call__(self, task: Any, shared: Any) -> Any:
    return self.call(task, shared)


def over_tasks(
  fn: Callable[[Any, Any], Any],
  threads: int | None = None,
  mesh: Mesh | None = None,
  donate: bool = False,
) -> TaskProgram:
  """Compiles `fn(task, shared)` for all tasks at once.

  On an accelerator the tasks are one vmapped program. On a CPU they run one after the other inside a
  program (a batched product of small matrices is no faster there than one at a time), and the tasks
  are dealt out to one such program per core, in threads: small matrices leave cores idle otherwise.
  With a mesh there is one program on all its devices, and `fn` says what they divide.

  Args:
    fn: (task, shared) -> tree of arrays. `task` is the tree of one task, without the task axis.
    threads: programs side by side on a CPU; None: one per core. Without meaning with a mesh.
    mesh: devices to run on; arguments and results are whole on each of them.
    donate: `task` is a tuple whose first entry an accelerator may overwrite with the results.
  """
  on_cpu = backend() == "cpu"
  threads = threads or machine.available_cores()

  def arguments(task: Any, rows: Any, shared: Any) -> tuple[Any, ...]:
    return (task[0], task[1:], rows, shared) if donate else (None, task, rows, shared)

  def mapped(given: Any, kept: Any, rows: jax.Array, shared: Any) -> Any:
    task = (given, *kept) if donate else kept
    one = lambda task: fn(task, shared)
    # Indexed inside the program: cutting big stacked data into shards outside would copy it.
    out = jax.lax.map(lambda i: one(take_task(task, i)), rows) if on_cpu else jax.vmap(one)(task)
    return sharding.whole(out, mesh)

  jitted = jax.jit(mapped, donate_argnums=0 if donate and not on_cpu else ())
  compiled: dict[Any, Any] = {}
  lock = threading.Lock()

  def program(*args: Any) -> Any:
    """Compiled once per shape, by whichever thread comes first."""
    leaves, structure = jax.tree.flatten(args)
    signature = (structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves))
    with lock:
      if signature not in compiled:
        compiled[signature] = jitted.lower(*args).compile()
    return compiled[signature]

  def call(task: Any, shared: Any) -> Any:
    sizes = {x.shape[0] for x in jax.tree.leaves(task)}
    if len(sizes) != 1:
      raise ValueError(f"leading task axes differ: {sorted(sizes)}")
    (num_tasks,) = sizes
    if mesh is not None:
      rows = sharding.put(np.arange(num_tasks, dtype=np.int32), mesh)
      return jax.block_until_ready(jitted(*arguments(task, rows, shared)))
    shards = np.array_split(np.arange(num_tasks, dtype=np.int32), min(threads, num_tasks) if on_cpu else 1)

    def run(rows: np.ndarray) -> Any:
      args = arguments(task, jax.device_put(rows), shared)
      return jax.block_until_ready(program(*args)(*args))

    if len(shards) == 1:
      return run(shards[0])
    with ThreadPoolExecutor(len(shards)) as pool:
      parts = list(pool.map(run, shards))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return TaskProgram(call, jitted, arguments)


def update_over_tasks(
  update_task: Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]],
  mesh: Mesh | None = None,
) -> TaskProgram:
  """`update_task(state, data, key, num)` of one task for all: ((state, data, keys), num) -> its results.

  The state is donated.
  """

  def update(task: tuple[Any, Any, jax.Array], num: jax.Array) -> Any:
    return update_task(*task, num)

  return over_tasks(update, mesh=mesh, donate=True)


def make_task_update(
  update_task: Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, dict[str, jax.Array]]],
  data: Any,
  tasks: Sequence[str],
  mesh: Mesh | None = None,
) -> Callable[[Any, jax.Array, int], tuple[Any, dict[str, Any]]]:
  """Turns the updates of one task into those of all, as `running.training_loop.train_loop` calls them.

  Args:
    update_task: as in `update_over_tasks`.
    data: what each task learns from, stacked over K tasks.
    tasks: K names.
    mesh: devices to run on.

  Returns:
    `update(state, key, num)` on states stacked over K tasks; metrics as `task_metrics`.
  """
  update_tasks = update_over_tasks(update_task, mesh)
  data = sharding.put(data, mesh)

  def update(state: Any, key: jax.Array, num: int) -> tuple[Any, dict[str, Any]]:
    keys, num_updates = sharding.put((task_keys(key, len(tasks)), jax.device_put(np.int32(num))), mesh)
    state, metrics = update_tasks((state, data, keys), num_updates)
    return state, task_metrics(tasks, metrics)

  return update


def take_task(tree: Any, index: int | jax.Array) -> Any:
  """One task's part of a stacked tree."""
  return jax.tree.map(lambda x: x[index], tree)


def task_metrics(tasks: Sequence[str], metrics: dict[str, jax.Array]) -> dict[str, Any]:
  """{name: [K]} to scalars: the mean over tasks as `name`, then each task's as `task/name`."""
  host = jax.device_get(metrics)
  out = {name: value.mean() for name, value in host.items()}
  for i, task in enumerate(tasks):
    out |= {f"{task}/{name}": value[i] for name, value in host.items()}
  return out
