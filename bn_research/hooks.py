"""Hooks of layers and optimizers, which every training step calls.

A training step computes the gradient and applies an update, and no more. A
layer or an optimizer may need more in each step, for example a move to new
coordinates. The layer, or the state of the optimizer, then has a `Hook` as the
attribute `step_hook`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import optax
from flax import nnx


class Descent(NamedTuple):
  """The state of a training step between the gradient and the update.

  Attributes:
    params: The parameters of the model.
    rest: The further variables of the model, for example running statistics.
    grads: The gradient, with the structure of `params`.
    opt_state: The state of the optimizer.
    given: Extra arguments of the method `update` of the optimizer, by name.
  """

  params: nnx.State
  rest: nnx.State
  grads: nnx.State
  opt_state: optax.OptState
  given: dict[str, Any]


class Hook(Protocol):
  """The additional work of a layer or of an optimizer in a training step.

  A hook must be hashable, for example a frozen dataclass: equal hooks of
  several layers count as a single hook.
  """

  def listen(self, model: nnx.Module) -> Any:
    """Makes the model record data in the forward pass of the gradient.

    Args:
      model: A copy of the model. The hook may change the copy.

    Returns:
      A pytree, for example an empty dict, which the forward pass fills.
    """

  def merged(self, noted: Any) -> Any:
    """Returns the notes of a mini-batch from the notes of micro-batches.

    A hook without this method refuses micro-batches.

    Args:
      noted: The result of `listen`, filled by each micro-batch. Each array has
        the micro-batches along a new first axis.
    """

  def before_update(
    self,
    descent: Descent,
    noted: Any,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
  ) -> Descent:
    """Returns a changed descent, from which the optimizer computes the update.

    Args:
      descent: The descent between the gradient and the update.
      noted: The result of `listen`, filled by the forward pass.
      graphdef: The graph definition of the model.
      optimizer: The optimizer.
    """


class Brought:
  """All hooks of a model and of an optimizer, without duplicates."""

  def __init__(self, model: nnx.Module, opt_state: optax.OptState):
    """Finds the hooks.

    Args:
      model: The model.
      opt_state: The state of the optimizer.
    """
    owners: list[Any] = [layer for _, layer in nnx.iter_modules(model)]

    # JAX calls `is_leaf` with every node of the state. With the result False,
    # the search continues below the node: in the parts of an `optax.chain`.
    def see(node: Any) -> bool:
      owners.append(node)
      return False

    jax.tree.leaves(opt_state, is_leaf=see)
    hooks = (getattr(owner, 'step_hook', None) for owner in owners)
    self._hooks = list(dict.fromkeys(hook for hook in hooks if hook))

  def listen(self, model: nnx.Module) -> list[Any]:
    """Calls the method `listen` of each hook, and returns all results."""
    return [hook.listen(model) for hook in self._hooks]

  def merged(self, noted: list[Any]) -> list[Any]:
    """Calls the method `merged` of each hook, and returns all results.

    Raises:
      ValueError: If a hook has no such method.
    """
    for hook in self._hooks:
      if not hasattr(hook, 'merged'):
        raise ValueError(
          f'{type(hook).__name__} has no method merged for micro-batches; set'
          ' config.microbatches to 1'
        )
    pairs = zip(self._hooks, noted, strict=True)
    return [hook.merged(found) for hook, found in pairs]

  @property
  def moves_parameters(self) -> bool:
    """Whether a hook moves the parameters to new coordinates."""
    return any(getattr(hook, 'moves_parameters', False) for hook in self._hooks)

  def before_update(
    self, descent: Descent, noted: list[Any], **parts: Any
  ) -> Descent:
    """Returns the descent after all hooks, from the result of `listen`."""
    for hook, found in zip(self._hooks, noted, strict=True):
      descent = hook.before_update(descent, found, **parts)
    return descent
