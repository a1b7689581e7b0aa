"""Vision transformers: published sizes, places, taps and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import errors, models
from bn_research.models import vit
from tests.models import networks
from tests.quick import some, star

TINY = {
  'patch_size': 4,
  'depth': 1,
  'width': 8,
  'num_heads': 2,
  'mlp_ratio': 2,
}
CONFIG = {'name': 'vit', 'norm': {'name': 'layer_norm'}} | TINY
PLACEMENTS = ('pre', 'post', 'peri')


def make(shape=(8, 8, 3), num_classes=5, **changes):
  return models.create(CONFIG | changes, shape, num_classes, jax.random.key(0))


def made(*args, **changes):
  """A model made in one program, which is faster than one array at a time."""
  return nnx.jit(lambda: make(*args, **changes))()


def images(batch=4, shape=(8, 8, 3)):
  x = np.random.default_rng(0).normal(size=(batch, *shape))
  return jnp.asarray(x, jnp.float32)


# Dosovitskiy et al. (2021), Table 1, has the sizes; `torchvision` counts the
# parameters: with a class token and its position, which are two more vectors.
@pytest.mark.parametrize(
  ('depth', 'width', 'num_heads', 'patch_size', 'published'),
  some(
    [(12, 768, 12, 16, 86_567_656)],
    [
      (12, 768, 12, 32, 88_224_232),
      (24, 1024, 16, 16, 304_326_632),
      (24, 1024, 16, 32, 306_535_400),
      (32, 1280, 16, 14, 632_045_800),
    ],
  ),
)
def test_the_sizes_are_the_published_sizes(
  depth, width, num_heads, patch_size, published
):
  sizes = {
    'depth': depth,
    'width': width,
    'num_heads': num_heads,
    'patch_size': patch_size,
    'mlp_ratio': 4,
  }
  model = nnx.eval_shape(lambda: make((224, 224, 3), 1000, **sizes))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(leaf.size for leaf in leaves) == published - 2 * width


@pytest.mark.parametrize(
  ('placement', 'qk_norm', 'expected'),
  [
    (
      'pre',
      True,
      'block1_query block1_key block1_attention_in block1_mlp_in final',
    ),
    ('post', False, 'block1_attention_sum block1_mlp_sum'),
    (
      'peri',
      False,
      'block1_attention_in block1_attention_out block1_mlp_in block1_mlp_out'
      ' final',
    ),
  ],
)
def test_each_norm_has_a_place(placement, qk_norm, expected):
  sizes = {}

  def norm(place, num_features, **options):
    del options
    sizes[place] = num_features
    return nnx.Module()

  nnx.eval_shape(
    lambda: vit.ViT(
      input_shape=(8, 8, 3),
      num_classes=2,
      norm=norm,
      rngs=nnx.Rngs(0),
      placement=placement,
      qk_norm=qk_norm,
      **TINY,
    )
  )
  assert list(sizes) == expected.split()
  for place, size in sizes.items():
    assert size == (4 if place.endswith(('query', 'key')) else 8)


def test_a_place_may_have_another_norm():
  norms_of = {'block2_mlp_in': {'name': 'rms_norm'}}
  model = nnx.eval_shape(lambda: make(depth=2, norms=norms_of))
  first, second = (block.mlp.norms['in'] for block in model.blocks)
  assert second.normalization != first.normalization
  with pytest.raises(errors.UserError, match="names 'block2_mlp_in'"):
    nnx.eval_shape(lambda: make(norms={'block2_mlp_in': 'rms_norm'}))


def test_taps_see_and_change_the_inputs_of_softmax_and_gelu():
  model = made()
  shapes = {}

  def tap(name, value):
    shapes[name] = value.shape
    return value

  x = images()
  assert jax.eval_shape(lambda: model(x, train=False, tap=tap)).shape == (4, 5)
  assert shapes == {
    'block1/scores': (4, 2, 4, 4),
    'block1/hidden': (4, 4, 16),
  }
  call = jax.jit(
    lambda name: model(
      x, train=False, tap=lambda n, v: v * 0 if n == name else v
    ),
    static_argnums=0,
  )
  seen = np.stack([call(name) for name in ('', *shapes)])
  differences = np.abs(seen[:, None] - seen[None]).max((-1, -2))
  assert differences[~np.eye(len(seen), dtype=bool)].min() > 1e-5


# The oracle, in NumPy and float64, from the equations of the papers.


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def layer_norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p.get('bias', 0)


def attention(p, x, num_heads):
  """Heads one after the other, each with its own columns."""
  size = x.shape[-1] // num_heads
  heads = []
  for head in range(num_heads):
    at = slice(head * size, (head + 1) * size)
    q, k, v = (dense(p[n], x)[..., at] for n in ('query', 'key', 'value'))
    if 'query_norm' in p:
      q, k = layer_norm(p['query_norm'], q), layer_norm(p['key_norm'], k)
    scores = np.exp(q @ np.swapaxes(k, -1, -2) / np.sqrt(size))
    heads.append(scores / scores.sum(-1, keepdims=True) @ v)
  return dense(p['output'], np.concatenate(heads, -1))


def mlp(p, x):
  h = dense(p['first'], x)
  h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return dense(p['second'], h)


def sublayer(p, x, function, placement):
  norm = lambda at, h: layer_norm(p['norms'][at], h)
  if placement == 'pre':
    return x + function(p['layer'], norm('in', x))
  if placement == 'post':
    return norm('sum', x + function(p['layer'], x))
  return x + norm('out', function(p['layer'], norm('in', x)))


def oracle(p, x, placement, size=4):
  patches = [
    x[:, i : i + size, j : j + size].reshape(len(x), -1)
    for i in range(0, x.shape[1], size)
    for j in range(0, x.shape[2], size)
  ]
  h = dense(p['embedding'], np.stack(patches, 1)) + p['position']
  for block in p['blocks'].values():
    heads = lambda p, x: attention(p, x, num_heads=2)
    h = sublayer(block['attention'], h, heads, placement)
    h = sublayer(block['mlp'], h, mlp, placement)
  if placement != 'post':
    h = layer_norm(p['final'], h)
  return dense(p['output'], h.mean(1))


@pytest.mark.parametrize(
  ('placement', 'qk_norm'), star(PLACEMENTS, (True, False))
)
def test_the_network_is_its_formula(placement, qk_norm):
  shape = (8, 12, 3)  # no square: rows and columns of patches differ
  model = made(shape, placement=placement, qk_norm=qk_norm)
  rng = np.random.default_rng(1)
  # Every parameter is away from its initial value, so that each one counts.
  params = jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape),
    nnx.to_pure_dict(nnx.state(model, nnx.Param)),
  )
  nnx.update(model, jax.tree.map(jnp.float32, params))
  x = rng.normal(size=(3, *shape))
  actual = jax.jit(lambda x: model(x, train=True))(jnp.float32(x))
  params = jax.tree.map(np.float64, params)
  np.testing.assert_allclose(
    actual, oracle(params, x, placement), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('remat', [True, False])
def test_each_block_is_rematerialized(remat):
  model = nnx.eval_shape(lambda: make(depth=2, remat=remat))
  graphdef, state = nnx.split(model)
  program = jax.make_jaxpr(
    lambda state, x: nnx.merge(graphdef, state, copy=True)(x, train=True)
  )(state, images())
  names = [equation.primitive.name for equation in program.eqns]
  assert sum(name.startswith('remat') for name in names) == 2 * remat


def test_bfloat16_is_close():
  x = images()
  plain, rounded = (
    np.asarray(networks.fast_jit(lambda x, m=m: m(x, train=False))(x))
    for m in (made(qk_norm=True, dtype=t) for t in ('float32', 'bfloat16'))
  )
  assert rounded.dtype == np.float32
  assert 0 < np.abs(plain - rounded).max() < 0.1 * plain.std()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'shape': (30, 32, 3)}, 'patch_size=4 does not divide .* 30 x 32 pixels'),
    ({'shape': (2, 2, 3)}, 'vit needs images of at least 4 x 4 pixels'),
    ({'shape': (784,)}, 'vit needs images'),
    ({'num_classes': 1}, 'at least 2 classes'),
    ({'width': 9}, 'num_heads=2 does not divide width=9'),
    ({'num_heads': 0}, 'num_heads=0; choose a whole number from 1'),
    ({'depth': 0}, 'depth=0; choose'),
    ({'patch_size': 0}, 'patch_size=0; choose'),
    ({'mlp_ratio': -1}, 'mlp_ratio=-1; choose'),
    ({'placement': 'per'}, 'placement=.per.; choose pre or post or peri'),
    ({'dtype': 'float16'}, "dtype='float16'; choose float32 or bfloat16"),
  ],
)
def test_what_does_not_fit_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    nnx.eval_shape(lambda: make(**changes))
  assert '\n' not in str(caught.value)
