"""Residual networks: published sizes, shapes, places and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models, norms
from tests.quick import some

CONFIG = {'name': 'resnet', 'depth': 8, 'norm': {'name': 'batch_norm'}}


def make(shape=(32, 32, 3), num_classes=10, **changes):
  return models.create(CONFIG | changes, shape, num_classes, jax.random.key(0))


# He et al. (2016), Table 6, in millions.
@pytest.mark.parametrize(
  ('depth', 'millions'),
  some([(20, 0.27)], [(32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]),
)
def test_the_sizes_are_the_published_sizes(depth, millions):
  model = nnx.eval_shape(lambda: make(depth=depth))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  digits = 1 if depth == 110 else 2
  assert round(sum(leaf.size for leaf in leaves) / 1e6, digits) == millions


def test_the_stages_halve_the_image_and_double_the_channels():
  shapes = {}

  def note(name, value):
    shapes[name] = value.shape
    return value

  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  model = make()
  logits = jax.eval_shape(lambda x: model(x, train=False, tap=note), x)
  assert logits.shape == (2, 10)
  assert shapes == {
    'stem/input': (2, 32, 32, 16),
    'stage1_block1/inner': (2, 32, 32, 16),
    'stage1_block1/outer': (2, 32, 32, 16),
    'stage2_block1/inner': (2, 16, 16, 32),
    'stage2_block1/outer': (2, 16, 16, 32),
    'stage3_block1/inner': (2, 8, 8, 64),
    'stage3_block1/outer': (2, 8, 8, 64),
  }


def convolved(x, kernel, strides):
  """A 3 x 3 convolution with one row of zeros around, in NumPy."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
  return np.einsum(
    'bhwcij,ijcf->bhwf', patches[:, ::strides, ::strides], kernel
  )


def test_a_network_without_norms_is_its_formula():
  model = make((8, 8, 3), norm={'name': 'none'}, width=4)
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
  kernel = lambda layer: np.asarray(layer.conv.kernel[...], np.float64)
  h = np.maximum(convolved(x, kernel(model.stem), 1), 0)
  for block in model.blocks:
    s = block.strides
    inner = np.maximum(convolved(h, kernel(block.first), s), 0)
    short = h[:, ::s, ::s]
    more = block.features - short.shape[-1]
    short = np.pad(short, ((0, 0), (0, 0), (0, 0), (0, more)))
    h = np.maximum(short + convolved(inner, kernel(block.second), 1), 0)
  expected = h.mean((1, 2)) @ np.asarray(model.output.kernel[...], np.float64)
  actual = model(jnp.asarray(x, jnp.float32), train=True)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_place_may_have_another_norm():
  model = make(norms={'stage2_block1_norm2': {'name': 'layer_norm'}})
  assert model.blocks[1].second.norm.normalization == norms.layer_norm()
  assert model.blocks[1].first.norm.normalization == norms.batch_norm()
  with pytest.raises(errors.UserError, match="names 'stage4_block1_norm1'"):
    make(norms={'stage4_block1_norm1': {'name': 'none'}})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'depth': 18}, r'depth=18; choose 6n \+ 2'),
    ({'depth': 2}, 'depth=2; choose'),
    ({'width': 0}, 'width=0; choose'),
    ({'shape': (2, 32, 3)}, r'at least 4 x 4 pixels, .* not \(2, 32, 3\)'),
    ({'shape': (784,)}, 'at least 4 x 4 pixels'),
    ({'num_classes': 1}, 'resnet needs at least 2 classes, not 1'),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message):
    make(**changes)
