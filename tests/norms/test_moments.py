"""The statistics engine: any shape, axes, mask and cut, against NumPy."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from bn_research import norms


def true_moments(x, mask, axes, centre=True):
  """Count, mean and sum of squares about it, in float64."""
  mask = np.broadcast_to(mask, x.shape)
  add = lambda z: np.where(mask, z, 0).sum(axes, keepdims=True)
  count = add(np.ones(x.shape))
  mean = add(x) / np.maximum(count, 1) * centre
  return count, mean, add((x - mean) ** 2)


def close(moments, right):
  for actual, expected in zip(moments, right, strict=True):
    actual = np.broadcast_to(
      actual, np.broadcast_shapes(actual.shape, expected.shape)
    )
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@st.composite
def problems(draw):
  """Activations, a mask of fewer axes or sizes, and axes to pool."""
  rank = draw(st.integers(1, 4))
  shape = draw(st_numpy.array_shapes(min_dims=rank, max_dims=rank, max_side=4))
  axes = draw(st.sets(st.integers(0, rank - 1), min_size=1))
  seen = draw(st.integers(0, rank))
  small = [draw(st.sampled_from([1, side])) for side in shape[seen:]]
  mask = draw(st.none() | st_numpy.arrays(bool, small))
  x = np.random.default_rng(len(shape)).normal(5, 2, shape)
  return x.astype('float32'), mask, tuple(sorted(axes))


@hypothesis.given(problems(), st.booleans())
def test_estimate(problem, centre):
  x, mask, axes = problem
  moments = norms.estimate(
    jnp.asarray(x),
    None if mask is None else jnp.asarray(mask),
    axes,
    centre=centre,
  )
  right = true_moments(
    x.astype('float64'), True if mask is None else mask, axes, centre
  )
  assert moments.mean.dtype == moments.comoment.dtype == jnp.float32
  close(moments, right)


@hypothesis.given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_merging_any_sizes_is_one_set(sizes):
  """Also empty ones; the mean of means would be wrong."""
  rng = np.random.default_rng(0)
  x = rng.normal(np.arange(len(sizes))[:, None, None], 1, (len(sizes), 6, 2))
  mask = np.arange(6)[:, None] < np.asarray(sizes)[:, None, None]
  parts = norms.estimate(jnp.asarray(x, 'float32'), jnp.asarray(mask), (1,))
  close(parts.merged(0), true_moments(x, mask, (0, 1)))


def test_merging_covariances_is_one_set():
  rng = np.random.default_rng(0)
  parts = [rng.normal(k, 1, (size, 3)) for k, size in enumerate((2, 5, 9))]

  def moments(x):
    apart = x - x.mean(0)
    return norms.Moments(
      jnp.full((3,), len(x), 'float32'),
      jnp.asarray(x.mean(0), 'float32'),
      jnp.asarray(apart.T @ apart, 'float32')[None],  # one block
    )

  first, second, third = map(moments, parts)
  whole = moments(np.concatenate(parts))
  close(norms.joined(norms.joined(first, second), third), whole)
  np.testing.assert_allclose(
    whole.unbiased().variance, 16 / 15 * whole.variance, rtol=1e-6
  )


@pytest.mark.parametrize('groups', [3, 7, 60])
def test_what_is_equal_everywhere_has_no_variance_when_merged(groups):
  """A relative epsilon would make a rounding of the merged mean white."""
  mean = np.full((groups, 3), 0.1, 'float32')
  count = np.arange(groups, dtype='float32')[:, None]
  parts = norms.Moments(*map(jnp.asarray, (count, mean, np.zeros_like(mean))))
  np.testing.assert_array_equal(parts.merged(0).comoment, 0)


@pytest.mark.parametrize(
  'norm',
  [norms.batch_norm(group_size=4), norms.group_norm(2), norms.layer_norm()],
)
def test_measure_gives_what_normalizes(norm):
  x = np.random.default_rng(0).normal(3, 2, (6, 5, 4)).astype('float32')
  moments = norm.measure(jnp.asarray(x))
  by_hand = (x - moments.mean) / np.sqrt(moments.variance + norm.map.epsilon)
  y, _ = norm.apply(jnp.asarray(x), norm.init(4))
  np.testing.assert_allclose(y, by_hand, rtol=1e-4, atol=1e-5)


def test_measure_of_whitened_groups_is_of_the_group():
  """What is pooled for a group stands at each of its channels."""
  x = np.random.default_rng(0).normal(np.arange(6), 2, (3, 5, 6))
  moments = norms.group_whitening(num_groups=2).measure(jnp.asarray(x, 'f4'))
  of_group = x.reshape(3, 5, 2, 3).mean((1, 3))
  expected = np.repeat(of_group, 3, axis=-1)[:, None]
  np.testing.assert_allclose(moments.mean, expected, rtol=1e-5)
