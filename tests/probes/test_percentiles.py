import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.probes import percentiles as lib

Q = (0, 0.1, 15, 25, 50, 61.7, 85, 99.9, 100)


def check(x, q=Q):
  x = np.asarray(x, np.float32)
  actual = jax.jit(lambda x: lib.percentiles(x, q))(x)
  expected = np.percentile(x.astype(np.float64), q, axis=-1)
  assert actual.shape == expected.shape
  assert actual.dtype == jnp.float32
  tolerance = 2e-7 * np.abs(x).max() + 1e-38
  np.testing.assert_allclose(actual, expected, rtol=2e-7, atol=tolerance)


@pytest.mark.parametrize('shape', [(1,), (2,), (7,), (8,), (1000,), (3, 50)])
def test_percentiles_are_those_of_numpy(shape):
  rng = np.random.default_rng(0)
  check(rng.normal(size=shape))


def test_values_of_every_size_are_found_exactly():
  rng = np.random.default_rng(0)
  x = rng.normal(size=1001) * 10.0 ** rng.integers(-40, 38, 1001)
  x = x.astype(np.float32)
  q = np.arange(0, 100.1, 0.1).round(1)
  np.testing.assert_array_equal(lib.percentiles(x, q[::50]), np.sort(x)[::50])


@pytest.mark.parametrize(
  'x',
  [
    [0, 0, 0, 0],
    [1, 1, 1, 2, 2],
    [-0.0, 0.0, -0.0, 1.0],
    [-3, -3, -1, -1, -1, 5],
    np.repeat([-1.5, 0.0, 2.5], 100),
    np.round(np.random.default_rng(0).normal(size=997)),
    [np.finfo(np.float32).max, np.finfo(np.float32).min],
    [1e-45, 0.0, -1e-45],
  ],
)
def test_ties_and_extremes(x):
  check(x, q=(0, 10, 50, 75, 100))


def test_infinities_sort_to_the_ends():
  x = jnp.array([np.inf, 1.0, -np.inf, 2.0, np.inf])
  actual = lib.percentiles(x, (0, 25, 50, 75, 100))
  np.testing.assert_array_equal(actual, [-np.inf, 1, 2, np.inf, np.inf])


@pytest.mark.parametrize('nan', [np.nan, -np.nan])
def test_a_nan_spoils_its_own_row_and_no_other(nan):
  x = jnp.array([[1.0, nan, 3.0], [1.0, 2.0, 3.0]])
  actual = lib.percentiles(x, (0, 50, 100))
  assert np.isnan(actual[:, 0]).all()
  np.testing.assert_array_equal(actual[:, 1], [1, 2, 3])


def test_low_precision_is_read_as_it_is():
  x = jnp.arange(10, dtype=jnp.bfloat16)
  np.testing.assert_array_equal(lib.percentiles(x, (50,)), [4.5])
