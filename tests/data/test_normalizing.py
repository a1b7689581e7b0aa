import jax
import numpy as np
import pytest

from bn_research import data, errors
from bn_research.data import normalizing


def images(count=500):
  """Images of correlated pixels, one of them always black."""
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(6, 6))
  pixels = 128 + 20 * rng.normal(size=(count, 6)) @ mix
  pixels[:, 4] = 0
  return np.clip(pixels, 0, 255).astype(np.uint8).reshape(count, 3, 2, 1)


def normalized(name, epsilon=None):
  config = {'normalize': {'name': name, 'epsilon': epsilon}}
  function = jax.jit(data.input_function(config, images()))
  x = np.asarray(function(images()), np.float64)
  assert x.shape == images().shape
  assert np.isfinite(x).all()
  return x.reshape(len(x), -1)


RAW = images().reshape(500, 6) / 255


@pytest.mark.parametrize(
  'config',
  [{}, {'normalize': {'name': None}}, {'normalize': {'name': 'none'}}],
)
def test_without_a_name_inputs_are_as_they_were(config):
  function = data.input_function(config | {'binarize': None}, images())
  x = np.asarray(function(images())).reshape(500, 6)
  np.testing.assert_allclose(x, RAW, rtol=1e-6)


def test_centred():
  np.testing.assert_allclose(normalized('centre'), RAW - RAW.mean(0), atol=1e-6)


def test_standardized():
  x = normalized('standardize', 1e-6)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(x.var(0), [1, 1, 1, 1, 0, 1], atol=1e-4)
  assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) > 0.1


def test_whitened():
  x = normalized('whiten', 1e-6)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
  expected = np.diag([1.0, 1, 1, 1, 0, 1])
  np.testing.assert_allclose(np.cov(x.T, ddof=0), expected, atol=1e-2)


def test_epsilon_is_relative_to_the_mean_variance():
  cov = np.cov(RAW.T, ddof=0)
  level = 0.1 * np.trace(cov) / 6
  x = normalized('whiten', 0.1)
  values, vectors = np.linalg.eigh(cov)
  np.testing.assert_allclose(
    np.cov(x.T, ddof=0),
    (vectors * values / (values + level)) @ vectors.T,
    atol=1e-4,
  )


def test_chunks_change_nothing(monkeypatch):
  whole = normalizing.whiten(RAW)
  monkeypatch.setattr(normalizing, '_CHUNK', 7)
  for a, b in zip(whole, normalizing.whiten(RAW), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['centre', 'standardize', 'whiten'])
def test_images_that_are_all_the_same_become_zero(name):
  same = np.full((4, 3, 2, 1), 7, np.uint8)
  function = data.input_function({'normalize': {'name': name}}, same)
  np.testing.assert_allclose(function(same), 0, atol=1e-6)


def test_it_follows_the_threshold():
  config = {'binarize': 0.5, 'normalize': {'name': 'centre'}}
  function = data.input_function(config, images())
  x = np.asarray(function(images()))
  np.testing.assert_allclose(np.unique(np.ptp(x, axis=0)), [0, 1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'white'}, 'are centre, none, standardize, whiten'),
    ({'name': 'whiten', 'epsilon': 0.0}, 'choose a finite number above 0'),
    ({'name': 'whiten', 'rank': 3}, "has no option 'rank'"),
  ],
)
def test_options_that_do_not_exist(options, message):
  with pytest.raises(errors.UserError, match=message):
    data.input_function({'normalize': options}, images())
