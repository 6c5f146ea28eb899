"""One mesh over all devices of a run: batches are split along it, everything else is on each of them.

Programs are written for the whole batch; `split` says where it is divided, and XLA adds the sums over
devices. Random numbers do not depend on the division: N devices compute what one does, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
AXIS = "data"


def make_mesh(num_devices: int = 0, devices: Sequence[Any] | None = None) -> Mesh | None:
  """A one-dimensional mesh over devices; None for one device.

  Args:
    num_devices: how many of them; 0: all there are.
    devices: to choose from; None: those of all processes.

  Raises:
    ValueError: there are fewer.
  """
  devices = jax.devices() if devices is None else devices
  if num_devices > len(devices):
    raise ValueError(f"num_devices: {num_devices} wanted, there are {len(devices)}")
  devices = devices[: num_devices or None]
  if len(devices) == 1:
    return None
  # Not jax.make_mesh, which orders a TPU pod's devices by its torus: `own_rows` are consecutive.
  ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered), (AXIS,), axis_types=(AxisType.Auto,))


def padded(size: int, mesh: Mesh | None, parts: int = 1) -> int:
  """The smallest number of rows from `size` on that devices share evenly, each in so many parts."""
  unit = parts * (1 if mesh is None else mesh.size)
  return -(-size // unit) * unit


def repeat_rows(tree: Any, rows: int) -> Any:
  """Arrays [B, ...] -> [rows, ...], at least B: the first rows again where there are no more."""
  return jax.tree.map(lambda x: x if len(x) == rows else x[np.arange(rows) % len(x)], tree)


def split(tree: Tree, mesh: Mesh | None, axis: int = 0) -> Tree:
  """Inside jit: divides an axis of all arrays over the devices. Without a mesh nothing changes.

  An axis that the devices do not share evenly is whole on each of them.
  """
  if mesh is None:
    return tree

  def divide(x: jax.Array) -> jax.Array:
    axes = [*[None] * axis, AXIS] if x.shape[axis] % mesh.size == 0 else []
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

  return jax.tree.map(divide, tree)


def whole(tree: Tree, mesh: Mesh | None) -> Tree:
  """Inside jit: has all arrays on each device. Without a mesh nothing changes."""
  return (
    tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
  )


def over_devices(
  fn: Callable[..., tuple[Any, Any]], mesh: Mesh, split: Sequence[bool]
) -> Callable[..., tuple[Any, Any]]:
  """Runs `fn` on each device with its rows.

  Args:
    fn: function to (something equal on all devices, something with rows along its first axis).
    mesh: the devices.
    split: of each argument, whether its first axis is divided; otherwise every device has it whole.
  """
  specs = tuple(PartitionSpec(AXIS) if one else PartitionSpec() for one in split)
  # Without check_vma, which would sum the gradient of arguments that are whole in the middle of `fn`.
  return jax.shard_map(
    fn, mesh=mesh, in_specs=specs, out_specs=(PartitionSpec(), PartitionSpec(AXIS)), check_vma=False
  )


def mean_over_devices(tree: Tree) -> Tree:
  """Inside `over_devices`: the mean of float32 arrays over devices, in one exchange for all of them."""
  leaves, structure = jax.tree.flatten(tree)
  chex.assert_type(leaves, jnp.float32)
  ends = np.cumsum([leaf.size for leaf in leaves])
  flat = jnp.zeros(ends[-1], jnp.float32)
  for leaf, end in zip(leaves, ends, strict=True):  # on CPUs three times as fast as a concatenation
    flat = jax.lax.dynamic_update_slice(flat, leaf.reshape(-1), (end - leaf.size,))
  parts = jnp.split(jax.lax.pmean(flat, AXIS), ends[:-1])
  return jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])


def put(tree: Tree, mesh: Mesh | None) -> Tree:
  """Puts arrays, the same in each process, on all devices. Without a mesh nothing changes."""
  if mesh is None:
    return tree
  sharding = NamedSharding(mesh, PartitionSpec())

  def one(x: Any) -> Any:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    # What device_put would do, less its comparison of the processes' values, which costs a broadcast.
    with jax.transfer_guard("allow"):  # this is a transfer that was asked for
      host = np.asarray(x)
      return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(one, tree)


def put_rows(tree: Tree, mesh: Mesh | None, axis: int = 0) -> Tree:
  """Puts each process's own rows of a batch on its devices, as parts of the whole batch.

  Args:
    tree: host arrays; along `axis` the rows `own_rows` of the whole.
    mesh: of the run; None: everything on the one device.
    axis: along which the batch is divided.
  """
  if mesh is None:
    return jax.device_put(tree)
  sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
  with jax.transfer_guard("allow"):
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def own_rows(size: int, mesh: Mesh | None) -> slice:
  """Rows of a batch that this process's devices work on."""
  if mesh is None:
    return slice(0, size)
  index, count = jax.process_index(), jax.process_count()
  return slice(index * size // count, (index + 1) * size // count)


def on_this_process(tree: Tree) -> Tree:
  """Arrays that are whole on every device, as ordinary arrays on this process's first one."""
  return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
