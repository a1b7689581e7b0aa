"""Residual networks: published sizes, shapes, places and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models, norms
from bn_research.models import residual, residual_blocks
from tests.models import networks
from tests.quick import some

IMAGENET = {'name': 'resnet_imagenet', 'shape': (224, 224, 3)}
THOUSAND = IMAGENET | {'num_classes': 1000}


# He et al. (2016a), Table 6, in millions.
@pytest.mark.parametrize(
  ('depth', 'millions'),
  some([(20, 0.27)], [(32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]),
)
def test_small_networks_have_the_published_sizes(depth, millions):
  for preactivation in (False, True):
    model = networks.abstract(
      name='resnet', depth=depth, preactivation=preactivation
    )
    digits = 1 if depth == 110 else 2
    assert round(networks.num_parameters(model) / 1e6, digits) == millions


# The counts of torchvision.
@pytest.mark.parametrize(
  ('depth', 'count'),
  some(
    [(18, 11_689_512), (50, 25_557_032)],
    [(34, 21_797_672), (101, 44_549_160), (152, 60_192_808)],
  ),
)
def test_networks_for_imagenet_have_the_published_sizes(depth, count):
  model = networks.abstract(**THOUSAND, depth=depth)
  assert networks.num_parameters(model) == count


@pytest.mark.parametrize('depth', some([18], [34, 50, 101, 152]))
def test_preactivation_moves_norms(depth):
  # A norm of a block has the size of the input of a convolution, in place of
  # the output: only the first block of a stage changes. The norms of the
  # shortcuts are gone, a norm follows the last block, and the norm of the stem
  # serves the first block.
  change, end = 0, 64
  for width in (64, 128, 256, 512):
    features = width if depth < 50 else 4 * width
    change += end - features  # of the first block: its input, not its output
    change -= features if features != end else 0  # the shortcut
    end = features
  change += end - 64  # the last norm, and the first
  old = networks.abstract(**THOUSAND, depth=depth)
  new = networks.abstract(**THOUSAND, depth=depth, preactivation=True)
  found = networks.num_parameters(new) - networks.num_parameters(old)
  assert found == 2 * change


# Zagoruyko and Komodakis (2016), Table 3, in millions.
@pytest.mark.parametrize(
  ('depth', 'factor', 'millions'),
  some([(28, 10, 36.5)], [(16, 8, 11.0), (40, 4, 8.9)]),
)
def test_wide_networks_have_the_published_sizes(depth, factor, millions):
  model = networks.abstract(name='wide_resnet', depth=depth, factor=factor)
  assert abs(networks.num_parameters(model) / 1e6 - millions) < 0.1


def test_the_usual_network_for_cifar_has_the_usual_size():
  model = networks.abstract(name='resnet_imagenet', depth=18, small_images=True)
  assert networks.num_parameters(model) == 11_173_962


def test_the_stages_of_a_small_network():
  model = networks.abstract(name='resnet', depth=8)
  found = networks.shapes_of(model)
  assert found.pop('logits').shape == (2, 10)
  assert {name: shape for name, (shape, _) in found.items()} == {
    'stem/input': (32, 32, 16),
    'stage1_block1/input1': (32, 32, 16),
    'stage1_block1/input2': (32, 32, 16),
    'stage2_block1/input1': (16, 16, 32),
    'stage2_block1/input2': (16, 16, 32),
    'stage3_block1/input1': (8, 8, 64),
    'stage3_block1/input2': (8, 8, 64),
  }


def test_the_stages_of_a_network_for_imagenet():
  found = networks.shapes_of(networks.abstract(**THOUSAND), (224, 224, 3))
  assert found.pop('logits').shape == (2, 1000)
  shapes = {name: shape for name, (shape, _) in found.items()}
  assert len(shapes) == 49
  assert shapes['stem/input'] == (112, 112, 64)
  for stage, (size, features) in enumerate(
    ((56, 64), (28, 128), (14, 256), (7, 512)), 1
  ):
    place = f'stage{stage}_block1'
    # The 3 x 3 convolution halves the image.
    first = size if stage == 1 else 2 * size
    assert shapes[f'{place}/input1'] == (first, first, features)
    assert shapes[f'{place}/input2'] == (size, size, features)
    assert shapes[f'{place}/input3'] == (size, size, 4 * features)


def test_the_stages_of_a_network_with_preactivation():
  model = networks.abstract(name='resnet', depth=8, preactivation=True)
  found = networks.shapes_of(model)
  del found['logits']
  assert {name: shape for name, (shape, _) in found.items()} == {
    'stem/input': (32, 32, 16),
    'stage1_block1/input2': (32, 32, 16),
    'stage2_block1/input1': (32, 32, 16),
    'stage2_block1/input2': (16, 16, 32),
    'stage3_block1/input1': (16, 16, 32),
    'stage3_block1/input2': (8, 8, 64),
    'final/input': (8, 8, 64),
  }


def convolved(x, conv):
  """A convolution with zeros around the image, in NumPy."""
  kernel = np.asarray(conv.kernel[...], np.float64)
  size, strides = kernel.shape[0], conv.strides
  strides = strides if isinstance(strides, int) else strides[0]
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return np.einsum(
    'bhwcij,ijcf->bhwf', patches[:, ::strides, ::strides], kernel
  )


def normalized(x, norm):
  """Batch normalization in training, in NumPy."""
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  scale, bias = (
    np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias)
  )
  return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def relu(x):
  return np.maximum(x, 0)


def maximum(x):
  """The maximum over 3 x 3 pixels around every second pixel."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  view = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
  return view[:, ::2, ::2].max((-2, -1))


