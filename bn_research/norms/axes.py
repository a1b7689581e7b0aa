"""The contracts of the four axes: the page to read first.

A normalized activation is x̂ = Norm(x, X). A `Normalization` makes one choice
on each of four axes, and each choice knows the other three by these contracts
only:

  scope        which activations are in X
  map          what is done with the moments of X
  population   what is remembered of X for inference
  gradient     which moments normalize, and what is learned from them

On the way from x to x̂ the scope makes a view of x and has the map estimate
moments; the gradient policy chooses between the pair of the batch and the pair
of the population; the map normalizes with the chosen pair. When it is built, a
`Normalization` asks each choice for its objection to the other three.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from bn_research.norms.pytrees import Node
from bn_research.norms.statistics.collectives import Devices
from bn_research.norms.statistics.moments import Axes, Moments, Shape
from bn_research.norms.statistics.views import View

State: TypeAlias = Any  # the pytree of a population; () without a population


class Pair(NamedTuple):
  """What a map makes of moments, and what normalizes.

  Attributes:
    mean: Broadcastable against the activations; None if nothing is centred.
    spread: A variance, a factor or a whitening matrix, as the map defines it;
      None if nothing is scaled.
    steps: For the pair of a population, float32 (): the updates made so far.
      None for the pair of a batch.
  """

  mean: Any
  spread: Any
  steps: Any = None


jax.export.register_namedtuple_serialization(
  Pair, serialized_name='bn_research.norms.Pair'
)


class Axis(Node):
  """A choice on an axis: a frozen dataclass, and a pytree.

  Attributes:
    objection: None, or a method that takes the `Normalization` that is being
      built, with its `scope`, `map`, `population` and `gradient`, and returns
      one sentence on what does not fit, or None.
  """

  objection: ClassVar[Callable[[Any, Any], str | None] | None] = None


class Scope(Axis):
  """Which activations share statistics.

  Attributes:
    shares: Whether examples share statistics, which a population can remember.
  """

  shares: ClassVar[bool] = True

  def features(self, shape: Shape) -> Shape:
    """Returns the shape of what is remembered of activations of a shape."""
    raise NotImplementedError

  def expand(self, leaf: jax.Array, shape: Shape) -> jax.Array:
    """Lets a remembered array broadcast against activations of a shape."""
    raise NotImplementedError

  def view(self, x: jax.Array, map_: 'Map') -> View:
    """Returns the view of the activations `x` that suits the map."""
    raise NotImplementedError

  def moments(
    self, view: View, x: jax.Array, mask: jax.Array | None, map_: 'Map'
  ) -> tuple[Moments, Moments]:
    """Returns the moments that normalize the view, and those of all of X.

    Args:
      view: From `view`.
      x: The activations, split by the view.
      mask: None, or the mask, split by the view.
      map_: What estimates the moments.
    """
    raise NotImplementedError


class Map(Axis):
  """What is done with the moments of the scope.

  A subclass that overrides `estimate` has statistics of its own. Unless the
  subclass overrides `merge` too, these statistics do not merge: scopes then
  bring the rows together before the estimate, or refuse the map.

  Attributes:
    centre: Whether moments are about the mean, or (False) about zero.
    joint: Whether features are taken together, in a covariance.
    ordinary: Whether `estimate` returns weighted means and (co)variances.
    merges: Whether the moments of a union follow from those of its parts.
  """

  centre: bool
  joint: ClassVar[bool] = False
  ordinary: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    if 'estimate' in vars(cls):
      cls.ordinary = vars(cls).get('ordinary', False)
      cls.merges = vars(cls).get('merges', 'merge' in vars(cls))

  @property
  def scales(self) -> bool:
    """Whether the map takes a scale away, for a layer to give back."""
    raise NotImplementedError

  @property
  def needs_moments(self) -> bool:
    """Whether moments change the result; False for the identity."""
    return True

  @property
  def ddof(self) -> int:
    """Delta degrees of freedom: n / (n - ddof) makes the variance unbiased."""
    return int(self.centre and self.ordinary)

  def estimate(
    self,
    x: jax.Array,
    mask: jax.Array | None,
    axes: Axes,
    devices: Devices,
    groups: int | None = None,
  ) -> Moments:
    """Estimates the moments that the map needs, as `moments.estimate` does.

    Args:
      x: Activations, floating.
      mask: None, or boolean and broadcastable against `x`. Where the mask is
        False, `x` is not in the set and may hold anything.
      axes: The axes that are pooled; they stay, with size 1.
      devices: The devices that are pooled too. Only an ordinary map gets any.
      groups: None, or into how many groups the last axis is divided. Only an
        ordinary map gets a number.
    """
    raise NotImplementedError

  def merge(self, blocks: Moments, axis: int) -> Moments:
    """Returns the moments of the union of the sets along `axis`, size 1."""
    return blocks.merged(axis)

  def initial(self, features: Shape, dtype: Any) -> Moments:
    """Returns what is remembered before the first batch: nothing changes."""
    raise NotImplementedError

  def remember(self, moments: Moments) -> Moments:
    """Makes of moments what a population averages: `mean` and `variance`."""
    return moments

  def remembering_moments(self) -> 'Map':
    """Returns the same map, whose `remember` returns the moments themselves."""
    return self

  def recall(self, mean: jax.Array, var: jax.Array) -> Pair:
    """Makes what normalizes of what is remembered."""
    raise NotImplementedError

  def pair(self, moments: Moments) -> Pair:
    """Makes what normalizes of the moments of a batch."""
    return self.recall(moments.mean, moments.variance)

  def deviation(self, pair: Pair) -> jax.Array | float:
    """Returns by what a pair divides each feature; no joint map has this."""
    raise NotImplementedError

  def divided_by(self, mean: Any, deviation: Any) -> Pair:
    """Returns the pair that centres on `mean` and divides by `deviation`."""
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
    """Normalizes, scales and shifts, with a result of type `dtype`."""
    raise NotImplementedError


class Population(Axis):
  """How the moments of batches become what inference normalizes with.

  The map says what is remembered (variances, covariances, matrices); the
  population says how: averaged, pooled, accumulated, at an interval. A state is
  a NamedTuple that begins with the fields of `Running`.
  """

  @property
  def unit(self) -> Literal['share', 'batches', 'activations']:
    """What the `weight` of a state counts; see `Running`."""
    return 'share'

  @property
  def state_type(self) -> type:
    """The NamedTuple that `init` returns."""
    raise NotImplementedError

  def init(self, map_: Map, features: Shape, dtype: Any = jnp.float32) -> State:
    """Returns the state before the first update."""
    raise NotImplementedError

  def update(self, state: State, moments: Moments, map_: Map) -> State:
    """Returns the state after one more batch.

    Args:
      state: From `init`, or from the last update.
      moments: Of the batch: `mean` and `count` of the shape of the features.
      map_: The map that says what is remembered.
    """
    raise NotImplementedError

  def adopt(
    self, state: State, moments: Moments, map_: Map, batches: jax.Array
  ) -> State:
    """Returns the state of a population that has measured these moments.

    Args:
      state: The state so far.
      moments: Of a whole data set, shaped as for `update`.
      map_: The map that says what is remembered.
      batches: How many batches were measured.
    """
    raise NotImplementedError

  def resume(self, running: Any, map_: Map) -> State:
    """Returns the state that goes on from a `Running`.

    Args:
      running: Mean, variance and counts, such as of another population.
      map_: The map that says what is remembered.
    """
    del map_
    return running

  def recall(self, state: State, map_: Map) -> Pair:
    """Makes what normalizes of the state, of the shape of the features."""
    return map_.recall(state.mean, state.var)


class Gradient(Protocol):
  """Which moments normalize, and what of their derivative is learned from.

  A policy is a function, or an `Axis` that is called as one. It decides the
  value and, with `jax.lax.stop_gradient`, what the optimizer sees of it.
  """

  def __call__(self, batch: Pair, population: Pair | None, map_: Map) -> Pair:
    """Returns the pair that normalizes.

    Args:
      batch: What the map made of the moments of the batch.
      population: What the map made of the state; None without a population.
      map_: The map.
    """
    ...


class Normalizer(Protocol):
  """What a layer may hold: a `Normalization`, or what has its calls.

  `Chain`, `Mixture`, `Coloured` and the neighbours in `methods.statistic_free`
  are the others.
  """

  @property
  def remembers(self) -> bool:
    """Whether there are moments of a population to normalize with."""
    ...

  @property
  def scales(self) -> bool:
    """Whether a scale is taken away, for a layer to give back."""
    ...

  def init(self, num_features: int, dtype: Any = jnp.float32) -> State:
    """Returns the state before the first batch; () if nothing is remembered."""
    ...

  def learned(self, num_features: int, dtype: Any = jnp.float32) -> Any:
    """Returns what is learned beside scale and bias, a pytree of arrays."""
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
    """Normalizes `x`; see `Normalization.apply`."""
    ...
