"""Normalizations made of normalizations: in sequence, mixed, or coloured."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms.axes import Normalizer, State
from bn_research.norms.combination import Combination
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.moments import affine, wide_type
from bn_research.norms.statistics.views import as_tuples


class _Several(Combination):
  """A combination with a field `parts`, and with a tuple of states."""

  def __post_init__(self):
    # Configs give lists. Tuples are hashable, as a static value of jit must be.
    object.__setattr__(self, 'parts', as_tuples(self.parts))
    if not self.parts:
      raise ValueError(
        f'{type(self).__name__} has no parts; give at least one normalization.'
      )

  @property
  def scales(self) -> bool:
    """Whether a part loses the scale of the activations."""
    return any(part.scales for part in self.parts)

  def with_parts(self, parts: tuple[Normalizer, ...]) -> Self:
    """Returns the same combination, but of the given parts."""
    return dataclasses.replace(self, parts=parts)  # type: ignore[type-var]

  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of each part.

    A checkpoint may hold the states as a list, or as a dict with the numbers of
    the parts for keys.

    Raises:
      ValueError: If there is not one state for each part.
    """
    return self._of_parts('state', state, ())

  def _of_parts(self, name: str, given: Any, empty: Any) -> tuple[Any, ...]:
    """Returns a tuple with one entry for each part.

    Args:
      name: The name of the argument, for the message.
      given: A tuple, a list, or a dict with the numbers of the parts for keys.
      empty: The entry of a part that the dict leaves out.
    """
    count = len(self.parts)
    if isinstance(given, Mapping):
      by_number = {str(key): part for key, part in given.items()}
      # A checkpoint may leave out an empty entry.
      given = [by_number.get(str(k), empty) for k in range(count)]
    if not isinstance(given, list | tuple) or len(given) != count:
      raise ValueError(
        f'the argument {name} is a {type(given).__name__}, and '
        f'{type(self).__name__} needs a '
        f'tuple with one entry for each of its {count} parts, as `init` and '
        '`learned` make.'
      )
    return tuple(given)

  def state_of(self, states: tuple[State, ...]) -> State:
    """Returns `states` unchanged."""
    return states

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns a tuple of the initial states of the parts."""
    return tuple(part.init(num_features, dtype) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Chain(_Several):
  """Normalizations in sequence: y = Nₖ(... N₂(N₁(x))) · scale + bias.

  A chain of two whitenings refines the whitening. The second whitening meets a
  covariance near I, whose root has full precision.

  Attributes:
    parts: The normalizations, first to last. The last part applies scale and
      bias.
  """

  parts: tuple[Any, ...] = ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> tuple[Any, ...]:
    """Returns a tuple of the initial parameters of the parts."""
    return tuple(part.learned(num_features, dtype) for part in self.parts)

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    last = {'scale': scale, 'bias': bias, 'dtype': dtype}
    learned = self._of_parts('learned', learned, {})
    states = []
    for k, part in enumerate(self.parts):
      is_last = k == len(self.parts) - 1
      # Only the last part rounds, so the parts before stay in a wide type.
      options = last if is_last else {'dtype': wide_type(x)}
      x, new = switches.call(part, x, state[k], learned[k], mask, **options)
      states.append(new)
    return x, tuple(states)


@dataclasses.dataclass(frozen=True)
class Mixture(_Several):
  """A learned mixture of the results of normalizations.

    y = Σₖ wₖ Nₖ(x) · scale + bias,    w = softmax(logits)

  Switchable normalization and switchable whitening mix the moments instead,
  before one map. A mixture of results allows parts with any scope and any map.

  Attributes:
    parts: The normalizations, with equal weights before training.

  Source: after Luo et al. (2018) and Pan et al. (2019), which mix moments.
  """

  parts: tuple[Any, ...] = ()

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, Any]:
    """Returns `logits` (parts,), zero, and `parts`, a tuple for the parts."""
    parts = tuple(part.learned(num_features, dtype) for part in self.parts)
    return {'logits': jnp.zeros(len(self.parts), dtype), 'parts': parts}

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    within = wide_type(x)
    weights = jax.nn.softmax(learned['logits']).astype(within)
    total, states = jnp.zeros((), within), []
    extras = self._of_parts('learned', learned['parts'], {})
    for k, part in enumerate(self.parts):
      extra = extras[k]
      y, new = switches.call(part, x, state[k], extra, mask, dtype=within)
      total = total + weights[k] * y
      states.append(new)
    return affine(total, scale, bias, mask).astype(dtype), tuple(states)


@dataclasses.dataclass(frozen=True)
class Coloured(Combination):
  """A learned full matrix after a normalization: y = C N(x) · scale + bias.

  The scale of batch normalization gives a new scale to each feature. The matrix
  C gives a new scale to each direction.

  Attributes:
    normalization: A normalization, commonly a whitening.

  Source: Siarohin et al. (2019), Section 3.1.
  """

  normalization: Any

  scales = False

  @property
  def parts(self) -> tuple[Any, ...]:
    """The normalization, as a tuple of one part."""
    return (self.normalization,)

  def with_parts(self, parts: tuple[Normalizer, ...]) -> 'Coloured':
    """Returns the same combination, but of the given normalization."""
    return dataclasses.replace(self, normalization=parts[0])

  def states(self, state: State) -> tuple[State, ...]:
    """Returns the state of the normalization, as a tuple of one state."""
    return (state,)

  def state_of(self, states: tuple[State, ...]) -> State:
    """Undoes `states`."""
    return states[0]

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the initial state of the normalization."""
    return self.normalization.init(num_features, dtype)

  def learned(
    self, num_features: int, dtype: Any = jnp.float32
  ) -> dict[str, Any]:
    """Returns `colouring` (num_features, num_features), and `inner`.

    The initial `colouring` is the identity. `inner` has the parameters of the
    normalization.
    """
    inner = self.normalization.learned(num_features, dtype)
    return {'colouring': jnp.eye(num_features, dtype=dtype), 'inner': inner}

  def _combine(self, x, state, scale, bias, learned, mask, dtype, switches):
    # A checkpoint may leave out an empty dict.
    part, inner = self.normalization, learned.get('inner', {})
    within = wide_type(x)
    y, state = switches.call(part, x, state, inner, mask, dtype=within)
    # The rows of y are activations, so C N(x) is a product with Cᵀ from the
    # right. The default precision of accelerators would round below float32.
    matrix = learned['colouring'].T.astype(within)
    y = jnp.matmul(y, matrix, precision=lax.Precision.HIGHEST)
    y = meshes.cut_like(affine(y, scale, bias, mask), x)
    return y.astype(dtype), state
