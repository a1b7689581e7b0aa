"""The perceptron of bench_training.py in Flax NNX, Flax Linen and PyTorch.

Each function takes the name of the norm, the dataset, and the indices of one
batch after the other. The result takes a number of steps, and waits for them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

from bn_research import data

BATCH = 60
SIZES = (784, 100, 100, 100, 10)
LEARNING_RATE = 0.5
BINARIZE = 0.5

Turn = Callable[[int], None]

_INIT = nn.initializers.normal(0.1)


def of_nnx(
  norm: str, dataset: data.Dataset, batches: Iterator[np.ndarray]
) -> Turn:
  """Returns a loop over an `nnx.jit` step with `nnx.Optimizer`."""

  class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
      self.dense = nnx.List(
        nnx.Linear(*size, kernel_init=_INIT, use_bias=norm == 'none', rngs=rngs)
        for size in itertools.pairwise(SIZES[:-1])
      )
      self.norms = nnx.List(
        nnx.BatchNorm(width, rngs=rngs)
        for width in SIZES[1:-1]
        if norm == 'batch_norm'
      )
      self.output = nnx.Linear(*SIZES[-2:], kernel_init=_INIT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
      for i, dense in enumerate(self.dense):
        x = dense(x)
        x = nnx.sigmoid(self.norms[i](x) if len(self.norms) else x)
      return self.output(x)

  model = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.sgd(LEARNING_RATE), wrt=nnx.Param)
  examples = jax.device_put(tuple(dataset.train))

  @nnx.jit
  def step(
    model: Net, optimizer: nnx.Optimizer, examples: Any, batch: Any
  ) -> jax.Array:
    x, labels = _select(examples, batch)
    loss, grads = nnx.value_and_grad(lambda m: _loss(m(x), labels))(model)
    optimizer.update(model, grads)
    return loss

  def turn(num_steps: int) -> None:
    for _ in range(num_steps):
      loss = step(model, optimizer, examples, next(batches))
    loss.block_until_ready()

  return turn


def of_linen(
  norm: str, dataset: data.Dataset, batches: Iterator[np.ndarray]
) -> Turn:
  """Returns a loop over a `jax.jit` step of Linen, buffers donated."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      for width in SIZES[1:-1]:
        x = nn.Dense(width, norm == 'none', kernel_init=_INIT)(x)
        if norm == 'batch_norm':
          x = nn.BatchNorm(use_running_average=False)(x)
        x = nn.sigmoid(x)
      return nn.Dense(SIZES[-1], kernel_init=_INIT)(x)

  net, optimizer = Net(), optax.sgd(LEARNING_RATE)
  variables = net.init(jax.random.key(0), jnp.zeros((1, SIZES[0])))
  params, stats = variables['params'], variables.get('batch_stats', {})
  state = (params, stats, optimizer.init(params))
  examples = jax.device_put(tuple(dataset.train))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, examples: Any, batch: jax.Array) -> Any:
    params, stats, opt_state = state
    x, labels = _select(examples, batch)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
      logits, updated = net.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
      return _loss(logits, labels), updated.get('batch_stats', {})

    (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state

  def turn(num_steps: int) -> None:
    nonlocal state
    for _ in range(num_steps):
      state = step(state, examples, next(batches))
    jax.block_until_ready(state)

  return turn


def of_torch(
  norm: str, dataset: data.Dataset, batches: Iterator[np.ndarray]
) -> Turn:
  """Returns an eager loop."""

  import torch

  # A pool larger than the free cores is many times slower than none.
  torch.set_num_threads(min(2, torch.get_num_threads()))
  layers: list[Any] = []
  for size in itertools.pairwise(SIZES[:-1]):
    layers.append(torch.nn.Linear(*size, bias=norm == 'none'))
    if norm == 'batch_norm':
      layers.append(torch.nn.BatchNorm1d(size[1]))
    layers.append(torch.nn.Sigmoid())
  net = torch.nn.Sequential(*layers, torch.nn.Linear(*SIZES[-2:]))
  optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)
  x, labels = dataset.train
  x = torch.tensor(x.reshape(len(x), -1))
  labels = torch.tensor(labels, dtype=torch.int64)

  def turn(num_steps: int) -> None:
    for _ in range(num_steps):
      batch = torch.from_numpy(next(batches)).long()
      logits = net((x[batch] > 127).float())
      loss = torch.nn.functional.cross_entropy(logits, labels[batch])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()

  return turn


def _select(examples: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
  images, labels = examples
  x = data.to_input(images[batch], BINARIZE)
  return x.reshape(BATCH, -1), labels[batch]


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
