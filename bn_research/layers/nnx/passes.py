"""The batches of each pass over a data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from bn_research.norms.checks import is_array

Batches = Callable[[], Iterable[Any]] | Sequence[Any]


def checked(batches: Batches) -> Batches:
  """Returns the batches of `reestimate`, after checks.

  An array (n, rows, features) may be a batch or a stack of batches. Outside of
  `jit` only a function is therefore taken. Inside of `jit` a sequence holds
  stacks, because a stack is the only form for a loop.

  Args:
    batches: The argument of `reestimate`.

  Raises:
    ValueError: If `batches` is neither a function nor, inside of `jit`, a list
      or a tuple of stacks.
  """
  if callable(batches):
    return _fresh(batches)
  if isinstance(batches, list | tuple) and any(
    isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batches)
  ):
    return batches
  raise ValueError(
    f'batches is a {type(batches).__name__}; give a function that returns the '
    'batches of a pass, such as `lambda: batches` for a list of batches, or '
    'inside of jit a list of traced stacks (num_batches, rows, ...).'
  )


def _fresh(batches: Callable[[], Iterable[Any]]) -> Callable[[], Iterable[Any]]:
  """Returns a function that checks the batches of each pass."""
  last: Any = None

  def fresh() -> Iterable[Any]:
    nonlocal last
    found: Any = batches()
    if is_array(found):
      raise ValueError(
        f'`batches` returned an array of shape {found.shape}; return a list of '
        'batches, [x] for a single batch x, or list(x) for a stack x.'
      )
    # The first pass took batches out of the iterator, which would be missing.
    if found is last and isinstance(found, Iterator):
      raise ValueError(
        '`batches` returned the same iterator for two passes; return new '
        'batches at every call, such as a list or a new generator.'
      )
    last = found
    return found

  return fresh


def first(batches: Batches) -> Any:
  """Returns one batch.

  Args:
    batches: The result of `checked`.

  Raises:
    ValueError: If there is no batch.
  """
  if not callable(batches):
    return jax.tree.map(lambda stack: stack[0], batches[0])
  for batch in batches():
    return batch
  raise ValueError('the model met no batch; `batches` must return some.')


def over(
  batches: Batches, advance: Callable[[Any, Any], Any], state: Any
) -> Any:
  """Returns the state after a pass.

  Args:
    batches: The result of `checked`.
    advance: A function from a state and a batch to the next state.
    state: The state before the pass.
  """
  if callable(batches):
    for batch in batches():
      state = advance(state, batch)
    return state
  for stack in batches:
    state, _ = jax.lax.scan(lambda s, b: (advance(s, b), None), state, stack)
  return state
