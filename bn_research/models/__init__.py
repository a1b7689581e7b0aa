"""Creates networks by name. The networks take norms of every kind."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from bn_research import errors, registry
from bn_research.layers import nnx as layers
from bn_research.models import (
  cnn,
  dense,
  inception_bn,
  mlp,
  normalization,
  patch_cnn,
  resnet,
  stems,
  vgg,
  vit,
  wide_resnet,
)

MODELS: dict[str, Callable[..., nnx.Module]] = {
  'mlp': mlp.MLP,
  'cnn': cnn.CNN,
  'patch_cnn': patch_cnn.PatchCNN,
  'resnet': resnet.resnet,
  'resnet_imagenet': resnet.resnet_imagenet,
  'wide_resnet': wide_resnet.wide_resnet,
  'vgg': vgg.VGG,
  'inception_bn': inception_bn.InceptionBN,
  'vit': vit.ViT,
}
"""Networks by name, as classes or as functions with the same arguments."""

# Factories of layers, which a model takes as arguments: a table of names, and
# the name that stands for the layer of a model without the argument.
_LAYERS: dict[str, tuple[Mapping[str, Any], str]] = {
  'dense': (dense.LAYERS, 'dense'),
  'stem': (stems.STEMS, 'learned'),
}


def create(
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  key: jax.Array,
) -> nnx.Module:
  """Creates the model of a config.

  Args:
    config: The section `config.model`, with `name` and the options of the
      model. `norm` is a section for `normalization.create`. The optional
      `norms` has a section like `norm` for each layer with a different norm,
      by the name of the layer. The optional `dense` has the `name` and the
      options of the dense layers, and the optional `stem` those of the first
      layer. An option with the value None keeps the default.
    input_shape: The shape of an example.
    num_classes: Number of logits.
    key: A `jax.random.key`, possibly traced. The construction of a model is
      fast only inside `jit`.

  Returns:
    A module, for calls `model(x, train=..., tap=...)`.

  Raises:
    UserError: If a name or an option is unknown, if a value is wrong, if
      `norms` has the name of no layer, or if the model does not use the norm,
      the dense layer or the stem of the config.
  """
  # A model of the user need not have arguments such as `norm`. Without the
  # checks below, a run would train in silence without the requested norm.
  options = dict(config)
  _check_taken(options)
  norm = _Norms(options.pop('norm'), options.pop('norms', None) or {})
  made = {key: _Counted(key, options.pop(key, None)) for key in _LAYERS}
  model = registry.create(
    'config.model',
    MODELS,
    options,
    input_shape=tuple(input_shape),
    num_classes=num_classes,
    norm=norm,
    **made,
    rngs=nnx.Rngs(key),
  )
  norm.check_all_used()
  for factory in made.values():
    factory.check_used()
  return model


def _check_taken(config: Mapping[str, Any]) -> None:
  """Raises a UserError if the model lacks an argument for a requested part."""
  name = config.get('name')
  factory = registry.find('config.model', MODELS, name)
  parameters = registry.parameters_of('config.model', factory, name)
  asked = {
    'norm': registry.split(config['norm'])[0] not in (None, 'none')
    or bool(config.get('norms')),
    **{
      key: registry.split(config.get(key))[0] not in (None, usual)
      for key, (_, usual) in _LAYERS.items()
    },
  }
  for key, is_asked in asked.items():
    if is_asked and not registry.takes(parameters, key):
      raise errors.UserError(
        f'config.model.{key} is given, and the model {name!r} has no'
        f' argument {key!r}'
      )


class _Counted:
  """The factory of a section such as `config.model.dense`; counts the calls."""

  def __init__(self, key: str, section: Any):
    table, usual = _LAYERS[key]
    name, options = registry.split(section)
    self._where = f'config.model.{key}'
    self._is_asked = name not in (None, usual)
    self._factory: Callable[..., Any] = registry.create(
      self._where, table, {'name': name or usual, **options}
    )
    self._count = 0

  def __call__(self, *args: Any, **options: Any) -> Any:
    self._count += 1
    return self._factory(*args, **options)

  def check_used(self) -> None:
    """Raises a UserError if the layer of the config is at no place."""
    if self._is_asked and not self._count:
      raise errors.UserError(
        f'{self._where} is given, and the model made no such layer'
      )


class _Norms:
  """The argument `norm` of a model: a factory for the norm of each place."""

  def __init__(self, default: Any, by_place: Mapping[str, Any]):
    build = normalization.create
    self._is_asked = registry.split(default)[0] not in (None, 'none')
    self._default = build('config.model.norm', default)
    self._by_place = {
      place: build(f'config.model.norms.{place}', section)
      for place, section in by_place.items()
      if section is not None
    }
    self._used: dict[str, int] = collections.Counter()

  def __call__(self, place: str, num_features: int, **options: Any) -> Any:
    """Returns the layer for a place, for example `'hidden_1'`."""
    self._used[place] += 1
    chosen = self._by_place.get(place, self._default)
    return layers.Norm(chosen, num_features, **options)

  def check_all_used(self) -> None:
    """Raises a UserError if a norm of the config is at no place."""
    if self._is_asked and not self._used:
      raise errors.UserError(
        'config.model.norm is given, and the model made no norm'
      )
    for place in self._by_place:
      if place not in self._used:
        raise errors.UserError(
          f'config.model.norms names {place!r}'
          f'{registry.hint(place, self._used)}; the places are'
          f' {", ".join(self._used) or "none"}'
        )
