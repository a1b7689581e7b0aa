"""A norm that is no choice on four axes: division by the largest value."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Largest:
  """x / (m + ε), with m the largest |x| of a feature in the batch.

  Attributes:
    momentum: The weight of the old value in the average that is remembered.
    epsilon: ε.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  remembers = True  # `use_running` selects the average.
  scales = True  # A layer learns a new scale.

  def init(self, num_features, dtype=jnp.float32):
    """Returns the state: any pytree of floating arrays; () for no state."""
    return {'largest': jnp.ones(num_features, dtype)}

  def learned(self, num_features, dtype=jnp.float32):
    """Returns the parameters besides scale and bias: a pytree of arrays."""
    return {}

  def apply(
    self,
    x,
    state=(),
    *,
    scale=None,
    bias=None,
    learned=None,
    use_running=False,
    update=True,
    mask=None,
    dtype=None,
  ):
    """Returns the result, of the shape of `x`, and the next state."""
    keep = True if mask is None else mask
    # A masked activation may be NaN, and a product with 0 would keep the NaN.
    z = jnp.where(keep, x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.abs(z).max(range(x.ndim - 1))
    y = z / ((state['largest'] if use_running else largest) + self.epsilon)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    if update:
      # A derivative through the state would reach back to earlier batches.
      new = jax.lax.stop_gradient(largest)
      old = state['largest']
      state = {'largest': self.momentum * old + (1 - self.momentum) * new}
    return jnp.where(keep, y, 0).astype(dtype or x.dtype), state
