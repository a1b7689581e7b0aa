"""Inverse square roots: values, and derivatives of every order."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.norms import roots
from tests.quick import some, star

METHODS = ('zca', 'newton_schulz', 'cholesky', 'pca')
SYMMETRIC = ('zca', 'newton_schulz')


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@cache
def random_spd(size, condition, seed=0):
  rng = np.random.default_rng(seed)
  vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
  values = np.geomspace(1, 1 / condition, size)
  matrix = (vectors * values) @ vectors.T
  return (matrix + matrix.T) / 2


def random_symmetric(size, seed):
  matrix = np.random.default_rng(seed).standard_normal((size, size))
  return (matrix + matrix.T) / 2


POINTS = {
  'identity': np.eye(3),
  'tie': np.diag([1.0, 1.0, 2.0]),
  'near tie': np.diag([1.0, 1 + 1e-12, 3.0]),
  'random': random_spd(3, 5.0),
}


def exact_root(matrix):
  values, vectors = np.linalg.eigh(matrix)
  return (vectors / np.sqrt(values)) @ vectors.T


def exact_tangent(matrix, direction):
  """Daleckii and Krein (1965) for λ^-½, the difference quotient simplified."""
  values, vectors = np.linalg.eigh(matrix)
  s = np.sqrt(values)
  quotient = -1 / (np.outer(s, s) * (s[:, None] + s))
  inner = vectors.T @ direction @ vectors
  return vectors @ (quotient * inner) @ vectors.T


def exact_cholesky_tangent(matrix, direction):
  """Murray (2016): dL = L Φ(L⁻¹ dS L⁻ᵀ), Φ the lower half of a matrix."""
  root = ORACLES['cholesky'](matrix)
  inner = root @ direction @ root.T
  return -(np.tril(inner) - np.diag(np.diag(inner)) / 2) @ root


def exact_pca(matrix):
  values, vectors = np.linalg.eigh(matrix)
  values, vectors = values[::-1], vectors[:, ::-1]
  largest = np.abs(vectors).argmax(0)
  signs = np.sign(vectors[largest, np.arange(len(values))])
  return (vectors * signs / np.sqrt(values)).T


ORACLES = {
  'zca': exact_root,
  'newton_schulz': exact_root,
  'cholesky': lambda matrix: np.linalg.inv(np.linalg.cholesky(matrix)),
  'pca': exact_pca,
}


TANGENTS = {
  'zca': exact_tangent,
  'newton_schulz': exact_tangent,
  'cholesky': exact_cholesky_tangent,
}


def difference(f, point, direction, step):
  """The fourth-order central difference."""
  at = lambda k: f(point + k * step * direction)
  return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def assert_near(actual, expected, rtol):
  """The largest difference, relative to the largest entry."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert np.isfinite(actual).all()
  error = np.abs(actual - expected).max() / np.abs(expected).max()
  assert error <= rtol, error


def functional_weights(size):
  return np.random.default_rng(9).standard_normal((size, size))


def functional(method, size):
  """A scalar of each W, with derivatives of every order."""
  weights = functional_weights(size)

  def f(matrix):
    root = roots.inverse_sqrt(matrix, method)
    return jnp.sum(weights * root + root**3, axis=(-2, -1))

  return f


def hessian_vector(f):
  return lambda s, v: jax.jvp(jax.grad(f), (s,), (v,))[1]


@pytest.mark.parametrize(('method', 'size'), star(METHODS, (16, 1, 512)))
def test_float32_whitens_up_to_condition_1e4(method, size):
  whitening = jax.jit(partial(roots.inverse_sqrt, method=method))
  for condition in (1, 1e4):
    matrix = random_spd(size, condition).astype(np.float32)
    root = whitening(matrix)
    assert root.dtype == jnp.float32
    root, matrix = np.asarray(root, np.float64), matrix.astype(np.float64)
    assert np.isfinite(root).all()
    assert np.abs(root @ matrix @ root.T - np.eye(size)).max() <= 4e-4


