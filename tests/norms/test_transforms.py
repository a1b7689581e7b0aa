"""Every normalization under jit, vmap, scan, remat, and traced abstractly."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bn_research import norms
from tests import rows
from tests.normalizations import ROWS, each, each_name
from tests.rows import EPSILON

BY_NAME = {row.name: row for row in ROWS}


@functools.cache
def compiled(name):
  """One call with a mask, compiled once for all tests of a row."""
  row = BY_NAME[name]
  return jax.jit(partial(rows.call, row.make(), mask=row.mask('rows')))


def arguments(row, seed=0):
  return rows.cast(row.sample(seed), 'float32'), row.init()


def close(actual, expected, tolerance=1e-5):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)

  def compare(a, b):
    assert a.dtype == b.dtype
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

  jax.tree.map(compare, actual, expected)


@pytest.mark.slow
@each
def test_jit_is_eager(row):
  with jax.disable_jit():
    eager = rows.call(row.make(), *arguments(row), row.mask('rows'))
  close(compiled(row.name)(*arguments(row)), eager, 1e-4)


@each_name
def test_vmap_over_runs_is_a_loop(row):
  """Many runs in one program: activations, states and parameters of each."""
  runs = [arguments(row, seed) for seed in range(3)]
  stack = lambda *leaves: jnp.stack(leaves)
  call = compiled(row.name)
  together = jax.jit(jax.vmap(call))(*jax.tree.map(stack, *runs))
  apart = [call(*run) for run in runs]
  close(together, jax.tree.map(stack, *apart), 1e-4)


@each_name
def test_scan_is_a_loop(row):
  call, (_, first) = compiled(row.name), arguments(row)
  samples = [arguments(row, seed)[0] for seed in range(3)]
  batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)

  def step(state, sample):
    y, state = call(sample, state)
    return state, y

  last, outputs = jax.jit(partial(jax.lax.scan, step))(first, batches)
  state = first
  for sample, output in zip(samples, outputs, strict=True):
    y, state = call(sample, state)
    close(output, y, 1e-4)
  close(last, state, 1e-4)


@each_name
def test_remat_changes_no_gradient(row):
  sample, state = arguments(row)
  loss = lambda sample: jnp.sum(jnp.sin(compiled(row.name)(sample, state)[0]))
  right = jax.jit(jax.grad(loss))(sample)
  close(jax.jit(jax.grad(jax.checkpoint(loss)))(sample), right, 1e-4)


@each
def test_abstract_init_and_apply(row):
  sample, concrete = arguments(row)
  kind = lambda leaf: (leaf.shape, leaf.dtype)
  kinds = lambda tree: jax.tree.map(kind, tree)
  state = jax.eval_shape(row.init)
  assert kinds(state) == kinds(concrete)
  y, after = jax.eval_shape(compiled(row.name), sample, state)
  assert kind(y) == kind(sample.x)
  assert kinds(after) == kinds(state)


@each_name
def test_a_second_call_compiles_nothing(row, caplog):
  norm = row.make(EPSILON / 2)
  sample, state = arguments(row)

  def compilations():
    caplog.clear()
    equal = row.make(EPSILON / 2)
    with jax.log_compiles():
      _, after = rows.call(equal, sample, state)
      rows.call(norm, sample, after)
    return [r for r in caplog.records if 'Compiling' in r.getMessage()]

  if norm == row.make(EPSILON / 3):
    # No epsilon tells the norm from those that another test has compiled.
    jax.clear_caches()
  assert compilations()
  assert not compilations()


@each_name
def test_a_static_argument_retraces_only_when_it_changes(row):
  sample, state = arguments(row)
  traced = []

  @partial(jax.jit, static_argnums=0)
  def apply(norm, sample, state):
    traced.append(norm)
    return rows.call(norm, sample, state)

  jax.eval_shape(partial(apply, row.make()), sample, state)
  jax.eval_shape(partial(apply, row.make()), sample, state)
  assert len(traced) == 1
  jax.eval_shape(partial(apply, row.make(0.5)), sample, state)
  assert len(traced) == (1 if row.make(0.5) == row.make() else 2)


@each_name
def test_prints_compares_hashes_and_is_replaced(row):
  norm = row.make()
  assert norm == row.make()
  assert hash(norm) == hash(row.make())
  assert repr(norm) == repr(row.make())
  for field in dataclasses.fields(norm):
    assert f'{field.name}=' in repr(norm)
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(norm, field.name, None)
  same = dataclasses.replace(norm)
  assert same == norm
  others = [row.make() for row in ROWS if row.make() != norm]
  assert len(others) >= len(ROWS) - 3  # positional norm is layer norm


@pytest.mark.parametrize(
  ('name', 'use_running'),
  [
    ('batch_norm', False),
    pytest.param('batch_norm', True, marks=pytest.mark.slow),
    pytest.param('batch_whitening', False, marks=pytest.mark.slow),
    pytest.param('batch_whitening', True, marks=pytest.mark.slow),
  ],
)
def test_a_program_may_be_exported_for_any_number_of_rows(name, use_running):
  norm = norms.create(name)
  rows = export.symbolic_shape('rows, 3')
  state = norm.init(3)

  def step(x):
    return norm.apply(x, state, use_running=use_running)[0]

  def gradient(x):
    return jax.grad(lambda x: (step(x) ** 3).sum())(x)

  x = jax.random.normal(jax.random.key(0), (5, 3))
  for f in (step, gradient):
    program = export.export(jax.jit(f))(jax.ShapeDtypeStruct(rows, 'float32'))
    np.testing.assert_allclose(program.call(x), f(x), atol=1e-4)
