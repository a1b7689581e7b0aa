"""Whitening against float64 NumPy, in every scope; bad input; populations."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from tests.oracles import whitening
from tests.quick import some

METHODS = ['zca', 'newton_schulz', 'cholesky', 'pca']


def inverse_root(covariance, method):
  """W with W S Wᵀ = I, in float64, by NumPy's own decompositions."""
  if method == 'cholesky':
    return np.linalg.inv(np.linalg.cholesky(covariance))
  values, vectors = np.linalg.eigh(covariance)
  if method == 'pca':
    rows = (vectors / np.sqrt(values)).T[::-1]
    largest = np.abs(rows).argmax(1)
    return rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]
  return vectors / np.sqrt(values) @ vectors.T


def oracle(
  x, method, epsilon=0.0, relative=True, block=None, shrinkage=0.0, floor=0.0
):
  """Huang et al. (2018), equations 3 to 5, over rows of x, block by block."""
  x = np.asarray(x, np.float64)
  block = block or x.shape[1]
  out = []
  for start in range(0, x.shape[1], block):
    z = x[:, start : start + block]
    z = z - z.mean(0)
    s = z.T @ z / len(z)
    level = np.trace(s) / len(s)
    added = shrinkage * level + epsilon * (level if relative else 1)
    s = (1 - shrinkage) * s + added * np.eye(len(s))
    values, vectors = np.linalg.eigh(s)
    s = vectors * np.maximum(values, floor * level) @ vectors.T
    out.append(z @ inverse_root(s, method).T)
  return np.concatenate(out, 1)


def correlated(rows, channels, seed=0, condition=30.0):
  rng = np.random.default_rng(seed)
  basis, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
  deviations = np.geomspace(1, condition**-0.5, channels)
  return (rng.standard_normal((rows, channels)) * deviations) @ basis.T + 3


def whiten(norm, x, **options):
  x = jnp.asarray(x, jnp.float32)
  return norm.apply(x, norm.init(x.shape[-1]), **options)


OPTIONS = (
  {'epsilon': 0.1},
  {'epsilon': 0.0},
  {'epsilon': 0.1, 'relative': False},
  {'epsilon': 0.0, 'shrinkage': 0.3},
  {'epsilon': 0.0, 'floor': 0.15},
)


@pytest.mark.parametrize(
  ('method', 'options'),
  some(
    [
      *((method, OPTIONS[0]) for method in METHODS[:3]),
      *(('zca', options) for options in OPTIONS[3:]),
    ],
    itertools.product(METHODS, OPTIONS),
  ),
)
def test_batch_whitening_is_the_papers(method, options):
  x = correlated(64, 6)
  y, _ = whiten(norms.batch_whitening(method, **options), x)
  expected = oracle(x, method, **options)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y, expected, atol=5e-5)


