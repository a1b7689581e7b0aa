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


def normalized(name, epsilon=None, stored=None, **options):
  stored = images() if stored is None else stored
  config = {'normalize': {'name': name, 'epsilon': epsilon, **options}}
  function = jax.jit(data.input_function(config, stored))
  x = np.asarray(function(stored), np.float64)
  assert x.shape == stored.shape
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


def colours():
  """Correlated colours of different brightness and contrast."""
  rng = np.random.default_rng(1)
  mix = np.array([[30, 20, 5], [0, 20, 5], [0, 0, 3]])
  found = [80, 120, 200] + rng.normal(size=(60, 4, 5, 3)) @ mix
  return np.clip(found, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('name', ['centre', 'standardize', 'whiten'])
@pytest.mark.parametrize('per', ['pixel', 'channel'])
def test_against_numpy_in_float64(name, per, monkeypatch):
  # Chunks of two images merge to the moments of all images.
  monkeypatch.setattr(normalizing, '_CHUNK', 150)
  epsilon = None if name == 'centre' else 0.003
  found = normalized(name, epsilon, colours(), per=per)
  scaled = colours().astype(np.float32) / np.float32(255)
  x = scaled.reshape(-1, 3 if per == 'channel' else 60).astype(np.float64)
  apart = x - x.mean(0)
  covariance = apart.T @ apart / len(x)
  level = 0.003 * np.trace(covariance) / len(covariance)
  if name == 'centre':
    expected = apart
  elif name == 'standardize':
    expected = apart / np.sqrt(np.diag(covariance) + level)
  else:
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors / np.sqrt(values + level)) @ vectors.T
    expected = apart @ root
  np.testing.assert_allclose(found.reshape(x.shape), expected, atol=2e-5)


def test_channel_moments_of_cifar10(real_cifar10):
  small = {'train': 'train[:3000]', 'test': 'test[:1]'}
  images = data.load({'name': 'cifar10', **small}, real_cifar10).train.images
  config = {'normalize': {'name': 'standardize', 'per': 'channel'}}
  function = data.input_function(config, images)
  black, white = (
    np.asarray(function(np.full((1, 1, 1, 3), v, np.uint8))).ravel()
    for v in (0, 255)
  )
  # The published means and deviations of all 50,000 images.
  means, deviations = -black / (white - black), 1 / (white - black)
  np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.005)
  np.testing.assert_allclose(deviations, [0.247, 0.2435, 0.2616], atol=0.005)


def test_float64_ends_with_the_fit():
  normalized('whiten', 1e-6)
  assert jax.numpy.ones(()).dtype == np.float32


def test_a_function_of_the_user_takes_all_inputs_or_asks_for_moments(
  user_module,
):
  user_module(
    'my_inputs',
    'from bn_research import norms\n'
    'def shifted(x):\n'
    '  assert x.shape == (500, 6) and x.dtype == "float32"\n'
    '  return lambda batch: batch - x.min()\n'
    'def rest(x, **options):\n'
    '  return lambda batch: batch + options["by"] * len(options)\n'
    'def ours(inputs):\n'
    '  moments = inputs.moments(norms.Standardize(), "channel")\n'
    '  return lambda batch: batch - moments.mean.item()\n',
  )
  np.testing.assert_allclose(
    normalized('my_inputs:shifted'), RAW - RAW.min(), atol=1e-6
  )
  np.testing.assert_allclose(
    normalized('my_inputs:rest', by=2), RAW + 2, atol=1e-6
  )
  np.testing.assert_allclose(
    normalized('my_inputs:ours'), RAW - RAW.mean(), atol=1e-5
  )


@pytest.mark.parametrize('per', ['pixel', 'channel'])
@pytest.mark.parametrize('name', ['centre', 'standardize', 'whiten'])
def test_images_that_are_all_the_same_become_zero(name, per):
  same = np.full((4, 3, 2, 1), 7, np.uint8)
  config = {'normalize': {'name': name, 'per': per}}
  function = data.input_function(config, same)
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
    ({'name': 'centre', 'per': 'image'}, "per='image'; choose channel or pix"),
  ],
)
def test_options_that_do_not_exist(options, message):
  with pytest.raises(errors.UserError, match=message):
    data.input_function({'normalize': options}, images())


def test_a_covariance_that_no_memory_holds():
  large = np.zeros((1, 80, 80, 3), np.uint8)
  with pytest.raises(errors.UserError, match=r'19200 x 19200 .*per=.channel'):
    data.input_function({'normalize': 'whiten'}, large)
