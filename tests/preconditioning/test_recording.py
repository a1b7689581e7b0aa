"""What convolutions of every kind record, against patches cut one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bn_research import preconditioning
from tests.oracles import patches as oracle

CASES = {
  'strides': ({'strides': 2}, ((3, 3), (2, 2), 'SAME')),
  'both paddings': (
    {'padding': ((1, 0), (2, 1))},
    ((3, 3), (1, 1), ((1, 0), (2, 1))),
  ),
  'one padding': ({'padding': 1}, ((3, 3), (1, 1), ((1, 1), (1, 1)))),
  'lower case': ({'padding': 'same'}, ((3, 3), (1, 1), 'SAME')),
  'dilation': (
    {'kernel_dilation': (2, 1), 'padding': 'VALID'},
    ((3, 3), (1, 1), 'VALID', None, (2, 1)),
  ),
  'dilation of the input': (
    {'input_dilation': 2, 'padding': 1},
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (2, 2)),
  ),
}


def check(found, rows):
  count, mean, comoment = oracle.moments(rows.reshape(-1, rows.shape[-1]))
  np.testing.assert_array_equal(found.count, count)
  np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.comoment[0], comoment, rtol=1e-4, atol=1e-3)


def recorded(x, **options):
  conv = nnx.Conv(2, 3, (3, 3), **options, rngs=nnx.Rngs(0))
  found = preconditioning.record_inputs(conv)
  conv(jnp.asarray(x))
  return found['']


def images():
  x = np.random.default_rng(0).normal(size=(3, 6, 5, 2)) + 1
  return x.astype('float32')


@pytest.mark.parametrize(('options', 'case'), CASES.values(), ids=CASES)
def test_a_convolution_records_its_patches(options, case):
  x = images()
  check(recorded(x, **options), oracle.patches(x, *case))


def test_a_circular_convolution_records_what_it_wraps():
  x = images()
  wrapped = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], 'wrap')
  rows = oracle.patches(wrapped, (3, 3), (1, 1))
  check(recorded(x, padding='CIRCULAR'), rows)


def test_feature_groups_are_refused_and_can_be_left_out():
  conv = nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
  found = preconditioning.record_inputs(conv)
  conv(jnp.asarray(images()))
  params = nnx.as_pure(nnx.state(conv, nnx.Param))
  optimizer = preconditioning.precondition_by_input_covariance()
  state = optimizer.init(params)
  with pytest.raises(ValueError, match='multiplies 9 inputs, and its') as error:
    optimizer.update(params, state, input_moments=found)
  assert 'feature groups' in str(error.value)
  left_out = optax.masked(optimizer, jax.tree.map(lambda _: False, params))
  left_out.update(params, left_out.init(params), input_moments=found)