@pytest.mark.parametrize(
  ('method', 'block'),
  some(
    [('zca', 4), ('newton_schulz', 4), ('cholesky', 1)],
    itertools.product(METHODS, (4, 1, 5)),
  ),
)
def test_blocks_and_a_last_one_that_is_smaller(method, block):
  x = correlated(64, 10)
  y, state = whiten(norms.batch_whitening(method, block, 1e-3), x)
  np.testing.assert_allclose(y, oracle(x, method, 1e-3, block=block), atol=2e-4)
  assert state.var.shape == (-(-10 // block), block, block)


@pytest.mark.parametrize('method', some(METHODS[:1], METHODS[1:]))
def test_a_floor_under_the_spectrum_of_each_block(method):
  """Two of the last block's three directions are below it, and empty."""
  x = correlated(64, 7)
  x[:, 5:] = x[:, 4:5]
  norm = norms.batch_whitening(method, 4, 0.0, floor=0.2)
  y, _ = whiten(norm, x)
  # The axes of equal eigenvalues are any, for PCA: what it does is not.
  square = lambda y: np.asarray(y, np.float64) @ np.asarray(y, np.float64).T
  turned = square if method == 'pca' else np.asarray
  expected = oracle(x, method, block=4, floor=0.2)
  np.testing.assert_allclose(turned(y), turned(expected), atol=2e-4)
  loss = lambda x: jnp.sin(norm.apply(x, norm.init(7))[0]).sum()
  gradient = jax.jit(jax.grad(loss))(jnp.asarray(x, jnp.float32))
  assert np.abs(gradient).max() <= 100


def test_ghost_whitening_is_whitening_of_each_group():
  x = correlated(40, 3)
  norm = norms.batch_whitening('zca', epsilon=1e-3, ghost_size=16)
  y, state = whiten(norm, x)
  parts = [oracle(x[i : i + 16], 'zca', 1e-3) for i in (0, 16, 32)]
  np.testing.assert_allclose(y, np.concatenate(parts), atol=1e-4)
  np.testing.assert_allclose(
    state.var[0], np.cov(x.T, bias=True) * 40 / 39, rtol=1e-4
  )


def test_instance_whitening_is_whitening_of_each_example():
  x = correlated(3 * 25, 4).reshape(3, 5, 5, 4)
  y, _ = whiten(norms.instance_whitening('zca', epsilon=1e-3), x)
  for i in range(3):
    expected = oracle(x[i].reshape(25, 4), 'zca', 1e-3)
    np.testing.assert_allclose(y[i].reshape(25, 4), expected, atol=1e-4)


def test_group_whitening_takes_groups_for_dimensions():
  x = correlated(2 * 9, 6).reshape(2, 3, 3, 6)
  y, _ = whiten(norms.group_whitening(2, 'zca', 1e-3), x)
  for i in range(2):
    rows = x[i].reshape(9, 2, 3).transpose(0, 2, 1).reshape(27, 2)
    expected = oracle(rows, 'zca', 1e-3).reshape(9, 3, 2)
    expected = expected.transpose(0, 2, 1).reshape(3, 3, 6)
    np.testing.assert_allclose(y[i], expected, atol=1e-4)


def test_oas_is_its_formula():
  x = correlated(16, 8)
  n, p = x.shape
  s = np.cov(x.T, bias=True)
  of_square, squared = np.trace(s @ s), np.trace(s) ** 2
  shrinkage = ((1 - 2 / p) * of_square + squared) / (
    (n + 1 - 2 / p) * (of_square - squared / p)
  )
  assert 0.1 < shrinkage < 0.9
  norm = norms.batch_whitening('zca', epsilon=0.0, shrinkage='oas')
  y, _ = whiten(norm, x)
  expected = oracle(x, 'zca', shrinkage=shrinkage)
  np.testing.assert_allclose(y, expected, atol=1e-4)


CROSS = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])


@pytest.mark.slow
@pytest.mark.parametrize('method', some(METHODS[:1], METHODS))
@pytest.mark.parametrize('group_size', some([2], [None, 3]))
def test_oas_of_what_needs_no_shrinkage(method, group_size):
  """S = I: of a batch, of a state before the first, of one channel."""
  x = jnp.asarray(np.tile(CROSS, 2)[:, : 4 if group_size != 2 else 3], 'f')
  norm = norms.batch_whitening(method, group_size, shrinkage='oas')
  weights = np.arange(x.size).reshape(x.shape)
  state = norm.init(x.shape[1])

  def f(x, use_running):
    y, _ = norm.apply(x, state, use_running=use_running)
    return (y * weights).sum(), y

  for use_running in (False, True):
    given = partial(f, use_running=use_running)
    gradient, y = jax.jit(jax.grad(given, has_aux=True))(x)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(y).max() > 0.5


@pytest.mark.parametrize(
  ('num_iterations', 'channels'), some([(5, 10)], [(1, 5), (1, 10), (5, 5)])
)
def test_iter_norm_of_a_last_block_that_is_smaller(num_iterations, channels):
  """The trace, from which a truncated iteration starts, is of real channels."""
  x = correlated(96, channels, condition=100)
  norm = norms.iter_norm(4, num_iterations, 1e-5)
  truncated = whitening.batch(
    whitening.iterated(num_iterations), relative=False, block=4
  )
  expected = truncated(x, np.ones_like(x, bool), 1e-5, None)
  np.testing.assert_allclose(whiten(norm, x)[0], expected, atol=1e-4)


