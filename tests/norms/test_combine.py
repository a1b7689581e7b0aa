"""Normalizations made of normalizations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import norms

PARTS = (norms.batch_norm(), norms.batch_whitening('zca'))
COMBINATIONS = {
  'chain': norms.Chain(PARTS),
  'mixture': norms.Mixture(PARTS),
  'coloured': norms.Coloured(PARTS[1]),
}
each = pytest.mark.parametrize('norm', COMBINATIONS.values(), ids=COMBINATIONS)


def test_combinations_do_what_their_parts_do():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4)), 'float32')
  parts = (norms.batch_norm(), norms.batch_whitening('zca'))
  mixture = norms.Mixture(parts)
  learned = {'logits': jnp.log(jnp.array([1.0, 3.0])), 'parts': ({}, {})}
  y, state = mixture.apply(x, mixture.init(4), learned=learned)
  each = [part.apply(x, part.init(4)) for part in parts]
  mixed = each[0][0] / 4 + each[1][0] * 3 / 4
  np.testing.assert_allclose(y, mixed, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(state[1].var, each[1][1].var)

  chain = norms.Chain(parts)
  y, state = chain.apply(x, chain.init(4), bias=jnp.ones(4))
  second, _ = parts[1].apply(each[0][0], parts[1].init(4))
  np.testing.assert_allclose(y, second + 1, rtol=1e-5, atol=1e-5)
  inference, _ = chain.apply(x, state, use_running=True, update=False)
  assert jnp.isfinite(inference).all()

  coloured = norms.Coloured(parts[1])
  colouring = jnp.arange(16.0).reshape(4, 4)
  y, _ = coloured.apply(
    x, coloured.init(4), learned={'colouring': colouring, 'inner': {}}
  )
  np.testing.assert_allclose(y, each[1][0] @ colouring.T, atol=1e-4)


@each
def test_a_second_call_compiles_nothing(norm, caplog):
  # No other test has this shape, so the first call compiles.
  x, state, learned = jnp.ones((29, 4)), norm.init(4), norm.learned(4)

  def compilations():
    caplog.clear()
    with jax.log_compiles():
      norm.apply(x, state, learned=learned)
    return [r for r in caplog.records if 'Compiling' in r.getMessage()]

  assert compilations()
  assert not compilations()


@each
def test_flags_are_those_of_numpy_too(norm):
  x, state, learned = jnp.ones((6, 4)), norm.init(4), norm.learned(4)
  flags = {'use_running': np.bool_(True), 'update': np.bool_(False)}
  _, after = norm.apply(x, state, learned=learned, **flags)
  for old, new in zip(*map(jax.tree.leaves, (state, after)), strict=True):
    np.testing.assert_array_equal(old, new)


@each
def test_bad_calls_name_the_argument(norm):
  x, state, learned = jnp.ones((6, 4)), norm.init(4), norm.learned(4)
  for bad, match in (
    ({'bias': jnp.ones((3, 6, 4))}, 'bias of shape'),
    ({'scale': jnp.ones(3)}, 'scale of shape'),
    ({'mask': jnp.ones(5, bool)}, 'mask of shape'),
    ({'state': ()}, 'state is missing'),
  ):
    given = {'state': state, **bad}
    with pytest.raises(ValueError, match=match):
      norm.apply(x, given.pop('state'), learned=learned, **given)
  with pytest.raises(TypeError, match='x is int32'):
    norm.apply(x.astype(int), state, learned=learned)


def test_what_is_learned_is_asked_for():
  for name in ('mixture', 'coloured'):
    norm = COMBINATIONS[name]
    with pytest.raises(ValueError, match='learned is missing'):
      norm.apply(jnp.ones((6, 4)), norm.init(4))


def test_nothing_remembered_or_learned_need_not_be_given():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), 'float32')
  chain = norms.Chain((norms.layer_norm(), norms.rms_norm()))
  y, state = chain.apply(x)
  right, _ = norms.rms_norm().apply(norms.layer_norm().apply(x)[0])
  np.testing.assert_allclose(y, right, atol=1e-6)
  assert state == ((), ())
