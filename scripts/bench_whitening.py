#!/usr/bin/env python
"""Times whitening layers, forward and backward, in one process, in turns.

python scripts/bench_whitening.py [--seconds=6]

Ours: Newton-Schulz at IterNorm's five steps, Newton-Schulz to tolerance, ZCA by
eigenvectors, Cholesky. Against: JAX differentiating through its own eigh, and,
where PyTorch is installed, IterNorm and ZCA written from the papers in it.
Printed are milliseconds, the medians of paired ratios, and the operations with
the time that they take at the rate of one large matrix product, measured in the
same rounds. Operations are counted by formula: the compiler's own count leaves
out eigendecompositions and triangular solves.
"""

import importlib.util
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags
from jax import lax

from bn_research import norms

_SECONDS = flags.DEFINE_float('seconds', 6.0, 'Time for one shape.')

# Rows, channels, and channels of a block.
SHAPES = (
  (8192, 16, 16),
  (8192, 64, 64),
  (8192, 256, 256),
  (2048, 512, 512),
  (64 * 14 * 14, 256, 16),
)
_EPSILON = 1e-5
_STEPS = 5
_GOALS = (
  ('newton_schulz_5', 'torch_iter_norm', 0.5),
  ('zca', 'torch_eigh', 0.8),
  ('zca', 'jax_eigh', 0.9),
)


def main(argv: list[str]) -> None:
  """Prints a block of lines for each shape, and the means of the ratios."""
  del argv
  timing.keep_pages()
  print(timing.device())
  collected: dict[tuple[str, str], list[float]] = {}
  for shape in SHAPES:
    seconds, rounds = _time(*shape)
    _print_shape(shape, seconds, rounds)
    for ours, theirs, _ in _GOALS:
      if theirs in seconds:
        ratio = timing.ratio(seconds[ours], seconds[theirs])
        collected.setdefault((ours, theirs), []).append(ratio)
  print('\ngeometric means of ours / theirs')
  for ours, theirs, goal in _GOALS:
    if (ours, theirs) in collected:
      mean = timing.geometric_mean(collected[ours, theirs])
      words = ' '.join(f'{r:.2f}' for r in collected[ours, theirs])
      print(f'  {ours} / {theirs}: {mean:.2f} (goal {goal}); {words}')


def _time(rows: int, channels: int, block: int):
  rng = np.random.default_rng(0)
  mixing = rng.standard_normal((channels, channels)) / channels**0.5
  x = (rng.standard_normal((rows, channels)) @ mixing).astype(np.float32)
  g = rng.standard_normal(x.shape).astype(np.float32)
  turns = dict(_jax_turns(jnp.asarray(x), jnp.asarray(g), block))
  turns.update(_torch_turns(x, g, block))
  rounds = timing.rounds_within(turns, _SECONDS.value)
  return timing.in_turns(turns, rounds), rounds


def _print_shape(shape, seconds, rounds) -> None:
  rows, channels, block = shape
  rate = 2 * 1024**3 / statistics.median(seconds['matmul'])
  print(f'\n{rows} x {channels}, blocks of {block} ({rounds} rounds)')
  for name, times in seconds.items():
    if name == 'matmul':
      continue
    milliseconds = 1e3 * statistics.median(times)
    line = f'  {name:20}{milliseconds:9.2f} ms'
    if name == f'newton_schulz_{_STEPS}':
      flops = operations(rows, channels, block, _STEPS)
      bound = 1e3 * flops / rate
      line += f'; {flops / 1e9:.2f} GF, at {rate / 1e9:.0f} GF/s {bound:.2f} ms'
    print(line, flush=True)


def operations(rows: int, channels: int, block: int, steps: int) -> float:
  """Floating-point operations of a layer by truncated Newton-Schulz.

  With the batch: covariance and multiplication forward; backward three products
  of the same size (of the result with respect to x, to W, and of S with respect
  to x). With the root: 3 products a step but the first's one less, and the last
  needs no Y; twice that backward.
  """
  blocks = channels / block
  batch = 5 * 2 * rows * block**2 * blocks
  root = (3 * steps - 3) * 3 * 2 * block**3 * blocks
  return batch + root


