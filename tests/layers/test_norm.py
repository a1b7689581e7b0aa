"""`Norm`: any Normalization, the same in both families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bn_research import norms
from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx


def _draw(shape=(6, 3, 8), seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(1, 2, shape), jnp.float32)


NORMALIZATIONS = {
  'batch': norms.batch_norm(momentum=0.5),
  'ghost': norms.batch_norm(group_size=2),
  'stopped': norms.batch_norm(gradient='stopped'),
  'layer': norms.layer_norm(),
  'group': norms.group_norm(4),
  'rms': norms.rms_norm(),
  'none': norms.none(),
}


@pytest.fixture(params=NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def normalization(request):
  return request.param


def _linen(normalization, x, **options):
  layer = our_linen.Norm(normalization, **options)
  return layer, layer.init(jax.random.key(0), x, use_running_average=False)


def test_both_families_do_what_the_normalization_does(normalization):
  x, scale, bias = _draw(), jnp.full(8, 1.5), jnp.full(8, 0.25)
  options = {
    'scale_init': linen.initializers.constant(1.5),
    'bias_init': linen.initializers.constant(0.25),
  }
  module = our_nnx.Norm(normalization, 8, **options, rngs=nnx.Rngs(0))
  layer, variables = _linen(normalization, x, **options)
  state = normalization.init(8)
  affine = {'bias': bias}
  if normalization.map.scales:
    affine['scale'] = scale
  for step in range(3):
    x = _draw(seed=step)
    expected, state = normalization.apply(x, state, **affine)
    y, moved = layer.apply(
      variables, x, use_running_average=False, mutable=['batch_stats']
    )
    variables = {**variables, **moved}
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(module(x), expected)
  assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(moved))
  for field in getattr(state, '_fields', ()):
    value = getattr(state, field)
    np.testing.assert_array_equal(variables['batch_stats'][field], value)
    np.testing.assert_array_equal(getattr(module.statistics, field)[...], value)


def test_which_moments_and_whether_they_move_are_independent():
  x = _draw()
  layer, variables = _linen(norms.batch_norm(momentum=0.5), x)
  module = our_nnx.Norm(norms.batch_norm(momentum=0.5), 8, rngs=nnx.Rngs(0))
  for use_running in (True, False):
    for update in (True, False):
      before = module.statistics.mean[...]
      call = {'use_running_average': use_running, 'update': update}
      y, moved = layer.apply(variables, x, **call, mutable=['batch_stats'])
      variables = {**variables, **moved}
      np.testing.assert_array_equal(module(x, **call), y)
      after = module.statistics.mean[...]
      np.testing.assert_array_equal(after, variables['batch_stats']['mean'])
      assert np.isfinite(after).all()
      # The first update takes the batch's mean whole, so the second, of the
      # same batch, moves the count alone.
      steps = variables['batch_stats']['steps']
      assert steps == module.statistics.steps[...]
      assert update or np.array_equal(after, before)
  assert steps == 2


def test_where_nothing_is_remembered_nothing_need_be_said():
  x = _draw()
  layer = our_linen.Norm(norms.layer_norm())
  variables = layer.init(jax.random.key(0), x)
  assert set(variables) == {'params'}
  module = our_nnx.Norm(norms.layer_norm(), 8, rngs=nnx.Rngs(0))
  module.eval()
  y = layer.apply(variables, x)
  assert np.isfinite(y).all()
  np.testing.assert_array_equal(module(x), y)


def test_scale_only_where_a_scale_is_taken_away():
  x = _draw()
  for normalization, expected in (
    (norms.batch_norm(), {'scale', 'bias'}),
    (norms.none(), {'bias'}),
  ):
    _, variables = _linen(normalization, x)
    assert set(variables['params']) == expected
    module = our_nnx.Norm(normalization, 8, rngs=nnx.Rngs(0))
    assert set(nnx.state(module, nnx.Param)) == expected
  _, variables = _linen(norms.none(), x, use_scale=True, use_bias=False)
  assert set(variables['params']) == {'scale'}


def test_masks():
  x = _draw().at[:, 2].set(jnp.nan)
  mask = jnp.arange(3)[:, None] < 2
  layer, variables = _linen(norms.batch_norm(), _draw())
  module = our_nnx.Norm(norms.batch_norm(), 8, rngs=nnx.Rngs(0))
  y, _ = layer.apply(
    variables, x, use_running_average=False, mask=mask, mutable=['batch_stats']
  )
  assert np.isfinite(y).all()
  np.testing.assert_array_equal(y[:, 2], 0)
  np.testing.assert_array_equal(module(x, mask=mask), y)
  short = our_nnx.Norm(norms.batch_norm(), 8, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(short(x[:, :2]), y[:, :2], 2e-6, 2e-6)


def test_train_eval_and_view():
  module = our_nnx.Norm(norms.batch_norm(), 8, rngs=nnx.Rngs(0))
  x = _draw()
  y = module(x)
  module.eval()
  running = module(x)
  assert module.statistics.steps[...] == 1
  assert np.any(running != y)
  view = nnx.view(module, use_running_average=False)
  np.testing.assert_array_equal(view(x), y)
  module.train()
  np.testing.assert_array_equal(module(x), y)


def test_named_axes():
  x = _draw((4, 2, 8))
  layer, variables = _linen(norms.batch_norm(axis_name='batch'), x[0])
  whole, _ = _linen(norms.batch_norm(), x)
  call = {'use_running_average': False, 'mutable': ['batch_stats']}
  y, _ = jax.vmap(
    lambda x: layer.apply(variables, x, **call), axis_name='batch'
  )(x)
  expected, _ = whole.apply(variables, x, **call)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, expected, 1e-5, 1e-5)


@pytest.mark.parametrize('made_for', [1, 4])
@pytest.mark.parametrize('make', [norms.batch_norm, norms.layer_norm])
def test_other_features_are_the_same_error_of_both_families(make, made_for):
  """Of one feature too, which would broadcast."""
  x = jnp.ones((6, 3))
  linen_layer = our_linen.Norm(make(), use_running_average=False)
  variables = linen_layer.init(jax.random.key(0), jnp.ones((6, made_for)))
  calls = (
    lambda: linen_layer.apply(variables, x, mutable=['batch_stats']),
    lambda: our_nnx.Norm(make(), made_for, rngs=nnx.Rngs(0))(x),
  )
  messages = set()
  for call in calls:
    with pytest.raises(ValueError, match=r'x of shape \(6, 3\)') as error:
      call()
    messages.add(str(error.value))
  assert len(messages) == 1


def test_the_argument_alone_says_whether_statistics_move():
  module = our_nnx.Norm(norms.batch_norm(), 8, rngs=nnx.Rngs(0))
  module(_draw(), use_running_average=True)
  assert module.statistics.steps[...] == 0
  module.eval()
  module(_draw(), use_running_average=False)
  assert module.statistics.steps[...] == 1


def test_what_is_learned_beside_scale_and_bias_is_a_parameter():
  module = our_nnx.Norm(norms.dynamic_tanh(), 8, rngs=nnx.Rngs(0))
  parameters = nnx.state(module, nnx.Param)
  assert jax.tree.leaves(parameters['learned'])
