"""What `search()` of a config file may return."""

import re

import pytest

from bn_research import errors, grid
from bn_research.sweeps.search import settings

SPACE = {
  'optimizer.learning_rate': grid.LogUniform(0.01, 1.0),
  'model.norm.name': grid.Choice(('none', 'batch_norm', 'layer_norm')),
}
RIGHT = {'space': SPACE, 'objective': 'test_loss', 'direction': 'minimize'}


def test_the_corners_have_each_choice_and_both_ends():
  corners = settings.read(RIGHT, 'search()').corners()
  assert [tuple(corner.values()) for corner in corners] == [
    (0.01, 'none'),
    (1.0, 'batch_norm'),
    (0.01, 'layer_norm'),
  ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'space': {}}, 'a.py: search(): space={}; give a dict such as'),
    ({'space': {'seed': 3}}, "there is 3 for 'seed'; give a Uniform"),
    ({'direction': 'up'}, "direction='up'; give maximize or minimize"),
    ({'seed': -1}, 'seed=-1'),
    ({'sampller': 'x'}, "no option 'sampller' (did you mean 'sampler'?)"),
    ({'objective': 3}, 'objective=3 is not of type str'),
  ],
)
def test_a_mistake_is_one_line(changes, message):
  with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
    settings.read({**RIGHT, **changes}, 'a.py: search()')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('key', RIGHT)
def test_the_space_and_the_aim_are_needed(key):
  given = {k: value for k, value in RIGHT.items() if k != key}
  with pytest.raises(errors.UserError, match=f"needs the option '{key}'"):
    settings.read(given, 'search()')


def test_a_list_is_no_search():
  with pytest.raises(errors.UserError, match='return a dict'):
    settings.read([SPACE], 'search()')


def test_the_objective_is_a_column_of_the_runs():
  config = {'eval': {'splits': ['test', 'train']}}
  for name in ('test_loss', 'train_eval_accuracy', 'train_loss'):
    given = settings.read({**RIGHT, 'objective': name}, 'search()')
    given.check_objective(config, 'search()')
  wrong = settings.read({**RIGHT, 'objective': 'test_acuracy'}, 'search()')
  with pytest.raises(errors.UserError, match="did you mean 'test_accuracy'"):
    wrong.check_objective(config, 'search()')
