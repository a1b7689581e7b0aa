"""Calls the blocks of a network, possibly with rematerialization."""

from collections.abc import Iterable

import jax
from flax import nnx

from bn_research.models.interface import Tap, untapped

# Statistics are small, and a repetition would repeat their collectives.
_KEEP_STATISTICS = jax.checkpoint_policies.save_only_these_names('statistics')


def in_turn(
  blocks: Iterable[nnx.Module],
  h: jax.Array,
  *,
  train: bool,
  tap: Tap,
  remat: bool,
) -> jax.Array:
  """Applies blocks, one after the other.

  With rematerialization, the backward pass computes the activations inside of a
  block a second time. Between the passes, only the inputs of the blocks and the
  statistics of norms stay in memory. Numbers are the same up to rounding, each
  block moves running moments once, and no collective is repeated.

  Args:
    blocks: Modules, called as `block(h, train, tap)`.
    h: The input of the first block.
    train: The argument `train` of the model. An evaluation has no backward
      pass, and rematerializes nothing.
    tap: The argument `tap` of the model. A tap keeps activations, hence a call
      with a tap rematerializes nothing.
    remat: Whether to rematerialize.

  Returns:
    The result of the last block.

  Source: Chen et al. (2016), Section 4.1.
  """
  call = _call
  # Without a backward pass, nothing is computed again. A loop of an evaluation
  # also shares the model with the code around the loop, and nnx.remat refuses
  # such a model.
  if remat and train and tap is untapped:
    call = nnx.remat(_call, static_argnums=(2, 3), policy=_KEEP_STATISTICS)
  for block in blocks:
    h = call(block, h, train, tap)
  return h


def _call(block: nnx.Module, h: jax.Array, train: bool, tap: Tap) -> jax.Array:
  return block(h, train, tap)
