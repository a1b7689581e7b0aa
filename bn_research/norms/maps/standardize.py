"""The standardizing map: centre, divide by the deviation, scale and shift."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import checks
from bn_research.norms.axes import Map, Pair
from bn_research.norms.pytrees import Schedule
from bn_research.norms.statistics import collectives
from bn_research.norms.statistics.memory import rematerialized
from bn_research.norms.statistics.moments import (
  Moments,
  Shape,
  apply_mask,
  estimate,
  wide,
  wide_type,
)


@dataclasses.dataclass(frozen=True)
class Standardize(Map):
  """Centres, or divides by the deviation, or does both.

    centre and scale    (x - mean) / √(var + ε)
    centre              x - mean
    scale               x / √(E x² + ε)

  Attributes:
    centre: Whether to subtract the mean. Without centring, the second moment is
      about zero (root mean square).
    scale: Whether to divide.
    epsilon: ε, added to the second moment, in squared units of the activations:
      a number, an array of shape (), or a function of the number of updates.

  Source: Ioffe and Szegedy (2015), Algorithm 1 (centre and scale); Salimans and
  Kingma (2016), Section 4 (centre); Zhang and Sennrich (2019), equation 4
  (scale).
  """

  numbers: ClassVar[tuple[str, ...]] = ('epsilon',)
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  centre: bool = True
  scale: bool = True
  epsilon: Schedule = 1e-5

  @property
  def scales(self) -> bool:
    """Returns whether the map divides."""
    return self.scale

  @property
  def needs_moments(self) -> bool:
    """Whether the map centres or divides."""
    return self.centre or self.scale

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates mean and variance, or the second moment about zero."""
    return estimate(x, mask, axes, devices, self.centre, groups)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns mean 0 and variance 1 of shape `features`."""
    one = jnp.ones(features, dtype)
    return Moments(one, jnp.zeros(features, dtype), one)

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns the mean and the variance, or None for an unused moment."""
    return Pair(mean if self.centre else None, var if self.scale else None)

  def deviation(self, pair: Pair) -> jax.Array | float:
    """Returns √(var + ε), or 1 for a map that does not divide."""
    if not self.scale:
      return 1.0
    return jnp.sqrt(pair.spread + self._epsilon_of_type(pair.spread))

  def divided_by(self, mean: Any, deviation: Any) -> Pair:
    """Returns the mean, and the variance of a given deviation."""
    spread = None
    # `normalize` adds ε to the variance, so the variance here must lack ε.
    if self.scale:
      spread = deviation * deviation - self._epsilon_of_type(deviation)
    return Pair(mean if self.centre else None, spread)

  def _epsilon_of_type(self, like: jax.Array) -> Any:
    return checks.number_of_type(self.epsilon, like)

  def finish(self, x, mask, pair, scale, bias, dtype) -> jax.Array:
    """Normalizes, scales and shifts, in one derivative rule."""
    return normalize(
      x, mask, pair.mean, pair.spread, scale, bias, self.epsilon, dtype
    )


def normalize(
  x: jax.Array,
  mask: jax.Array | None,
  mean: jax.Array | None,
  var: jax.Array | None,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
  epsilon: Any = 1e-5,
  dtype: Any = None,
) -> jax.Array:
  """Normalizes with given moments, and applies the affine.

    y = (x - mean) / √(var + ε) · scale + bias    (zero for masked activations)

  The whole expression has one derivative rule, of any order and in both modes.
  The backward pass keeps `x`, in the type of `x`, and arrays of the size of the
  moments. The gradient with respect to the moments is complete: the chain rule
  with the gradient of `moments.estimate` gives the derivative of the
  normalization.

  Args:
    x: Activations of any shape, floating.
    mask: None, or boolean and broadcastable against `x`. False hides an
      activation.
    mean: None for no centring, or broadcastable against `x`.
    var: None for no scaling, or broadcastable against `x`.
    scale: None for 1, or broadcastable against `x`.
    bias: None for 0, or broadcastable against `x`.
    epsilon: ε, added to the variance: a number, or an array of shape ().
    dtype: Type of the result; None for the type of `x`.

  Returns:
    An array of the shape of `x`, computed in float32 or a wider type.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """
  within = wide_type(x)
  zero, one = jnp.zeros((), within), jnp.ones((), within)
  # The addition stays outside of the derivative rule. ε may then be a traced
  # array, and automatic differentiation gives a derivative for ε.
  if not isinstance(epsilon, float):
    epsilon = checks.number_of_type(epsilon, one)
  raised = one if var is None else var + epsilon
  return _normalize(
    x,
    mask,
    zero if mean is None else mean,
    raised,
    one if scale is None else scale.astype(within),
    zero if bias is None else bias.astype(within),
    x.dtype if dtype is None else dtype,
  )


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def _normalize(x, mask, mean, raised, scale, bias, dtype):
  # The product in brackets is small, so `x` meets one multiplication only.
  y = (wide(x) - mean) * (lax.rsqrt(raised) * scale) + bias
  return (y if mask is None else apply_mask(mask, y)).astype(dtype)


