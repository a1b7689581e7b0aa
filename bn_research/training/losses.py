"""The loss of a network on labelled examples."""

import jax
import jax.numpy as jnp
import optax


def check_logits(
  logits: jax.Array, num_examples: int, num_classes: int | None = None
) -> None:
  """Checks the shape of the output of a model.

  Args:
    logits: The output of the model.
    num_examples: The size of the mini-batch.
    num_classes: The number of classes; None accepts any number.

  Raises:
    ValueError: If the shape is not (num_examples, num_classes).
  """
  if not isinstance(logits, jax.Array) or not jnp.issubdtype(
    logits.dtype, jnp.floating
  ):
    kind = getattr(logits, 'dtype', type(logits).__name__)
    raise ValueError(f'the model returned {kind}; return an array of floats')
  is_right = logits.ndim == 2 and len(logits) == num_examples
  if not is_right or num_classes not in (None, logits.shape[1]):
    shape = f'({num_examples}, {num_classes or "num_classes"})'
    raise ValueError(
      f'the model returned logits of shape {logits.shape}; return {shape}'
    )


def losses(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Computes the cross-entropy of each example with the smoothed label.

    loss = -Σ_k q_k log p_k,    p = softmax(logits),
    q_k = (1 - ε) [k = label] + ε / num_classes

  Args:
    logits: Outputs of the network, floating (batch, num_classes).
    labels: Classes, int32 (batch,).
    label_smoothing: ε. With 0, the loss is -log p[label].

  Returns:
    Losses in nats, (batch,).

  Raises:
    ValueError: If the shape of the logits is not (batch, num_classes).

  Source: Szegedy et al. (2016), Section 7.
  """
  check_logits(logits, len(labels))
  # A narrow type would round the loss; the state of a run has a float32 loss.
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if not label_smoothing:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  one_hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
  smooth = optax.smooth_labels(one_hot, label_smoothing)
  return optax.softmax_cross_entropy(logits, smooth)
