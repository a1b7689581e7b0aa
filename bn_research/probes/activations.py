"""Distributions of the inputs of the nonlinearities: Figure 1(b, c)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import ranges
from bn_research.probes import percentiles as percentiles_lib
from bn_research.probes.observation import Observation


@dataclasses.dataclass(frozen=True)
class Activations:
  """Percentiles of what each nonlinearity sees while the model trains.

  Attributes:
    percentiles: (q,) percentages.
    unit: Index of the feature that is followed on its own.
    nonlinearities: Names of the inputs to follow, such as `'hidden_3/input'`;
      None for all.
  """

  percentiles: Sequence[float] = (15.0, 50.0, 85.0)
  unit: int = 0
  nonlinearities: Sequence[str] | None = None

  def __post_init__(self):
    if not self.percentiles or not all(
      isinstance(q, float | int) and 0 <= q <= 100 for q in self.percentiles
    ):
      raise ValueError(
        f'percentiles={tuple(self.percentiles)}; give some of 0 to 100'
      )
    ranges.whole(0, 2**31 - 1, unit=self.unit)

  @property
  def constants(self) -> dict[str, np.ndarray]:
    """What is stored once, beside what is measured."""
    return {'percentiles': np.asarray(self.percentiles, np.float32)}

  def __call__(self, observation: Observation) -> dict[str, jax.Array]:
    """Measures the model on the batch, whose own statistics normalize.

    Args:
      observation: The model and the batch.

    Returns:
      For each nonlinearity followed, (q,) over the batch for the unit, as
      `'hidden_1/input/unit'`, and over all features too, as
      `'hidden_1/input/all'`.

    Raises:
      ValueError: If there is no such nonlinearity, or it has no such unit.
    """
    inputs: dict[str, jax.Array] = {}
    note = lambda name, h: inputs.setdefault(name, h)
    observation.model()(observation.x, train=True, tap=note)
    sets: dict[str, jax.Array] = {}
    for name in self.nonlinearities or inputs:
      if name not in inputs:
        raise ValueError(
          f'nonlinearities names {name!r}; there are'
          f' {", ".join(inputs) or "none"}'
        )
      sets[f'{name}/unit'] = self._of_unit(name, inputs[name])
      sets[f'{name}/all'] = inputs[name].ravel()
    return self._percentiles(sets)

  def _percentiles(self, sets: dict[str, jax.Array]) -> dict[str, jax.Array]:
    by_size: dict[int, list[str]] = {}
    for name, values in sets.items():
      by_size.setdefault(values.size, []).append(name)
    found: dict[str, jax.Array] = {}
    for names in by_size.values():
      # All of one size together: what takes long is to compile.
      stacked = jnp.stack([sets[name] for name in names])
      result = percentiles_lib.percentiles(stacked, self.percentiles)
      found.update(zip(names, result.T, strict=True))
    return found

  def _of_unit(self, name: str, value: jax.Array) -> jax.Array:
    if not 0 <= self.unit < value.shape[-1]:
      raise ValueError(
        f'unit={self.unit}, but {name} has units 0 to {value.shape[-1] - 1}'
      )
    return value[..., self.unit].ravel()
