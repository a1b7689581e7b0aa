"""Re-estimation of models that are frozen in part, looped, or that raise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import nnx as layers
from bn_research.layers.nnx import reestimation, surgery


def batches():
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.standard_normal((50, 4)) * (k + 1) + 3 * k, 'f4')
    for k in range(3)
  ]


def call(model, x):
  return model(x)


def mean_of(layer):
  return np.asarray(layer.statistics.mean[...])


def test_frozen_moments_stay():
  first, second = (
    layers.Norm(norms.batch_norm(0.5), 4, rngs=nnx.Rngs(0)) for _ in range(2)
  )
  model = nnx.Sequential(first, second)
  model(batches()[0])
  surgery.replace(model, norms.freeze, lambda path: path == ('layers', 0))
  first = model.layers[0]
  before = mean_of(first)
  for in_order in (True, False):
    reestimation.reestimate(model, batches, call, in_order=in_order)
    np.testing.assert_array_equal(mean_of(first), before)
    # A frozen layer works as at inference, in every pass.
    hidden = first(jnp.concatenate(batches()))
    mean = np.asarray(hidden, np.float64).mean(0)
    np.testing.assert_allclose(mean_of(model.layers[1]), mean, atol=1e-5)
  surgery.replace(model, norms.freeze)
  with pytest.raises(ValueError, match='no normalization in the model has run'):
    reestimation.reestimate(model, batches, call)


def test_frozen_parts_of_a_combination_stay():
  chain = norms.Chain((norms.freeze(norms.batch_norm()), norms.batch_norm()))
  model = nnx.Sequential(layers.Norm(chain, 4, rngs=nnx.Rngs(0)))
  (layer,) = model.layers
  layer.statistics[0].mean.set_value(jnp.full(4, 2.0))
  reestimation.reestimate(model, batches, call)
  fixed, measured = layer.statistics
  np.testing.assert_array_equal(fixed.mean[...], 2)
  assert fixed.steps[...] == 0
  whole = np.concatenate(batches()).astype(np.float64)
  expected = (whole.mean(0) - 2) / np.sqrt(1 + 1e-5)
  np.testing.assert_allclose(measured.mean[...], expected, atol=1e-5)


class _Branches(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.used, self.unused = (
      layers.Norm(norms.batch_norm(), 4, rngs=rngs) for _ in range(2)
    )

  def __call__(self, x):
    return self.used(x)


@pytest.mark.parametrize('in_order', [True, False])
def test_an_error_leaves_the_model_as_it_was(in_order):
  model = _Branches()
  with pytest.raises(ValueError, match="at \\('unused',\\) met no batch"):
    reestimation.reestimate(model, batches, call, in_order=in_order)
  np.testing.assert_array_equal(mean_of(model.used), 0)
  assert model.used.statistics.steps[...] == 0


class _Stack(nnx.Module):
  """Blocks in one module, stacked; `scan` calls them one after another."""

  def __init__(self):
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key):
      return layers.Norm(norms.batch_norm(0.5), 4, rngs=nnx.Rngs(key))

    self.blocks = create(jax.random.split(jax.random.key(0), 3))

  def scan(self, x):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def body(x, block):
      return jnp.tanh(block(x)) + 2 * x

    return body(x, self.blocks)

  def map(self, x):
    return nnx.vmap(lambda block, x: block(x), in_axes=(0, None))(
      self.blocks, x
    )


def test_layers_that_a_scan_calls_are_measured_together_or_refused():
  model = _Stack()
  with pytest.raises(ValueError, match=r"\('blocks',\).*in_order=False"):
    reestimation.reestimate(model, batches, _Stack.scan)
  np.testing.assert_array_equal(mean_of(model.blocks), 0)
  reestimation.reestimate(model, batches, _Stack.scan, in_order=False)
  whole = np.concatenate(batches()).astype(np.float64)
  np.testing.assert_allclose(mean_of(model.blocks)[0], whole.mean(0), rtol=1e-5)


def test_models_that_work_side_by_side_are_measured_in_order():
  model = _Stack()
  reestimation.reestimate(model, batches, _Stack.map)
  whole = np.concatenate(batches()).astype(np.float64)
  for mean in mean_of(model.blocks):
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-5)


def test_options_that_are_arrays_do_no_harm():
  for make in (
    lambda: layers.BatchNorm(4, epsilon=jnp.float32(0.1), rngs=nnx.Rngs(0)),
    lambda: layers.Norm(
      norms.batch_norm(jnp.float32(0.5)), 4, rngs=nnx.Rngs(0)
    ),
  ):
    model = nnx.Sequential(make())
    reestimation.reestimate(model, batches, call)
    whole = np.concatenate(batches()).astype(np.float64)
    (layer,) = model.layers
    statistics = layer if hasattr(layer, 'mean') else layer.statistics
    np.testing.assert_allclose(statistics.mean[...], whole.mean(0), rtol=1e-5)


@pytest.mark.slow
def test_stacked_models_with_a_schedule_are_measured():
  schedule = lambda steps: 0.1 / (1 + steps)
  norm = norms.batch_whitening('zca', epsilon=schedule, every=2)

  @nnx.vmap(in_axes=0, out_axes=0)
  def create(key):
    return layers.Norm(norm, 4, rngs=nnx.Rngs(key))

  model = _Stack()
  model.blocks = create(jax.random.split(jax.random.key(0), 3))
  reestimation.reestimate(model, batches, _Stack.map)
  alone = nnx.Sequential(layers.Norm(norm, 4, rngs=nnx.Rngs(0)))
  reestimation.reestimate(alone, batches, call)
  (single,) = alone.layers
  expected = single.statistics.pair.spread[...]
  for found in model.blocks.statistics.pair.spread[...]:
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('in_order', [True, False])
def test_stacks_of_batches_are_measured_inside_jit(in_order):
  def new():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
      layers.BatchNorm(4, rngs=rngs),
      nnx.Linear(4, 4, rngs=rngs),
      jnp.tanh,
      layers.Norm(norms.batch_norm(), 4, rngs=rngs),
    )

  eager = new()
  reestimation.reestimate(eager, batches, call, in_order=in_order)
  graphdef, before = nnx.split(new())
  first, *rest = batches()

  @jax.jit
  def measure(state, *stacks):
    model = nnx.merge(graphdef, state)
    reestimation.reestimate(model, stacks, call, in_order=in_order)
    return nnx.state(model)

  after = measure(before, jnp.stack(rest), first[None])
  for a, b in zip(
    jax.tree.leaves(after), jax.tree.leaves(nnx.state(eager)), strict=True
  ):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_layer_that_met_no_batch_inside_jit_keeps_its_moments():
  model = _Branches()
  model.unused(batches()[0])
  before = nnx.clone(model).unused

  @nnx.jit
  def measure(model, stack):
    reestimation.reestimate(model, [stack], call)

  measure(model, batches()[0][None])
  for a, b in zip(
    jax.tree.leaves(nnx.state(model.unused)),
    jax.tree.leaves(nnx.state(before)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  mean = np.asarray(batches()[0], np.float64).mean(0)
  np.testing.assert_allclose(mean_of(model.used), mean, atol=1e-5)


class _Backwards(nnx.Module):
  """Calls the layers against the order of their names."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.a, self.b = (
      layers.Norm(norms.batch_norm(), 4, rngs=rngs) for _ in range(2)
    )
    self.dense = nnx.Linear(4, 4, rngs=rngs)

  def __call__(self, x):
    return self.a(jnp.tanh(self.dense(self.b(x))))


def test_layers_are_measured_in_the_order_of_their_calls():
  model = _Backwards()
  reestimation.reestimate(model, batches, call)
  x = np.concatenate(batches()).astype(np.float64)
  hidden = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
  kernel, bias = (
    np.asarray(p[...], np.float64)
    for p in (model.dense.kernel, model.dense.bias)
  )
  expected = np.tanh(hidden @ kernel + bias).mean(0)
  np.testing.assert_allclose(mean_of(model.a), expected, atol=1e-5)
