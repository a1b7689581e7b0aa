"""The network on patches: the published size, the formula, the stems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models
from bn_research.layers import nnx as nnx_layers
from tests.oracles import patches as oracle

CONFIG = {'name': 'patch_cnn', 'norm': {'name': 'batch_norm'}}
WHITENED = {'name': 'whitened_patches'}


def make(shape=(32, 32, 3), num_classes=10, **changes):
  return models.create(CONFIG | changes, shape, num_classes, jax.random.key(0))


def test_the_size_is_the_published_size():
  """24 channels of 2 x 2 patches; biases of norms, and no scales."""
  model = nnx.eval_shape(lambda: make(stem=WHITENED))
  assert model.stem.kernel.shape == (2, 2, 3, 24)
  sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
  kernels = 9 * (24 * 64 + 64**2 + 64 * 256 + 3 * 256**2)
  assert sum(sizes) == 24 + kernels + 2 * (64 + 256 + 256) + 256 * 10
  frozen = nnx.state(model, nnx_layers.Fitted)
  assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) == 12 * 24 + 24


def test_both_stems_have_the_same_shape():
  learned, whitened = (
    nnx.eval_shape(lambda stem=stem: make(stem=stem)).stem
    for stem in ({'name': None}, WHITENED)
  )
  assert type(learned) is nnx.Conv
  assert learned.kernel.shape == whitened.kernel.shape
  assert learned.out_features == whitened.out_features
  assert learned.bias is whitened.bias is None


def test_the_places_and_the_inputs_of_the_nonlinearities():
  shapes = {}

  def note(name, value):
    shapes[name] = value.shape[1:]
    return value

  def call(x):
    model = make(norms={'group3_norm2': 'none'})
    return model(x, train=False, tap=note)

  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  assert jax.eval_shape(call, x).shape == (2, 10)
  assert shapes == {
    'stem/input': (31, 31, 24),
    'group1/inner': (15, 15, 64),
    'group1/outer': (15, 15, 64),
    'group2/inner': (7, 7, 256),
    'group2/outer': (7, 7, 256),
    'group3/inner': (3, 3, 256),
    'group3/outer': (3, 3, 256),
  }


def halved(h):
  h = h[:, : h.shape[1] // 2 * 2, : h.shape[2] // 2 * 2]
  n, height, width, channels = h.shape
  return h.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def test_the_formula():
  options = {'widths': (4,), 'nonlinearity': 'relu', 'norm': 'none'}
  model = nnx.jit(lambda: make((6, 6, 2), 3, **options))()
  model.norm.bias.set_value(jnp.arange(16.0) / 10)
  for norm in model.groups[0].norms:
    norm.bias.set_value(jnp.arange(4.0) / 10 - 0.1)
  x = np.random.default_rng(0).normal(size=(3, 6, 6, 2))
  shift = np.arange(4.0) / 10 - 0.1

  def convolved(h, conv, padding):
    kernel = np.asarray(conv.kernel[...], np.float64)
    rows = oracle.patches(h, kernel.shape[:2], (1, 1), padding)
    return rows @ kernel.reshape(-1, kernel.shape[-1])

  h = np.maximum(convolved(x, model.stem, 'VALID') + np.arange(16) / 10, 0)
  first, second = model.groups[0].convs
  h = np.maximum(halved(convolved(h, first, 'SAME')) + shift, 0)
  h = np.maximum(convolved(h, second, 'SAME') + shift, 0)
  kernel = np.asarray(model.output.kernel[...], np.float64)
  expected = h.max((1, 2)) @ kernel / 9
  call = nnx.jit(lambda model, x: model(x, train=True))
  y = call(model, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_inside_and_float32_around():
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  seen = []

  def call(x):
    model = make((8, 8, 3), widths=(4,), dtype='bfloat16', stem=WHITENED)
    tap = lambda _, h: seen.append(h) or h
    return model(x, train=True, tap=tap), nnx.state(model)

  logits, state = jax.eval_shape(call, x)
  assert {h.dtype for h in seen} == {jnp.dtype(jnp.bfloat16)}
  assert logits.dtype == jnp.float32
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'widths': (8, 8, 8, 8, 8)}, '5 widths halves the image so often'),
    ({'widths': (0,)}, 'widths'),
    ({'stem': {'name': 'whiten'}}, "'whiten' is unknown; .*whitened_patches"),
    ({'stem': {'name': 'learned', 'epsilon': 1.0}}, "no option 'epsilon'"),
    ({'stem': {**WHITENED, 'kernel_size': 0}}, 'kernel_size=0'),
    ({'stem': {**WHITENED, 'epsilon': -1.0}}, 'epsilon=-1.0'),
    ({'stem': {**WHITENED, 'num_examples': 0}}, 'num_examples=0'),
    ({'name': 'mlp', 'stem': WHITENED}, "'mlp' has no argument 'stem'"),
  ],
)
def test_mistakes_are_told_in_a_line(changes, says):
  with pytest.raises((errors.UserError, ValueError), match=says) as error:
    make(**changes)
  assert '\n' not in str(error.value)


def test_a_model_without_the_argument_takes_the_learned_stem():
  made = make((4,), name='mlp', stem={'name': 'learned'})
  assert not hasattr(made, 'stem')
