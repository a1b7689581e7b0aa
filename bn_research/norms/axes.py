"""The contracts of the four axes: the page to read first.

A normalized activation is x̂ = Norm(x, X): x is one activation, and X is the
set of activations whose statistics normalize x. A `Normalization` makes one
choice on each of four axes:

  scope        which activations are in X
  map          how the moments of X normalize x
  population   which moments are remembered for inference
  gradient     which moments normalize, and which derivatives are learned from

A choice uses the three further choices through the contracts on this page only.
A training call takes six steps:

  1. The scope makes a `View` of the activations: one axis may be cut in two,
     and some axes are pooled.
  2. The scope has the map estimate the `Moments` that normalize, and the
     `Moments` of the whole batch.
  3. The map makes one `Pair` of the moments that normalize. The population
     makes a second `Pair` of the state.
  4. The gradient policy returns the `Pair` that normalizes.
  5. The map normalizes with this `Pair`, scales and shifts.
  6. The population updates the state with the moments of the whole batch.

Inference normalizes with the `Pair` of the population, and needs no policy.

A new scope, map or population is a frozen dataclass that subclasses `Scope`,
`Map` or `Population` and overrides the methods that raise NotImplementedError.
A new policy is a function with the arguments of `Gradient.__call__`, or an
`Axis` with such a method. A `Normalization` replaces a schedule of a map or of
a policy by the present number before each call.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from bn_research.norms.pytrees import Node
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.moments import Axes, Moments, Shape, wide
from bn_research.norms.statistics.views import View

# A combination nests the states of several populations, so no single type fits.
State: TypeAlias = Any  # the pytree of a population; () without a population


class Pair(NamedTuple):
  """The arrays that normalize, made by a map.

  In `Map.finish` and in a gradient policy, the arrays broadcast against the
  activations after the cut of the view, in float32 or a wider type. The pair
  from `Population.recall` has the shape of the features and float32 or a wider
  type; a `Normalization` expands and casts this pair.

  Attributes:
    mean: The mean, or None for a map that does not centre.
    spread: None for a map that does not scale. Otherwise the meaning depends on
      the map: a variance, a factor, or whitening matrices (..., blocks, d, d).
    steps: The number of updates so far, float32 (), for the pair of a
      population; None for the pair of a batch.
  """

  mean: Any
  spread: Any
  steps: Any = None


jax.export.register_namedtuple_serialization(
  Pair, serialized_name='bn_research.norms.Pair'
)


class Axis(Node):
  """The base class of a choice: a frozen dataclass, and a pytree.

  `Node` describes fields that are numbers, arrays or schedules.

  Attributes:
    objection: None, or a method that a new `Normalization` calls with itself
      as the argument. The method reads `scope`, `map`, `population` and
      `gradient`. The result is None if the choices fit. Otherwise the result is
      one sentence that names both choices and a fix; the `Normalization` raises
      the sentence as a ValueError.
  """

  objection: ClassVar[Callable[[Any, Any], str | None] | None] = None


class Scope(Axis):
  """The choice of the activations that share statistics.

  A scope with `shares = False` needs neither `features` nor `expand`.

  Attributes:
    shares: Whether examples share statistics. A population can remember only
      shared statistics.
    joins: Whether normalized sets join to activations again. Sets that overlap,
      for example patches, do not. A `Normalization` of such a scope measures
      and learns moments, and refuses `apply`. The moments then broadcast
      against the sets in place of the activations.
  """

  shares: ClassVar[bool] = True
  joins: ClassVar[bool] = True

  def features(self, shape: Shape) -> Shape:
    """Returns the shape of the features, which is the shape of a state's mean.

    Args:
      shape: The shape of the activations, (batch, ..., features).
    """
    raise NotImplementedError

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Reshapes a remembered array, to broadcast against the activations.

    Args:
      leaf: An array of the shape of the features. For a joint map also an array
        (blocks, d, d), which needs axes of size 1 in front: one for each axis
        of the activations except the last.
      shape: The shape of the activations.
    """
    raise NotImplementedError

  def view(self, x: jax.Array, map_: 'Map') -> View:
    """Returns the view that `moments` needs: the cut, and the pooled axes.

    Args:
      x: The activations (batch, ..., features), floating.
      map_: The map. A `joint` map needs the features on the last axis. A map
        without a merge needs all activations of a set together.
    """
    raise NotImplementedError

  def over_devices(self, axis_name: str) -> 'Scope':
    """Returns the scope for examples that are spread over named devices.

    Under `shard_map` and `pmap`, the program sees the examples of one device.
    The returned scope has the sets of the whole batch nevertheless. A scope
    with `shares = False` needs no change.

    Args:
      axis_name: The name of the mesh axis over which the examples are spread.

    Raises:
      ValueError: If the scope has no such form.
    """
    if self.shares:
      raise ValueError(
        f'{self} does not say how examples on several named devices share'
        ' statistics: give the class a method over_devices, or use jit over a'
        ' mesh.'
      )
    return self

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: 'Map'
  ) -> tuple[Moments, Moments]:
    """Estimates the moments that normalize, and the moments of the batch.

    Args:
      view: The result of `view`.
      x: The activations after `view.split`, floating; float32 or wider for a
        map that is not `ordinary`.
      mask: None, or the mask after `view.split_mask`, boolean.
      map_: The map, whose `estimate` and `merge` do the work.

    Returns:
      Two `Moments`. The arrays of the first broadcast against `x`. The second
      is of the whole batch, for the population: all axes except the features
      have size 1. A scope with `shares = False` may return the first twice.
    """
    raise NotImplementedError


