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
  """Centres and divides by the deviation, or does one of the two.

    centre and scale    (x - mean) / √(var + ε)
    centre              x - mean
    scale               x / √(E x² + ε)

  Attributes:
    centre: Whether the mean is taken away. Without centring, the second moment
      is about zero (root mean square).
    scale: Whether to divide.
    epsilon: ε, added to the second moment: a number, an array of shape (), or a
      function of the updates made so far.
  """

  numbers: ClassVar[tuple[str, ...]] = ('epsilon',)
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  centre: bool = True
  scale: bool = True
  epsilon: Schedule = 1e-5

  @property
  def scales(self) -> bool:
    """Whether the map takes a scale away."""
    return self.scale

  def estimate(self, x, mask, axes, devices, groups=None) -> Moments:
    """Estimates mean and variance, or the second moment about zero."""
    return estimate(x, mask, axes, devices, self.centre, groups)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns mean 0 and variance 1 of shape `features`."""
    one = jnp.ones(features, dtype)
    return Moments(one, jnp.zeros(features, dtype), one)

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Returns (mean, variance), each None if the map does without."""
    return Pair(mean if self.centre else None, var if self.scale else None)

  def deviation(self, pair: Pair) -> jax.Array | float:
    """Returns √(var + ε); 1 if nothing is divided."""
    if not self.scale:
      return 1.0
    return jnp.sqrt(pair.spread + self._epsilon_of_type(pair.spread))

  def divided_by(self, mean: Any, deviation: Any) -> Pair:
    """Returns the mean, and the variance whose deviation is given."""
    spread = None
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
  """Normalizes with given moments and applies the affine, in one rule.

    y = (x - mean) / √(var + ε) · scale + bias        (zero where masked out)

  One derivative rule for the whole expression, of any order and in both modes.
  The backward pass keeps `x`, in its own type, and arrays of the size of the
  moments. The gradient with respect to the moments is complete: together with
  that of `moments.estimate` it is the derivative of the normalization.

  Args:
    x: Activations of any shape, floating.
    mask: None, or boolean, broadcastable against `x`.
    mean: None for no centring, or broadcastable against `x`.
    var: None for no scaling, or broadcastable against `x`.
    scale: None for 1, or broadcastable against `x`.
    bias: None for 0, or broadcastable against `x`.
    epsilon: Added to the variance.
    dtype: Type of the result; None for that of `x`.

  Returns:
    An array of the shape of `x`; computed in float32 at least.

  Source: Ioffe and Szegedy (2015), Algorithm 1.
  """
  within = wide_type(x)
  zero, one = jnp.zeros((), within), jnp.ones((), within)
  # Outside of the rule, so that ε too may be traced and has a derivative.
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
  y = (wide(x) - mean) * (lax.rsqrt(raised) * scale) + bias
  return (y if mask is None else apply_mask(mask, y)).astype(dtype)


@_normalize.defjvp
def _normalize_jvp(dtype, primals, tangents):
  x, mask, mean, raised, scale, bias = primals
  dx, _, dmean, dvar, dscale, dbias = tangents
  y = _normalize(*primals, dtype)
  r = lax.rsqrt(raised)
  dlog = -0.5 * r * r * dvar  # of log r
  if _as_large(x, mean, raised, scale, bias):
    rule = partial(_tangent_by_terms, dtype=dtype)
    terms = (mean, r, scale, r * dmean, dlog, dscale, dbias)
    return y, rematerialized(rule)(x, mask, dx, *terms)
  slope = r * dscale + r * dlog * scale
  offset = dbias - r * scale * dmean
  slope, offset = _vary_together(slope, offset, x)
  rule = partial(_tangent_by_coefficients, dtype=dtype)
  return y, rematerialized(rule)(x, mask, dx, mean, r * scale, slope, offset)


def _as_large(x: jax.Array, *terms: jax.Array) -> bool:
  """Whether coefficients made of all terms would be as large as `x`.

  So it is for layer normalization, with moments a row and a scale a column:
  combining them would double the traffic. For batch normalization it is not
  combining them that would.
  """
  return jnp.broadcast_shapes(*(term.shape for term in terms)) == x.shape


def _tangent_by_coefficients(x, mask, dx, mean, gain, slope, offset, *, dtype):
  """dy = gain dx + slope (x - mean) + offset, the coefficients being small."""
  deviation = apply_mask(mask, wide(x) - mean)
  dy = gain * wide(dx) + slope * deviation + offset
  return apply_mask(mask, dy).astype(dtype)


def _tangent_by_terms(
  x, mask, dx, mean, r, scale, dshift, dlog, dscale, dbias, *, dtype
):
  """The same, moments and affine apart: each is small, together they are not.

  dy = scale (r dx - dshift + dlog x̂) + dscale x̂ + dbias,    x̂ = r (x - mean)
  """
  normal = apply_mask(mask, wide(x) - mean) * r
  slope = _outer(dlog, scale) + dscale
  shift = _outer(-dshift, scale) + dbias
  dy = scale * r * wide(dx) + slope * normal + shift
  return apply_mask(mask, dy).astype(dtype)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
  """left · right, as a matrix product if the axes of one precede the other's.

  Backward, that is products of a matrix with vectors. As a product of broadcast
  arrays it would be sums of arrays as large as `x`, each written first.
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
  """Lets two replicated coefficients meet a varying `x` as one array.

  In the backward pass that meeting is a sum over devices, which gives the
  gradients of the statistics and of the affine at once: one collective.
  """
  if not collectives.varying(x) - collectives.varying(slope):
    return slope, offset
  pair = jnp.stack(jnp.broadcast_arrays(slope, offset))
  return tuple(collectives.vary_like(pair, x))
