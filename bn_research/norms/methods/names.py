"""Normalizations, choices on the axes and combinations by name, for configs."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from bn_research.norms import gradients, maps, populations, scopes
from bn_research.norms.combine import Chain, Coloured, Mixture
from bn_research.norms.methods import (
  batch,
  evonorm,
  per_example,
  squash,
  whitening,
)

NAMES: dict[str, Callable[..., Any]] = {
  'none': batch.none,
  'batch_norm': batch.batch_norm,
  'mean_only_batch_norm': batch.mean_only_batch_norm,
  'power_norm': batch.power_norm,
  'batch_renorm': batch.batch_renorm,
  'virtual_batch_norm': batch.virtual_batch_norm,
  'layer_norm': per_example.layer_norm,
  'rms_norm': per_example.rms_norm,
  'instance_norm': per_example.instance_norm,
  'group_norm': per_example.group_norm,
  'positional_norm': per_example.positional_norm,
  'filter_response_norm': per_example.filter_response_norm,
  'local_response_norm': per_example.local_response_norm,
  'local_contrast_norm': per_example.local_contrast_norm,
  'divisive_norm': per_example.divisive_norm,
  'batch_whitening': whitening.batch_whitening,
  'decorrelated_batch_norm': whitening.decorrelated_batch_norm,
  'iter_norm': whitening.iter_norm,
  'instance_whitening': whitening.instance_whitening,
  'group_whitening': whitening.group_whitening,
  'dynamic_tanh': squash.dynamic_tanh,
  'dynamic_erf': squash.dynamic_erf,
  'evonorm_b0': evonorm.EvoNormB0,
  'evonorm_s0': evonorm.EvoNormS0,
}

"""Factories of the named normalizations, by name."""

COMBINATIONS: dict[str, Callable[..., Any]] = {
  'chain': Chain,
  'coloured': Coloured,
  'mixture': Mixture,
}
"""Classes of normalizations made of normalizations, by name."""

AXES: dict[str, dict[str, Any]] = {
  'scope': {
    'batch': scopes.Batch,
    'example': scopes.Example,
    'neighbourhood': scopes.Neighbourhood,
    'reference': scopes.Reference,
  },
  'map': {
    'divide': maps.Divide,
    'standardize': maps.Standardize,
    'whiten': maps.Whiten,
  },
  'population': {
    'none': None,
    'accumulated': populations.Accumulated,
    'cumulative': populations.Cumulative,
    'ema': populations.Ema,
    'fixed': populations.Fixed,
    'interval': populations.Interval,
    'pooled': populations.Pooled,
  },
  'gradient': {**gradients.NAMES, 'renormalized': gradients.Renormalized},
}
"""The choices of each axis by name, as classes, gradient policies or None.

The scope `Patches` is not in the table: it gives moments only, and no layer can
normalize with it.
"""

SCHEDULES: dict[str, Callable[..., Any]] = {'ramp': gradients.Ramp}
"""Classes of numbers that change with the number of updates, by name."""


def create(name: str, **options) -> Any:
  """Returns the named normalization.

  Args:
    name: A key of `NAMES`.
    **options: Arguments of the factory with this name.

  Returns:
    A `Normalization`, or an object with the methods of a `Normalization`.

  Raises:
    ValueError: If the name, an option or a value is unknown. The message is one
      line and names the fix.
  """
  if name not in NAMES:
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(
      f'unknown normalization {name!r}; {hint}There are: {", ".join(NAMES)}.'
    )
  factory = NAMES[name]
  # The check comes before the call, because the TypeError of Python for an
  # unknown option lists no options. `none` takes any option, so `none` passes.
  parameters = inspect.signature(factory).parameters.values()
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    known = [p.name for p in parameters]
    for option in options:
      if option not in known:
        raise ValueError(
          f'{name} takes no option {option!r}; it takes: '
          f'{", ".join(known) or "none"}.'
        )
  try:
    return factory(**options)
  except TypeError as error:
    # A missing option or a value of a wrong type. One kind of error lets a
    # program report every mistake in a config alike.
    raise ValueError(f'{name}: {error}') from error
