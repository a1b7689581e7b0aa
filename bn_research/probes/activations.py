"""Percentiles of the inputs of nonlinearities, as in Figure 1(b, c)."""

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
  """Measures percentiles of the input of each nonlinearity.

  Attributes:
    percentiles: (q,) percentages in [0, 100].
    unit: Index of the feature for the percentiles of a single feature.
    nonlinearities: Names of the measured inputs, for example
      `'hidden_3/input'`; None for all inputs.

  Source: Ioffe and Szegedy (2015), Figure 1(b, c).
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
    """The percentages, which the file of the probe stores once."""
    return {'percentiles': np.asarray(self.percentiles, np.float32)}

  def __call__(self, observation: Observation) -> dict[str, jax.Array]:
    """Measures the model on a mini-batch, in training mode.

    The statistics of the mini-batch normalize, as in training.

    Args:
      observation: The model and the mini-batch.

    Returns:
      Two arrays (q,) float32 for each measured nonlinearity: the percentiles of
      the unit over the mini-batch, with the name `'hidden_1/input/unit'`, and
      the percentiles over the mini-batch and all features, with the name
      `'hidden_1/input/all'`.

    Raises:
      ValueError: If the model has no nonlinearity of a given name, or if
        `unit` is not a feature of a nonlinearity.
    """
    # The nonlinearity uses the result of the tap, and `setdefault` returns the
    # recorded input.
    inputs: dict[str, jax.Array] = {}

    def note(name: str, h: jax.Array) -> jax.Array:
      inputs.setdefault(name, h)
      return h

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
      # The compilation takes most of the time. Arrays of the same size share a
      # single search, which the program contains only once.
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
