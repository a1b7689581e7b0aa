"""Compares the config of a run with a requested config."""

from collections.abc import Collection, Mapping
from typing import Any

from bn_research import disk, dotted, errors, json_text, older, workdir

# Keys that may change when a run continues, because the curve stays the same.
_FREE = (
  *('parallel.form', 'parallel.model_devices'),
  *('num_devices', 'checkpoint_seconds'),
  *(f'data.stream.{key}' for key in ('threads', 'workers', 'max_corrupt')),
)


def check_same_config(
  directory: disk.PathLike, config: Mapping[str, Any]
) -> None:
  """Checks whether a workdir is unused, or contains a run of this config.

  A larger `num_steps` extends the run. An extension is allowed if the learning
  rate does not depend on the number of steps. As long as no checkpoint is past
  an earlier length, the run may go back to this length.

  Args:
    directory: The workdir.
    config: The resolved config.

  Raises:
    UserError: If the workdir contains a run of a different config. The message
      names the differing keys.
  """
  if not workdir.has_config(directory):
    return
  record = workdir.read_record(directory)
  there = record['config']
  differing = differences(there, config)
  if differing.keys() == {'num_steps'}:
    num_steps = config['num_steps']
    is_longer = there['num_steps'] < num_steps and not _has_schedule(config)
    was_so_long = num_steps in record.get('lengths', ())
    if is_longer or (
      was_so_long and workdir.read_status(directory).step <= num_steps
    ):
      return
    differing['num_steps'] += (
      '; a run can only be extended, and only with a constant learning rate'
    )
  if differing:
    raise errors.UserError(
      f'{directory} holds a run of another config'
      f' ({"; ".join(differing.values())}); choose another --workdir'
    )


def _has_schedule(config: Mapping[str, Any]) -> bool:
  """Returns whether the learning rate may depend on the number of steps."""
  schedule = config['optimizer'].get('schedule')
  options = schedule if hasattr(schedule, 'get') else {'name': schedule}
  # A warm-up may be a part of the run.
  is_constant = options.get('name') in (None, 'constant')
  return not is_constant or options.get('warmup') is not None


def differences(
  there: Mapping[str, Any],
  here: Mapping[str, Any],
  free: Collection[str] = _FREE,
) -> dict[str, str]:
  """Compares the config of a run with a requested config.

  A missing key equals a key with the value None, because both stand for the
  default of a factory. A key of `older.ADDED` that is missing has the
  value there.

  Args:
    there: The config in the workdir.
    here: The requested config.
    free: Keys that are left out; by default the keys without influence on the
      curve.

  Returns:
    For each differing dotted key, a text with both values.
  """
  there, here = (
    {**older.ADDED, **dotted.flatten(dotted.with_names(config))}
    for config in (there, here)
  )
  # A text in the place of a part is short for the name of the part.
  for one, other in ((there, here), (here, there)):
    for key in [key for key in one if f'{key}.name' in other]:
      one[f'{key}.name'] = one.pop(key)
  return {
    key: f'{key}={there.get(key)} there and {here.get(key)} here'
    for key in sorted(there.keys() | here.keys())
    # As JSON text, because a NaN as a number is not equal to a NaN, and because
    # a file contains lists for the tuples of a config.
    if json_text.of(there.get(key)) != json_text.of(here.get(key))
    and key not in free
  }
