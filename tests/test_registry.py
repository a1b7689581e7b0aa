import pytest

from bn_research import errors, registry


def circle(radius=1.0, *, unit):
  return radius, unit


class Square:
  def __init__(self, side=2.0, unit='m'):
    self.side = side


SHAPES = {'circle': circle, 'square': Square}


def test_options_are_passed_and_none_is_the_default():
  create = lambda **options: registry.create(
    'shape', SHAPES, options, unit='cm'
  )
  assert create(name='circle', radius=3.0) == (3.0, 'cm')
  assert create(name='circle', radius=None) == (1.0, 'cm')
  assert create(name='square', side=5.0).side == 5.0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'cicle'}, "unknown shape 'cicle'; there are circle, square"),
    ({}, 'unknown shape None; there are circle, square'),
    ({'name': 'circle', 'side': 1}, "'circle' has no option 'side'; it has ra"),
    ({'name': 'square', 'unit': 1}, "'square' has no option 'unit'; it has si"),
  ],
)
def test_what_is_unknown_is_named(options, message):
  with pytest.raises(errors.UserError, match=message):
    registry.create('shape', SHAPES, options, unit='cm')
