"""The base class of methods beside the product that remember nothing."""

from typing import Any, ClassVar

import jax.numpy as jnp

from bn_research.norms.pytrees import Node


class Stateless(Node):
  """A method without a population, and therefore with an empty state."""

  remembers: ClassVar[bool] = False

  def init(self, num_features: int, dtype: Any = jnp.float32) -> tuple[()]:
    """Returns (), because nothing is remembered."""
    del num_features, dtype
    return ()
