"""Normalizations made of normalizations.

They have the calls of a `Normalization` and plug in where one does; a state and
`learned` are tuples of those of the parts.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks, meshes
from bn_research.norms.memory import keeping_statistics
from bn_research.norms.moments import keep, wide_type


def _keeping_statistics(apply):
  """Lets `apply` keep `x` and statistics alone for the backward pass.

  What its parts make of `x`, each as large as it, is made again.
  """

  @functools.wraps(apply)
  def wrapped(self, x, state, *, dtype=None, **options):
    arrays = {k: v for k, v in options.items() if not isinstance(v, bool)}
    flags = {k: v for k, v in options.items() if isinstance(v, bool)}
    fixed = functools.partial(apply, self, dtype=dtype, **flags)
    again = keeping_statistics(fixed)
    return again(x, state, **arrays)

  return wrapped


@dataclasses.dataclass(frozen=True)
class Chain:
  """One normalization after the other: y = Nₖ(... N₂(N₁(x))).

  Whitening the whitened once more is the refinement of whitening: the
  covariance of the second is near I, so that it is known to full precision.

  Attributes:
    parts: First to last. Scale and bias go to the last.
  """

  parts: tuple[Any, ...]

  @property
  def remembers(self) -> bool:
    """Whether a part has moments of a population."""
    return any(part.remembers for part in self.parts)

  @property
  def scales(self) -> bool:
    """Whether a part takes a scale away."""
    return any(part.scales for part in self.parts)

  def init(self, num_features: int) -> tuple[Any, ...]:
    """Returns the state of each part."""
    return tuple(part.init(num_features) for part in self.parts)

  def learned(self, num_features: int) -> tuple[Any, ...]:
    """Returns what is learned in each part beside scale and bias."""
    return tuple(part.learned(num_features) for part in self.parts)

  @_keeping_statistics
  def apply(
    self,
    x,
    state,
    *,
    scale=None,
    bias=None,
    learned=None,
    dtype=None,
    **options,
  ) -> tuple[jax.Array, tuple[Any, ...]]:
    """Normalizes `x`; arguments as for `Normalization.apply`."""
    learned = _each(learned, self.parts)
    x, within, dtype = _typed(x, dtype)
    final = {'scale': scale, 'bias': bias, 'dtype': dtype}
    states = []
    for k, part in enumerate(self.parts):
      own = final if k == len(self.parts) - 1 else {'dtype': within}
      x, new = _apply(part, x, state[k], learned[k], options, **own)
      states.append(new)
    return x, tuple(states)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A learned mixture: y = Σₖ wₖ Nₖ(x) · scale + bias, w = softmax(logits).

  Switchable normalization and whitening mix the moments instead, before one
  map; mixing results admits any parts, of any scope and map.

  Attributes:
    parts: What is mixed; equally at first.

  Source: after Luo et al. (2018) and Pan et al. (2019), which mix moments.
  """

  parts: tuple[Any, ...]

  @property
  def remembers(self) -> bool:
    """Whether a part has moments of a population."""
    return any(part.remembers for part in self.parts)

  @property
  def scales(self) -> bool:
    """Whether a part takes a scale away."""
    return any(part.scales for part in self.parts)

  def init(self, num_features: int) -> tuple[Any, ...]:
    """Returns the state of each part."""
    return tuple(part.init(num_features) for part in self.parts)

  def learned(self, num_features: int) -> dict[str, Any]:
    """Returns `logits` (parts,), and what is learned in each part."""
    parts = tuple(part.learned(num_features) for part in self.parts)
    return {'logits': jnp.zeros(len(self.parts)), 'parts': parts}

  @_keeping_statistics
  def apply(
    self, x, state, *, scale=None, bias=None, learned, dtype=None, **options
  ) -> tuple[jax.Array, tuple[Any, ...]]:
    """Normalizes `x`; arguments as for `Normalization.apply`."""
    weights = jax.nn.softmax(learned['logits'])
    x, within, dtype = _typed(x, dtype)
    parts, states = zip(
      *(
        _apply(part, x, state[k], learned['parts'][k], options, dtype=within)
        for k, part in enumerate(self.parts)
      ),
      strict=True,
    )
    y = sum(w * part for w, part in zip(weights, parts, strict=True))
    y = _affine(y, scale, bias, options.get('mask'))
    return y.astype(dtype), states


@dataclasses.dataclass(frozen=True)
class Coloured:
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
  def remembers(self) -> bool:
    """Whether there are moments of a population."""
    return self.normalization.remembers

  def init(self, num_features: int) -> Any:
    """Returns the state of the normalization."""
    return self.normalization.init(num_features)

  def learned(self, num_features: int) -> dict[str, Any]:
    """Returns `colouring` (num_features, num_features), the identity."""
    inner = self.normalization.learned(num_features)
    return {'colouring': jnp.eye(num_features), 'inner': inner}

  @_keeping_statistics
  def apply(
    self, x, state, *, scale=None, bias=None, learned, dtype=None, **options
  ) -> tuple[jax.Array, Any]:
    """Normalizes `x`; arguments as for `Normalization.apply`."""
    x, within, dtype = _typed(x, dtype)
    inner = self.normalization, x, state, learned['inner'], options
    y, state = _apply(*inner, dtype=within)
    y = jnp.matmul(y, learned['colouring'].T, precision=lax.Precision.HIGHEST)
    y = _affine(y, scale, bias, options.get('mask'))
    return meshes.cut_like(y, x).astype(dtype), state


def mapped(change: Callable[[Any], Any], normalization: Any) -> Any:
  """Applies `change` to each normalization that one is made of, or to it."""
  if isinstance(normalization, Chain | Mixture):
    parts = tuple(mapped(change, part) for part in normalization.parts)
    return dataclasses.replace(normalization, parts=parts)
  if isinstance(normalization, Coloured):
    inner = mapped(change, normalization.normalization)
    return dataclasses.replace(normalization, normalization=inner)
  return change(normalization)


def with_states(normalization: Any, state: Any) -> Iterator[tuple[Any, Any]]:
  """Yields what remembers, with its state: parts, where it is a combination."""
  if isinstance(normalization, Coloured):
    yield from with_states(normalization.normalization, state)
  elif isinstance(normalization, Chain | Mixture):
    for part, own in zip(normalization.parts, state, strict=True):
      yield from with_states(part, own)
  elif normalization.remembers:
    yield normalization, state


def _each(learned, parts) -> tuple[Any, ...]:
  return ({},) * len(parts) if learned is None else learned


def _typed(x, dtype) -> tuple[jax.Array, Any, Any]:
  """Returns `x`, the type between parts, and that of the result.

  Between parts nothing is rounded to a type that the result does not have.
  """
  x = jnp.asarray(x)
  checks.activations(x, None)
  dtype = checks.result_type(x, dtype)
  return x, dtype if dtype == x.dtype else wide_type(x), dtype


def _apply(part, x, state, learned, options, **own):
  """Applies a part, which uses running moments where it has any."""
  use_running = options.get('use_running', False) and part.remembers
  options = {**options, 'use_running': use_running}
  return part.apply(x, state, learned=learned, **own, **options)


def _affine(y, scale, bias, mask) -> jax.Array:
  y = y if scale is None else y * scale
  return keep(mask, y if bias is None else y + bias)
