"""What can be measured while a run trains.

A probe is a function of an `Observation` that returns arrays by name, and is
called inside `jit`. A config names any number of probes:

    config.probes.activations.num_points = 100

The key is the name of the file of the probe. The probe is the part of this name
(`PROBES`), or the part that `name` names.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import registry
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
    The probe. Its `constants`, if it has some, are stored once: see
    `constants`.

  Raises:
    UserError: If the name or an option is unknown, or has a wrong value.
  """
  options = {k: v for k, v in section.items() if k not in OF_THE_LOOP}
  where = f'config.probes.{key}'
  name, options = registry.split({'name': key, **options})
  found = registry.find(where, PROBES, name)
  # A class takes options; a function takes the observation before them.
  build = registry.call if isinstance(found, type) else registry.bind
  probe = build(where, found, name, options)
  with registry.mistakes_in(where):
    constants(probe)
  return probe


def constants(probe: Probe) -> dict[str, np.ndarray]:
  """Returns what a probe has stored once, beside what it measures.

  Args:
    probe: What `create` returned. The constants are an attribute `constants` of
      the function, or of the object: a dict of arrays.

  Raises:
    ValueError: If they are something else.
  """
  with jax.ensure_compile_time_eval():  # also where a program is traced
    found = arrays(_constants(probe))
  return {name: np.asarray(value) for name, value in found.items()}


def _constants(probe: Probe) -> Any:
  function = probe.func if isinstance(probe, functools.partial) else probe
  return getattr(function, 'constants', {})


def measured(probe: Probe, observation: Observation) -> dict[str, jax.Array]:
  """Returns what a probe finds, checked: arrays that a file can hold.

  Raises:
    ValueError: If it is something else, or has the name of a constant.
  """
  found = arrays(probe(observation))
  for name in _constants(probe):
    if name in found:
      raise ValueError(
        f'the probe measures {name!r}, which is a constant of it'
      )
  return found


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
