"""What a row of the table of normalizations is, and how tests draw from it."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bn_research import norms
from tests import oracles
from tests.oracles import sets

EPSILON = 1e-3
MASKS = ('none', 'rows', 'entries')


class Sample(NamedTuple):
  """Arguments of a normalization, float64."""

  x: np.ndarray
  scale: np.ndarray
  bias: np.ndarray
  learned: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """A normalization and what is known of it.

  Attributes:
    name: A name in `norms.NAMES`, and after a slash what is special.
    shape: Of activations that show what is special.
    oracle: (x, mask, epsilon, past, **learned) to the normalized activations,
      without scale and bias.
    options: Of the factory.
    invariances: Names of `test_invariances.TRANSFORMATIONS` of the input that
      leave the output as it was; of all others it is tested that they do not.
    equivariances: Likewise, of those that do the same to the output.
    idempotent: Whether normalizing twice is normalizing once.
    remember: The population's oracle: from (x, mask) of all batches to mean
      and variance; None if nothing is remembered.
    running: The oracle that normalizes with what is remembered.
    derivative: None where the derivative is that of the value, and so comes
      from differences of the oracle; or the same formula as `oracle` in JAX,
      with `stop_gradient` where the method has one.
    joint: Whether features are taken together, and so masked together.
    factory: None, or a function of the options; else the name's in
      `norms.NAMES`.
  """

  name: str
  shape: tuple[int, ...]
  oracle: Callable[..., np.ndarray]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  invariances: str = ''
  equivariances: str = 'case_order'
  idempotent: bool = True
  remember: Callable[..., Any] | None = None
  running: Callable[..., np.ndarray] = sets.running
  derivative: Callable[..., Any] | None = None
  joint: bool = False
  factory: Callable[..., Any] | None = None

  @property
  def features(self) -> int:
    """Size of the last axis."""
    return self.shape[-1]

  def make(self, epsilon: float = EPSILON) -> Any:
    """Returns the normalization."""
    factory = self.factory or norms.NAMES[self.name.split('/')[0]]
    takes = inspect.signature(factory).parameters
    given = {'epsilon': epsilon} if 'epsilon' in takes else {}
    return factory(**given, **self.options)

  def init(self) -> Any:
    """Returns the state before the first batch."""
    return self.make().init(self.features, jax.dtypes.canonicalize_dtype(float))

  def past(self) -> oracles.Past | None:
    """Returns the same for the oracle."""
    if self.remember is None:
      return None
    mean, var = self.init()[:2]
    return oracles.Past(np.asarray(mean, 'float64'), np.asarray(var, 'float64'))

  def sample(self, seed: int = 0) -> Sample:
    """Draws activations whose features differ in mean and deviation."""
    rng = np.random.default_rng(seed)
    normal = lambda shape: rng.normal(size=shape)
    spread = rng.uniform(0.5, 2, self.features)
    x = normal(self.features) + spread * normal(self.shape)
    learned = {
      name: np.asarray(value + 0.3 * normal(value.shape), 'float64')
      for name, value in self.make().learned(self.features).items()
    }
    return Sample(x, normal(self.features), normal(self.features), learned)

  @property
  def entries(self) -> tuple[int, ...]:
    """Shape of the finest mask."""
    return (*self.shape[:-1], 1) if self.joint else self.shape

  def mask(self, kind: str, seed: int = 0) -> np.ndarray | None:
    """Returns a mask of one of `MASKS`; every feature keeps two activations.

    The last example is hidden and the first whole; of three, the one in between
    is seen in part, for those that take each example by itself.
    """
    if kind == 'none':
      return None
    rows = (self.shape[0],) + (1,) * (len(self.shape) - 1)
    shape = rows if kind == 'rows' else self.entries
    mask = np.random.default_rng(seed + 100).uniform(size=shape) < 0.7
    mask[: 2 if kind == 'rows' or self.shape[0] > 3 else 1] = True
    mask[-1] = False
    return mask

  def expected(self, sample, mask, past=None, oracle=None) -> np.ndarray:
    """Returns what the oracle says, with scale and bias."""
    mask = np.broadcast_to(True if mask is None else mask, sample.x.shape)
    oracle = oracle or self.oracle
    y = oracle(sample.x, mask, EPSILON, past or self.past(), **sample.learned)
    return np.where(mask, y * sample.scale + sample.bias, 0)


def call(norm, sample: Sample, state, mask=None, **switches):
  """Calls a normalization with a sample."""
  x, scale, bias, learned = sample
  return norm.apply(
    x,
    state,
    scale=scale,
    bias=bias,
    learned=learned,
    mask=mask,
    **switches,
  )


def cast(tree, dtype):
  """Arrays of JAX, in that type."""
  return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, dtype), tree)
