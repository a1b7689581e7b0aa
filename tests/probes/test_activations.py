import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models, probes
from tests.quick import some

X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
CONFIG = {
  'percentiles': (15.0, 50.0, 85.0),
  'unit': 3,
  'num_examples': 200,
  'num_points': 5,
  'spacing': 'log',
}


def observe(model, x):
  """A probe uses the model and the batch."""
  return types.SimpleNamespace(model=lambda: model, x=x)


def create(**changes):
  probe = probes.create('activations', CONFIG | changes)
  return lambda model, x: probe(observe(model, x))


def make_model(norm, widths=(5, 5, 7)):
  config = {
    'name': 'mlp',
    'widths': widths,
    'init_scale': 0.7,
    'norm': {'name': norm},
  }
  return models.create(config, (6,), 3, jax.random.key(0))


def test_what_the_nonlinearities_see_without_a_norm():
  model = make_model('none')
  found = nnx.jit(create())(model, jnp.asarray(X))
  names = {f'hidden_{i}/input/{kind}' for i in (1, 2, 3) for kind in KINDS}
  assert found.keys() == names

  h = X.astype(np.float64)
  for i, dense in enumerate(model.dense, start=1):
    a = h @ np.asarray(dense.kernel[...], np.float64)
    for kind, values in KINDS.items():
      expected = np.percentile(values(a), (15, 50, 85))
      actual = found[f'hidden_{i}/input/{kind}']
      np.testing.assert_allclose(actual, expected, atol=2e-6)
    h = 1 / (1 + np.exp(-a))


KINDS = {'unit': lambda a: a[:, 3], 'all': np.ravel}


def test_with_batch_norm_it_is_what_training_sees():
  model = make_model('batch_norm')
  before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))

  @jax.jit
  def measure(x):
    copy = nnx.clone(model)
    return create()(copy, x)

  found = measure(jnp.asarray(X))
  # Normalized by the batch: the population still holds mean 0, variance 1.
  a = X.astype(np.float64) @ np.asarray(model.dense[0].kernel[...], np.float64)
  a = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)
  for kind, values in KINDS.items():
    np.testing.assert_allclose(
      found[f'hidden_1/input/{kind}'],
      np.percentile(values(a), (15, 50, 85)),
      atol=1e-5,
    )
  after = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
  jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize('seed', some([0], [1, 2, 3]))
def test_values_are_compared_with_themselves(seed):
  # XLA may compute an activation twice and round it in two ways; a search that
  # compares the one with the other ends beside what it looked for.
  model = make_model('batch_norm', widths=(12, 8))
  x = np.random.default_rng(seed).normal(size=(40, 6)).astype(np.float32)
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(state, x):
    merged = nnx.merge(graphdef, state, copy=True)
    seen = {}
    merged(x, train=True, tap=lambda n, v: seen.setdefault(n, v))
    return seen

  @jax.jit
  def measure(state, x):
    return create()(nnx.merge(graphdef, state, copy=True), x)

  tapped, found = run(state, x), measure(state, x)
  for name, values in tapped.items():
    expected = np.percentile(np.asarray(values), (15, 50, 85))
    np.testing.assert_allclose(found[f'{name}/all'], expected, atol=1e-5)


def test_inputs_of_images_are_taken_by_channel():
  images = jnp.arange(24.0).reshape(2, 2, 2, 3)

  def model(x, *, train, tap):
    assert train
    return tap('conv/input', x)

  found = create(unit=1)(model, images)
  expected = np.percentile(np.asarray(images)[..., 1], (15, 50, 85))
  np.testing.assert_allclose(found['conv/input/unit'], expected, rtol=1e-6)


def test_only_the_chosen_are_followed():
  probe = create(nonlinearities=('hidden_3/input',))
  model = make_model('none', widths=(2, 2, 7))  # Two have no unit 3.
  found = nnx.jit(probe)(model, jnp.asarray(X))
  whole = nnx.jit(create(unit=1))
  everything = whole(model, jnp.asarray(X))
  assert found.keys() == {'hidden_3/input/unit', 'hidden_3/input/all'}
  np.testing.assert_array_equal(
    found['hidden_3/input/all'], everything['hidden_3/input/all']
  )


class Twice(nnx.Module):
  """Names two different inputs the same."""

  def __call__(self, x, *, train, tap):
    del train
    return tap('shared', 2 * tap('shared', x))


def test_a_name_that_is_used_twice_changes_no_input():
  seen = []
  probe = create()
  model = Twice()
  call = Twice.__call__

  def note(self, x, **options):
    seen.append(call(self, x, **options))
    return seen[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Twice, '__call__', note)
    found = probe(model, jnp.asarray(X))
  np.testing.assert_array_equal(seen[0], 2 * X)
  assert found.keys() == {'shared/unit', 'shared/all'}


def test_a_nonlinearity_that_is_not_there_is_named():
  probe = create(nonlinearities=('hidden_4/input',))
  with pytest.raises(ValueError, match=r"'hidden_4/input'; there are hi"):
    probe(make_model('none'), jnp.asarray(X))


def test_the_percentages_are_stored_once():
  constants = probes.create('activations', CONFIG).constants
  np.testing.assert_array_equal(constants['percentiles'], [15, 50, 85])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'name': 'activation'},
      "'activation' is unknown .*; there are act",
    ),
    ({'depth': 1}, "no option 'depth'; it has percentiles, unit, non"),
    ({'percentiles': ()}, r'percentiles=\(\)'),
    ({'percentiles': ('nan',)}, r"percentiles=\('nan',\)"),
    ({'percentiles': (-1.0,)}, r'percentiles=\(-1.0,\)'),
  ],
)
def test_a_wrong_probe_is_one_line(change, message):
  with pytest.raises(errors.UserError, match=message):
    probes.create('activations', CONFIG | change)


def test_a_unit_that_is_not_there_is_named():
  probe = create(unit=5)
  with pytest.raises(
    ValueError, match=r'unit=5, but hidden_1/input has units 0 to 4'
  ):
    probe(make_model('none'), jnp.asarray(X))
