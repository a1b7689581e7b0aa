"""The parts of every optimizer: clipping, weight decay, an average."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from bn_research import ranges, registry
from bn_research.optim import averaging, clipping, decay, of_optax, signatures

WHERE = 'config.optimizer'


def around(
  factory: Callable[..., Any], name: Any
) -> Callable[..., optax.GradientTransformation]:
  """Returns a factory of an optimizer with the parts of every optimizer.

    clip,  g <- g + λ w,  the optimizer,  average of the weights

  Args:
    factory: A function of `learning_rate` and of options. A factory with an
      option `weight_decay` decays the weights itself, without λ in the
      gradient. A factory with the argument `mask` or `weight_decay_mask` gets
      the mask of the decay.
    name: The name of the optimizer, for messages.

  Returns:
    A function of `learning_rate`, of the options of the factory, and of the
    options of `parts`.
  """
  own = registry.parameters_of(WHERE, factory, name)
  masks = [key for key in of_optax.MASKS if key in own]

  def build(**options: Any) -> optax.GradientTransformation:
    given = signatures.popped(options, own, parts)
    chosen = given.get('decay_mask')
    decays_all = 'weight_decay' in own and not masks
    if decays_all and options.get('weight_decay') and chosen != 'all':
      raise ValueError(
        f'{name!r} decays all parameters, also of norms and biases; give'
        " decay_mask='all', or another optimizer"
      )
    is_given = 'weight_decay' in given or decays_all
    if chosen and not masks and not is_given:
      raise ValueError(f'decay_mask={chosen!r} needs a weight_decay')
    before, after = parts(**given)
    mask = decay.mask_of(chosen or 'kernels')
    # Without a mask, the optimizer keeps the default: all parameters decay.
    optimizer = factory(**options, **dict.fromkeys(masks if mask else (), mask))
    if not (hasattr(optimizer, 'init') and hasattr(optimizer, 'update')):
      raise ValueError(
        f'{name!r} returned {optimizer!r}; return a gradient transformation of'
        ' optax'
      )
    # A chain of one would give the state of the optimizer another structure.
    chained = [*before, optimizer, *after]
    return optax.chain(*chained) if chained[1:] else optimizer

  signature = signatures.joined(own, parts, of_optax.MASKS)
  build.__signature__ = signature  # type: ignore[attr-defined]
  return build


def parts(
  *,
  clip: Mapping[str, Any] | str | None = None,
  weight_decay: float = 0.0,
  decay_mask: str = 'kernels',
  average: Mapping[str, Any] | str | None = None,
) -> tuple[list[Any], list[Any]]:
  """Returns what belongs before an optimizer, and what belongs after.

  Args:
    clip: A part of `clipping.CLIPS`: how to clip the gradient.
    weight_decay: λ, the factor of the weights that the gradient gains. The
      optimizer sees the sum, as in the papers on networks for images.
    decay_mask: `kernels` or `all`: which parameters decay.
    average: A part of `averaging.AVERAGES`: an average of the weights.

  Raises:
    UserError: If a part is unknown.
    ValueError: If a number is out of range, or if the mask is unknown.
  """
  ranges.non_negative(weight_decay=weight_decay)
  mask = decay.mask_of(decay_mask)
  before, after = [], []
  if clip is not None:
    before.append(registry.create(f'{WHERE}.clip', clipping.CLIPS, clip))
  if weight_decay:
    before.append(optax.add_decayed_weights(weight_decay, mask))
  if average is not None:
    after.append(
      registry.create(f'{WHERE}.average', averaging.AVERAGES, average)
    )
  return before, after
