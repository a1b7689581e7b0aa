"""Normalizations made of normalizations.

They have the calls of a `Normalization` and plug in where one does; a state and
`learned` are tuples of those of the parts.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks
from bn_research.norms.statistics import meshes
from bn_research.norms.statistics.memory import rematerialized_but_statistics
from bn_research.norms.statistics.moments import keep, wide_type


class _Combination(abc.ABC):
  """What surrounds the parts: checks, and what the backward pass keeps.

  That is `x` and statistics: what the parts make of `x`, each as large as it,
  is made again. Nothing is rounded before the end.
  """

  @abc.abstractmethod
  def init(self, num_features: int) -> Any:
    """Returns the states of the parts."""

  @abc.abstractmethod
  def learned(self, num_features: int) -> Any:
    """Returns what is learned beside scale and bias."""

  @abc.abstractmethod
  def _combine(self, x, state, scale, bias, learned, mask, *, dtype, **how):
    """Does what `apply` says, with arguments that were checked."""

  def apply(
    self,
    x: jax.Array,
    state: Any = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Any = None,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Normalizes `x`; arguments as for `Normalization.apply`."""
    x = jnp.asarray(x)
    mask = None if mask is None else jnp.asarray(mask, bool)
    checks.activations(x, mask, scale=scale, bias=bias)
    dtype = checks.result_type(x, dtype)
    features = x.shape[-1]
    if isinstance(state, tuple) and state == ():
      state = _nothing(self.init, features, 'state', 'init')
    if learned is None:
      learned = _nothing(self.learned, features, 'learned', 'learned')
    how = bool(use_running), bool(update), dtype
    return self._apply(x, state, scale, bias, learned, mask, *how)

  @functools.partial(jax.jit, static_argnums=(0, 7, 8, 9), inline=True)
  def _apply(
    self, x, state, scale, bias, learned, mask, use_running, update, dtype
  ):
    combine = functools.partial(
      self._combine, dtype=dtype, use_running=use_running, update=update
    )
    return rematerialized_but_statistics(combine)(
      x, state, scale, bias, learned, mask
    )


def _nothing(make, features: int, name: str, method: str) -> Any:
  """Returns what `make` does of arrays that are none.

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


@dataclasses.dataclass(frozen=True)
class Chain(_Combination):
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

  def _combine(self, x, state, scale, bias, learned, mask, *, dtype, **how):
    final = {'scale': scale, 'bias': bias, 'dtype': dtype}
    states = []
    for k, part in enumerate(self.parts):
      own = final if k == len(self.parts) - 1 else {'dtype': wide_type(x)}
      x, new = _call(part, x, state[k], learned[k], mask, **own, **how)
      states.append(new)
    return x, tuple(states)


@dataclasses.dataclass(frozen=True)
class Mixture(_Combination):
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

  def _combine(self, x, state, scale, bias, learned, mask, *, dtype, **how):
    within = wide_type(x)
    weights = jax.nn.softmax(learned['logits']).astype(within)
    parts, states = zip(
      *(
        _call(part, x, old, own, mask, dtype=within, **how)
        for part, old, own in zip(
          self.parts, state, learned['parts'], strict=True
        )
      ),
      strict=True,
    )
    y = sum(w * part for w, part in zip(weights, parts, strict=True))
    return _affine(y, scale, bias, mask).astype(dtype), states


@dataclasses.dataclass(frozen=True)
class Coloured(_Combination):
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

  def _combine(self, x, state, scale, bias, learned, mask, *, dtype, **how):
    part, own, within = self.normalization, learned['inner'], wide_type(x)
    y, state = _call(part, x, state, own, mask, dtype=within, **how)
    matrix = learned['colouring'].T.astype(within)
    y = jnp.matmul(y, matrix, precision=lax.Precision.HIGHEST)
    y = meshes.cut_like(_affine(y, scale, bias, mask), x)
    return y.astype(dtype), state


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


def _call(part, x, state, learned, mask, *, use_running, **options):
  """Applies a part, which uses running moments where it has any."""
  use_running = use_running and part.remembers
  options = {**options, 'learned': learned, 'mask': mask}
  return part.apply(x, state, use_running=use_running, **options)


def _affine(y, scale, bias, mask) -> jax.Array:
  y = y if scale is None else y * scale
  return keep(mask, y if bias is None else y + bias)
