"""A multilayer perceptron: dense, norm, nonlinearity, and so on."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from bn_research import ranges, registry
from bn_research.models.dense import DenseFactory

Tap = Callable[[str, jax.Array], jax.Array]
NormFactory = Callable[..., nnx.Module]

_NONLINEARITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'elu': jax.nn.elu,
  'gelu': jax.nn.gelu,
  'relu': jax.nn.relu,
  'sigmoid': jax.nn.sigmoid,
  'silu': jax.nn.silu,
  'tanh': jax.nn.tanh,
}


class MLP(nnx.Module):
  """The network of Figure 1 where widths and nonlinearity are the defaults.

  A hidden layer is `h <- g(Norm(W h))`: the norm adds the bias, so W has none.

  Ioffe and Szegedy, 2015, Section 4.1.
  """

  def __init__(
    self,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    norm: NormFactory,
    dense: DenseFactory = nnx.Linear,
    rngs: nnx.Rngs,
    widths: Sequence[int] = (100, 100, 100),
    nonlinearity: str = 'sigmoid',
    init_scale: float = 0.1,
    dense_bias: bool = False,
  ):
    """Draws the weights.

    Args:
      input_shape: The shape of one example, which is flattened.
      num_classes: Number of logits.
      norm: Called as `norm('hidden_1', num_features, use_bias=use_bias,
        rngs=rngs)` for each hidden layer.
      dense: Called as `dense(num_inputs, num_outputs, use_bias=use_bias,
        kernel_init=init, rngs=rngs)` for every layer.
      rngs: Where the weights are drawn from.
      widths: Number of units of each hidden layer.
      nonlinearity: Name of g.
      init_scale: Standard deviation of every weight, drawn from a Gaussian.
      dense_bias: Whether hidden W have the bias, instead of the norms: what
        centres the input of W, or the gradient of W, needs one there.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If a width is no whole number, or `init_scale` negative or not
        finite.
    """
    if not all(isinstance(width, int) and width > 0 for width in widths):
      raise ValueError(
        f'widths={tuple(widths)}; every hidden layer needs at least 1 unit, in'
        ' whole numbers'
      )
    ranges.non_negative(init_scale=init_scale)
    init = nnx.initializers.normal(init_scale)
    sizes = (math.prod(input_shape), *widths)
    self.dense = nnx.List(
      dense(*size, use_bias=dense_bias, kernel_init=init, rngs=rngs)
      for size in itertools.pairwise(sizes)
    )
    self.norms = nnx.List(
      norm(f'hidden_{i}', width, use_bias=not dense_bias, rngs=rngs)
      for i, width in enumerate(widths, start=1)
    )
    self.output = dense(
      sizes[-1], num_classes, use_bias=True, kernel_init=init, rngs=rngs
    )
    self.nonlinearity = registry.find(
      'config.model.nonlinearity', _NONLINEARITIES, nonlinearity
    )

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    tap: Tap = lambda name, value: value,
  ) -> jax.Array:
    """Computes the logits.

    Args:
      x: (batch, ...) float; an example is flattened.
      train: Whether the batch's own statistics normalize, and are remembered.
      tap: Called with the name and the value of the input of every
        nonlinearity; the nonlinearity sees what it returns.

    Returns:
      (batch, num_classes) logits.
    """
    h = x.reshape(len(x), -1)
    layers = zip(self.dense, self.norms, strict=True)
    for i, (dense, norm) in enumerate(layers, start=1):
      h = norm(dense(h), use_running_average=not train)
      h = self.nonlinearity(tap(f'hidden_{i}/input', h))
    return self.output(h)
