"""One program of many runs: the numbers, the arrays and the compilation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bn_research.training import keys
from bn_research.training.packing import lifting, stacking, tracing
from bn_research.training.packing.tracing import Traced

_RUNS = PartitionSpec('runs')
_WHOLE = PartitionSpec()


class Program:
  """A program for all places of a pack.

  The places are divided among the devices, and no device needs another device.
  On a CPU, a device computes its places one after another: the weights of a run
  then stay in the cache of a core for many steps. On an accelerator, a device
  computes its places at once (`vmap`).

  Attributes:
    name: The name of the function.
  """

  def __init__(
    self,
    settings: Sequence[Traced],
    width: int,
    devices: Sequence[jax.Device],
    is_vectorized: bool,
  ):
    """Finds the numbers in which the settings differ.

    Args:
      settings: The program for each setting of the numbers.
      width: The number of places, a multiple of the number of devices.
      devices: The devices.
      is_vectorized: Whether a device computes its places at once.

    Raises:
      lifting.Different: If two settings differ in more than numbers.
    """
    self._traced = settings[0]
    # Names in a result may have numbers of the setting.
    self._trees = [one.tree for one in settings]
    self.name = self._traced.name
    self._width, self._num_devices = width, len(devices)
    self._is_vectorized = is_vectorized
    self._mesh = jax.make_mesh(
      (len(devices),), ('runs',), axis_types=(AxisType.Auto,), devices=devices
    )
    self._runs = NamedSharding(self._mesh, _RUNS)
    self._paths, self._numbers = _numbers(settings)
    self._is_own = [
      _is_own(same) for same in zip(*(s.args for s in settings), strict=True)
    ]
    whole = NamedSharding(self._mesh, _WHOLE)
    # `device_put` does not copy arrays that are in their places already.
    shared = self._chosen(self._traced.args, False)
    self._shared = [jax.device_put(array, whole) for array in shared]
    self._stacked_numbers: dict[tuple[int, ...], list[jax.Array]] = {}

  def lower(self) -> Any:
    """Traces the program for all places, and translates it for XLA."""
    first = 3  # The arguments of `run` before the arrays of each run.
    donated = self._chosen(self._traced.donated, True)
    given = self._chosen(self._traced.args, True)
    run = jax.shard_map(
      self._run,
      mesh=self._mesh,
      in_specs=(_RUNS, _RUNS, _WHOLE, *(_RUNS for _ in given)),
      out_specs=_RUNS,
      check_vma=False,
    )
    jitted = jax.jit(
      run, donate_argnums=[first + k for k, yes in enumerate(donated) if yes]
    )
    return jitted.lower(
      [self._abstract(values[0]) for values in self._numbers],
      self._abstract(np.bool_()),
      self._shared,
      *map(self._abstract, given),
    )

  def compile(self, lowered: Any) -> None:
    """Compiles the program."""
    self._compiled = lowered.compile(self._traced.options)

  def __call__(
    self,
    given: Mapping[int, Sequence[Any]],
    settings: Mapping[int, int],
    is_last_use: bool,
  ) -> dict[int, Any]:
    """Computes for some places at once.

    Args:
      given: The leaves of the arguments, by place.
      settings: The setting of each place.
      is_last_use: Whether nobody else needs the arrays of the arguments.

    Returns:
      The result of each place in `given`, with a `stacking.Part` in the place
      of each array.
    """
    own = {place: self._chosen(leaves, True) for place, leaves in given.items()}
    stacked = [
      stacking.stack(
        {place: leaves[k] for place, leaves in own.items()},
        self._width,
        self._runs,
        is_last_use,
      )
      for k in range(sum(self._is_own))
    ]
    is_live = np.isin(np.arange(self._width), list(given))
    results = self._compiled(
      self._numbers_of(settings),
      jax.device_put(is_live, self._runs),
      self._shared,
      *stacked,
    )
    arrays = [stacking.Stacked(result) for result in results]
    return {
      place: jax.tree.unflatten(
        self._trees[settings[place]],
        [stacking.Part(array, place) for array in arrays],
      )
      for place in given
    }

  def _chosen(self, leaves: Sequence[Any], is_own: bool) -> list[Any]:
    """Returns the leaves that each run has, or the leaves that all share."""
    pairs = zip(leaves, self._is_own, strict=True)
    return [leaf for leaf, own in pairs if own == is_own]

  def _abstract(self, array: Any) -> jax.ShapeDtypeStruct:
    shape = (self._width, *array.shape)
    return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self._runs)

  def _numbers_of(self, settings: Mapping[int, int]) -> list[jax.Array]:
    """Returns the numbers of all places."""
    # An empty place has some numbers.
    key = tuple(settings.get(place, 0) for place in range(self._width))
    if key not in self._stacked_numbers:
      self._stacked_numbers = {
        key: [
          jax.device_put(np.stack([values[k] for k in key]), self._runs)
          for values in self._numbers
        ]
      }
    return self._stacked_numbers[key]

  def _run(
    self,
    numbers: list[jax.Array],
    is_live: jax.Array,
    shared: list[jax.Array],
    *own: jax.Array,
  ) -> list[jax.Array]:
    """Computes the places of a device."""
    one = self._of_place(shared)
    if self._is_vectorized:
      return jax.vmap(one)(numbers, own)
    if self._width == self._num_devices:
      # XLA has no fast convolutions in loops and in branches on a CPU.
      return jax.tree.map(
        lambda leaf: leaf[None],
        one(*jax.tree.map(lambda x: x[0], (numbers, own))),
      )
    # An empty place takes no time.
    return jax.lax.map(
      lambda given: jax.lax.cond(
        given[0],
        lambda: one(*given[1:]),
        lambda: jax.tree.map(_zeros, jax.eval_shape(one, *given[1:])),
      ),
      (is_live, numbers, own),
    )

  def _of_place(self, shared: Sequence[jax.Array]) -> Callable[..., Any]:
    """Returns the program of one place."""

    def one(numbers: Sequence[Any], own: Sequence[Any]) -> list[Any]:
      rest = {True: iter(own), False: iter(shared)}
      leaves = [next(rest[is_own]) for is_own in self._is_own]
      by_path = dict(zip(self._paths, numbers, strict=True))
      return lifting.evaluate(self._traced.program, by_path, *leaves)

    return one


def _numbers(
  settings: Sequence[Traced],
) -> tuple[list[lifting.Path], list[list[np.ndarray]]]:
  """Returns the places of the numbers, and for each the value in a setting."""
  first, *others = settings
  values: dict[lifting.Path, dict[int, np.ndarray]] = {}
  for k, other in enumerate(others, 1):
    found = lifting.differences(first.program, other.program)
    for path, mine, theirs in found:
      values.setdefault(path, {0: mine})[k] = theirs
  return list(values), [
    [of_path.get(k, of_path[0]) for k in range(len(settings))]
    for of_path in values.values()
  ]


def _is_own(same: Sequence[Any]) -> bool:
  """Returns whether runs have an argument each, and do not share an array."""
  first = same[0]
  return not tracing.is_shared(first) or any(leaf is not first for leaf in same)


def _zeros(leaf: Any) -> jax.Array:
  if keys.is_key(leaf):
    raw = jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.wrap_key_data(
      jnp.zeros(raw.shape, raw.dtype), impl=jax.random.key_impl(leaf)
    )
  return jnp.zeros(leaf.shape, leaf.dtype)