@pytest.mark.parametrize('method', METHODS)
def test_equals_the_oracle_in_float64(x64, method):
  matrix = random_spd(8, 1e3)
  root = roots.inverse_sqrt(matrix, method)
  assert root.dtype == jnp.float64
  assert_near(root, ORACLES[method](matrix), 1e-11)


@cache
def first_derivatives(method):
  f = partial(roots.inverse_sqrt, method=method)

  @jax.jit
  def derivatives(s, direction, weights):
    gradient = jax.grad(lambda s: jnp.sum(weights * f(s)))(s)
    return jax.jvp(f, (s,), (direction,))[1], gradient

  return derivatives


@pytest.mark.parametrize('point', POINTS)
@pytest.mark.parametrize('method', ['zca', 'newton_schulz', 'cholesky'])
def test_first_derivatives_equal_finite_differences(x64, method, point):
  matrix = POINTS[point]
  direction, weights = random_symmetric(3, 1), random_symmetric(3, 2)
  expected = difference(ORACLES[method], matrix, direction, 1e-4)
  tangent, gradient = first_derivatives(method)(matrix, direction, weights)
  assert_near(tangent, expected, 1e-8)
  assert_near(gradient, gradient.T, 1e-12)
  np.testing.assert_allclose(
    np.sum(gradient * direction), np.sum(weights * expected), rtol=1e-8
  )


@pytest.mark.parametrize('condition', [1.0, 1e4])
@pytest.mark.parametrize('method', some(['zca'], SYMMETRIC))
def test_tangent_equals_daleckii_and_krein(x64, method, condition):
  matrix, direction = random_spd(16, condition), random_symmetric(16, 1)
  f = partial(roots.inverse_sqrt, method=method)
  run = jax.jit(lambda s: jax.jvp(f, (s,), (direction,))[1])
  tangent = run(matrix)
  assert_near(tangent, exact_tangent(matrix, direction), 1e-8)


@pytest.mark.parametrize('method', some(['zca'], SYMMETRIC))
def test_three_derivatives_at_the_identity(x64, method):
  """(I + t E)^-½ = I - t E / 2 + 3/8 t² E² - 5/16 t³ E³ + ..."""
  direction = random_symmetric(4, 1)
  f = lambda t: roots.inverse_sqrt(jnp.eye(4) + t * direction, method)
  first = jax.jacrev(f)
  second = jax.jacfwd(first)
  orders = jax.jit(lambda t: (first(t), second(t), jax.jacfwd(second)(t)))
  expected = (
    -direction / 2,
    3 / 4 * direction @ direction,
    -15 / 8 * direction @ direction @ direction,
  )
  for actual, value in zip(orders(0.0), expected, strict=True):
    assert_near(actual, value, 1e-9)


@cache
def directional_derivatives(method):
  """Second and third derivatives of `functional`, modes mixed."""
  f = functional(method, 3)
  forward = lambda f, d: lambda s: jax.jvp(f, (s,), (d,))[1]
  reverse = lambda f, d: lambda s: jnp.vdot(jax.grad(f)(s), d)
  twice = ((forward, reverse), (reverse, forward), (reverse, reverse))
  thrice = ((forward, forward, reverse), (reverse, reverse, reverse))

  @jax.jit
  def derivatives(s, u, v, w):
    return (
      [outer(inner(f, u), v)(s) for outer, inner in twice],
      [outer(mid(inner(f, u), v), w)(s) for outer, mid, inner in thrice],
    )

  return derivatives


@pytest.mark.slow
@pytest.mark.parametrize('point', POINTS)
@pytest.mark.parametrize('method', some(['zca'], TANGENTS))
def test_second_and_third_order_in_every_mode(x64, method, point):
  matrix = POINTS[point]
  u, v, w = (random_symmetric(3, seed) for seed in (1, 2, 3))
  weights = functional_weights(3)

  def first(matrix):
    root = ORACLES[method](matrix)
    return np.sum((weights + 3 * root**2) * TANGENTS[method](matrix, u))

  second = lambda matrix: difference(first, matrix, v, 5e-4)
  third = difference(second, matrix, w, 5e-4)
  seconds, thirds = directional_derivatives(method)(matrix, u, v, w)
  np.testing.assert_allclose(seconds, second(matrix), rtol=1e-7)
  np.testing.assert_allclose(thirds, third, rtol=1e-5)


