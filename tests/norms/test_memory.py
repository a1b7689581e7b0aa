"""Bytes kept from the forward pass for the backward pass, counted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.quick import some

SHAPE = (64, 8, 8, 32)
# Statistics: mean, deviation and so on, in float32.
FEW = 12


def kept(norm, dtype, masked):
  """Bytes of what the backward pass needs, and of x."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), dtype)
  mask = (x[:, :1, :1, :1] > 0) if masked else None
  state, learned = norm.init(SHAPE[-1]), norm.learned(SHAPE[-1])

  def f(x, learned, scale, bias):
    affine = {'scale': scale, 'bias': bias}
    return norm.apply(x, state, learned=learned, mask=mask, **affine)[0]

  affine = jnp.ones(SHAPE[-1]), jnp.zeros(SHAPE[-1])
  _, pullback = jax.vjp(f, x, learned, *affine)
  arrays = {id(leaf): leaf for leaf in jax.tree.leaves(pullback)}
  return sum(leaf.nbytes for leaf in arrays.values()), x.nbytes


NORMS = {
  'batch_norm': norms.batch_norm(),
  'ghosts': norms.batch_norm(group_size=24),
  'stopped': norms.batch_norm(gradient='stopped'),
  'batch_renorm': norms.batch_renorm(),
  'layer_norm': norms.layer_norm(),
  'rms_norm': norms.rms_norm(),
  'instance_norm': norms.instance_norm(),
  'group_norm': norms.group_norm(4),
}


masked = pytest.mark.parametrize(
  'masked',
  [False, pytest.param(True, marks=pytest.mark.slow)],
  ids=['', 'masked'],
)


@masked
@pytest.mark.parametrize(
  ('name', 'dtype'),
  some(
    [(name, 'bfloat16') for name in ('batch_norm', 'ghosts', 'layer_norm')],
    itertools.product(NORMS, ('bfloat16', 'float32')),
  ),
)
def test_one_array_of_the_size_of_x(name, dtype, masked):
  """x itself, in its own type, and arrays of the size of the statistics."""
  norm = NORMS[name]
  actual, x = kept(norm, dtype, masked)
  statistics = 4 * np.prod(norm.measure(jnp.ones(SHAPE)).mean.shape)
  assert actual >= x
  assert actual <= x + FEW * statistics + 4 * SHAPE[0]


WHITEN = norms.batch_whitening('zca', group_size=16)
COMBINATIONS = {
  'refined': norms.batch_whitening('zca', group_size=16, refinements=2),
  'mixture': norms.Mixture((WHITEN, norms.batch_norm(), norms.layer_norm())),
  'coloured': norms.Coloured(WHITEN),
  'floored': norms.batch_whitening(floor=1e-3, refinements=1),
}


@masked
@pytest.mark.parametrize('dtype', some(['bfloat16'], ['float32']))
@pytest.mark.parametrize('name', some(['mixture', 'refined'], COMBINATIONS))
def test_combinations_keep_x_and_not_what_is_in_between(name, dtype, masked):
  actual, x = kept(COMBINATIONS[name], dtype, masked)
  rows = np.prod(SHAPE[:-1])
  statistics = 4 * (
    FEW * SHAPE[-1] ** 2 + (3 * rows if name == 'mixture' else 0)
  )
  assert actual >= x
  assert actual <= x + statistics + 4 * SHAPE[0]


@pytest.mark.parametrize(
  ('options', 'count'), [({}, 2), ({'floor': 1e-3}, 4)], ids=['', 'floor']
)
@pytest.mark.parametrize('method', some(['zca'], ['pca']))
def test_no_eigendecomposition_is_done_again(method, options, count):
  norm = norms.batch_whitening(method, refinements=1, **options)
  state = norm.init(8)
  loss = lambda x: (norm.apply(x, state)[0] ** 3).sum()
  program = jax.jit(jax.grad(loss)).lower(jnp.ones((32, 8))).compile()
  assert program.as_text().count('custom_call_target="lapack_ssyevd') == count
