#!/usr/bin/env python
"""Times a training step of a ResNet-8 on a CPU or a GPU, side by side.

python scripts/bench_resnet.py

The network has a width of 16, images of 32 x 32 pixels in colour, batches of
64, batch norm, and SGD with momentum. All contenders train on the same random
examples in the same order:

* ours: the run as `bn_research.train` runs it: the order of the examples, the
  loss of each step, the files;
* alone: the same step, as a single jitted program in a bare loop;
* linen: a loop over a `jax.jit` step of a Linen module, buffers donated;
* torch: an eager loop with channels last, if PyTorch is installed.

The second table has the evaluation and the probe of a run, each beside the same
computation as a single jitted program without the harness.

The contenders take turns. A ratio is of two turns of the same round, and the
table has the median over the rounds.
"""

import contextlib
import functools
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from absl import app, flags, logging
from flax import linen as nn
from flax import nnx

from bn_research import data, experiment, optim, probes
from bn_research.training import (
  configuration,
  evaluation,
  loop,
  mesh,
  probing,
  programs,
  state,
  step,
)

_SECONDS = flags.DEFINE_float('resnet_seconds', 40.0, 'Seconds a table.')

_BATCH = 64
_STEPS = 10  # of a turn
_WIDTHS = (16, 32, 64)
_COUNT = 2000
_CONFIG = experiment.config(
  {
    'batch_size': _BATCH,
    'num_steps': 10**6,
    'model': {'name': 'resnet', 'depth': 8, 'norm': {'name': 'batch_norm'}},
    'optimizer': {'name': 'sgd', 'learning_rate': 0.01, 'momentum': 0.9},
    'eval.num_points': 1,
    'probes.activations.num_points': 1,
    'probes.covariate_shift.num_points': 1,
  }
)


def main(argv: list[str]) -> None:
  """Prints the tables."""
  del argv
  logging.set_verbosity(logging.WARNING)
  print(timing.device())
  print_tables()


def print_tables() -> None:
  """Prints the tables of the steps, and of the measurements."""
  dataset = _dataset()
  with tempfile.TemporaryDirectory() as directory:
    harness = Harness(dataset, directory)
    turns = {**dict(harness.steps()), 'linen': _linen(dataset)}
    with contextlib.suppress(ImportError):
      turns['torch'] = _torch(dataset)
    _print_table('a step', turns, _STEPS)
    _print_table('evaluation', harness.evaluations(), 1)
    for key in _CONFIG.probes:
      _print_table(key, harness.probes(key), 1)


def _print_table(title: str, turns: dict[str, timing.Turn], calls: int) -> None:
  rounds = timing.rounds_within(turns, _SECONDS.value)
  seconds = timing.in_turns(turns, rounds)
  print(f'\n{title:12}{"min ms":>9}{"median":>9}{"ours is":>10}')
  for name, values in seconds.items():
    of_call = [1e3 * value / calls for value in values]
    ratio = timing.ratio(values, seconds['ours'])
    print(
      f'{name:12}{min(of_call):9.2f}{statistics.median(of_call):9.2f}'
      f'{"" if name == "ours" else f"{ratio:.3f}x":>10}'
    )


def _dataset() -> data.Dataset:
  rng = np.random.default_rng(0)

  def split() -> data.Split:
    images = rng.integers(0, 256, (_COUNT, 32, 32, 3), np.uint8)
    return data.Split(images, rng.integers(0, 10, _COUNT, np.int32))

  return data.Dataset('random pixels', split(), split(), 10)


class Harness:
  """A run of the ResNet-8, and the programs of the run without the run."""

  def __init__(self, dataset: data.Dataset, directory: str):
    config = configuration.resolve(_CONFIG)
    self._mesh = mesh.create(1, _BATCH)
    self._test = step.Examples(*jax.device_put(tuple(dataset.test)))
    self._train = step.Examples(*jax.device_put(tuple(dataset.train)))
    self._optimizer = optim.create(config['optimizer'], config['num_steps'])
    create = state.creator(config, (32, 32, 3), 10, self._optimizer)
    with jax.set_mesh(self._mesh):
      self._programs = programs.Programs(config, dataset, self._mesh)
      self._run = loop.Run(config, directory, self._programs)
      self._graphdef, _ = jax.eval_shape(create, jax.random.key(0))
      self._state = jax.jit(lambda key: create(key)[1])(jax.random.key(0))
    self._parts = {'graphdef': self._graphdef, 'to_input': data.to_input}

  def within(self, function: Any) -> timing.Turn:
    """Returns a function that calls another function, and waits."""

    def turn() -> None:
      with jax.set_mesh(self._mesh):
        jax.block_until_ready(function())

    return turn

  def steps(self) -> Iterator[tuple[str, timing.Turn]]:
    """Yields a turn of the run, and a turn of the same step, jitted alone."""

    def ours() -> None:
      self._run._chunk = _STEPS  # A chunk of a run ends by the clock.
      with contextlib.redirect_stdout(None):  # Progress is for people.
        self._run.advance()

    program = jax.jit(
      functools.partial(
        step.next_step, optimizer=self._optimizer, **self._parts
      ),
      donate_argnums=0,
    )
    now, batches = jax.tree.map(jnp.copy, self._state), _batches()

    def alone() -> Any:
      nonlocal now
      for _ in range(_STEPS):
        now = program(now, self._train, next(batches))
      return now

    yield 'ours', self.within(ours)
    yield 'alone', self.within(alone)

  def evaluations(self) -> dict[str, timing.Turn]:
    """Returns an evaluation of the run, and only the logits of each batch."""
    size = evaluation.batches(_COUNT, 1, 32 * 32 * 3).shape[1]

    @jax.jit
    def logits(now: state.TrainState, images: jax.Array) -> jax.Array:
      model: Any = nnx.merge(self._graphdef, now.params, now.rest, copy=True)
      return model(data.to_input(images), train=False)

    def alone() -> Any:
      return [
        logits(self._state, self._test.images[start : start + size])
        for start in range(0, _COUNT, size)
      ]

    return {
      'ours': self.within(lambda: self._programs.evaluate(self._state)),
      'alone': self.within(alone),
    }

  def probes(self, key: str) -> dict[str, timing.Turn]:
    """Returns a probe of the run, and the same probe without any loop."""
    measure = jax.jit(
      functools.partial(
        probing.probe,
        measure=probes.create(key, {}),
        optimizer=self._optimizer,
        **self._parts,
      )
    )
    spread = jnp.arange(_BATCH) * _COUNT // _BATCH
    examples = step.Examples(*(leaf[spread] for leaf in self._train[:2]))
    return {
      'ours': self.within(lambda: self._programs.probe(key, self._state)),
      'alone': self.within(lambda: measure(self._state, examples)),
    }


