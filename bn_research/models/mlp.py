"""A multilayer perceptron of dense layers, norms and nonlinearities."""

import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx

from bn_research import ranges
from bn_research.models import nonlinearities
from bn_research.models.dense import DenseFactory
from bn_research.models.interface import NormFactory, Tap, untapped


class MLP(nnx.Module):
  """A multilayer perceptron with a norm before each nonlinearity.

  A hidden layer computes `h <- g(Norm(W h))`. By default the norm adds the
  bias, and W has no bias. With the default widths and the default nonlinearity,
  the model is the network of Figure 1.

  A `tap` gets the names `'hidden_1/input'`, `'hidden_2/input'` and so on.

  Source: Ioffe and Szegedy (2015), Section 4.1.
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
    """Initializes the weights.

    Args:
      input_shape: The shape of an example. The model flattens each example.
      num_classes: Number of logits.
      norm: The factory of norms. For each hidden layer the call is
        `norm('hidden_1', num_features, use_bias=use_bias, rngs=rngs)`.
      dense: The factory of dense layers. For every layer the call is
        `dense(num_inputs, num_outputs, use_bias=use_bias, kernel_init=init,
        rngs=rngs)`.
      rngs: Keys for the initializers.
      widths: Number of units of each hidden layer.
      nonlinearity: Name of g, for example 'relu', or `module:attribute`.
      init_scale: Standard deviation of the Gaussian initial weights.
      dense_bias: Whether the hidden dense layers have the biases, and the norms
        have no bias. A method that centres the input of W or the gradient of W
        needs a bias in the dense layer.

    Raises:
      UserError: If the nonlinearity is unknown.
      ValueError: If a width is not a positive whole number, or if `init_scale`
        is negative or not finite.
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
    # A hidden layer needs a single bias, in the dense layer or in the norm.
    self.norms = nnx.List(
      norm(f'hidden_{i}', width, use_bias=not dense_bias, rngs=rngs)
      for i, width in enumerate(widths, start=1)
    )
    self.output = dense(
      sizes[-1], num_classes, use_bias=True, kernel_init=init, rngs=rngs
    )
    self.nonlinearity = nonlinearities.find(nonlinearity)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    tap: Tap = untapped,
  ) -> jax.Array:
    """Computes the logits; see `interface.Network`."""
    h = x.reshape(len(x), -1)
    layers = zip(self.dense, self.norms, strict=True)
    for i, (dense, norm) in enumerate(layers, start=1):
      h = norm(dense(h), use_running_average=not train)
      # The tap gets the input of g, of which Figure 1(b, c) shows percentiles.
      h = self.nonlinearity(tap(f'hidden_{i}/input', h))
    return self.output(h)
