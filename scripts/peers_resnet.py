"""The ResNet-8 of bench_resnet.py in Flax Linen and in PyTorch.

Each function takes the dataset, the indices of one batch after the other, and
the number of steps of a turn.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from flax import linen as nn

from bn_research import data

_WIDTHS = (16, 32, 64)


def linen(
  dataset: data.Dataset, batches: Iterator[np.ndarray], num_steps: int
) -> timing.Turn:
  """Returns a loop over a `jax.jit` step of Linen, buffers donated."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      x = nn.relu(self._conv(x, 16, 1))
      for width in _WIDTHS:
        strides = 1 if width == 16 else 2
        h = nn.relu(self._conv(x, width, strides))
        h = self._conv(h, width, 1)
        x = x[:, ::strides, ::strides]
        more = width - x.shape[-1]
        x = nn.relu(h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))))
      return nn.Dense(10)(x.mean((1, 2)))

    def _conv(self, x: jax.Array, width: int, strides: int) -> jax.Array:
      x = nn.Conv(width, (3, 3), strides, padding=1, use_bias=False)(x)
      return nn.BatchNorm(use_running_average=False)(x)

  net, optimizer = Net(), optax.sgd(0.01, 0.9)
  variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  params, stats = variables['params'], variables['batch_stats']
  now = params, stats, optimizer.init(params)
  examples = jax.device_put(tuple(dataset.train))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, examples: Any, batch: jax.Array) -> Any:
    params, stats, opt_state = state
    x, labels = data.to_input(examples[0][batch]), examples[1][batch]

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
      logits, updated = net.apply(
        {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated['batch_stats']

    (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), stats, opt_state

  def turn() -> None:
    nonlocal now
    for _ in range(num_steps):
      now = step(now, examples, next(batches))
    jax.block_until_ready(now)

  return turn


def pytorch(
  dataset: data.Dataset, batches: Iterator[np.ndarray], num_steps: int
) -> timing.Turn:
  """Returns an eager loop with channels last."""
  import torch
  from torch.nn import functional

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if device == 'cpu':
    # A pool larger than the free cores is many times slower than none.
    torch.set_num_threads(min(2, torch.get_num_threads()))

  class Net(torch.nn.Module):
    def __init__(self) -> None:
      super().__init__()
      inputs = (3, 16, 16, 16, 32, 32, 64)
      outputs = (16, 16, 16, 32, 32, 64, 64)
      self.strides = (1, 1, 1, 2, 1, 2, 1)
      self.convs = torch.nn.ModuleList(
        torch.nn.Conv2d(*sizes, 3, stride, padding=1, bias=False)
        for *sizes, stride in zip(inputs, outputs, self.strides, strict=True)
      )
      self.norms = torch.nn.ModuleList(map(torch.nn.BatchNorm2d, outputs))
      self.output = torch.nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
      layers = list(zip(self.convs, self.norms, self.strides, strict=True))
      conv, norm, _ = layers[0]
      x = functional.relu(norm(conv(x)))
      for first, second in zip(layers[1::2], layers[2::2], strict=True):
        h = functional.relu(first[1](first[0](x)))
        h = second[1](second[0](h))
        x = x[:, :, :: first[2], :: first[2]]
        more = h.shape[1] - x.shape[1]
        x = functional.relu(h + functional.pad(x, (0, 0, 0, 0, 0, more)))
      return self.output(x.mean((2, 3)))

  net = Net().to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
  images = torch.tensor(dataset.train.images).permute(0, 3, 1, 2)
  x = images.to(device, memory_format=torch.channels_last)
  labels = torch.tensor(dataset.train.labels, dtype=torch.int64, device=device)

  def turn() -> None:
    for _ in range(num_steps):
      batch = torch.from_numpy(next(batches)).long().to(device)
      loss = functional.cross_entropy(
        net(x[batch].float() / 255), labels[batch]
      )
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return turn
