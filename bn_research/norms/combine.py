"""Normalizations made of normalizations.

A combination has the calls of a `Normalization` and plugs in where a
`Normalization` does. The state of a combination, and what it learns, are tuples
of the states of its parts, and of what these learn.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks
from bn_research.norms.axes import Normalizer, State
from bn_research.norms.pytrees import Node
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.memory import rematerialized_but_statistics
from bn_research.norms.statistics.moments import apply_mask, wide_type
from bn_research.norms.statistics.views import as_tuples


class Combination(Node, abc.ABC):
  """What surrounds the parts: checks, and what the backward pass keeps.

  The backward pass keeps `x` and statistics. What a part makes of `x` is as
  large as `x`, and is computed again. Nothing is rounded before the end.
  """

  @property
  @abc.abstractmethod
  def parts(self) -> tuple[Any, ...]:
    """The normalizers that this one is made of."""

  @abc.abstractmethod
  def with_parts(self, parts: tuple[Normalizer, ...]) -> Self:
    """Returns the same combination of other parts."""

  @abc.abstractmethod
  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of each part."""

  @abc.abstractmethod
  def state_of(self, states: tuple[State, ...]) -> State:
    """Undoes `states`."""

  @abc.abstractmethod
  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the states of the parts."""

  @abc.abstractmethod
  def learned(self, num_features: int, dtype: Any = jnp.float32) -> Any:
    """Returns what is learned beside scale and bias."""

  @abc.abstractmethod
  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    """Does what `apply` says, with arguments that were checked."""

  @property
  def remembers(self) -> bool:
    """Whether a part has moments of a population."""
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
    """Normalizes `x`; arguments as for `Normalization.apply`."""
    x, mask, scale, bias = checks.activations(x, mask, scale, bias)
    dtype = checks.result_type(x, dtype)
    features = x.shape[-1]
    if isinstance(state, tuple) and state == ():
      state = _without_arrays(self.init, features, 'state', 'init')
    if learned is None:
      learned = _without_arrays(self.learned, features, 'learned', 'learned')
    run = _apply if self.is_static else _apply_with_arrays
    switches = bool(use_running), bool(update)
    return run(self, x, state, scale, bias, learned, mask, dtype, switches)

  def _run(self, x, state, scale, bias, learned, mask, dtype, switches):
    combine = functools.partial(
      self._combine, dtype=dtype, switches=_Switches(*switches)
    )
    rematerialized = rematerialized_but_statistics(combine)
    return rematerialized(x, state, scale, bias, learned, mask)


_apply = jax.jit(Combination._run, static_argnums=(0, 7, 8), inline=True)
_apply_with_arrays = jax.jit(
  Combination._run, static_argnums=(7, 8), inline=True
)


@dataclasses.dataclass(frozen=True)
class _Switches:
  """The two switches of `apply`, handed to each part."""

  use_running: bool
  update: bool

  def call(self, part, x, state, learned, mask, **options):
    """Applies a part, which uses running moments if the part has any."""
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
  """Returns what `make` makes, if there are no arrays in it.

  Raises:
    ValueError: If there are some.
  """
  tree = jax.eval_shape(functools.partial(make, features))
  if jax.tree.leaves(tree):
    raise ValueError(
      f'{name} is missing; give what `{method}({features})` returns, or what'
      ' the last call did.'
    )
  return tree


class _Several(Combination):
  """A combination whose field `parts` has its parts."""

  def __post_init__(self):
    object.__setattr__(self, 'parts', as_tuples(self.parts))
    if not self.parts:
      raise ValueError(
        f'{type(self).__name__} has no parts; give one normalization at least.'
      )

  @property
  def scales(self) -> bool:
    """Whether a part takes a scale away."""
    return any(part.scales for part in self.parts)

  def with_parts(self, parts: tuple[Normalizer, ...]) -> Self:
    """Returns the same combination of other parts."""
    return dataclasses.replace(self, parts=parts)  # type: ignore[type-var]

  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of each part."""
    return tuple(state)

  def state_of(self, states: tuple[State, ...]) -> State:
    """Returns the states themselves."""
    return states

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the state of each part."""
    return tuple(part.init(num_features, dtype) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Chain(_Several):
  """One normalization after the other: y = Nₖ(... N₂(N₁(x))).

  Whitening the whitened once more is the refinement of whitening: the
  covariance of the second is near I, so that it is known to full precision.

  Attributes:
    parts: First to last. Scale and bias go to the last.
  """

  parts: tuple[Any, ...] = ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> tuple[Any, ...]:
    """Returns what is learned in each part beside scale and bias."""
    return tuple(part.learned(num_features, dtype) for part in self.parts)

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    last = {'scale': scale, 'bias': bias, 'dtype': dtype}
    states = []
    for k, part in enumerate(self.parts):
      is_last = k == len(self.parts) - 1
      options = last if is_last else {'dtype': wide_type(x)}
      x, new = switches.call(part, x, state[k], learned[k], mask, **options)
      states.append(new)
    return x, tuple(states)


@dataclasses.dataclass(frozen=True)
class Mixture(_Several):
  """A learned mixture: y = Σₖ wₖ Nₖ(x) · scale + bias, w = softmax(logits).

  Switchable normalization and whitening mix the moments instead, before one
  map; mixing results admits any parts, of any scope and map.

  Attributes:
    parts: What is mixed; equally at first.

  Source: after Luo et al. (2018) and Pan et al. (2019), which mix moments.
  """

  parts: tuple[Any, ...] = ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, Any]:
    """Returns `logits` (parts,), and what is learned in each part."""
    parts = tuple(part.learned(num_features, dtype) for part in self.parts)
    return {'logits': jnp.zeros(len(self.parts), dtype), 'parts': parts}

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    within = wide_type(x)
    weights = jax.nn.softmax(learned['logits']).astype(within)
    total, states = jnp.zeros((), within), []
    for k, part in enumerate(self.parts):
      extra = learned['parts'][k]
      y, new = switches.call(part, x, state[k], extra, mask, dtype=within)
      total = total + weights[k] * y
      states.append(new)
    return _affine(total, scale, bias, mask).astype(dtype), tuple(states)


@dataclasses.dataclass(frozen=True)
class Coloured(Combination):
  """A learned full matrix after a normalization: y = C N(x) · scale + bias.

  What batch normalization's scale gives back to each feature, this gives to
  all directions.

  Attributes:
    normalization: Commonly a whitening.

  Source: Siarohin et al. (2019), Section 3.1.
  """

  normalization: Any

  scales = False

  @property
  def parts(self) -> tuple[Any, ...]:
    """The normalization."""
    return (self.normalization,)

  def with_parts(self, parts: tuple[Normalizer, ...]) -> 'Coloured':
    """Returns the colouring of another normalization."""
    return dataclasses.replace(self, normalization=parts[0])

  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of the normalization."""
    return (state,)

  def state_of(self, states: tuple[State, ...]) -> State:
    """Returns the one state."""
    return states[0]

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the state of the normalization."""
    return self.normalization.init(num_features, dtype)

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, Any]:
    """Returns `colouring` (num_features, num_features), the identity."""
    inner = self.normalization.learned(num_features, dtype)
    return {'colouring': jnp.eye(num_features, dtype=dtype), 'inner': inner}

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    part, inner, within = self.normalization, learned['inner'], wide_type(x)
    y, state = switches.call(part, x, state, inner, mask, dtype=within)
    matrix = learned['colouring'].T.astype(within)
    y = jnp.matmul(y, matrix, precision=lax.Precision.HIGHEST)
    y = meshes.cut_like(_affine(y, scale, bias, mask), x)
    return y.astype(dtype), state


def mapped(change: Callable[[Any], Any], normalizer: Any) -> Any:
  """Applies `change` to a normalizer, or to each that a combination is of."""
  if not isinstance(normalizer, Combination):
    return change(normalizer)
  parts = tuple(mapped(change, part) for part in normalizer.parts)
  return normalizer.with_parts(parts)


def mapped_with_states(
  change: Callable[[Any, Any], Any], normalizer: Any, state: State
) -> State:
  """Returns the state with `change(normalizer, state)` for what remembers."""
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
  """Yields each part of a combination with its state."""
  yield from zip(normalizer.parts, normalizer.states(state), strict=True)


def with_states(normalizer: Any, state: State) -> Iterator[tuple[Any, Any]]:
  """Yields what remembers, with its state: parts, where it is a combination."""
  if isinstance(normalizer, Combination):
    for part, part_state in with_parts_of(normalizer, state):
      yield from with_states(part, part_state)
  elif normalizer.remembers:
    yield normalizer, state


def _affine(y, scale, bias, mask) -> jax.Array:
  y = y if scale is None else y * scale.astype(y.dtype)
  return apply_mask(mask, y if bias is None else y + bias.astype(y.dtype))
