"""Counts the collectives of a training step in the compiled program."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bn_research import data
from bn_research.training import compiling, configuration, mesh, step
from bn_research.training.programs import Programs

# The share of the bytes of a result that a device sends, for n devices, by the
# algorithms that send the fewest bytes.
_SENT: dict[str, Callable[[int], float]] = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: 1,
}
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(_SENT)})\(')
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\]')


class Collective(NamedTuple):
  """A collective of a program.

  Attributes:
    kind: The name in XLA, for example `'all-reduce'`.
    size: Bytes of the result on each device.
  """

  kind: str
  size: int

  def sent(self, num_devices: int) -> float:
    """Returns the bytes that each of `num_devices` devices sends.

    Args:
      num_devices: The number of devices that take part.
    """
    return self.size * _SENT[self.kind](num_devices)


def read(text: str) -> list[Collective]:
  """Returns the collectives in the text of a program for a CPU.

  The body of a loop stands once in the text, and counts once. On further
  platforms a gather may have a start and an end, of other sizes.

  Args:
    text: The result of `as_text` of a compiled function of JAX.
  """
  return [
    Collective(kind, sum(map(_bytes, _ARRAY.finditer(arrays))))
    for arrays, kind in _COLLECTIVE.findall(text)
  ]


def _bytes(array: re.Match[str]) -> int:
  """Returns the bytes of an array such as `f32[100,10]`."""
  _, bits, sizes = array.groups()
  count = math.prod(int(size) for size in sizes.split(',') if size)
  return count * int(bits or 8) // 8  # A `pred` has a byte.


def of_step(
  config: Mapping[str, Any], dataset: data.Dataset
) -> list[Collective]:
  """Returns the collectives of a training step, as a run compiles the step.

  Args:
    config: The config of a run.
    dataset: A dataset in memory, of any content.

  Returns:
    The collectives in the loop of the steps or, where a run has one call for
    each step, in the step.

  Raises:
    UserError: If the config is wrong.
  """
  config = configuration.resolve(config)
  devices = mesh.create(
    config['num_devices'],
    config['batch_size'],
    config['parallel']['model_devices'],
  )
  compiler = _StepsAlone(devices)
  with jax.set_mesh(devices):
    Programs(config, dataset, devices, compiler=compiler)
    return read(compiler.traced.lower().compile().as_text())


class _StepsAlone(compiling.Compiler):
  """Traces the steps of a run, and leaves every other program out.

  Attributes:
    traced: The traced program of the steps.
  """

  traced: Any

  def ahead(self, function: Any, *args: Any, **options: Any) -> Any:
    """Traces a function if the function takes the steps of a run."""
    if getattr(function, 'func', None) in (step.train_steps, step.guarded_step):
      self.traced = self.trace(function, *args, **options)
