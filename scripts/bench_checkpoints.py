#!/usr/bin/env python
"""Times the digests of a checkpoint beside the checkpoint.

python scripts/bench_checkpoints.py

A checkpoint is saved as `bn_research.train` saves it. A run waits until the
state has left the devices (`blocks`), and the files are on the disk later
(`save`). The digests of the same state are timed in the same round; a share is
the ratio of digests and save, and the table has medians over the rounds.
No digest is part of a training step: between two checkpoints, a run computes
none.
"""

import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import timing
from absl import app, logging

from bn_research import experiment, optim
from bn_research.training import checkpoints, digests, mesh, state

# Widths of a perceptron, from Figure 1's network to 240 MB with the momentum.
_WIDTHS = ((100, 100, 100), (1000, 1000, 1000), (3000, 3000, 3000))
_ROUNDS = 7


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  print_table()


def print_table() -> None:
  """Prints the cost of the digests, for states of several sizes."""
  interval = experiment.base().checkpoint_seconds
  print(f'\n{"checkpoint":>12}{"blocks ms":>11}', end='')
  print(f'{"save ms":>10}{"digests ms":>12}{"share":>8}')
  for widths in _WIDTHS:
    start = _state(widths)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    saves, sums, blocks = _time(start)
    share = statistics.median(b / a for a, b in zip(saves, sums, strict=True))
    save, digest = statistics.median(saves), statistics.median(sums)
    print(
      f'{size / 1e6:9.1f} MB{1e3 * statistics.median(blocks):11.1f}'
      f'{1e3 * save:10.1f}{1e3 * digest:12.2f}{share:8.1%}'
      f'   {digest / interval:.4%} of the {interval:g} s between checkpoints'
    )


def _state(widths: tuple[int, ...]) -> state.TrainState:
  optimizer = optim.create(
    {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}, 1
  )
  model = {'name': 'mlp', 'widths': widths, 'norm': {'name': 'batch_norm'}}
  _, start = state.create(jax.random.key(0), model, (28, 28, 1), 10, optimizer)
  return mesh.replicate(start, mesh.create(1, 1))


def _time(start: state.TrainState) -> tuple[list[float], ...]:
  """Returns seconds a save, for the digests, and of waiting, by round."""
  saves, sums, blocks = [], [], []
  for step in range(_ROUNDS + 1):
    with tempfile.TemporaryDirectory() as directory:
      saver = checkpoints.Checkpoints(directory, 0.0, 1, print)
      now = time.perf_counter()
      saver.save(start._replace(step=jnp.int32(step)))
      blocks.append(time.perf_counter() - now)
      saver.close()
      saves.append(time.perf_counter() - now)
    now = time.perf_counter()
    digests.of_arrays(start)
    sums.append(time.perf_counter() - now)
    timing.settle('')
  return saves[1:], sums[1:], blocks[1:]  # The first round compiles.


if __name__ == '__main__':
  app.run(main)
