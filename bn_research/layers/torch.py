"""Normalization layers to and from PyTorch state dicts, conventions converted.

PyTorch's `momentum` is the weight of the new value, and PyTorch's running
variance is unbiased. PyTorch calls the parameters `weight` and `bias`, and the
statistics `running_mean`, `running_var` and `num_batches_tracked`. This module
reads tensors through their methods and does not import PyTorch.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_NAMES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_TRACKED = 'num_batches_tracked'
# `to_torch` drops these counts, which PyTorch has not.
_DROPPED = {'skipped', 'weight'}
# A ResNet has hundreds of prefixes, too many for the line of an error.
_SHOWN = 8


def momentum(value: float | None) -> float:
  """Converts a momentum from PyTorch's convention to ours, or back.

  The formula is the same in both directions: 1 - value.

  Args:
    value: A number in [0, 1].

  Returns:
    1 - value, a float: the momentum in the opposite convention.

  Raises:
    ValueError: If `value` is None, which PyTorch takes for a cumulative
      average, or if `value` is outside [0, 1].
    TypeError: If `value` is not a number.
  """
  if value is None:
    raise ValueError(
      "PyTorch's momentum=None is a cumulative average; take the population "
      'norms.Cumulative() instead of a momentum.'
    )
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f'momentum={value!r} is not a number; give a number in [0, 1].'
    ) from error
  if not 0 <= number <= 1:
    raise ValueError(
      f'momentum={value!r} is outside [0, 1]; give a number in [0, 1].'
    )
  return 1 - number


def from_torch(
  state_dict: Mapping[str, Any],
  prefix: str = '',
  *,
  count: int | None = None,
) -> dict[str, np.ndarray]:
  """Copies a normalization layer out of a PyTorch state dict.

  Leave `count` out for the numbers of PyTorch at inference: a layer of this
  package or of Flax, with these arrays and with the epsilon of PyTorch, gives
  the results of PyTorch.

  With `count`, the running variance becomes a biased variance, and inference
  differs from PyTorch. `count` is only for a `BatchNorm` that trains on: the
  running variance of a `BatchNorm` is an average of biased variances:

    var = running_var · (count - 1) / count

  Args:
    state_dict: A mapping from names to arrays or tensors. A tensor may be a
      parameter, may require a gradient, and may be on any device. Weight, bias
      and statistics share a shape, which is (features,) or the normalized
      shape of a LayerNorm, and hold numbers of float16, bfloat16, float32 or
      float64.
    prefix: The start of the layer's names, with the dot: 'features.1.'.
    count: None to copy the variance; or, for a `BatchNorm` that trains on, the
      number of activations per feature in a training batch, at least 2. A
      `Norm` of `norms.batch_norm` needs no `count` to train on, because its
      average is unbiased, as in PyTorch. A layer without a running variance
      ignores `count`.

  Returns:
    A dictionary with the names among 'scale', 'bias', 'mean', 'var' and 'steps'
    for which the layer has an entry. Each array is a writable copy with the
    type and the values of the tensor. 'steps' is int32, (), and stops at the
    largest int32.

  Raises:
    ValueError: If `state_dict` has no layer with the prefix, if the layer is
      no normalization but a convolution, a linear layer or an embedding, or if
      `count` is below 2.
    TypeError: If `state_dict` is not a mapping, if an entry is not an array of
      floating-point numbers, or if `prefix` or `count` has a wrong type.
  """
  _check_arguments('state_dict', state_dict, prefix, count)
  layer = {
    ours: _floats(
      f'state_dict[{prefix + theirs!r}]', state_dict[prefix + theirs]
    )
    for ours, theirs in _NAMES.items()
    if prefix + theirs in state_dict
  }
  if not layer:
    raise _no_layer(state_dict, prefix)
  _check_shapes(
    f'state_dict at prefix={prefix!r}',
    {_NAMES[name]: array.shape for name, array in layer.items()},
  )
  if len(layer) == 1 and 'scale' in layer and layer['scale'].ndim > 1:
    raise ValueError(
      f'state_dict at prefix={prefix!r} has a weight of shape '
      f'{layer["scale"].shape} alone, as an embedding, a linear layer or a '
      'convolution has; give the prefix of a normalization (to a norm without '
      f'a bias, add zeros as {prefix + "bias"!r}).'
    )
  if 'var' in layer and count is not None:
    layer['var'] = _times(layer['var'], _biased(count))
  if prefix + _TRACKED in state_dict:
    name = f'state_dict[{prefix + _TRACKED!r}]'
    steps = _steps(name, state_dict[prefix + _TRACKED])
    largest = int(np.iinfo(np.int32).max)
    layer['steps'] = np.array(min(steps, largest), np.int32)
  return layer


def to_torch(
  layer: Mapping[str, Any], prefix: str = '', *, count: int | None = None
) -> dict[str, np.ndarray]:
  """Writes a normalization layer as entries of a PyTorch state dict.

  `to_torch` undoes `from_torch`. With `count`, the variance of the layer is
  biased, and the running variance of the state dict is unbiased:

    running_var = var · count / (count - 1)

  Args:
    layer: A mapping with names among 'scale', 'bias', 'mean', 'var', 'steps',
      'skipped' and 'weight'. None stands for an absent array. The first four
      are NumPy arrays, JAX arrays or tensors of floating-point numbers and
      share a shape, and 'steps' is a whole number. 'skipped' and 'weight' are
      counts in the states of `norms.batch_norm`, and are dropped.
    prefix: The start of the layer's names, with the dot: 'features.1.'.
    count: The number of activations per feature in a training batch, at
      least 2, if 'var' is biased; None if 'var' is unbiased.

  Returns:
    A dictionary from PyTorch's names to arrays. Each array is a writable copy
    in a type of `torch.from_numpy`: float16, float32 and float64 keep their
    type, and bfloat16 and narrower types become float32 with the same values.
    'num_batches_tracked' is int64, ().

  Raises:
    ValueError: If `layer` has an unknown name or no array, if the shapes
      differ, as the shapes of a whitening layer do, or if `count` is below 2.
    TypeError: If `layer` is not a mapping, if a value is not an array of
      floating-point numbers, or if `prefix` or `count` has a wrong type.
  """
  _check_arguments('layer', layer, prefix, count)
  # Without 'skipped' the layer is no state, and 'weight' is PyTorch's name.
  dropped = _DROPPED if 'skipped' in layer else set()
  known = {*_NAMES, 'steps', *dropped}
  unknown = [name for name in layer if name not in known]
  if unknown:
    raise ValueError(
      f'layer has the unknown name {unknown[0]!r}; give only '
      f'{", ".join(map(repr, _NAMES))} and {"steps"!r}.'
    )
  arrays = {
    name: _floats(f'layer[{name!r}]', layer[name])
    for name in _NAMES
    if layer.get(name) is not None
  }
  if not arrays:
    raise ValueError(
      f'layer={dict(layer)!r} has no array; give at least one of '
      f'{", ".join(map(repr, _NAMES))}.'
    )
  _check_shapes('layer', {name: array.shape for name, array in arrays.items()})
  if 'var' in arrays and count is not None:
    arrays['var'] = _times(arrays['var'], 1 / _biased(count))
  entries = {
    prefix + _NAMES[name]: array.astype(_shared(array.dtype))
    for name, array in arrays.items()
  }
  if layer.get('steps') is not None:
    steps = _steps("layer['steps']", layer['steps'])
    entries[prefix + _TRACKED] = np.array(steps, np.int64)
  return entries


def _check_arguments(name: str, given: Any, prefix: Any, count: Any) -> None:
  if not isinstance(given, Mapping):
    fix = 'model.state_dict()' if name == 'state_dict' else "{'scale': ...}"
    raise TypeError(
      f'{name} is a {type(given).__name__}, which is not a mapping; give {fix}.'
    )
  if not isinstance(prefix, str):
    raise TypeError(
      f"prefix={prefix!r} is not a string; give one such as 'features.1.'."
    )
  if count is not None:
    _biased(count)


def _no_layer(state_dict: Mapping[str, Any], prefix: str) -> ValueError:
  parameters = tuple(_NAMES.values())
  known = sorted(
    {
      name[: name.rfind('.') + 1]
      for name in map(str, state_dict)
      if name[name.rfind('.') + 1 :] in parameters
    }
  )
  if not known:
    return ValueError(
      f'no normalization with prefix {prefix!r} in the state dict, which has '
      f'no name that ends in {", ".join(parameters)}; give the state dict of '
      'the whole model.'
    )
  # The near prefixes come first, because users forget the dot.
  known.sort(key=lambda name: not name.startswith(prefix))
  more = len(known) - _SHOWN
  shown = ', '.join(map(repr, known[:_SHOWN]))
  return ValueError(
    f'no normalization with prefix {prefix!r} in the state dict; it has: '
    f'{shown}{f" and {more} more" if more > 0 else ""}.'
  )


def _copy(name: str, value: Any) -> np.ndarray:
  """Returns `value` as a new array on the host, without shared memory."""
  try:
    if hasattr(value, 'detach'):
      value = value.detach().cpu()
      if str(value.dtype).endswith('bfloat16'):
        # Tensors of bfloat16 have no `numpy()`. The upper half of a float32
        # is a bfloat16, and a cast in NumPy would warn about NaN.
        bits = np.array(value.float().numpy(), order='C').view(np.uint32)
        return (bits >> 16).astype(np.uint16).view(jnp.bfloat16)
      value = value.numpy()
    return np.array(value, order='C')
  except (TypeError, ValueError, RuntimeError) as error:
    # A tensor without data, a sparse tensor and a traced array end here.
    raise TypeError(
      f'{name} is a {type(value).__name__} that NumPy cannot read; give a '
      'dense float32 array, outside of jit.'
    ) from error


def _floats(name: str, value: Any) -> np.ndarray:
  array = _copy(name, value)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(
      f'{name} is of type {array.dtype}; give floating-point numbers.'
    )
  return array


def _steps(name: str, value: Any) -> int:
  array = _copy(name, value)
  # A float is accepted, because averages of state dicts hold floats.
  number = array.item() if array.shape == () else None
  if not isinstance(number, int | float) or not math.isfinite(number):
    raise ValueError(
      f'{name} is of shape {array.shape} and type {array.dtype}; give one '
      'integer of at least 0.'
    )
  if number < 0:
    raise ValueError(f'{name}={number} is below 0; give at least 0.')
  return int(number)


def _check_shapes(where: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
  if len(set(shapes.values())) == 1 and () not in shapes.values():
    return
  listed = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
  raise ValueError(
    f'{where} is not a normalization, whose arrays have one shape of at least '
    f'one axis: {listed}; give a normalization, not a convolution, a linear '
    'layer or a whitening.'
  )


def _shared(dtype: Any) -> Any:
  # PyTorch refuses numbers in the byte order of another machine.
  native = dtype.newbyteorder('=')
  if native in (np.float16, np.float32, np.float64):
    return native
  return np.float64 if native.itemsize > 4 else np.float32


def _times(array: np.ndarray, factor: float) -> np.ndarray:
  # The product is in float64, because bfloat16 would round a factor to 1.
  return (array.astype(np.float64) * factor).astype(array.dtype)


def _biased(count: int) -> float:
  try:
    number = operator.index(count)
  except TypeError as error:
    raise TypeError(
      f'count={count!r} is not an integer; give the number of activations per '
      'feature in a batch.'
    ) from error
  if number < 2:
    raise ValueError(
      f'count={count} must be at least 2: one activation has no unbiased '
      'variance.'
    )
  return (number - 1) / number
