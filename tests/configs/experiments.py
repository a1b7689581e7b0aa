"""The functions of the config files, for tests."""

import functools
import pathlib

from bn_research import config_files, dotted
from bn_research.sweeps import points

_CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


@functools.cache
def module(name):
  """Returns the module of a config file."""
  return config_files.module_of(str(_CONFIGS / f'{name}.py'))


def resolved(name, variant):
  """Returns the configs of all runs of a variant, by dotted key."""
  config = module(name).get_config(variant)
  found = module(name).sweep(variant)
  return [dotted.flatten(points.resolve(config, p, 'x')) for p in found]
