"""Probes that take the step of training: shift, norms by layer, whiteness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bn_research import errors, models, optim, probes
from bn_research.probes import layers
from bn_research.training import losses, probing, state, step

RATE = 2.0
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 2, 3, 1), np.uint8)
LABELS = RNG.integers(0, 4, 40, np.int32)
CONFIG = {
  'name': 'mlp',
  'widths': (7, 5),
  'init_scale': 0.7,
  'norm': {'name': 'none'},
}


def to_input(images):
  return images.astype(jnp.float32) / 255


@functools.cache
def start(norm='none', dense='dense', rate=RATE):
  options = {'name': 'sgd', 'learning_rate': rate, 'momentum': 0.9}
  transformation = optim.create(options, 10)
  graphdef, first = state.create(
    jax.random.key(0),
    CONFIG | {'norm': {'name': norm}, 'dense': {'name': dense}},
    IMAGES.shape[1:],
    4,
    transformation,
  )
  return first, {'graphdef': graphdef, 'optimizer': transformation}


def measure(key, norm='none', **section):
  first, parts = start(norm)
  probe = functools.partial(
    probing.probe,
    measure=probes.create(key, section),
    to_input=to_input,
    **parts,
  )
  return jax.jit(probe)(first, step.Examples(IMAGES, LABELS))


def gradients(weights, x, labels):
  """By hand, in float64: kernels, biases of norms, the last kernel and bias."""
  kernels, biases = weights
  hs = [x]
  for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
    hs.append(1 / (1 + np.exp(-(hs[-1] @ kernel + bias))))
  logits = hs[-1] @ kernels[-1] + biases[-1]
  p = np.exp(logits - logits.max(1, keepdims=True))
  d = (p / p.sum(1, keepdims=True) - np.eye(4)[labels]) / len(x)
  of_kernels, of_biases = [], []
  for k in reversed(range(len(kernels))):
    of_kernels.insert(0, hs[k].T @ d)
    of_biases.insert(0, d.sum(0))
    d = d @ kernels[k].T * hs[k] * (1 - hs[k])
  return of_kernels, of_biases


@pytest.fixture
def by_hand():
  params = start()[0].params
  wide = lambda leaf: np.asarray(leaf, np.float64)
  kernels = [wide(params['dense'][k]['kernel']) for k in range(2)]
  biases = [wide(params['norms'][k]['bias']) for k in range(2)]
  kernels.append(wide(params['output']['kernel']))
  biases.append(wide(params['output']['bias']))
  x = IMAGES.reshape(40, -1) / 255.0
  return (kernels, biases), x


NAMES = ('dense/0', 'dense/1', 'output')


def test_covariate_shift_is_its_definition(by_hand):
  weights, x = by_hand
  found = measure('covariate_shift')
  before = gradients(weights, x, LABELS)
  moved = [
    [w - RATE * g for w, g in zip(some, grads, strict=True)]
    for some, grads in zip(weights, before, strict=True)
  ]
  for i, name in enumerate(NAMES):
    mixed = [m[:i] + w[i:] for m, w in zip(moved, weights, strict=True)]
    after = gradients(mixed, x, LABELS)
    # The bias of a hidden layer is in its norm; that of the last beside W.
    flat = lambda grads, i=i: np.concatenate(
      [grads[0][i].ravel(), *([grads[1][i]] if i == 2 else [])]
    )
    a, b = flat(before), flat(after)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    expected = {
      'distance': np.linalg.norm(a - b),
      'cosine': cosine,
      'gradient': np.linalg.norm(a),
    }
    for key, value in expected.items():
      np.testing.assert_allclose(
        found[f'{name}/{key}'], value, rtol=2e-4, atol=1e-6
      )
  assert found['dense/0/distance'] == 0
  assert found['output/distance'] > 1e-2


def observe(probe, **choices):
  """What a probe of one's own finds before the first step."""
  first, parts = start(**choices)
  measure = functools.partial(
    probing.probe, measure=probe, to_input=to_input, **parts
  )
  return jax.jit(measure)(first, step.Examples(IMAGES, LABELS))