@_normalize.defjvp
def _normalize_jvp(dtype, primals, tangents):
  x, mask, mean, raised, scale, bias = primals
  dx, _, dmean, dvar, dscale, dbias = tangents
  y = _normalize(*primals, dtype)
  r = lax.rsqrt(raised)
  dlog = -0.5 * r * r * dvar  # the tangent of log r
  # The tangent has two forms with equal values. The form by coefficients first
  # joins the small terms, so few arrays meet `x`. If the joined coefficients
  # would be as large as `x`, the form by terms keeps the small terms separate.
  if _as_large(x, mean, raised, scale, bias):
    rule = partial(_tangent_by_terms, dtype=dtype)
    terms = (mean, r, scale, r * dmean, dlog, dscale, dbias)
    return y, rematerialized(rule)(x, mask, dx, *terms)
  # dy = r scale (dx - dmean) + (dlog scale + dscale) r (x - mean) + dbias,
  # in the order of powers of x - mean.
  slope = r * dscale + r * dlog * scale
  offset = dbias - r * scale * dmean
  slope, offset = _vary_together(slope, offset, x)
  rule = partial(_tangent_by_coefficients, dtype=dtype)
  return y, rematerialized(rule)(x, mask, dx, mean, r * scale, slope, offset)


def _as_large(x: jax.Array, *terms: jax.Array) -> bool:
  """Returns whether joint coefficients of all terms would be as large as `x`.

  The answer is True for layer normalization, which has moments for each row and
  a scale for each column. Joint coefficients would double the memory traffic.
  The answer is False for batch normalization, whose terms are all small.
  Separate terms would double the memory traffic.
  """
  return jnp.broadcast_shapes(*(term.shape for term in terms)) == x.shape


def _tangent_by_coefficients(x, mask, dx, mean, gain, slope, offset, *, dtype):
  """Returns dy = gain dx + slope (x - mean) + offset, of small coefficients."""
  deviation = apply_mask(mask, wide(x) - mean)
  dy = gain * wide(dx) + slope * deviation + offset
  return apply_mask(mask, dy).astype(dtype)


def _tangent_by_terms(
  x, mask, dx, mean, r, scale, dshift, dlog, dscale, dbias, *, dtype
):
  """Returns the same tangent, with the moments and the affine kept separate.

    dy = scale (r dx - dshift + dlog x̂) + dscale x̂ + dbias,    x̂ = r (x - mean)

  Each term is small, but a product of two terms may be as large as `x`.
  """
  # The backward pass sums each product over `x`. `_outer` turns these sums into
  # matrix products, which do not write arrays as large as `x` first.
  normal = apply_mask(mask, wide(x) - mean) * r
  slope = _outer(dlog, scale) + dscale
  shift = _outer(-dshift, scale) + dbias
  dy = scale * r * wide(dx) + slope * normal + shift
  return apply_mask(mask, dy).astype(dtype)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
  """Returns left · right, as an outer product if possible.

  An outer product needs all axes of `left` before all axes of `right`. The
  backward pass of an outer product multiplies a matrix by vectors. The backward
  pass of a product of broadcast arrays would first write arrays as large as
  `x`, and then sum these arrays.
  """
  rows, columns = (
    [a for a, size in enumerate(side.shape) if size != 1]
    for side in (left, right)
  )
  is_outer = bool(rows and columns) and rows[-1] < columns[0]
  if left.ndim != right.ndim or not is_outer:
    return left * right
  product = jnp.tensordot(
    left.squeeze(_but(rows, left.ndim)),
    right.squeeze(_but(columns, right.ndim)),
    axes=0,
    precision=lax.Precision.HIGHEST,
  )
  return lax.expand_dims(product, _but(rows + columns, right.ndim))


def _but(axes: list[int], ndim: int) -> list[int]:
  return [a for a in range(ndim) if a not in axes]


def _vary_together(slope, offset, x):
  """Makes two replicated coefficients vary like `x`, as one array.

  The backward pass of this step is a sum over devices. A stack of both
  coefficients makes one collective, which gives the gradients of the statistics
  and of the affine together.
  """
  if not collectives.varying(x) - collectives.varying(slope):
    return slope, offset
  pair = jnp.stack(jnp.broadcast_arrays(slope, offset))
  return tuple(collectives.vary_like(pair, x))
