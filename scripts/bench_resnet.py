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
import peers_resnet
import timing
from absl import app, flags, logging
from flax import nnx

from bn_research import data, experiment, optim, probes
from bn_research.training import (
  configuration,
  evaluation,
  mesh,
  pace,
  probing,
  programs,
  run,
  state,
  step,
)

_SECONDS = flags.DEFINE_float('resnet_seconds', 40.0, 'Seconds a table.')

_BATCH = 64
_STEPS = 10  # of a turn
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
    turns = dict(harness.steps())
    turns['linen'] = peers_resnet.linen(dataset, _batches(), _STEPS)
    with contextlib.suppress(ImportError):
      turns['torch'] = peers_resnet.pytorch(dataset, _batches(), _STEPS)
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


class _Fixed(pace.Pace):
  """Chunks of the same length, where a run takes a time."""

  def steps(self, start: int) -> int:
    """Returns the number of steps of a turn."""
    del start
    return _STEPS


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
      self._run = run.Run(config, directory, self._programs, pace=_Fixed())
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


if __name__ == '__main__':
  app.run(main)
