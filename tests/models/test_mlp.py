import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models, norms

CONFIG = {
  'name': 'mlp',
  'widths': (100, 100, 100),
  'nonlinearity': 'sigmoid',
  'init_scale': 0.1,
  'norm': {'name': 'batch_norm', 'momentum': None, 'epsilon': None},
}


def make(shape=(28, 28, 1), **changes):
  return models.create(CONFIG | changes, shape, 10, jax.random.key(0))


def test_the_shapes_are_those_of_figure_1():
  params = nnx.as_pure(nnx.state(make(), nnx.Param))
  shapes = jax.tree.map(jnp.shape, params)
  assert [shapes['dense'][i]['kernel'] for i in range(3)] == [
    (784, 100),
    (100, 100),
    (100, 100),
  ]
  assert all('bias' not in shapes['dense'][i] for i in range(3))
  assert [shapes['norms'][i]['scale'] for i in range(3)] == [(100,)] * 3
  assert shapes['output'] == {'bias': (10,), 'kernel': (100, 10)}


def test_weights_are_gaussian_of_the_scale_asked_for():
  model = make(init_scale=0.02)
  weights = np.asarray(model.dense[0].kernel[...]).ravel()
  np.testing.assert_allclose(weights.std(), 0.02, rtol=0.02)
  assert abs(weights.mean()) < 1e-3
  np.testing.assert_array_equal(model.output.bias[...], 0)


def test_without_a_norm_there_is_a_bias_and_no_scale():
  model = make(norm={'name': 'none'})
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  assert list(params['norms'][0]) == ['bias']
  x = np.random.default_rng(0).normal(size=(5, 784)).astype(np.float32)
  h = x.astype(np.float64)
  for dense in model.dense:
    h = 1 / (1 + np.exp(-h @ np.asarray(dense.kernel[...], np.float64)))
  expected = h @ np.asarray(model.output.kernel[...], np.float64)
  actual = model(jnp.asarray(x), train=True)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_training_uses_and_remembers_the_statistics_of_the_batch():
  model = make((6,), widths=(4,))
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (50, 6)), jnp.float32)
  seen = []
  tap = lambda name, value: seen.append(value) or value
  model(x, train=True, tap=tap)
  np.testing.assert_allclose(seen[0].mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(seen[0].std(0), 1, atol=1e-2)
  model(x, train=False, tap=tap)
  # Exact from the first step: what is remembered is what was seen.
  np.testing.assert_allclose(seen[1], seen[0], rtol=0.05, atol=0.05)


def test_the_nonlinearities_see_what_the_tap_returns():
  model = make(widths=(5, 5))
  x = jnp.ones((3, 28, 28, 1))
  names = []

  def tap(name, value):
    names.append(name)
    return jnp.zeros_like(value)

  logits = model(x, train=False, tap=tap)
  assert names == ['hidden_1/input', 'hidden_2/input']
  expected = 0.5 * model.output.kernel[...].sum(0)  # σ(0) = 1/2.
  np.testing.assert_allclose(logits[0], expected, rtol=1e-5)


@pytest.mark.parametrize('graph', [True, False])
def test_the_model_is_a_plain_tree(graph):
  model = make(widths=(5, 5))
  graphdef, state = nnx.split(model, graph=graph)
  x = jnp.ones((3, 784))
  np.testing.assert_array_equal(
    nnx.merge(graphdef, state)(x, train=False), model(x, train=False)
  )


def test_building_works_in_one_jit():
  @jax.jit
  def build(key):
    return nnx.split(models.create(CONFIG, (28, 28, 1), 10, key))

  graphdef, state = build(jax.random.key(0))
  logits = nnx.merge(graphdef, state)(jnp.ones((2, 784)), train=False)
  expected = make()(jnp.ones((2, 784)), train=False)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'name': 'mpl'},
      "model='mpl' is unknown .*; there are cnn, inception_bn, mlp",
    ),
    (
      {'nonlinearity': 'sigmiod'},
      "'sigmiod' is unknown .*; there are elu, .*sigmoid",
    ),
    ({'width': 3}, "no option 'width' .*; it has widths, nonlinearity, init"),
    ({'norm': {'name': 'bathc_norm'}}, 'bathc_norm.*batch_norm'),
    (
      {'norm': {'name': 'batch_norm', 'epsilom': 1.0}},
      'model.norm.*epsilom.*epsilon',
    ),
    ({'widths': ('a',)}, r"widths=\('a',\); every hidden layer needs"),
    ({'widths': (3, 1.5)}, r'1\.5\); .* in whole numbers'),
  ],
)
def test_what_is_unknown_is_one_line(change, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    make(**change)
  assert '\n' not in str(caught.value)


def test_a_norm_that_does_not_fit_says_so():
  with pytest.raises(errors.UserError, match=r'num_groups=32 does not .* 100;'):
    make(norm={'name': 'group_norm'})


def test_a_norm_that_a_model_does_not_take_is_refused(user_module):
  user_module(
    'bare_model',
    'from flax import nnx\n'
    'class Bare(nnx.Module):\n'
    '  def __init__(self, *, rngs): pass\n',
  )
  bare = {'name': 'bare_model:Bare', 'norm': {'name': 'none'}}
  models.create(bare, (3,), 2, jax.random.key(0))
  for key, name in (('norm', 'batch_norm'), ('dense', 'prong')):
    with pytest.raises(errors.UserError, match=f'config.model.{key} is given'):
      models.create(bare | {key: name}, (3,), 2, jax.random.key(0))


def test_a_norm_that_a_model_never_makes_is_told(user_module):
  user_module(
    'deaf_model',
    'from flax import nnx\n'
    'class Deaf(nnx.Module):\n'
    '  def __init__(self, *, norm, dense, rngs): pass\n',
  )
  deaf = {'name': 'deaf_model:Deaf', 'norm': {'name': 'none'}}
  models.create(deaf, (3,), 2, jax.random.key(0))
  for key, name in (('norm', 'batch_norm'), ('dense', 'prong')):
    with pytest.raises(errors.UserError, match=f'{key} is given, and the mod'):
      models.create(deaf | {key: name}, (3,), 2, jax.random.key(0))


def test_a_layer_may_have_a_norm_of_its_own():
  norm, norms_of = {'name': 'batch_norm'}, {'hidden_2': {'name': 'layer_norm'}}
  model = make(norm=norm, norms=norms_of)
  found = [layer.normalization for layer in model.norms]
  assert found == [norms.batch_norm(), norms.layer_norm(), norms.batch_norm()]
  with pytest.raises(
    errors.UserError, match=r"'hidden_4' \(did you .*hidden_1"
  ):
    make(norm=norm, norms={'hidden_4': 'layer_norm'})
