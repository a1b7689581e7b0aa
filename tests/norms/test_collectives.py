"""Collectives, counted in the compiled program.

A sum over devices that waits for another is a second trip. Batch normalization
needs one for the value and one for the gradient, whatever the form of the
program; the parameters' gradients travel with it.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import norms
from bn_research.training.costs import compiled
from tests.norms import forms
from tests.norms.forms import keep
from tests.quick import some

SHAPE = (64, 4, 16)


def count(f, *args):
  """Collectives in the program that XLA makes of a jitted function."""
  return len(compiled.read(f.lower(*args).compile().as_text()))


def forward(norm, reduce, x, g, state, scale, bias):
  del reduce, g
  return *norm.apply(x, state, scale=scale, bias=bias), ()


def both(norm, reduce, x, g, state, scale, bias):
  """The forward program, and the gradients of input, scale and bias."""

  def call(x, scale, bias):
    return norm.apply(x, state, scale=scale, bias=bias)

  y, pullback, after = jax.vjp(call, x, scale, bias, has_aux=True)
  dx, *parameters = pullback(g * y)  # as of a loss, it waits for the value
  return dx, after, reduce(parameters)


def arguments(norm):
  x, features = jnp.zeros(SHAPE), jnp.ones(SHAPE[-1])
  return x, x, norm.init(SHAPE[-1]), features, features


def in_map(norm, reduce, wrap, cut=keep):
  """Counts of both programs in a map over named axes."""
  x, g, *rest = arguments(norm)
  return [
    count(wrap(partial(f, norm, reduce)), cut(x), cut(g), *rest)
    for f in (forward, both)
  ]


def shard_map(check_vma, mesh=None):
  mesh = mesh or forms.make_mesh(8)
  rows = P(mesh.axis_names)

  def wrap(f):
    return jax.jit(
      jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(rows, rows, P(), P(), P()),
        out_specs=(rows, P(), P()),
        check_vma=check_vma,
      )
    )

  return wrap


def over_mesh(norm, kind, in_context):
  """Counts of both programs in plain jit over a mesh."""
  mesh = forms.make_mesh(8, kind)
  rows, whole = NamedSharding(mesh, P('i')), NamedSharding(mesh, P())
  with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
    x, g, *rest = arguments(norm)
    x, g = jax.device_put((x, g), rows)
    rest = jax.device_put(rest, whole)
    return [
      count(jax.jit(partial(f, norm, keep)), x, g, *rest)
      for f in (forward, both)
    ]


NAMED = {
  'batch_norm': norms.batch_norm,
  'batch_renorm': norms.batch_renorm,
  'ghosts across devices': partial(norms.batch_norm, group_size=16),
}


@pytest.mark.parametrize('name', some(['batch_norm'], NAMED))
def test_shard_map(name):
  """The check inserts the sum of the parameters' gradients, in the same one."""
  norm = NAMED[name](axis_name='i')
  assert in_map(norm, keep, shard_map(check_vma=True)) == [1, 2]


def test_shard_map_that_does_not_check():
  """The user's sum of the parameters' gradients is merged into it by XLA."""
  norm = norms.batch_norm(axis_name='i')
  total = partial(jax.lax.psum, axis_name='i')
  assert in_map(norm, total, shard_map(check_vma=False)) == [1, 2]


def test_pmap():
  norm = norms.batch_norm(axis_name='i')
  total = partial(jax.lax.psum, axis_name='i')
  wrap = partial(jax.pmap, axis_name='i', in_axes=(0, 0, None, None, None))
  cut = lambda x: x.reshape(8, -1, *x.shape[1:])
  assert in_map(norm, total, wrap, cut) == [1, 2]


@pytest.mark.parametrize(
  'part',
  some(
    [norms.batch_norm(axis_name='i')],
    [
      norms.batch_norm(axis_name='i', group_size=16),
      norms.batch_whitening('zca', axis_name='i'),
    ],
  ),
)
def test_a_combination_recomputes_no_collective(part):
  chain = norms.Chain((part, part))
  assert in_map(chain, keep, shard_map(check_vma=True)) == [2, 4]


@pytest.mark.slow
def test_a_combination_recomputes_no_collective_over_a_mesh():
  chain = norms.Chain((norms.batch_norm(), norms.batch_norm()))
  assert over_mesh(chain, AxisType.Auto, in_context=True) == [2, 4]


def test_two_named_axes_are_one_trip():
  norm = norms.batch_norm(axis_name=('g', 'i'))
  mesh = forms.make_mesh(8, names=('g', 'i'), shape=(2, 4))
  assert in_map(norm, keep, shard_map(True, mesh)) == [1, 2]


@pytest.mark.parametrize('kind', some([AxisType.Auto], [AxisType.Explicit]))
def test_plain_jit_over_a_mesh_in_context(kind):
  """As few as Flax's fast variance takes, which is not stable."""
  assert over_mesh(norms.batch_norm(), kind, in_context=True) == [1, 2]
  # The gradients of the parameters do not travel with those of the groups.
  ghosts = norms.batch_norm(group_size=16)
  assert over_mesh(ghosts, kind, in_context=True) == [1, 3]


def test_plain_jit_without_the_mesh_in_context():
  """The library cannot see how rows are cut: one trip more each way."""
  norm = norms.batch_norm()
  assert over_mesh(norm, AxisType.Auto, in_context=False) == [2, 3]


@pytest.mark.parametrize('kind', some([AxisType.Explicit], [AxisType.Auto]))
def test_examples_need_no_other_device(kind):
  """Only the parameters' gradients are summed."""
  for norm in (norms.layer_norm(), norms.group_norm(4), norms.instance_norm()):
    assert over_mesh(norm, kind, in_context=True) == [0, 1]
