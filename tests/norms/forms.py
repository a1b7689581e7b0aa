"""The ways of writing one training step for many devices.

Every form takes the same arguments and returns the same: activations, the next
state, and the gradients of the mean loss with respect to input, scale and bias.
What differs is the reduction of loss and gradients that the form needs; see
docs/program_forms.md.
"""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


class Result(NamedTuple):
  """What a step gives: arrays of the whole batch."""

  y: jax.Array
  state: Any
  gradients: tuple[jax.Array, jax.Array, jax.Array]


class Batch(NamedTuple):
  """What is spread over devices, row by row."""

  x: jax.Array
  weights: jax.Array
  mask: jax.Array | None


def keep(value):
  """No reduction."""
  return value


def gradients(norm, batch, state, scale, bias, total=keep, reduce=keep):
  """Differentiates the mean over all activations that are not masked out.

  Args:
    norm: The normalization.
    batch: The batch, or this device's share.
    state: Of the normalization.
    scale: Replicated.
    bias: Replicated.
    total: Sums over devices.
    reduce: What is done with the local loss before it is differentiated.
  """
  mask = True if batch.mask is None else batch.mask
  count = total(jnp.sum(jnp.broadcast_to(mask, batch.x.shape), dtype=float))

  def loss(x, scale, bias):
    y, after = norm.apply(x, state, scale=scale, bias=bias, mask=batch.mask)
    share = jnp.sum(batch.weights * jnp.sin(y)) / count
    return reduce(share), (y, after)

  grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
  found, (y, after) = grad(batch.x, scale, bias)
  return Result(y, after, found)


def make_mesh(devices, kind=AxisType.Auto, names=('i',), shape=None):
  """A mesh of the first devices."""
  shape = shape or (devices,)
  return jax.make_mesh(
    shape,
    names,
    axis_types=(kind,) * len(names),
    devices=jax.devices()[:devices],
  )


def single(norm, batch, state, scale, bias, devices=1):
  """Plain jit on one device: what is right."""
  del devices
  return jax.jit(partial(gradients, norm))(batch, state, scale, bias)


def over_mesh(kind, in_context, norm, batch, state, scale, bias, devices):
  """Plain jit over a mesh: the batch is global, and so is every mean."""
  mesh = make_mesh(devices, kind)
  rows, whole = NamedSharding(mesh, P('i')), NamedSharding(mesh, P())
  context = jax.set_mesh(mesh) if in_context else contextlib.nullcontext()
  with context:
    batch = jax.device_put(batch, rows)
    state, scale, bias = jax.device_put((state, scale, bias), whole)
    return jax.jit(partial(gradients, norm))(batch, state, scale, bias)


def checked(norm, batch, state, scale, bias, devices, mesh=None, names='i'):
  """shard_map that checks replication: sum the loss, and nothing else."""
  mesh = mesh or make_mesh(devices)
  total = partial(lax.psum, axis_name=mesh.axis_names)
  step = partial(gradients, norm, total=total, reduce=total)
  return mapped(step, mesh, names, True)(batch, state, scale, bias)


def summed(norm, axes, *args):
  """Maps that do not check: the loss stays local, its gradients are summed."""
  total = partial(lax.psum, axis_name=axes)
  y, state, (dx, *parameters) = gradients(norm, *args, total=total)
  return Result(y, state, (dx, *total(parameters)))


def unchecked(norm, batch, state, scale, bias, devices, mesh=None, names='i'):
  """shard_map that does not check: as `summed` says."""
  mesh = mesh or make_mesh(devices)
  step = partial(summed, norm, mesh.axis_names)
  return mapped(step, mesh, names, False)(batch, state, scale, bias)


def mapped(step, mesh, names, check_vma):
  """The batch is cut along all axes of the mesh; the rest is everywhere.

  The state is of those over whom statistics are pooled: where `names` are not
  all axes of the mesh, it has a leading axis, the others.
  """
  rows = P(mesh.axis_names)
  others = tuple(name for name in mesh.axis_names if name not in names)

  def one_state_each(*args):
    y, state, gradients = step(*args)
    if others:
      state = jax.tree.map(lambda leaf: leaf[None], state)
    return Result(y, state, gradients)

  return jax.jit(
    jax.shard_map(
      one_state_each,
      mesh=mesh,
      in_specs=(rows, P(), P(), P()),
      out_specs=Result(rows, P(*others), (rows, P(), P())),
      check_vma=check_vma,
    )
  )


def stacked(wrap, norm, batch, state, scale, bias, devices):
  """pmap, or vmap over shares of the batch: as `summed` says."""
  cut = lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:])
  join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
  step = wrap(
    partial(summed, norm, 'i'),
    axis_name='i',
    in_axes=(0, None, None, None),
  )
  result = step(jax.tree.map(cut, batch), state, scale, bias)
  y, state, (dx, *rest) = result
  first = jax.tree.map(lambda leaf: leaf[0], (state, *rest))
  same = jax.tree.map(lambda leaf: (leaf == leaf[:1]).all(), (state, *rest))
  assert all(jax.tree.leaves(same))
  return Result(join(y), first[0], (join(dx), *first[1:]))


def on_devices(f, *, axis_name, in_axes):
  """pmap on as many of the devices as the arguments are cut for."""
  return jax.pmap(f, axis_name=axis_name, in_axes=in_axes)


def jitted_vmap(f, **options):
  """vmap, compiled."""
  return jax.jit(jax.vmap(f, **options))


GLOBAL = {
  'auto mesh': partial(over_mesh, AxisType.Auto, False),
  'auto mesh in context': partial(over_mesh, AxisType.Auto, True),
  'explicit mesh': partial(over_mesh, AxisType.Explicit, True),
}
NAMED = {
  'shard_map': checked,
  'shard_map, check_vma=False': unchecked,
  'pmap': partial(stacked, on_devices),
  'vmap': partial(stacked, jitted_vmap),
}
