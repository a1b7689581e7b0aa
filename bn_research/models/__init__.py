"""Networks that are given a norm, and never ask which one it is."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from bn_research import errors, norms, registry
from bn_research.layers import nnx as layers
from bn_research.layers.nnx.whitened_dense import WhitenedDense
from bn_research.models import mlp

_MODELS = {'mlp': mlp.MLP}


def create(
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  key: jax.Array,
) -> nnx.Module:
  """Creates the model that a config names.

  Args:
    config: `name`, the model's own options, and `norm` with the `name` and the
      options of a normalization. `dense` may hold the `name` of a dense layer,
      `dense` or `prong`, and its options. Options that are None keep their
      defaults.
    input_shape: The shape of one example.
    num_classes: Number of logits.
    key: A `jax.random.key`; may be traced, and inside `jit` is where building a
      model is fast.

  Returns:
    A module that is called as `model(x, train=..., tap=...)`.

  Raises:
    UserError: If a name or an option is unknown, or has a wrong value; when the
      model is called, if the norm does not fit.
  """
  options = dict(config)
  norm = functools.partial(_Norm, _normalization(options.pop('norm')))
  dense = _dense(options.pop('dense', None) or {})
  return registry.create(
    'model',
    _MODELS,
    options,
    num_inputs=math.prod(input_shape),
    num_classes=num_classes,
    norm=norm,
    dense=dense,
    rngs=nnx.Rngs(key),
  )


def _normalization(config: Mapping[str, Any]) -> norms.Normalization:
  options = {k: v for k, v in config.items() if v is not None}
  with _naming_the_config():
    return norms.create(**options)


class _Norm(layers.Norm):
  """A norm that a config named: what does not fit its input is a mistake there.

  Such as a number of groups that does not divide the width.
  """

  def __call__(self, *args: Any, **options: Any) -> jax.Array:
    with _naming_the_config():
      return super().__call__(*args, **options)


@contextlib.contextmanager
def _naming_the_config() -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    if '\n' in str(error):  # JAX's, and so a mistake of ours.
      raise
    raise errors.UserError(f'config.model.norm: {error}') from error


def _dense(config: Mapping[str, Any]) -> mlp.DenseFactory:
  options = {
    'name': 'dense',
    **{k: v for k, v in config.items() if v is not None},
  }
  return registry.create('dense layer', _DENSE, options)


def _linear() -> mlp.DenseFactory:
  return nnx.Linear


def _prong(
  every: int = 100,
  epsilon: float = 1e-2,
  decay: float = 0.95,
  relative: bool = False,
) -> mlp.DenseFactory:
  if every < 1:
    raise errors.UserError(
      f'config.model.dense.every={every}; choose at least 1 step'
    )
  try:
    whiten = norms.Whiten('zca', epsilon=epsilon, relative=relative)
    population = norms.Ema(decay)
  except ValueError as error:
    raise errors.UserError(f'config.model.dense: {error}') from error
  return functools.partial(
    WhitenedDense, every=every, whiten=whiten, population=population
  )


_DENSE = {'dense': _linear, 'prong': _prong}