def _batches() -> Iterator[np.ndarray]:
  """Yields the indices of one batch after the other, drawn in large pieces."""
  for start in itertools.count(0, 1000):
    yield from data.batch_indices(_COUNT, _BATCH, 0, start, start + 1000)


def _linen(dataset: data.Dataset) -> timing.Turn:
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      x = nn.relu(self._conv(x, 16, 1))
      for width in _WIDTHS:
        strides = 1 if width == 16 else 2
        h = nn.relu(self._conv(x, width, strides))
        h = self._conv(h, width, 1)
        x = x[:, ::strides, ::strides]
        more = width - x.shape[-1]
        x = nn.relu(h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))))
      return nn.Dense(10)(x.mean((1, 2)))

    def _conv(self, x: jax.Array, width: int, strides: int) -> jax.Array:
      x = nn.Conv(width, (3, 3), strides, padding=1, use_bias=False)(x)
      return nn.BatchNorm(use_running_average=False)(x)

  net, optimizer = Net(), optax.sgd(0.01, 0.9)
  variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  params, stats = variables['params'], variables['batch_stats']
  now = params, stats, optimizer.init(params)
  examples, batches = jax.device_put(tuple(dataset.train)), _batches()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, examples: Any, batch: jax.Array) -> Any:
    params, stats, opt_state = state
    x, labels = data.to_input(examples[0][batch]), examples[1][batch]

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
      logits, updated = net.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated['batch_stats']

    (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state

  def turn() -> None:
    nonlocal now
    for _ in range(_STEPS):
      now = step(now, examples, next(batches))
    jax.block_until_ready(now)

  return turn


def _torch(dataset: data.Dataset) -> timing.Turn:
  import torch
  from torch.nn import functional

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if device == 'cpu':
    # A pool larger than the free cores is many times slower than none.
    torch.set_num_threads(min(2, torch.get_num_threads()))

  class Net(torch.nn.Module):
    def __init__(self) -> None:
      super().__init__()
      inputs = (3, 16, 16, 16, 32, 32, 64)
      outputs = (16, 16, 16, 32, 32, 64, 64)
      self.strides = (1, 1, 1, 2, 1, 2, 1)
      self.convs = torch.nn.ModuleList(
        torch.nn.Conv2d(*sizes, 3, stride, padding=1, bias=False)
        for *sizes, stride in zip(inputs, outputs, self.strides, strict=True)
      )
      self.norms = torch.nn.ModuleList(map(torch.nn.BatchNorm2d, outputs))
      self.output = torch.nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
      layers = list(zip(self.convs, self.norms, self.strides, strict=True))
      conv, norm, _ = layers[0]
      x = functional.relu(norm(conv(x)))
      for first, second in zip(layers[1::2], layers[2::2], strict=True):
        h = functional.relu(first[1](first[0](x)))
        h = second[1](second[0](h))
        x = x[:, :, :: first[2], :: first[2]]
        more = h.shape[1] - x.shape[1]
        x = functional.relu(h + functional.pad(x, (0, 0, 0, 0, 0, more)))
      return self.output(x.mean((2, 3)))

  net = Net().to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
  images = torch.tensor(dataset.train.images).permute(0, 3, 1, 2)
  x = images.to(device, memory_format=torch.channels_last)
  labels = torch.tensor(dataset.train.labels, dtype=torch.int64, device=device)
  batches = _batches()

  def turn() -> None:
    for _ in range(_STEPS):
      batch = torch.from_numpy(next(batches)).long().to(device)
      loss = functional.cross_entropy(
        net(x[batch].float() / 255), labels[batch]
      )
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return turn


if __name__ == '__main__':
  app.run(main)
