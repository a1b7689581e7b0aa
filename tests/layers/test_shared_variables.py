"""Variables that several layers share stay shared, or keep their values."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bn_research import norms
from bn_research.layers import nnx as layers
from bn_research.layers.nnx import surgery

X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)


class Tied(nnx.Module):
  """Two linear layers with one kernel and one bias, and a norm after each."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.a, self.b = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
    self.b.kernel, self.b.bias = self.a.kernel, self.a.bias
    self.first, self.second = (
      layers.Norm(norms.batch_norm(0.5), 4, rngs=rngs) for _ in range(2)
    )
    self.second.scale = self.first.scale

  def __call__(self, x):
    return self.second(self.b(jnp.tanh(self.first(self.a(x)))))


def test_folding_leaves_the_kernel_of_a_tied_layer():
  for pairs in (
    {('first',): ('a',)},
    {('first',): ('a',), ('second',): ('b',)},
  ):
    model = Tied()
    model(X)
    model.eval()
    expected = model(X)
    surgery.fold(model, pairs)
    np.testing.assert_allclose(model(X), expected, atol=1e-5)


def test_replacing_keeps_a_tied_scale_tied():
  model = Tied()
  surgery.replace(model, lambda _: norms.group_norm(2))
  assert model.first.scale is model.second.scale
  loss = lambda model: (model(X) ** 2).sum()
  before = model.first.scale[...]
  gradients = nnx.grad(loss)(model)
  assert jnp.abs(gradients['first']['scale'][...]).max() > 0
  model.first.scale.set_value(before + 1)
  np.testing.assert_array_equal(model.second.scale[...], before + 1)


def test_replacing_keeps_the_variables_of_a_mixture():
  """An optimizer may hold the logits."""
  mixture = norms.Mixture((norms.batch_norm(), norms.layer_norm()))
  model = nnx.Sequential(layers.Norm(mixture, 4, rngs=nnx.Rngs(0)))
  logits = model.layers[0].learned['logits']
  surgery.replace(model, norms.freeze)
  assert model.layers[0].learned['logits'] is logits
