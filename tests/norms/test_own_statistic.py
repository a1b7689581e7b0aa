"""Statistics of one's own: brought together, merged their way, or refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_research import norms
from tests.own_statistics import Largest, Median
from tests.quick import some

EPSILON = 1e-3
MAPS = (Median(epsilon=EPSILON), Largest(epsilon=EPSILON))
each_map = pytest.mark.parametrize('map_', MAPS, ids=['median', 'largest'])


def draw(rows=16, features=3, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((rows, features)) ** 3, jnp.float32)


def normalized_by(map_, x, chosen):
  """The oracle: `x` by the statistics of what is chosen, float64."""
  x = np.asarray(x, np.float64)
  y = np.zeros_like(x)
  for c in range(x.shape[1]):
    kept = x[chosen[:, 0], c]
    centre, spread = 0, np.abs(kept).max()
    if isinstance(map_, Median):
      centre = np.median(kept)
      spread = 1.4826 * np.median(np.abs(kept - centre))
    y[:, c] = (x[:, c] - centre) / np.sqrt(spread**2 + EPSILON)
  return y


def expected(map_, x, mask=None):
  """The same by itself, and 0 where masked out."""
  mask = np.full((len(x), 1), True) if mask is None else np.asarray(mask)
  return np.where(mask, normalized_by(map_, x, mask), 0)


def normalize(map_, **scope):
  norm = norms.Normalization(norms.Batch(**scope), map_, norms.Ema(0.5))
  return norm, norm.init(3)


@each_map
@pytest.mark.parametrize('masked', [False, True])
def test_the_oracle(map_, masked):
  x = draw()
  mask = jnp.arange(16)[:, None] % 5 != 1 if masked else None
  filled = x if mask is None else jnp.where(mask, x, jnp.nan)
  norm, state = normalize(map_)
  y, state = norm.apply(filled, state, mask=mask)
  np.testing.assert_allclose(y, expected(map_, x, mask), atol=1e-5)
  y, _ = norm.apply(x, state, use_running=True, update=False)
  chosen = np.full((16, 1), True) if mask is None else np.asarray(mask)
  np.testing.assert_allclose(y, normalized_by(map_, x, chosen), atol=1e-4)


@each_map
@pytest.mark.parametrize('group_size', some([4, 7], [3, 16, 40]))
def test_ghosts_are_groups_estimated_apart(map_, group_size):
  x = draw()
  norm, state = normalize(map_, group_size=group_size)
  y, state = norm.apply(x, state)
  groups = [
    expected(map_, x[first : first + group_size])
    for first in range(0, 16, group_size)
  ]
  np.testing.assert_allclose(y, np.concatenate(groups), atol=1e-5)
  _, whole = normalize(map_)[0].apply(x, normalize(map_)[1])
  np.testing.assert_allclose(state.var, whole.var, rtol=1e-5)


@each_map
def test_a_mask_hides_rows_of_the_last_ghost_too(map_):
  x, mask = draw(), jnp.arange(16)[:, None] % 5 != 0  # row 15 is hidden
  filled = jnp.where(mask, x, 1e3)
  norm, state = normalize(map_, group_size=6)
  y, _ = norm.apply(filled, state, mask=mask)
  groups = [
    expected(map_, x[k : k + 6], mask[k : k + 6]) for k in range(0, 16, 6)
  ]
  np.testing.assert_allclose(y, np.concatenate(groups), atol=1e-5)


def over_shard_map(norm, x, mask):
  mesh = jax.make_mesh((8,), ('i',), axis_types=(AxisType.Auto,))
  apply = lambda x, mask: norm.apply(x, norm.init(3), mask=mask)[0]
  mapped = jax.shard_map(
    apply, mesh=mesh, in_specs=(P('i'), P('i')), out_specs=P('i')
  )
  return jax.jit(mapped)(x, mask)


def over_pmap(norm, x, mask):
  cut = lambda a: a.reshape((8, 2, *a.shape[1:]))
  apply = lambda x, mask: norm.apply(x, norm.init(3), mask=mask)[0]
  return jax.pmap(apply, 'i')(cut(x), cut(mask)).reshape(x.shape)


def over_vmaps(norm, x, mask):
  cut = lambda a: a.reshape((2, 4, 2, *a.shape[1:]))
  apply = lambda x, mask: norm.apply(x, norm.init(3), mask=mask)[0]
  mapped = jax.vmap(jax.vmap(apply, axis_name='i'), axis_name='g')
  return mapped(cut(x), cut(mask)).reshape(x.shape)


def over_a_mesh(kind, norm, x, mask):
  mesh = jax.make_mesh((8,), ('d',), axis_types=(kind,))
  with jax.set_mesh(mesh):
    x, mask = (
      jax.device_put(a, NamedSharding(mesh, P('d'))) for a in (x, mask)
    )
    apply = lambda x, mask: norm.apply(x, norm.init(3), mask=mask)[0]
    return jax.jit(apply)(x, mask)


FORMS = {
  'shard_map': (over_shard_map, 'i'),
  'pmap': (over_pmap, 'i'),
  'vmaps': (over_vmaps, ('g', 'i')),
  'auto': (functools.partial(over_a_mesh, AxisType.Auto), None),
  'explicit': (functools.partial(over_a_mesh, AxisType.Explicit), None),
}


@each_map
@pytest.mark.parametrize('form', some(['shard_map', 'explicit'], FORMS))
def test_many_devices_are_as_one(map_, form):
  run, axis_name = FORMS[form]
  norm, _ = normalize(map_, axis_name=axis_name)
  x, mask = draw(), jnp.arange(16)[:, None] % 5 != 1
  x = jnp.where(mask, x, 1e3)
  np.testing.assert_allclose(
    run(norm, x, mask), expected(map_, x, mask), atol=1e-5
  )


@each_map
@pytest.mark.parametrize('spec', some([P(None, 'd')], [P(None, None, 'd')]))
def test_positions_and_features_may_be_cut(map_, spec):
  norm, _ = normalize(map_)
  x = draw(16, 4 * 4).reshape(16, 4, 4)
  mesh = jax.make_mesh((2,), ('d',), axis_types=(AxisType.Explicit,))
  apply = lambda x: norm.apply(x, norm.init(4))[0]
  with jax.set_mesh(mesh):
    y = jax.jit(apply)(jax.device_put(x, NamedSharding(mesh, spec)))
  np.testing.assert_allclose(y, apply(x), atol=1e-5)


EXAMPLES = {
  'features': norms.Example(),
  'positions': norms.Example('positions'),
  'groups': norms.Example('all', num_groups=2),
}


@each_map
@pytest.mark.parametrize('scope', EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize(
  'spec', some([P(None, None, 'd')], [P('d'), P(None, 'd')])
)
def test_pooled_axes_of_an_example_may_be_cut(map_, scope, spec):
  norm = norms.Normalization(scope, map_)
  x = draw(16, 4 * 4).reshape(16, 4, 4)
  mask = jnp.arange(16).reshape(16, 1, 1) % 5 != 1
  apply = lambda x, mask: norm.apply(x, mask=mask)[0]
  mesh = jax.make_mesh((2,), ('d',), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    y = jax.jit(apply)(jax.device_put(x, NamedSharding(mesh, spec)), mask)
  assert y.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
  np.testing.assert_allclose(y, apply(x, mask), atol=1e-5)


@each_map
@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_ghosts_on_many_devices_are_as_on_one(map_, kind):
  norm, _ = normalize(map_, group_size=6)
  x = draw(48)
  mask = jnp.full((48, 1), True)
  y = over_a_mesh(kind, norm, x, mask)
  groups = [expected(map_, x[k : k + 6]) for k in range(0, 48, 6)]
  np.testing.assert_allclose(y, np.concatenate(groups), atol=1e-5)


@pytest.mark.parametrize(
  ('map_', 'size'), [(MAPS[0], 8 * 2 * 3), (MAPS[1], 8 * 3 * 3)]
)
def test_what_travels_is_counted(map_, size):
  """Rows of all devices for the median, statistics for the largest: once."""
  norm, _ = normalize(map_, axis_name='i')
  mesh = jax.make_mesh((8,), ('i',), axis_types=(AxisType.Auto,))
  apply = jax.shard_map(
    lambda x: norm.apply(x, norm.init(3), update=False)[0],
    mesh=mesh,
    in_specs=P('i'),
    out_specs=P('i'),
  )
  jaxpr = str(jax.make_jaxpr(apply)(draw()))
  gathers = [line for line in jaxpr.splitlines() if ' = all_gather' in line]
  assert len(gathers) == 1
  assert 'psum' not in jaxpr
  shape = gathers[0].split('f32[')[1].split(']')[0]
  assert np.prod([int(n) for n in shape.split(',')]) == size


REFUSED = {
  'groups over devices': lambda: normalize(
    MAPS[0], group_size=2, axis_name='i'
  ),
  'reference': lambda: norms.Normalization(norms.Reference(2), MAPS[0]),
  'pooled': lambda: norms.Normalization(norms.Batch(), MAPS[0], norms.Pooled()),
  'accumulated': lambda: norms.Normalization(
    norms.Batch(), MAPS[0], norms.Accumulated(2, norms.Ema())
  ),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_must_merge_is_refused(what):
  with pytest.raises(ValueError, match=r'statistics of .*Median.* merge'):
    REFUSED[what]()


@each_map
def test_windows_have_no_statistics_of_ones_own(map_):
  with pytest.raises(ValueError, match='statistics of another kind'):
    norms.Normalization(norms.Neighbourhood(3), map_)


def test_a_merge_of_ones_own_serves_pools_and_micro_batches():
  x = draw(20)
  pooled = norms.Normalization(norms.Batch(), MAPS[1], norms.Pooled())
  state = pooled.init(3)
  for part in (x[:5], x[5:6], x[6:]):
    _, state = pooled.apply(part, state)
  largest = jnp.abs(x).max(0) ** 2
  np.testing.assert_allclose(state.var, largest, rtol=1e-6)
  micro = norms.Accumulated(2, norms.Ema(0.0))
  accumulated = norms.Normalization(norms.Batch(), MAPS[1], micro)
  state = accumulated.init(3)
  for part in (x[:5], x[5:]):
    _, state = accumulated.apply(part, state)
  np.testing.assert_allclose(state.var, largest, rtol=1e-6)
