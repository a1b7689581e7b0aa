"""Outputs, running statistics and gradients against Flax's on equal weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_IMAGES = (4, 5, 3, 8)


def _draw(shape=_IMAGES, seed=0, mean=0.5, std=3.0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(mean, std, shape), jnp.float32)


CASES = [
  ('BatchNorm', _IMAGES, {}),
  ('BatchNorm', (6, 8), {'epsilon': 1e-3, 'momentum': 0.5}),
  ('BatchNorm', (8, 3, 4), {'axis': 0}),
  ('BatchNorm', (4, 8, 3), {'axis': 1}),
  ('BatchNorm', _IMAGES, {'use_bias': False, 'use_scale': False}),
  ('LayerNorm', _IMAGES, {}),
  ('LayerNorm', (8,), {}),
  ('LayerNorm', _IMAGES, {'reduction_axes': (1, 2, 3)}),
  ('LayerNorm', _IMAGES, {'reduction_axes': (1, 2), 'feature_axes': -1}),
  ('LayerNorm', _IMAGES, {'reduction_axes': [-1, 1, 3]}),
  ('LayerNorm', (8, 3, 4), {'reduction_axes': 0, 'feature_axes': 0}),
  ('LayerNorm', _IMAGES, {'use_bias': False}),
  ('RMSNorm', _IMAGES, {}),
  ('RMSNorm', _IMAGES, {'reduction_axes': (1, 3), 'use_scale': False}),
  ('GroupNorm', _IMAGES, {'num_groups': 4}),
  ('GroupNorm', _IMAGES, {'num_groups': None, 'group_size': 2}),
  ('GroupNorm', _IMAGES, {'num_groups': 1}),
  ('GroupNorm', _IMAGES, {'num_groups': 8, 'use_scale': False}),
  ('GroupNorm', (6, 8), {'num_groups': 2}),
  ('GroupNorm', _IMAGES, {'num_groups': 2, 'reduction_axes': (2, -1, 1)}),
  ('InstanceNorm', _IMAGES, {}),
  ('InstanceNorm', (4, 8, 3), {'feature_axes': 1}),
  ('InstanceNorm', (6, 8), {}),
]


def _ids(cases):
  return [f'{name}-{len(shape)}d-{options}' for name, shape, options in cases]


@pytest.fixture(params=CASES, ids=_ids(CASES))
def case(request):
  return request.param


def test_training_outputs_and_variables(pair, train, close, case):
  name, shape, options = case
  x = _draw(shape)
  ours, flax, variables = pair(name, x, 8, **options)
  y, moved = ours(variables, x, **train(name))
  reference, flax_moved = flax(variables, x, **train(name))
  close((y, moved), (reference, flax_moved))
  if name != 'GroupNorm' and options.get('reduction_axes') != (1, 2, 3):
    # Compiled, it is bit for bit the same: the order of operations is that of
    # Flax. Over many positions and channels, channels are merged at the end.
    np.testing.assert_array_equal(y, reference)


def test_running_statistics_at_every_step(pair, close):
  x = _draw((6, 8))
  ours, flax, ours_now = pair('BatchNorm', x, momentum=0.9)
  flax_now = ours_now
  for step in range(12):
    x = _draw((6, 8), seed=step, mean=step, std=1 + step)
    y, ours_now = ours(ours_now, x, use_running_average=False)
    reference, flax_now = flax(flax_now, x, use_running_average=False)
    close(y, reference)
    close(ours_now, flax_now, rtol=5e-7 * (step + 1), atol=0)


def test_evaluation_bit_for_bit_and_without_a_trace(pair):
  x = _draw()
  ours, flax, variables = pair('BatchNorm', x)
  y, after = ours(variables, x, use_running_average=True)
  reference, _ = flax(variables, x, use_running_average=True)
  assert np.isfinite(y).all()
  np.testing.assert_array_equal(y, reference)
  jax.tree.map(np.testing.assert_array_equal, after, variables)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('BatchNorm', {}),
    ('LayerNorm', {}),
    ('LayerNorm', {'reduction_axes': (1, 2)}),
    ('RMSNorm', {}),
    ('GroupNorm', {'num_groups': 4}),
    ('InstanceNorm', {}),
  ],
)
def test_gradients(pair, train, together, close, name, options):
  x = _draw()
  ours, flax, variables = pair(name, x, **options)
  weights = _draw(seed=1)

  @functools.partial(jax.grad, argnums=(1, 2))
  def gradients(f, variables, x):
    return jnp.sum(weights * f(variables, x, **train(name))[0])

  close(*together(gradients, ours, flax, variables, x), 2e-5, 2e-5)


def test_gradients_in_evaluation(pair, together, close):
  x = _draw()
  ours, flax, variables = pair('BatchNorm', x)

  @functools.partial(jax.grad, argnums=(1, 2))
  def gradients(f, variables, x):
    return jnp.sum(jnp.sin(f(variables, x, use_running_average=True)[0]))

  close(*together(gradients, ours, flax, variables, x), 2e-5, 2e-5)


def test_use_fast_variance_has_no_effect(family, train, name):
  x = _draw((4, 5, 32))
  programs = set()
  for fast in (True, False):
    apply, variables = family.make(
      family.ours, name, 32, x, use_fast_variance=fast
    )
    call = functools.partial(apply, **train(name))
    programs.add(str(jax.make_jaxpr(call)(variables, x)))
  assert len(programs) == 1


def test_several_feature_axes_have_a_parameter_each(family):
  x = _draw((4, 2, 3, 8))
  options = {'scale_init': jax.nn.initializers.normal(1.0)}
  for name, axes in (
    ('LayerNorm', {'reduction_axes': 3, 'feature_axes': (1, 2)}),
    ('RMSNorm', {'reduction_axes': -1, 'feature_axes': (2, 1)}),
    ('InstanceNorm', {'feature_axes': (1, 2)}),
  ):
    ours, variables = family.make(family.ours, name, 6, x, **options, **axes)
    flax, _ = family.make(family.flax, name, 6, x, **options, **axes)
    y = ours(variables, x)[0]
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, flax(variables, x)[0], 2e-5, 2e-5)


def test_batch_norm_over_a_tuple_of_feature_axes(family, close):
  x = _draw((4, 2, 3, 8))
  ours, variables = family.make(family.ours, 'BatchNorm', 6, x, axis=(1, 2))
  y, moved = ours(variables, x, use_running_average=False)
  exact = np.asarray(x, np.float64)
  mean = exact.mean((0, 3), keepdims=True)
  expected = (exact - mean) / np.sqrt(exact.var((0, 3), keepdims=True) + 1e-5)
  close(y, jnp.asarray(expected, jnp.float32), 1e-5, 1e-5)
  sizes = {np.size(leaf) for leaf in jax.tree.leaves(moved)}
  assert sizes == {6}
