#!/usr/bin/env python
"""Times a training step of Figure 1's network, side by side in one process.

python scripts/bench_training.py [--data_dir=DIR]

Ours is the run as `bn_research.train` runs it: chunks of steps, the order of
the examples, the probes, the files. The others train the same network on the
same examples in the same order and do nothing else:

* alone: the same program of many steps, in a bare loop without a run;
* nnx: a loop over an `nnx.jit` step with `nnx.Optimizer`;
* linen: a loop over a `jax.jit` step of a Linen module, buffers donated;
* torch: an eager loop, where PyTorch is installed;
* bound: the 11 matrix products of a step and the subtraction of their results
  from the weights, in one scan over examples that lie in order.

The contenders take turns; a ratio is that of two turns of one round, and what
is printed is the median over rounds.

The last tables are those of bench_resnet.py, a network with convolutions, and
of bench_checkpoints.py, the digests of a checkpoint.
"""

import contextlib
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import bench_checkpoints
import bench_resnet
import jax
import jax.numpy as jnp
import numpy as np
import peers_mlp
import timing
from absl import app, flags, logging
from peers_mlp import BATCH, BINARIZE, LEARNING_RATE, SIZES, Turn

from bn_research import data, optim
from bn_research.training import (
  configuration,
  mesh,
  programs,
  run,
  state,
  step,
)

_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where a prepared MNIST is; random pixels where not given.'
)
_STEPS = flags.DEFINE_integer('steps', 500, 'Steps a turn.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Rounds.')


def main(argv: list[str]) -> None:
  """Prints the tables."""
  del argv
  logging.set_verbosity(logging.WARNING)
  dataset = _dataset()
  print(f'{timing.device()}; {dataset.name}; {_STEPS.value} steps a turn')
  for norm in ('none', 'batch_norm'):
    with tempfile.TemporaryDirectory() as directory:
      turns = dict(_contenders(norm, dataset, directory))
      _print_table(norm, _time(turns))
  bench_resnet.print_tables()
  bench_checkpoints.print_table()


def _contenders(
  norm: str, dataset: data.Dataset, directory: str
) -> Iterator[tuple[str, Turn]]:
  yield 'ours', _ours(norm, dataset, directory)
  yield 'alone', _alone(norm, dataset)
  yield 'bound', _bound(dataset)
  yield 'nnx', peers_mlp.of_nnx(norm, dataset, _batches(dataset))
  yield 'linen', peers_mlp.of_linen(norm, dataset, _batches(dataset))
  try:
    import torch  # noqa: F401
  except ImportError:
    return
  yield 'torch', peers_mlp.of_torch(norm, dataset, _batches(dataset))


def _time(turns: dict[str, Turn]) -> dict[str, list[float]]:
  """Returns microseconds a step, for each contender and round."""
  for turn in turns.values():
    turn(_STEPS.value)
  times: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(_ROUNDS.value):
    for name, turn in turns.items():
      start = time.perf_counter()
      turn(_STEPS.value)
      seconds = time.perf_counter() - start
      times[name].append(seconds / _STEPS.value * 1e6)
      timing.settle(name)
  return times


def _print_table(norm: str, times: dict[str, list[float]]) -> None:
  print(f'\n{norm:12}{"min µs":>9}{"median":>9}{"ours is":>10}')
  for name, values in times.items():
    ratios = [a / b for a, b in zip(values, times['ours'], strict=True)]
    ratio = statistics.median(ratios)
    note = f'{ratio:.0%} of it' if name == 'bound' else f'{ratio:.2f}x'
    print(
      f'{name:12}{min(values):9.0f}{statistics.median(values):9.0f}'
      f'{"" if name == "ours" else note:>10}'
    )


def _dataset() -> data.Dataset:
  if _DATA_DIR.value:
    return data.load({'name': 'mnist'}, _DATA_DIR.value)
  rng = np.random.default_rng(0)

  def split(count: int) -> data.Split:
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    return data.Split(images, rng.integers(0, 10, count, np.int32))

  return data.Dataset('random pixels', split(60_000), split(10_000), 10)