@pytest.mark.parametrize('method', some(['zca'], METHODS))
def test_batches_vmap_and_jit_agree(x64, method):
  batch = np.stack([random_spd(5, 10.0**k, k) for k in range(1, 5)])
  f = functional(method, 5)
  alone = jax.jit(jax.value_and_grad(f))
  values, gradients = zip(*map(alone, batch), strict=True)
  mapped = jax.jit(jax.vmap(jax.value_and_grad(f)))(batch)
  assert_near(mapped[0], np.stack(values), 1e-10)
  assert_near(mapped[1], np.stack(gradients), 1e-9)
  leading = lambda batch: jnp.sum(f(batch.reshape(2, 2, 5, 5)))
  batched = jax.jit(jax.grad(leading))(batch)
  assert_near(batched, np.stack(gradients), 1e-9)
  hessian = jax.jit(hessian_vector(f))(batch[0], batch[1])
  shifted = np.roll(batch, -1, axis=0)
  batched = jax.jit(hessian_vector(leading))(batch, shifted)
  assert_near(batched[0], hessian, 1e-9)


@pytest.mark.parametrize('method', some(['zca'], SYMMETRIC))
def test_second_order_through_scan_and_checkpoint(x64, method):
  f = functional(method, 5)
  matrix, direction = random_spd(5, 10), random_symmetric(5, 1)

  def scanned(matrix):
    step = lambda total, _: (total + jax.checkpoint(f)(matrix), None)
    return jax.lax.scan(step, 0.0, None, length=2)[0]

  expected = 2 * jax.jit(hessian_vector(f))(matrix, direction)
  actual = jax.jit(hessian_vector(scanned))(matrix, direction)
  assert_near(actual, expected, 1e-10)


@pytest.mark.parametrize(
  ('method', 'check_vma'),
  some(
    [('zca', True), ('cholesky', False)],
    itertools.product(METHODS, (True, False)),
  ),
)
def test_shard_map(x64, method, check_vma):
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('d')
  x = np.random.default_rng(0).standard_normal((4 * 32, 5))

  def loss(x):  # of one device's rows
    f = functional(method, 5)
    return f(x.T @ x / len(x))

  sharded = jax.shard_map(
    jax.grad(loss),
    mesh=mesh,
    in_specs=spec,
    out_specs=spec,
    check_vma=check_vma,
  )
  parts = np.split(x, 4)
  alone = jax.jit(jax.grad(loss))
  expected = np.concatenate([alone(part) for part in parts])
  assert_near(jax.jit(sharded)(x), expected, 1e-10)


def test_zca_takes_one_eigendecomposition():
  f, s = functional('zca', 6), jnp.asarray(random_spd(6, 10), jnp.float32)
  first = jax.jit(jax.value_and_grad(f)).lower(s)
  second = jax.jit(hessian_vector(f)).lower(s, s)
  for program in (first, second):
    assert program.compile().as_text().count('lapack_ssyevd') == 1


@pytest.mark.parametrize('options', some([{}], [{'num_iterations': 5}]))
def test_newton_schulz_is_products_only(options):
  s = jnp.asarray(random_spd(6, 10), jnp.float32)
  f = lambda s: jnp.sum(roots.newton_schulz(s, **options) ** 3)
  for program in (
    jax.jit(jax.value_and_grad(f)).lower(s),
    jax.jit(hessian_vector(f)).lower(s, s),
  ):
    text = program.compile().as_text()
    assert 'lapack' not in text
    assert 'triangular' not in text
    assert ' dot(' in text


def every_equation(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for part in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda leaf: hasattr(leaf, 'eqns') or hasattr(leaf, 'jaxpr'),
    ):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield from every_equation(part)


@pytest.mark.parametrize('method', METHODS)
def test_every_product_is_at_the_highest_precision(method):
  s = jnp.asarray(random_spd(6, 10), jnp.float32)
  program = jax.make_jaxpr(hessian_vector(functional(method, 6)))(s, s)
  products = [
    equation.params['precision']
    for equation in every_equation(program.jaxpr)
    if equation.primitive.name == 'dot_general'
  ]
  assert products
  highest = jax.lax.Precision.HIGHEST
  assert set(products) == {(highest, highest)}


