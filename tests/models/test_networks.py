"""Convolutional networks in training: every norm, types, rematerialization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bn_research import errors, norms, preconditioning, probes
from bn_research.layers.nnx import reestimation
from bn_research.probes.activations import Activations
from bn_research.training import losses
from bn_research.training import state as state_lib
from bn_research.training import step as step_lib
from tests.models import networks
from tests.quick import some

SMALL = {
  'cnn': {'widths': (4, 4, 8)},
  'resnet': {'depth': 8, 'width': 4},
  'resnet_imagenet': {'depth': 18, 'width': 4, 'small_images': True},
  'wide_resnet': {'depth': 10, 'factor': 2, 'width': 2},
  'vgg': {'depth': 11, 'width': 4, 'hidden': 8},
  'inception_bn': {'entry': 'small', 'width': 1 / 16},
  'vit': {'depth': 1, 'width': 8, 'qk_norm': True, 'placement': 'peri'},
}
# The options that few channels need.
OPTIONS = {
  'group_norm': {'num_groups': 2},
  'evonorm_s0': {'num_groups': 2},
  'decorrelated_batch_norm': {'group_size': 2},
  'group_whitening': {'num_groups': 2},
  'virtual_batch_norm': {'reference_size': 4},
}


def stepper(network, norm, shape=None, **changes):
  """Returns the state of a network, and a function that takes a step."""
  shape = shape or ((32, 32, 3) if network == 'vgg' else (8, 8, 3))
  section = {'name': norm, **OPTIONS.get(norm, {})}
  config = {'name': network, 'norm': section, **SMALL[network], **changes}
  # Some gradients of whitened networks are so steep that 0.01 times the
  # gradient is beyond the next minimum.
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01))
  graphdef, state = jax.eval_shape(
    lambda key: state_lib.create(key, config, shape, 3, optimizer),
    jax.random.key(0),
  )
  images = jax.random.normal(jax.random.key(1), (8, *shape))
  labels = jnp.arange(8) % 3

  def init():
    key = jax.random.key(0)
    return state_lib.create(key, config, shape, 3, optimizer)[1]

  def take(state):
    new = step_lib.train_step(
      state, images, labels, graphdef=graphdef, optimizer=optimizer
    )
    return new, step_lib.next_state(state, new)

  return state, init, take


def check_step(network, norm):
  """Takes two steps, and checks that a network learns."""
  _, init, take = stepper(network, norm)
  first = networks.fast_jit(init)()
  take = networks.fast_jit(take)
  new, second = take(first)
  for leaf in jax.tree.leaves((second.params, second.rest, new.grads)):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      assert np.isfinite(leaf).all()
  assert float(optax.tree.norm(new.grads)) > 0
  # The step along the gradient decreases the loss on the same batch.
  assert take(second)[1].loss < second.loss


@pytest.mark.parametrize('norm', some(['batch_norm'], norms.NAMES))
def test_every_norm_trains_the_smallest_residual_network(norm):
  check_step('resnet', norm)


@pytest.mark.parametrize(
  ('network', 'norm'),
  some(
    [('cnn', 'layer_norm'), ('vit', 'dynamic_tanh')],
    [
      (network, norm)
      for network in SMALL
      for norm in ('batch_norm', 'layer_norm', 'iter_norm')
    ],
  ),
)
def test_every_network_trains(network, norm):
  check_step(network, norm)


@pytest.mark.parametrize(
  ('network', 'norm'),
  some(
    [('cnn', 'rms_norm'), ('wide_resnet', 'batch_renorm')],
    [(network, norm) for network in SMALL for norm in norms.NAMES],
  ),
)
def test_every_network_takes_every_norm(network, norm):
  state, _, take = stepper(network, norm)
  new, after = jax.eval_shape(take, state)
  assert new.loss.shape == ()
  describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert describe(after) == describe(state)


@pytest.mark.parametrize('network', some(['cnn', 'resnet', 'vit'], SMALL))
def test_bfloat16_is_the_type_of_activations_only(network):
  shape = (32, 32, 3)
  model = networks.abstract(
    shape, name=network, **SMALL[network], dtype='bfloat16'
  )
  found = networks.shapes_of(model, shape)
  assert found.pop('logits').dtype == jnp.float32
  assert {dtype for _, dtype in found.values()} == {jnp.dtype('bfloat16')}
  plain = networks.abstract(shape, name=network, **SMALL[network])
  types = lambda model: {
    leaf.dtype
    for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))
  }
  assert types(model) == types(plain) == {jnp.dtype('float32')}
  state, _, take = stepper(network, 'batch_norm', shape, dtype='bfloat16')
  new, after = jax.eval_shape(take, state)
  for tree in (new.grads, after.params):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {
      jnp.dtype('float32')
    }


def test_statistics_of_bfloat16_are_precise():
  # A mean of 100 is 30 deviations: moments in bfloat16 would have an error of
  # half a deviation.
  model = networks.filled(
    networks.abstract((16, 16, 1), name='cnn', widths=(4,), dtype='bfloat16')
  )
  x = 100 + 3 * jax.random.normal(jax.random.key(0), (16, 16, 16, 1))
  h = np.asarray(model.layers[0].conv(x), np.float64)
  model(x, train=True)
  statistics = model.layers[0].norm.statistics
  rows = h.reshape(-1, 4)
  unbiased = rows.var(0) * len(rows) / (len(rows) - 1)
  np.testing.assert_allclose(statistics.mean[...], rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(statistics.var[...], unbiased, rtol=1e-4)


@pytest.mark.parametrize(
  'network', some([], [n for n in SMALL if n not in ('cnn', 'vgg')])
)
def test_rematerialization_changes_no_number(network):
  found = []
  changes = {'dropout': 0.3} if network == 'wide_resnet' else {}
  state = networks.fast_jit(stepper(network, 'batch_norm', **changes)[1])()
  for remat in (False, True):
    take = stepper(network, 'batch_norm', remat=remat, **changes)[2]
    new = networks.fast_jit(lambda state, take=take: take(state)[0])(state)
    found.append({'loss': new.loss, 'grads': new.grads, 'rest': new.rest})
  # Both passes draw the same units for dropout. The counts of updates are a
  # part of the statistics, and would show a second update.
  jax.tree.map(_assert_close, *found)


@pytest.mark.parametrize(('remat', 'count'), [(False, 0), (True, 3)])
def test_each_block_is_rematerialized(remat, count):
  model = networks.abstract((8, 8, 3), name='resnet', depth=8, remat=remat)
  graphdef, state = nnx.split(model)

  def call(state, x):
    return nnx.merge(graphdef, state, copy=True)(x, train=True)

  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  program = jax.make_jaxpr(call)(state, x)
  found = [e for e in program.eqns if e.primitive.name.startswith('remat')]
  assert sum('conv_general_dilated' in str(e) for e in found) == count


def _assert_close(one, other):
  if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
    one, other = map(jax.random.key_data, (one, other))
  one, other = (np.asarray(array, np.float64) for array in (one, other))
  scale = np.abs(one).max() or 1.0
  assert np.isfinite(other).all()
  np.testing.assert_allclose(other / scale, one / scale, atol=2e-5)


def test_a_tap_sees_through_rematerialization():
  model = networks.filled(
    networks.abstract((8, 8, 3), name='resnet', **SMALL['resnet'], remat=True)
  )
  names = set(networks.shapes_of(model, (8, 8, 3)))
  assert 'stage3_block1/input2' in names
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def measure(x):
    observation = probes.Observation(
      num_steps=jnp.zeros((), jnp.int32),
      x=x,
      labels=jnp.zeros(4, jnp.int32),
      params=params,
      rest=rest,
      opt_state=(),
      losses=losses.losses,
      make_model=lambda *states: nnx.merge(graphdef, *states, copy=True),
      take_step=lambda: None,
    )
    return Activations((50.0,))(observation)

  x = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
  found = jax.eval_shape(measure, x)
  assert {f'{name}/unit' for name in names - {'logits'}} < set(found)


def test_inputs_are_recorded_without_rematerialization():
  shapes = []
  for remat in (False, True):
    model = networks.abstract((8, 8, 3), name='resnet', depth=8, remat=remat)
    graphdef, state = nnx.split(model)

    def call(state, x, graphdef=graphdef):
      model = nnx.merge(graphdef, state, copy=True)
      found = preconditioning.record_inputs(model)
      model(x, train=True)
      return found

    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    found = jax.eval_shape(call, state, x)
    shapes.append({name: moments.mean.shape for name, moments in found.items()})
  assert shapes[0] == shapes[1]
  assert shapes[0]['blocks/1/layers/1/conv'] == (9 * 32,)


@pytest.mark.slow
def test_moments_are_re_estimated_through_rematerialization():
  found = []
  x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
  for remat in (False, True):
    model = networks.filled(
      networks.abstract((8, 8, 3), name='resnet', depth=8, width=2, remat=remat)
    )

    graphdef, state = nnx.split(model)

    def measure(state, x, graphdef=graphdef):
      model = nnx.merge(graphdef, state, copy=True)
      call = lambda model, x: model(x, train=True)
      reestimation.reestimate(model, [x], call)
      return nnx.as_pure(nnx.state(model, nnx.BatchStat))

    found.append(networks.fast_jit(measure)(state, x))
  jax.tree.map(_assert_close, *found)


# The originals have biases in the convolutions and three dense layers; these
# counts have a norm's scale and bias for each channel, and no other bias.
@pytest.mark.parametrize('depth', [11, 13, 16, 19])
def test_the_sizes_of_vgg_are_those_of_its_table(depth):
  columns = {
    11: [64, 128, 256, 256, 512, 512, 512, 512],
    13: [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    16: [64, 64, 128, 128] + [256] * 3 + [512] * 6,
    19: [64, 64, 128, 128] + [256] * 4 + [512] * 8,
  }
  column = columns[depth]
  expected = sum(
    9 * n * f + 2 * f for n, f in zip([3, *column], column, strict=False)
  )
  model = networks.abstract(name='vgg', depth=depth)
  assert networks.num_parameters(model) == expected + 512 * 10 + 10
  model = networks.abstract(name='vgg', depth=depth, hidden=512)
  hidden = 512 * 512 + 2 * 512
  assert networks.num_parameters(model) == expected + hidden + 512 * 10 + 10
  # The maximum comes after the last convolution of a stage.
  found = networks.shapes_of(model)
  sizes = {name[:6]: shape[0] for name, (shape, _) in list(found.items())[:-2]}
  assert sizes == {f'stage{k}': 64 >> k for k in range(1, 6)}
  assert found['hidden/input'][0] == (512,)


def test_the_stages_of_the_small_network():
  shape = (28, 28, 1)
  found = networks.shapes_of(networks.abstract(shape, name='cnn'), shape)
  assert found.pop('logits').shape == (2, 10)
  assert {name: shape for name, (shape, _) in found.items()} == {
    'conv_1/input': (28, 28, 16),
    'conv_2/input': (14, 14, 32),
    'conv_3/input': (7, 7, 64),
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'vgg', 'depth': 12}, 'depth=12; choose 11, 13, 16, 19 for'),
    ({'name': 'vgg', 'shape': (28, 28, 1)}, 'vgg needs .* 32 x 32 pixels'),
    ({'name': 'vgg', 'hidden': -1}, 'hidden=-1; choose'),
    ({'name': 'vgg', 'nonlinearity': 'rely'}, "did you mean 'relu'"),
    ({'name': 'vgg', 'norms': {'hidden': 'none'}}, "names 'hidden'"),
    ({'name': 'cnn', 'widths': ()}, r'widths=\(\); give'),
    ({'name': 'cnn', 'widths': (4, 0)}, 'widths=0; choose'),
    ({'name': 'cnn', 'shape': (2, 2, 1)}, 'cnn needs images of at least 4 x 4'),
    ({'name': 'cnn', 'num_classes': 1}, 'at least 2 classes'),
    ({'name': 'cnn', 'dtype': 'half'}, "dtype='half'; choose"),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    networks.abstract(**changes)
  assert '\n' not in str(caught.value)
