"""A model: a perceptron whose hidden layers add to what they get."""

import math

from flax import nnx


class ResidualMLP(nnx.Module):
  """h ← h + tanh(Norm(W h)), several times."""

  def __init__(
    self,
    *,
    input_shape,
    num_classes,
    norm,
    rngs,
    width: int = 32,
    depth: int = 3,
  ):
    linear = lambda n, m: nnx.Linear(n, m, rngs=rngs)
    self.first = linear(math.prod(input_shape), width)
    self.blocks = nnx.List(linear(width, width) for _ in range(depth))
    # The name of the place, by which a config gives a layer a norm of its own.
    self.norms = nnx.List(
      norm(f'block_{i}', width, rngs=rngs) for i in range(depth)
    )
    self.output = linear(width, num_classes)

  def __call__(self, x, *, train, tap=lambda name, value: value):
    """Returns the logits of a batch."""
    h = self.first(x.reshape(len(x), -1))
    for i, (block, norm) in enumerate(
      zip(self.blocks, self.norms, strict=True)
    ):
      a = norm(block(h), use_running_average=not train)
      h = h + nnx.tanh(tap(f'block_{i}/input', a))
    return self.output(h)
