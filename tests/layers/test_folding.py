"""Folding normalizations into the layers before them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as linen_layers
from bn_research.layers import nnx as layers
from bn_research.layers.linen import surgery as linen_surgery
from bn_research.layers.nnx import surgery
from tests.quick import some, star


def fold_after(layer, norm):
  """Outputs of a model before and after folding."""
  if not isinstance(norm, nnx.Module):
    norm = layers.Norm(norm, 4, rngs=nnx.Rngs(0))
  model = nnx.Sequential(layer, norm)
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 4))
  model(x)
  model.eval()
  before = model(x)
  surgery.fold(model, {('layers', 1): ('layers', 0)})
  return before, model(x)


def test_folding_a_convolution():
  conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
  model = nnx.Sequential(conv, layers.BatchNorm(4, rngs=nnx.Rngs(0)))
  x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  model(x)
  model.eval()
  before = model(x)
  surgery.fold(model, {('layers', 1): ('layers', 0)})
  np.testing.assert_allclose(model(x), before, atol=1e-5)


def test_folding_far_from_zero_keeps_every_digit():
  norm = norms.batch_norm(epsilon=0.0)
  state = norm.init(2)._replace(
    mean=jnp.array([1e8, -3e7]), var=jnp.array([1e10, 4.0])
  )
  slope, shift = norms.affine_of(norm, state)
  np.testing.assert_allclose(slope, np.diag([1e-5, 0.5]), rtol=1e-6)
  np.testing.assert_allclose(shift, [-1e3, 1.5e7], rtol=1e-6)


def test_what_is_perhaps_not_affine_is_not_folded():
  norm = norms.create('evonorm_b0')
  with pytest.raises(ValueError, match='is not a norms'):
    norms.affine_of(norm, norm.init(3))


def test_folding_a_convolution_of_groups():
  conv = lambda: nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
  before, after = fold_after(conv(), norms.batch_norm())
  np.testing.assert_allclose(after, before, atol=1e-5)
  with pytest.raises(ValueError, match='feature_group_count=2'):
    fold_after(conv(), norms.batch_whitening())


def test_folding_keeps_the_type_of_the_result():
  norm = layers.BatchNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  before, after = fold_after(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), norm)
  assert before.dtype == after.dtype == jnp.bfloat16
  before, after = (np.asarray(y, np.float32) for y in (before, after))
  np.testing.assert_allclose(after, before, 2**-7, 1e-5)


@pytest.mark.parametrize('transpose_kernel', [False, True])
def test_folding_a_transposed_convolution(transpose_kernel):
  layer = nnx.ConvTranspose(
    4, 4, (3, 3), transpose_kernel=transpose_kernel, rngs=nnx.Rngs(0)
  )
  before, after = fold_after(layer, norms.batch_norm())
  np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
  'make', some([norms.batch_norm], [norms.batch_whitening])
)
def test_folding_a_masked_convolution(make):
  mask = np.random.default_rng(0).uniform(size=(3, 3, 4, 4)) < 0.5
  conv = nnx.Conv(4, 4, (3, 3), mask=jnp.asarray(mask), rngs=nnx.Rngs(0))
  before, after = fold_after(conv, make(epsilon=1e-3))
  np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.slow
def test_whitening_within_the_groups_of_a_convolution_is_folded():
  conv = nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
  norm = norms.batch_whitening('zca', group_size=2, epsilon=1e-3)
  before, after = fold_after(conv, norm)
  np.testing.assert_allclose(after, before, atol=1e-4)


class LinenConvNet(nn.Module):
  """A convolution of groups and a Norm, given."""

  normalization: norms.Normalization
  groups: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x, train):
    conv = nn.Conv(4, (3, 3), feature_group_count=self.groups, name='conv')
    return linen_layers.Norm(
      self.normalization,
      use_running_average=not train,
      use_bias=self.use_bias,
      name='norm',
    )(conv(x))


def linen_fold_after(norm, groups, **given):
  """The same of a linen model."""
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 4))
  model = LinenConvNet(norm, groups)
  variables = model.init(jax.random.key(1), x, True)
  _, moved = model.apply(variables, x, True, mutable=['batch_stats'])
  variables = {**variables, **moved}
  pairs = {('norm',): ('conv',)}
  folded = linen_surgery.fold(variables, pairs, norm, **given)
  plain = LinenConvNet(norms.none(), groups, use_bias=False)
  return model.apply(variables, x, False), plain.apply(folded, x, False)


@pytest.mark.parametrize('groups', some([2], [1, 4]))
def test_linen_folds_what_takes_each_output_by_itself(groups):
  before, after = linen_fold_after(
    norms.batch_norm(), groups, feature_group_count=groups
  )
  assert np.isfinite(before).all()
  np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
  ('groups', 'group_size'), some([], [(2, 2), (1, None), (1, 3)])
)
def test_linen_folds_whitening_of_outputs_of_the_same_inputs(
  groups, group_size
):
  norm = norms.batch_whitening('zca', group_size=group_size, epsilon=1e-3)
  before, after = linen_fold_after(norm, groups, feature_group_count=groups)
  assert np.isfinite(before).all()
  np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
  ('groups', 'given', 'message'),
  [
    (2, None, r'kernel of shape \(3, 3, 2, 4\) .* give feature_group_count'),
    (1, None, r'kernel of shape \(3, 3, 4, 4\) .* give feature_group_count'),
    (2, 2, r'feature_group_count=2 see different inputs.*divides 2\.'),
    (2, 3, r'feature_group_count=3 does not divide the 4 outputs'),
    (2, 0, r'feature_group_count=0 does not divide the 4 outputs'),
  ],
)
def test_linen_refuses_to_mix_outputs_of_different_inputs(
  groups, given, message
):
  norm = norms.batch_whitening('zca', epsilon=1e-3)
  with pytest.raises(ValueError, match=message) as error:
    linen_fold_after(norm, groups, feature_group_count=given)
  assert '\n' not in str(error.value)


class _Transposed(nn.Module):
  """A transposed convolution, and a normalization unless it is folded."""

  features: int
  transpose_kernel: bool

  @nn.compact
  def __call__(self, x, is_folded=False):
    convolution = nn.ConvTranspose(
      self.features,
      (3, 3),
      strides=(2, 2),
      transpose_kernel=self.transpose_kernel,
      name='c',
    )
    x = convolution(x)
    norm = linen_layers.BatchNorm(use_running_average=True, name='bn')
    return x if is_folded else norm(x)


@pytest.mark.parametrize(
  ('given', 'transposed', 'features'),
  star([True, False], [True, False], [3, 4]),
)
def test_transposed_kernels_of_linen_are_exact_or_refused(
  features, transposed, given
):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 4)), 'f4')
  model = _Transposed(features, transposed)
  variables = model.init(jax.random.key(0), x)
  count = jnp.arange(1.0, features + 1)
  norm = {'scale': count, 'bias': count - 3}
  statistics = {'bn': {'mean': count, 'var': count / 4}}
  variables = {
    'params': {**variables['params'], 'bn': norm},
    'batch_stats': statistics,
  }
  fold = lambda **options: linen_surgery.fold(
    variables, {('bn',): ('c',)}, norms.batch_norm(), **options
  )
  options = {'transpose_kernel': transposed} if given else {}
  if features == 4 and not given:
    with pytest.raises(ValueError, match=r'as many inputs.*transpose_kernel'):
      fold()
    return
  folded = fold(**options)
  y = model.apply({'params': {'c': folded['params']['c']}}, x, is_folded=True)
  np.testing.assert_allclose(y, model.apply(variables, x), atol=1e-4)


class _Holder(nnx.Module):
  def __init__(self, layer, norm):
    self.layer, self.norm = layer, norm

  def __call__(self, x):
    return self.norm(self.layer(x))


UNFOLDABLE = {
  'general': lambda rngs: nnx.LinearGeneral(4, 4, rngs=rngs),
  'einsum': lambda rngs: nnx.Einsum('ab,cb->ac', (4, 4), (4,), rngs=rngs),
  'lora': lambda rngs: nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs),
  'norm': lambda rngs: nnx.LayerNorm(4, rngs=rngs),
}


@pytest.mark.parametrize('name', UNFOLDABLE)
def test_other_layers_are_refused(name):
  rngs = nnx.Rngs(0)
  norm = layers.BatchNorm(4, rngs=rngs)
  model = _Holder(UNFOLDABLE[name](rngs), norm)
  with pytest.raises(ValueError, match=r'only nnx\.Linear, nnx\.Conv, '):
    surgery.fold(model, {('norm',): ('layer',)})
  assert model.norm is norm


def test_transposed_kernels_of_nnx_are_folded():
  rngs = nnx.Rngs(0)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 4)), 'f4')
  for transposed in (True, False):
    convolution = nnx.ConvTranspose(
      4, 4, (3, 3), strides=(2, 2), transpose_kernel=transposed, rngs=rngs
    )
    model = _Holder(convolution, layers.BatchNorm(4, momentum=0.5, rngs=rngs))
    model(x)
    model.eval()
    expected = model(x)
    surgery.fold(model, {('norm',): ('layer',)})
    np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_what_is_shared_or_stacked_is_not_folded():
  rngs = nnx.Rngs(0)
  model = _Holder(nnx.Linear(4, 4, rngs=rngs), layers.BatchNorm(4, rngs=rngs))
  model.again = model.layer
  with pytest.raises(ValueError, match='several places'):
    surgery.fold(model, {('norm',): ('layer',)})

  @nnx.vmap(in_axes=0, out_axes=0)
  def create(key):
    rngs = nnx.Rngs(key)
    return _Holder(nnx.Linear(4, 4, rngs=rngs), layers.BatchNorm(4, rngs=rngs))

  stacked = create(jax.random.split(jax.random.key(0), 3))
  with pytest.raises(ValueError, match='before models are stacked'):
    surgery.fold(stacked, {('norm',): ('layer',)})


def test_all_pairs_are_folded_or_none():
  rngs = nnx.Rngs(0)
  first = _Holder(nnx.Linear(4, 4, rngs=rngs), layers.BatchNorm(4, rngs=rngs))
  second = _Holder(nnx.LayerNorm(4, rngs=rngs), layers.BatchNorm(4, rngs=rngs))
  model = _Holder(first, second)
  kernel = first.layer.kernel[...]
  with pytest.raises(ValueError, match='is a LayerNorm'):
    surgery.fold(
      model,
      {
        ('layer', 'norm'): ('layer', 'layer'),
        ('norm', 'norm'): ('norm', 'layer'),
      },
    )
  assert isinstance(first.norm, layers.BatchNorm)
  np.testing.assert_array_equal(first.layer.kernel[...], kernel)