@pytest.mark.parametrize('method', METHODS)
def test_nan_and_inf_give_nan(method):
  f = jax.jit(jax.value_and_grad(functional(method, 4)))
  for bad in (np.nan, np.inf):
    matrix = np.eye(4, dtype=np.float32)
    matrix[1, 2] = matrix[2, 1] = bad
    value, gradient = f(matrix)
    assert np.isnan(value)
    assert np.isnan(gradient).any()


@pytest.mark.parametrize('method', some(['zca'], ['newton_schulz', 'pca']))
def test_singular_matrices_give_finite_roots(method):
  f = jax.jit(jax.value_and_grad(functional(method, 16)))
  rows = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
  constant = np.diag(np.arange(16, dtype=np.float32))
  for matrix in (rows.T @ rows / 4, constant):
    value, gradient = f(matrix)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    root = roots.inverse_sqrt(matrix, method)
    assert roots.residual(root, matrix) > 0.5


def test_cholesky_of_what_has_none_is_nan():
  root = roots.cholesky(np.diag([1.0, -1.0]).astype(np.float32))
  assert np.isnan(root).any()


def test_pca_swaps_axes_where_zca_is_continuous():
  """Near a tie a change of 2e-3 in S turns the PCA's output by 90 degrees."""
  before, after = (
    np.diag([1 + change, 1 - change]).astype(np.float32)
    for change in (1e-3, -1e-3)
  )
  zca = np.abs(roots.zca(before) - roots.zca(after)).max()
  pca = np.abs(roots.pca(before) - roots.pca(after)).max()
  assert zca <= 2e-3
  assert pca >= 0.99


def test_pca_orders_and_signs_its_rows():
  root = np.asarray(roots.pca(random_spd(8, 1e3).astype(np.float32)))
  norms = np.linalg.norm(root, axis=1)
  assert (np.diff(norms) > 0).all()  # descending eigenvalues
  assert (root[np.arange(8), np.abs(root).argmax(1)] > 0).all()


def test_pca_derivatives_where_eigenvalues_differ(x64):
  matrix, direction = random_spd(5, 1e2), random_symmetric(5, 1)
  expected = difference(exact_pca, matrix, direction, 1e-5)
  tangent = lambda s: jax.jvp(roots.pca, (s,), (direction,))[1]
  tangent = jax.jit(tangent)
  assert_near(tangent(matrix), expected, 1e-6)
  second = jax.jit(lambda s: jax.jvp(tangent, (s,), (direction,))[1])
  expected = difference(tangent, matrix, direction, 1e-5)
  assert_near(second(matrix), expected, 1e-6)


def test_pca_derivative_is_finite_at_a_tie(x64):
  run = jax.jit(jax.grad(functional('pca', 3)))
  for point in ('identity', 'tie', 'near tie'):
    gradient = run(POINTS[point])
    assert np.isfinite(gradient).all()


def test_pca_derivative_leaves_out_what_is_tied_to_rounding(x64):
  """In a rotated basis rounding errors separate equal eigenvalues."""
  vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
  matrix = (vectors * np.array([1.0, 1, 1, 2, 2, 3])) @ vectors.T
  run = jax.jit(jax.grad(functional('pca', 6)))
  gradient = run((matrix + matrix.T) / 2)
  assert np.abs(gradient).max() <= 1e2


def test_types_and_mistakes():
  matrix = jnp.eye(3, dtype=jnp.bfloat16)
  for method in METHODS:
    assert roots.inverse_sqrt(matrix, method).dtype == jnp.float32
  with pytest.raises(ValueError, match="unknown whitening method 'qr'; known:"):
    roots.inverse_sqrt(matrix, 'qr')
  with pytest.raises(ValueError, match=r'must be \(\.\.\., d, d\)'):
    roots.zca(jnp.ones((3, 4)))
  with pytest.raises(TypeError, match='must be real'):
    roots.zca(jnp.eye(3, dtype=jnp.complex64))
