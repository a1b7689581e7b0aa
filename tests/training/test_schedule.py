import numpy as np
import pytest

from bn_research import errors
from bn_research.training import schedule


def test_linear_points_are_evenly_spread():
  np.testing.assert_array_equal(
    schedule.points(50_000, 5, 'linear'),
    [0, 10_000, 20_000, 30_000, 40_000, 50_000],
  )


def test_log_points_have_equal_ratios():
  np.testing.assert_array_equal(
    schedule.points(10_000, 5, 'log'), [0, 1, 10, 100, 1000, 10_000]
  )


@pytest.mark.parametrize('spacing', ['linear', 'log'])
@pytest.mark.parametrize(('num_steps', 'num_points'), [(1, 1), (7, 3), (5, 99)])
def test_points_increase_from_0_to_the_last_step(
  num_steps, num_points, spacing
):
  points = schedule.points(num_steps, num_points, spacing)
  assert (points[0], points[-1]) == (0, num_steps)
  assert (np.diff(points) > 0).all()
  assert len(points) <= num_points + 2


def test_an_unknown_spacing_is_named():
  with pytest.raises(errors.UserError, match="'cubic'; use linear or log"):
    schedule.points(10, 2, 'cubic')
