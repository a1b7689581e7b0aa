"""Checks whether configs can be trained, without training."""

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bn_research import data, models, optim, probes, registry
from bn_research.training import configuration, feeding, losses


def check(
  configs: Iterable[Mapping[str, Any]], data_dir: str | None = None
) -> None:
  """Builds the parts of each config, and traces each network without computing.

  Args:
    configs: The configs of the runs. A part that several configs share is built
      only once.
    data_dir: Directory of the datasets; None for the default directory of TFDS.

  Raises:
    UserError: If a key, a name, an option or a value of a config is wrong.
  """
  built: set[str] = set()

  # The cache needs hashable arguments, and the text of a section is hashable.
  @functools.cache
  def load(section: str, splits: tuple[str, ...]) -> feeding.Dataset:
    return feeding.open_dataset(json.loads(section), data_dir, splits)

  for config in configs:
    config = configuration.resolve(config)
    splits = tuple(config['eval']['splits'])
    for part in ('data', 'model', 'optimizer', 'probes'):
      # A network also depends on the data, and a schedule of the learning rate
      # also depends on the number of steps.
      given = (part, 'data', 'num_steps', 'batch_size')
      parts = {key: config[key] for key in given}
      key = json.dumps([part, parts, splits], default=str)
      if key not in built:
        built.add(key)
        dataset = load(json.dumps(config['data'], default=str), splits)
        _PARTS[part](config, dataset)


def _check_data(config: Mapping[str, Any], dataset: feeding.Dataset) -> None:
  data.batch_indices(  # raises if a mini-batch does not fit
    dataset.num_examples['train'], config['batch_size'], 0, 0, 1
  )
  # Ten images are enough to check the options. A fit to all training images is
  # left to the run.
  images, _ = dataset.sample(np.arange(min(10, dataset.num_examples['train'])))
  data.input_function(config['data'], images)
  data.augmentation.create(config['data'], images)


def _check_model(config: Mapping[str, Any], dataset: feeding.Dataset) -> None:
  shape = dataset.input_shape

  def call(key: jax.Array) -> jax.Array:
    model: Any = models.create(config['model'], shape, dataset.num_classes, key)
    logits = model(jnp.zeros((config['batch_size'], *shape)), train=True)
    losses.check_logits(logits, config['batch_size'], dataset.num_classes)
    return logits

  # `eval_shape` traces the call and computes nothing, so a check is fast for a
  # network of any size.
  with registry.mistakes_in('config.model'):
    jax.eval_shape(call, jax.random.key(0))


def _check_optimizer(
  config: Mapping[str, Any], dataset: feeding.Dataset
) -> None:
  optim.of_run(config, dataset.num_examples['train'])


def check_probes(config: Mapping[str, Any]) -> None:
  """Builds the probes of a resolved config.

  Raises:
    UserError: If a name or an option of a probe is wrong.
  """
  for key, section in configuration.probe_sections(config).items():
    probes.create(key, section)


_PARTS = {
  'data': _check_data,
  'model': _check_model,
  'optimizer': _check_optimizer,
  'probes': lambda config, dataset: check_probes(config),
}
