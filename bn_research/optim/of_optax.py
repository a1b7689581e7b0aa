"""The optimizers of optax by their names there."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# The arguments with which optax chooses the parameters that decay.
MASKS = ('mask', 'weight_decay_mask')


@functools.cache
def names() -> dict[str, Callable[..., Any]]:
  """Returns all functions from a learning rate to an optimizer, by name."""
  return {
    name: function
    for module in (optax.contrib, optax)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if not name.startswith(('_', 'scale_by_'))
    and 'learning_rate' in inspect.signature(function).parameters
  }


def factory(name: str) -> Callable[..., optax.GradientTransformation]:
  """Returns an optimizer of optax, with the checks of a part of a config.

  Args:
    name: A key of `names()`.

  Returns:
    A function with the options of the optimizer. The function raises a
    ValueError if optax refuses an option, if a number is not finite, or if an
    update needs more than the gradient and the parameters.
  """
  function = names()[name]

  def create(**options: Any) -> optax.GradientTransformation:
    for key, value in options.items():
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{key}={value!r}; choose a finite number')
    try:
      optimizer = function(**options)
      _try(optimizer)
    # The libraries raise errors of many types for an option that does not fit.
    except Exception as error:
      message = str(error).partition('\n')[0]
      raise ValueError(f'{name} of optax does not fit: {message}') from error
    return optimizer

  parameters = inspect.signature(function).parameters.values()
  signature = inspect.Signature([_plain(parameter) for parameter in parameters])
  create.__signature__ = signature  # type: ignore[attr-defined]
  return create


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
  """Returns a parameter with the type of the default as annotation."""
  # optax writes `ArrayLike` for numbers, and a text would fail much later.
  kind = type(parameter.default)
  is_plain = kind in (bool, int, float, str)
  annotation = kind if is_plain else inspect.Parameter.empty
  if kind is int and parameter.annotation is not int:
    annotation = float  # A number such as `1` in the place of `1.0`.
  return parameter.replace(
    kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation
  )


def _try(optimizer: optax.GradientTransformation) -> None:
  """Traces an update as in a run.

  Raises:
    TypeError: If an update needs an argument that a run does not give.
    ValueError: If an update changes the shapes or types of the state.
  """

  def update(params: Any) -> Any:
    state = optimizer.init(params)
    return state, optimizer.update(params, state, params)[1]

  params = {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
  before, after = jax.eval_shape(update, params)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  if shapes(before) != shapes(after):
    raise ValueError('an update changes the types of the state')
