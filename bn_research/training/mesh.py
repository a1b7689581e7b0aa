"""The device mesh of a run, and the sharding of arrays on the mesh."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bn_research import errors


def create(num_devices: int, batch_size: int, model_devices: int = 1) -> Mesh:
  """Creates a mesh, whose axis `'data'` divides batches.

  The axis `'model'` divides the columns of matrices of weights.

  Args:
    num_devices: Number of devices in the mesh.
    batch_size: Number of examples in a training batch.
    model_devices: Number of devices along the axis `'model'`, a divisor of
      `num_devices`; with 1 the mesh has no such axis.

  Returns:
    A mesh of the first devices. The type of the axes is Auto: the compiler
    chooses the sharding of intermediate arrays.

  Raises:
    UserError: If `num_devices` is less than 1 or more than the number of
      devices of the machine, or if the batch cannot be divided.
  """
  if not 1 <= num_devices <= jax.device_count():
    raise errors.UserError(
      f'num_devices={num_devices}, but there are {jax.device_count()};'
      ' on a CPU, JAX_NUM_CPU_DEVICES sets how many'
    )
  if jax.process_count() > 1 and num_devices != jax.device_count():
    raise errors.UserError(
      f'num_devices={num_devices}, but {jax.process_count()} processes have'
      f' {jax.device_count()} devices together; give'
      f' --config.num_devices={jax.device_count()}'
    )
  check_batch(num_devices // model_devices, batch_size)
  sizes = {'data': num_devices // model_devices}
  if model_devices > 1:
    sizes['model'] = model_devices
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
    devices=jax.devices()[:num_devices],
  )


def check_batch(num_devices: int, batch_size: int) -> None:
  """Checks that devices can share a batch; needs no device.

  Args:
    num_devices: Number of devices.
    batch_size: Number of examples in a training batch.

  Raises:
    UserError: If `num_devices` does not divide `batch_size`.
  """
  if batch_size % num_devices:
    raise errors.UserError(
      f'batch_size={batch_size} cannot be split evenly over'
      f' num_devices={num_devices}; choose a multiple'
    )


def divided(batch: jax.Array) -> jax.Array:
  """Divides a batch among the devices of the mesh in context.

  Without a mesh, and if the devices cannot have equal parts, the batch stays as
  it is.

  Args:
    batch: An array, (batch, ...).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or len(batch) % mesh.shape['data']:
    return batch
  return jax.lax.with_sharding_constraint(batch, PartitionSpec('data'))


def of_state(leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array in a training state.

  With an axis `'model'`, an array of at least two axes is cut along the last
  axis, if the devices along `'model'` can have equal parts. Every further array
  has a full copy on every device.

  Args:
    leaf: The array, or its shape and type.
    mesh: The mesh.
  """
  count = mesh.shape.get('model', 1)
  if count == 1 or len(leaf.shape) < 2 or leaf.shape[-1] % count:
    return replicated(mesh)
  spec = (*(None,) * (len(leaf.shape) - 1), 'model')
  return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array with a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies a pytree of arrays to every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))
