"""Functions of a config file, with and without the argument of the path."""

import pytest

from bn_research import config_files, errors

FILE = """
def get_config(arg='a'):
  pass

def sweep(arg='a'):
  yield {'seed': arg}

def report():
  return {'figures': []}

def own_default(num_seeds=2):
  return list(range(num_seeds))

def strict(arg):
  return arg
"""


@pytest.fixture
def path(tmp_path):
  (tmp_path / 'file.py').write_text(FILE)
  return str(tmp_path / 'file.py')


def test_a_function_with_an_argument_gets_the_argument(path):
  assert config_files.call(f'{path}:b', 'sweep') == [{'seed': 'b'}]
  assert config_files.call(f'{path}:b:c', 'sweep') == [{'seed': 'b:c'}]
  assert config_files.call(path, 'sweep') == [{'seed': 'a'}]


def test_a_function_without_an_argument_gets_none(path):
  assert config_files.call(f'{path}:b', 'report') == {'figures': []}


def test_a_function_keeps_a_default_of_its_own(path):
  assert config_files.call(f'{path}:b', 'own_default') == [0, 1]


def test_a_lost_argument_is_told(path):
  with pytest.raises(errors.UserError, match=r'file\.py.*argument'):
    config_files.call(path, 'strict')
