"""The Inception network: both readings of its table, places and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, norms
from bn_research.layers import nnx as norm_layers
from bn_research.models import inception_bn, nonlinearities
from bn_research.models.inception_modules import Maker, Mixed, Row, Stem
from tests.models import networks
from tests.quick import some, star

# Height, and channels of the output, of each module, as Figure 5 prints them;
# 3c and 4e after the stride. With projections of 128 in 4c and 4d, see below.
OUTPUTS = {
  '3a': (28, 256),
  '3b': (28, 320),
  '3c': (14, 576),
  '4a': (14, 576),
  '4b': (14, 576),
  '4c': (14, 576),
  '4d': (14, 576),
  '4e': (7, 1024),
  '5a': (7, 1024),
  '5b': (7, 1024),
}
WITH_128 = {'4c': (14, 608), '4d': (14, 608), '4e': (7, 1056)}
# The convolutions of a module; 3c and 4e have no first and no last one.
LAYERS = (
  '1x1',
  '3x3_reduce',
  '3x3',
  'double_reduce',
  'double_1',
  'double_2',
  'pool',
)


def abstract(shape=(224, 224, 3), num_classes=1000, **changes):
  return networks.abstract(shape, num_classes, name='inception_bn', **changes)


# Sums over the rows of the table, with a scale and a bias for each channel, in
# thousands. The text of the paper has 13.6 million, which no reading gives.
@pytest.mark.parametrize(
  ('entry', 'pool_proj', 'thousands'),
  some(
    [('separable', 96, 11188)],
    [('plain', 96, 11195), ('separable', 128, 11279), ('plain', 128, 11285)],
  ),
)
def test_the_sizes_are_those_of_the_table(entry, pool_proj, thousands):
  model = abstract(entry=entry, pool_proj_4c_4d=pool_proj)
  assert round(networks.num_parameters(model) / 1000) == thousands
  outputs = OUTPUTS | (WITH_128 if pool_proj == 128 else {})
  channels = [module.num_channels for module in model.mixed]
  assert channels == [channels for _, channels in outputs.values()]
  assert model.output.kernel.shape == (channels[-1], 1000)
  # Without dropout there is no random state in a checkpoint.
  assert not jax.tree.leaves(nnx.state(model, nnx.RngState))


@pytest.mark.parametrize(
  ('entry', 'image', 'factor', 'stem'),
  some(
    [('separable', 224, 1, 112)], [('plain', 224, 1, 112), ('small', 28, 1, 28)]
  ),
)
def test_the_shapes_are_those_of_the_table(entry, image, factor, stem):
  shape = (image, image, 3)
  found = networks.shapes_of(abstract(shape, entry=entry), shape)
  assert found.pop('logits').shape == (2, 1000)
  heights = {'stem': stem}
  heights |= dict.fromkeys(['conv2_reduce', 'conv2'], min(stem, 56))
  joined = {}
  for name, (height, channels) in OUTPUTS.items():
    is_halved = name in ('3c', '4e')
    for layer in LAYERS[1:-1] if is_halved else LAYERS:
      place = f'mixed{name}_{layer}'
      is_last = layer in ('3x3', 'double_2')
      heights[place] = height * (1 + (is_halved and not is_last))
      if layer in ('1x1', '3x3', 'double_2', 'pool'):
        joined[name] = joined.get(name, 0) + found[f'{place}/input'][0][-1]
    passed = {'3c': 320, '4e': 576}.get(name, 0)
    assert joined[name] + passed == channels
  assert set(found) == {f'{name}/input' for name in heights}
  for name, ((height, width, _), _) in found.items():
    assert height == width == heights[name.removesuffix('/input')] * factor


def test_a_norm_has_the_name_of_the_tap_behind_it():
  places = []

  def norm(place, num_features, **options):
    places.append(place)
    return norm_layers.Norm(norms.none(), num_features, **options)

  model = nnx.eval_shape(
    lambda: inception_bn.InceptionBN(
      input_shape=(4, 4, 3),
      num_classes=2,
      norm=norm,
      rngs=nnx.Rngs(0),
      entry='small',
      width=0.1,
    )
  )
  assert len(set(places)) == len(places) == 3 + 8 * 7 + 2 * 5
  found = networks.shapes_of(model, (4, 4, 3))
  del found['logits']
  assert set(found) == {f'{place}/input' for place in places}
  # A tenth of the channels, rounded.
  assert found['mixed3a_1x1/input'][0] == (4, 4, 6)
  assert found['mixed3b_3x3/input'][0] == (4, 4, 10)


# The oracle, in NumPy and float64: windows, one after the other.


def windows(x, size, strides, fill):
  """Yields each output position with its window, (batch, size, size, c)."""
  around = size // 2
  x = np.pad(
    x,
    ((0, 0), (around, around), (around, around), (0, 0)),
    constant_values=fill,
  )
  for i in range(0, x.shape[1] - size + 1, strides):
    for j in range(0, x.shape[2] - size + 1, strides):
      yield i // strides, j // strides, x[:, i : i + size, j : j + size]


def window_map(function, x, size, strides, fill=0.0):
  found = {(i, j): function(w) for i, j, w in windows(x, size, strides, fill)}
  height, width = (n + 1 for n in max(found))
  rows = [[found[i, j] for j in range(width)] for i in range(height)]
  return np.moveaxis(np.array(rows), 2, 0)


def array(variable):
  return np.asarray(variable[...], np.float64)


def layer_oracle(layer, x, g, strides=1):
  kernel = array(layer.convolved.conv.kernel)
  convolve = lambda w: np.einsum('bijc,ijcf->bf', w, kernel)
  h = window_map(convolve, x, len(kernel), strides)
  return g(h + array(layer.convolved.norm.bias))


def maximum(x, strides):
  return window_map(lambda w: w.max((1, 2)), x, 3, strides, -np.inf)


def mean(x, strides):
  """The mean over the positions of a window inside of the image."""
  return window_map(lambda w: np.nanmean(w, (1, 2)), x, 3, strides, np.nan)


def response_norm(x):
  """Krizhevsky et al. (2012), Section 3.3, channel by channel."""
  y = np.empty_like(x)
  for i in range(x.shape[-1]):
    near = x[..., max(0, i - 2) : i + 3]
    y[..., i] = x[..., i] / (2 + 1e-4 * (near**2).sum(-1)) ** 0.75
  return y


def maker(nonlinearity, norm=norms.none):
  make = lambda place, n, **options: norm_layers.Norm(norm(), n, **options)
  g = nonlinearities.find(nonlinearity)
  return Maker(make, g, 1.0, jnp.float32, nnx.Rngs(0))


def relu(x):
  return np.maximum(x, 0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def call(module, x):
  graphdef, state = nnx.split(module)
  tap = lambda name, value: value

  def function(state, x):
    return nnx.merge(graphdef, state)(x, True, tap)

  return networks.fast_jit(function)(state, jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize(
  ('row', 'pool', 'strides', 'name', 'g'),
  [
    (Row(3, (2, 4), (3, 5), 'avg', 2), mean, 1, 'relu', relu),
    (Row(3, (2, 4), (3, 5), 'max', 2), maximum, 1, 'sigmoid', sigmoid),
    (Row(0, (2, 4), (3, 5), 'max', 0), maximum, 2, 'relu', relu),
  ],
)
def test_a_module_is_its_formula(row, pool, strides, name, g):
  module = networks.filled(
    nnx.eval_shape(lambda: Mixed(maker(name), 'mixed', row, 3))
  )
  x = np.random.default_rng(0).normal(size=(2, 6, 5, 3))
  parts = []
  for branch in module.branches:
    h = x
    for layer in branch:
      is_last = layer is branch[len(branch) - 1]
      h = layer_oracle(layer, h, g, strides if is_last else 1)
    parts.append(h)
  h = pool(x, strides)
  for layer in module.projection:
    h = layer_oracle(layer, h, g)
  expected = np.concatenate([*parts, h], -1)
  assert expected.shape[-1] == module.num_channels
  np.testing.assert_allclose(call(module, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('entry', 'local_response_norm'),
  star(['separable', 'plain', 'small'], [True, False]),
)
def test_the_stem_is_its_formula(entry, local_response_norm):
  make = lambda: maker('relu')._replace(width=1 / 16)
  module = networks.filled(
    nnx.eval_shape(lambda: Stem(make(), 3, entry, local_response_norm))
  )
  x = np.random.default_rng(0).normal(size=(2, 16, 12, 3))
  normalize = response_norm if local_response_norm else lambda x: x
  pool = (lambda x: x) if entry == 'small' else lambda x: maximum(x, 2)
  h = x
  if entry == 'separable':
    kernel = array(module.depthwise.kernel)[:, :, 0].reshape(7, 7, 3, 8)
    separate = lambda w: np.einsum('bijc,ijcm->bcm', w, kernel).reshape(2, 24)
    h = window_map(separate, h, 7, 2)
  h = layer_oracle(module.first, h, relu, 2 if entry == 'plain' else 1)
  h = normalize(pool(h))
  h = layer_oracle(module.second, layer_oracle(module.reduce, h, relu), relu)
  expected = pool(normalize(h))
  assert expected.shape[-1] == 12
  np.testing.assert_allclose(call(module, x), expected, rtol=1e-4, atol=1e-3)


def test_the_norm_comes_before_the_nonlinearity():
  make = lambda: maker('relu', norms.batch_norm).layer('a', 3, 4, 3)
  layer = networks.filled(nnx.eval_shape(make))
  assert layer.convolved.conv.bias is None
  seen = []
  x = np.random.default_rng(0).normal(2, 3, size=(8, 6, 6, 3))
  layer(jnp.float32(x), True, lambda name, value: seen.append(value) or value)
  scale, bias = (getattr(layer.convolved.norm, n) for n in ('scale', 'bias'))
  np.testing.assert_allclose(seen[0].mean((0, 1, 2)), bias[...], atol=1e-4)
  np.testing.assert_allclose(
    seen[0].std((0, 1, 2)), np.abs(scale[...]), rtol=1e-3
  )


def test_dropout_is_on_in_training_only():
  model = abstract((4, 4, 3), 2, entry='small', dropout=0.4)
  # Without modules and without the last layer, dropout is all that happens.
  model.stem = lambda x, train, tap: x
  model.mixed = nnx.List([])
  model.output = lambda h: h
  model.dropout.rngs = nnx.Rngs(0).dropout
  x = jnp.ones((8, 4, 4, 500))
  np.testing.assert_array_equal(model(x, train=False), 1)
  first, second = (np.asarray(model(x, train=True)) for _ in range(2))
  np.testing.assert_allclose(np.unique(first), [0, 1 / 0.6], rtol=1e-6)
  np.testing.assert_allclose((first == 0).mean(), 0.4, atol=0.03)
  assert (first != second).any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'shape': (31, 224, 3)}, "entry='separable' needs .* 32 x 32 pixels"),
    ({'shape': (3, 8, 3), 'entry': 'small'}, 'at least 4 x 4 pixels'),
    ({'entry': 'big'}, "entry='big'; choose separable or plain or small"),
    ({'width': 0.0}, 'width=0.0; choose'),
    ({'width': float('nan')}, 'width=nan; choose'),
    ({'pool_proj_4c_4d': 64}, 'pool_proj_4c_4d=64; choose 96 or 128'),
    ({'dropout': 1.0}, 'dropout=1.0; choose'),
    ({'dropout': float('nan')}, 'dropout=nan; choose'),
    ({'nonlinearity': 'rely'}, "'rely' is unknown"),
    ({'dtype': 'float64'}, "dtype='float64'; choose"),
    ({'num_classes': 1}, 'at least 2 classes'),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    abstract(**changes)
  assert '\n' not in str(caught.value)
