"""The same numbers in every form of program, on 1, 2 and 8 devices.

Values, running statistics, and gradients of input and parameters are those of
one device, in float64 to 1e-12. docs/program_forms.md tells what to write.
"""

import dataclasses
import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import norms
from tests import rows
from tests.normalizations import ROWS
from tests.norms import forms
from tests.quick import some

SHAPE = (32, 2, 3)
# Of the 4 examples of each of 8 devices; the first and the sixth have none.
KEPT = (0, 4, 1, 3, 4, 0, 2, 2)


def arguments(shape, masked=False):
  """A batch whose shares differ in mean, an affine and a mask by share."""
  rng = np.random.default_rng(0)
  drift = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) / 4
  x = jnp.asarray(drift + rng.normal(size=shape))
  weights, scale, bias = map(
    jnp.asarray, (rng.normal(size=s) for s in (shape, shape[-1:], shape[-1:]))
  )
  if not masked:
    return forms.Batch(x, weights, None), scale, bias
  index = np.arange(shape[0])
  mask = index % 4 < np.repeat(KEPT, 4)
  mask = mask.reshape(-1, *[1] * (len(shape) - 1))
  x = jnp.where(mask, x, jnp.nan)
  return forms.Batch(x, weights, jnp.asarray(mask)), scale, bias


def close(actual, expected):
  def compare(a, b):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

  jax.tree.map(compare, actual, expected)


@functools.cache
def on_one_device(make, masked, shape=SHAPE):
  """Arguments of a step, and what is right."""
  batch, scale, bias = arguments(shape, masked)
  state = make().init(shape[-1])
  # Not the first update, where a wrong weight of the old value hides.
  _, state = make().apply(batch.weights, state)
  given = batch, state, scale, bias
  return given, forms.single(make(), *given)


def check(form, make, devices, masked):
  named = form in forms.NAMED
  given, right = on_one_device(make, masked)
  form = (forms.NAMED if named else forms.GLOBAL)[form]
  norm = make(axis_name='i') if named else make()
  close(form(norm, *given, devices=devices), right)


BOTH = [*forms.GLOBAL, *forms.NAMED]
batch_norm = partial(norms.batch_norm, momentum=0.8)


@pytest.mark.parametrize(
  ('form', 'case'),
  some(
    [(form, (8, True)) for form in BOTH],
    itertools.product(BOTH, ((2, False), (1, True), (8, False))),
  ),
)
def test_batch_norm(form, case, x64):
  devices, masked = case
  check(form, batch_norm, devices, masked)


@pytest.mark.slow
@pytest.mark.parametrize('check_vma', some([True], [False]))
def test_evonorm_b0_has_the_variance_of_the_whole_batch(check_vma, x64):
  batch, *_ = arguments(SHAPE)
  learned = {'v': jnp.linspace(0.0, 0.2, SHAPE[-1])}

  def step(norm, x):
    start = norm.init(SHAPE[-1])
    call = lambda x: norm.apply(x, start, learned=learned)
    y, pullback, state = jax.vjp(call, x, has_aux=True)
    return y, pullback(y), state.var

  rows = P('i')
  mapped = jax.shard_map(
    partial(step, norms.create('evonorm_b0', axis_name='i')),
    mesh=forms.make_mesh(8),
    in_specs=rows,
    out_specs=(rows, rows, P()),
    check_vma=check_vma,
  )
  x = batch.x
  close(jax.jit(mapped)(x), step(norms.create('evonorm_b0'), x))


# Groups within a device, uneven, across devices, and of many devices.
GHOSTS = {
  size: partial(norms.batch_norm, momentum=0.8, group_size=size)
  for size in (2, 3, 6, 20)
}


@pytest.mark.parametrize(
  ('form', 'group_size'),
  some(
    [
      ('explicit mesh', 3),
      ('shard_map', 20),
      ('pmap', 6),
    ],
    [
      *((form, 6) for form in BOTH),
      *itertools.product(['explicit mesh', 'shard_map'], [2, 3, 20]),
    ],
  ),
)
def test_ghost_batches_are_of_rows_not_of_devices(form, group_size, x64):
  check(form, GHOSTS[group_size], 8, masked=group_size == 3)


