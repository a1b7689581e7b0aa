"""Ghost groups that do not divide the batch: right, and without a cliff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.oracles import sets, whitening

EPSILON = 1e-2


def temporary(norm, rows, features=512):
  """Bytes that a training step needs beside its arguments and results."""

  def loss(x):
    return (norm.apply(x, norm.init(features))[0] ** 2).sum()

  x = jax.ShapeDtypeStruct((rows, features), jnp.float32)
  compiled = jax.jit(jax.grad(loss)).lower(x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('rows', [1023, 1025, 993])
def test_memory_is_a_few_arrays_also_where_groups_do_not_divide(rows):
  """Three and four arrays of the size of x by jax 0.10, none and four by 0.12.

  Separate statistics of each group, spread over rows, would be several more.
  """
  norm = norms.batch_norm(group_size=32)
  assert temporary(norm, rows) <= 5 * rows * 512 * 4


@pytest.mark.slow
def test_memory_of_whitened_ghosts_is_too():
  norm = norms.batch_whitening('zca', ghost_size=32)
  assert temporary(norm, 255, 16) <= 1.5 * temporary(norm, 256, 16)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
  ('rows', 'group_size'),
  [
    *((9, 4), (12, 30)),
    *(
      pytest.param(rows, group_size, marks=pytest.mark.slow)
      for rows in (1, 7, 8, 9, 12, 23)
      for group_size in (2, 4, 5, 30)
    ),
  ],
)
def test_each_group_by_itself(rows, group_size, masked):
  rng = np.random.default_rng(rows)
  x = 3 + rng.standard_normal((rows, 2, 3))
  mask = rng.uniform(size=(rows, 2, 1)) < 0.7 if masked else np.full(x.shape, 1)
  mask = mask.astype(bool)
  with jax.enable_x64(True):
    norm = norms.batch_norm(epsilon=EPSILON, group_size=group_size)
    filled = jnp.asarray(np.where(mask, x, np.nan))
    state = norm.init(3, jnp.float64)
    apply = lambda x: norm.apply(x, state, mask=mask if masked else None)
    (y, state), gradient = (
      apply(filled),
      jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x)[0]))))(filled),
    )
  oracle = sets.over(
    lambda shape: sets.batch(shape, group_size), sets.standardized
  )
  whole = np.broadcast_to(mask, x.shape)
  np.testing.assert_allclose(y, oracle(x, whole, EPSILON, None), atol=1e-12)
  assert np.isfinite(gradient).all()
  assert not np.asarray(gradient)[~whole].any()
  if whole[..., 0].sum() > 1:
    _, mean, var = sets.moments(x, whole)
    count = whole[..., 0].sum()
    np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(state.var, var * count / (count - 1), rtol=1e-9)


@pytest.mark.parametrize('rows', [16, 19])
def test_whitening_of_groups_that_do_not_divide(rows):
  x = np.random.default_rng(0).standard_normal((rows, 4, 3))
  with jax.enable_x64(True):
    norm = norms.batch_whitening('zca', epsilon=EPSILON, ghost_size=8)
    y, _ = norm.apply(jnp.asarray(x), norm.init(3, jnp.float64))
  expected = whitening.batch(ghost=8)(x, np.full(x.shape, True), EPSILON, None)
  np.testing.assert_allclose(y, expected, atol=1e-9)


def test_one_program_serves_any_number_of_rows():
  (rows,) = jax.export.symbolic_shape('b')
  shape = jax.ShapeDtypeStruct((rows, 3), jnp.float32)
  norm = norms.batch_norm(group_size=4)
  state = norm.init(3)
  infer = lambda x: norm.apply(x, state, use_running=True, update=False)[0]
  train = lambda x: norm.apply(x, state)[0]
  for function in (infer, train):
    exported = jax.export.export(jax.jit(function))(shape)
    for n in (3, 4, 9):
      x = jnp.asarray(np.random.default_rng(n).standard_normal((n, 3)), 'f4')
      np.testing.assert_allclose(exported.call(x), function(x), atol=1e-5)


@pytest.mark.slow
def test_positions_and_channels_of_any_number():
  b, h, w = jax.export.symbolic_shape('b, h, w')
  shape = jax.ShapeDtypeStruct((b, h, w, 4), jnp.float32)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 4)), 'f4')
  for norm in (
    norms.group_norm(2),
    norms.instance_norm(),
    norms.layer_norm(axes='all'),
    norms.batch_norm(),
    norms.batch_whitening('zca', epsilon=EPSILON),
    norms.instance_whitening('zca', epsilon=EPSILON),
  ):
    apply = lambda x, norm=norm: norm.apply(x, norm.init(4))[0]
    exported = jax.export.export(jax.jit(apply))(shape)
    np.testing.assert_allclose(exported.call(x), apply(x), atol=1e-4)
