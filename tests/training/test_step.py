import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import data, optim
from bn_research.training import mesh, state, step

LEARNING_RATE = 0.5


@pytest.fixture
def parts():
  """A network without a norm, and what a step of it needs."""
  optimizer = optim.create({'name': 'sgd', 'learning_rate': LEARNING_RATE}, 10)
  config = {'name': 'mlp', 'widths': (6,), 'norm': {'name': 'none'}}
  graphdef, start = state.create(
    jax.random.key(0), config | {'init_scale': 0.5}, (3, 3, 1), 4, optimizer
  )
  return start, {'graphdef': graphdef, 'optimizer': optimizer}


@pytest.fixture
def examples():
  rng = np.random.default_rng(0)
  return step.Examples(
    jnp.asarray(rng.integers(0, 256, (20, 3, 3, 1), np.uint8)),
    jnp.asarray(rng.integers(0, 4, 20, np.int32)),
  )


def run(parts, examples, indices, num_steps, start=None):
  first, fixed = parts
  with jax.set_mesh(mesh.create(1, indices.shape[1])):
    steps = jax.jit(
      functools.partial(step.train_steps, to_input=data.to_input, **fixed)
    )
    return steps(start or first, examples, indices, num_steps)


def test_a_step_descends_the_mean_cross_entropy(parts, examples):
  start, fixed = parts
  batch = slice(0, 5)
  images = data.to_input(examples.images[batch])
  labels = np.asarray(examples.labels[batch])
  after = step.train_step(start, images, examples.labels[batch], **fixed)

  # By hand, in float64: h = σ(xW + b), p = softmax(hV + c).
  x = np.asarray(examples.images[batch], np.float64).reshape(5, -1) / 255
  w, b, v, c = (np.asarray(leaf, np.float64) for leaf in weights(start))
  h = 1 / (1 + np.exp(-(x @ w + b)))
  p = np.exp(h @ v + c)
  p /= p.sum(1, keepdims=True)
  d = (p - np.eye(4)[labels]) / 5
  e = d @ v.T * h * (1 - h)
  expected = [w, b, v, c]
  for parameter, gradient in zip(
    expected, [x.T @ e, e.sum(0), h.T @ d, d.sum(0)], strict=True
  ):
    parameter -= LEARNING_RATE * gradient
  loss = -np.log(p[np.arange(5), labels]).mean()
  np.testing.assert_allclose(after.loss, loss, rtol=1e-6)
  for actual, value in zip(weights(after), expected, strict=True):
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-7)


def weights(train_state):
  params = train_state.params
  return (
    params['dense'][0]['kernel'],
    params['norms'][0]['bias'],
    params['output']['kernel'],
    params['output']['bias'],
  )


def test_many_steps_are_single_steps_in_a_row(parts, examples):
  indices = np.random.default_rng(1).integers(0, 20, (8, 5), np.int32)
  together = run(parts, examples, indices, 6)
  apart = None
  for i in range(6):
    apart = run(parts, examples, np.roll(indices, -i, axis=0), 1, apart)
  assert int(together.step) == 6
  for a, b in zip(
    jax.tree.leaves(together), jax.tree.leaves(apart), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_scalars_are_those_of_the_next_step(parts, examples):
  indices = np.random.default_rng(1).integers(0, 20, (8, 5), np.int32)
  fixed = parts[1]
  before = run(parts, examples, indices, 3)
  with jax.set_mesh(mesh.create(1, 5)):
    found = jax.jit(
      functools.partial(step.scalars, to_input=data.to_input, **fixed)
    )(before, examples, indices[3])
  batch = indices[3]
  new = step.train_step(
    before,
    data.to_input(examples.images[batch]),
    examples.labels[batch],
    **fixed,
  )
  expected = {
    'grad_norm': new.grads,
    'update_norm': jax.tree.map(jnp.subtract, new.params, before.params),
    'param_norm': new.params,
  }
  assert found.keys() == expected.keys()
  for name, tree in expected.items():
    leaves = [
      np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)
    ]
    norm = np.linalg.norm(np.concatenate(leaves))
    np.testing.assert_allclose(found[name], norm, rtol=1e-5)


def test_a_guarded_step_after_a_loss_that_is_not_finite_changes_nothing():
  optimizer = optim.create({'name': 'adamw', 'learning_rate': 0.1}, 10)
  config = {'name': 'mlp', 'widths': (6,), 'norm': {'name': 'batch_norm'}}
  graphdef, start = state.create(
    jax.random.key(0), config, (3, 3, 1), 4, optimizer, state.SCALARS
  )
  batch = step.Examples(np.ones((5, 3, 3, 1), np.uint8), np.arange(5) % 4)
  guarded = jax.jit(
    functools.partial(
      step.guarded_step,
      graphdef=graphdef,
      optimizer=optimizer,
      to_input=data.to_input,
    )
  )
  first, measured = guarded(start, batch)
  assert np.isfinite(measured.loss)
  assert measured.loss == first.loss
  assert not np.array_equal(weights(first)[0], weights(start)[0])
  for loss in (np.nan, np.inf, -np.inf):
    ended = first._replace(loss=jnp.float32(loss))
    after, _ = guarded(ended, batch)
    jax.tree.map(np.testing.assert_array_equal, after, ended)
  # Another step has to be taken after a finite loss.
  assert int(guarded(first, batch)[0].step) == 2


def test_losses_are_added_up_until_someone_asks(parts, examples):
  indices = np.random.default_rng(1).integers(0, 20, (3, 5), np.int32)
  total, current = 0.0, None
  for i in range(3):
    current = run(parts, examples, indices[i : i + 1], 1, current)
    total += float(current.loss)
  np.testing.assert_allclose(current.loss_sum, total, rtol=1e-6)


def test_nothing_is_taken_after_a_loss_that_is_not_finite(parts, examples):
  start, fixed = parts
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, start.params)
  start = start._replace(params=broken)
  after = run((start, fixed), examples, np.zeros((8, 5), np.int32), 8)
  assert int(after.step) == 1
  assert np.isnan(after.loss)