class Map(Axis):
  """The choice of the statistics, and of the function that normalizes.

  A subclass that overrides `estimate` defines new statistics: `ordinary` is
  then False. `merges` is then False too, unless the subclass also overrides
  `merge`. For statistics without a merge, a scope brings the rows together
  before the estimate, or refuses the map. A subclass may set `ordinary` and
  `merges` in the class body instead.

  Attributes:
    centre: Whether moments are about the mean, or (False) about zero.
    joint: Whether `estimate` returns covariances of features.
    ordinary: Whether `estimate` returns weighted means and (co)variances.
    merges: Whether `merge` computes the moments of a union from the moments of
      the parts.
  """

  centre: bool
  joint: ClassVar[bool] = False
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    # A median, for example, does not merge like a mean. A wrong merge would
    # give wrong numbers in silence, so a new estimate must declare a merge.
    if 'estimate' in vars(cls):
      cls.ordinary = vars(cls).get('ordinary', False)
      cls.merges = vars(cls).get('merges', 'merge' in vars(cls))

  @property
  def scales(self) -> bool:
    """Whether the result loses the scale of the activations.

    The default of a layer is to learn a new scale in this case.
    """
    raise NotImplementedError

  @property
  def needs_moments(self) -> bool:
    """Whether the moments change the result; False for the identity."""
    return True

  @property
  def ddof(self) -> int:
    """Delta degrees of freedom: n / (n - ddof) makes the variance unbiased."""
    # The mean of the set costs one degree. A moment about zero costs nothing,
    # and for a new statistic the factor has no meaning.
    return int(self.centre and self.ordinary)

  def estimate(
    self,
    x: jax.Array,
    mask: jax.Array | None,
    axes: Axes,
    devices: Devices,
    groups: int | None = None,
  ) -> Moments:
    """Estimates the moments of sets of activations.

    `moments.estimate` is an example.

    Args:
      x: Activations of any shape, floating; float32 or wider for a map that is
        not `ordinary`.
      mask: None, or boolean and broadcastable against `x`. False leaves an
        activation out of the set; a hidden activation may have any value, also
        NaN.
      axes: Axes of `x` to pool; the pooled axes stay, with size 1.
      devices: Devices to pool over, too. A map that is not `ordinary` always
        gets one device.
      groups: None, or the number of groups of neighbours on the last axis, each
        pooled alone. A map that is not `ordinary` always gets None.

    Returns:
      Moments in float32 or a wider type. The mean and the co-moment broadcast
      against `x`; the co-moment of a `joint` map is (..., blocks, d, d). The
      count broadcasts against the mean. The moments of an empty set are zero.
    """
    raise NotImplementedError

  def merge(self, blocks: Moments, axis: int) -> Moments:
    """Returns the moments of the union of the sets along one axis.

    Args:
      blocks: Moments from `estimate`. The merge must ignore an empty set, which
        has count 0.
      axis: An axis of the means, from the front; the axis stays, with size 1.
    """
    return blocks.merged(axis)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns the remembered moments before the first batch.

    Normalization with the initial moments should change little: mean 0 and
    variance 1, for example.

    Args:
      features: The shape of the features.
      dtype: The type of the state.

    Returns:
      Moments with count 1, and with the shapes that `remember` returns.
    """
    raise NotImplementedError

  def remember(self, moments: Moments) -> Moments:
    """Returns moments whose `mean` and `variance` a population averages.

    The default is to remember the moments unchanged. A map may remember a
    function of the moments, for example whitening matrices.

    Args:
      moments: Moments of the shape of the features.
    """
    return moments

  def remembering_moments(self) -> 'Map':
    """Returns the same map, but with a `remember` that changes nothing."""
    return self

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Makes the pair that normalizes, from remembered arrays.

    Args:
      mean: The average of the `mean` that `remember` returns, in float32 or a
        wider type.
      var: The average of the `variance` that `remember` returns, in the same
        type.
    """
    raise NotImplementedError

  def pair(self, moments: Moments) -> Pair:
    """Makes the pair that normalizes, from the moments of a batch."""
    return self.recall(moments.mean, moments.variance)

  def deviation(self, pair: Pair) -> jax.Array | float:
    """Returns the divisor of each feature, for `gradients.Renormalized`.

    A joint map has no divisor of a single feature, and need not override this
    method.

    Args:
      pair: The result of `pair` or of `recall`.

    Returns:
      An array that broadcasts like `pair.spread`; 1.0 without scaling.
    """
    raise NotImplementedError

  def divided_by(self, mean: Any, deviation: Any) -> Pair:
    """Undoes `deviation`: returns the pair of a mean and a divisor.

    Args:
      mean: None, or the mean to subtract.
      deviation: The divisor of each feature.
    """
    raise NotImplementedError

  def finish(
    self,
    x: jax.Array,
    mask: jax.Array | None,
    pair: Pair,
    scale: jax.Array | None,
    bias: jax.Array | None,
    dtype: Any,
  ) -> jax.Array:
    """Normalizes with a pair, scales and shifts.

    Args:
      x: Activations of any shape, floating.
      mask: None, or boolean and broadcastable against `x`.
      pair: The pair that normalizes; the arrays broadcast against `x`.
      scale: None for 1, or broadcastable against `x`.
      bias: None for 0, or broadcastable against `x`.
      dtype: The type of the result, floating.

    Returns:
      An array of the shape of `x`, computed in float32 or a wider type and
      rounded once. Masked activations are 0.
    """
    raise NotImplementedError