def test_matrices_that_are_averaged_are_those_of_training():
  """n / (n - 1) is a factor of covariances, not of their roots."""
  x = correlated(8, 3)
  norm = norms.batch_whitening(
    'zca', epsilon=0.0, momentum=0.0, average='matrix', unbiased=True
  )
  y, state = whiten(norm, x)
  inference, _ = norm.apply(
    jnp.asarray(x, jnp.float32), state, use_running=True, update=False
  )
  np.testing.assert_allclose(inference, y, atol=1e-5)


@pytest.mark.parametrize(
  ('method', 'channels'),
  some(
    [('zca', 16)],
    [(m, n) for m in METHODS for n in (16, 128)],
  ),
)
def test_whiteness(method, channels):
  x = correlated(4 * channels, channels, condition=1e4)
  y, _ = whiten(norms.batch_whitening(method, epsilon=0.0), x)
  y = np.asarray(y, np.float64)
  apart = np.abs(np.cov(y.T, bias=True) - np.eye(channels)).max()
  assert apart <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('method', some(METHODS[:1], METHODS[1:]))
def test_refinement_whitens_what_one_pass_cannot(method):
  x = correlated(256, 64, condition=1e6)
  once, twice = (
    np.asarray(
      whiten(norms.batch_whitening(method, epsilon=0.0, refinements=r), x)[0],
      np.float64,
    )
    for r in (0, 1)
  )
  apart = [
    np.abs(np.cov(y.T, bias=True) - np.eye(64)).max() for y in (once, twice)
  ]
  assert apart[0] > 1e-4
  assert apart[1] <= 1e-5


ROWS = np.random.default_rng(0)
BAD = {
  'one row': np.ones((1, 4)),
  'constant': np.full((9, 4), 3.0),
  'constant channel': np.c_[ROWS.standard_normal((9, 3)), np.ones(9)],
  'equal channels': np.repeat(ROWS.standard_normal((9, 2)), 2, 1),
  'fewer rows than channels': ROWS.standard_normal((3, 8)),
  'an outlier': np.r_[ROWS.standard_normal((9, 3)), np.full((1, 3), 1e12)],
  'channels of all scales': ROWS.standard_normal((9, 3)) * [1e-12, 1, 1e12],
}


@pytest.mark.parametrize(
  ('method', 'name', 'epsilon'),
  some(
    [
      *((method, 'equal channels', 0.0) for method in METHODS[:2]),
      ('zca', 'one row', 0.0),
    ],
    itertools.product(METHODS, BAD, (0.0, 1e-5)),
  ),
)
def test_finite_input_gives_finite_results_and_gradients(method, name, epsilon):
  x = jnp.asarray(BAD[name], jnp.float32)
  norm = norms.batch_whitening(method, epsilon=epsilon)

  def cubed(x):
    y, _ = norm.apply(x, norm.init(x.shape[1]))
    return (y**3).sum(), y

  gradient, y = jax.jit(jax.grad(cubed, has_aux=True))(x)
  assert jnp.isfinite(y).all()
  assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('method', 'case'),
  some(
    [('zca', (True, 4))],
    [(m, c) for m in METHODS for c in ((True, 4), (True, 32), (False, 4))],
  ),
)
def test_every_scale_that_float32_holds(method, case):
  """From subnormal numbers to half of the largest, a decade at a time."""
  relative, rows = case
  rng = np.random.default_rng(0)
  x = rng.standard_normal((rows, 6)) @ rng.standard_normal((6, 6))
  scales = np.append(10.0 ** np.arange(-45, 38), 1.7e38)[:, None, None]
  x = jnp.asarray(x / np.abs(x).max() * scales, jnp.float32)
  norm = norms.batch_whitening(method, 4, relative=relative)

  def f(x):
    y, state = norm.apply(x, norm.init(6))
    return jnp.sin(y).sum(), (y, state)

  results = jax.jit(jax.vmap(jax.grad(f, has_aux=True)))(x)
  for leaf in jax.tree.leaves(results):
    assert jnp.isfinite(leaf).all()
  deviations = np.asarray(results[1][0]).std(1).max(1)
  if relative:
    assert (deviations[37:60] > 0.5).all()  # 1e-8 to 1e14
  np.testing.assert_array_equal(deviations[[0, -1]], 0)


