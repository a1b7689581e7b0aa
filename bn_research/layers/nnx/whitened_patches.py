"""A convolution that whitens patches: fitted to images, and not trained."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jax import lax

from bn_research import norms

_WHITEN = norms.Whiten('pca', epsilon=5e-4, relative=False)
# Examples whose patches are in memory at the same time.
_CHUNK = 256


class Fitted(nnx.Variable):
  """An array that is computed from training inputs, and not trained."""


class WhitenedPatches(nnx.Module):
  """A convolution whose kernel whitens patches, with both signs.

    y = [W (p - μ), -W (p - μ)] + b

  A patch p has d numbers, the patches of the fitted images have the mean μ and
  the covariance S, and W = (Λ + ε I)^-½ Uᵀ with S = U Λ Uᵀ. The layer thus has
  2 d outputs: each principal axis, by descending variance, and the same with
  the other sign, so that a nonlinearity such as ReLU loses nothing. The bias b
  is learned. Before `fit`, W is the identity and μ is 0.

  The layer fits itself in a call while `is_fitting` is True (see
  `bn_research.fitting`).

  Attributes:
    kernel: [Wᵀ, -Wᵀ], `Fitted` (*kernel_size, in_features, 2 d).
    shift: [-W μ, W μ], `Fitted` (2 d,).
    bias: b, `nnx.Param` (2 d,), or None.
    out_features: The number of outputs, 2 d.

  Source: Jordan (2024), Section 3.2, after Page (2019). There, S is the second
  moment about zero of standardized images, and μ is 0.
  """

  def __init__(
    self,
    in_features: int,
    kernel_size: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = 'VALID',
    whiten: norms.Whiten = _WHITEN,
    num_examples: int = 5000,
    use_bias: bool = True,
    dtype: Dtype = jnp.float32,
  ):
    """Initializes the layer, which is not fitted yet.

    Args:
      in_features: Number of channels of the input.
      kernel_size: Size of the patches along each axis of space.
      strides: Stride along each axis of space, or one stride for all axes.
      padding: The padding, in a form of `norms.Patches`.
      whiten: The whitening, of the whole patch in a single block.
      num_examples: The number of training examples to fit to.
      use_bias: Whether the layer learns a bias, from 0.
      dtype: Type of the convolution. The arrays are float32.

    Raises:
      ValueError: If a number is out of range.
    """
    if num_examples < 1:
      raise ValueError(f'num_examples={num_examples} must be at least 1.')
    patches = norms.Patches(kernel_size, strides, padding)  # type: ignore[arg-type]
    self.normalization = norms.Normalization(patches, whiten, norms.Pooled())
    self.num_examples = num_examples
    self.is_fitting = False
    (size,) = patches.features(
      (1, *[1] * len(patches.kernel_size), in_features)
    )
    self.out_features = 2 * size
    self.kernel = Fitted(self._both_signs(in_features))
    self.shift = Fitted(jnp.zeros(self.out_features))
    self.bias = nnx.data(
      nnx.Param(jnp.zeros(self.out_features)) if use_bias else None
    )
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves, and first fits the layer to `x` while `is_fitting` is True.

    Args:
      x: (batch, *space, in_features), floating.

    Returns:
      y, (batch, *positions, features), of the type `dtype`.
    """
    if self.is_fitting:
      self.fit(x)
    shift = self.shift[...]
    if self.bias is not None:
      shift = shift + self.bias[...]
    patches: Any = self.normalization.scope
    last = x.ndim - 1
    layout = (0, last, *range(1, last))
    y = lax.conv_general_dilated(
      x.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      patches.per_axis(patches.strides),
      patches.padding,
      dimension_numbers=lax.ConvDimensionNumbers(
        layout, (last, last - 1, *range(last - 1)), layout
      ),
    )
    return y + shift.astype(self.dtype)

  def fit(self, x: jax.Array) -> None:
    """Computes the kernel and the shift from inputs of the layer.

    Args:
      x: (num_examples, *space, in_features), floating.
    """
    norm = self.normalization
    state = norm.init(norm.scope.features(x.shape))

    def learn(state: Any, x: jax.Array) -> tuple[Any, None]:
      return norm.learn(state, norm.measure(x)), None

    # The moments of chunks merge exactly, and only a chunk has its patches in
    # memory.
    whole = len(x) // _CHUNK * _CHUNK
    if whole:
      chunks = x[:whole].reshape(-1, _CHUNK, *x.shape[1:])
      state, _ = lax.scan(learn, state, chunks)
    if whole < len(x):
      state, _ = learn(state, x[whole:])
    kernel, shift = norms.fold_into_next(
      self._both_signs(x.shape[-1]), None, norm, state
    )
    self.kernel.set_value(kernel)
    self.shift.set_value(shift)

  def _both_signs(self, in_features: int) -> jax.Array:
    """Returns the kernel that copies each patch, with both signs."""
    patches: Any = self.normalization.scope
    eye = jnp.eye(self.out_features // 2)
    both = jnp.concatenate([eye, -eye], axis=1)
    return both.reshape(*patches.kernel_size, in_features, self.out_features)
