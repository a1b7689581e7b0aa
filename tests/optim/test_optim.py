import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_research import errors, optim

GRADIENTS = [np.array([1.0, -2.0]), np.array([0.5, 3.0]), np.array([-1.0, 1.0])]


def descend(config, num_steps=3):
  """Returns the parameters after each step, from zeros."""
  optimizer = optim.create(config, num_steps)
  params = jnp.zeros(2)
  state = optimizer.init(params)
  path = []
  for gradient in GRADIENTS:
    updates, state = optimizer.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
    path.append(np.asarray(params))
  return path


def test_sgd():
  path = descend({'name': 'sgd', 'learning_rate': 0.5})
  np.testing.assert_allclose(path, -0.5 * np.cumsum(GRADIENTS, axis=0))


@pytest.mark.parametrize('momentum', [None, 0.0])
def test_sgd_without_momentum_remembers_nothing(momentum):
  config = {'name': 'sgd', 'learning_rate': 0.5, 'momentum': momentum}
  state = optim.create(config, 10).init(jnp.zeros(2))
  assert not list(optax.tree.get_all_with_path(state, 'trace'))


def test_momentum():
  path = descend({'name': 'sgd', 'learning_rate': 0.5, 'momentum': 0.9})
  velocity, expected = np.zeros(2), [np.zeros(2)]
  for gradient in GRADIENTS:
    velocity = 0.9 * velocity + gradient
    expected.append(expected[-1] - 0.5 * velocity)
  np.testing.assert_allclose(path, expected[1:], rtol=1e-6)


def test_adam_takes_steps_of_the_learning_rate():
  path = descend({'name': 'adam', 'learning_rate': 0.1, 'b1': 0.5})
  np.testing.assert_allclose(path[0], [-0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'rmsprop'])
def test_others_go_downhill(name):
  path = descend({'name': name, 'learning_rate': 0.1})
  assert (np.sign(path[0]) == -np.sign(GRADIENTS[0])).all()


@pytest.mark.parametrize(
  ('schedule', 'factors'),
  [
    ({'name': 'constant'}, [1, 1, 1]),
    ({'name': 'cosine'}, [1, 0.75, 0.25]),
    ({'name': 'cosine', 'alpha': 0.2}, [1, 0.8, 0.4]),
    ({'name': 'exponential', 'decay': 0.001}, [1, 0.1, 0.01]),
  ],
)
def test_schedules(schedule, factors):
  config = {'name': 'sgd', 'learning_rate': 0.5, 'schedule': schedule}
  steps = np.diff([np.zeros(2), *descend(config)], axis=0)
  expected = -0.5 * np.array(factors)[:, None] * GRADIENTS
  np.testing.assert_allclose(steps, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'name': 'sdg'},
      "optimizer='sdg' is unknown .*; there are adam, adamw",
    ),
    ({'nesterov': True}, 'nesterov needs a momentum above 0'),
    (
      {'momentom': 0.9},
      "'momentom' .*'momentum'.*; it has momentum, nest",
    ),
    (
      {'learning_rate': -1.0},
      r'schedule: learning_rate=-1\.0; choose a fin',
    ),
    ({'learning_rate': float('nan')}, r'learning_rate=nan; choose'),
    ({'learning_rate': float('inf')}, r'learning_rate=inf; choose'),
    (
      {'momentum': float('nan')},
      r'config\.optimizer: momentum=nan; choose .* \[0, 1\)',
    ),
    ({'name': 'adam', 'b1': 1.0}, r'optimizer: b1=1\.0; choose'),
    ({'name': 'adam', 'eps': -1.0}, r'optimizer: eps=-1\.0; choose'),
    ({'name': 'adamw', 'weight_decay': -1.0}, r'weight_decay=-1\.0; choose'),
    ({'name': 'rmsprop', 'decay': float('nan')}, r'decay=nan; choose'),
    (
      {'schedule': {'name': 'exponential', 'decay': 0.0}},
      r'optimizer\.schedule: decay=0\.0; choose .* above 0',
    ),
    ({'schedule': {'name': 'cosine', 'alpha': -1.0}}, r'alpha=-1\.0; choose'),
    (
      {'precondition': {'name': 'input_covariance', 'epsilon': float('nan')}},
      r'optimizer\.precondition: epsilon=nan; choose',
    ),
    (
      {'schedule': {'name': 'cos'}},
      "'cos' is unknown .*'cosine'.*; there are const",
    ),
  ],
)
def test_what_is_unknown_or_out_of_range_is_one_line(change, message):
  with pytest.raises(errors.UserError, match=message):
    optim.create({'name': 'sgd', 'learning_rate': 0.5} | change, 10)


def test_a_rate_that_would_be_left_out_is_told(user_module):
  user_module(
    'my_optimizer',
    'import optax\n'
    'def own(size=0.1): return optax.sgd(size)\n'
    'def takes(learning_rate): return optax.sgd(learning_rate)\n',
  )
  rate = {'learning_rate': 0.5}
  optim.create({'name': 'my_optimizer:takes', **rate}, 10)
  for config in (
    {'name': 'my_optimizer:own', **rate},
    {'name': 'sgd', 'schedule': 'my_optimizer:own', **rate},
  ):
    with pytest.raises(errors.UserError, match='has no argument learning_rate'):
      optim.create(config, 10)
