import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.core import convolution
from wam_jax.core.backend import compiling_for
from wam_jax.nn import layers, vision

# (side, channels in, channels out, kernel): the layers of both picture sizes, narrow, and odd ones.
STRIDED = [
  (64, 3, 4, 4),
  (31, 4, 5, 4),
  (14, 3, 2, 4),
  (6, 2, 3, 4),
  (127, 3, 2, 4),
  (9, 2, 3, 5),
  (7, 1, 1, 3),
]
TRANSPOSED = [
  (1, 7, 4, 5),
  (5, 4, 3, 5),
  (13, 3, 2, 6),
  (30, 2, 3, 6),
  (29, 2, 3, 6),
  (4, 3, 2, 3),
  (3, 2, 2, 1),
]


def strided_conv(x, kernel, stride=2, form=None):
  return convolution.conv_stack(x, [(kernel, None)], stride=stride, form=form)


def transposed_conv(x, kernel, stride=2, form=None):
  return convolution.conv_stack(x, [(kernel, None)], transposed=True, stride=stride, form=form)


def slow_strided(x, kernel, stride):
  size, (n, height, width, _) = kernel.shape[0], x.shape
  rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
  out = np.zeros((n, rows, columns, kernel.shape[3]))
  for i in range(size):
    for j in range(size):
      window = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
      out += window @ kernel[i, j]
  return out


def slow_transposed(x, kernel, stride):
  n, rows, columns, _ = x.shape
  size = kernel.shape[0]
  out = np.zeros((n, (rows - 1) * stride + size, (columns - 1) * stride + size, kernel.shape[3]))
  for y in range(rows):
    for z in range(columns):
      for i in range(size):
        for j in range(size):
          out[:, stride * y + i, stride * z + j] += x[:, y, z] @ kernel[i, j]
  return out


def arrays(num, height, width, channels, out, size):
  rng = np.random.default_rng(num + height)
  return rng.normal(size=(num, height, width, channels)), rng.normal(size=(size, size, channels, out))


def compare(function, slow, x, kernel, stride):
  """Both forms against plain NumPy, and each other's gradients."""
  with jax.enable_x64(True):
    expected = slow(x, kernel, stride)
    weight = np.random.default_rng(0).normal(size=expected.shape)
    grads = {}
    for form in convolution.FORMS:

      def loss(x, kernel, form=form):
        out = function(x, kernel, stride, form)
        return (weight * out).sum(), out

      grad_fn = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
      grads[form], out = grad_fn(jnp.asarray(x), jnp.asarray(kernel))
      assert out.dtype == jnp.float64
      np.testing.assert_allclose(out, expected, atol=1e-10)
    for a, b in zip(grads["native"], grads["matmul"], strict=True):
      assert np.abs(a).max() > 0
      np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize(("side", "channels", "out", "size"), STRIDED)
def test_strided_forms_agree_in_value_and_gradient(side, channels, out, size):
  compare(strided_conv, slow_strided, *arrays(3, side, side, channels, out, size), 2)


@pytest.mark.parametrize(("side", "channels", "out", "size"), TRANSPOSED)
def test_transposed_forms_agree_in_value_and_gradient(side, channels, out, size):
  compare(transposed_conv, slow_transposed, *arrays(3, side, side, channels, out, size), 2)


@pytest.mark.parametrize("num", [1, 16, 33])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_number_of_images_stride_and_oblong_picture(num, stride):
  compare(strided_conv, slow_strided, *arrays(num, 9, 12, 2, 3, 4), stride)
  compare(transposed_conv, slow_transposed, *arrays(num, 3, 2, 2, 3, 4), stride)


def test_stack_forms_agree_in_every_gradient():
  """With bias and activation, of images whose number is no multiple of a tile."""
  rng = np.random.default_rng(3)
  with jax.enable_x64(True):
    for transposed, shapes in ((False, [(4, 4, 3, 5), (3, 3, 5, 2)]), (True, [(5, 5, 3, 4), (4, 4, 4, 2)])):
      x = jnp.asarray(rng.normal(size=(19, *((2, 3) if transposed else (13, 11)), 3)))
      layers = [(jnp.asarray(rng.normal(size=s)), jnp.asarray(rng.normal(size=s[3]))) for s in shapes]

      def loss(x, layers, form, transposed=transposed):
        out = convolution.conv_stack(
          x, layers, [convolution.ELU, convolution.ELU], transposed=transposed, form=form
        )
        return (out**2).sum()

      gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
      native, matmul = (gradient(x, layers, form) for form in convolution.FORMS)
      for a, b in zip(jax.tree.leaves(native), jax.tree.leaves(matmul), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(a).max())