def _jax_turns(x, g, block) -> Iterator[tuple[str, timing.Turn]]:
  size = None if block == x.shape[-1] else block
  relative: dict[str, Any] = {'relative': False, 'epsilon': _EPSILON}
  iterated = norms.iter_norm(size, _STEPS, _EPSILON, average='covariance')
  layers = {
    f'newton_schulz_{_STEPS}': iterated,
    'newton_schulz': norms.batch_whitening('newton_schulz', size, **relative),
    'zca': norms.batch_whitening('zca', size, **relative),
    'cholesky': norms.batch_whitening('cholesky', size, **relative),
  }
  for name, layer in layers.items():
    yield name, _turn(_forward(layer), x, g)
  yield 'jax_eigh', _turn(lambda x: _eigh_whitening(x, block), x, g)
  square = jnp.ones((1024, 1024))
  product = jax.jit(lambda a: a @ a)
  yield 'matmul', lambda: product(square).block_until_ready()


def _forward(layer):
  def forward(x):
    return layer.apply(x, layer.init(x.shape[-1]), update=False)[0]

  return forward


def _turn(forward, x, g) -> timing.Turn:
  @jax.jit
  def both(x, g):
    y, pull = jax.vjp(forward, x)
    return y, pull(g)

  return lambda: jax.block_until_ready(both(x, g))


def _eigh_whitening(x: jax.Array, block: int) -> jax.Array:
  """Plain JAX, autodiff through eigh; blocks first, as is fastest."""
  z = x.reshape(len(x), -1, block).swapaxes(0, 1)
  z = z - z.mean(1, keepdims=True)
  highest = lax.Precision.HIGHEST
  s = jnp.einsum('gni,gnj->gij', z, z, precision=highest) / z.shape[1]
  values, u = jnp.linalg.eigh(s + _EPSILON * jnp.eye(block))
  w = jnp.einsum('gik,gk,gjk->gij', u, values**-0.5, u, precision=highest)
  y = jnp.einsum('gni,gij->gnj', z, w, precision=highest)
  return y.swapaxes(0, 1).reshape(x.shape)


def _torch_turns(x, g, block) -> dict[str, timing.Turn]:
  if not importlib.util.find_spec('torch'):
    return {}
  import torch

  leaf, weight = torch.tensor(x, requires_grad=True), torch.tensor(g)

  def centred(x):
    z = x.reshape(len(x), -1, block).transpose(0, 1)
    return z - z.mean(1, keepdim=True)

  def covariance(z):
    eye = torch.eye(block)
    return torch.baddbmm(
      _EPSILON * eye, z.transpose(1, 2), z, alpha=1 / z.shape[1]
    )

  def back(y):
    return y.transpose(0, 1).reshape(x.shape)

  def iter_norm(x):  # Huang et al. (2019), Algorithm 1
    z = centred(x)
    s = covariance(z)
    trace = s.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    s, p = s / trace, torch.eye(block).expand_as(s)
    for _ in range(_STEPS):
      p = torch.baddbmm(p, torch.matrix_power(p, 3), s, beta=1.5, alpha=-0.5)
    return back(z @ (p / trace.sqrt()))

  def eigh(x):  # Huang et al. (2018), Algorithm 1
    z = centred(x)
    values, u = torch.linalg.eigh(covariance(z))
    return back(z @ ((u * values.rsqrt()[:, None]) @ u.transpose(1, 2)))

  def turn(forward):
    def call():
      leaf.grad = None
      forward(leaf).backward(weight)

    return call

  return {'torch_iter_norm': turn(iter_norm), 'torch_eigh': turn(eigh)}


if __name__ == '__main__':
  app.run(main)
