#!/usr/bin/env python
"""Counts the collectives of a training step, beside the least possible.

python scripts/bench_scaling.py
python scripts/bench_scaling.py --networks=perceptron --norms=iter_norm

Nothing is timed: virtual devices of a CPU share its cores. The script compiles
the step of a run as `bn_research.train` compiles the step, and reads the
collectives in the compiled program. All rows together took seven minutes on two
cores with other work beside, and the perceptron two of these.

The networks are the perceptron of Figure 1 and the ResNet-20 for CIFAR-10, with
batches of 64 random examples. Each cell has the number of collectives in a step
and the kilobytes that each device sends, by the algorithms that send the fewest
bytes: 2 (n - 1) / n of the size of a sum, and (n - 1) / n of the size of all
gathered parts together. `collectives.least` defines the least: the gradient and
the loss once, and for each normalization the moments once forward and their
cotangents once backward, each as a sum over the devices.

The number of collectives is the least in each form. The bytes are above the
least for two reasons:

* A normalization gathers the moments of all devices. The exact merge of moments
  needs the mean of every device: a sum of squares would be one collective, and
  is not stable, and a stable sum of deviations waits for the sum of the means.
  A gather of the moments of n devices sends n / 2 times the bytes of a sum, and
  batch norm also brings a count of examples for each unit. The moments of batch
  norm are few beside the gradient. A covariance of a wide layer is as large as
  a matrix of weights, and the gather then sends more bytes than the gradient.
* Under `shard_map` and `pmap`, the cotangents of mean and deviation in batch
  norm travel with the backward pass, and travel again as the gradients of bias
  and scale: the step sums all gradients over the devices, and does not know
  which sums a normalization has made before. Under jit, XLA sees one sum.
"""

import functools
import itertools
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_dict

from bn_research import config_files, data, models
from bn_research.training.costs import collectives, compiled

# The file of the config, and the shape of the images.
_NETWORKS = {
  'perceptron': ('ioffe2015_fig1.py:mnist', (28, 28, 1)),
  'resnet20': ('he2016_resnet.py:cifar10', (32, 32, 3)),
}
_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_CLASSES = 10
_BATCH_SIZE = 64
_EXAMPLES = 1_024


def _define(name: str, choices: list[str], text: str) -> flags.FlagHolder:
  return flags.DEFINE_multi_enum(name, choices, choices, text)


_CHOSEN = _define('networks', [*_NETWORKS], 'The networks.')
_NORMS = _define(
  'norms', ['none', 'batch_norm', 'iter_norm'], 'The normalizations.'
)
_DEVICES = _define('devices', ['2', '4', '8'], 'The numbers of devices.')
_FORMS = _define(
  'forms', ['jit', 'shard_map', 'pmap'], 'The forms: config.parallel.form.'
)


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  columns = ''.join(f'{name:>20}' for name in ('the least', *_FORMS.value))
  print(f'{"collectives, kB sent":34}{columns}')
  rows = itertools.product(
    _CHOSEN.value, _NORMS.value, map(int, _DEVICES.value)
  )
  for network, norm, num_devices in rows:
    _print_row(network, norm, num_devices)


def _print_row(network: str, norm: str, num_devices: int) -> None:
  file, shape = _NETWORKS[network]
  config = config_files.load(str(_CONFIGS / file))
  config.model.norm = {'name': norm}
  config.batch_size, config.num_devices = _BATCH_SIZE, num_devices
  cells = [_least(config, shape)]
  for form in _FORMS.value:
    config.parallel.form = form
    cells.append(compiled.of_step(config, _dataset(shape)))
  print(f'{network:12}{norm:12}{num_devices} devices', end='')
  for found in cells:
    sent = sum(one.sent(num_devices) for one in found)
    print(f'{len(found):9}{sent / 1e3:11.1f}', end='')
  print(flush=True)


def _least(
  config: config_dict.ConfigDict, shape: tuple[int, ...]
) -> list[compiled.Collective]:
  """Returns as many sums as a step needs, the last with all of the bytes."""
  least = collectives.least(
    nnx.eval_shape(
      lambda: models.create(config.model, shape, _CLASSES, jax.random.key(0))
    )
  )
  sizes = [0] * (least.number - 1) + [least.reduced]
  return [compiled.Collective('all-reduce', size) for size in sizes]


@functools.cache
def _dataset(shape: tuple[int, ...]) -> data.Dataset:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (_EXAMPLES, *shape), np.uint8)
  labels = rng.integers(0, _CLASSES, _EXAMPLES, np.int32)
  split = data.Split(images, labels)
  return data.Dataset('random pixels', split, split, _CLASSES)


if __name__ == '__main__':
  app.run(main)
