"""Whether a config can be trained, found out without training."""

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bn_research import data, models, optim, probes, registry
from bn_research.training import configuration, step


def check(
  configs: Iterable[Mapping[str, Any]], data_dir: str | None = None
) -> None:
  """Builds the parts of each config, and calls each network on shapes alone.

  Args:
    configs: The configs of the runs. What several have in common is built once.
    data_dir: Where datasets are kept; TFDS's own default where None.

  Raises:
    UserError: If a key, a name, an option or a value of a config is wrong.
  """
  built: set[str] = set()

  @functools.cache
  def load(section: str, splits: tuple[str, ...]) -> data.Dataset:
    return data.load(json.loads(section), data_dir, splits)

  for config in configs:
    config = configuration.resolve(config)
    splits = tuple(config['eval']['splits'])
    for part in ('data', 'model', 'optimizer', 'probes'):
      # A network depends on the data, and a schedule on the length of the run.
      parts = {k: config[k] for k in (part, 'data', 'num_steps')}
      key = json.dumps([part, parts, splits], default=str)
      if key not in built:
        built.add(key)
        dataset = load(json.dumps(config['data'], default=str), splits)
        _PARTS[part](config, dataset)


def _check_data(config: Mapping[str, Any], dataset: data.Dataset) -> None:
  # A few images: what is fitted to all of them is fitted when a run begins.
  data.input_function(config['data'], dataset.train.images[:10])


def _check_model(config: Mapping[str, Any], dataset: data.Dataset) -> None:
  shape = dataset.train.images.shape[1:]

  def call(key: jax.Array) -> jax.Array:
    model: Any = models.create(config['model'], shape, dataset.num_classes, key)
    logits = model(jnp.zeros((config['batch_size'], *shape)), train=True)
    return step.losses(logits, jnp.zeros(config['batch_size'], int))

  with registry.mistakes_in('config.model'):
    jax.eval_shape(call, jax.random.key(0))


def _check_optimizer(config: Mapping[str, Any], dataset: data.Dataset) -> None:
  del dataset
  optim.create(config['optimizer'], config['num_steps'])


def _check_probes(config: Mapping[str, Any], dataset: data.Dataset) -> None:
  del dataset
  for key, section in configuration.probe_sections(config).items():
    probes.create(key, section)


_PARTS = {
  'data': _check_data,
  'model': _check_model,
  'optimizer': _check_optimizer,
  'probes': _check_probes,
}
