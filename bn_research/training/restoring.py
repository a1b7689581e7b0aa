"""A trained network from its workdir, for use outside of a run."""

from typing import Any

import jax
from flax import nnx

from bn_research import disk, errors, optim, workdir
from bn_research.training import checkpoints, state


def model(directory: disk.PathLike) -> Any:
  """Returns the network of a run with the newest parameters on the disk.

  Args:
    directory: The workdir of the run. No file in it changes.

  Returns:
    The `nnx.Module`.

  Raises:
    UserError: If the workdir has no whole checkpoint, or is of a run that did
      not note the shape of its examples.
  """
  record = workdir.read_record(directory)
  config, dataset = record['config'], record.get('dataset')
  if dataset is None:
    raise errors.UserError(
      f'{directory} was written by an older version, which did not note the'
      ' shape of the examples; train again'
    )
  optimizer = optim.create(config['optimizer'], config['num_steps'])
  create = state.creator(
    config, dataset['shape'], dataset['num_classes'], optimizer
  )
  graphdef, shapes = jax.eval_shape(create, jax.random.key(0))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    shapes,
  )
  restored = checkpoints.read_newest(directory, abstract)
  return nnx.merge(graphdef, restored.params, restored.rest, copy=True)
