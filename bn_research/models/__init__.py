"""Networks that are given a norm, and never ask which one it is."""

import functools
import math
from collections.abc import Mapping, Sequence
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
    UserError: If a name or an option is unknown, or has a wrong value.
  """
  options = dict(config)
  norm = functools.partial(layers.Norm, _normalization(options.pop('norm')))
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
  try:
    return norms.create(**options)
  except (TypeError, ValueError) as error:
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
