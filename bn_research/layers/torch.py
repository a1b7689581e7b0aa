"""Normalization layers to and from PyTorch state dicts, conventions converted.

PyTorch's `momentum` is the weight of the new value, its running variance is
unbiased, its parameters are `weight` and `bias`, its statistics `running_mean`,
`running_var` and `num_batches_tracked`. Arrays are NumPy's; nothing here
imports PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_NAMES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def momentum(value: float | None) -> float:
  """Returns our momentum for PyTorch's, or PyTorch's for ours: 1 - value.

  Raises:
    ValueError: For None, which in PyTorch is the cumulative average.
  """
  if value is None:
    raise ValueError(
      "PyTorch's momentum=None is a cumulative average; take the population "
      'norms.Cumulative() instead of a momentum.'
    )
  return 1 - value


def from_torch(
  state_dict: Mapping[str, Any],
  prefix: str = '',
  *,
  count: int | None = None,
) -> dict[str, np.ndarray]:
  """Reads one normalization layer out of a PyTorch state dict.

  Args:
    state_dict: Names to arrays, or to tensors on the CPU.
    prefix: Of the layer, such as 'features.1.'.
    count: Activations of a feature in a batch of that training. Given, the
      running variance becomes the biased one, as Flax has it; None leaves it
      unbiased, as `norms.batch_norm` has it.

  Returns:
    'scale', 'bias', 'mean', 'var' and 'steps', as far as the layer has them.

  Raises:
    ValueError: If there is no such layer.
  """
  layer = {
    ours: np.asarray(state_dict[prefix + theirs])
    for ours, theirs in _NAMES.items()
    if prefix + theirs in state_dict
  }
  if not layer:
    known = sorted({name[: name.rfind('.') + 1] for name in state_dict})
    raise ValueError(
      f'no normalization with prefix {prefix!r} in the state dict; it has: '
      f'{", ".join(map(repr, known))}.'
    )
  if 'var' in layer and count is not None:
    layer['var'] = layer['var'] * _biased(count)
  if prefix + 'num_batches_tracked' in state_dict:
    tracked = np.asarray(state_dict[prefix + 'num_batches_tracked'])
    layer['steps'] = tracked.astype(np.int32)
  return layer


def to_torch(
  layer: Mapping[str, Any], prefix: str = '', *, count: int | None = None
) -> dict[str, np.ndarray]:
  """Undoes `from_torch`: returns the entries of a state dict.

  Args:
    layer: 'scale', 'bias', 'mean', 'var' and 'steps', as far as there are.
    prefix: Of the layer.
    count: As for `from_torch`: given, 'var' is biased.

  Returns:
    Names to arrays.
  """
  entries = {
    prefix + theirs: np.asarray(layer[ours])
    for ours, theirs in _NAMES.items()
    if layer.get(ours) is not None
  }
  if prefix + 'running_var' in entries and count is not None:
    variance = entries[prefix + 'running_var']
    entries[prefix + 'running_var'] = variance / _biased(count)
  if layer.get('steps') is not None:
    steps = np.asarray(layer['steps']).astype(np.int64)
    entries[prefix + 'num_batches_tracked'] = steps
  return entries


def _biased(count: int) -> float:
  if count < 2:
    raise ValueError(
      f'count={count} must be at least 2: of one activation there is no '
      'unbiased variance.'
    )
  return (count - 1) / count
