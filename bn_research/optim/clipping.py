"""Clips the gradient, by name."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from bn_research import errors, ranges, registry, trees


def global_norm(max_norm: float) -> optax.GradientTransformation:
  """Shortens a gradient that is too long.

    g <- g · min(1, max_norm / |g|),    |g| over all parameters together

  Args:
    max_norm: The largest norm of the gradient.

  Returns:
    The transformation of the gradient.

  Raises:
    ValueError: If `max_norm` is not positive.

  Source: Pascanu et al. (2013), Algorithm 1.
  """
  ranges.positive(max_norm=max_norm)
  return optax.clip_by_global_norm(max_norm)


def adaptive(
  clipping: float = 0.01, eps: float = 1e-3, skip: Sequence[str] = ()
) -> optax.GradientTransformation:
  """Shortens the gradient of each unit, in units of the norm of its weights.

    g_i <- g_i · min(1, clipping · max(|w_i|, eps) / |g_i|)

  A unit is one output of a layer: all weights of a dense kernel (inputs,
  outputs) or of a convolution kernel (..., inputs, outputs) with the same
  output. In a kernel of three dimensions, such as (inputs, heads, features), a
  unit has all weights with the same two last indices. A vector is one unit, and
  as in optax, so is a kernel with a single input, such as (1, outputs).

  Args:
    clipping: The largest ratio of the norms.
    eps: The least norm of weights, so that weights of 0 can change.
    skip: Paths of modules without clipping, for example `output`.
      The paper leaves out the last dense layer.

  Returns:
    The transformation of the gradient.

  Raises:
    ValueError: If a number is out of range. Later, `init` raises a UserError if
      no parameter is below a path of `skip`.

  Source: Brock et al. (2021), equation 3.
  """
  ranges.positive(clipping=clipping)
  ranges.non_negative(eps=eps)
  if isinstance(skip, str):
    raise ValueError(
      f"skip={skip!r} is a text; give a list, such as ('{skip}',)"
    )
  clip = optax.adaptive_grad_clip(clipping, eps)
  if not skip:
    return clip
  return optax.masked(clip, lambda params: _outside(tuple(skip), params))


def _outside(skip: tuple[str, ...], params: Any) -> Any:
  """Returns whether each parameter is outside of all paths, as a tree."""
  modules = list(trees.by_module(params))
  for path in skip:
    if not any(_is_below(module, path) for module in modules):
      raise errors.UserError(
        f'config.optimizer.clip.skip has {path!r}, and no module has this'
        f' path{registry.hint(path, modules)}; there are {", ".join(modules)}'
      )

  def is_outside(path: Any, _: jax.Array) -> bool:
    module = trees.name_of(path[:-1])
    return not any(_is_below(module, other) for other in skip)

  return jax.tree_util.tree_map_with_path(is_outside, params)


def _is_below(module: str, path: str) -> bool:
  return f'{module}/'.startswith(f'{path}/')


CLIPS = {'global_norm': global_norm, 'adaptive': adaptive}
"""Transformations that clip the gradient, by name."""
