"""What a normalization is: x̂ = Norm(x, X), one choice on each of four axes."""

import difflib
import inspect
from collections.abc import Callable

from bn_research.norms.batch import batch_norm, none
from bn_research.norms.gradients import Gradient
from bn_research.norms.moments import Moments
from bn_research.norms.normalization import Map, Normalization
from bn_research.norms.per_example import (
  group_norm,
  instance_norm,
  layer_norm,
  positional_norm,
  rms_norm,
)
from bn_research.norms.population import Cumulative, Ema, Population, Running
from bn_research.norms.scopes import Batch, Example, Scope
from bn_research.norms.standardize import Standardize

NAMES: dict[str, Callable[..., Normalization]] = {
  'batch_norm': batch_norm,
  'group_norm': group_norm,
  'instance_norm': instance_norm,
  'layer_norm': layer_norm,
  'none': none,
  'positional_norm': positional_norm,
  'rms_norm': rms_norm,
}


def create(name: str, **options) -> Normalization:
  """Returns the named normalization, for configs.

  Raises:
    ValueError: For an unknown name, option or value; one line with the fix.
  """
  if name not in NAMES:
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(
      f'unknown normalization {name!r}; {hint}There are: '
      f'{", ".join(sorted(NAMES))}.'
    )
  factory = NAMES[name]
  parameters = inspect.signature(factory).parameters
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  for option in options:
    if not takes_any and option not in parameters:
      raise ValueError(
        f'{name} takes no option {option!r}; it takes: {", ".join(parameters)}.'
      )
  return factory(**options)


__all__ = [
  'NAMES',
  'Batch',
  'Cumulative',
  'Ema',
  'Example',
  'Gradient',
  'Map',
  'Moments',
  'Normalization',
  'Population',
  'Running',
  'Scope',
  'Standardize',
  'batch_norm',
  'create',
  'group_norm',
  'instance_norm',
  'layer_norm',
  'none',
  'positional_norm',
  'rms_norm',
]
