"""The same in plain JAX, with `stop_gradient` where a method has one.

Where a derivative is not that of the value, differences of an oracle say
nothing. Autodiff of the formula as written then says what is meant.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tests.oracles import sets


def identity(x):
  """Lets the gradient through."""
  return x


POLICIES = {
  'through': (identity, identity),
  'stopped': (lax.stop_gradient, lax.stop_gradient),
  'mean_only': (identity, lax.stop_gradient),
  'spread_only': (lax.stop_gradient, identity),
}


def standardized(labelled, centre=True, policy='through'):
  """(x - mean(E x)) / √(spread(Var x) + ε) over the sets of `labelled`.

  Args:
    labelled: One of `tests.oracles.sets`.
    centre: Whether the mean is taken away.
    policy: A name in `POLICIES`, which says what is stopped.
  """
  mean, spread = POLICIES[policy]

  def formula(x, mask, epsilon, past):
    del past
    m, v = moments(labelled, x, mask, centre)
    y = (x - mean(m)) / jnp.sqrt(spread(v) + epsilon)
    return jnp.where(mask, y, 0)

  return formula


def moments(labelled, x, mask, centre=True):
  """Mean (0 if not `centre`) and variance of the set of each activation."""
  labels = labelled(x.shape)
  total = lambda z: jax.ops.segment_sum(
    jnp.where(mask, z, 0).ravel(), labels.ravel(), labels.max() + 1
  )[labels]
  count = jnp.maximum(total(jnp.ones_like(x)), 1)
  mean = total(x) / count if centre else jnp.zeros_like(x)
  return mean, total((x - mean) ** 2) / count


def renormalized(r_max, d_max):
  """Ioffe (2017), Algorithm 1."""

  def formula(x, mask, epsilon, past):
    m, v = moments(sets.batch, x, mask)
    sigma, known = jnp.sqrt(v + epsilon), jnp.sqrt(past.var + epsilon)
    r = lax.stop_gradient(jnp.clip(sigma / known, 1 / r_max, r_max))
    d = jnp.clip((m - past.mean) / known, -d_max, d_max)
    y = (x - m) / sigma * r + lax.stop_gradient(d)
    return jnp.where(mask, y, 0)

  return formula
