"""Checks the config of a run, and converts the config to nested dicts."""

import re
from collections.abc import Mapping
from typing import Any

from bn_research import (
  dotted,
  errors,
  experiment,
  older,
  probes,
  ranges,
  registry,
)
from bn_research.training import mesh, schedule

_INT32 = 2**31 - 1  # The counts of steps and examples have the type int32.
_WHOLE_NUMBERS = {
  # JAX reads only 32 bits of a seed: 2**32 would give the parameters of seed 0.
  'seed': (0, 2**32 - 1),
  'num_steps': (1, _INT32),
  'batch_size': (1, _INT32),
  'num_devices': (1, _INT32),
  'microbatches': (1, _INT32),
  'eval.num_points': (1, 10**6),
  'parallel.model_devices': (1, _INT32),
}
_CHOICES = {
  'eval.population': ('running', 'reestimated'),
  'eval.step_norms': ('last', 'mean'),
  'eval.weights': ('last', 'average'),
  'parallel.form': ('jit', 'shard_map', 'pmap'),
}
_OF_A_PROBE = {'num_examples': (1, _INT32), 'num_points': (1, 10**6)}


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """Checks a config, and returns the config as nested dicts of plain values.

  The options of a part, for example of `model`, are checked when the part is
  built.

  Args:
    config: A ConfigDict, or nested dicts, with the keys of
      `experiment.base()`.

  Returns:
    New nested dicts. A text in the place of a part has become a dict with this
    text as the `name`, and the parts of `dotted.with_names` have names.

  Raises:
    UserError: If a key is unknown or missing, or if a value is out of range.
  """
  resolved = older.completed(dotted.with_names(_plain(config)))
  # None leaves an option to the default, and the default is no probe.
  if resolved.get('probes', {}) is None:
    resolved['probes'] = {}
  base = _plain(experiment.base())
  _name_parts(resolved, base)
  registry.check_keys('the config', resolved, base)
  for key, section in base.items():
    if isinstance(section, dict) and not isinstance(resolved.get(key), dict):
      raise errors.UserError(f'config.{key} is no section of the config')
  for section in ('eval', 'parallel'):
    registry.check_keys(f'config.{section}', resolved[section], base[section])
  flat = dotted.flatten(resolved)
  for key in dotted.flatten(base):
    if flat.get(key) is None:
      raise errors.UserError(f'the config has no value for {key!r}')
  for key, (least, most) in _WHOLE_NUMBERS.items():
    with registry.mistakes_in('the config'):
      ranges.whole(least, most, **{key: flat[key]})
  # The negated comparison also refuses NaN.
  if not flat['checkpoint_seconds'] >= 0:
    raise errors.UserError(
      f'checkpoint_seconds={flat["checkpoint_seconds"]}; choose at least 0'
    )
  with registry.mistakes_in('the config'):
    ranges.weight_of_old(label_smoothing=flat['label_smoothing'])
  _check_parallel(resolved)
  _check_microbatches(resolved)
  _check_average(resolved)
  _check_splits(resolved['eval']['splits'])
  for key, choices in _CHOICES.items():
    if flat[key] not in choices:
      raise errors.UserError(
        f'config.{key}={flat[key]!r}; choose {" or ".join(choices)}'
        + registry.hint(str(flat[key]), choices)
      )
  # Both calls only check the values, and the results are not needed here.
  schedule.measured(resolved['num_steps'], resolved['eval'])
  probe_sections(resolved)
  return resolved


def _name_parts(config: dict[str, Any], base: Mapping[str, Any]) -> None:
  """Replaces a text in the place of a part by a section with this name."""
  for key, part in base.items():
    if isinstance(part, dict):
      # Only parts have a name: a text for `eval` or `probes` remains a mistake.
      if 'name' in part and isinstance(config.get(key), str):
        config[key] = {'name': config[key]}
      if isinstance(config.get(key), dict):
        _name_parts(config[key], part)


def _check_parallel(config: Mapping[str, Any]) -> None:
  """Raises a UserError for devices that cannot share a batch or the weights."""
  count, form = config['parallel']['model_devices'], config['parallel']['form']
  if config['num_devices'] % count:
    raise errors.UserError(
      f'config.parallel.model_devices={count} does not divide'
      f' num_devices={config["num_devices"]}; choose a divisor'
    )
  if count > 1 and form != 'jit':
    raise errors.UserError(
      f'config.parallel.model_devices={count} is for the form jit, and'
      f' config.parallel.form={form}; change one of both'
    )
  mesh.check_batch(config['num_devices'] // count, config['batch_size'])


def _check_microbatches(config: Mapping[str, Any]) -> None:
  """Raises a UserError for micro-batches that do not fit."""
  count, size = config['microbatches'], config['batch_size']
  if count > 1 and size % (count * config['num_devices']):
    raise errors.UserError(
      f'microbatches={count} on num_devices={config["num_devices"]} does not'
      f' divide batch_size={size}; each device needs as many examples in each'
      ' micro-batch'
    )


def _check_average(config: Mapping[str, Any]) -> None:
  """Raises a UserError if the evaluation needs an average that is not there."""
  average = config['optimizer'].get('average')
  if config['eval']['weights'] == 'average' and average is None:
    raise errors.UserError(
      "config.eval.weights='average' needs an average; set"
      ' config.optimizer.average, for example to ema'
    )


def _check_splits(splits: Any) -> None:
  # A text is refused, because a loop over a text gives single letters.
  is_list = isinstance(splits, list | tuple) and len(splits) > 0
  if (
    not is_list
    or not all(isinstance(split, str) for split in splits)
    or len(set(splits)) < len(splits)
  ):
    raise errors.UserError(
      f'config.eval.splits={splits!r}; give the names of splits, such as'
      " ('test', 'train')"
    )


def probe_sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns the sections of `config.probes`, with default values.

  Args:
    config: A resolved config. The default of `num_examples` is the batch size
      of the training. The defaults of `num_points` and `spacing` are the values
      of `config.eval`.

  Returns:
    The sections by key. A probe with the value None is left out.

  Raises:
    UserError: If a number is out of range, if a key cannot be the name of a
      file, or if two keys differ only by case.
  """
  found = {
    key: _probe(key, section, config)
    for key, section in config['probes'].items()
    if section is not None
  }
  # Each key names a file, and some file systems ignore the case of names.
  by_file: dict[str, str] = {}
  for key in found:
    other = by_file.setdefault(key.lower(), key)
    if other != key:
      raise errors.UserError(
        f'config.probes has {other!r} and {key!r}, which are one file on some'
        ' disks; give other keys'
      )
  return found


def _probe(key: str, section: Any, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the section of a probe, with default values."""
  where = f'config.probes.{key}'
  if not re.fullmatch(r'[A-Za-z]\w*', key, re.ASCII):
    raise errors.UserError(
      f'{where}: the key is the name of a file; use letters, digits and _'
    )
  if not isinstance(section, Mapping):
    section = {'name': section}
  given = {k: v for k, v in section.items() if v is not None}
  defaults = {'num_examples': config['batch_size'], **config['eval']}
  section = {k: defaults[k] for k in probes.OF_THE_LOOP} | given
  with registry.mistakes_in(where):
    for name, (least, most) in _OF_A_PROBE.items():
      ranges.whole(least, most, **{name: section[name]})
    schedule.measured(config['num_steps'], section)
  return section


def _plain(value: Any) -> Any:
  if hasattr(value, 'items'):
    return {key: _plain(item) for key, item in value.items()}
  return value
