"""What can be measured while a run trains."""

from collections.abc import Mapping
from typing import Any

from bn_research import registry
from bn_research.probes import activations

_PROBES = {'activations': activations.Activations}

# When and on what a probe looks is the training loop's business.
_OF_THE_LOOP = ('num_examples', 'num_points', 'spacing')


def create(config: Mapping[str, Any]) -> activations.Activations:
  """Creates the probe that a config names.

  Args:
    config: `name` and the probe's own options; those that are None keep their
      defaults. `num_examples`, `num_points` and `spacing` are not read.

  Returns:
    A function `probe(model, x)` of a model and a batch that returns arrays by
    name, to be called inside `jit`; `probe.constants` are stored once.

  Raises:
    UserError: If the name or an option is unknown, or has a wrong value.
  """
  options = {k: v for k, v in config.items() if k not in _OF_THE_LOOP}
  return registry.create('probe', _PROBES, options)
