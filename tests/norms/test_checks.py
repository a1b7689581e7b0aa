"""Bad input: an error that names the argument and the fix."""

import jax.numpy as jnp
import pytest

from bn_research import norms

x = jnp.ones((4, 6))
batch = norms.batch_norm()
layer = norms.layer_norm()


def normalize(norm, x=x, state=None, **options):
  return norm.apply(x, norm.init(6) if state is None else state, **options)


CALLS = {
  'x is int32.*x.astype': lambda: normalize(batch, jnp.ones((4, 6), int)),
  'x is complex64.*real and imaginary parts as features': lambda: normalize(
    batch, jnp.ones((4, 6), complex)
  ),
  'dtype=int32 is not floating.*None for that of x': lambda: normalize(
    batch, dtype=jnp.int32
  ),
  'dtype=complex64 is not floating': lambda: normalize(
    norms.Chain((batch, layer)), dtype=jnp.complex64
  ),
  'no activations.*leave the empty batch out': lambda: normalize(
    batch, jnp.ones((0, 6))
  ),
  r'mask of shape \(3,\) does not broadcast': lambda: normalize(
    batch, mask=jnp.ones(3, bool)
  ),
  r'mask of shape \(2, 4, 6\) does not broadcast': lambda: normalize(
    batch, mask=jnp.ones((2, 4, 6), bool)
  ),
  r'scale of shape \(5,\) does not broadcast': lambda: normalize(
    batch, scale=jnp.ones(5)
  ),
  r'bias of shape \(4,\) does not broadcast': lambda: normalize(
    layer, bias=jnp.ones(4)
  ),
  r'got no state; call apply\(x, norm.init\(6\)\)': lambda: batch.apply(x),
  r'init with the number of features': lambda: batch.apply(x, batch.init(5)),
  'remembers none; give it a population': lambda: normalize(
    layer, use_running=True
  ),
  'axis 3 does not exist.*use one of -2..1': lambda: normalize(
    norms.layer_norm(axes=3)
  ),
  'name one of the 2 axes twice': lambda: normalize(
    norms.layer_norm(axes=(1, -1))
  ),
  'num_groups=4 does not divide.*6; choose a divisor': lambda: normalize(
    norms.group_norm(4)
  ),
  'group_size=5 does not divide.*6; choose a divisor': lambda: normalize(
    norms.group_norm(group_size=5)
  ),
  'num_groups=2 and group_size=3 were both given': lambda: norms.group_norm(
    2, group_size=3
  ),
  'group_size=0 must be at least 1': lambda: norms.batch_norm(group_size=0),
  'epsilon=-1 must be finite and at least 0': lambda: norms.layer_norm(-1),
  'epsilon=nan must be finite': lambda: norms.batch_norm(epsilon=float('nan')),
  'epsilon=inf must be finite': lambda: norms.iter_norm(epsilon=float('inf')),
  'r_max=0.5 must be at least 1': lambda: norms.batch_renorm(r_max=0.5),
  'd_max=nan must be at least 0': lambda: norms.batch_renorm(
    d_max=float('nan')
  ),
  r'momentum=nan must be in \[0, 1\)': lambda: norms.batch_norm(float('nan')),
  r'momentum=2 must be in \[0, 1\)': lambda: norms.create(
    'evonorm_b0', momentum=2
  ),
  'epsilon=nan must be': lambda: norms.EvoNormS0(epsilon=float('nan')),
  'epsilon=-3 must be': lambda: norms.EvoNormB0(epsilon=-3),
  'alpha=nan must be finite': lambda: norms.dynamic_tanh(float('nan')),
  'alpha=-1 must be finite': lambda: norms.local_response_norm(alpha=-1),
  'power=inf must be finite': lambda: norms.Divide(power=float('inf')),
  'sigma=nan must be finite and above 0': lambda: norms.local_contrast_norm(
    sigma=float('nan')
  ),
  "gradient='mean' is not a gradient policy": lambda: norms.batch_norm(
    gradient='mean'
  ),
  "axis_name='i' is not bound here.*leave axis_name out": lambda: normalize(
    norms.batch_norm(axis_name='i')
  ),
  'population remembers statistics that examples share': lambda: normalize(
    norms.Normalization(norms.Example(), norms.Standardize(), norms.Ema())
  ),
  'renormalization needs running statistics': lambda: normalize(
    norms.Normalization(
      norms.Batch(), norms.Standardize(), gradient=norms.Renormalized()
    )
  ),
  'fewer than the reference batch of size=5': lambda: normalize(
    norms.virtual_batch_norm(5)
  ),
  'x is int32.*x.astype.*': lambda: layer.measure(jnp.ones((4, 6), int)),
  'sigma=0 must be finite and above 0': lambda: norms.local_contrast_norm(
    sigma=0
  ),
  'size=4 must be odd': lambda: norms.divisive_norm(4),
  "unknown normalization 'batchnorm'; did you mean 'batch_norm'": (
    lambda: norms.create('batchnorm')
  ),
  "layer_norm takes no option 'momentum'; it takes: epsilon": (
    lambda: norms.create('layer_norm', momentum=0.9)
  ),
}


@pytest.mark.parametrize('message', CALLS)
def test_the_message_names_the_argument_and_the_fix(message):
  with pytest.raises((ValueError, TypeError), match=message) as caught:
    CALLS[message]()
  assert '\n' not in str(caught.value)


def test_inputs_need_not_be_arrays_of_jax():
  for norm in (batch, norms.Chain((batch, layer))):
    rows = [[1.0, 2.0], [3.0, 5.0]]
    y, _ = norm.apply(rows, norm.init(2), mask=[True, True])
    assert y.shape == (2, 2)


def test_the_type_of_a_result_may_be_named_in_any_way():
  for norm in (batch, norms.Chain((batch, layer)), norms.dynamic_tanh()):
    for dtype in (float, 'float32', jnp.float32, jnp.dtype('float32')):
      learned = norm.learned(6)
      call = {'learned': learned, 'dtype': dtype}
      y, _ = normalize(norm, x.astype('bfloat16'), **call)
      assert y.dtype == jnp.float32


def test_axes_may_be_lists():
  """As those of a config are; what is static must be hashable all the same."""
  assert norms.batch_norm(axis_name=['g', 'i']) == norms.batch_norm(
    axis_name=('g', 'i')
  )
  for make in (norms.layer_norm, norms.rms_norm):
    assert normalize(make(axes=[1]))[0].shape == x.shape


def test_inference_needs_no_reference_batch():
  norm = norms.virtual_batch_norm(3)
  state = norm.init(6)
  y, _ = norm.apply(x[:1], state, use_running=True, update=False)
  assert y.shape == (1, 6)
  slope, _ = norms.affine_of(norms.virtual_batch_norm(9), state)
  assert slope.shape == (6, 6)


def test_defaults_are_those_of_flax():
  assert batch.population == norms.Ema(0.99)
  epsilons = {
    1e-5: (norms.batch_norm, norms.batch_renorm, norms.power_norm),
    1e-6: (
      *(norms.layer_norm, norms.rms_norm),
      *(norms.group_norm, norms.instance_norm),
    ),
  }
  for epsilon, factories in epsilons.items():
    assert {make().map.epsilon for make in factories} == {epsilon}
  assert norms.group_norm().scope.num_groups == 32
