"""Gradients of scans, taken after the backward loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from wam_jax.nn import recurrence

LENGTH, ROWS = 5, 3


class Cell(nn.Module):
  """One layer called twice, one without bias, a norm, and a parameter of its own."""

  def setup(self):
    self.twice = nn.Dense(4)
    self.plain = nn.Dense(4, use_bias=False)
    self.norm = nn.LayerNorm()
    self.scale = self.param("scale", nn.initializers.normal(1.0), (4,))

  def __call__(self, h, x, keep):
    h = jnp.where(keep[:, None], h, 0.0)
    return jnp.tanh(self.norm(self.twice(self.twice(h)) + self.plain(x)) * self.scale + h)


def step(params, carry, frame):
  x, keep, count = frame
  carry = Cell().apply({"params": params}, carry, x, keep)
  return carry, (carry, count)


def test_gradients_are_those_of_a_plain_scan_and_of_finite_differences():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    h, x = jnp.asarray(rng.normal(size=(ROWS, 4))), jnp.asarray(rng.normal(size=(LENGTH, ROWS, 2)))
    keep, count = jnp.asarray(rng.random((LENGTH, ROWS)) < 0.7), jnp.arange(LENGTH)
    params = Cell().init(jax.random.key(0), h, x[0], keep[0])["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    weights = jnp.asarray(rng.normal(size=(LENGTH, ROWS, 4)))

    def loss(scan, params, h, x):
      last, (out, counts) = scan(params, h, (x, keep, count))
      return (out * weights).sum() + jnp.square(last).sum() + counts.sum()

    plain = lambda params, h, frames: jax.lax.scan(lambda c, f: step(params, c, f), h, frames)
    ours = lambda *args: loss(lambda *inputs: recurrence.scan(step, *inputs), *args)
    theirs = lambda *args: loss(plain, *args)
    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(params, h, x)
    expected, expected_grads = jax.jit(jax.value_and_grad(theirs, (0, 1, 2)))(params, h, x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
      assert np.abs(b).max() > 1e-3
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    check_grads(jax.jit(ours), (params, h, x), order=1, modes=["rev"])


def test_no_kernel_is_added_up_inside_the_backward_loop():
  h, x = jnp.zeros((ROWS, 4)), jnp.zeros((LENGTH, ROWS, 2))
  keep = jnp.ones((LENGTH, ROWS), bool)
  params = Cell().init(jax.random.key(0), h, x[0], keep[0])["params"]

  def loss(scan, params):
    return jax.grad(lambda params: scan(params, h, (x, keep, jnp.arange(LENGTH)))[0].sum())(params)

  def carried(scan):
    """Largest number of matrices [4, 4] that a loop of the gradient hands on."""
    jaxpr = jax.make_jaxpr(lambda params: loss(scan, params))(params)
    loops = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    at = lambda e: e.outvars[: e.params["num_carry"]]
    return max(sum(v.aval.shape == (4, 4) for v in at(e)) for e in loops)

  assert carried(lambda params, *args: recurrence.scan(step, params, *args)) == 0
  plain = lambda params, h, frames: jax.lax.scan(lambda c, f: step(params, c, f), h, frames)
  assert carried(plain) > 0
