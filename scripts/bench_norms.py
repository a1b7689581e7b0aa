#!/usr/bin/env python
"""Times normalizations in training mode against their peers, in one process.

python scripts/bench_norms.py [--norms=batch,layer,group] [--dtypes=float32]

The turns of a round are interleaved; what is printed is the median over rounds
of ours divided by theirs. Ours is the drop-in layer, which has the variables of
Flax's; `norms` is the function that it calls, whose batch norm returns the
numbers of updates made and skipped too. Peers that are not installed are left
out: flax.linen and flax.nnx, equinox, haiku, PyTorch. Statistics are those of
the peer's default, which in Flax and Haiku is the unstable E[x²] - E[x]²; ours
is stable.
The bound is what moving the arrays takes at the rate of a copy measured in the
same rounds: forward x in and y out, backward x and g in, dx out.

The last table is of ghost batches: a number of rows that the group size does
not divide, against the next that it divides, in time and in temporary memory.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import timing
from absl import app, flags
from flax import linen as nn
from flax import nnx

from bn_research import norms
from bn_research.layers import linen as layers

_NORMS = flags.DEFINE_list('norms', ['batch', 'layer', 'group'], 'Which.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Types of x.')
_SECONDS = flags.DEFINE_float('seconds', 4.0, 'Time for one line.')

SHAPES = (
  (60, 100),
  (256, 1024),
  (8192, 1024),
  (32, 56, 56, 64),
  (32, 28, 28, 128),
  (32, 14, 14, 256),
  (128, 32, 32, 64),
)
_GROUPS = 32
_GHOST = 32
_FEATURES = 512

# A forward function of (x, scale, bias); statistics are returned or dropped.
Forward = Callable[[jax.Array, jax.Array, jax.Array], Any]


def main(argv: list[str]) -> None:
  """Prints a table for each normalization and type."""
  del argv
  timing.keep_pages()
  print(timing.device())
  for kind in _NORMS.value:
    for dtype in _DTYPES.value:
      _table(kind, jnp.dtype(dtype))
  _ghosts()


def _table(kind: str, dtype) -> None:
  print(f'\n{kind} norm, {dtype.name}: ours / theirs')
  collected: dict[str, list[float]] = {}
  for shape in SHAPES:
    if kind == 'group' and len(shape) == 2:
      continue
    ratios, line = _compare(kind, shape, dtype)
    print(f'{shape!s:20}', line, flush=True)
    for name, value in ratios.items():
      collected.setdefault(name, []).append(value)
  means = {
    name: timing.geometric_mean(values) for name, values in collected.items()
  }
  print(f'{"geometric mean":20}', _words(means))


def _ghosts() -> None:
  """Prints what a last group costs that is smaller than the others."""
  print(f'\nghost batches of {_GHOST} rows, {_FEATURES} features, float32')
  norm = norms.batch_norm(group_size=_GHOST)

  def forward(x, scale, bias):
    return norm.apply(x, norm.init(_FEATURES), scale=scale, bias=bias)

  scale, bias = jnp.ones(_FEATURES), jnp.zeros(_FEATURES)
  for rows, even in ((1023, 1024), (8191, 8192)):
    turns, memory = {}, {}
    for n in (rows, even):
      x = jax.random.normal(jax.random.key(0), (n, _FEATURES))
      turns[str(n)] = _jax_turn(forward, x, scale, bias, x)
      loss = lambda x: jnp.sum(forward(x, scale, bias)[0] ** 2)
      program = jax.jit(jax.grad(loss)).lower(x).compile()
      analysis: Any = program.memory_analysis()
      memory[n] = analysis.temp_size_in_bytes
    rounds = timing.rounds_within(turns, _SECONDS.value)
    seconds = timing.in_turns(turns, rounds)
    ratio = timing.ratio(seconds[str(rows)], seconds[str(even)])
    print(
      f'{rows} / {even} rows: time {ratio:.2f}, temporary memory '
      f'{memory[rows] / memory[even]:.2f}',
      flush=True,
    )


def _compare(kind: str, shape, dtype) -> tuple[dict[str, float], str]:
  x = jax.random.normal(jax.random.key(0), shape, dtype)
  g = jax.random.normal(jax.random.key(1), shape, dtype)
  scale, bias = jnp.ones(shape[-1]), jnp.zeros(shape[-1])
  turns = {
    name: _jax_turn(forward, x, scale, bias, g)
    for name, forward in _forwards(kind, shape, dtype)
  }
  turns.update(_torch_turns(kind, shape, dtype))
  turns['copy'] = _copy_turn(x)
  rounds = timing.rounds_within(turns, _SECONDS.value)
  seconds = timing.in_turns(turns, rounds)
  copies = seconds.pop('copy')
  ours = seconds['ours']
  ratios = {
    name: timing.ratio(ours, theirs)
    for name, theirs in seconds.items()
    if name != 'ours'
  }
  # Five arrays of the size of x against the two of a copy.
  bound = 2.5 * timing.ratio(copies, ours)
  best = 1e3 * sorted(ours)[len(ours) // 2]
  return ratios, f'{_words(ratios)}  {best:7.3f} ms, {bound:4.0%} of the bound'


def _words(ratios: dict[str, float]) -> str:
  return '  '.join(f'{name} {value:.2f}' for name, value in ratios.items())


def _jax_turn(forward: Forward, x, scale, bias, g) -> timing.Turn:
  @jax.jit
  def both(x, scale, bias, g):
    y, pull, statistics = jax.vjp(forward, x, scale, bias, has_aux=True)
    return y, pull(g.astype(y.dtype)), statistics

  return lambda: jax.block_until_ready(both(x, scale, bias, g))


def _copy_turn(x) -> timing.Turn:
  copy = jax.jit(lambda x: x + jnp.ones((), x.dtype))
  return lambda: copy(x).block_until_ready()


def _forwards(kind: str, shape, dtype) -> Iterator[tuple[str, Forward]]:
  yield 'ours', _linen(layers, kind, dtype)
  yield 'norms', _norms(kind)
  yield 'linen', _linen(nn, kind, dtype)
  yield 'nnx', _nnx(kind, shape, dtype)
  if importlib.util.find_spec('equinox'):
    yield 'equinox', _equinox(kind, shape)
  if importlib.util.find_spec('haiku'):
    yield 'haiku', _haiku(kind, shape)


def _norms(kind: str) -> Forward:
  norm = {
    'batch': norms.batch_norm(),
    'layer': norms.layer_norm(),
    'group': norms.group_norm(_GROUPS),
  }[kind]

  def forward(x, scale, bias):
    state = norm.init(x.shape[-1])
    return norm.apply(x, state, scale=scale, bias=bias)

  return forward


def _linen(family: Any, kind: str, dtype) -> Forward:
  layer = {
    'batch': family.BatchNorm(use_running_average=False, dtype=dtype),
    'layer': family.LayerNorm(dtype=dtype),
    'group': family.GroupNorm(_GROUPS, dtype=dtype),
  }[kind]

  def forward(x, scale, bias):
    size = x.shape[-1]
    statistics = {'mean': jnp.zeros(size), 'var': jnp.ones(size)}
    return layer.apply(
      {
        'params': {'scale': scale, 'bias': bias},
        **({'batch_stats': statistics} if kind == 'batch' else {}),
      },
      x,
      mutable=['batch_stats'],
    )

  return forward


def _nnx(kind: str, shape, dtype) -> Forward:
  size, rngs = shape[-1], nnx.Rngs(0)
  layer = {
    'batch': lambda: nnx.BatchNorm(size, dtype=dtype, rngs=rngs),
    'layer': lambda: nnx.LayerNorm(size, dtype=dtype, rngs=rngs),
    'group': lambda: nnx.GroupNorm(size, _GROUPS, dtype=dtype, rngs=rngs),
  }[kind]()
  parts: Any = nnx.split(layer, nnx.Param, ...)
  graphdef, _, rest = parts

  def forward(x, scale, bias):
    parameters = nnx.State({'scale': nnx.Param(scale), 'bias': nnx.Param(bias)})
    merged = nnx.merge(graphdef, parameters, rest, copy=True)
    y = merged(x)
    new: Any = nnx.split(merged, nnx.Param, ...)
    return y, new[2]

  return forward


def _equinox(kind: str, shape) -> Forward:
  import equinox as eqx

  size, channels_first = shape[-1], len(shape) > 2
  if kind == 'batch':
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
      size, 'batch', mode='batch'
    )
  elif kind == 'layer':
    layer, state = eqx.nn.LayerNorm(size), None
  else:
    layer, state = eqx.nn.GroupNorm(_GROUPS, size), None

  def forward(x, scale, bias):
    changed = eqx.tree_at(
      lambda norm: (norm.weight, norm.bias), layer, (scale, bias)
    )
    if kind == 'layer':
      rows = jax.vmap(changed)(x.reshape(-1, size))
      return rows.reshape(x.shape), None
    z = jnp.moveaxis(x, -1, 1) if channels_first else x
    if kind == 'batch':
      z, new = jax.vmap(changed, (0, None), (0, None), axis_name='batch')(
        z, state
      )
      new = jax.tree.leaves(new)
    else:
      z, new = jax.vmap(changed)(z), None
    return (jnp.moveaxis(z, 1, -1) if channels_first else z), new

  return forward


def _haiku(kind: str, shape) -> Forward:
  import haiku as hk

  def build(x):
    if kind == 'batch':
      return hk.BatchNorm(True, True, 0.99, name='n')(x, True)
    if kind == 'layer':
      return hk.LayerNorm(-1, True, True, name='n')(x)
    return hk.GroupNorm(_GROUPS, name='n')(x)

  transformed = hk.transform_with_state(build)
  _, state = transformed.init(jax.random.key(0), jnp.ones((2, *shape[1:])))

  def forward(x, scale, bias):
    lead = (1,) * (x.ndim - 1) if kind == 'batch' else ()
    parameters = {
      'scale': scale.reshape((*lead, -1)),
      'offset': bias.reshape((*lead, -1)),
    }
    return transformed.apply({'n': parameters}, state, None, x)

  return forward


def _torch_turns(kind: str, shape, dtype) -> dict[str, timing.Turn]:
  if not importlib.util.find_spec('torch'):
    return {}
  import torch

  kinds = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
  size = shape[-1]
  x = torch.randn(*shape).to(kinds[dtype.name])
  if len(shape) == 4 and kind != 'layer':
    x = x.permute(0, 3, 1, 2)  # the layout of our arrays: channels last
  x.requires_grad_()
  layer = {
    'batch': lambda: (
      torch.nn.BatchNorm1d(size)
      if len(shape) == 2
      else torch.nn.BatchNorm2d(size)
    ),
    'layer': lambda: torch.nn.LayerNorm(size),
    'group': lambda: torch.nn.GroupNorm(_GROUPS, size),
  }[kind]().to(x.dtype)
  g = torch.randn_like(x)

  def turn():
    x.grad = layer.weight.grad = layer.bias.grad = None
    layer(x).backward(g)

  return {'torch': turn}


if __name__ == '__main__':
  app.run(main)
