"""The base class of normalizations made of normalizations, and its parts.

A combination has the methods of a `Normalization`, and can replace a
`Normalization`. Each class describes the state and the learned parameters,
which hold the states and the parameters of the parts.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp

from bn_research.norms import checks
from bn_research.norms.axes import Normalizer, State
from bn_research.norms.pytrees import Node
from bn_research.norms.statistics.memory import rematerialized_but_statistics


class Combination(Node, abc.ABC):
  """The base class: checks of arguments, and the memory of the backward pass.

  The backward pass keeps `x` and statistics, and computes the results of the
  parts again, because each result is as large as `x`. All arithmetic is in
  float32 or a wider type, and only the end result is rounded.
  """

  @property
  @abc.abstractmethod
  def parts(self) -> tuple[Any, ...]:
    """The normalizers in the combination."""

  @abc.abstractmethod
  def with_parts(self, parts: tuple[Normalizer, ...]) -> Self:
    """Returns the same combination, but of the given parts."""

  @abc.abstractmethod
  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of each part, in the order of `parts`."""

  @abc.abstractmethod
  def state_of(self, states: tuple[State, ...]) -> State:
    """Undoes `states`: returns the state of the combination."""

  @abc.abstractmethod
  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the state before the first batch, made of the parts' states."""

  @abc.abstractmethod
  def learned(self, num_features: int, dtype: Any = jnp.float32) -> Any:
    """Returns the initial parameters besides scale and bias, a pytree."""

  @abc.abstractmethod
  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    """Computes the two results of `apply`, from checked arguments."""

  @property
  def remembers(self) -> bool:
    """Whether the population of a part remembers moments."""
    return any(part.remembers for part in self.parts)

  def apply(
    self,
    x: jax.Array,
    state: State = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Any = None,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, State]:
    """Normalizes `x`.

    `Normalization.apply` describes the arguments, except for two arguments.

    Args:
      x: Activations (batch, ..., features), floating.
      state: The result of `init`, or the state from the last call. () is enough
        if no part has a population.
      scale: As in `Normalization.apply`.
      bias: As in `Normalization.apply`.
      learned: The result of `learned`, or the parameters after training. None
        is enough if no part has parameters.
      use_running: As in `Normalization.apply`, for each part with a population.
      update: As in `Normalization.apply`, for each part.
      mask: As in `Normalization.apply`.
      dtype: As in `Normalization.apply`.

    Returns:
      An array of the shape of `x`, and the next state.

    Raises:
      TypeError: If `x` or `dtype` is not floating.
      ValueError: If shapes do not fit, or if `state` or `learned` is missing.
    """
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    dtype = checks.result_type(x, dtype)
    features = x.shape[-1]
    # The state of parts without a population is a nest of empty tuples. The
    # caller may give () instead.
    if isinstance(state, tuple) and state == ():
      state = _without_arrays(self.init, features, 'state', 'init')
    if learned is None:
      learned = _without_arrays(self.learned, features, 'learned', 'learned')
    run = _apply if self.is_static else _apply_with_arrays
    switches = bool(use_running), bool(update)
    state = self.state_of(self.states(state))
    return run(self, x, state, scale, bias, learned, mask, dtype, switches)

  def _run(self, x, state, scale, bias, learned, mask, dtype, switches):
    combine = functools.partial(
      self._combine, dtype=dtype, switches=Switches(*switches)
    )
    rematerialized = rematerialized_but_statistics(combine)
    return rematerialized(x, state, scale, bias, learned, mask)


_apply = jax.jit(Combination._run, static_argnums=(0, 7, 8), inline=True)
_apply_with_arrays = jax.jit(
  Combination._run, static_argnums=(7, 8), inline=True
)


@dataclasses.dataclass(frozen=True)
class Switches:
  """The switches `use_running` and `update` of `apply`, for each part."""

  use_running: bool
  update: bool

  def call(self, part, x, state, learned, mask, **options):
    """Applies a part.

    Args:
      part: A normalizer.
      x: Activations.
      state: The state of the part.
      learned: The parameters of the part.
      mask: None, or the mask.
      **options: Further arguments of `Normalizer.apply`.
    """
    # A part without a population would refuse `use_running=True`.
    return part.apply(
      x,
      state,
      learned=learned,
      mask=mask,
      use_running=self.use_running and part.remembers,
      update=self.update,
      **options,
    )


def _without_arrays(make, features: int, name: str, method: str) -> Any:
  """Returns the pytree that `make` makes, if the pytree has no arrays.

  Args:
    make: The method of the combination.
    features: The number of features, the argument of `make`.
    name: The name of the missing argument, for the message.
    method: The name of `make`, for the message.

  Raises:
    ValueError: If the pytree has arrays, which only the caller can give.
  """
  # Only the structure matters, so no array is made.
  tree = jax.eval_shape(functools.partial(make, features))
  if jax.tree.leaves(tree):
    raise ValueError(
      f'{name} is missing; give the result of `{method}({features})`, or the '
      'latest value.'
    )
  return tree


def mapped(change: Callable[[Any], Any], normalizer: Any) -> Any:
  """Applies `change` to a normalizer, or to each part of a combination.

  Args:
    change: A function from a normalizer to a normalizer.
    normalizer: A normalizer; combinations may be nested.
  """
  if not isinstance(normalizer, Combination):
    return change(normalizer)
  parts = tuple(mapped(change, part) for part in normalizer.parts)
  return normalizer.with_parts(parts)


def mapped_with_states(
  change: Callable[[Any, Any], Any], normalizer: Any, state: State
) -> State:
  """Returns a state with the changed states of all parts with a population.

  Args:
    change: A function from a normalizer and the state of the normalizer to a
      state.
    normalizer: A normalizer; combinations may be nested.
    state: The state of the normalizer.
  """
  if not isinstance(normalizer, Combination):
    return change(normalizer, state) if normalizer.remembers else state
  new = tuple(
    mapped_with_states(change, part, part_state)
    for part, part_state in with_parts_of(normalizer, state)
  )
  return normalizer.state_of(new)


def with_parts_of(
  normalizer: Combination, state: State
) -> Iterator[tuple[Any, Any]]:
  """Yields pairs: each part of a combination, and the state of the part."""
  yield from zip(normalizer.parts, normalizer.states(state), strict=True)


def with_states(normalizer: Any, state: State) -> Iterator[tuple[Any, Any]]:
  """Yields pairs of a normalizer with a population and the state.

  A combination gives a pair for each part with a population, also in nested
  combinations.
  """
  if isinstance(normalizer, Combination):
    for part, part_state in with_parts_of(normalizer, state):
      yield from with_states(part, part_state)
  elif normalizer.remembers:
    yield normalizer, state