class Population(Axis):
  """The choice of a memory: from the moments of batches to those of inference.

  `Map.remember` decides which arrays are remembered: variances, covariances or
  matrices. The population decides how to remember: by an average, a pool, an
  accumulation, or at an interval. A state is a NamedTuple that begins with the
  fields of `Running`. A population whose state is exactly a `Running` may
  subclass `populations.running.RunningPopulation` and override `update` only;
  the function `moved` of the same module does the work of most updates.
  """

  @property
  def state_type(self) -> type:
    """The class of the state, a NamedTuple."""
    raise NotImplementedError

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32) -> State:
    """Returns the state before the first update.

    Args:
      map_: The map, whose `initial` gives the remembered moments.
      features: The shape of the features.
      dtype: The type of mean and variance.
    """
    raise NotImplementedError

  def update(self, state: State, moments: Moments, map_: Map) -> State:
    """Returns the state after one more batch, of the same shapes and dtypes.

    Args:
      state: The state from `init`, or from the last update.
      moments: The moments of the batch, float32 or wider, without a derivative.
        `mean` and `count` have the shape of the features, and `comoment` has
        the shape of the `var` of the state.
      map_: The map, whose `remember` decides which arrays are remembered.
        Schedules of the map are already replaced by numbers.
    """
    raise NotImplementedError

  def adopt(
    self, state: State, moments: Moments, map_: Map, batches: jax.Array
  ) -> State:
    """Returns the state after a measurement of a whole data set.

    Args:
      state: The state so far.
      moments: The moments of the data set, of the shapes of `update`. The state
        remembers these moments only.
      map_: The map, whose `remember` decides which arrays are remembered.
      batches: The number of measured batches, ().
    """
    raise NotImplementedError

  def resume(self, running: Any, map_: Map) -> State:
    """Returns the state that continues from a `Running`.

    A population with a longer state must override this method.

    Args:
      running: Mean, variance and counts, possibly of a different population.
      map_: The map, whose `recall` may be needed for a longer state.

    Raises:
      ValueError: If the state is longer, and the method is not overridden.
    """
    del map_
    if not isinstance(running, self.state_type):
      raise ValueError(
        f'{self} has a {self.state_type.__name__} for the state, and cannot '
        'continue from a Running; override the method `resume`.'
      )
    return running

  def recall(self, state: State, map_: Map) -> Pair:
    """Makes the pair that normalizes, of the shape of the features.

    Args:
      state: The state from `init` or from an update.
      map_: The map, whose `recall` does the work.
    """
    # The root of a covariance needs the range and the precision of float32.
    return map_.recall(wide(state.mean), wide(state.var))


