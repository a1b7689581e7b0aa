"""What can be measured while a run trains.

A probe is a function of an `Observation` that returns arrays by name, and is
called inside `jit`. A config names any number of probes:

    config.probes.activations.num_points = 100

The key is the name of the file of the probe. The probe is the part of this name
(`PROBES`), or the part that `name` names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import registry
from bn_research.probes.activations import Activations
from bn_research.probes.covariate_shift import CovariateShift
from bn_research.probes.gradients import gradients
from bn_research.probes.observation import Observation, Step
from bn_research.probes.whiteness import whiteness

__all__ = ['PROBES', 'Observation', 'Probe', 'Step', 'arrays', 'create']

Probe = Callable[[Observation], Mapping[str, jax.Array]]

PROBES: dict[str, Any] = {
  'activations': Activations,
  'covariate_shift': CovariateShift,
  'gradients': gradients,
  'whiteness': whiteness,
}
"""Probes by name: functions of an observation, or classes of such."""

# When, and on how many examples, a probe looks: options of every probe.
OF_THE_LOOP = ('num_examples', 'num_points', 'spacing')


def create(key: str, section: Mapping[str, Any]) -> Probe:
  """Creates the probe of `config.probes[key]`.

  Args:
    key: The key of the probe.
    section: The options of the probe, and optionally its `name`. The keys of
      `OF_THE_LOOP` are not read.

  Returns:
    The probe. The attribute `constants`, where it has one, holds arrays by name
    that are stored once.

  Raises:
    UserError: If the name or an option is unknown, or has a wrong value.
  """
  options = {k: v for k, v in section.items() if k not in OF_THE_LOOP}
  where = f'config.probes.{key}'
  name, options = registry.split({'name': key, **options})
  found = registry.find(where, PROBES, name)
  if isinstance(found, type):
    return registry.call(where, found, name, options)
  # A function of the user that takes the observation first.
  return registry.bind(where, found, name, options)


# Names of the file's own, or of arguments of `numpy.savez`.
_TAKEN = ('', 'step', 'file', 'allow_pickle')


def arrays(measured: Any) -> dict[str, jax.Array]:
  """Returns what a probe returned, checked: arrays that a file can hold.

  Args:
    measured: A dict of arrays, or of numbers.

  Raises:
    ValueError: If it is something else.
  """
  if not isinstance(measured, Mapping):
    raise ValueError(
      f'the probe returned a {type(measured).__name__}; return a dict of arrays'
    )
  found = {}
  for name, value in measured.items():
    if not isinstance(name, str) or name in _TAKEN:
      raise ValueError(
        f'the probe returned the name {name!r}; choose another text'
      )
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
      raise ValueError(
        f'the probe returned a {type(value).__name__} as {name!r}; return'
        ' arrays of numbers'
      )
    found[name] = _storable(name, jnp.asarray(value))
  return found


def _storable(name: str, value: jax.Array) -> jax.Array:
  """Returns an array that NumPy can store."""
  if jnp.issubdtype(value.dtype, jnp.floating):
    # NumPy has no bfloat16.
    is_narrow = value.dtype.itemsize < 4
    return value.astype(jnp.float32) if is_narrow else value
  if not (
    jnp.issubdtype(value.dtype, jnp.number)
    or jnp.issubdtype(value.dtype, jnp.bool_)
  ):
    raise ValueError(
      f'the probe returned {value.dtype} as {name!r}; return arrays of numbers'
    )
  return value
