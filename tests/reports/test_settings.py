"""A number of each run, against a setting in which the runs differ."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from bn_research import errors
from bn_research.reports import drawing, measures, panels, runs

MEASURE = {'name': 'final', 'metric': 'test_accuracy'}


@pytest.fixture
def swept(fake_run, tmp_path):
  """Runs of two batch sizes and three seeds, one of which is missing."""

  def load(missing=()):
    for size in (30, 60):
      for seed in range(3):
        if (size, seed) not in missing:
          fake_run('none', seed + size, batch_size=size)
    found = runs.load(str(tmp_path))
    return [
      dataclasses.replace(
        run, config={**run.config, 'seed': run.config['seed'] % 30}
      )
      for run in found
    ]

  return load


def draw(panel, found):
  axes = Figure().subplots()
  series = [drawing.Series('s', found, 0, 'C0', '-')]
  panel.draw(axes, series)
  return axes


def test_means_are_drawn_at_the_settings(swept):
  found = swept()
  axes = draw(panels.Settings('batch_size', MEASURE, xlabel='size'), found)
  mean = axes.lines[0]
  np.testing.assert_array_equal(mean.get_xdata(), [30, 60])
  expected = [
    np.mean(
      [
        measures.final(run, 'test_accuracy')
        for run in found
        if run.config['batch_size'] == size
      ]
    )
    for size in (30, 60)
  ]
  np.testing.assert_allclose(mean.get_ydata(), expected)
  assert [label.get_text() for label in axes.get_xticklabels()] == ['30', '60']
  assert axes.get_legend().get_title().get_text() == 'mean and runs, 3 seeds'
  assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')


def test_a_seed_may_be_missing_somewhere(swept):
  axes = draw(panels.Settings('batch_size', MEASURE), swept([(30, 1)]))
  assert np.isfinite(axes.lines[0].get_ydata()).all()


def test_a_list_of_equal_numbers_is_one_setting(swept):
  found = [
    dataclasses.replace(run, config={**run.config, 'widths': [size, size]})
    for run in swept()
    for size in [run.config['batch_size']]
  ]
  axes = draw(panels.Settings('widths', MEASURE, loc=None), found)
  np.testing.assert_array_equal(axes.lines[0].get_xdata(), [30, 60])
  assert axes.get_legend() is None


def test_what_cannot_be_drawn(swept):
  found = swept()
  with pytest.raises(errors.UserError, match='two runs of one seed'):
    draw(panels.Settings('num_steps', MEASURE), found)
  different = [
    dataclasses.replace(run, config={**run.config, 'widths': [1, 2]})
    for run in found
  ]
  with pytest.raises(errors.UserError, match='is not one number'):
    draw(panels.Settings('widths', MEASURE), different)


def test_milliseconds_a_step(fake_run, tmp_path):
  fake_run('none', 0)
  (run,) = runs.load(str(tmp_path))
  # Runs of `fake_run` take 50 steps a second.
  np.testing.assert_allclose(measures.milliseconds_a_step(run), 20)
