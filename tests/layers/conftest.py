"""Both families behind one face: a layer as a pure function of variables."""

import functools

import jax
import numpy as np
import pytest
from flax import linen, nnx

from bn_research.layers import linen as our_linen
from bn_research.layers import nnx as our_nnx

NAMES = ('BatchNorm', 'LayerNorm', 'RMSNorm', 'GroupNorm', 'InstanceNorm')

_jit = functools.partial(jax.jit, static_argnames='use_running_average')


class Linen:
  ours = our_linen
  flax = linen

  def make(self, source, name, num_features, x, **options):
    """Returns `apply(variables, x, **call) -> (y, variables)` and variables."""
    del num_features
    module = getattr(source, name)(**options)
    call = {'use_running_average': False} if name == 'BatchNorm' else {}
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)  # so no forward is computed
    variables = module.lazy_init(jax.random.key(1), like, **call)

    @_jit
    def apply(variables, x, **call):
      y, moved = module.apply(variables, x, mutable=['batch_stats'], **call)
      return y, {**variables, **moved}

    return apply, variables


class Nnx:
  ours = our_nnx
  flax = nnx

  def make(self, source, name, num_features, x, **options):
    del x
    module = getattr(source, name)(num_features, **options, rngs=nnx.Rngs(1))
    graph, variables = nnx.split(module)

    @_jit
    def apply(variables, x, **call):
      module = nnx.merge(graph, variables, copy=True)
      return module(x, **call), nnx.state(module)

    return apply, variables


@pytest.fixture(params=[Linen(), Nnx()], ids=['linen', 'nnx'])
def family(request):
  return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks most rows of linen slow.

  The layers of both families call the same functions of `flax_words` and
  `calls`. Each test keeps one row of linen, and all rows of nnx.
  """
  tested = set()
  for item in items:
    parameters = item.callspec.params if hasattr(item, 'callspec') else {}
    if isinstance(parameters.get('family'), Linen):
      if item.function in tested:
        item.add_marker(pytest.mark.slow)
      tested.add(item.function)


@pytest.fixture
def of_linen():
  return Linen()


@pytest.fixture
def of_nnx():
  return Nnx()


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


@pytest.fixture
def pair(family):
  """Makes the same layer of ours and of Flax, with the same random weights."""

  def make(name, x, num_features=None, *, flax_only=None, **options):
    features = num_features or x.shape[-1]
    reference = {**options, 'use_fast_variance': False, **(flax_only or {})}
    ours, empty = family.make(family.ours, name, features, x, **options)
    flax, variables = family.make(family.flax, name, features, x, **reference)
    assert same_tree(empty, variables)
    random = np.random.default_rng(0)
    weights = jax.tree.map(
      lambda a: np.asarray(random.uniform(0.5, 2, a.shape), a.dtype), variables
    )
    return ours, flax, jax.device_put(weights)

  return make


def same_tree(ours, flax):
  """Whether names, shapes, types and values are those of Flax."""
  ours, flax = (
    dict(jax.tree_util.tree_leaves_with_path(t)) for t in (ours, flax)
  )
  assert ours.keys() == flax.keys()
  for path, leaf in flax.items():
    assert ours[path].dtype == leaf.dtype
    np.testing.assert_array_equal(ours[path], leaf)
  return True


def batch_call(name, **call):
  """Arguments of a training call."""
  return {**call, 'use_running_average': False} if name == 'BatchNorm' else call


@pytest.fixture
def train():
  return batch_call


@pytest.fixture
def together():
  """Computes the same of both, in one program: half the compilations."""

  def compute(what, ours, flax, *arguments):
    program = jax.jit(lambda *a: (what(ours, *a), what(flax, *a)))
    return program(*arguments)

  return compute


@pytest.fixture
def close():
  """Asserts that arrays are finite, of one type, and nearly the same."""

  def check(ours, flax, rtol=2e-6, atol=2e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
      assert a.dtype == b.dtype
      a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
      assert np.isfinite(a).all()
      assert np.isfinite(b).all()
      np.testing.assert_allclose(a, b, rtol, atol)

  return check
