"""Layers that fit themselves to training inputs, before the first step.

A layer may compute variables from data, once, for example a kernel that whitens
patches of images. The layer has two attributes, and the method `__call__` fits
the layer to the input of the call while `is_fitting` is True:

    num_examples   the number of training examples that the layer asks for
    is_fitting     False, except inside of `fit`

The variables are no parameters (`nnx.Param`), so the optimizer leaves them
unchanged, and every checkpoint has them.
"""

from typing import Any

import jax
from flax import nnx


def fit(model: Any, x: jax.Array) -> None:
  """Fits the layers of a model to training inputs, by one call of the model.

  Each layer is fitted to the input of the layer. The layers before are fitted
  already, because the model calls them earlier. Inside of `jit`, XLA computes
  only what the layers use.

  Args:
    model: The model, which is changed in place.
    x: Inputs of the model, floating (num_examples, ...).
  """
  layers = _layers(model)
  for layer in layers:
    layer.is_fitting = True
  model(x, train=False)
  for layer in layers:
    layer.is_fitting = False


def num_examples(model: nnx.Module) -> int:
  """Returns the largest number of examples that a layer asks for; 0 if none."""
  return max((layer.num_examples for layer in _layers(model)), default=0)


def _layers(model: nnx.Module) -> list[Any]:
  return [
    layer
    for _, layer in nnx.iter_modules(model)
    if hasattr(layer, 'is_fitting')
  ]