@pytest.mark.parametrize('dense', ['dense', 'prong'])
def test_a_step_is_in_the_coordinates_of_its_origin(dense):
  # The first step of PRONG moves all layers to new coordinates.
  def probe(observation):
    new = observation.take_step()
    params, rest = new.origin
    loss, grads = jax.value_and_grad(observation.loss)(params, rest)
    moved = jax.tree.map(jnp.add, params, new.updates)
    errors = {
      'gradient': jax.tree.map(jnp.subtract, grads, new.grads),
      'parameters': jax.tree.map(jnp.subtract, moved, new.params),
    }
    norms = {name: optax.tree.norm(tree) for name, tree in errors.items()}
    return {'loss': loss - observation.loss(), **norms}

  for error in observe(probe, dense=dense).values():
    np.testing.assert_allclose(error, 0, atol=1e-5)


def test_the_origin_has_the_statistics_of_before():
  def probe(observation):
    new = observation.take_step()
    old, origin, after = map(
      jax.tree.leaves, (observation.rest, new.origin[1], new.rest)
    )
    differ = lambda a, b: sum(
      jnp.abs(x - y).sum() for x, y in zip(a, b, strict=True)
    )
    return {'origin': differ(old, origin), 'after': differ(old, after)}

  found = observe(probe, norm='batch_norm')
  assert found['origin'] == 0
  assert found['after'] > 0


@pytest.mark.parametrize('dense', ['dense', 'prong'])
def test_layers_that_do_not_move_shift_nothing(dense):
  probe = probes.create('covariate_shift', {})
  for name, value in observe(probe, dense=dense, rate=0.0).items():
    if name.endswith('distance'):
      np.testing.assert_allclose(value, 0, atol=1e-5)


def test_norms_by_layer(by_hand):
  (kernels, biases), x = by_hand
  of_kernels, of_biases = gradients((kernels, biases), x, LABELS)
  found = measure('gradients')
  for k in range(2):
    norm = np.linalg.norm(of_kernels[k])
    np.testing.assert_allclose(found[f'dense/{k}/gradient'], norm, rtol=1e-4)
    np.testing.assert_allclose(
      found[f'dense/{k}/update'], RATE * norm, rtol=1e-4
    )
    np.testing.assert_allclose(
      found[f'dense/{k}/parameters'], np.linalg.norm(kernels[k]), rtol=1e-6
    )
    np.testing.assert_allclose(
      found[f'norms/{k}/gradient'], np.linalg.norm(of_biases[k]), rtol=1e-4
    )


def test_whiteness_is_its_formula(by_hand):
  (kernels, biases), x = by_hand
  found = measure('whiteness')
  h = x
  for name, kernel, bias in zip(NAMES, kernels, biases, strict=True):
    values = np.linalg.eigvalsh(np.cov(h.T, ddof=0))
    part = values / values.sum()
    correlations = np.corrcoef(h.T)
    off = correlations[~np.eye(len(values), dtype=bool)]
    expected = {
      'condition': values[-1] / values[0],
      'rank': np.exp(-np.sum(part * np.log(part))),
      'correlation': np.sqrt(np.mean(off**2)),
    }
    for key, value in expected.items():
      np.testing.assert_allclose(found[f'{name}/{key}'], value, rtol=2e-3)
    h = 1 / (1 + np.exp(-(h @ kernel + bias)))


def test_inputs_that_do_not_vary_have_a_whiteness():
  first, parts = start()
  images = np.full_like(IMAGES, 7)
  probe = functools.partial(
    probing.probe,
    measure=probes.create('whiteness', {}),
    to_input=to_input,
    **parts,
  )
  found = jax.jit(probe)(first, step.Examples(images, LABELS))
  assert all(np.isfinite(value) for value in found.values())
  assert found['dense/0/correlation'] == 0


