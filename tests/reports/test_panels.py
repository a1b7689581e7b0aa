"""Panels of one number a run, and curves of probes: what is drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from bn_research import errors, registry, workdir
from bn_research.reports import drawing, measures, panels, quantities

FINAL = {'name': 'final', 'metric': 'test_accuracy'}
EARLY = {'name': 'early', 'metric': 'test_accuracy'}


def draw(section, series):
  axes = Canvas().subplots()
  registry.create('report(): panel', panels.PANELS, section).draw(axes, series)
  return axes


@pytest.fixture
def series(five_seeds):
  found = []
  for name in ('none', 'batch_norm'):
    chosen = [r for r in five_seeds if r.config['model.norm.name'] == name]
    found.append(drawing.Series(name, chosen, (), 'black', '-'))
  return found


def test_bars_are_means_and_dots_are_seeds(series):
  section = {'name': 'bars', 'measure': {'end': FINAL, 'early': EARLY}}
  axes = draw(section, series)
  heights = [bar.get_height() for bar in axes.patches]
  expected = [
    np.mean([measures.measure(m, run) for run in s.runs])
    for s in series
    for m in (FINAL, EARLY)
  ]
  np.testing.assert_allclose(heights, expected)
  assert sum(len(line.get_ydata()) for line in axes.lines) == 2 * 2 * 5
  labels = [tick.get_text() for tick in axes.get_xticklabels()]
  assert labels == ['end', 'early']


def test_a_heat_map_is_of_means_over_seeds(five_seeds):
  every = [drawing.Series('all', five_seeds, (), 'black', '-')]
  section = {
    'name': 'heat_map',
    'series': 'all',
    'x': 'model.norm.name',
    'y': 'batch_size',
    'measure': FINAL,
  }
  axes = draw(section, every)
  (image,) = axes.images
  names = [tick.get_text() for tick in axes.get_xticklabels()]
  assert names == ['batch_norm', 'none']
  expected = [
    np.mean(
      [
        measures.measure(FINAL, run)
        for run in five_seeds
        if run.config['model.norm.name'] == name
      ]
    )
    for name in names
  ]
  np.testing.assert_allclose(image.get_array(), [expected])
  texts = [text.get_text() for text in axes.texts]
  assert texts == [f'{value:.3g}' for value in expected]


def test_curves_of_a_probe(series):
  for run in (run for s in series for run in s.runs):
    steps, unit = run.probe('activations', 'last/unit')
    one = {'step': steps, 'one': unit[:, 1]}
    # Another key: the status has a digest of the first file.
    workdir.write_probe(run.path, 'one', one)
  section = {'name': 'curves', 'probe': 'one', 'array': 'one'}
  axes = draw(section, series)
  first = np.mean([run.probe('one', 'one')[1] for run in series[0].runs], 0)
  np.testing.assert_allclose(axes.lines[0].get_ydata(), first)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'give a metric, or a probe and an array'),
    (
      {'metric': 'test_accuracy', 'probe': 'activations'},
      'give a metric, or a probe and an array',
    ),
    ({'metric': 'a', 'probe': 'b', 'array': 'c'}, 'give a metric, or'),
    ({'probe': 'activations'}, 'give a metric, or'),
    ({'probe': 'activations', 'array': 'last/unit'}, r'shape \(3,\) at each'),
  ],
)
def test_a_wrong_quantity_is_one_line(options, message, five_seeds):
  with pytest.raises(errors.UserError, match=message):
    quantities.series(five_seeds[0], **options)


def test_a_series_that_is_not_there_is_named(series):
  section = {
    'name': 'heat_map',
    'series': 'non',
    'x': 'seed',
    'y': 'seed',
    'measure': FINAL,
  }
  with pytest.raises(errors.UserError, match=r"'non' .*; there are none,"):
    draw(section, series)


def test_a_measure_must_return_a_number(five_seeds, tmp_path, monkeypatch):
  (tmp_path / 'own_measure.py').write_text('def word(run):\n  return "x"\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(errors.UserError, match="own_measure:word' returned 'x'"):
    measures.measure({'name': 'own_measure:word'}, five_seeds[0])