def with_zeros(x, like):
  """Every second position if `like` is smaller, and channels of zeros."""
  strides = 1 if x.shape[1] == like.shape[1] else 2
  x = x[:, ::strides, ::strides]
  more = like.shape[-1] - x.shape[-1]
  return np.concatenate([x, np.zeros((*x.shape[:-1], more))], -1)


def after(block, x):
  """He et al. (2016a), Figure 2, with option A or B."""
  h = x
  for k, layer in enumerate(block.layers):
    h = normalized(convolved(relu(h) if k else h, layer.conv), layer.norm)
  if isinstance(block.shortcut, nnx.Module):
    x = normalized(convolved(x, block.shortcut.conv), block.shortcut.norm)
  return relu(with_zeros(x, h) + h)


def before(block, x, is_first):
  """He et al. (2016b), Figure 4(e)."""
  inputs = list(block.norms)
  h = x if is_first else relu(normalized(x, inputs.pop(0)))
  changes = block.shortcut is not None
  short = h if changes else x
  if isinstance(block.shortcut, nnx.Module):
    short = convolved(short, block.shortcut)
  h = convolved(h, block.convs[0])
  for norm, conv in zip(inputs, block.convs[1:], strict=True):
    h = convolved(relu(normalized(h, norm)), conv)
  return with_zeros(short, h) + h


@pytest.mark.parametrize(
  ('layers', 'projects', 'preactivation', 'large_stem'),
  some(
    [
      ('basic', False, False, False),
      ('bottleneck', True, False, True),
      ('basic', True, True, False),
    ],
    [('bottleneck', True, True, True), ('basic', False, True, False)],
  ),
)
def test_a_network_is_its_formula(layers, projects, preactivation, large_stem):
  # The second block has another shape, and the third block has the same shape.
  build = lambda: residual.ResidualNetwork(
    input_shape=(9, 8, 2),
    num_classes=3,
    norm=lambda place, *args, **options: models.layers.Norm(
      norms.batch_norm(), *args, **options
    ),
    rngs=nnx.Rngs(0),
    width=3,
    stages=[(1, 3), (2, 5)],
    layers=getattr(residual_blocks, layers),
    projects=projects,
    large_stem=large_stem,
    preactivation=preactivation,
  )
  model = networks.filled(nnx.eval_shape(build))
  x = np.random.default_rng(1).normal(size=(4, 9, 8, 2))
  x = x.astype(np.float32).astype(np.float64)
  h = relu(normalized(convolved(x, model.stem.conv), model.stem.norm))
  h = maximum(h) if large_stem else h
  for k, block in enumerate(model.blocks):
    h = before(block, h, k == 0) if preactivation else after(block, h)
  if preactivation:
    h = relu(normalized(h, model.final))
  output = model.output
  expected = h.mean((1, 2)) @ np.asarray(output.kernel[...], np.float64)
  expected += np.asarray(output.bias[...], np.float64)
  found = nnx.jit(lambda model, x: model(x, train=True))(model, jnp.asarray(x))
  scale = np.abs(expected).max()
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_a_network_without_norms_has_biases():
  model = networks.abstract(name='resnet', depth=8, norm={'name': 'none'})
  with_norms = networks.abstract(name='resnet', depth=8)
  # A scale for each of 16 · 3 + 32 · 2 + 64 · 2 channels is gone.
  missing = networks.num_parameters(with_norms)
  missing -= networks.num_parameters(model)
  assert missing == 16 * 3 + 32 * 2 + 64 * 2
  assert model.blocks[0].layers[1].norm.bias.shape == (16,)


def test_a_place_may_have_another_norm():
  model = networks.abstract(
    name='resnet_imagenet',
    depth=50,
    norms={'stage2_block1_norm3': 'layer_norm', 'stage2_block1_shortcut': None},
  )
  block = model.blocks[3]
  assert block.layers[2].norm.normalization == norms.layer_norm()
  assert block.shortcut.norm.normalization == norms.batch_norm()
  with pytest.raises(errors.UserError, match="names 'stage4_block1_norm1'"):
    networks.abstract(
      name='resnet', norms={'stage4_block1_norm1': {'name': 'none'}}
    )
  model = networks.abstract(
    name='wide_resnet', depth=10, factor=1, norms={'final': 'layer_norm'}
  )
  assert model.final.normalization == norms.layer_norm()