def test_transposed_kernel_is_not_flipped():
  kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
  for form in convolution.FORMS:
    out = transposed_conv(jnp.full((1, 1, 1, 1), 2.0), kernel, form=form)
    np.testing.assert_allclose(out[0, :, :, 0], 2 * kernel[:, :, 0, 0])


def test_the_two_are_adjoint():
  # <conv(x), y> = <x, transposed(y)> with the kernel's channels swapped.
  x, kernel = (jnp.asarray(v, jnp.float32) for v in arrays(2, 14, 14, 3, 5, 4))
  y = jax.random.normal(jax.random.key(0), (2, 6, 6, 5))
  for form in convolution.FORMS:
    forward = (strided_conv(x, kernel, form=form) * y).sum()
    back = (x * transposed_conv(y, kernel.swapaxes(2, 3), form=form)).sum()
    np.testing.assert_allclose(forward, back, rtol=1e-4)


def test_stack_is_layers_one_by_one():
  x, first = (v.astype(np.float32) for v in arrays(18, 1, 1, 3, 4, 5))
  second = arrays(1, 5, 5, 4, 2, 6)[1].astype(np.float32)
  layers = [(first, jnp.arange(4.0)), (second, jnp.arange(2.0))]

  @jax.jit
  def one_by_one(x):
    middle = jax.nn.elu(transposed_conv(x, first) + jnp.arange(4.0))
    return transposed_conv(middle, second) + jnp.arange(2.0)

  for form in (*convolution.FORMS, None):
    stack = lambda x, form=form: convolution.conv_stack(
      x, layers, (convolution.ELU, None), transposed=True, form=form
    )
    np.testing.assert_allclose(jax.jit(stack)(x), one_by_one(x), atol=2e-4)


def test_shapes_that_do_not_belong_together_raise():
  x = jnp.ones((2, 8, 8, 3))
  for function in (strided_conv, transposed_conv):
    for shape in ((4, 4, 2, 5), (4, 3, 3, 5), (4, 4, 3)):
      with pytest.raises(ValueError, match="kernel must be"):
        function(x, jnp.ones(shape))
    with pytest.raises(ValueError, match="x must be"):
      function(x[0], jnp.ones((4, 4, 3, 5)))
    with pytest.raises(ValueError, match="form 'fast'"):
      function(x, jnp.ones((4, 4, 3, 5)), form="fast")
    with pytest.raises(ValueError, match="stride"):
      function(x, jnp.ones((4, 4, 3, 5)), 0)
  with pytest.raises(ValueError, match="larger than the picture"):
    strided_conv(x, jnp.ones((9, 9, 3, 5)))
  with pytest.raises(ValueError, match="bias must be"):
    convolution.conv_stack(x, [(jnp.ones((4, 4, 3, 5)), jnp.ones(3))])
  with pytest.raises(ValueError, match="1 layers and 2 activations"):
    convolution.conv_stack(x, [(jnp.ones((4, 4, 3, 5)), None)], [None, None])


@pytest.mark.parametrize("size", [64, 128])
def test_vision_networks_at_both_picture_sizes(size):
  depth = 2
  encoder, decoder = vision.ConvEncoder(depth), vision.ConvDecoder(depth, size)
  picture = jax.random.normal(jax.random.key(0), (17, size, size, 3))
  vector = jax.random.normal(jax.random.key(1), (17, 32 * depth))
  encoder_params, decoder_params = (
    jax.jit(m.init)(jax.random.key(2), x) for m, x in ((encoder, picture), (decoder, vector))
  )
  layers = 4 if size == 64 else 5
  encode, decode = jax.jit(encoder.apply), jax.jit(decoder.apply)
  code = encode(encoder_params, picture)
  assert code.shape == (17, 4 * depth * 2 ** (layers - 1))
  out = decode(decoder_params, vector)
  assert out.shape == (17, size, size, 3)
  kernels = decoder_params["params"]
  assert [kernels[f"conv_{i}"]["kernel"].shape for i in range(layers)] == {
    64: [(5, 5, 64, 8), (5, 5, 8, 4), (6, 6, 4, 2), (6, 6, 2, 3)],
    128: [(5, 5, 64, 16), (5, 5, 16, 8), (5, 5, 8, 4), (6, 6, 4, 2), (6, 6, 2, 3)],
  }[size]
  # Few images take the native form, many the matmul form: the same numbers.
  np.testing.assert_allclose(encode(encoder_params, picture[:3]), code[:3], atol=1e-4)
  np.testing.assert_allclose(decode(decoder_params, vector[:3]), out[:3], atol=1e-4)


