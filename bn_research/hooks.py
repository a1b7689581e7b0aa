"""What a part of a run brings along to every step of the training.

A step descends the gradient, and knows no more. A layer or an optimizer may
have to do more in a step, such as to move its coordinates. It brings a `Hook`
along then: the layer, or the state of the optimizer, has an attribute
`step_hook`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import optax
from flax import nnx


class Descent(NamedTuple):
  """What a step is about to update, after the gradient is known.

  Attributes:
    params: The parameters of the model.
    rest: What else the model holds, such as running statistics.
    grads: The gradient, like `params`.
    opt_state: The state of the optimizer.
    given: More arguments, by name, of the `update` of the optimizer.
  """

  params: nnx.State
  rest: nnx.State
  grads: nnx.State
  opt_state: optax.OptState
  given: dict[str, Any]


class Hook(Protocol):
  """What is done in a step beside the descent."""

  def listen(self, model: nnx.Module) -> Any:
    """Makes a model, about to be called for the gradient, note what it sees.

    Args:
      model: A copy of the model, which may be changed.

    Returns:
      A pytree, such as an empty dict which the call of the model fills.
    """

  def before_update(
    self,
    descent: Descent,
    noted: Any,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
  ) -> Descent:
    """Changes what the optimizer is about to update.

    Args:
      descent: Between the gradient and the update.
      noted: What `listen` returned, filled.
      graphdef: The graph of the model.
      optimizer: The optimizer.
    """


class Brought:
  """The hooks of the layers of a model, and of an optimizer, each once."""

  def __init__(self, model: nnx.Module, opt_state: optax.OptState):
    """Finds the hooks.

    Args:
      model: The model.
      opt_state: The state of the optimizer.
    """
    owners: list[Any] = [layer for _, layer in nnx.iter_modules(model)]

    def see(node: Any) -> bool:
      owners.append(node)
      return False

    jax.tree.leaves(opt_state, is_leaf=see)
    hooks = (getattr(owner, 'step_hook', None) for owner in owners)
    self._hooks = list(dict.fromkeys(hook for hook in hooks if hook))

  def listen(self, model: nnx.Module) -> list[Any]:
    """Lets all hooks listen to a model."""
    return [hook.listen(model) for hook in self._hooks]

  def before_update(
    self, descent: Descent, noted: list[Any], **parts: Any
  ) -> Descent:
    """Returns the descent after all hooks, given what `listen` returned."""
    for hook, found in zip(self._hooks, noted, strict=True):
      descent = hook.before_update(descent, found, **parts)
    return descent