@pytest.mark.parametrize(
  ('method', 'case'),
  some(
    [('zca', (8, -1))],
    [(method, case) for method in METHODS for case in ((8, -1), (33, 1))],
  ),
)
def test_equal_channels_are_no_more_than_white(method, case):
  """A centred column of n numbers of variance 1 at most is within √n."""
  channels, sign = case
  x = np.random.default_rng(0).standard_normal((64, channels // 2))
  x = np.concatenate([x, sign * x], 1)
  norm = norms.batch_whitening(method, epsilon=0.0)

  def f(x):
    y, _ = norm.apply(x, norm.init(x.shape[1]))
    return jnp.sin(y).sum(), y

  run = jax.jit(jax.grad(f, has_aux=True))
  gradient, y = run(jnp.asarray(x, jnp.float32))
  assert np.abs(y).max() <= np.sqrt(len(x))
  assert np.abs(gradient).max() <= 1e6


@pytest.mark.parametrize('name', ['one row', 'constant'])
def test_no_variance_maps_to_zero(name):
  y, _ = whiten(norms.batch_whitening(), BAD[name])
  np.testing.assert_array_equal(y, 0)


@pytest.mark.slow
@pytest.mark.parametrize('rows', some([60], [7, 8192]))
def test_a_mean_that_rounds_is_no_variance(rows):
  x = np.full((rows, 4), [0.1, 0.4822797, 760.1628, -3.3e-7])
  mask = np.arange(rows + 1)[:, None] < rows
  norm = norms.batch_whitening()
  np.testing.assert_array_equal(whiten(norm, x)[0], 0)
  padded = np.concatenate([x, np.full((1, 4), np.nan)])
  np.testing.assert_array_equal(whiten(norm, padded, mask=mask)[0], 0)


@pytest.mark.parametrize(
  ('options', 'expected'),
  some(
    [({'group_size': 7}, [[3, 0]] * 14)],
    [({}, [[6]] * 14), ({'ghost_size': 4}, [[7]] * 12 + [[9]] * 2)],
  ),
)
def test_directions_that_few_rows_leave_open_are_counted(options, expected):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((14, 10)), 'float32')
  mask = None if 'ghost_size' in options else jnp.arange(14)[:, None] < 5
  norm = norms.batch_whitening(**options)
  counts = norm.map.undetermined(norm.measure(x, mask))
  assert counts.dtype == jnp.int32
  np.testing.assert_array_equal(*np.broadcast_arrays(counts, expected))
  enough = norms.batch_whitening().measure(x)
  np.testing.assert_array_equal(norm.map.undetermined(enough), 0)


def test_relative_epsilon_is_equivariant_to_scale():
  x = correlated(32, 4)
  norm = norms.batch_whitening('zca', epsilon=1e-2)
  for scale in (1e-6, 1e6):
    np.testing.assert_allclose(
      whiten(norm, x * scale)[0], whiten(norm, x)[0], atol=1e-4
    )


def test_nan_stays_in_sight_and_out_of_the_state():
  norm = norms.batch_whitening()
  x = correlated(16, 3)
  x[2, 1] = np.nan
  y, state = whiten(norm, x)
  assert jnp.isnan(y).any()
  np.testing.assert_array_equal(state.var, norm.init(3).var)
  assert (state.steps, state.skipped) == (0, 1)


def test_masked_rows_take_no_part():
  norm = norms.batch_whitening('zca', epsilon=1e-3)
  x = correlated(20, 4)
  padded = np.concatenate([x, np.full((5, 4), np.nan)])
  mask = np.arange(25)[:, None] < 20
  y, state = whiten(norm, padded, mask=mask)
  alone, expected = whiten(norm, x)
  np.testing.assert_allclose(y[:20], alone, atol=1e-5)
  np.testing.assert_array_equal(y[20:], 0)
  np.testing.assert_allclose(state.var, expected.var, rtol=1e-5)
  with pytest.raises(ValueError, match='tells features apart'):
    whiten(norm, padded, mask=np.broadcast_to(mask, padded.shape))


@pytest.mark.parametrize(
  ('average', 'unbiased', 'low', 'high'),
  [
    ('covariance', True, 0.99, 1.01),
    ('covariance', False, 1.04, 1.09),
    ('matrix', True, 1.7, 2.2),
  ],
)
def test_population_whitens_what_it_never_saw(average, unbiased, low, high):
  rng = np.random.default_rng(0)
  mixing = rng.standard_normal((8, 8))
  norm = norms.batch_whitening(
    'zca', epsilon=0.0, momentum=0.999, average=average, unbiased=unbiased
  )
  draws = rng.standard_normal((3000, 16, 8)) @ mixing.T
  state, _ = jax.lax.scan(
    lambda state, x: (norm.apply(x, state)[1], None),
    norm.init(8),
    jnp.asarray(draws, jnp.float32),
  )
  fresh = jnp.asarray(rng.standard_normal((100_000, 8)) @ mixing.T, jnp.float32)
  y, _ = norm.apply(fresh, state, use_running=True, update=False)
  assert low < float(y.var(0).mean()) < high


def test_interval_renews_and_is_constant_in_between():
  norm = norms.batch_whitening('zca', every=3, momentum=0.5, epsilon=1e-3)
  average = norms.Ema(0.5)
  state, known = norm.init(3), average.init(norm.map, (3,))
  for step in range(7):
    x = jnp.asarray(correlated(32, 3, seed=step), jnp.float32)
    before = state
    y, state = norm.apply(x, state)
    if step:
      np.testing.assert_allclose(
        y, (x - before.pair.mean) @ before.pair.spread[0].T, atol=1e-4
      )
    z = x - x.mean(0)
    batch = norms.Moments(jnp.full(3, 32.0), x.mean(0), (z.T @ z)[None])
    known = average.update(known, batch, norm.map)
    np.testing.assert_allclose(state.var, known.var, atol=1e-5)
    if step % 3 == 0:
      level = np.trace(known.var[0]) / 3
      expected = inverse_root(
        np.asarray(known.var[0], np.float64) + 1e-3 * level * np.eye(3), 'zca'
      )
      np.testing.assert_allclose(state.pair.spread[0], expected, atol=1e-4)
      np.testing.assert_allclose(state.pair.mean, known.mean, atol=1e-5)
    else:
      for now, then in zip(state.pair[:2], before.pair[:2], strict=True):
        np.testing.assert_array_equal(now, then)


def test_interval_is_not_renewed_by_a_batch_that_is_skipped():
  norm = norms.batch_whitening('zca', every=3, epsilon=1e-1)
  start = norm.init(3)
  _, state = norm.apply(jnp.full((8, 3), jnp.nan), start)
  assert (state.steps, state.skipped) == (0, 1)
  np.testing.assert_array_equal(state.var, start.var)
  np.testing.assert_array_equal(state.pair.spread, start.pair.spread)


def test_interval_that_is_due_is_not_renewed_by_a_batch_that_is_skipped():
  norm = norms.batch_whitening('zca', every=2, momentum=0.5, epsilon=1e-1)
  state = norm.init(3)
  for seed in range(2):
    x = jnp.asarray(correlated(16, 3, seed=seed), jnp.float32)
    _, state = norm.apply(x, state)
  _, after = norm.apply(x * jnp.nan, state)
  assert (after.steps, after.skipped) == (2, 1)
  jax.tree.map(np.testing.assert_array_equal, after.pair, state.pair)


@pytest.mark.slow
def test_interval_has_no_gradient_of_statistics():
  norm = norms.batch_whitening('zca', every=2)
  x = jnp.asarray(correlated(16, 3), jnp.float32)
  state = norm.apply(x, norm.init(3))[1]
  gradient = jax.grad(lambda x: norm.apply(x, state)[0].sum())(x)
  np.testing.assert_allclose(
    gradient,
    np.tile(np.asarray(state.pair.spread[0]).sum(0), (16, 1)),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('method', 'floor'),
  some(
    [('zca', 0.5)],
    [(m, f) for m in ('zca', 'newton_schulz', 'cholesky') for f in (0.0, 0.5)],
  ),
)
def test_gradient_is_that_of_differences(method, floor):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 12, 5))
    norm = norms.batch_whitening(method, 3, 1e-2, floor=floor)

    def loss(x):
      return (norm.apply(x, norm.init(5), update=False)[0] * g).sum()

    def exact(x):
      return (
        oracle(
          x,
          'cholesky' if method == 'cholesky' else 'zca',
          1e-2,
          block=3,
          floor=floor,
        )
        * g
      ).sum()

    slope = jax.jit(jax.grad(loss))
    gradient = slope(jnp.asarray(x))
    step = 1e-5
    expected = np.zeros_like(x)
    for index in np.ndindex(x.shape):
      bump = np.zeros_like(x)
      bump[index] = step
      expected[index] = (exact(x + bump) - exact(x - bump)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    direction = jnp.asarray(rng.standard_normal(x.shape))
    along = jax.jit(lambda x: jax.jvp(slope, (x,), (direction,))[1])
    product = along(jnp.asarray(x))
    difference = (
      slope(x + 1e-5 * direction) - slope(x - 1e-5 * direction)
    ) / 2e-5
    np.testing.assert_allclose(product, difference, atol=1e-6)


def test_backward_keeps_one_array_of_the_size_of_x():
  norm = norms.batch_whitening(group_size=8)
  for dtype in (jnp.float32, jnp.bfloat16):
    x = jnp.ones((4096, 16), dtype)
    _, pull = jax.vjp(lambda x: norm.apply(x, norm.init(16))[0], x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept <= x.nbytes + 64 * 16 * 8


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (lambda: norms.batch_whitening('svd'), 'method'),
    (lambda: norms.batch_whitening(group_size=0), 'group_size=0'),
    (lambda: norms.batch_whitening(epsilon=-1.0), 'epsilon'),
    (lambda: norms.batch_whitening(epsilon=np.nan), 'epsilon=nan'),
    (lambda: norms.batch_whitening(shrinkage=2.0), 'shrinkage'),
    (lambda: norms.batch_whitening(shrinkage='lw'), "shrinkage='lw'"),
    (lambda: norms.batch_whitening(floor=1.0), 'floor=1.0'),
    (lambda: norms.batch_whitening(every=0), 'every=0'),
    (lambda: norms.batch_whitening('zca', num_iterations=3), 'num_iterations'),
    (lambda: norms.batch_whitening(refinements=-1), 'refinements'),
    (
      lambda: whiten(norms.batch_whitening(group_size=5), np.ones((3, 4))),
      'group_size=5',
    ),
    (
      lambda: norms.Normalization(norms.Example(), norms.Whiten()).apply(
        jnp.ones((3, 4))
      ),
      'keeps the last axis',
    ),
  ],
)
def test_errors_name_the_argument_and_the_fix(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@pytest.mark.slow
def test_moments_average_as_named_when_replaced():
  norm = norms.batch_whitening('zca')
  pooled = dataclasses.replace(norm, population=norms.Pooled())
  data = [correlated(n, 3, seed=n) for n in (8, 5, 20)]
  state = pooled.init(3)
  for x in data:
    _, state = pooled.apply(jnp.asarray(x, jnp.float32), state)
  x = np.concatenate(data)
  np.testing.assert_allclose(state.mean, x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    state.var[0], np.cov(x.T, bias=True), rtol=1e-4, atol=1e-5
  )