class Gradient(Protocol):
  """The choice of the pair that normalizes, and of the derivatives to follow.

  A policy is a function, or an `Axis` with a method `__call__`. The result of
  the policy normalizes. With `jax.lax.stop_gradient` the policy hides a
  derivative from the optimizer.
  """

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns the pair that normalizes; `steps` of the result has no effect.

    Args:
      batch: The pair of the batch, with a derivative; `steps` is None.
      population: The pair of the population, or None without a population.
        `population.steps` counts the updates so far.
      map_: The map, with `deviation` and `divided_by` for arithmetic on pairs.
    """
    ...


class Normalizer(Protocol):
  """The methods that a layer calls.

  A layer may hold a `Normalization`, a combination (`Chain`, `Mixture` or
  `Coloured`), or a class of `methods.evonorm` or `methods.squash`.
  """

  @property
  def remembers(self) -> bool:
    """Whether a population remembers moments, for use at inference."""
    ...

  @property
  def scales(self) -> bool:
    """Whether the result loses the scale of the activations."""
    ...

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the state before the first batch; () without a population.

    Args:
      num_features: The size of the last axis of the activations.
      dtype: The type of the statistics.
    """
    ...

  def learned(self, num_features: int, dtype: Any = jnp.float32) -> Any:
    """Returns the initial parameters besides scale and bias, a pytree.

    Args:
      num_features: The size of the last axis of the activations.
      dtype: The type of the parameters.
    """
    ...

  def apply(
    self,
    x: jax.Array,
    state: State = (),
    *,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    learned: Mapping[str, Any] | tuple[Any, ...] | None = None,
    use_running: bool = False,
    update: bool = True,
    mask: jax.Array | None = None,
    dtype: Any = None,
  ) -> tuple[jax.Array, State]:
    """Normalizes `x`.

    `Normalization.apply` describes arguments, results and errors.
    """
    ...
