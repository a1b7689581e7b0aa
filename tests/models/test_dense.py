"""The dense layer of a network, chosen by its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models
from bn_research.preconditioning import WhitenedDense

CONFIG = {'name': 'mlp', 'widths': (4, 3), 'norm': {'name': 'none'}}


def make(**changes):
  return models.create(CONFIG | changes, (6,), 5, jax.random.key(0))


@pytest.mark.parametrize(
  'dense', [None, {}, {'name': None, 'every': None}, {'name': 'dense'}]
)
def test_it_is_dense_unless_asked_for(dense):
  model = make(dense=dense)
  assert all(type(layer) is nnx.Linear for layer in model.dense)
  assert type(model.output) is nnx.Linear


@pytest.mark.parametrize('dense_bias', [True, False])
def test_in_whitened_coordinates_it_begins_as_the_same_network(dense_bias):
  options = {'name': 'prong', 'every': 7, 'epsilon': 0.5, 'decay': None}
  model = make(dense=options, dense_bias=dense_bias)
  for layer in (*model.dense, model.output):
    assert isinstance(layer, WhitenedDense)
    assert layer.every == 7
    assert layer.whiten.epsilon == 0.5
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
  np.testing.assert_allclose(
    model(x, train=True),
    make(dense_bias=dense_bias)(x, train=True),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_bias_is_of_one_or_the_other():
  for dense_bias in (True, False):
    model = make(dense_bias=dense_bias)
    for dense, norm in zip(model.dense, model.norms, strict=True):
      assert (dense.bias is None) != dense_bias
      assert (norm.bias is None) == dense_bias
    assert model.output.bias is not None


@pytest.mark.parametrize(
  ('dense', 'message'),
  [
    ({'name': 'pong'}, "'pong' is unknown .*; there are dense, prong"),
    ({'name': 'dense', 'every': 2}, "'dense' has no option 'every'"),
    ({'name': 'prong', 'every': 0}, 'every=0; choose at least 1 step'),
    (
      {'name': 'prong', 'epsilon': -1.0},
      'epsilon=-1.0 must be finite and at least 0',
    ),
    ({'name': 'prong', 'decay': 2.0}, 'must be in'),
  ],
)
def test_what_a_config_gets_wrong(dense, message):
  with pytest.raises(errors.UserError, match=message):
    make(dense=dense)
