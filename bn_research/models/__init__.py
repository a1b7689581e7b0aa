"""Networks that are given a norm for each place, and never ask which one."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from bn_research import errors, registry
from bn_research.layers import nnx as layers
from bn_research.models import dense, mlp, normalization

MODELS = {'mlp': mlp.MLP}
"""Networks by name: a class, or a function with the same arguments."""


def create(
  config: Mapping[str, Any],
  input_shape: Sequence[int],
  num_classes: int,
  key: jax.Array,
) -> nnx.Module:
  """Creates the model that a config names.

  Args:
    config: `config.model`: `name` and the options of the model; `norm`, see
      `normalization.create`; optionally `norms`, sections like `norm` by the
      name of a layer, for layers with a norm of their own; and optionally
      `dense`, the name of a dense layer and its options. Options that are None
      keep their defaults.
    input_shape: The shape of one example.
    num_classes: Number of logits.
    key: A `jax.random.key`; may be traced, and inside `jit` is where building a
      model is fast.

  Returns:
    A module that is called as `model(x, train=..., tap=...)`.

  Raises:
    UserError: If a name or an option is unknown, or has a wrong value; if
      `norms` names no layer of the model.
  """
  options = dict(config)
  _check_taken(options)
  norm = _Norms(options.pop('norm'), options.pop('norms', None) or {})
  name, dense_options = registry.split(options.pop('dense', None))
  section = {'name': name or 'dense', **dense_options}
  made = _Counted(registry.create('config.model.dense', dense.LAYERS, section))
  model = registry.create(
    'config.model',
    MODELS,
    options,
    input_shape=tuple(input_shape),
    num_classes=num_classes,
    norm=norm,
    dense=made,
    rngs=nnx.Rngs(key),
  )
  norm.check_all_used()
  if section['name'] != 'dense' and not made.count:
    raise errors.UserError(
      'config.model.dense is given, and the model made no such layer'
    )
  return model


def _check_taken(config: Mapping[str, Any]) -> None:
  """Raises a UserError if a norm or a dense layer would be left out."""
  name = config.get('name')
  factory = registry.find('config.model', MODELS, name)
  parameters = registry.parameters_of('config.model', factory, name)
  asked = {
    'norm': registry.split(config['norm'])[0] not in (None, 'none')
    or bool(config.get('norms')),
    'dense': registry.split(config.get('dense'))[0] not in (None, 'dense'),
  }
  for key, is_asked in asked.items():
    if is_asked and not registry.takes(parameters, key):
      raise errors.UserError(
        f'config.model.{key} is given, and the model {name!r} has no'
        f' argument {key!r}'
      )


class _Counted:
  """A factory that counts what it makes."""

  def __init__(self, factory: Callable[..., Any]):
    self._factory = factory
    self.count = 0

  def __call__(self, *args: Any, **options: Any) -> Any:
    self.count += 1
    return self._factory(*args, **options)


class _Norms:
  """Makes the norm of each place of a model: what a model gets as `norm`."""

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
    """Returns the layer for a place, such as `'hidden_1'`."""
    self._used[place] += 1
    chosen = self._by_place.get(place, self._default)
    return layers.Norm(chosen, num_features, **options)

  def check_all_used(self) -> None:
    """Raises a UserError if a norm is asked for that is at no place."""
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
