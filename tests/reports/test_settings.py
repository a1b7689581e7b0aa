"""A number of each run, against a setting in which the runs differ."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from bn_research import errors
from bn_research.reports import drawing, measures, runs, settings

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
  series = [drawing.Series('s', found, (), 'C0', '-')]
  panel.draw(axes, series)
  return axes


def test_means_are_drawn_at_the_settings(swept):
  found = swept()
  axes = draw(settings.Settings('batch_size', MEASURE, xlabel='size'), found)
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
  assert axes.get_title() == 'mean and runs, 3 seeds'
  assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')


def test_a_seed_may_be_missing_somewhere(swept):
  axes = draw(settings.Settings('batch_size', MEASURE), swept([(30, 1)]))
  assert np.isfinite(axes.lines[0].get_ydata()).all()


def test_a_list_of_equal_numbers_is_one_setting(swept):
  found = [
    dataclasses.replace(run, config={**run.config, 'widths': [size, size]})
    for run in swept()
    for size in [run.config['batch_size']]
  ]
  axes = draw(settings.Settings('widths', MEASURE), found)
  np.testing.assert_array_equal(axes.lines[0].get_xdata(), [30, 60])


def test_what_cannot_be_drawn(swept):
  found = swept()
  with pytest.raises(errors.UserError, match="no key 'batch'"):
    draw(settings.Settings('batch', MEASURE), found)
  with pytest.raises(errors.UserError, match='two runs of one seed'):
    draw(settings.Settings('num_steps', MEASURE), found)
  different = [
    dataclasses.replace(run, config={**run.config, 'widths': [1, 2]})
    for run in found
  ]
  with pytest.raises(errors.UserError, match='is not one number'):
    draw(settings.Settings('widths', MEASURE), different)


@pytest.mark.parametrize('below', [0.0, -1.0, float('nan'), float('inf')])
def test_the_linear_part_of_an_axis_has_a_size(below, swept):
  panel = settings.Settings('batch_size', MEASURE, linear_below=below)
  with pytest.raises(errors.UserError, match=r'linear_below=.* no positive'):
    draw(panel, swept())


@pytest.fixture
def two_series(swept):
  """Runs of two batch sizes and three seeds, and others that end at 0.99."""

  base = swept()
  more = [dataclasses.replace(run) for run in base]
  for run in more:
    run.__dict__['_rows'] = [{'step': 1000, 'test_accuracy': 0.99}]
  return [
    drawing.Series('base', base, (), 'C0', '-'),
    drawing.Series('more', more, (), 'C1', '-'),
  ]


MINUS = settings.Settings(
  'batch_size', MEASURE, minus='base', linear_below=0.02, ylabel='difference'
)


def test_what_a_series_has_more_than_another(two_series):
  axes = Figure().subplots()
  series = two_series
  MINUS.draw(axes, series)
  assert axes.get_legend_handles_labels()[1] == ['more']
  _, *each = axes.lines
  for line, run_30, run_60 in zip(
    each, series[0].runs[:3], series[0].runs[3:], strict=True
  ):
    expected = [
      0.99 - measures.final(run, 'test_accuracy') for run in (run_30, run_60)
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_differences_about_zero_are_seen(two_series):
  base, _ = two_series
  same = dataclasses.replace(base, label='same')
  axes = Figure().subplots()
  MINUS.draw(axes, [base, same])
  np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0, 0])
  assert axes.get_yscale() == 'symlog'
  assert axes.yaxis.get_transform().linthresh == 0.02
  low, high = axes.get_ylim()
  assert low < 0 < high


def test_nothing_to_take_away_is_one_line(two_series):
  axes = Figure().subplots()
  with pytest.raises(errors.UserError, match='no series; there are base, more'):
    dataclasses.replace(MINUS, minus='bas').draw(axes, two_series)
  base, more = two_series
  few = dataclasses.replace(base, runs=base.runs[1:])
  with pytest.raises(
    errors.UserError, match='batch_size=30 and seed=0 to take'
  ):
    MINUS.draw(axes, [few, more])


def test_markers_at_the_edges_are_whole(swept):
  axes = draw(settings.Settings('batch_size', MEASURE), swept())
  low, high = axes.get_xlim()
  assert low < 30 < 60 < high


def test_milliseconds_a_layer(fake_run, tmp_path):
  fake_run('none', 0)
  (run,) = runs.load(str(tmp_path))
  with pytest.raises(errors.UserError, match=r"no key 'model\.widths'"):
    measures.milliseconds_a_layer(run)
  config = {**run.config, 'model.widths': [7, 7]}
  run = dataclasses.replace(run, config=config)
  np.testing.assert_allclose(measures.milliseconds_a_layer(run), 10)


def test_milliseconds_a_step(fake_run, tmp_path):
  fake_run('none', 0)
  (run,) = runs.load(str(tmp_path))
  # Runs of `fake_run` take 50 steps a second.
  np.testing.assert_allclose(measures.milliseconds_a_step(run), 20)
