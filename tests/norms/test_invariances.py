"""What leaves the output as it was, what it follows, and what it does not.

Ba et al. (2016), Table 1, tells which changes of weights and data leave a
normalized layer alone. Here they are changes of the activations: rescaling the
weights of one neuron is `feature_scale`, moving the data is `feature_shift`,
rescaling one example is `case_scale`.
"""

import jax
import numpy as np

from tests import rows
from tests.normalizations import each


def drawn(low, high, shape):
  return np.random.default_rng(7).uniform(low, high, shape)


def per_case(low, high, x):
  return drawn(low, high, (len(x),) + (1,) * (x.ndim - 1))


def per_feature(low, high, x):
  return drawn(low, high, x.shape[-1:])


def rotated(x):
  rng = np.random.default_rng(7)
  orthogonal, _ = np.linalg.qr(rng.normal(size=x.shape[-1:] * 2))
  return x @ orthogonal


TRANSFORMATIONS = {
  'scale': lambda x: 2.5 * x,
  'feature_scale': lambda x: per_feature(0.5, 2, x) * x,
  'case_scale': lambda x: per_case(0.5, 2, x) * x,
  'shift': lambda x: x + 3,
  'feature_shift': lambda x: x + per_feature(-1, 1, x),
  'case_shift': lambda x: x + per_case(-1, 1, x),
  'case_order': lambda x: np.roll(x, 1, axis=0),
  'feature_order': lambda x: np.roll(x, 1, axis=-1),
  'feature_rotation': rotated,
}


def same(a, b):
  return np.allclose(a, b, rtol=0, atol=1e-11)


@each
def test_invariances(row, x64):
  norm, sample = row.make(epsilon=0.0), rows.cast(row.sample(), 'float64')
  bare = sample._replace(scale=None, bias=None)
  f = jax.jit(lambda x: rows.call(norm, bare._replace(x=x), row.init())[0])
  x, y = np.asarray(sample.x), np.asarray(f(sample.x))
  assert np.isfinite(y).all()
  for name, change in TRANSFORMATIONS.items():
    changed = f(change(x))
    assert same(changed, y) == (name in row.invariances.split()), name
    follows = row.equivariances == 'all' or name in row.equivariances.split()
    assert same(changed, change(y)) == follows, name


@each
def test_normalizing_twice_is_normalizing_once(row, x64):
  norm, sample = row.make(epsilon=0.0), rows.cast(row.sample(), 'float64')
  bare = sample._replace(scale=None, bias=None)
  f = jax.jit(lambda x: rows.call(norm, bare._replace(x=x), row.init())[0])
  once = f(sample.x)
  assert same(f(once), once) == row.idempotent
