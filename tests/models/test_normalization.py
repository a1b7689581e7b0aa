"""`config.model.norm`: presets, choices on the axes, combinations."""

import contextlib
import io

import ml_collections
import pytest

from bn_research import errors, norms, overrides
from bn_research.models import normalization
from bn_research.norms import __main__ as command


def create(**section):
  return normalization.create('config.model.norm', section)


def test_a_name_is_a_preset():
  assert create(name='layer_norm') == norms.layer_norm()
  assert create(name='group_norm', num_groups=4) == norms.group_norm(4)
  assert create(name='batch_norm', momentum=None) == norms.batch_norm()
  assert normalization.create('norm', 'rms_norm') == norms.rms_norm()


def test_a_choice_replaces_that_of_the_preset():
  found = create(
    name='batch_norm',
    epsilon=1e-3,
    scope={'name': 'batch', 'group_size': 8},
    population={
      'name': 'interval',
      'every': 5,
      'population': {'name': 'ema', 'momentum': 0.5},
    },
    gradient='stopped',
  )
  assert found == norms.Normalization(
    norms.Batch(group_size=8),
    norms.Standardize(epsilon=1e-3),
    norms.Interval(5, norms.Ema(0.5)),
    norms.stopped,
  )
  assert create(name='layer_norm', population='none').population is None


def test_an_option_that_a_choice_needs_has_an_effect():
  found = create(
    name='decorrelated_batch_norm', average='covariance', population='pooled'
  )
  assert found.population == norms.Pooled()


def test_a_choice_replaces_that_of_every_part():
  found = create(name='batch_whitening', refinements=1, population='cumulative')
  assert len(found.parts) == 2
  assert {part.population for part in found.parts} == {norms.Cumulative()}


def test_combinations():
  layer, batch = {'name': 'layer_norm', 'epsilon': 1e-3}, 'batch_norm'
  parts = (norms.batch_norm(), norms.layer_norm(1e-3))
  assert create(name='chain', parts=[batch, layer]) == norms.Chain(parts)
  assert create(
    name='mixture', parts={'b': layer, 'a': batch}
  ) == norms.Mixture(parts)
  coloured = create(name='coloured', normalization={'name': 'iter_norm'})
  assert coloured == norms.Coloured(norms.iter_norm())


def test_numbers_that_change():
  ramp = {'name': 'ramp', 'initial': 1.0, 'final': 3.0, 'start': 5, 'stop': 9}
  found = create(name='batch_renorm', r_max=ramp)
  assert found.gradient.r_max == norms.Ramp(1.0, 3.0, 5, 9)


EXAMPLES = {'virtual_batch_norm': {'reference_size': 8}}


@pytest.mark.parametrize('name', norms.NAMES)
def test_the_printed_flags_are_the_preset(name):
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    assert command.main([name]) == 0
  expected = norms.create(name, **EXAMPLES.get(name, {}))
  lines = [l for l in printed.getvalue().splitlines() if '--config.' in l]
  if not isinstance(expected, norms.Normalization):
    assert not lines
    return
  config = ml_collections.ConfigDict({'norm': {'name': 'batch_norm'}})
  for line in lines:
    key, _, text = line.strip(" \\'").partition('=')
    value = normalization_literal(text)
    overrides.apply(config, {key.split('.', 2)[2]: value}, 'flags')
  assert normalization.create('norm', config.norm) == expected


def normalization_literal(text):
  try:
    return eval(text, {'__builtins__': {}})
  except NameError:
    return text


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    (
      {'name': 'chain', 'parts': 'batch_norm'},
      "norm.parts='batch_norm' is no list; give .*parts.a.name=batch_norm",
    ),
    ({'name': 'bath_norm'}, r"norm='bath_norm' is unknown \(did you mean"),
    (
      {'name': 'batch_norm', 'scope': 'batsh'},
      "norm.scope='batsh' is unk",
    ),
    (
      {'name': 'batch_norm', 'scope': {'name': 'batch', 'size': 3}},
      "config.model.norm.scope: 'batch' has no option 'size'",
    ),
    (
      {'name': 'batch_norm', 'momentum': 0.5, 'population': 'cumulative'},
      'norm.momentum has no effect, because .* gives another population',
    ),
    (
      {'name': 'batch_norm', 'epsilon': 0.1, 'map': 'whiten'},
      'norm.epsilon has no effect',
    ),
    (
      {'name': 'dynamic_tanh', 'scope': 'batch'},
      'config.model.norm: Squash is not made of choices',
    ),
    (
      {'name': 'batch_norm', 'map': 'whiten', 'gradient': 'renormalized'},
      'config.model.norm: .*Renormalized.*Whiten',
    ),
    (
      {'name': 'batch_norm', 'gradient': {'name': 'stopped', 'r_max': 2.0}},
      "has no key 'r_max'",
    ),
    ({'name': 'chain'}, 'config.model.norm: Chain has no parts'),
    (
      {'name': 'chain', 'parts': ['batch_norm', 'bath_norm']},
      r"norm.parts.1='bath_norm'",
    ),
    (
      {'name': 'virtual_batch_norm'},
      "'virtual_batch_norm' needs the option 'reference_size'",
    ),
  ],
)
def test_a_mistake_is_one_line(section, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    create(**section)
  assert '\n' not in str(caught.value)


def test_what_is_no_normalization_is_told(user_module):
  user_module(
    'my_norm',
    'class Half:\n  def init(self, num_features):\n    return ()\n'
    'def three():\n  return 3\n'
    'def kind():\n  return Half\n'
    'from bn_research import norms\n'
    'def chain():\n  return norms.Chain((norms.Chain((Half(),)),))\n',
  )
  for name, message in (
    ('three', "the result of 'my_norm:three' is 3, a int; give a norm"),
    ('Half', "'my_norm:Half' is a Half without learned, apply, remembers, sc"),
    ('kind', "the result of 'my_norm:kind' is Half, a type; call it"),
    ('chain', "a part of the result of 'my_norm:chain' is a Half without"),
  ):
    name = f'my_norm:{name}'
    message = f'^config.model.norm: .*{message}'
    with pytest.raises(errors.UserError, match=message):
      create(name=name)


def test_none_takes_the_options_of_others_and_no_typing_error():
  assert create(name='none', momentum=0.9, parts=()) == norms.none()
  with pytest.raises(errors.UserError, match=r"'epsilom' \(did you mean"):
    create(name='none', epsilom=1.0)
  with pytest.raises(errors.UserError, match="has an option 'ignored'"):
    create(name='none', ignored=1.0)
