import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import data, errors

_ALL = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_greys():
  x = jax.jit(data.to_input)(_ALL)
  assert (x.dtype, x.shape) == (jnp.float32, _ALL.shape)
  np.testing.assert_allclose(x, _ALL.astype(np.float64) / 255, rtol=1e-6)
  assert (x.min(), x.max()) == (0, 1)


@pytest.mark.parametrize('binarize', [0, 0.2, 0.5, 0.6, 128 / 255, 0.999, 1])
def test_black_and_white(binarize):
  threshold = fractions.Fraction(binarize).limit_denominator(10**6)
  expected = [fractions.Fraction(int(v), 255) > threshold for v in _ALL.flat]
  x = jax.jit(data.to_input, static_argnums=1)(_ALL, binarize)
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(x.ravel(), np.array(expected, np.float32))


@pytest.mark.parametrize('binarize', [-0.1, 1.1, 127, float('nan')])
def test_a_threshold_outside_the_scale(binarize):
  with pytest.raises(errors.UserError, match=r'data\.binarize=.*\[0, 1\]'):
    data.to_input(_ALL, binarize)


def test_images_that_were_scaled_before():
  with pytest.raises(TypeError, match='uint8'):
    data.to_input(jnp.zeros((1, 2, 2, 1)))
