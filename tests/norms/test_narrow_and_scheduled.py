"""Points at which a state, a schedule or a type leaves its usual range."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms
from bn_research.norms import axes, populations
from tests.quick import star

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((64, 4)) * 30, jnp.float32)


@pytest.mark.parametrize(
  ('population', 'dtype'),
  star(
    [
      norms.Ema(0.0, unbiased=False),
      norms.Interval(1, norms.Ema(0.0, unbiased=False)),
      norms.Accumulated(1, norms.Ema(0.0, unbiased=False)),
    ],
    ['float16', 'bfloat16'],
  ),
  ids=str,
)
def test_a_narrow_state_whitens_at_inference(population, dtype):
  """A variance of 900: the root needs the range of float32."""
  norm = norms.Normalization(norms.Batch(), norms.Whiten('zca'), population)
  with jax.numpy_dtype_promotion('strict'):
    y, state = norm.apply(X, norm.init(4, dtype))
    inferred, _ = norm.apply(X, state, use_running=True, update=False)
    slope, _ = norms.affine_of(norm, state)
  assert state.skipped == 0
  np.testing.assert_allclose(inferred, y, atol=0.05)
  assert np.isfinite(slope).all()
  assert np.abs(slope).max() > 1e-3


@pytest.mark.parametrize(
  'population',
  [
    norms.Accumulated(2, norms.Ema(0.5)),
    norms.Interval(2, norms.Ema(0.5)),
    norms.Pooled(),
    norms.Cumulative(),
  ],
  ids=lambda population: type(population).__name__,
)
def test_the_frozen_reads_the_state_of_its_population(population):
  norm = norms.Normalization(norms.Batch(), norms.Standardize(), population)
  _, state = norm.apply(X, norm.init(4))
  _, state = norm.apply(X + 5, state)
  expected, _ = norm.apply(X, state, use_running=True, update=False)
  y, after = norms.freeze(norm).apply(X, state)
  np.testing.assert_allclose(y, expected, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_an_average_with_its_initial_value_is_whole():
  """A debiased average must not divide by the share of the batches again."""
  biased, debiased = (
    norms.Normalization(
      norms.Batch(), norms.Standardize(), norms.Ema(0.9, debias=debias)
    )
    for debias in (False, True)
  )
  state = biased.init(4)
  for _ in range(3):
    _, state = biased.apply(X + 7, state)
  expected = biased.apply(X + 7, state)[1]
  found = debiased.apply(X + 7, state)[1]
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
  assert found.weight == 1


@dataclasses.dataclass(frozen=True)
class Blend(axes.Axis):
  """A policy of a user: a share of the population in the pair."""

  numbers = ('share',)
  share: Any = 0.5

  def __call__(self, batch, population, map_):
    del map_
    mix = lambda a, b: (1 - self.share) * a + self.share * b
    return batch._replace(
      mean=mix(batch.mean, population.mean),
      spread=mix(batch.spread, population.spread),
    )


def test_a_policy_of_a_user_may_have_a_schedule():
  def make(share, population):
    return norms.Normalization(
      norms.Batch(), norms.Standardize(), population, Blend(share)
    )

  ema = norms.Ema(0.5)
  state = make(0.0, ema).init(4)
  for share in (0.25, 0.5):
    scheduled = make(lambda steps: 0.25 * (steps + 1), ema)
    y, after = scheduled.apply(X, state)
    expected, _ = make(share, ema).apply(X, state)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    state = after
  with pytest.raises(ValueError, match='has a schedule, and nothing counts'):
    make(lambda steps: steps, None)


def test_a_longer_state_needs_a_resume():
  class Longer(norms.Running):
    pass

  class Forgetful(populations.running.RunningPopulation):
    @property
    def state_type(self):
      return Longer

  running = norms.batch_norm().init(4)
  with pytest.raises(ValueError, match='override the method `resume`'):
    Forgetful().resume(running, norms.Standardize())


BESIDE = {
  'evonorm_b0': norms.EvoNormB0(),
  'evonorm_s0': norms.EvoNormS0(2),
  'dynamic_erf': norms.dynamic_erf(),
  'dynamic_tanh': norms.dynamic_tanh(),
  'mixture': norms.Mixture((norms.batch_norm(), norms.layer_norm())),
  'coloured': norms.Coloured(norms.batch_norm()),
}


@pytest.mark.parametrize('name', BESIDE)
def test_ranks_and_types_beside_the_product(name):
  norm = BESIDE[name]
  x = X.reshape(4, 4, 4, 4).astype('bfloat16')
  scale = jnp.ones(4)
  with (
    jax.numpy_rank_promotion('raise'),
    jax.numpy_dtype_promotion('strict'),
  ):
    y, _ = norm.apply(
      x, norm.init(4), scale=scale, bias=scale, learned=norm.learned(4)
    )
  assert y.shape == x.shape
  assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize('kind', [norms.Chain, norms.Mixture])
def test_learned_arrays_may_come_from_a_checkpoint(kind):
  """A checkpoint has dicts in place of tuples, and no empty dicts."""
  norm = kind((norms.Coloured(norms.batch_norm()), norms.layer_norm()))
  state, learned = norm.init(4), norm.learned(4)
  expected, _ = norm.apply(X, state, learned=learned)
  parts = {'0': {'colouring': jnp.eye(4)}}
  restored = parts if kind is norms.Chain else learned | {'parts': parts}
  y, _ = norm.apply(X, state, learned=restored)
  np.testing.assert_allclose(y, expected, atol=1e-6)
