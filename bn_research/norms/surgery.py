"""Surgery: a normalization frozen or synchronized.

`layers.surgery` applies the functions to whole models.
"""

import dataclasses
from typing import Any

from bn_research.norms import gradients
from bn_research.norms.combination import mapped
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import Fixed
from bn_research.norms.statistics.collectives import AxisNames


def freeze(normalization: Normalization) -> Normalization:
  """Returns a normalization that uses and never changes the running moments.

  The result has the population `Fixed` and the gradient `frozen`. No flag of a
  later call can thaw the result. In a `Chain` or a similar combination, each
  part with running statistics is frozen.

  Args:
    normalization: A normalization with running statistics.

  Raises:
    ValueError: If the normalization has no running statistics, or is no
      `Normalization` and no combination.
  """
  if not normalization.remembers:
    raise ValueError(
      f'{normalization} has no running statistics to freeze; training and '
      'inference are the same already.'
    )
  return mapped(_frozen, normalization)


def _frozen(normalization: Any) -> Any:
  if not normalization.remembers:
    return normalization
  fixed = point_of(normalization).population
  if not isinstance(fixed, Fixed):
    # The population still reads the state: an `Interval` normalizes with the
    # pair of the last renewal, and not with the latest mean and variance.
    fixed = Fixed(fixed)
  return dataclasses.replace(
    normalization, population=fixed, gradient=gradients.frozen
  )


def point_of(normalization: Any) -> Normalization:
  """Returns the argument, a `Normalization`; raises a ValueError otherwise."""
  if not isinstance(normalization, Normalization):
    raise ValueError(
      f'{normalization} is not a norms.Normalization, so no axis can be '
      'changed; call the layer with use_running and update, or replace the '
      'normalization.'
    )
  return normalization


def sync(normalization: Normalization, axis_name: AxisNames) -> Normalization:
  """Returns a normalization that pools statistics over named mesh axes.

  In a `Chain` or a similar combination, the change applies to each part with
  running statistics.

  Args:
    normalization: A normalization with a scope that has an `axis_name`, for
      example `Batch`.
    axis_name: Names of the mesh axes; None to remove all names. Groups of
      devices are removed too.

  Raises:
    ValueError: If the scope has no `axis_name`, or if the normalization is no
      `Normalization` and no combination.
  """

  def change(part):
    # A part without running statistics pools within an example, and each device
    # holds whole examples. Such a part needs no axis name in a combination.
    is_one_of_several = part is not normalization and not part.remembers
    return part if is_one_of_several else _synced(part, axis_name)

  return mapped(change, normalization)


def over_devices(normalization: Any, axis_name: str) -> Any:
  """Returns a normalization for examples that are spread over named devices.

  The result normalizes within `shard_map` and `pmap` as the normalization does
  over a whole batch. `sync`, in contrast, also pools the features of a single
  example.

  Args:
    normalization: A normalization, or a combination.
    axis_name: The name of the mesh axis over which the examples are spread.

  Raises:
    ValueError: If a scope, or a part of a user, has no such form.
  """

  def change(part: Any) -> Any:
    if isinstance(part, Normalization):
      scope = part.scope.over_devices(axis_name)
      return dataclasses.replace(part, scope=scope)
    if hasattr(part, 'over_devices'):
      return part.over_devices(axis_name)
    if part.remembers:
      raise ValueError(
        f'{part} does not say how examples on several named devices share'
        ' statistics: give the class a method over_devices, or use jit over a'
        ' mesh.'
      )
    return part

  return mapped(change, normalization)


def _synced(normalization: Any, axis_name: AxisNames) -> Normalization:
  scope: Any = point_of(normalization).scope
  if 'axis_name' not in {field.name for field in dataclasses.fields(scope)}:
    raise ValueError(
      f'{scope} shares nothing over devices; only Batch, Patches and Example '
      'have an axis_name.'
    )
  # The old groups are of the devices along the old axes.
  scope = dataclasses.replace(
    scope, axis_name=axis_name, axis_index_groups=None
  )
  return dataclasses.replace(normalization, scope=scope)
