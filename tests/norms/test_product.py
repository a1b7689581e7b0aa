"""Every point of the product is right, or refused in one sentence of ours.

The choices are looked up: a class that nobody tries makes this file fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bn_research
from bn_research import norms
from bn_research.norms import axes, gradients
from bn_research.norms.populations.running import RunningPopulation
from tests.oracles import patches, sets, whitening, windows
from tests.own_statistics import Largest, Median
from tests.quick import some

SHAPE = (9, 3, 4)
EPSILON = 1e-2

# What cannot be made without arguments, and further variants of classes.
VARIANTS = {
  norms.Batch: (norms.Batch(), norms.Batch(group_size=4)),
  norms.Example: (
    norms.Example(),
    norms.Example('positions'),
    norms.Example('all', num_groups=2),
  ),
  norms.Neighbourhood: (norms.Neighbourhood(3),),
  norms.Patches: (norms.Patches((2,)),),
  norms.Reference: (norms.Reference(3),),
  norms.Standardize: (
    norms.Standardize(epsilon=EPSILON),
    norms.Standardize(centre=False, epsilon=EPSILON),
    norms.Standardize(scale=False),
    norms.Standardize(centre=False, scale=False),
  ),
  norms.Whiten: (
    norms.Whiten('zca', epsilon=EPSILON),
    norms.Whiten('cholesky', 2, EPSILON, average='matrix'),
  ),
  norms.Ema: (norms.Ema(), norms.Ema(0.0, unbiased=False)),
  norms.Cumulative: (norms.Cumulative(unbiased=False),),
  norms.Accumulated: (norms.Accumulated(1, norms.Ema(0.0, unbiased=False)),),
  norms.Interval: (norms.Interval(1, norms.Cumulative(unbiased=False)),),
  gradients.Renormalized: (
    gradients.Renormalized(),
    gradients.Renormalized(float('inf'), float('inf')),
  ),
}


BASES = {
  *(axes.Axis, axes.Scope, axes.Map, axes.Population),
  RunningPopulation,
}


def classes_of(base):
  """All classes of a kind that the package has, at any depth."""
  below = [base, *itertools.chain(*map(classes_of, base.__subclasses__()))]
  is_ours = lambda cls: cls.__module__.startswith(bn_research.__name__)
  return [cls for cls in below if is_ours(cls)]


def choices(base):
  """One instance or several of each class of an axis."""
  for cls in dict.fromkeys(classes_of(base)):
    if cls not in BASES:
      yield from VARIANTS.get(cls) or (cls(),)


SCOPES = tuple(choices(axes.Scope))
MAPS = (*choices(axes.Map), Median(epsilon=EPSILON), Largest(epsilon=EPSILON))
POPULATIONS = (None, *choices(axes.Population))
OF_TWO_PAIRS = gradients.WithoutMap(lambda batch, population: batch)
POLICIES = tuple(
  dict.fromkeys(
    (
      *gradients.NAMES.values(),
      *VARIANTS[gradients.Renormalized],
      OF_TWO_PAIRS,
    )
  )
)
KEEPS_VALUES = {
  *(norms.through, norms.stopped, norms.mean_only, norms.spread_only),
  *(norms.recalled, OF_TWO_PAIRS),
}
REMEMBERS_THE_LAST = {
  norms.Ema(0.0, unbiased=False),
  norms.Cumulative(unbiased=False),
  norms.Pooled(),
  norms.Accumulated(1, norms.Ema(0.0, unbiased=False)),
  norms.Interval(1, norms.Cumulative(unbiased=False)),
}


def refusal(point):
  """Why a point is refused, or None; no other error may happen."""
  try:
    norms.Normalization(*point)
  except ValueError as error:
    return str(error)
  return None


POINTS = tuple(itertools.product(SCOPES, MAPS, POPULATIONS, POLICIES))


@functools.cache
def accepted():
  return tuple(point for point in POINTS if refusal(point) is None)


def test_there_is_nothing_that_the_walk_leaves_out():
  tried = {type(choice) for choice in (*SCOPES, *MAPS, *POPULATIONS, *POLICIES)}
  assert set(classes_of(axes.Axis)) - BASES <= tried


def test_refusals_name_what_does_not_fit():
  """Both choices, by the class or by the name of the argument, in a line."""
  for point in POINTS:
    if (text := refusal(point)) is None:
      continue
    named = [
      getattr(choice, '__name__', type(choice).__name__) in text
      for choice in point
    ]
    lacks_population = point[2] is None and 'population' in text
    assert sum(named) + lacks_population >= 2, text
    assert text.endswith('.')
    assert '\n' not in text


def test_most_points_are_points():
  """Axes that refuse each other would not be independent."""
  remembering = [p for p in POPULATIONS if p is not None]
  whole = [
    point
    for point in accepted()
    if isinstance(point[0], norms.Batch) and point[2] is not None
  ]
  joint = [m for m in MAPS if m.joint]
  renormalized = [p for p in POLICIES if isinstance(p, norms.Renormalized)]
  merging = (norms.Pooled, norms.Accumulated)
  for scope, map_, population, policy in itertools.product(
    SCOPES[:2], MAPS, remembering, POLICIES
  ):
    refused = (
      (map_ in joint and policy in renormalized)
      or (not map_.merges and isinstance(population, merging))
      or (map_.remembering_moments() != map_ and population == norms.Pooled())
    )
    assert ((scope, map_, population, policy) in whole) != refused


def divided(kept, epsilon):
  del epsilon
  return kept / (2 + 5e-4 * np.mean(kept**2)) ** 0.75


def by_largest(kept, epsilon):
  return kept / np.sqrt(np.max(kept**2) + epsilon)


CHANGES = {
  norms.Standardize(epsilon=EPSILON): sets.standardized,
  norms.Standardize(centre=False, epsilon=EPSILON): sets.by_rms,
  norms.Standardize(scale=False): sets.centred,
  norms.Standardize(centre=False, scale=False): sets.unchanged,
  norms.Divide(): divided,
  Median(epsilon=EPSILON): sets.by_median,
  Largest(epsilon=EPSILON): by_largest,
}
SETS = {
  norms.Batch(): sets.batch,
  norms.Batch(group_size=4): functools.partial(sets.batch, group_size=4),
  norms.Example(): sets.features,
  norms.Example('positions'): sets.instance,
  norms.Example('all', num_groups=2): functools.partial(
    sets.group, num_groups=2
  ),
}
ZCA = norms.Whiten('zca', epsilon=EPSILON)
WHITENINGS = {
  (norms.Batch(), ZCA): whitening.batch(),
  (norms.Batch(group_size=4), ZCA): whitening.batch(ghost=4),
  (norms.Example('positions'), ZCA): whitening.instance(),
  (norms.Example('all', num_groups=2), ZCA): whitening.group(2),
  (norms.Neighbourhood(3), norms.Standardize(epsilon=EPSILON)): (
    windows.local_contrast(size=3)
  ),
}


def with_reference(change):
  """Each example with the reference batch, feature by feature."""

  def oracle(x, mask, epsilon, past):
    del mask, past
    y = np.zeros_like(x)
    for row, c in np.ndindex(len(x), x.shape[-1]):
      rows = [0, 1, 2] + ([row] if row >= 3 else [])
      kept = x[rows, :, c]
      y[row, :, c] = change(kept.ravel(), epsilon).reshape(kept.shape)[
        rows.index(row)
      ]
    return y

  return oracle


def oracle_of(scope, map_):
  if (scope, map_) in WHITENINGS:
    return WHITENINGS[scope, map_]
  if map_ not in CHANGES:
    return None
  if scope == norms.Reference(3):
    return with_reference(CHANGES[map_])
  return sets.over(SETS[scope], CHANGES[map_]) if scope in SETS else None


def activations():
  rng = np.random.default_rng(0)
  mixing = np.eye(4) + 0.3 * rng.standard_normal((4, 4))
  return 2 + rng.standard_normal(SHAPE) @ mixing


def check_moments(norm, x):
  """A scope whose sets do not join is measured and learned from, no more."""
  with pytest.raises(ValueError, match='gives moments only'):
    norm.apply(x)
  state = norm.init(norm.scope.features(x.shape), jnp.float64)
  moments = norm.measure(x)
  after = norm.learn(state, moments)
  for leaf in jax.tree.leaves((moments, after)):
    assert np.isfinite(leaf).all()
  rows = patches.patches(x, norm.scope.kernel_size, (1,))
  if norm.map.ordinary and norm.map.centre:
    mean = rows.mean((0, 1))
    np.testing.assert_allclose(moments.mean[0, 0], mean, atol=1e-9)
  assert norm.population in (None, norms.Fixed()) or after.steps == 1


@jax.enable_x64(True)
def check(point):
  scope, map_, population, policy = point
  norm = norms.Normalization(*point)
  x = jnp.asarray(activations())
  if not scope.joins:
    return check_moments(norm, x)
  state = norm.init(SHAPE[-1], jnp.float64)
  weights = jnp.cos(jnp.arange(x.size)).reshape(SHAPE)

  @jax.jit
  def step(x):
    """One program, because compiling is what takes the time here."""

    def loss(x):
      y, after = norm.apply(x, state)
      return jnp.sum(y * weights), (y, after)

    (_, (y, after)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    inferred = y
    if population is not None:
      inferred, kept = norm.apply(x, after, use_running=True, update=False)
      assert kept is after
    return y, after, gradient, inferred

  y, after, _, inferred = results = step(x)
  for leaf in jax.tree.leaves(results):
    assert np.isfinite(leaf).all()
  oracle = oracle_of(scope, map_)
  if policy in KEEPS_VALUES and oracle:
    expected = oracle(np.asarray(x), np.full(SHAPE, True), EPSILON, None)
    np.testing.assert_allclose(y, expected, atol=1e-9)
  if population is None:
    return
  assert after.skipped == 0
  assert after.steps == (0 if isinstance(population, norms.Fixed) else 1)
  is_whole = scope == norms.Batch()
  if is_whole and population in REMEMBERS_THE_LAST and policy in KEEPS_VALUES:
    np.testing.assert_allclose(inferred, y, atol=1e-9)


def tries(point):
  """What a point tries: each pair of kinds, and each choice by itself."""
  kinds = [getattr(choice, '__name__', type(choice)) for choice in point]
  pairs = itertools.combinations(enumerate(kinds), 2)
  return {*pairs, *enumerate(point)}


@functools.cache
def covering():
  """Points such that each pair of kinds that fit is in one of them."""
  chosen, tried = [], {point: tries(point) for point in accepted()}
  uncovered = set().union(*tried.values())
  while uncovered:
    best = max(tried, key=lambda point: len(tried[point] & uncovered))
    uncovered -= tried[best]
    chosen.append(best)
  return chosen


def name(value):
  return getattr(value, '__name__', str(value))


@pytest.mark.parametrize('part', some(range(4), range(8)))
def test_each_pair_of_kinds(part):
  for point in covering()[part::8]:
    check(point)


@pytest.mark.slow
@pytest.mark.parametrize('map_', MAPS, ids=name)
@pytest.mark.parametrize('scope', SCOPES, ids=name)
def test_each_point(scope, map_):
  for point in accepted():
    if point[0] == scope and point[1] == map_:
      check(point)
