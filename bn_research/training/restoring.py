"""Restores a trained network from a workdir, for use outside of a run."""

from typing import Any

import jax
from flax import nnx

from bn_research import disk, errors, optim, workdir
from bn_research.training import checkpoints, state


def model(directory: disk.PathLike) -> Any:
  """Returns the network of a run with the newest saved parameters.

  Args:
    directory: The workdir of the run. The function changes no file.

  Returns:
    The network, an `nnx.Module`.

  Raises:
    UserError: If the workdir has no checkpoint, if the newest checkpoint is
      damaged, or if `config.json` does not contain the shape of the examples.
  """
  record = workdir.read_record(directory)
  config, dataset = record['config'], record.get('dataset')
  if dataset is None:
    raise errors.UserError(
      f'{directory} was written by an older version, which did not note the'
      ' shape of the examples; train again'
    )
  optimizer = optim.of_run(config, dataset['num_train'])
  create = state.creator(
    config, dataset['shape'], dataset['num_classes'], optimizer
  )
  # Only shapes are needed: the checkpoint replaces all initial values.
  graphdef, shapes = jax.eval_shape(create, jax.random.key(0))
  # The run may have used more devices than this machine has.
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    shapes,
  )
  restored = checkpoints.read_newest(directory, abstract)
  return nnx.merge(graphdef, restored.params, restored.rest, copy=True)
