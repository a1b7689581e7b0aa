"""A convolution that whitens patches: the formula, the fit, what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import fitting, norms
from bn_research.layers import nnx as layers
from bn_research.models import stems
from tests.norms import forms
from tests.oracles import patches as oracle
from tests.quick import some

EPSILON = 5e-4


def images(count=300, shape=(6, 5, 2)):
  """Smooth images of several variances, as photographs are."""
  rng = np.random.default_rng(0)
  x = np.cumsum(rng.normal(size=(count, *shape)), 1) / 5 + 0.5
  return x.astype('float32')


def fitted(x, size=(2, 2), **options):
  return fit_to(x, layers.WhitenedPatches(x.shape[-1], size, **options))


def fit_to(x, layer):
  graphdef, state = nnx.split(layer)

  @jax.jit
  def fit(state, x):
    layer = nnx.merge(graphdef, state, copy=True)
    layer.fit(x)
    return nnx.state(layer)

  nnx.update(layer, fit(state, jnp.asarray(x)))
  return layer


def expected(x, size, strides=(1, 1), padding='VALID', epsilon=EPSILON):
  """W (p - mean) with both signs, by eigenvectors in float64."""
  cut = oracle.patches(x, size, strides, padding)
  root, mean = oracle.whitening(cut.reshape(-1, cut.shape[-1]), epsilon)
  white = (cut - mean) @ root.T
  return np.concatenate([white, -white], -1)


def test_the_epsilon_of_the_stem_is_in_squared_units_of_the_input():
  x = images()
  stem = stems.whitened_patches(epsilon=0.5)(2, rngs=nnx.Rngs(0))
  y = np.asarray(fit_to(x, stem)(jnp.asarray(x)), np.float64)
  right = expected(x, (2, 2), epsilon=0.5)
  # Columns are equal up to their order and their signs.
  np.testing.assert_allclose(y.std((0, 1, 2)), right.std((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize(
  ('size', 'strides', 'padding'),
  some(
    [((2, 2), (1, 1), 'VALID'), ((3, 2), (2, 1), 'SAME')],
    [((1, 1), (1, 1), 'VALID'), ((3, 3), (1, 1), ((1, 1), (1, 1)))],
  ),
)
def test_the_patches_become_white_with_both_signs(size, strides, padding):
  x = images()
  layer = fitted(x, size, strides=strides, padding=padding)
  y = np.asarray(layer(jnp.asarray(x)), np.float64)
  right = expected(x, size, strides, padding)
  # In float32, axes whose variances differ by 2e-4 mix a little.
  np.testing.assert_allclose(y, right, atol=6e-3)
  d = layer.out_features // 2
  np.testing.assert_allclose(y[..., d:], -y[..., :d], atol=1e-4)
  # ε takes the share ε / (λ + ε) of the unit variance of an axis.
  cut = oracle.patches(x, size, strides, padding)
  values = np.linalg.eigvalsh(np.cov(cut.reshape(-1, d).T, ddof=0))[::-1]
  covariance = np.cov(y[..., :d].reshape(-1, d).T, ddof=0)
  shares = np.diag(values / (values + EPSILON))
  np.testing.assert_allclose(covariance, shares, atol=2e-3)


def test_another_epsilon():
  x = images()
  whiten = norms.Whiten('pca', epsilon=0.5, relative=False)
  y = fitted(x, whiten=whiten)(jnp.asarray(x))
  np.testing.assert_allclose(y, expected(x, (2, 2), epsilon=0.5), atol=2e-3)


@pytest.mark.parametrize('devices', some([8], [2]))
def test_any_number_of_devices_fits_the_same(devices):
  x = images(304)
  one = fitted(x)
  mesh = forms.make_mesh(devices)
  with jax.set_mesh(mesh):
    many = fitted(jax.device_put(x, NamedSharding(mesh, P('i'))))
  np.testing.assert_allclose(many.kernel[...], one.kernel[...], atol=2e-3)
  np.testing.assert_allclose(many.shift[...], one.shift[...], atol=2e-3)


def test_before_the_fit_it_copies_patches():
  x = images(3)
  y = layers.WhitenedPatches(2, (2, 3))(jnp.asarray(x))
  cut = oracle.patches(x, (2, 3), (1, 1))
  np.testing.assert_allclose(y, np.concatenate([cut, -cut], -1), rtol=1e-6)


def test_only_the_bias_is_a_parameter():
  for use_bias in (True, False):
    layer = layers.WhitenedPatches(2, (2, 2), use_bias=use_bias)
    params = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    assert [path for path, _ in params] == [('bias',)] * use_bias
    kept = nnx.to_flat_state(nnx.state(layer, layers.Fitted))
    assert [path for path, _ in kept] == [('kernel',), ('shift',)]
  layer = layers.WhitenedPatches(2, (2, 2))
  layer.bias.set_value(jnp.arange(16.0))
  x = jnp.zeros((1, 2, 2, 2))
  np.testing.assert_array_equal(layer(x)[0, 0, 0], np.arange(16))


def test_a_narrow_type_of_computation():
  x = images()
  layer = fitted(x, dtype=jnp.bfloat16)
  y = layer(jnp.asarray(x))
  assert y.dtype == jnp.bfloat16
  assert layer.kernel[...].dtype == jnp.float32
  error = np.asarray(y, np.float64) - expected(x, (2, 2))
  assert np.abs(error).mean() < 0.3


def test_images_without_variance_give_finite_results():
  layer = fitted(np.full((5, 3, 3, 1), 0.5, 'float32'))
  y = layer(jnp.full((2, 3, 3, 1), 0.5))
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, 0, atol=1e-4)


class Two(nnx.Module):
  """Two layers that are fitted, the second to what the first returns."""

  def __init__(self):
    self.first = layers.WhitenedPatches(2, (2, 2), num_examples=7)
    self.second = layers.WhitenedPatches(16, (1, 2), num_examples=9)

  def __call__(self, x, *, train):
    assert not train
    return self.second(jax.nn.relu(self.first(x)))


def test_every_layer_is_fitted_to_its_own_input():
  x = images(40)
  model = Two()
  assert fitting.num_examples(model) == 9
  graphdef, state = nnx.split(model)

  @jax.jit
  def fit(state, x):
    model = nnx.merge(graphdef, state, copy=True)
    fitting.fit(model, x)
    return nnx.split(model)[1]

  nnx.update(model, fit(state, jnp.asarray(x)))
  assert not model.first.is_fitting
  assert nnx.graphdef(model) == graphdef
  h = np.maximum(expected(x, (2, 2)), 0)
  np.testing.assert_allclose(
    model.first(jnp.asarray(x)).max((0, 1, 2)),
    expected(x, (2, 2)).max((0, 1, 2)),
    atol=1e-2,
  )
  cut = oracle.patches(h, (1, 2), (1, 1)).reshape(-1, 32)
  root, _ = oracle.whitening(cut, EPSILON)
  found = model.second.kernel[...].reshape(32, 64)[:, :32].T
  # ReLU of both signs spans fewer axes; the first axes are determined.
  np.testing.assert_allclose(found[:4], root[:4], atol=2e-2)


def test_a_model_without_such_layers_asks_for_nothing():
  assert fitting.num_examples(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) == 0


@pytest.mark.parametrize(
  ('size', 'options', 'says'),
  [
    ((2, 0), {}, r'kernel_size=\(2, 0\) must be positive'),
    ((2, 2), {'num_examples': 0}, 'num_examples=0 must be at least 1'),
    ((2, 2), {'padding': 'FULL'}, "padding='FULL'"),
  ],
)
def test_wrong_options_are_refused_in_a_line(size, options, says):
  with pytest.raises(ValueError, match=says):
    layers.WhitenedPatches(3, size, **options)
