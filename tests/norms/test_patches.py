"""The scope of patches: their moments, and whitening inside of a kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import norms
from tests.norms import forms
from tests.oracles import patches as oracle
from tests.quick import some

EPSILON = 1e-2
WHITEN = norms.Whiten('cholesky', epsilon=EPSILON, relative=False)
# Kernel, strides, padding, dilation of the input and of the kernel.
CASES = {
  'plain': ((2, 2), (1, 1), 'VALID'),
  'one pixel': ((1, 1), (1, 1), 'VALID'),
  'strides that leave pixels out': ((2, 3), (3, 2), 'VALID'),
  'same': ((3, 3), (1, 1), 'SAME'),
  'same, even and strided': ((2, 4), (2, 3), 'SAME'),
  'pairs': ((3, 2), (2, 1), ((2, 0), (0, 1))),
  'cropped': ((2, 2), (1, 1), ((-1, 0), (0, -2))),
  'dilated kernel': ((2, 3), (1, 2), 'SAME', None, (3, 2)),
  'dilated input': ((3, 2), (1, 1), ((1, 1), (0, 2)), (2, 3)),
  'a line': ((3,), (2,), 'SAME'),
  'a volume': ((2, 1, 2), (1, 2, 1), 'VALID'),
}


def scope_of(case, **options):
  size, strides, padding, *dilations = case
  inputs, kernel = (*dilations, None, None)[:2]
  return norms.Patches(
    size, strides, padding, inputs or 1, kernel or 1, **options
  )


def activations(case, batch=4):
  space = (7, 6, 5)[: len(case[0])]
  x = np.random.default_rng(0).normal(size=(batch, *space, 3)) + 2
  return x.astype('float32')


def rows_of(case, x):
  found = oracle.patches(x, *case)
  return found.reshape(-1, found.shape[-1])


def check(moments, rows):
  count, mean, comoment = oracle.moments(rows)
  np.testing.assert_array_equal(
    moments.count, np.full(moments.count.shape, count)
  )
  np.testing.assert_allclose(np.ravel(moments.mean), mean, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    moments.comoment.reshape(comoment.shape), comoment, rtol=1e-4, atol=1e-3
  )


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_moments_are_those_of_the_patches(case):
  x = activations(case)
  norm = norms.Normalization(scope_of(case), WHITEN)
  rows = rows_of(case, x)
  assert norm.scope.features(x.shape) == (rows.shape[1],)
  check(norm.measure(jnp.asarray(x)), rows)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_patches_are_what_a_convolution_multiplies(case):
  """Bit by bit the oracle's, and in the order of a kernel."""
  x = activations(case)
  scope = scope_of(case)
  patches = scope.extract(jnp.asarray(x))
  np.testing.assert_array_equal(patches, oracle.patches(x, *case))
  kernel = np.random.default_rng(1).normal(size=(*case[0], 3, 2))
  y = convolution(scope, x, jnp.asarray(kernel, jnp.float32))
  expected = oracle.patches(x, *case) @ kernel.reshape(-1, 2)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def convolution(scope, x, kernel):
  last = x.ndim - 1
  layout = (0, last, *range(1, last))
  per_axis = lambda value: (value,) * (last - 1) if value == 1 else value
  return lax.conv_general_dilated(
    jnp.asarray(x),
    kernel,
    per_axis(scope.strides),
    scope.padding,
    per_axis(scope.input_dilation),
    per_axis(scope.kernel_dilation),
    lax.ConvDimensionNumbers(
      layout, (last, last - 1, *range(last - 1)), layout
    ),
    precision=lax.Precision.HIGHEST,
  )


def test_a_copy_of_infinity_is_no_nan():
  x = np.zeros((1, 3, 3, 1), 'float32')
  x[0, 1, 1] = np.inf
  patches = norms.Patches((2, 2)).extract(jnp.asarray(x))
  np.testing.assert_array_equal(np.isinf(patches).sum(-1), np.ones((1, 2, 2)))
  assert not np.isnan(patches).any()


