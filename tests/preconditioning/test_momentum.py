"""What becomes of an optimizer's state when parameters change coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_research.preconditioning import momentum

PARAMS = {'kernel': jnp.zeros((3, 2)), 'bias': jnp.zeros(2)}
ONES = jax.tree.map(jnp.ones_like, PARAMS)
RATE = optax.linear_schedule(0.1, 0.0, 100)


def state_after_two_steps(optimizer):
  state = optimizer.init(PARAMS)
  for _ in range(2):
    _, state = optimizer.update(ONES, state, PARAMS)
  return state


@pytest.mark.parametrize('nesterov', [True, False])
def test_momentum_is_found_and_put_back(nesterov):
  optimizer = optax.sgd(RATE, 0.5, nesterov)
  state = state_after_two_steps(optimizer)
  (trace,) = momentum.momenta_of(state, PARAMS)
  np.testing.assert_allclose(trace['bias'], 1.5)
  carried = jax.tree.map(lambda leaf: 10 * leaf, trace)
  new = momentum.in_new_coordinates(
    state, PARAMS, [carried], optimizer, jnp.asarray(True)
  )
  assert jax.tree.structure(new) == jax.tree.structure(state)
  (found,) = momentum.momenta_of(new, PARAMS)
  np.testing.assert_allclose(found['bias'], 15)
  assert optax.tree.get(new, 'count') == 2


def test_descent_without_momentum_has_nothing_to_carry():
  optimizer = optax.sgd(0.1)
  state = state_after_two_steps(optimizer)
  assert momentum.momenta_of(state, PARAMS) == []
  new = momentum.in_new_coordinates(
    state, PARAMS, [], optimizer, jnp.asarray(True)
  )
  assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(
  'optimizer',
  [optax.adam(RATE), optax.adamw(RATE), optax.rmsprop(RATE, momentum=0.9)],
)
@pytest.mark.parametrize('is_new', [True, False])
def test_what_has_no_counterpart_restarts(optimizer, is_new):
  state = state_after_two_steps(optimizer)
  assert momentum.momenta_of(state, PARAMS) == []
  new = momentum.in_new_coordinates(
    state, PARAMS, [], optimizer, jnp.asarray(is_new)
  )
  found, _ = optimizer.update(ONES, new, PARAMS)
  first, _ = optimizer.update(ONES, optimizer.init(PARAMS), PARAMS)
  third, _ = optimizer.update(ONES, state, PARAMS)
  # It begins anew, but for the schedule of the learning rate.
  wanted = first['bias'] * RATE(2) / RATE(0) if is_new else third['bias']
  np.testing.assert_allclose(found['bias'], wanted, rtol=1e-5)
  assert not np.allclose(first['bias'], third['bias'], rtol=1e-2)
