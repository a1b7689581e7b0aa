"""The gradient of a mini-batch, at once or in micro-batches."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bn_research import errors, hooks, norms
from bn_research.layers.nnx import tree
from bn_research.layers.nnx.norm import Norm
from bn_research.norms import combination
from bn_research.training import losses, spreading


class Rule(NamedTuple):
  """How the gradient of a step is computed.

  Attributes:
    label_smoothing: ε of `losses.losses`.
    microbatches: The number of parts of a mini-batch, one after another.
    unroll: Whether the micro-batches are unrolled, without a loop on the
      device; see `loops.is_slow_on_device`.
    form: How several devices compute the gradient: `'jit'`, `'shard_map'` or
      `'pmap'`.
  """

  label_smoothing: float = 0.0
  microbatches: int = 1
  unroll: bool = False
  form: str = 'jit'


PLAIN = Rule()
"""The gradient of the whole mini-batch, with plain labels."""


def rule_of(config: Mapping[str, Any]) -> Rule:
  """Returns the rule of a resolved config, with micro-batches in a loop."""
  return Rule(
    config['label_smoothing'],
    config['microbatches'],
    form=config['parallel']['form'] if config['num_devices'] > 1 else 'jit',
  )


def check_populations(rule: Rule, model: nnx.Module) -> None:
  """Checks that populations of micro-batches count the micro-batches of a step.

  Args:
    rule: How the gradient is computed.
    model: The model.

  Raises:
    UserError: If `Accumulated.every` is a different number of micro-batches.
  """
  for _, layer in tree.normalizations(model):
    if rule.microbatches == 1 or not isinstance(layer, Norm):
      continue
    for part, _ in combination.with_states(
      layer.normalization, layer.statistics
    ):
      population = getattr(part, 'population', None)
      if (
        isinstance(population, norms.Accumulated)
        and population.every != rule.microbatches
      ):
        raise errors.UserError(
          f'config.microbatches={rule.microbatches}, but the population'
          f' accumulates every={population.every} micro-batches; give the same'
          ' number'
        )


class Gradient(NamedTuple):
  """The gradient of the mean loss, and what the forward passes left.

  Attributes:
    loss: The mean loss of the mini-batch, float32 ().
    rest: The further variables of the model after the mini-batch.
    noted: The result of `hooks.Brought.listen`.
    grads: The gradient, a tree like the parameters.
  """

  loss: jax.Array
  rest: nnx.State
  noted: list[Any]
  grads: nnx.State


def gradient(
  params: nnx.State,
  rest: nnx.State,
  images: jax.Array,
  labels: jax.Array,
  brought: hooks.Brought,
  graphdef: nnx.GraphDef,
  rule: Rule,
) -> Gradient:
  """Computes the gradient of the mean loss of a mini-batch.

  With k micro-batches, the gradient and the loss are the means over the
  micro-batches:

    g = (1/k) Σ_i ∇ L_i

  The micro-batch i has the examples i, i + k, i + 2k, ... Every device then has
  a part of each micro-batch, and no example moves between devices. Statistics
  of a batch are statistics of a micro-batch, and running moments move after
  each micro-batch.

  Args:
    params: The parameters of the model.
    rest: The further variables of the model.
    images: Inputs of the network, float32 (batch, ...).
    labels: Classes, int32 (batch,).
    brought: The hooks of the model and of the optimizer.
    graphdef: The graph definition of the model.
    rule: How the gradient is computed.

  Raises:
    ValueError: If the number of micro-batches does not divide the mini-batch,
      or if a hook cannot merge the notes of micro-batches.
  """

  part = functools.partial(
    _of_part, brought=brought, graphdef=graphdef, rule=rule
  )
  if rule.form == 'jit':
    return part(params, rest, images, labels)

  def local(*given: Any) -> Any:
    found = part(*given)
    loss, grads = spreading.total((found.loss, found.grads))
    return (loss, found.rest, grads), found.noted

  mapped = spreading.on_devices(rule.form, local)
  (loss, rest, grads), noted = mapped(params, rest, images, labels)
  return Gradient(loss, rest, brought.merged(noted), grads)


def _of_part(
  params: nnx.State,
  rest: nnx.State,
  images: jax.Array,
  labels: jax.Array,
  brought: hooks.Brought,
  graphdef: nnx.GraphDef,
  rule: Rule,
) -> Gradient:
  """Computes the gradient of all examples, or the share of a device."""
  is_spread = rule.form != 'jit'

  def loss_fn(params: nnx.State, rest: nnx.State, images: Any, labels: Any):
    # Without a copy, the variables of the outer trace would receive arrays of
    # this inner trace.
    model: Any = nnx.merge(graphdef, params, rest, copy=True)
    paths = spreading.spread(model) if is_spread else []
    noted = brought.listen(model)
    logits = model(images, train=True)
    loss = losses.losses(logits, labels, rule.label_smoothing).mean()
    # The derivative is of the share: see docs/program_forms.md.
    share = loss / jax.lax.axis_size(spreading.AXIS) if is_spread else loss
    after = nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))
    if is_spread:
      spreading.check(rest, after, paths)
    return share, (after, noted)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  count = rule.microbatches
  if count == 1:
    (loss, (rest, noted)), grads = grad_fn(params, rest, images, labels)
    return Gradient(loss, rest, noted, grads)

  def add(sums: Any, part: tuple[jax.Array, jax.Array]) -> Any:
    rest, *before = sums
    (loss, (rest, noted)), grads = grad_fn(params, rest, *part)
    # The loss of a network of a user may have another type than the sum.
    add_up = lambda total, x: total + x.astype(total.dtype)
    after = jax.tree.map(add_up, before, [loss, grads])
    return (rest, *after), noted

  start = rest, jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
  parts = jax.tree.map(lambda x: _cut(x, count), (images, labels))
  (rest, *sums), noted = jax.lax.scan(add, start, parts, unroll=rule.unroll)
  loss, grads = jax.tree.map(lambda total: total / count, sums)
  return Gradient(loss, rest, brought.merged(noted), grads)


def _cut(x: jax.Array, count: int) -> jax.Array:
  """Returns micro-batches: (batch, ...) as (count, batch / count, ...)."""
  if len(x) % count:
    raise ValueError(
      f'microbatches={count} does not divide {len(x)} examples; choose a'
      ' divisor'
    )
  return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