def test_layers_are_in_the_order_of_their_use():
  class Backwards(nnx.Module):
    """The names are in the opposite order of the calls."""

    def __init__(self, *, input_shape, num_classes, norm, rngs):
      self.c = nnx.Linear(6, 3, rngs=rngs)
      self.a = norm('a', 3, rngs=rngs)
      self.b = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, x, *, train, tap=lambda name, value: value):
      h = self.a(self.c(x.reshape(len(x), -1)), use_running_average=not train)
      return self.b(h)

  norm = models.normalization.create('norm', 'batch_norm')
  layer = lambda place, size, rngs: models.layers.Norm(norm, size, rngs=rngs)
  model = Backwards(
    input_shape=(6,), num_classes=4, norm=layer, rngs=nnx.Rngs(0)
  )
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  seen = probes.Observation(
    num_steps=jnp.zeros((), int),
    x=to_input(IMAGES),
    labels=jnp.asarray(LABELS),
    params=nnx.as_pure(params),
    rest=nnx.as_pure(rest),
    opt_state=(),
    losses=losses.losses,
    make_model=lambda *states: nnx.merge(graphdef, *states, copy=True),
    take_step=lambda: None,
  )
  found = layers.in_order(seen)
  # Leaves: a/bias, a/scale, b/bias, b/kernel, c/bias, c/kernel.
  assert [layer.name for layer in found] == ['c', 'b']
  assert [sorted(layer.weights) for layer in found] == [[4, 5], [2, 3]]
  assert [sorted(layer.others) for layer in found] == [[0, 1], []]


def test_a_probe_costs_a_gradient_a_layer_and_two():
  """Products of matrices in the program: three a layer and gradient at most."""
  first, parts = start()
  probe = functools.partial(
    probing.probe,
    measure=probes.create('covariate_shift', {}),
    to_input=to_input,
    **parts,
  )
  text = jax.jit(probe).lower(first, step.Examples(IMAGES, LABELS)).as_text()
  num_layers = 3
  one_gradient = 3 * num_layers - 1  # The first has no gradient of its input.
  assert text.count('dot_general') <= (num_layers + 2) * one_gradient


def test_what_a_probe_returns_can_be_stored():
  found = probes.arrays({'a': jnp.ones(2, jnp.bfloat16), 'b': 3, 'c': True})
  assert {k: v.dtype.name for k, v in found.items()} == {
    'a': 'float32',
    'b': 'int32',
    'c': 'bool',
  }


def test_constants_of_a_function_are_stored(user_module):
  user_module(
    'my_probe',
    'def mine(observation, factor=1):\n'
    '  return {"loss": factor * observation.loss()}\n'
    'mine.constants = {"size": 3}\n'
    'def twice(observation):\n'
    '  return {"size": 1}\n'
    'twice.constants = {"size": 3}\n'
    'def wrong(observation):\n'
    '  return {}\n'
    'wrong.constants = {"step": 3}\n',
  )
  probe = probes.create('mine', {'name': 'my_probe:mine', 'factor': 2})
  assert probes.constants(probe) == {'size': 3}
  assert observe(probe)['loss'] > 0
  with pytest.raises(ValueError, match="measures 'size', which is a constant"):
    observe(probes.create('twice', {'name': 'my_probe:twice'}))
  with pytest.raises(errors.UserError, match="the name 'step'"):
    probes.create('wrong', {'name': 'my_probe:wrong'})


@pytest.mark.parametrize(
  ('measured', 'message'),
  [
    ([1], 'returned a list; return a dict'),
    ({'step': 1}, "the name 'step'"),
    ({'file': 1}, "the name 'file'"),
    ({'a': 'b'}, "returned a str as 'a'"),
    ({'a': np.array([None])}, "returned object as 'a'; return arrays of num"),
    ({'a': np.array(['x'])}, "returned <U1 as 'a'; return arrays of num"),
    ({'a': jax.random.key(0)}, "as 'a'; return arrays of numbers"),
  ],
)
def test_what_cannot_be_stored_is_refused(measured, message):
  with pytest.raises(ValueError, match=message):
    probes.arrays(measured)


def test_a_class_without_a_call_is_no_probe(user_module):
  user_module(
    'my_class',
    'class Base:\n  def __call__(self, observation):\n    return {}\n'
    'class Heir(Base):\n  pass\n'
    'class Other:\n  pass\n',
  )
  assert probes.create('p', {'name': 'my_class:Heir'})
  with pytest.raises(errors.UserError, match=r'no method __call__\(obs'):
    probes.create('p', {'name': 'my_class:Other', 'limit': 2})
