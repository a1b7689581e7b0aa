"""The Newton-Schulz iterations: the stops of the loop, and IterNorm."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research.norms import roots
from bn_research.norms.roots import lyapunov, matrices
from tests.quick import some


def spd(size, condition, seed=0):
  rng = np.random.default_rng(seed)
  vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
  matrix = (vectors * np.geomspace(1, 1 / condition, size)) @ vectors.T
  return ((matrix + matrix.T) / 2).astype(np.float32)


def iter_norm(matrix, steps):
  """Huang et al. (2019), Algorithm 1 and its backward pass (Appendix A).

  Returns W and a function from dL/dW to dL/dS.
  """
  size = np.trace(matrix)
  scaled = matrix / size
  history = [np.eye(len(matrix))]
  for _ in range(steps):
    p = history[-1]
    history.append((3 * p - p @ p @ p @ scaled) / 2)

  def backward(cotangent):
    p_bar = cotangent / np.sqrt(size)
    scaled_bar = np.zeros_like(matrix)
    for p in reversed(history[:-1]):
      square = p @ p
      scaled_bar -= (square @ p).T @ p_bar / 2
      chain = p_bar @ scaled @ square + square @ p_bar @ scaled
      chain += p @ p_bar @ scaled @ p
      p_bar = 1.5 * p_bar - chain / 2
    through_size = -np.sum(scaled_bar * matrix) / size**2
    through_size -= np.sum(cotangent * history[-1]) / (2 * size**1.5)
    gradient = scaled_bar / size + through_size * np.eye(len(matrix))
    return (gradient + gradient.T) / 2

  return history[-1] / np.sqrt(size), backward


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_truncated_is_iter_norm(steps):
  with jax.enable_x64(True):
    matrix = spd(6, 20.0).astype(np.float64)
    matrix = (matrix + matrix.T) / 2
    weights = np.random.default_rng(1).standard_normal((6, 6))
    weights = (weights + weights.T) / 2
    root, backward = iter_norm(matrix, steps)
    f = lambda s: roots.newton_schulz(
      s, num_iterations=steps, normalizer='trace'
    )
    np.testing.assert_allclose(f(matrix), root, rtol=1e-11, atol=1e-13)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weights * f(s))))(matrix)
    np.testing.assert_allclose(
      gradient, backward(weights), rtol=1e-10, atol=1e-12
    )


def test_spectral_normalizer_whitens_better_than_the_trace():
  matrix = np.eye(64, dtype=np.float32)
  trace, spectral = (
    roots.newton_schulz(matrix, num_iterations=5, normalizer=normalizer)
    for normalizer in ('trace', 'spectral')
  )
  assert roots.residual(trace, matrix) > 1
  assert roots.residual(spectral, matrix) < 1e-2


@pytest.mark.parametrize(
  ('condition', 'normalizer'),
  some(
    [(1e4, 'spectral')],
    itertools.product((1e4, 1.0, 1e1, 1e2), ('spectral', 'trace')),
  ),
)
def test_few_steps_up_to_condition_1e4(normalizer, condition):
  matrix = np.stack([spd(64, condition, seed) for seed in range(3)])
  root, info = roots.newton_schulz_with_info(matrix, normalizer=normalizer)
  assert root.shape == matrix.shape
  assert info.num_iterations.shape == info.residual.shape == (3,)
  # The counts follow from the cubics. A residual must change by a fifth for a
  # different count, far more than by rounding errors.
  assert np.max(info.num_iterations) <= 9 + 2 * (normalizer == 'trace')
  assert np.max(info.residual) < 1e-3


def test_info_reports_what_the_root_does():
  matrix = spd(16, 1e3)
  root, info = roots.newton_schulz_with_info(matrix)
  np.testing.assert_array_equal(root, roots.newton_schulz(matrix))
  assert info.residual < 1e-3
  root, info = roots.newton_schulz_with_info(matrix, num_iterations=3)
  assert info.num_iterations == 3
  exact = np.asarray(root, np.float64)
  exact = np.linalg.norm(exact @ matrix @ exact - np.eye(16))
  assert exact > 1
  np.testing.assert_allclose(info.residual, exact, rtol=1e-4)
  loss = lambda s: roots.newton_schulz_with_info(s)[1].residual
  assert not np.any(jax.jit(jax.grad(loss))(matrix))


def test_the_first_and_the_last_step_are_counted():
  """The matrix (1) takes only the first step and the last step."""
  _, info = roots.newton_schulz_with_info(jnp.ones((1, 1)))
  assert info.num_iterations == 2


def test_a_looser_tolerance_takes_fewer_steps_and_is_met():
  matrix = spd(16, 1e2)
  counts = []
  for tolerance in (1e-1, 1e-5):
    _, info = roots.newton_schulz_with_info(matrix, tolerance=tolerance)
    assert info.residual <= tolerance
    counts.append(int(info.num_iterations))
  assert counts[0] < counts[1]


def test_a_tolerance_below_rounding_stops():
  for condition in (1.0, 1e2, 1e4, 1e6):
    matrix = spd(64, condition)
    _, usual = roots.newton_schulz_with_info(matrix)
    root, info = roots.newton_schulz_with_info(matrix, tolerance=1e-30)
    assert np.isfinite(root).all()
    # Three steps reach rounding errors and notice. By chance the residual may
    # still halve once or twice.
    assert info.num_iterations <= usual.num_iterations + 6
    assert info.residual <= 2 * usual.residual + 1e-5


@pytest.mark.parametrize('size', some([3], [2, 16, 256]))
def test_never_stops_early_near_the_identity(size):
  """Equal eigenvalues overshoot together. The overshoot is no stagnation."""
  for scale in (1e-20, 1.0, 1e20):
    matrix = scale * np.eye(size, dtype=np.float32)
    root, info = roots.newton_schulz_with_info(matrix)
    assert info.residual < 1e-4
    np.testing.assert_allclose(root * np.sqrt(scale), np.eye(size), atol=1e-5)


@pytest.mark.slow
def test_members_of_a_batch_stop_on_their_own():
  # At the last step each residual is far from the tolerance. Rounding errors do
  # not change the counts.
  batch = np.stack(
    [spd(16, 1e5), np.eye(16), spd(16, 1e1), np.nan * np.eye(16)]
  )
  batch = batch.astype(np.float32)
  together, info = roots.newton_schulz_with_info(batch)
  mapped, mapped_info = jax.vmap(roots.newton_schulz_with_info)(batch)
  for k, matrix in enumerate(batch):
    alone, alone_info = roots.newton_schulz_with_info(matrix)
    assert info.num_iterations[k] == alone_info.num_iterations
    assert mapped_info.num_iterations[k] == alone_info.num_iterations
    assert np.isfinite(alone).all() == (k != 3)
    if 0 < k < 3:
      np.testing.assert_allclose(together[k], alone, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(mapped[k], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_member_that_met_its_tolerance_is_left_alone():
  """More steps with the neighbour would bring the root too close to S^-½."""
  batch = np.stack([spd(16, 1e6), spd(16, 1e1)])
  alone, info = roots.newton_schulz_with_info(batch[1], tolerance=0.5)
  assert info.residual > 1e-3
  root = lambda matrix: roots.newton_schulz(matrix, tolerance=0.5)
  for together in (root(batch), jax.vmap(root)(batch)):
    np.testing.assert_allclose(together[1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('least', [0.0, -1e-7, -1e-3, -1.0])
def test_indefinite_matrices_end(least):
  matrix = np.diag([1.0, 0.5, least]).astype(np.float32)
  root, info = roots.newton_schulz_with_info(matrix)
  assert info.num_iterations < 40
  if least > -1e-6:  # as rounding may leave a singular matrix
    assert np.isfinite(root).all()
    assert info.residual < 2
  assert not info.residual < 0.5  # NaN or large: never said to be white


def covariance(rows):
  rows = rows.astype(np.float32)
  return rows.T @ rows / np.float32(len(rows))


def singular_matrices(size, seed):
  """Yields matrices with eigenvalues that are zero, or zero to rounding."""
  normal = np.random.default_rng(seed).standard_normal
  rows = normal((4 * size, size))
  yield covariance(np.tile(rows[:, : size // 2], 2))  # equal channels
  yield covariance(rows[:, np.maximum(np.arange(size) - 1, 0)])
  yield covariance(rows * (np.arange(size) > 0))  # a constant channel
  yield covariance(rows[: size // 2])  # fewer rows than channels
  yield covariance(rows[: size - 1])
  yield covariance(rows[:1])
  yield np.ones((size, size), np.float32)
  # Some eigenvalues are far below rounding errors. Some are small but valid.
  vectors = np.linalg.qr(normal((size, size)))[0]
  for values in (np.geomspace(1, 1e-10, size), [1e-6, *[1] * (size - 2), 0]):
    matrix = ((vectors * values) @ vectors.T).astype(np.float32)
    yield (matrix + matrix.T) / 2


@pytest.mark.parametrize(
  ('size', 'normalizer'),
  some(
    [(8, 'spectral'), (4, 'trace')],
    itertools.product((8, 2, 4, 16, 64), ('spectral', 'trace')),
  ),
)
def test_singular_matrices_do_not_blow_up(size, normalizer):
  """The growth of Z stops before Z A Z consists of rounding errors.

  W = 0 has the residual √d. In each null space the residual is the same.
  """
  seeds = range(64 if size < 64 else 8)
  batch = np.stack([m for seed in seeds for m in singular_matrices(size, seed)])
  root, info = roots.newton_schulz_with_info(batch, normalizer=normalizer)
  assert np.isfinite(root).all()
  assert np.max(info.residual) <= 1.5 * np.sqrt(size)
  scale = np.trace(batch, axis1=1, axis2=2)
  if normalizer == 'spectral':
    scale = np.squeeze(matrices.spectral_bound(batch), (1, 2))
  growth = scale * np.sum(np.square(root, dtype=np.float64), (1, 2)) / size
  # The last step multiplies Z by 1.5 at most. Without a limit the growth is 500
  # times as large.
  assert np.max(growth) <= 2 * 1.5**2 / (4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize('size', some([64], [4]))
def test_derivatives_at_singular_matrices_are_finite(size):
  batch = np.stack([m for k in range(4) for m in singular_matrices(size, k)])
  weights = np.random.default_rng(0).standard_normal((size, size))
  loss = lambda s: jnp.sum(weights.astype(np.float32) * roots.newton_schulz(s))
  assert np.isfinite(jax.jit(jax.grad(loss))(batch)).all()


@pytest.mark.parametrize('size', some([8], [2, 64]))
def test_no_eigenvalue_above_rounding_errors_is_lost(size):
  """The limit of the growth of Z does not reach a condition number of 1e6."""
  spectra = [np.geomspace(1, 1e-6, size) for _ in range(16)]
  spectra += [[1, *[1e-6] * (size - 1)], [*[1] * (size - 1), 1e-6]]
  batch = []
  for seed, values in enumerate(spectra):
    normal = np.random.default_rng(seed).standard_normal((size, size))
    vectors = np.linalg.qr(normal)[0]
    matrix = ((vectors * values) @ vectors.T).astype(np.float32)
    batch.append((matrix + matrix.T) / 2)
  _, info = roots.newton_schulz_with_info(np.stack(batch))
  assert np.max(info.residual) < 0.5  # a lost eigenvalue adds 1


@pytest.mark.slow
def test_lyapunov_solution():
  with jax.enable_x64(True):
    values = np.geomspace(1e-2, 3, 8)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    root = (vectors * values) @ vectors.T
    inverse = (vectors / values) @ vectors.T
    solution = np.random.default_rng(1).standard_normal((8, 8))
    solution = solution + solution.T
    rhs = root @ solution + solution @ root
    actual = lyapunov.solve(jnp.asarray(root), jnp.asarray(inverse), rhs)
    np.testing.assert_allclose(actual, solution, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_iterations': 5, 'tolerance': 1e-3}, 'not both'),
    ({'num_iterations': 0}, '1 or more'),
    ({'tolerance': 0.0}, 'positive'),
    ({'tolerance': float('nan')}, 'positive'),
    ({'normalizer': 'max'}, "'spectral' or 'trace'"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(ValueError, match=message):
    roots.newton_schulz(jnp.eye(2), **options)