def test_a_hidden_activation_hides_its_patches():
  case = ((2, 3), (1, 1), 'SAME')
  x = activations(case)
  mask = np.random.default_rng(2).random((4, 7, 6, 1)) > 0.1
  mask[0] = False
  hidden = np.where(mask, x, np.nan).astype('float32')
  found = norms.Normalization(scope_of(case), WHITEN).measure(
    jnp.asarray(hidden), jnp.asarray(mask)
  )
  # Zeros of the padding are there, so only hidden ones count against a patch.
  lacks = oracle.patches(~np.broadcast_to(mask, x.shape), *case).any(-1)
  assert 0 < lacks.sum() < lacks.size
  check(found, oracle.patches(x, *case)[~lacks])


@functools.cache
def measured(devices, form):
  """Moments of the same images in each form of program."""
  case = ((3, 2), (2, 1), 'SAME')
  x = jnp.asarray(activations(case, batch=16))
  if form == 'named':
    norm = norms.Normalization(scope_of(case, axis_name='i'), WHITEN)
    measure = jax.shard_map(
      norm.measure,
      mesh=forms.make_mesh(devices),
      in_specs=P('i'),
      out_specs=P(),
    )
    return jax.jit(measure)(x)
  mesh = forms.make_mesh(devices, AxisType[form])
  norm = norms.Normalization(scope_of(case), WHITEN)
  with jax.set_mesh(mesh):
    return jax.jit(norm.measure)(jax.device_put(x, NamedSharding(mesh, P('i'))))


@pytest.mark.parametrize('form', ['Auto', 'Explicit', 'named'])
@pytest.mark.parametrize('devices', some([2, 8], []))
def test_any_number_of_devices(devices, form):
  case = ((3, 2), (2, 1), 'SAME')
  check(measured(devices, form), rows_of(case, activations(case, batch=16)))


@pytest.mark.parametrize(
  ('population', 'weights'),
  [
    (norms.Pooled(), None),
    (norms.Ema(0.5, unbiased=False), np.array([1, 2]) / 3),
    (norms.Cumulative(unbiased=False), np.array([1, 1]) / 2),
  ],
)
def test_populations_remember_patches(population, weights):
  case = ((2, 2), (1, 1), 'VALID')
  x = activations(case, batch=6)
  norm = norms.Normalization(scope_of(case), WHITEN, population)
  state = norm.init(norm.scope.features(x.shape))
  batches = (x[:3], x[3:])
  step = jax.jit(lambda state, x: norm.learn(state, norm.measure(x)))
  for batch in batches:
    state = step(state, jnp.asarray(batch))
  means = [rows_of(case, batch).mean(0) for batch in batches]
  covs = [np.cov(rows_of(case, batch).T, ddof=0) for batch in batches]
  if weights is None:
    means, covs = (
      [rows_of(case, x).mean(0)],
      [np.cov(rows_of(case, x).T, ddof=0)],
    )
    weights = [1]
  mean = np.tensordot(weights, means, 1)
  np.testing.assert_allclose(state.mean, mean, rtol=1e-4, atol=1e-5)
  cov = np.tensordot(weights, covs, 1)
  np.testing.assert_allclose(state.var[0], cov, rtol=1e-3, atol=1e-4)


def learned(norm, x, dtype=jnp.float32):
  state = norm.init(norm.scope.features(x.shape), dtype)
  step = jax.jit(lambda state, x: norm.learn(state, norm.measure(x)))
  return step(state, jnp.asarray(x))


