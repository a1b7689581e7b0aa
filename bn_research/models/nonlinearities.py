"""Nonlinearities by name."""

from collections.abc import Callable

import jax

from bn_research import registry

Nonlinearity = Callable[[jax.Array], jax.Array]

NONLINEARITIES: dict[str, Nonlinearity] = {
  'elu': jax.nn.elu,
  'gelu': jax.nn.gelu,
  'relu': jax.nn.relu,
  'sigmoid': jax.nn.sigmoid,
  'silu': jax.nn.silu,
  'tanh': jax.nn.tanh,
}
"""Elementwise functions by name."""


def find(name: str) -> Nonlinearity:
  """Returns the nonlinearity of `config.model.nonlinearity`.

  Args:
    name: A key of `NONLINEARITIES`, or `module:attribute`.

  Raises:
    UserError: If the name is unknown.
  """
  return registry.find('config.model.nonlinearity', NONLINEARITIES, name)
