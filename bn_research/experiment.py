"""The base config of all experiments.

A config file imports this module, and no other module of this package. The file
lists the differences of an experiment from the base:

    from bn_research import experiment

    def get_config(arg='digits'):
      return experiment.config(
        {'model.norm.name': 'layer_norm'},
        experiment.variant(arg, {'digits': {}, 'quick': {'num_steps': 50}}),
      )

The module does not import JAX, because a config must load fast.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from bn_research import overrides

Changes = Mapping[str, Any]


def base() -> ml_collections.ConfigDict:
  """Returns the base config, with a value for each key of a run.

  Returns:
    A config of an MLP without normalization, trained on the digits with plain
    SGD. `docs/architecture.md` lists the keys.
  """
  return ml_collections.ConfigDict(
    {
      'seed': 0,
      'num_steps': 1000,
      'batch_size': 60,
      'num_devices': 1,
      'data': {'name': 'digits', 'train': 'train', 'test': 'test'},
      'model': {'name': 'mlp', 'norm': {'name': 'none'}},
      'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
      'eval': {
        'num_points': 50,
        'spacing': 'linear',
        'splits': ('test',),
        'population': 'running',
        'step_norms': 'last',
      },
      'probes': {},
      'checkpoint_seconds': 60.0,
    }
  )


def config(*changes: Changes) -> ml_collections.ConfigDict:
  """Returns the base with changes.

  Args:
    *changes: Values by dotted key. Later changes replace earlier changes. None
      leaves an option to the default of the part.

  Raises:
    UserError: If a key or the type of a value is wrong.
  """
  result = base()
  for some in changes:
    overrides.apply(result, some, 'the config')
  return result


def variant(arg: str, variants: Mapping[str, Any]) -> Changes:
  """Returns the changes of a variant of an experiment.

  Args:
    arg: The text after the colon in `--config=path.py:arg`.
    variants: The changes of each variant, by name.

  Raises:
    ValueError: If no variant has the name `arg`.
  """
  if arg not in variants:
    known = ', '.join(variants)
    raise ValueError(f'unknown variant {arg!r}; there are {known}')
  return variants[arg]
