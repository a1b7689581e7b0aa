import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import data, optim
from bn_research.training import evaluated, evaluation, mesh, state, step


@pytest.mark.parametrize('num_devices', [1, 2, 8])
@pytest.mark.parametrize('num_examples', [1, 37, 10_000, 25_001])
def test_batches_hold_every_example_once(num_examples, num_devices):
  batches = evaluation.batches(num_examples, num_devices)
  assert batches.shape[1] % num_devices == 0
  assert batches.shape[1] <= 10_000 + num_devices
  np.testing.assert_array_equal(batches[batches >= 0], np.arange(num_examples))


@pytest.mark.parametrize(
  ('numbers', 'most'),
  [(64, 10_000), (32 * 32 * 3, 682), (224 * 224 * 3, 128)],
)
def test_large_images_come_in_smaller_batches(numbers, most):
  batches = evaluation.batches(25_001, 1, numbers)
  assert most / 2 < batches.shape[1] <= most
  np.testing.assert_array_equal(batches[batches >= 0], np.arange(25_001))
  (stack, *rest) = evaluated.stacks(25_001, 1, numbers)
  assert stack.shape[1] == batches.shape[1]
  assert len(rest) == (25_001 % stack.shape[1] > 0)


@pytest.mark.parametrize('num_devices', [1, 2, 8])
@pytest.mark.parametrize('num_examples', [1, 7, 37, 10_000, 25_001])
def test_stacks_hold_every_example_once(num_examples, num_devices):
  stacks = evaluated.stacks(num_examples, num_devices)
  assert len(stacks) <= 2
  assert stacks[0].shape[1] <= 10_000 + num_devices
  if num_examples >= num_devices:
    assert stacks[0].shape[1] % num_devices == 0
  found = np.concatenate([stack.ravel() for stack in stacks])
  np.testing.assert_array_equal(found, np.arange(num_examples))


@pytest.mark.parametrize('num_devices', [1, 8])
def test_results_are_means_over_all_examples(num_devices, monkeypatch):
  monkeypatch.setattr(evaluation, '_MAX_BATCH', 16)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (37, 3, 3, 1), np.uint8)
  labels = rng.integers(0, 4, 37, np.int32)
  optimizer = optim.create({'name': 'sgd', 'learning_rate': 1.0}, 10)
  config = {'name': 'mlp', 'widths': (), 'norm': {'name': 'none'}}
  graphdef, start = state.create(
    jax.random.key(0), config, (3, 3, 1), 4, optimizer
  )
  with jax.set_mesh(mesh.create(num_devices, num_devices)):
    results = jax.jit(
      lambda state, examples, indices: evaluation.evaluate(
        state,
        examples,
        indices,
        graphdef=graphdef,
        to_input=data.to_input,
        num_classes=4,
      )
    )(
      start,
      step.Examples(images, labels),
      evaluation.batches(37, num_devices),
    )

  kernel = np.asarray(start.params['output']['kernel'], np.float64)
  logits = images.reshape(37, -1) / 255 @ kernel
  logits -= np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(
    results['loss'], -logits[np.arange(37), labels].mean(), rtol=1e-6
  )
  np.testing.assert_allclose(
    results['accuracy'], (logits.argmax(1) == labels).mean(), rtol=1e-6
  )


def test_another_number_of_classes_is_told():
  config = {'name': 'mlp', 'widths': (), 'norm': {'name': 'none'}}
  optimizer = optim.create({'name': 'sgd', 'learning_rate': 1.0}, 10)
  graphdef, start = state.create(
    jax.random.key(0), config, (3, 3, 1), 4, optimizer
  )
  images = jnp.zeros((5, 3, 3, 1), jnp.uint8)
  examples = step.Examples(images, jnp.zeros(5, int))
  with (
    jax.set_mesh(mesh.create(1, 1)),
    pytest.raises(ValueError, match=r'shape \(5, 4\); return \(5, 3\)'),
  ):
    evaluation.evaluate(
      start,
      examples,
      evaluation.batches(5, 1),
      graphdef=graphdef,
      to_input=data.to_input,
      num_classes=3,
    )
