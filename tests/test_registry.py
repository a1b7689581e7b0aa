"""Names to parts: ours, the user's, and what is told of a mistake."""

import functools

import pytest

from bn_research import dotted, errors, ranges, registry


def circle(radius: float = 1.0, *, unit):
  if radius < 0:
    raise ValueError(f'radius={radius}; choose a number of at least 0')
  return radius, unit


class Square:
  def __init__(self, side=2.0, unit='m'):
    self.side = side


def scheduled(rate: float | list = 1.0):
  return rate


def line(*, length: int, unit):
  return length


SHAPES = {
  'circle': circle,
  'square': Square,
  'line': line,
  'scheduled': scheduled,
}


def create(**options):
  return registry.create('config.shape', SHAPES, options, unit='cm')


def test_options_are_passed_and_none_is_the_default():
  assert create(name='circle', radius=3.0) == (3.0, 'cm')
  assert create(name='circle', radius=3) == (3, 'cm')
  assert create(name='circle', radius=None) == (1.0, 'cm')
  assert create(name='square', side=5.0).side == 5.0


def test_a_text_is_short_for_a_name():
  assert registry.create('shape', SHAPES, 'circle', unit='m') == (1.0, 'm')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'name': 'cicle'},
      r"config.shape='cicle' is unknown \(did you mean 'circle'\?\);"
      ' there are circle, line, scheduled, square, and module:attribute',
    ),
    ({}, 'config.shape has no name; there are circle, line, sch'),
    ({'name': 'circle', 'side': 1}, "'circle' has no option 'side'; it has ra"),
    ({'name': 'square', 'unit': 1}, "'square' has no option 'unit'; it has si"),
    ({'name': 'line'}, "'line' needs the option 'length'"),
    ({'name': 'line', 'length': 1.5}, 'shape.length=1.5 is not of type int'),
    ({'name': 'line', 'length': True}, 'length=True is not a number'),
    ({'name': 'circle', 'radius': 'x'}, "radius='x' is not of type float"),
    ({'name': 'scheduled', 'rate': True}, 'rate=True is not a number'),
    (
      {'name': 'circle', 'radius': -1.0},
      r'y:\d+: ValueError: radius=-1.0; ',
    ),
  ],
)
def test_a_mistake_is_one_line(options, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    create(**options)
  assert '\n' not in str(caught.value)


PART = """
import dataclasses

LIMIT = 3

@dataclasses.dataclass
class Ring:
  radius: float = 1.0

def fails():
  a = 1
  return a.nothing

def leaves():
  raise SystemExit(3)

number = 3

def of_one(x, factor=2):
  return factor * x
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
  """A folder of the user with modules."""
  (tmp_path / 'my_shapes.py').write_text(PART)
  (tmp_path / 'my_broken.py').write_text('\nx = 1 / 0\n')
  (tmp_path / 'my_syntax.py').write_text('\n\ndef (')
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def test_a_part_of_the_user(user):
  ring = create(name='my_shapes:Ring', radius=2.0)
  assert (type(ring).__name__, ring.radius) == ('Ring', 2.0)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('my_shapes:Rong', r"my_shapes.py has no 'Rong' \(did you mean 'Ring'\?\)"),
    ('my_shape:Ring', "ModuleNotFoundError: No module named 'my_shape'"),
    ('my_broken:Ring', 'my_broken.py:2: ZeroDivisionError: division by zero'),
    ('my_syntax:Ring', 'my_syntax.py:3: SyntaxError'),
    ('my_shapes:leaves', 'my_shapes.py:15: SystemExit: 3'),
    ('my_shapes:number', "'my_shapes:number' is 3; give a function or a class"),
    ('math:hypot', "'math:hypot' is <built-in function hypot>; give"),
    ('sys:x', "sys has no 'x'"),
    ('my_shapes:fails', "my_shapes.py:12: AttributeError: 'int' object"),
  ],
)
def test_a_mistake_of_the_user_is_told_by_its_line(user, name, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    create(name=name)
  assert '\n' not in str(caught.value)


def test_options_are_bound_to_a_function_of_one_argument(user):
  name = 'my_shapes:of_one'
  found = registry.find('config.x', {}, name)
  assert registry.bind('config.x', found, name, {'factor': 5})(2) == 10
  with pytest.raises(errors.UserError, match="no option 'fact'"):
    registry.bind('config.x', found, name, {'fact': 5})


def test_a_mistake_of_ours_keeps_its_traceback():
  ours = functools.partial(dotted.flatten, 3)
  with pytest.raises(AttributeError):
    registry.create('config.shape', {'ours': ours}, 'ours')


def test_a_value_that_ours_refuses_is_one_line():
  ours = functools.partial(ranges.positive, radius=-1.0)
  with pytest.raises(errors.UserError, match=r'^config.shape: radius=-1.0; ch'):
    registry.create('config.shape', {'ours': ours}, 'ours')
