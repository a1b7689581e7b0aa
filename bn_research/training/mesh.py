"""The devices of a run, and what lives where on them."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bn_research import errors


def create(num_devices: int, batch_size: int) -> Mesh:
  """Makes a mesh with one axis, `'data'`, along which batches are split.

  Args:
    num_devices: How many devices take part.
    batch_size: Examples in a training batch.

  Returns:
    A mesh whose axes leave sharding to the compiler.

  Raises:
    UserError: If there are fewer devices, or a batch cannot be split evenly.
  """
  if not 1 <= num_devices <= jax.device_count():
    raise errors.UserError(
      f'num_devices={num_devices}, but there are {jax.device_count()};'
      ' on a CPU, JAX_NUM_CPU_DEVICES sets how many'
    )
  if batch_size % num_devices:
    raise errors.UserError(
      f'batch_size={batch_size} cannot be split evenly over'
      f' num_devices={num_devices}; choose a multiple'
    )
  return jax.make_mesh(
    (num_devices,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a pytree of arrays, whole, on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))
