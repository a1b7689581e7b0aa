"""Changing a normalization: frozen, synchronized, folded into a kernel.

Each is a function of a `Normalization` or of arrays; `layers.surgery` applies
them to whole models.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bn_research.norms import combine, gradients
from bn_research.norms.collectives import AxisNames
from bn_research.norms.normalization import Normalization
from bn_research.norms.population import Fixed


def freeze(normalization: Normalization) -> Normalization:
  """Returns one that always uses its running moments and never moves them.

  It is a point of the product, population `Fixed` and gradient `frozen`, so
  that no flag of a later call thaws it; of a combination each part is.

  Raises:
    ValueError: If it remembers nothing.
  """
  if not normalization.remembers:
    raise ValueError(
      f'{normalization} has no running statistics to freeze; it is the same in '
      'training and inference already.'
    )
  return combine.changed(
    normalization,
    lambda part: dataclasses.replace(
      part, population=Fixed(), gradient=gradients.frozen
    ),
  )


def sync(normalization: Normalization, axis_name: AxisNames) -> Normalization:
  """Returns one whose statistics are pooled over named mesh axes.

  Args:
    normalization: One with a scope that has an `axis_name`, such as `Batch`.
    axis_name: The axes; None to take them away.

  Raises:
    ValueError: If the scope has none.
  """
  return combine.changed(normalization, lambda part: _sync(part, axis_name))


def _sync(normalization: Normalization, axis_name: AxisNames) -> Normalization:
  scope: Any = normalization.scope
  if 'axis_name' not in {field.name for field in dataclasses.fields(scope)}:
    raise ValueError(
      f'{scope} shares nothing over devices; only Batch and Example have an '
      'axis_name.'
    )
  if isinstance(axis_name, list):
    axis_name = tuple(axis_name)
  scope = dataclasses.replace(scope, axis_name=axis_name)
  return dataclasses.replace(normalization, scope=scope)


def affine_of(
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns D and e such that inference is y = x D + e.

  With running moments every normalization of the batch is affine, whitening
  too.

  Args:
    normalization: One that remembers.
    state: Its state.
    scale: That of the layer.
    bias: That of the layer.

  Returns:
    D (features, features) and e (features,).
  """
  eye = jnp.eye(state.mean.shape[-1], dtype=state.mean.dtype)
  points = jnp.concatenate([eye, jnp.zeros_like(eye[:1])])
  # One at the mean and one step away from it, so that no digits are lost.
  y, _ = normalization.apply(
    points + state.mean,
    state,
    scale=scale,
    use_running=True,
    update=False,
  )
  slope = y[:-1] - y[-1]
  shift = y[-1] - jnp.matmul(state.mean, slope, precision=lax.Precision.HIGHEST)
  return slope, shift if bias is None else shift + bias


def fold(
  kernel: jax.Array,
  kernel_bias: jax.Array | None,
  normalization: Normalization,
  state: Any,
  scale: jax.Array | None = None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Folds a normalization into the dense layer or convolution before it.

    (x K + k) D + e = x (K D) + (k D + e)

  Args:
    kernel: K, (..., inputs, features): outputs last.
    kernel_bias: k, (features,), or None.
    normalization: That which follows.
    state: Its state.
    scale: That of its layer.
    bias: That of its layer.

  Returns:
    A kernel and a bias that do both for inference.
  """
  slope, shift = affine_of(normalization, state, scale, bias)
  folded = jnp.matmul(kernel, slope, precision=lax.Precision.HIGHEST)
  if kernel_bias is not None:
    shift = shift + jnp.matmul(
      kernel_bias, slope, precision=lax.Precision.HIGHEST
    )
  return folded.astype(kernel.dtype), shift.astype(kernel.dtype)
