"""A model is switched to our layers by its import, and by nothing else."""

import doctest
import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.layers import linen, nnx

_LINEN = """
    from flax import linen as nn
    from SOURCE.linen import BatchNorm, GroupNorm, LayerNorm

    class Block(nn.Module):
      features: int

      @nn.compact
      def __call__(self, x, train):
        x = nn.Dense(self.features, use_bias=False)(x)
        x = BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.relu(GroupNorm(num_groups=2)(x))

    class Net(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        x = Block(4)(Block(4)(x, train), train)
        return nn.Dense(3)(LayerNorm()(x.mean((1, 2))))
"""

_NNX = """
    from flax import nnx
    from SOURCE.nnx import BatchNorm, GroupNorm, LayerNorm

    class Net(nnx.Module):
      def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, use_bias=False, rngs=rngs)
        self.batch = BatchNorm(8, momentum=0.9, rngs=rngs)
        self.group = GroupNorm(8, num_groups=2, rngs=rngs)
        self.layer = LayerNorm(8, rngs=rngs)
        self.dense = nnx.Linear(8, 3, rngs=rngs)

      def __call__(self, x):
        x = nnx.relu(self.group(self.batch(self.first(x))))
        return self.dense(self.layer(x.mean((1, 2))))
"""


def _net(text, source):
  scope = {'__name__': source}
  exec(textwrap.dedent(text).replace('SOURCE', source), scope)
  return scope


def _images(seed):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(1, 1, (6, 8, 8, 3)), jnp.float32)


def _same(ours, flax):
  assert jax.tree.structure(ours) == jax.tree.structure(flax)
  for a, b in zip(*map(jax.tree.leaves, (ours, flax)), strict=True):
    assert np.isfinite(a).all()
    # Flax's variance is the fast one here, as it is by default.
    np.testing.assert_allclose(a, b, 1e-3, 1e-4)


def test_linen():
  results = []
  for source in ('bn_research.layers', 'flax'):
    model = _net(_LINEN, source)['Net']()
    init = jax.jit(functools.partial(model.init, train=False))
    train = jax.jit(
      functools.partial(model.apply, train=True, mutable=['batch_stats'])
    )
    variables = init(jax.random.key(0), _images(0))
    history = [variables]
    for step in range(3):
      y, moved = train(variables, _images(step))
      variables = {**variables, **moved}
      history.append((y, moved))
    evaluate = jax.jit(functools.partial(model.apply, train=False))
    history.append(evaluate(variables, _images(9)))
    results.append(history)
  _same(*results)


def test_nnx():
  results = []
  for source in ('bn_research.layers', 'flax'):
    scope = _net(_NNX, source)
    model = scope['Net'](scope['nnx'].Rngs(0))
    run = scope['nnx'].jit(lambda model, x: model(x))
    history = [scope['nnx'].to_pure_dict(scope['nnx'].state(model))]
    history += [run(model, _images(step)) for step in range(3)]
    model.eval()
    history.append(run(model, _images(9)))
    history.append(scope['nnx'].to_pure_dict(scope['nnx'].state(model)))
    results.append(history)
  _same(*results)


@pytest.mark.parametrize('module', [linen, nnx])
def test_the_examples_in_the_documentation_run(module):
  failures, tried = doctest.testmod(module)
  assert tried
  assert not failures
