"""The gradient of a mini-batch whose examples are spread over named devices.

Plain jit over a mesh needs none of this: XLA cuts the program. Under
`shard_map` and `pmap`, a function sees the examples of a single device. The
model then gets normalizations that pool over the devices, the devices add their
shares of the gradient, and the rest of the step stays one program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from bn_research import norms
from bn_research.layers.nnx import tree
from bn_research.training import keys

AXIS = 'data'

Local = Callable[[Any, Any, jax.Array, jax.Array], Any]


def spread(model: nnx.Module) -> list[str]:
  """Lets all normalizations of a model pool over the named devices, in place.

  Args:
    model: The model.

  Returns:
    The path of each normalization, for `check`.

  Raises:
    ValueError: If a normalization cannot pool over named devices.
  """
  paths = []
  for path, layer in tree.normalizations(model):
    paths.append('/'.join(map(str, path)) + '/')
    with tree.errors_at(path):
      if isinstance(layer, nnx.BatchNorm):
        layer.axis_name = layer.axis_name or AXIS
      else:
        found: Any = layer
        found.normalization = norms.over_devices(found.normalization, AXIS)
  return paths


def check(before: Any, after: Any, paths: Sequence[str]) -> None:
  """Checks that the devices agree on the variables after a forward pass.

  Args:
    before: The variables of the model before the forward pass.
    after: The same variables after the forward pass.
    paths: The result of `spread`.

  Raises:
    ValueError: If the forward pass changes a real variable that belongs to no
      normalization. Each device would change the variable by its own examples.
  """
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(before),
    jax.tree.leaves(after),
    strict=True,
  )
  for (path, old), new in pairs:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_known = any(name.startswith(known) for known in paths)
    if new is not old and not is_known and jnp.issubdtype(old, jnp.floating):
      raise ValueError(
        f'the forward pass changes the variable {name}, and each named device'
        ' sees examples of its own; set config.parallel.form to jit'
      )


def on_devices(form: str, local: Local) -> Local:
  """Returns a function of a whole batch from a function of a device's part.

  Args:
    form: `'shard_map'` or `'pmap'`.
    local: A function of parameters, of further variables, of images and of
      labels. The function returns a pair: a tree that is the same on all
      devices, and a tree of which each device has its own.

  Returns:
    A function of the whole batch with the first tree, and with the second tree
    with the devices along a new first axis.
  """

  def on_a_device(params: Any, rest: Any, images: Any, labels: Any) -> Any:
    place = jax.lax.axis_index(AXIS)
    own = jax.tree.map(lambda leaf: _of_device(leaf, place), rest)
    (loss, after, grads), noted = local(params, own, images, labels)
    # The keys of the device are of this step alone.
    after = jax.tree.map(
      lambda new, old: old if keys.is_key(old) else new, after, rest
    )
    return (loss, after, grads), jax.tree.map(lambda x: x[None], noted)

  mesh = jax.sharding.get_abstract_mesh()
  parts = PartitionSpec(), PartitionSpec(AXIS)
  if form == 'shard_map':
    # Without the check, the rule of the gradients is that of `pmap`.
    return jax.shard_map(
      on_a_device,
      in_specs=(*(parts[0],) * 2, *(parts[1],) * 2),
      out_specs=parts,
      check_vma=False,
    )

  def mapped(params: Any, rest: Any, images: Any, labels: Any) -> Any:
    cut = lambda x: x.reshape(mesh.size, -1, *x.shape[1:])
    same, noted = jax.pmap(
      on_a_device,
      axis_name=AXIS,
      in_axes=(None, None, 0, 0),
      out_axes=(None, 0),
    )(params, rest, cut(images), cut(labels))
    return same, jax.tree.map(lambda x: x[:, 0], noted)

  return mapped


def total(tree: Any) -> Any:
  """Returns the sums over the devices."""
  return jax.tree.map(lambda x: jax.lax.psum(x, AXIS), tree)


def _of_device(leaf: jax.Array, place: jax.Array) -> jax.Array:
  return jax.random.fold_in(leaf, place) if keys.is_key(leaf) else leaf