def test_a_scale_of_zero_makes_blocks_the_identity():
  config = {'name': 'resnet', 'depth': 8, 'width': 2, 'zero_init': True}

  @nnx.jit(static_argnums=0)
  def values(name):
    found = {}
    config['norm'] = {'name': name}
    model = models.create(config, (8, 8, 1), 2, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    model(x, train=True, tap=lambda key, h: found.setdefault(key, h))
    return found

  for name in ('batch_norm', 'none'):
    found = values(name)
    np.testing.assert_array_equal(
      found['stage1_block1/input2'], jax.nn.relu(found['stem/input'])
    )


def test_only_the_last_norm_of_a_block_has_a_scale_of_zero():
  """Goyal et al. (2017), Section 5.1: not the norm of a projection."""
  block = nnx.jit(
    lambda: residual_blocks.Block(
      lambda place, *args, **options: models.layers.Norm(
        norms.batch_norm(), *args, **options
      ),
      'block',
      2,
      residual_blocks.bottleneck(3, 2),
      projects=True,
      zero_init=True,
      dtype=jnp.float32,
      rngs=nnx.Rngs(0),
    )
  )()
  layers = [*block.layers, block.shortcut]
  for layer, expected in zip(layers, [1, 1, 0, 1], strict=True):
    np.testing.assert_array_equal(layer.norm.scale[...], expected)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'resnet', 'depth': 18}, r'depth=18; choose 6n \+ 2'),
    ({'name': 'resnet', 'depth': 2}, 'depth=2; choose'),
    ({'name': 'resnet', 'width': 0}, 'width=0; choose'),
    (
      {'name': 'resnet', 'shape': (2, 32, 3)},
      r'at least 4 x 4 pixels, as \(height.*, not \(2, 32, 3\)',
    ),
    ({'name': 'resnet', 'shape': (784,)}, r'at least 4 x 4 .* not \(784,\)'),
    ({'name': 'resnet', 'num_classes': 1}, 'at least 2 classes, not 1'),
    ({'name': 'resnet', 'dtype': 'float16'}, "'float16'; choose float32 or b"),
    (
      {'name': 'resnet', 'preactivation': True, 'zero_init': True},
      'zero_init=True needs preactivation=False',
    ),
    ({'name': 'resnet_imagenet', 'depth': 20}, "20; .* name 'resnet' has"),
    (
      {'name': 'resnet_imagenet', 'shape': (28, 28, 1)},
      'small_images=False needs images of at least 32 x 32',
    ),
    ({'name': 'wide_resnet', 'depth': 20}, r'depth=20; choose 6n \+ 4'),
    ({'name': 'wide_resnet', 'factor': 0}, 'factor=0; choose'),
    ({'name': 'wide_resnet', 'dropout': 1.0}, 'dropout=1.0; choose'),
    ({'name': 'wide_resnet', 'dropout': float('nan')}, 'dropout=nan; choose'),
    ({'name': 'resnet', 'dense': 'prong'}, "no argument 'dense'"),
    ({'name': 'resnet', 'norm': {'name': 'group_norm'}}, 'group'),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    networks.abstract(**changes)
  assert '\n' not in str(caught.value)


def test_dropout_of_wide_blocks_is_on_in_training_only():
  config = {'name': 'wide_resnet', 'depth': 10, 'factor': 1, 'width': 2}
  with_dropout, without = (
    networks.filled(networks.abstract((8, 8, 3), 4, **config, dropout=dropout))
    for dropout in (0.9, 0.0)
  )
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  found, expected = (
    np.asarray(model(x, train=False)) for model in (with_dropout, without)
  )
  assert np.isfinite(expected).all()
  np.testing.assert_array_equal(found, expected)


class AddsOne(nnx.Module):
  """The norm of a test, for which zeros have nonzero results."""

  def __call__(self, x, use_running_average):
    del use_running_average
    return x + 1


def test_dropout_is_before_the_last_convolution():
  """Zagoruyko and Komodakis (2016), Section 2.4: between the convolutions."""
  block = residual_blocks.PreactivationBlock(
    lambda place, features, **options: AddsOne(),
    'block',
    2,
    [residual_blocks.Layer(3, 2, 1)] * 2,
    projects=False,
    is_first=False,
    # All inputs of the last convolution become zeros, for this key.
    dropout=1 - 1e-6,
    dtype=jnp.float32,
    rngs=nnx.Rngs(0),
  )
  x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
  seen = []
  tap = lambda name, value: seen.append(value) or value
  np.testing.assert_array_equal(block(x, True, tap), x)
  assert abs(block(x, False, tap) - x).max() > 0.1
  # Nothing is set to zero before the norm between the convolutions.
  (_, trained, _, evaluated) = seen
  np.testing.assert_array_equal(trained, evaluated)