def _config(norm: str) -> dict[str, Any]:
  num_turns = _ROUNDS.value + 2  # One to warm up, one that is never reached.
  return {
    'seed': 0,
    'num_steps': num_turns * _STEPS.value,
    'batch_size': BATCH,
    'num_devices': 1,
    'data': {
      'name': 'mnist',
      'train': 'train',
      'test': 'test',
      'binarize': BINARIZE,
    },
    'model': {'name': 'mlp', 'norm': {'name': norm}},
    'optimizer': {'name': 'sgd', 'learning_rate': LEARNING_RATE},
    'eval': {
      'num_points': 1,
      'spacing': 'linear',
      'splits': ('test',),
      'population': 'running',
      'step_norms': 'last',
    },
    # One a turn: Figure 1 has one in 500 steps.
    'probes': {
      'activations': {'num_examples': 1000, 'num_points': num_turns},
    },
    'checkpoint_seconds': 60.0,
  }


def _ours(norm: str, dataset: data.Dataset, directory: str) -> Turn:
  config = configuration.resolve(_config(norm))
  devices = mesh.create(1, BATCH)
  with jax.set_mesh(devices):
    compiled = programs.Programs(config, dataset, devices)
  ours = run.Run(config, directory, compiled)

  def turn(num_steps: int) -> None:
    end = ours.step + num_steps
    with contextlib.redirect_stdout(None):  # Progress is for people.
      while ours.step < end:
        ours.advance()

  return turn


def _alone(norm: str, dataset: data.Dataset) -> Turn:
  config = configuration.resolve(_config(norm))
  optimizer = optim.create(config['optimizer'], config['num_steps'])
  create = state.creator(config, (28, 28, 1), 10, optimizer)
  graphdef, _ = jax.eval_shape(create, jax.random.key(0))
  devices = mesh.create(1, BATCH)
  examples = step.Examples(*jax.device_put(tuple(dataset.train)))
  batches = _batches(dataset)
  steps = jax.jit(
    functools.partial(
      step.train_steps,
      graphdef=graphdef,
      optimizer=optimizer,
      to_input=functools.partial(data.to_input, binarize=BINARIZE),
    ),
    donate_argnums=0,
  )
  with jax.set_mesh(devices):
    now = jax.jit(lambda key: create(key)[1])(jax.random.key(0))

  def turn(num_steps: int) -> None:
    nonlocal now
    indices = np.stack([next(batches) for _ in range(num_steps)])
    with jax.set_mesh(devices):
      now = steps(now, examples, indices, np.int32(num_steps))
      jax.block_until_ready(now)

  return turn


def _bound(dataset: data.Dataset) -> Turn:
  images = dataset.train.images[: BATCH * 1000].reshape(1000, BATCH, -1)
  x = jnp.asarray(images > 127, jnp.float32)
  keys = jax.random.split(jax.random.key(0), 4)
  weights = [
    0.1 * jax.random.normal(key, shape)
    for key, shape in zip(keys, itertools.pairwise(SIZES), strict=True)
  ]

  def step(weights: list[jax.Array], x: jax.Array) -> Any:
    inputs = [x]
    for w in weights:
      inputs.append(inputs[-1] @ w)
    delta, updated = inputs.pop(), []
    for w, h in zip(weights[::-1], inputs[::-1], strict=True):
      updated.append(w - 1e-9 * (h.T @ delta))
      delta = delta @ w.T
    return updated[::-1], None

  @functools.partial(jax.jit, static_argnums=2)
  def steps(weights: list[jax.Array], x: jax.Array, count: int) -> Any:
    index = jnp.arange(count) % len(x)
    return jax.lax.scan(lambda w, i: step(w, x[i]), weights, index)[0]

  def turn(num_steps: int) -> None:
    jax.block_until_ready(steps(weights, x, num_steps))

  return turn


def _batches(dataset: data.Dataset) -> Iterator[np.ndarray]:
  """Yields the indices of one batch after the other, drawn an epoch ahead."""
  count = len(dataset.train.images)
  for start in itertools.count(0, 1000):
    yield from data.batch_indices(count, BATCH, 0, start, start + 1000)


if __name__ == '__main__':
  app.run(main)