@pytest.mark.parametrize(
  ("encoder", "decoder"),
  [(vision.ConvEncoder, vision.ConvDecoder), (vision.PatchEncoder, vision.PatchDecoder)],
)
def test_bfloat16_keeps_float32_parameters_and_pictures(encoder, decoder):
  picture = jax.random.normal(jax.random.key(0), (16, 64, 64, 3))
  networks = encoder(2, dtype=jnp.bfloat16), decoder(2, 64, dtype=jnp.bfloat16)
  inputs = picture, jax.random.normal(jax.random.key(1), (16, 64))
  for network, x in zip(networks, inputs, strict=True):
    params = jax.jit(network.init)(jax.random.key(2), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    out = jax.jit(network.apply)(params, x)
    exact = jax.jit(network.clone(dtype=jnp.float32).apply)(params, x)
    assert out.dtype == (jnp.bfloat16 if network is networks[0] else jnp.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.1)


def test_the_gradient_of_a_bias_in_bfloat16_is_added_up_in_float32():
  x, kernel = jnp.ones((8, 62, 62, 1)), jnp.zeros((4, 4, 1, 2))

  def total(bias, dtype):
    layers = [(kernel.astype(dtype), bias.astype(dtype))]
    return convolution.conv_stack(x.astype(dtype), layers, form="native").astype(jnp.float32).sum()

  gradient = jax.jit(jax.grad(total), static_argnums=1)
  grad = gradient(jnp.zeros(2), jnp.bfloat16)  # 7,200 ones; in bfloat16 a sum of ones ends at 256
  np.testing.assert_allclose(grad, 8 * 30 * 30, rtol=0.01)


@pytest.mark.parametrize("transposed", [False, True])
def test_tiles_add_up_gradients_of_kernels_and_biases_in_float32(transposed):
  """In bfloat16 a sum over many tiles of one sign falls short: each term is rounded away in part."""
  x, kernel, bias = jnp.ones((101 * convolution.TILE, 7, 7, 1)), jnp.full((3, 3, 1, 2), 0.01), jnp.zeros(2)

  def total(params, dtype):
    layers = [tuple(array.astype(dtype) for array in params)]
    out = convolution.conv_stack(x.astype(dtype), layers, transposed=transposed, form="matmul")
    return out.astype(jnp.float32).sum()

  gradient = jax.jit(jax.grad(total), static_argnums=1)
  found, exact = (gradient((kernel, bias), dtype) for dtype in (jnp.bfloat16, jnp.float32))
  for a, b in zip(found, exact, strict=True):
    np.testing.assert_allclose(a, b, rtol=0.005)


@pytest.mark.parametrize(
  ("network", "shape"),
  [
    (vision.PatchEncoder(2, dtype=jnp.bfloat16), (2, 64, 64, 3)),
    (vision.PatchDecoder(2, 64, dtype=jnp.bfloat16), (2, 12)),
    (layers.MLP((8,), 4, dtype=jnp.bfloat16), (2, 12)),
  ],
)
def test_no_gradient_of_a_bias_is_added_up_in_bfloat16(network, shape):
  """A sum of many terms of one sign would end far too small: by 88 % over 65,536 rows."""
  x = jnp.zeros(shape)
  params = jax.eval_shape(network.init, jax.random.key(1), x)
  total = lambda params: network.apply(params, x).astype(jnp.float32).mean()
  program = str(jax.make_jaxpr(jax.grad(total))(params))
  assert re.search(r"f32\[[0-9,]*\] = reduce_sum", program)
  assert not re.search(r"bf16\[[0-9,]*\] = reduce_sum", program)


def test_other_picture_sizes_are_refused():
  with pytest.raises(ValueError, match="64 or 128"):
    vision.ConvEncoder(2).init(jax.random.key(0), jnp.ones((1, 96, 96, 3)))
  with pytest.raises(ValueError, match="64 or 128"):
    vision.ConvDecoder(2, 96).init(jax.random.key(0), jnp.ones((1, 64)))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_elu_has_its_value_and_slope(platform):
  x = jnp.concatenate([jnp.linspace(-20, 20, 101), jnp.array([1e-4, -1e-4])])
  both = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f)))(x)
  with compiling_for(platform):
    ours = both(lambda x: convolution.elu(x))  # a new function each time: traced for this platform
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), ours, both(jax.nn.elu))


def test_float_pictures_count_as_normalised():
  picture = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  assert vision.normalise(picture) is picture
