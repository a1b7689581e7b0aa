"""Grids of points: products, pairs, chains, seeds, random values."""

import math
import subprocess
import sys

import numpy as np
import pytest

from bn_research import grid

NORMS = {'model.norm.name': ('none', 'batch_norm')}
RATES = [{'optimizer.learning_rate': rate} for rate in (0.1, 0.2, 0.3)]


def test_a_product_is_every_combination_and_the_last_grid_changes_fastest():
  found = grid.product(NORMS, RATES)
  assert [tuple(point.values()) for point in found] == [
    (norm, rate) for norm in ('none', 'batch_norm') for rate in (0.1, 0.2, 0.3)
  ]
  assert list(found[0]) == ['model.norm.name', 'optimizer.learning_rate']
  # A dict of several keys is a product of these keys.
  assert grid.product({'a': (1, 2), 'b': (3, 4)}) == [
    {'a': 1, 'b': 3},
    {'a': 1, 'b': 4},
    {'a': 2, 'b': 3},
    {'a': 2, 'b': 4},
  ]
  assert grid.product() == [{}]


def test_zip_takes_points_of_one_place_together():
  found = grid.zip({'batch_size': (32, 64)}, {'a': iter([1, 2])})
  assert found == [{'batch_size': 32, 'a': 1}, {'batch_size': 64, 'a': 2}]


def test_a_chain_is_one_grid_after_the_other():
  assert grid.chain(RATES[:1], NORMS) == [
    {'optimizer.learning_rate': 0.1},
    {'model.norm.name': 'none'},
    {'model.norm.name': 'batch_norm'},
  ]


def test_no_grid_shares_a_point_with_another():
  points = [{'a': 1}]
  for found in (grid.chain(points), grid.product(points), grid.zip(points)):
    found[0]['a'] = 2
  assert points == [{'a': 1}]


def test_seeds():
  assert grid.seeds(2) == [{'seed': 0}, {'seed': 1}]
  assert grid.seeds(3, 5) == [{'seed': 3}, {'seed': 4}]


def test_random_values_have_the_density_of_the_distribution():
  number = 4000
  points = grid.sample(
    number,
    {
      'uniform': grid.Uniform(-2.0, 6.0),
      'log': grid.LogUniform(1e-4, 10.0),
      'choice': grid.Choice(('a', 'b', 'c')),
    },
    seed=3,
  )
  values = {key: [point[key] for point in points] for key in points[0]}
  # The statistic of Kolmogorov is below 0.031 in 999 of 1,000 cases.
  uniform = (np.sort(values['uniform']) + 2) / 8
  log = (np.log10(np.sort(values['log'])) + 4) / 5
  for parts in (uniform, log):
    assert 0 <= parts[0] <= parts[-1] <= 1
    expected = (np.arange(number) + 0.5) / number
    assert np.abs(parts - expected).max() < 0.031
  for letter in 'abc':
    assert abs(values['choice'].count(letter) / number - 1 / 3) < 0.03
  # Different keys are independent.
  assert abs(np.corrcoef(values['uniform'], np.log(values['log']))[0, 1]) < 0.06


def test_random_values_depend_on_seed_key_and_place_only():
  rate = {'rate': grid.LogUniform(0.01, 1.0)}
  few = grid.sample(3, rate, seed=1)
  more = grid.sample(9, {'other': grid.Choice((1, 2)), **rate}, seed=1)
  assert [point['rate'] for point in more[:3]] == [p['rate'] for p in few]
  assert grid.sample(3, rate, seed=2) != few
  # The values of seed 0, which must stay the same from version to version.
  assert grid.sample(3, rate) == FIRST


FIRST = [{'rate': 0.115}, {'rate': 0.0624}, {'rate': 0.684}]


def test_values_are_short_because_they_are_names():
  points = grid.sample(50, {'rate': grid.LogUniform(1e-5, 1.0, digits=2)})
  assert all(len(f'{point["rate"]:g}') <= 7 for point in points)
  ends = grid.LogUniform(0.1, 0.3)
  assert ends.at(0.0) == 0.1
  assert math.isclose(ends.at(1 - 1e-12), 0.3)
  # Three digits of these ends are outside of the range.
  narrow = grid.Uniform(0.12345, 0.12355)
  assert [narrow.at(part) for part in (0.1, 0.9)] == [0.12345, 0.12355]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: grid.product({'a': 'text'}), r"'text' for 'a'; give a list"),
    (lambda: grid.product({'a': 3}), "3 for 'a'; give a list"),
    (lambda: grid.product('text'), "'text' is no point"),
    (lambda: grid.chain([1]), '1 is no point of a grid; give a dict'),
    (lambda: grid.product(RATES, RATES), 'two grids change .*learning_rate'),
    (lambda: grid.zip(RATES, NORMS), r'one length, not \[3, 2\]'),
    (lambda: grid.seeds(0), 'last=-1'),
    (lambda: grid.seeds(5, 5), 'no seed'),
    (lambda: grid.seeds(-1, 5), 'first=-1'),
    (lambda: grid.Uniform(1.0, 1.0), 'no ends of a range'),
    (lambda: grid.Uniform(0.0, math.nan), 'no ends of a range'),
    (lambda: grid.LogUniform(0.0, 1.0), 'no ends of a range'),
    (lambda: grid.LogUniform(0.1, 1.0, digits=0), 'digits=0'),
    (lambda: grid.Choice(()), 'no list of values'),
    (lambda: grid.Choice('ab'), 'no list of values'),
    (lambda: grid.sample(0, {'a': grid.Choice((1,))}), 'number=0'),
    (
      lambda: grid.sample(1, {'a': (1, 2)}),
      r"\(1, 2\) for 'a'; give a Uniform",
    ),
  ],
)
def test_mistakes_are_one_line(make, message):
  with pytest.raises(ValueError, match=message) as caught:
    make()
  assert '\n' not in str(caught.value)


def test_the_module_loads_without_jax():
  code = 'import sys, bn_research.grid; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
