"""States: from checkpoints, averaged, exported, in narrow types, of empty x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bn_research import norms
from tests.quick import some

X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)

NORMS = {
  'ema': norms.batch_norm(),
  'cumulative': norms.Normalization(
    norms.Batch(), norms.Standardize(), norms.Cumulative()
  ),
  'pooled': norms.Normalization(
    norms.Batch(), norms.Standardize(), norms.Pooled()
  ),
  'accumulated': norms.Normalization(
    norms.Batch(), norms.Whiten('zca'), norms.Accumulated(2, norms.Ema())
  ),
  'interval': norms.batch_whitening('zca', every=3),
  'fixed': norms.freeze(norms.batch_whitening('zca', every=3)),
}
each = pytest.mark.parametrize(
  'norm',
  [
    pytest.param(
      norm,
      id=name,
      marks=[pytest.mark.slow] * (name not in ('ema', 'pooled', 'interval')),
    )
    for name, norm in NORMS.items()
  ],
)


def as_dicts(state):
  """What a checkpoint holds that was restored without a target."""
  if hasattr(state, '_asdict'):
    return {k: as_dicts(v) for k, v in state._asdict().items()}
  return state


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@each
def test_a_restored_dict_is_a_state(norm):
  state = norm.apply(X, norm.init(4))[1]
  expected = norm.apply(X, state)
  same(norm.apply(X, as_dicts(state)), expected)
  same(
    norm.apply(X, as_dicts(state), use_running=True, update=False)[0],
    norm.apply(X, state, use_running=True, update=False)[0],
  )


def as_lists(state):
  """What a checkpoint holds that has no tuples."""
  return (
    [as_lists(leaf) for leaf in state] if isinstance(state, tuple) else state
  )


def without_none(state):
  """What a checkpoint holds that leaves out what is None."""
  if not hasattr(state, '_asdict'):
    return state
  fields = state._asdict().items()
  return {k: without_none(v) for k, v in fields if v is not None}


@each
@pytest.mark.parametrize('restore', [as_lists, without_none])
def test_lists_and_what_is_left_out_are_restored(norm, restore):
  state = norm.apply(X, norm.init(4))[1]
  same(norm.apply(X, restore(state)), norm.apply(X, state))


def test_states_of_a_chain_may_be_a_list_or_a_dict():
  chain = norms.Chain([NORMS['ema'], norms.layer_norm(), NORMS['interval']])
  state = chain.apply(X, chain.init(4))[1]
  expected = chain.apply(X, state)
  same(chain.apply(X, list(state)), expected)
  same(chain.apply(X, {str(k): s for k, s in enumerate(state)}), expected)
  with pytest.raises(ValueError, match=r'Chain needs a tuple .* its 3 parts'):
    chain.apply(X, state[:2])


@pytest.mark.parametrize('axis_name', some(['i'], [None]))
@each
def test_states_under_a_shard_map_that_checks(norm, axis_name):
  mesh = jax.make_mesh((2,), ('i',), axis_types=(AxisType.Auto,))
  if axis_name is not None:
    norm = norms.sync(norm, axis_name)
  local = lambda x, state: jax.tree.map(
    lambda leaf: leaf[None], norm.apply(x[0], state)[1]
  )
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=(P('i'), P()), out_specs=P('i')
  )
  state = norm.init(4)
  both = jax.jit(mapped)(jnp.stack([X, X]), state)
  alone = norms.sync(norm, None).apply(X, state)[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-4),
    (both.mean, both.steps),
    (alone.mean, alone.steps),
  )


WRONG = ({'mean': 0}, {}, [1, 2], jnp.zeros(4), 3.0)


@each
@pytest.mark.parametrize('wrong', WRONG, ids=str)
def test_what_is_no_state_is_told(norm, wrong):
  with pytest.raises(ValueError, match=r'the state is .* needs a .*Running'):
    norm.apply(X, wrong)


def test_a_state_of_another_population_is_told():
  state = NORMS['ema'].init(4)
  with pytest.raises(ValueError, match='needs a AccumulatedRunning'):
    NORMS['accumulated'].apply(X, state)


@each
def test_counts_survive_an_average_over_devices(norm):
  """As integers they would come out of `pmean` as another type."""
  mesh = jax.make_mesh((8,), ('i',), axis_types=(AxisType.Auto,))

  def local(state, x):
    def body(state, _):
      state = norm.apply(x, state)[1]
      return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, 'i'), state), None

    return jax.lax.scan(body, state, None, length=3)[0]

  over = jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False
  )
  state = jax.jit(over)(norm.init(4), X)
  alone = norm.init(4)
  for _ in range(3):
    _, alone = norm.apply(X, alone)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state,
    alone,
  )


@each
def test_a_program_with_states_is_serialized(norm):
  run = jax.jit(lambda x, state: norm.apply(x, state))
  state = norm.init(4)
  restored = jax.export.deserialize(
    jax.export.export(run)(X, state).serialize()
  )
  found, expected = restored.call(X, state), run(X, state)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  same(found, expected)


@pytest.mark.parametrize('dtype', some([jnp.float16], [jnp.bfloat16]))
@each
def test_a_state_of_a_narrow_type_never_holds_what_is_not_finite(norm, dtype):
  """A variance that float32 holds and float16 does not."""
  state = jax.tree.map(
    lambda leaf: leaf.astype(dtype) if leaf.ndim else leaf, norm.init(4)
  )
  huge = jnp.asarray([[6e4], [-6e4]] * 4, jnp.float32) * jnp.ones(4)
  _, after = norm.apply(huge, state)
  for k in range(2):
    _, after = norm.apply(X + k, after)
  leaves = jax.tree.leaves((after.mean, after.var))
  assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)
  assert all(leaf.dtype == dtype for leaf in leaves)


def test_types_are_those_that_were_asked_for():
  with jax.enable_x64(True):
    for norm in (*NORMS.values(), norms.EvoNormB0()):
      leaves = jax.tree.leaves(norm.init(4))
      assert {leaf.dtype for leaf in leaves} == {np.dtype('float32')}
      wide = norm.init(4, jnp.float64)
      assert wide.mean.dtype == jnp.float64
    for norm in (
      norms.dynamic_erf(),
      norms.EvoNormS0(2),
      norms.Coloured(norms.batch_norm()),
      norms.Mixture((norms.batch_norm(), norms.layer_norm())),
    ):
      for dtype in (jnp.float32, jnp.bfloat16):
        leaves = jax.tree.leaves(norm.learned(4, dtype))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


EMPTY = {
  'evaluation': (
    norms.batch_norm(),
    {'use_running': True, 'update': False},
  ),
  'layer_norm': (norms.layer_norm(), {}),
  'group_norm': (norms.group_norm(2), {}),
  'instance_norm': (norms.instance_norm(), {}),
  'instance_whitening': (norms.instance_whitening(), {}),
  'local_response_norm': (norms.local_response_norm(), {}),
  'chain': (norms.Chain((norms.layer_norm(), norms.rms_norm())), {}),
  'dynamic_tanh': (norms.dynamic_tanh(), {}),
  'none': (norms.none(), {}),
}


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('name', EMPTY)
def test_an_empty_batch_is_normalized_to_an_empty_batch(name, jit):
  norm, switches = EMPTY[name]
  x = jnp.zeros((0, 3, 4), jnp.bfloat16)
  state, learned = norm.init(4), norm.learned(4)
  apply = lambda x: norm.apply(x, state, learned=learned, **switches)[0]
  y = (jax.jit(apply) if jit else apply)(x)
  assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_an_empty_batch_from_which_nothing_learns_is_normalized():
  for norm in (norms.batch_norm(), norms.EvoNormB0()):
    y, _ = norm.apply(
      jnp.zeros((0, 2, 4)), norm.init(4), learned=norm.learned(4), update=False
    )
    assert y.shape == (0, 2, 4)


def test_an_empty_batch_has_no_statistics():
  for norm in (norms.batch_norm(), norms.batch_whitening('zca')):
    with pytest.raises(ValueError, match='no activations'):
      norm.apply(jnp.zeros((0, 4)), norm.init(4))
  with pytest.raises(ValueError, match='no activations'):
    norms.layer_norm().measure(jnp.zeros((0, 4)))


def test_what_is_missing_is_the_batch_axis():
  for norm in (norms.group_norm(2), norms.instance_norm()):
    with pytest.raises(ValueError, match=r'has no batch axis; give \(batch'):
      norm.apply(jnp.ones(10))


@pytest.mark.parametrize(
  'groups', [((0, 1, 2), (3, 4, 5, 6, 7)), ((0, 1), (2, 3)), ((0, 0),)]
)
def test_groups_of_devices_that_are_none_are_told(groups):
  norm = norms.Normalization(
    norms.Batch(axis_name='i', axis_index_groups=groups), norms.Standardize()
  )
  with pytest.raises(ValueError, match='into groups of one size'):
    jax.pmap(lambda x: norm.apply(x)[0], 'i')(jnp.ones((8, 2, 3)))


@pytest.mark.parametrize('scope', [norms.Batch, norms.Example])
def test_groups_of_devices_need_an_axis(scope):
  with pytest.raises(ValueError, match='axis_name is None; give axis_name'):
    scope(axis_index_groups=[[0, 1]])


def test_an_axis_is_removed_with_its_groups():
  scope = norms.Batch(axis_name='i', axis_index_groups=[[0, 1]])
  norm = norms.Normalization(scope, norms.Standardize(), norms.Ema())
  assert norms.sync(norm, None).scope == norms.Batch()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_micro_batches_of_a_narrow_state_are_counted_exactly(dtype):
  """2,000 micro-batches of 64 rows: bfloat16 counts to 256, float16 to 65504.

  Means and variances travel in float32 until the average is stored.
  """
  norm = norms.Normalization(
    norms.Batch(), norms.Standardize(), norms.Accumulated(2000, norms.Ema(0.0))
  )
  step = jax.jit(lambda state, x: norm.apply(x, state)[1])
  state, x = norm.init(4, dtype), jnp.tile(X, (8, 1)) + 3
  assert state.pending.count.dtype == jnp.float32
  state, _ = jax.lax.scan(lambda s, _: (step(s, x), None), state, None, 2000)
  assert state.steps == 1
  assert state.mean.dtype == dtype
  resolution = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    np.asarray(state.mean, np.float64), np.asarray(x).mean(0), resolution
  )
  variance = np.asarray(x, np.float64).var(0, ddof=1)
  np.testing.assert_allclose(
    np.asarray(state.var, np.float64), variance, resolution + 0.02
  )


@pytest.mark.slow
def test_integers_of_numpy_are_integers():
  two = np.int64(2)
  interval = norms.Interval(two, norms.Ema())
  norm = norms.Normalization(
    norms.Batch(two), norms.Whiten('zca', two), interval
  )
  same(
    norm.apply(X, norm.init(4)),
    norms.Normalization(
      norms.Batch(2), norms.Whiten('zca', 2), norms.Interval(2, norms.Ema())
    ).apply(X, norm.init(4)),
  )
  assert norms.group_norm(two).apply(X)[0].shape == X.shape


def test_a_reference_batch_serves_any_number_of_rows():
  norm = norms.Normalization(
    norms.Reference(3), norms.Standardize(), norms.Ema()
  )
  step = jax.jit(lambda x, state: norm.apply(x, state))
  kinds = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b, 4'), 'float32')
  state = norm.init(4)
  exported = jax.export.export(step)(kinds, jax.eval_shape(lambda: state))
  for rows in (4, 8):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      exported.call(X[:rows], state),
      step(X[:rows], state),
    )


@pytest.mark.slow
def test_more_axes_than_letters_of_an_octave():
  x = jnp.asarray(
    np.random.default_rng(0).standard_normal((3, 2, 1, 2, 1, 2, 1, 2, 1, 3)),
    jnp.float32,
  )
  for norm in (
    norms.batch_norm(),
    norms.batch_whitening('zca'),
    norms.group_norm(3),
    norms.instance_whitening('zca'),
  ):
    flat = x.reshape((3, -1, 3))
    y = norm.apply(x, norm.init(3))[0]
    z = norm.apply(flat, norm.init(3))[0]
    np.testing.assert_allclose(y.reshape(flat.shape), z, atol=1e-5)
