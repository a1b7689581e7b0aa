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
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import bench_checkpoints
import bench_resnet
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from absl import app, flags, logging
from flax import linen as nn
from flax import nnx

from bn_research import data, optim
from bn_research.training import (
  configuration,
  loop,
  mesh,
  programs,
  state,
  step,
)

_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where a prepared MNIST is; random pixels where not given.'
)
_STEPS = flags.DEFINE_integer('steps', 500, 'Steps a turn.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Rounds.')

_BATCH = 60
_SIZES = (784, 100, 100, 100, 10)
_LEARNING_RATE = 0.5
_BINARIZE = 0.5
_INIT = nn.initializers.normal(0.1)

Turn = Callable[[int], None]  # Takes that many steps, and waits for them.


def main(argv: list[str]) -> None:
  """Prints the tables."""
  del argv
  logging.set_verbosity(logging.WARNING)
  dataset = _dataset()
  print(f'{_device()}; {dataset.name}; {_STEPS.value} steps a turn')
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
  yield 'nnx', _nnx(norm, dataset)
  yield 'linen', _linen(norm, dataset)
  try:
    import torch  # noqa: F401
  except ImportError:
    return
  yield 'torch', _torch(norm, dataset)


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


def _device() -> str:
  name = jax.devices()[0].device_kind
  if jax.default_backend() == 'cpu':
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [l.split(':')[1].strip() for l in lines if l.startswith('model n')]
    name = f'{len(names)} x {names[0]}' if names else name
  return f'{name}, jax {jax.__version__}, Python {sys.version.split()[0]}'


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
    'batch_size': _BATCH,
    'num_devices': 1,
    'data': {
      'name': 'mnist',
      'train': 'train',
      'test': 'test',
      'binarize': _BINARIZE,
    },
    'model': {'name': 'mlp', 'norm': {'name': norm}},
    'optimizer': {'name': 'sgd', 'learning_rate': _LEARNING_RATE},
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
  devices = mesh.create(1, _BATCH)
  with jax.set_mesh(devices):
    compiled = programs.Programs(config, dataset, devices)
  run = loop.Run(config, directory, compiled)

  def turn(num_steps: int) -> None:
    end = run.step + num_steps
    with contextlib.redirect_stdout(None):  # Progress is for people.
      while run.step < end:
        run.advance()

  return turn


def _alone(norm: str, dataset: data.Dataset) -> Turn:
  config = configuration.resolve(_config(norm))
  optimizer = optim.create(config['optimizer'], config['num_steps'])
  create = state.creator(config, (28, 28, 1), 10, optimizer)
  graphdef, _ = jax.eval_shape(create, jax.random.key(0))
  devices = mesh.create(1, _BATCH)
  examples, batches = step.Examples(*_on_device(dataset)), _batches(dataset)
  steps = jax.jit(
    functools.partial(
      step.train_steps,
      graphdef=graphdef,
      optimizer=optimizer,
      to_input=functools.partial(data.to_input, binarize=_BINARIZE),
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
  images = dataset.train.images[: _BATCH * 1000].reshape(1000, _BATCH, -1)
  x = jnp.asarray(images > 127, jnp.float32)
  keys = jax.random.split(jax.random.key(0), 4)
  weights = [
    0.1 * jax.random.normal(key, shape)
    for key, shape in zip(keys, itertools.pairwise(_SIZES), strict=True)
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
    yield from data.batch_indices(count, _BATCH, 0, start, start + 1000)


def _nnx(norm: str, dataset: data.Dataset) -> Turn:
  class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
      self.dense = nnx.List(
        nnx.Linear(*size, kernel_init=_INIT, use_bias=norm == 'none', rngs=rngs)
        for size in itertools.pairwise(_SIZES[:-1])
      )
      self.norms = nnx.List(
        nnx.BatchNorm(width, rngs=rngs)
        for width in _SIZES[1:-1]
        if norm == 'batch_norm'
      )
      self.output = nnx.Linear(*_SIZES[-2:], kernel_init=_INIT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
      for i, dense in enumerate(self.dense):
        x = dense(x)
        x = nnx.sigmoid(self.norms[i](x) if len(self.norms) else x)
      return self.output(x)

  model = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.sgd(_LEARNING_RATE), wrt=nnx.Param)
  examples, batches = _on_device(dataset), _batches(dataset)

  @nnx.jit
  def step(
    model: Net, optimizer: nnx.Optimizer, examples: Any, batch: Any
  ) -> jax.Array:
    x, labels = _select(examples, batch)
    loss, grads = nnx.value_and_grad(lambda m: _loss(m(x), labels))(model)
    optimizer.update(model, grads)
    return loss

  def turn(num_steps: int) -> None:
    for _ in range(num_steps):
      loss = step(model, optimizer, examples, next(batches))
    loss.block_until_ready()

  return turn


def _linen(norm: str, dataset: data.Dataset) -> Turn:
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      for width in _SIZES[1:-1]:
        x = nn.Dense(width, norm == 'none', kernel_init=_INIT)(x)
        if norm == 'batch_norm':
          x = nn.BatchNorm(use_running_average=False)(x)
        x = nn.sigmoid(x)
      return nn.Dense(_SIZES[-1], kernel_init=_INIT)(x)

  net, optimizer = Net(), optax.sgd(_LEARNING_RATE)
  variables = net.init(jax.random.key(0), jnp.zeros((1, _SIZES[0])))
  params, stats = variables['params'], variables.get('batch_stats', {})
  state = (params, stats, optimizer.init(params))
  examples, batches = _on_device(dataset), _batches(dataset)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, examples: Any, batch: jax.Array) -> Any:
    params, stats, opt_state = state
    x, labels = _select(examples, batch)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
      logits, updated = net.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
      return _loss(logits, labels), updated.get('batch_stats', {})

    (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state

  def turn(num_steps: int) -> None:
    nonlocal state
    for _ in range(num_steps):
      state = step(state, examples, next(batches))
    jax.block_until_ready(state)

  return turn


def _torch(norm: str, dataset: data.Dataset) -> Turn:
  import torch

  # A pool larger than the free cores is many times slower than none.
  torch.set_num_threads(min(2, torch.get_num_threads()))
  layers: list[Any] = []
  for size in itertools.pairwise(_SIZES[:-1]):
    layers.append(torch.nn.Linear(*size, bias=norm == 'none'))
    if norm == 'batch_norm':
      layers.append(torch.nn.BatchNorm1d(size[1]))
    layers.append(torch.nn.Sigmoid())
  net = torch.nn.Sequential(*layers, torch.nn.Linear(*_SIZES[-2:]))
  optimizer = torch.optim.SGD(net.parameters(), _LEARNING_RATE)
  x, labels = dataset.train
  x = torch.tensor(x.reshape(len(x), -1))
  labels = torch.tensor(labels, dtype=torch.int64)
  batches = _batches(dataset)

  def turn(num_steps: int) -> None:
    for _ in range(num_steps):
      batch = torch.from_numpy(next(batches)).long()
      logits = net((x[batch] > 127).float())
      loss = torch.nn.functional.cross_entropy(logits, labels[batch])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()

  return turn


def _on_device(dataset: data.Dataset) -> tuple[jax.Array, jax.Array]:
  return jax.device_put(tuple(dataset.train))


def _select(examples: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
  images, labels = examples
  x = data.to_input(images[batch], _BINARIZE)
  return x.reshape(_BATCH, -1), labels[batch]


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


if __name__ == '__main__':
  app.run(main)
