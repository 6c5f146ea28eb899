"""A scan over frames whose dense layers get their gradients after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from wam_jax.types import Params

Step = Callable[[Params, Any, Any], tuple[Any, Any]]


@jax.custom_vjp
def _tap(y: jax.Array, tap: jax.Array) -> jax.Array:
  """y; its gradient is also that of `tap`."""
  return y


_tap.defvjp(lambda y, tap: (y, None), lambda _, grad: (grad, grad))


def _run(step: Step, *args: Any, taps: Sequence[jax.Array] | None = None) -> tuple[Any, list, list]:
  """What `step(*args)` returns, and paths and (input, output) of the `nn.Dense` layers that it calls."""
  paths: list[tuple[str, ...]] = []
  values: list[tuple[jax.Array, jax.Array]] = []

  def layer(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    y = call(*args, **kwargs)
    if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
      return y
    paths.append(context.module.path)
    values.append((args[0], y))
    return y if taps is None else _tap(y, taps[len(paths) - 1])

  with nn.intercept_methods(layer):
    out = step(*args)
  return out, paths, values


def scan(step: Step, params: Params, init: Any, frames: Any) -> tuple[Any, Any]:
  """`jax.lax.scan` of `step(params, carry, frame) -> (carry, out)`; the same gradients, sooner.

  In the backward loop of a plain scan every frame adds its part to the gradient of every kernel, which is
  read and written whole for a product with the few rows of a batch. Here one product over all frames comes
  after the loop. In reverse mode only (`jax.grad`, `jax.vjp`).

  Args:
    step: its `nn.Dense` layers are found by themselves. It closes over nothing that is differentiated.
    params: of the networks that it applies, as their `apply` takes them.
    init: pytree, the first carry.
    frames: pytree of [T, ...].

  Returns:
    (last carry, outs [T, ...]).
  """
  num = len(jax.tree.leaves(frames)[0])
  paths: list[tuple[str, ...]] = []

  def layers(*args: Any) -> list:
    _, found, values = _run(step, *args)
    paths.extend(found)
    return values

  shapes = jax.eval_shape(layers, params, init, jax.tree.map(lambda x: x[0], frames))
  flat = traverse_util.flatten_dict(params)
  dense = {path: x for path, x in flat.items() if path[:-1] in paths}
  others = {path: x for path, x in flat.items() if path not in dense}
  join = lambda *parts: traverse_util.unflatten_dict({k: x for part in parts for k, x in part.items()})
  seen, structure = jax.tree.flatten(frames)
  is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in seen]

  @jax.custom_vjp
  def run(dense: Params, others: Params, init: Any, seen: list) -> tuple[Any, Any]:
    params = join(dense, others)
    return jax.lax.scan(
      lambda carry, frame: step(params, carry, frame), init, jax.tree.unflatten(structure, seen)
    )

  def forward(dense: Params, others: Params, init: Any, seen: list) -> tuple[Any, Any]:
    def run(others: Params, init: Any, floats: list, taps: list) -> tuple[Any, list]:
      params, rest = join(dense, others), iter(floats)
      frames = jax.tree.unflatten(
        structure, [next(rest) if f else x for f, x in zip(is_float, seen, strict=True)]
      )

      def body(carry: Any, inputs: tuple) -> tuple[Any, Any]:
        frame, taps = inputs
        (carry, out), _, values = _run(step, params, carry, frame, taps=taps)
        return carry, (out, [x for x, _ in values])

      last, (out, inputs) = jax.lax.scan(body, init, (frames, taps))
      return (last, out), inputs

    floats = [x for f, x in zip(is_float, seen, strict=True) if f]
    taps = [jnp.zeros((num, *y.shape), y.dtype) for _, y in shapes]
    out, vjp, inputs = jax.vjp(run, others, init, floats, taps, has_aux=True)
    return out, (vjp, inputs, dense)

  def backward(residuals: tuple, grad: Any) -> tuple:
    vjp, inputs, dense = residuals
    of_others, of_init, of_floats, of_taps = vjp(grad)
    of_dense = jax.tree.map(jnp.zeros_like, dense)
    for path, x, y in zip(paths, inputs, of_taps, strict=True):
      rows = tuple(range(y.ndim - 1))
      kernel = (*path, "kernel")
      of_dense[kernel] += jax.lax.dot_general(
        x.astype(y.dtype), y, ((rows, rows), ((), ())), preferred_element_type=dense[kernel].dtype
      )
      if (bias := (*path, "bias")) in dense:
        of_dense[bias] += y.astype(dense[bias].dtype).sum(rows)
    rest = iter(of_floats)
    return of_dense, of_others, of_init, [next(rest) if f else None for f in is_float]

  run.defvjp(forward, backward)
  return run(dense, others, init, seen)