@pytest.mark.parametrize(
  'names',
  [
    ('g', 'i'),
    pytest.param('i', marks=pytest.mark.slow),
    pytest.param(('i', 'g'), marks=pytest.mark.slow),
    pytest.param('g', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize(
  'form',
  [
    'shard_map',
    pytest.param('shard_map, check_vma=False', marks=pytest.mark.slow),
  ],
)
def test_two_axes_of_a_mesh(form, names, x64):
  """Both names are the whole batch; one is a batch for each share across."""
  mesh = forms.make_mesh(8, names=('g', 'i'), shape=(2, 4))
  given, right = on_one_device(batch_norm, True)
  norm = batch_norm(axis_name=names)
  result = forms.NAMED[form](norm, *given, 8, mesh, names)
  if len(names) == 2:
    close(result, right)
  else:
    close(result, apart(*given, own='gi'.index(names)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('outer', 'group_size'),
  some(
    [('shard_map', 6)],
    itertools.product(('pmap', 'vmap', 'shard_map'), (6, None)),
  ),
)
def test_axes_of_two_kinds(outer, group_size, x64):
  """Pooled over the axis of a map and over that of a vmap inside of it."""
  (batch, state, *_), _ = on_one_device(batch_norm, True)
  whole = batch_norm(group_size=group_size)
  right = whole.apply(batch.x, state, mask=batch.mask)
  norm = batch_norm(group_size=group_size, axis_name=('i', 'v'))
  cut = lambda leaf: leaf.reshape(2, 4, -1, *leaf.shape[1:])
  x, mask = cut(batch.x), cut(batch.mask)

  def inner(x, mask):
    one = lambda x, mask: norm.apply(x, state, mask=mask)
    return jax.vmap(one, axis_name='v')(x, mask)

  if outer == 'shard_map':
    stack = partial(jax.tree.map, lambda leaf: leaf[None])
    y, after = jax.shard_map(
      lambda x, mask: stack(inner(x[0], mask[0])),
      mesh=forms.make_mesh(2),
      in_specs=P('i'),
      out_specs=P('i'),
      check_vma=False,  # checking, JAX itself cannot sum over both
    )(x, mask)
  else:
    y, after = getattr(jax, outer)(inner, axis_name='i')(x, mask)
  last = jax.tree.map(lambda leaf: leaf[1, 3], after)
  close((y.reshape(batch.x.shape), last), right)


# Two groups of four devices, taken in turn; and in an order that is not the
# inverse of itself.
TURNS = ((0, 2, 4, 6), (7, 5, 3, 1))
SHUFFLED = ((0, 2, 4, 6), (5, 1, 7, 3))


@pytest.mark.parametrize(
  ('groups', 'group_size'), some([(SHUFFLED, 4)], [(TURNS, 4), (TURNS, None)])
)
def test_groups_of_devices(groups, group_size, x64):
  """Each pools by itself; ghosts of four span two devices of a group."""
  scope = norms.Batch(group_size, axis_name='i', axis_index_groups=groups)
  norm = norms.Normalization(scope, norms.Standardize())
  whole = norms.batch_norm(group_size=group_size)
  batch, *_ = arguments((16, 3))
  x, weights = (leaf.reshape(8, 2, 3) for leaf in batch[:2])

  def value_and_pullback(apply, x, weights):
    y, pullback = jax.vjp(apply, x)
    return y, *pullback(weights)

  y, dx = jax.pmap(
    partial(value_and_pullback, lambda x: norm.apply(x)[0]), axis_name='i'
  )(x, weights)
  for turn in map(jnp.array, groups):
    right = value_and_pullback(
      lambda x: whole.apply(x, whole.init(3))[0],
      *(leaf[turn].reshape(8, 3) for leaf in (x, weights)),
    )
    close((y[turn].reshape(8, 3), dx[turn].reshape(8, 3)), right)


def apart(batch, state, scale, bias, own):
  """One device a pool, for pools along axis `own` of a mesh (2, 4)."""

  def cut(leaf):
    """(rows, ...) to (pools, rows of a pool, ...)."""
    shares = jnp.moveaxis(leaf.reshape(2, 4, 4, *leaf.shape[1:]), own, 1)
    return shares.reshape(len(shares), -1, *leaf.shape[1:])

  def joined(leaf):
    shares = leaf.reshape(len(leaf), -1, 4, *leaf.shape[2:])
    return jnp.moveaxis(shares, 1, own).reshape(-1, *leaf.shape[2:])

  total = partial(jax.lax.psum, axis_name='pools')
  step = partial(forms.gradients, batch_norm(), total=total)
  pools = jax.vmap(step, in_axes=(0, None, None, None), axis_name='pools')(
    jax.tree.map(cut, batch), state, scale, bias
  )
  dx, *parameters = pools.gradients
  parameters = [jnp.sum(leaf, 0) for leaf in parameters]
  return forms.Result(joined(pools.y), pools.state, (joined(dx), *parameters))


OTHERS = {
  'mean_only_batch_norm': norms.mean_only_batch_norm,
  'power_norm': norms.power_norm,
  'batch_renorm': partial(norms.batch_renorm, r_max=1.3, d_max=0.4),
  'batch_whitening': partial(norms.batch_whitening, 'cholesky'),
  'iter_norm': partial(norms.iter_norm, 2),
}


@pytest.mark.parametrize(
  ('form', 'name'),
  some(
    [('shard_map', 'batch_renorm')],
    [*(('shard_map', name) for name in OTHERS), ('pmap', 'batch_renorm')],
  ),
)
def test_other_batches_along_a_named_axis(form, name, x64):
  check(form, OTHERS[name], 8, masked=True)


@pytest.mark.parametrize(
  ('make', 'check_vma'),
  some(
    [(norms.layer_norm, True)],
    itertools.product((norms.layer_norm, norms.rms_norm), (True, False)),
  ),
)
def test_features_spread_over_devices(make, check_vma, x64):
  """Tensor parallel: each device has some of the features of every example."""
  batch, _, _ = arguments((4, 16))
  mask = jnp.arange(16)[None] % 8 != 3
  scale = jnp.linspace(0.5, 2, 16)

  def apply(norm, x, scale, mask):
    return norm.apply(x, scale=scale, mask=mask)[0]

  columns = P(None, 'i')
  spread = jax.shard_map(
    partial(apply, make(axis_name='i')),
    mesh=forms.make_mesh(8),
    in_specs=(columns, P('i'), columns),
    out_specs=columns,
    check_vma=check_vma,
  )
  loss = lambda f, x, scale: jnp.sum(batch.weights * jnp.sin(f(x, scale, mask)))
  grad = jax.value_and_grad(loss, argnums=(1, 2))
  results = [
    jax.jit(partial(grad, f))(batch.x, scale)
    for f in (spread, partial(apply, make()))
  ]
  close(*results)


def eight_rows(row):
  return dataclasses.replace(row, shape=(8, *row.shape[1:]))


@pytest.mark.parametrize(
  'row', [eight_rows(row) for row in ROWS], ids=lambda row: row.name
)
def test_every_normalization_over_an_explicit_mesh(row, x64):
  """Each device has one example; what that means is the scope's business."""
  norm, sample = row.make(), row.sample()
  mask = jnp.asarray(row.mask('rows'))

  def step(x, mask, scale, bias):
    sample_ = sample._replace(x=x, scale=scale, bias=bias)
    y, state = rows.call(norm, sample_, row.init(), mask)
    return jnp.mean(jnp.sin(y)), (y, state)

  step = jax.value_and_grad(step, argnums=(0, 2, 3), has_aux=True)
  x, scale, bias = map(jnp.asarray, sample[:3])
  right = jax.jit(step)(x, mask, scale, bias)
  mesh = forms.make_mesh(8, AxisType.Explicit)
  with jax.set_mesh(mesh):
    x, mask = jax.device_put((x, mask), NamedSharding(mesh, P('i')))
    scale, bias = jax.device_put((scale, bias), NamedSharding(mesh, P()))
    close(jax.jit(step)(x, mask, scale, bias), right)


OVER_FEATURES = {
  'batch_norm': norms.batch_norm,
  'ghosts': partial(norms.batch_norm, group_size=3),
  'group_norm': partial(norms.group_norm, 3),
  'batch_whitening': norms.batch_whitening,
  'blocks, of which one is smaller': partial(norms.batch_whitening, 'zca', 4),
  'refined': partial(norms.batch_whitening, 'cholesky', refinements=1),
  'ghost whitening': partial(norms.batch_whitening, 'zca', ghost_size=3),
  'instance_whitening': partial(norms.instance_whitening, 'zca'),
  'group_whitening': partial(norms.group_whitening, 3, 'zca'),
  'coloured': lambda: norms.Coloured(norms.batch_whitening('zca')),
}


@pytest.mark.parametrize('name', some(['ghosts', 'group_norm'], OVER_FEATURES))
def test_positions_and_features_over_an_explicit_mesh(name, x64):
  """Features of one block, and positions pooled, may be on several devices."""
  norm = OVER_FEATURES[name]()
  rng = np.random.default_rng(0)
  x, scale, bias = rng.normal(size=(6, 4, 4, 6)), *rng.normal(size=(2, 6))

  def step(x, scale, bias):
    learned = norm.learned(6)
    y, state = norm.apply(
      x, norm.init(6), scale=scale, bias=bias, learned=learned
    )
    return jnp.mean(jnp.sin(y)), (y, state)

  step = jax.value_and_grad(step, argnums=(0, 1, 2), has_aux=True)
  right = jax.jit(step)(x, scale, bias)
  names = ('a', 'b', 'c')
  mesh = forms.make_mesh(8, AxisType.Explicit, names=names, shape=(2, 2, 2))
  with jax.set_mesh(mesh):
    cut = jax.device_put(x, NamedSharding(mesh, P('a', 'b', None, 'c')))
    results = jax.jit(step)(cut, scale, bias)
    assert jax.typeof(results[0][1][0]).sharding.spec == P('a', 'b', None, 'c')
    close(results, right)


@pytest.mark.slow
def test_the_idiom_of_one_map_is_wrong_in_the_other(x64):
  """docs/program_forms.md: where the traps are, and how wrong they are."""
  (batch, state, scale, bias), right = on_one_device(batch_norm, False)
  norm, mesh = batch_norm(axis_name='i'), forms.make_mesh(8)
  total = partial(jax.lax.psum, axis_name='i')

  def dscale(check_vma, before, after):
    """The gradient that each device holds."""

    def step(*args):
      result = forms.gradients(norm, *args, total=total, reduce=before)
      return after(result.gradients[1])[None]

    return jax.jit(
      jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P('i'), P(), P(), P()),
        out_specs=P('i'),
        check_vma=check_vma,
      )
    )(batch, state, scale, bias)

  everywhere = jnp.broadcast_to(right.gradients[1], (8, SHAPE[-1]))
  # The sum of the gradients: right unchecked, eight times too much checked.
  close(dscale(False, forms.keep, total), everywhere)
  close(dscale(True, forms.keep, total), 8 * everywhere)
  # The gradient of the sum: right checked. Unchecked, each device has eight
  # times its part, for a sum transposes to a sum.
  close(dscale(True, total, forms.keep), everywhere)
  parts = dscale(False, total, forms.keep)
  assert np.abs(parts[0] - parts[1]).max() > 0.01
  close(parts.sum(0), 8 * right.gradients[1])