@pytest.mark.parametrize(
  'name',
  some(
    ['same', 'dilated kernel'], sorted({*CASES} - {'same', 'dilated kernel'})
  ),
)
@pytest.mark.parametrize('has_bias', some([True], [False]))
def test_a_folded_convolution_whitens_each_patch(name, has_bias):
  case = CASES[name]
  x = activations(case, batch=16)
  norm = norms.Normalization(scope_of(case), WHITEN, norms.Pooled())
  rng = np.random.default_rng(3)
  kernel = rng.normal(size=(*case[0], 3, 2))
  bias = rng.normal(size=2) if has_bias else None
  fold = jax.jit(norms.fold_into_next, static_argnums=2)
  folded, shift = fold(
    jnp.asarray(kernel, jnp.float32),
    None if bias is None else jnp.asarray(bias, jnp.float32),
    norm,
    learned(norm, x),
  )
  y = convolution(norm.scope, x, folded) + shift
  rows = rows_of(case, x)
  damped = np.cov(rows.T, ddof=0) + EPSILON * np.eye(rows.shape[1])
  root = np.linalg.inv(np.linalg.cholesky(damped))
  white = (oracle.patches(x, *case) - rows.mean(0)) @ root.T
  expected = white @ kernel.reshape(-1, 2) + (0 if bias is None else bias)
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_folding_into_a_dense_layer():
  """Also with a scale and a bias of the norm, and without whitening."""
  rng = np.random.default_rng(4)
  x = rng.normal(size=(32, 4)) * [1, 2, 3, 4] + 5
  kernel, scale, bias = (
    rng.normal(size=(4, 3)),
    1 + rng.random(4),
    rng.random(4),
  )
  norm = norms.batch_norm(epsilon=EPSILON, momentum=0.0)
  state = norm.init(4)
  _, state = norm.apply(jnp.asarray(x, jnp.float32), state)
  arrays = [jnp.asarray(a, jnp.float32) for a in (scale, bias)]
  folded, shift = norms.fold_into_next(
    jnp.asarray(kernel, jnp.float32), None, norm, state, *arrays
  )
  variance = np.asarray(state.var, np.float64)
  y = (x - x.mean(0)) / np.sqrt(variance + EPSILON) * scale + bias
  np.testing.assert_allclose(
    x @ folded + shift, y @ kernel, rtol=1e-3, atol=1e-4
  )


def test_overlapping_patches_are_not_joined():
  norm = norms.Normalization(norms.Patches((3, 3)), WHITEN, norms.Ema())
  for use_running in (False, True):
    with pytest.raises(ValueError, match='gives moments only') as error:
      norm.apply(jnp.ones((2, 4, 4, 1)), norm.init(9), use_running=use_running)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'kernel_size': 3}, 'kernel_size=3 must have a size for each axis'),
    ({'kernel_size': ()}, r'kernel_size=\(\) must be positive whole numbers'),
    ({'kernel_size': (3, 0)}, r'kernel_size=\(3, 0\) must be positive'),
    ({'strides': (1, 1, 1)}, r'strides=\(1, 1, 1\) must be positive whole'),
    ({'strides': 0.5}, 'strides=0.5 must be positive whole numbers'),
    ({'kernel_dilation': -1}, 'kernel_dilation=-1 must be positive'),
    ({'padding': 'FULL'}, "padding='FULL' with input_dilation=1"),
    ({'padding': 1}, r'padding=1 must have a pair \(before, after\)'),
    ({'padding': 'same', 'input_dilation': 2}, "padding='SAME' with input_d"),
    ({'axis_index_groups': ((0, 1),)}, 'axis_name'),
  ],
)
def test_wrong_options_are_refused_in_a_line(options, says):
  with pytest.raises(ValueError, match=says) as error:
    norms.Patches(**{'kernel_size': (3, 3), **options})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('shape', 'says'),
  [
    ((2, 8, 3), r'\(batch, 2 axes of space, channels\)'),
    ((2, 8, 2, 3), 'smaller than a patch'),
    ((0, 8, 8, 3), 'no activations|empty|at least'),
  ],
)
def test_unfit_activations_are_refused_in_a_line(shape, says):
  norm = norms.Normalization(norms.Patches((3, 3)), WHITEN)
  with pytest.raises(ValueError, match=says) as error:
    norm.measure(jnp.ones(shape))
  assert '\n' not in str(error.value)


def test_feature_groups_are_not_folded():
  norm = norms.Normalization(norms.Patches((3, 3)), WHITEN, norms.Pooled())
  state = norm.init(norm.scope.features((1, 8, 8, 4)))
  with pytest.raises(ValueError, match='has 18 inputs, and the state is of 36'):
    norms.fold_into_next(jnp.ones((3, 3, 2, 4)), None, norm, state)


def test_options_of_a_config_are_hashable():
  scope = norms.Patches([3, 3], [1, 1], [[1, 1], [1, 1]])
  assert hash(scope) == hash(norms.Patches((3, 3), (1, 1), ((1, 1), (1, 1))))
