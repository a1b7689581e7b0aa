"""Changes of a config by dotted key."""

import copy

import numpy as np
import pytest

from bn_research import errors, experiment, overrides


def changed(**changes):
  keys = {key.replace('__', '.'): value for key, value in changes.items()}
  return experiment.config(keys).to_dict()


def test_an_option_need_not_be_listed_before():
  norm = changed(model__norm__num_groups=4)['model']['norm']
  assert norm == {'name': 'none', 'num_groups': 4}


def test_a_text_in_the_place_of_a_part_is_its_name():
  assert changed(model__norm='layer_norm')['model']['norm'] == {
    'name': 'layer_norm'
  }
  # Whichever comes first; also where the part is not there yet.
  first = {'model.norm.scope': 'batch', 'model.norm.scope.group_size': 8}
  second = dict(reversed(first.items()))
  expected = {'name': 'batch', 'group_size': 8}
  for changes in (first, second):
    found = experiment.config(changes).to_dict()
    assert found['model']['norm']['scope'] == expected


def test_a_text_becomes_a_part_where_it_gets_options():
  found = experiment.config(
    {'model.norm.gradient': 'renormalized'},
    {'model.norm.gradient.r_max': 2.0},
  )
  assert found.model.norm.gradient.to_dict() == {
    'name': 'renormalized',
    'r_max': 2.0,
  }


def test_a_section_is_changed_key_by_key():
  found = changed(model__norm={'name': 'layer_norm', 'epsilon': 0.5})
  assert found['model']['norm'] == {'name': 'layer_norm', 'epsilon': 0.5}


def test_none_takes_any_place():
  found = changed(batch_size=None, model__norm=None, data__name=None)
  assert found['batch_size'] is None
  assert found['model']['norm'] is None


def test_references_follow():
  config = experiment.base()
  config.num_steps = 10 * config.get_ref('batch_size')
  config.lock()
  other = copy.deepcopy(config)
  changes = {'batch_size': 20, 'model.norm.epsilon': 0.5}
  overrides.apply(other, changes, 'sweep()')
  assert other.model.norm.epsilon == 0.5
  assert (other.num_steps, config.num_steps) == (200, 600)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_stps': 3}, r"'num_stps' \(did you mean 'num_steps'\?\); there are"),
    ({'eval.every': 3}, "unknown config key 'eval.every'; there are num_p"),
    ({'modle.norm': 'x'}, r"'modle' \(did you mean 'model'\?\)"),
    ({'seed.x': 3}, "unknown config key 'seed.x'; seed is no section"),
    ({'model.name.x': 3}, "'model.name.x'; model.name is no section"),
    ({'probes': 'x'}, 'probes is a section of sections.*probes.KEY.name=x'),
    ({'model.norms': 'x'}, 'give model.norms.KEY.name=x'),
    ({'data.augment': 'flip'}, 'give data.augment.KEY.name=flip'),
    ({'probes.a/b.name': 'x'}, "'probes.a/b.name' is no key of a config"),
    ({'data.tag': {1}}, "the config gives 'data.tag' a set; give a number,"),
    ({'data.tag': [{'a': {1}}]}, "gives 'data.tag' a set"),
    ({'data.tag': 2**1023}, "gives 'data.tag' a number of 1024 bits"),
    ({'seed': np.int64(0)}, r"gives 'seed' a int64; give int\(\.\.\.\)"),
    ({'data.tag': np.float32(0)}, r'a float32; give float\(\.\.\.\)'),
    ({'data.tag': np.ones(2)}, r'a ndarray; give array\.tolist\(\)'),
    ({'seed': 'a'}, "the config gives 'seed' the value 'a', of another type"),
  ],
)
def test_a_mistake_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=message):
    experiment.config(changes)


def test_what_a_file_can_hold_is_a_value():
  values = (None, True, 2**1023 - 1, 0.5, np.float64(2), 'a', (1, [{'b': 2}]))
  for value in values:
    experiment.config({'data.tag': value})


def test_a_variant_that_is_not_there_is_named():
  with pytest.raises(ValueError, match="'x'; there are a, b"):
    experiment.variant('x', {'a': {}, 'b': {}})


@pytest.mark.parametrize(
  'changes',
  [
    {'data.augment': {'flip': {}}},
    {'data.augment': {'pad_crop': {'padding': 2}, 'flip': {}}},
    {'optimizer.average': {}},
  ],
)
def test_a_section_without_keys_is_refused(changes):
  """A part without options would be left out in silence."""
  with pytest.raises(errors.UserError, match='empty section') as caught:
    experiment.config(changes)
  assert '\n' not in str(caught.value)


def test_a_section_that_is_there_may_be_given_without_keys():
  assert experiment.config({'probes': {}}) == experiment.base()
