"""Probes: functions that measure a run during the training.

A probe is a function of an `Observation`, and returns arrays by name. The
training loop calls a probe inside `jit`. A config may name any number of
probes:

    config.probes.activations.num_points = 100

The key, here `activations`, is the name of the file of the probe. The key is
also the name of the probe in `PROBES`, unless the option `name` has a different
name.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import errors, registry
from bn_research.probes.activations import Activations
from bn_research.probes.covariate_shift import covariate_shift
from bn_research.probes.gradients import gradients
from bn_research.probes.observation import Observation, Step
from bn_research.probes.whiteness import whiteness

__all__ = ['PROBES', 'Observation', 'Probe', 'Step', 'arrays', 'create']

Probe = Callable[[Observation], Mapping[str, jax.Array]]

PROBES: dict[str, Any] = {
  'activations': Activations,
  'covariate_shift': covariate_shift,
  'gradients': gradients,
  'whiteness': whiteness,
}
"""Probes by name, as functions of an observation or classes of functions."""

# Options of every probe, for the training loop: the number of examples, and the
# steps of the measurements.
OF_THE_LOOP = ('num_examples', 'num_points', 'spacing')


def create(key: str, section: Mapping[str, Any]) -> Probe:
  """Creates the probe of `config.probes[key]`.

  Args:
    key: The key of the probe.
    section: The options of the probe, and optionally the `name`. This function
      ignores the keys of `OF_THE_LOOP`.

  Returns:
    The probe. The function `constants` returns the constants of the probe.

  Raises:
    UserError: If the name or an option is unknown, or if a value is wrong.
  """
  options = {k: v for k, v in section.items() if k not in OF_THE_LOOP}
  where = f'config.probes.{key}'
  name, options = registry.split({'name': key, **options})
  found = registry.find(where, PROBES, name)
  # A class takes the options alone, and an instance is the probe. A function
  # takes the observation as the first argument, before the options.
  is_class = isinstance(found, type)
  # `callable` is True for every class. An instance is called by the method.
  if is_class and not any('__call__' in vars(kind) for kind in found.__mro__):
    raise errors.UserError(
      f'{where}: {name!r} has no method __call__(observation), and is no probe'
    )
  build = registry.call if is_class else registry.bind
  probe = build(where, found, name, options)
  with registry.mistakes_in(where):
    constants(probe)
  return probe


def constants(probe: Probe) -> dict[str, np.ndarray]:
  """Returns the constants of a probe, which a file stores once.

  Args:
    probe: The result of `create`. The attribute `constants` of the function or
      of the object is a dict of arrays. The attribute is optional.

  Returns:
    The constants as NumPy arrays, by name.

  Raises:
    ValueError: If the attribute is not a dict of arrays.
  """
  # The arrays must be concrete, also during the tracing of a program.
  with jax.ensure_compile_time_eval():
    found = arrays(_constants(probe))
  return {name: np.asarray(value) for name, value in found.items()}


def _constants(probe: Probe) -> Any:
  function = probe.func if isinstance(probe, functools.partial) else probe
  return getattr(function, 'constants', {})


def measure(probe: Probe, observation: Observation) -> dict[str, jax.Array]:
  """Calls a probe, and checks that a file can hold the result.

  Args:
    probe: The result of `create`.
    observation: The argument of the probe.

  Returns:
    The measured arrays, by name.

  Raises:
    ValueError: If the result is not a dict of arrays, or if an array has the
      name of a constant.
  """
  found = arrays(probe(observation))
  for name in _constants(probe):
    if name in found:
      raise ValueError(
        f'the probe measures {name!r}, which is a constant of it'
      )
  return found


# The file has an array `step`, and `numpy.savez` has the arguments `file` and
# `allow_pickle`.
_TAKEN = ('', 'step', 'file', 'allow_pickle')


def arrays(returned: Any) -> dict[str, jax.Array]:
  """Checks the result of a probe, and returns arrays that a file can hold.

  Args:
    returned: A dict of arrays or of numbers.

  Returns:
    The arrays by name, in a type that NumPy can store.

  Raises:
    ValueError: If `measured` is not a dict of arrays or of numbers, or if a
      name is reserved.
  """
  if not isinstance(returned, Mapping):
    raise ValueError(
      f'the probe returned a {type(returned).__name__}; return a dict of arrays'
    )
  found = {}
  for name, value in returned.items():
    if not isinstance(name, str) or name in _TAKEN:
      raise ValueError(
        f'the probe returned the name {name!r}; choose another text'
      )
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float):
      raise ValueError(
        f'the probe returned a {type(value).__name__} as {name!r}; return'
        ' arrays of numbers'
      )
    _check_numbers(name, getattr(value, 'dtype', None))
    found[name] = _storable(jnp.asarray(value))
  return found


def _check_numbers(name: str, dtype: Any) -> None:
  """Raises a ValueError for a dtype of objects, of texts or of random keys."""
  kinds = (jnp.number, jnp.bool_)
  if dtype is not None and not any(jnp.issubdtype(dtype, k) for k in kinds):
    raise ValueError(
      f'the probe returned {dtype} as {name!r}; return arrays of numbers'
    )


def _storable(value: jax.Array) -> jax.Array:
  """Returns an array that NumPy can store."""
  if jnp.issubdtype(value.dtype, jnp.floating):
    # NumPy has no bfloat16. Float32 holds all values of the narrow types.
    is_narrow = value.dtype.itemsize < 4
    return value.astype(jnp.float32) if is_narrow else value
  return value
