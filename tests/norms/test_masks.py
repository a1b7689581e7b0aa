"""Masks: what is masked out takes no part, whatever it holds."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from bn_research import norms
from tests import rows
from tests.normalizations import each, each_that_remembers
from tests.oracles import populations, sets
from tests.quick import some
from tests.rows import EPSILON


def everything(row, sample, mask, weights):
  """Value, state and all gradients of a call."""
  norm, state = row.make(), row.init()

  def loss(sample):
    y, after = rows.call(norm, sample, state, mask)
    return jnp.sum(weights * jnp.sin(y)), (y, after)

  grad = jax.jit(jax.grad(loss, has_aux=True))
  return grad(rows.cast(sample, 'float64'))


def same(actual, expected):
  def compare(a, b):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

  jax.tree.map(compare, actual, expected)


def filled(sample, mask, filling):
  return sample._replace(x=np.where(mask, sample.x, filling))


@each
def test_nothing_leaks_from_behind_the_mask(row, x64):
  sample, mask = row.sample(), row.mask('entries')
  weights = row.sample(seed=1).x
  clean = everything(row, sample, mask, weights)
  gradient, (y, _) = clean
  mask = np.broadcast_to(mask, row.shape)
  assert (np.asarray(y)[~mask] == 0).all()
  assert (np.asarray(gradient.x)[~mask] == 0).all()
  for filling in (np.nan, np.inf, 1e300):
    odd = filled(sample, mask, filling)
    same(everything(row, odd, row.mask('entries'), weights), clean)


@each
def test_padding_is_the_shorter_batch(row, x64):
  """Rows masked out at the end: the call on the rows that are left."""
  sample, weights = row.sample(), row.sample(seed=1).x
  left = len(sample.x) - 1
  mask = (np.arange(left + 1) < left).reshape(-1, *[1] * (sample.x.ndim - 1))
  padded = filled(sample, mask, np.nan)
  short = sample._replace(x=sample.x[:left])
  gradient, (y, state) = everything(row, padded, mask, weights)
  result = gradient._replace(x=gradient.x[:left]), (y[:left], state)
  same(result, everything(row, short, None, weights[:left]))


@each
def test_a_mask_of_ones_is_no_mask(row, x64):
  sample, weights = row.sample(), row.sample(seed=1).x
  masked, unmasked = (
    everything(row, sample, mask, weights)
    for mask in (np.ones(row.entries[-1:], bool), None)
  )
  same(masked, unmasked)


@each
def test_nothing_left_is_finite(row, x64):
  sample, mask = row.sample(), np.zeros(row.entries, bool)
  gradient, (y, state) = everything(row, sample, mask, np.ones(row.shape))
  same((gradient, y), jax.tree.map(jnp.zeros_like, (gradient, y)))
  before = row.init()
  if row.remember:
    before = before._replace(skipped=before.skipped + 1)
  same(state, before)


@each_that_remembers
def test_a_feature_without_activations_is_counted_as_skipped(row):
  if row.joint:
    pytest.skip('features are masked together')
  norm, sample = row.make(), rows.cast(row.sample(), 'float32')
  _, state = rows.call(norm, sample, row.init())
  mask = np.arange(row.features) > 0
  y, after = rows.call(norm, sample._replace(x=2 * sample.x), state, mask)
  assert np.isfinite(y).all()
  assert after.skipped == 1
  same(after, state._replace(skipped=after.skipped))


PARTS = (norms.batch_norm(), norms.layer_norm())
COMBINED = {
  'chain': norms.Chain(PARTS),
  'mixture': norms.Mixture(PARTS),
  'coloured': norms.Coloured(norms.batch_norm()),
}


@pytest.mark.parametrize('name', COMBINED)
def test_what_is_made_of_normalizations_is_zero_behind_the_mask(name):
  norm, mask = COMBINED[name], np.arange(6)[:, None] < 4
  x = np.where(mask, np.random.default_rng(0).normal(size=(6, 3)), np.nan)
  sample = rows.Sample(x, np.full(3, 2.0), np.ones(3), norm.learned(3))
  sample = rows.cast(sample, 'float32')
  y, _ = rows.call(norm, sample, norm.init(3), mask)
  short, _ = rows.call(norm, sample._replace(x=sample.x[:4]), norm.init(3))
  np.testing.assert_allclose(y[:4], short, atol=1e-6)
  assert (y[4:] == 0).all()


def compressed(data, rank):
  """Activations and a mask that broadcasts, with something left."""
  shape = data.draw(
    st_numpy.array_shapes(min_dims=rank, max_dims=rank, max_side=4)
  )
  cut = data.draw(st.integers(0, rank))  # a mask of fewer axes is fine
  small = tuple(data.draw(st.sampled_from([1, side])) for side in shape[cut:])
  mask = data.draw(st_numpy.arrays(bool, small))
  hypothesis.assume(mask.any())
  seed = data.draw(st.integers(0, 100))
  return np.random.default_rng(seed).normal(3, 2, shape), mask


NORMS = (
  (norms.batch_norm(epsilon=EPSILON), sets.batch),
  (norms.layer_norm(EPSILON), sets.features),
  (norms.layer_norm(EPSILON, axes='all'), sets.example),
)


@pytest.mark.slow
@pytest.mark.parametrize('rank', some([3], [2, 4]))
@hypothesis.given(data=st.data())
def test_any_mask_on_any_shape(rank, data):
  x, mask = compressed(data, rank)
  norm, labelled = data.draw(st.sampled_from(NORMS))
  x = x.astype('float32')
  y, state = norm.apply(jnp.asarray(x), norm.init(x.shape[-1]), mask=mask)
  whole, wide = np.broadcast_to(mask, x.shape), x.astype('float64')
  oracle = sets.over(labelled, sets.standardized)
  assert np.isfinite(y).all()
  right = oracle(wide, whole, EPSILON, None)
  np.testing.assert_allclose(y, right, rtol=1e-4, atol=1e-4)
  if not norm.remembers:
    return
  if (whole.sum(tuple(range(rank - 1))) < 2).any():
    assert state.skipped == 1
  else:
    mean, var = populations.unbiased(wide, whole)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.var, var, rtol=1e-4, atol=1e-5)
