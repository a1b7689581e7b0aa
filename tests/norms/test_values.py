"""Every normalization against its oracle: values, and what is remembered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests import oracles, rows
from tests.normalizations import (
  ROWS,
  each,
  each_that_forgets,
  each_that_remembers,
)

TOLERANCE = {'float32': 3e-6, 'float64': 1e-13}


@pytest.fixture
def dtype(request):
  with jax.enable_x64(request.param == 'float64'):
    yield request.param


def close(row, actual, expected):
  actual = np.asarray(actual)
  assert np.isfinite(actual).all()
  tolerance = TOLERANCE[str(actual.dtype)]
  # The root of a matrix takes digits: as many as its condition number has.
  tolerance *= (30 if row.joint else 1) * (1 + np.abs(expected).max())
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def rounded(sample, dtype):
  """The sample as a library at that precision sees it, in float64."""
  return jax.tree.map(lambda a: a.astype(dtype).astype('float64'), sample)


def test_every_name_has_a_row():
  assert {row.name.split('/')[0] for row in ROWS} == set(norms.NAMES)


@pytest.mark.parametrize(
  ('dtype', 'mask'),
  [('float64', 'none'), ('float64', 'entries'), ('float32', 'rows')],
  indirect=['dtype'],
)
@each
def test_value(row, mask, dtype):
  mask = row.mask(mask)
  sample = rounded(row.sample(), dtype)
  y, _ = rows.call(row.make(), rows.cast(sample, dtype), row.init(), mask)
  assert y.dtype == dtype
  close(row, y, row.expected(sample, mask))


@pytest.mark.parametrize('dtype', TOLERANCE, indirect=True)
@each_that_remembers
def test_population_at_every_step(row, dtype):
  norm, state, past, history = row.make(), row.init(), row.past(), []
  for step in range(10):
    sample = rounded(row.sample(seed=step), dtype)
    mask = row.mask(rows.MASKS[step % 3], seed=step)
    mask = np.broadcast_to(True if mask is None else mask, row.entries)
    given = rows.cast(sample, dtype)
    y, state = rows.call(norm, given, state, mask)
    close(row, y, row.expected(sample, mask, past))
    history.append((sample.x, mask))
    past = oracles.Past(*row.remember(history), step + 1)
    assert state.mean.dtype == state.var.dtype == dtype
    close(row, state.mean, past.mean)
    close(row, state.var, past.var)
    assert (state.steps, state.skipped) == (step + 1, 0)
    y, same = rows.call(
      norm, given, state, mask, use_running=True, update=False
    )
    close(row, y, row.expected(sample, mask, past, row.running))
    jax.tree.map(np.testing.assert_array_equal, same, state)


@each_that_remembers
def test_which_moments_and_whether_to_learn_are_apart(row):
  norm = row.make()
  first, later = (rows.cast(row.sample(seed), 'float32') for seed in (0, 1))
  _, state = rows.call(norm, first, row.init())

  def call(use_running, update):
    return rows.call(norm, later, state, use_running=use_running, update=update)

  trained, moved = call(False, True)
  evaluated, kept = call(True, False)
  frozen, unmoved = call(False, False)
  watched, learned = call(True, True)
  np.testing.assert_allclose(frozen, trained, atol=1e-6)
  np.testing.assert_allclose(watched, evaluated, atol=1e-6)
  assert np.abs(trained - evaluated).max() > 0.01
  jax.tree.map(np.testing.assert_array_equal, state, kept)
  jax.tree.map(np.testing.assert_array_equal, state, unmoved)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), moved, learned)
  assert np.abs(moved.var - state.var).max() > 0.01


@each_that_forgets
def test_what_remembers_nothing_has_no_state(row):
  norm, sample = row.make(), rows.cast(row.sample(), 'float32')
  assert not norm.remembers
  assert row.init() == ()
  assert rows.call(norm, sample, ())[1] == ()
  with pytest.raises(ValueError, match='use_running=True asks for running'):
    rows.call(norm, sample, (), use_running=True)


@each
def test_scale_and_bias_may_differ_between_examples_or_be_left_out(row):
  norm, sample = row.make(), rows.cast(row.sample(), 'float32')
  bare = sample._replace(scale=None, bias=None)
  plain, _ = rows.call(norm, bare, row.init())
  shape = (row.shape[0],) + (1,) * (len(row.shape) - 2) + row.shape[-1:]
  scale = jnp.linspace(0.5, 2, np.prod(shape)).reshape(shape)
  conditional = bare._replace(scale=scale, bias=-scale)
  y, _ = rows.call(norm, conditional, row.init())
  np.testing.assert_allclose(y, scale * plain - scale, atol=1e-5)
