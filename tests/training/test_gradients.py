"""The gradient of a step: smoothed labels, and micro-batches."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bn_research import data, errors, hooks, optim, training, workdir
from bn_research.training import gradients, losses, mesh, state, step
from tests.quick import some

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 3, 3, 1), np.uint8)
LABELS = RNG.integers(0, 4, 16, np.int32)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_the_loss_takes_the_smoothed_label(smoothing):
  logits = RNG.normal(size=(6, 5)) * 3
  logits[0] = [1e4, -1e4, 0, 0, 0]  # e to these powers is no number
  labels = np.array([1, 0, 4, 2, 2, 3])
  shifted = logits - logits.max(1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  q = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
  found = losses.losses(
    jnp.asarray(logits, 'float32'), jnp.asarray(labels), smoothing
  )
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found, -(q * log_p).sum(1), rtol=1e-5)


def network(norm=None, dense='dense', **optimizer):
  """Returns the start of a network, and what a step of it needs."""
  config = {
    **{'name': 'mlp', 'widths': (6, 5), 'init_scale': 0.5},
    **{'norm': norm or {'name': 'none'}, 'dense': {'name': dense}},
  }
  made = optim.create({'name': 'sgd', 'learning_rate': 0.5} | optimizer, 10)
  graphdef, start = state.create(jax.random.key(0), config, (3, 3, 1), 4, made)
  return start, {'graphdef': graphdef, 'optimizer': made}


def take(start, parts, rule, rows=slice(None)):
  one = functools.partial(step.train_step, rule=rule, **parts)
  return jax.jit(one)(start, data.to_input(IMAGES[rows]), LABELS[rows])


def close(some_tree, others, rtol=1e-5, atol=1e-6):
  assert jax.tree.structure(some_tree) == jax.tree.structure(others)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol, atol),
    some_tree,
    others,
  )


@pytest.mark.parametrize(
  ('count', 'unroll'), some([(4, False), (2, True)], [(16, False), (8, True)])
)
def test_without_statistics_micro_batches_are_the_whole_batch(count, unroll):
  start, parts = network()
  whole = take(start, parts, gradients.Rule(0.1))
  found = take(start, parts, gradients.Rule(0.1, count, unroll))
  close(found, whole)


def test_a_step_takes_the_smoothed_labels():
  start, parts = network()
  model = nnx.merge(parts['graphdef'], start.params, start.rest)
  logits = np.float64(model(data.to_input(IMAGES), train=True))
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  q = 0.7 * np.eye(4)[LABELS] + 0.3 / 4
  found = take(start, parts, gradients.Rule(0.3))
  np.testing.assert_allclose(found.loss, -(q * log_p).sum(1).mean(), rtol=1e-5)


def accumulated(every, momentum=0.7):
  average = {'name': 'ema', 'momentum': momentum}
  population = {'name': 'accumulated', 'every': every, 'population': average}
  return {'name': 'batch_norm', 'population': population}


def test_micro_batches_normalize_alone_and_move_the_moments_once():
  start, parts = network(accumulated(4))
  found = take(start, parts, gradients.Rule(microbatches=4))
  # The parts of the batch, each a step of its own.
  alone = [
    take(start, parts, gradients.PLAIN, slice(part, None, 4))
    for part in range(4)
  ]
  grads = jax.tree.map(
    lambda *parts: np.mean(np.float64(parts), 0), *[one.grads for one in alone]
  )
  close(found.grads, grads)
  np.testing.assert_allclose(found.loss, np.mean([one.loss for one in alone]))
  # No norm comes before the first norm, whose inputs are hence those of the
  # whole batch.
  kernel = np.float64(start.params['dense'][0]['kernel'])
  z = (IMAGES.reshape(16, -1) / 255) @ kernel
  statistics = found.rest['norms'][0]['statistics']
  np.testing.assert_allclose(statistics['mean'], z.mean(0), rtol=1e-4)
  np.testing.assert_allclose(statistics['var'], z.var(0, ddof=1), rtol=1e-4)
  assert statistics['steps'] == 1


def test_a_plain_average_moves_with_every_micro_batch():
  norm = {'name': 'batch_norm', 'momentum': 0.7}
  start, parts = network(norm)
  found = take(start, parts, gradients.Rule(microbatches=4))
  kernel = np.float64(start.params['dense'][0]['kernel'])
  z = (IMAGES.reshape(16, -1) / 255) @ kernel
  mean, weight = 0, 0
  for part in range(4):
    mean = 0.7 * mean + 0.3 * z[part::4].mean(0)
    weight = 0.7 * weight + 0.3
  statistics = found.rest['norms'][0]['statistics']
  assert statistics['steps'] == 4
  np.testing.assert_allclose(statistics['mean'], mean / weight, rtol=1e-4)


@pytest.mark.parametrize(
  'options',
  some(
    [],
    [
      {'precondition': {'name': 'input_covariance', 'epsilon': 0.1}},
      {'dense': 'prong', 'momentum': 0.9},
    ],
  ),
)
def test_hooks_merge_the_moments_of_micro_batches(options):
  start, parts = network(**options)
  whole = take(start, parts, gradients.PLAIN)
  found = take(start, parts, gradients.Rule(microbatches=4))
  close(found, whole, rtol=1e-3, atol=1e-5)


def test_a_hook_that_cannot_merge_is_told():
  class Hook:
    def listen(self, model):
      return {}

    def before_update(self, descent, noted, **parts):
      return descent

  class Layer(nnx.Linear):
    step_hook = Hook()

  model = Layer(9, 4, rngs=nnx.Rngs(0))
  model.step_hook.listen(model)
  brought = hooks.Brought(model, optax.sgd(0.1).init({}))
  with pytest.raises(ValueError, match='Hook has no method merged for micro-b'):
    brought.merged([{}])


def test_a_batch_that_micro_batches_do_not_divide_is_told():
  start, parts = network()
  with pytest.raises(ValueError, match='microbatches=3 does not divide 16'):
    take(start, parts, gradients.Rule(microbatches=3))


@pytest.mark.parametrize('num_devices', some([], [2, 4]))
def test_no_example_moves_between_devices(num_devices):
  start, parts = network(accumulated(4))
  examples = step.Examples(IMAGES, LABELS)
  one = functools.partial(
    step.next_step,
    to_input=data.to_input,
    rule=gradients.Rule(microbatches=4),
    **parts,
  )
  batch = np.arange(16, dtype=np.int32)
  found = []
  for count in (1, num_devices):
    made = mesh.create(count, 16)
    with jax.set_mesh(made):
      given = mesh.replicate((start, examples, batch), made)
      compiled = jax.jit(one).lower(*given).compile()
      found.append(jax.device_get(compiled(*given)))
  close(found[1], found[0])
  text = compiled.as_text()
  # Only statistics are gathered, and no images, which have 9 numbers.
  gathers = re.findall(r'f32\[([\d,]+)\]\S* all-gather\(', text)
  assert gathers
  for shape in gathers:
    assert not shape.endswith((',9', ',3,3,1'))
  assert 'all-to-all' not in text
  assert 'collective-permute' not in text


@pytest.fixture
def small(config):
  config['probes'] = {}
  config['num_steps'], config['eval']['num_points'] = 12, 3
  return config


@pytest.mark.slow
@pytest.mark.usefixtures('loaded')
def test_a_run_with_micro_batches_goes_on_to_the_bit(small, tmp_path, results):
  small |= {'microbatches': 4, 'label_smoothing': 0.1, 'num_devices': 2}
  small['model']['norm'] = accumulated(4)
  small['optimizer']['average'] = 'ema'
  training.train(small, tmp_path / 'whole')
  training.train(small | {'num_steps': 6}, tmp_path / 'parts')
  training.train(small, tmp_path / 'parts')
  whole, parts = (results(tmp_path / name)[2] for name in ('whole', 'parts'))
  # The sum of the losses is of the steps since the last row.
  assert {k: v for k, v in parts.items() if 'loss_sum' not in k} == {
    k: v for k, v in whole.items() if 'loss_sum' not in k
  }


@pytest.mark.usefixtures('loaded')
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'microbatches': 3}, 'microbatches=3 on num_devices=1 does not divide'),
    (
      {'microbatches': 8, 'num_devices': 4},
      'microbatches=8 on num_devices=4 does not divide batch_size=16',
    ),
    ({'microbatches': 0}, 'microbatches=0; choose a whole number'),
    ({'label_smoothing': 1.0}, r'label_smoothing=1\.0; choose .* \[0, 1\)'),
    ({'label_smoothing': float('nan')}, 'label_smoothing=nan; choose'),
  ],
)
def test_what_does_not_fit_is_one_line(small, tmp_path, changes, message):
  with pytest.raises(errors.UserError, match=message):
    training.train(small | changes, tmp_path)


@pytest.mark.usefixtures('loaded')
def test_a_population_of_other_micro_batches_is_told(small, tmp_path):
  small['microbatches'] = 4
  small['model']['norm'] = accumulated(2)
  with pytest.raises(errors.UserError, match='accumulates every=2 micro-batch'):
    training.train(small, tmp_path)


@pytest.mark.parametrize(
  'norm', [None, {'name': 'layer_norm'}, {'name': 'batch_norm'}, accumulated(4)]
)
def test_other_populations_fit_any_number_of_micro_batches(norm):
  start, parts = network(norm)
  model = nnx.merge(parts['graphdef'], start.params, start.rest)
  gradients.check_populations(gradients.Rule(microbatches=4), model)


@pytest.mark.parametrize(
  'change', [{'label_smoothing': 0.5}, {'microbatches': 2}]
)
def test_a_probe_takes_the_step_of_the_training(
  change, config, tmp_path, loaded
):
  del loaded
  config |= {'num_steps': 1, 'probes': {'gradients': {}}}
  found = []
  for name, changes in (('plain', {}), ('changed', change)):
    training.train({**copy.deepcopy(config), **changes}, tmp_path / name)
    arrays = workdir.read_probe(tmp_path / name, 'gradients')
    # The parameters before the first step are the same in both runs.
    found.append({k: v[0] for k, v in arrays.items() if 'grad' in k})
  assert found[0]
  for key, plain in found[0].items():
    assert not np.allclose(plain, found[1][key], rtol=1e-3), key
