"""Figures: what is drawn is what was measured."""

import dataclasses
import hashlib
import json
import sys

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure as Canvas

from bn_research import errors, workdir
from bn_research.reports import drawing, figures, panels, runs, settings, tables

WITHOUT = {'model.norm.name': 'none'}
WITH = {'model.norm.name': 'batch_norm'}
FIGURE = figures.Figure(
  name='figure',
  series=[
    {'label': 'without', 'where': WITHOUT},
    {'label': 'with', 'where': WITH},
  ],
  panels=[
    {'name': 'curves', 'metric': 'test_accuracy', 'ylim': (0.7, 1.0)},
    {
      'name': 'bands',
      'series': 'with',
      'probe': 'activations',
      'array': 'last/unit',
    },
  ],
)


def series_of(found, where, label='s', diverged=()):
  chosen = [run for run in found if run.matches(where)]
  return panels.Series(label, chosen, diverged, 'C0', '-')


def drawn(panel, *series):
  axes = Canvas().subplots()
  panel.draw(axes, series)
  return axes


def band(axes, index):
  """The (2, k) lowest and highest of a filled band, in order of x."""
  points = axes.collections[index].get_paths()[0].vertices
  x = np.unique(points[:, 0])
  y = [points[points[:, 0] == value, 1] for value in x]
  return np.asarray([[v.min() for v in y], [v.max() for v in y]])


def test_curves_are_the_mean_and_range_over_seeds(five_seeds):
  axes = drawn(panels.Curves('test_accuracy'), series_of(five_seeds, WITHOUT))
  values = np.asarray(
    [
      [row['test_accuracy'] for row in rows if 'test_accuracy' in row]
      for rows in (
        workdir.read_metrics(run.path)
        for run in five_seeds
        if run.config['model.norm.name'] == 'none'
      )
    ]
  )
  (line,) = axes.lines
  np.testing.assert_array_equal(line.get_xdata(), np.arange(0, 1001, 10))
  np.testing.assert_allclose(line.get_ydata(), values.mean(0))
  np.testing.assert_allclose(band(axes, 0), [values.min(0), values.max(0)])
  assert axes.get_title() == 'mean and range, 5 seeds'


def test_fewer_than_five_seeds_are_drawn_one_by_one(five_seeds):
  few = [run for run in five_seeds if run.config['seed'] < 3]
  axes = drawn(panels.Curves('test_accuracy'), series_of(few, WITHOUT))
  assert len(axes.lines) == 4
  assert not axes.collections
  assert axes.get_title() == 'mean and runs, 3 seeds'
  mean, *each = [line.get_ydata() for line in axes.lines]
  np.testing.assert_allclose(np.mean(each, 0), mean)


def test_a_zoom_does_not_hide_how_a_curve_ends(five_seeds):
  series = [series_of(five_seeds, where) for where in (WITHOUT, WITH)]
  ends = []
  for ylim in ((0.7, 1.0), (0.975, 1.0), (0.5, 0.9)):
    axes = drawn(panels.Curves('test_accuracy', ylim=ylim), *series)
    low, high = axes.get_ylim()
    ends.append((low, high))
    for line in axes.lines:
      assert low <= line.get_ydata()[-1] <= high
  assert ends[0] == (0.7, 1.0)  # All end inside, though they begin below.
  assert ends[1][0] < 0.11  # Where the curve begins.
  assert ends[1][1] == 1.0
  assert ends[2][0] == 0.5


def test_curves_by_seconds(five_seeds):
  panel = panels.Curves('test_accuracy', x='seconds', xlabel='seconds')
  axes = drawn(panel, series_of(five_seeds, WITH))
  np.testing.assert_allclose(axes.lines[0].get_xdata(), np.arange(0, 20.1, 0.2))


@pytest.mark.parametrize('factor', [1.02, 3, 40, 150, 1e4])
def test_an_axis_of_logarithms_has_numbers_however_short(factor, five_seeds):
  run = dataclasses.replace(five_seeds[0])
  seconds = 0.7 * factor ** np.linspace(0, 1, 7)
  run.__dict__['_rows'] = [
    {'step': i, 'seconds': s, 'train_loss': 1 / s}
    for i, s in enumerate(seconds)
  ]
  panel = panels.Curves('train_loss', x='seconds', xscale='log', yscale='log')
  axes = drawn(panel, panels.Series('s', [run], (), 'C0', '-'))
  axes.figure.draw_without_rendering()
  for axis in (axes.xaxis, axes.yaxis):
    low, high = axis.get_view_interval()
    seen = [
      tick.label1.get_text()
      for tick in axis.get_major_ticks()
      if low <= tick.get_loc() <= high
    ]
    assert (4 if factor > 3 else 2) <= len(seen) <= 12
    assert len(set(seen)) == len(seen)
    assert all(float(text.replace('K', '')) > 0 for text in seen)


def test_the_legend_tells_of_runs_that_diverged(five_seeds):
  series = series_of(five_seeds, WITH, 'with', five_seeds[:2])
  axes = drawn(panels.Curves('test_accuracy'), series)
  assert axes.get_legend_handles_labels()[1] == ['with (2 diverged)']
  series = dataclasses.replace(series, absent={'missing': 3})
  axes = drawn(panels.Curves('test_accuracy'), series)
  assert axes.get_legend_handles_labels()[1] == ['with (2 diverged, 3 missing)']


@pytest.mark.parametrize(
  'panel',
  [
    panels.Curves('test_accuracy'),
    panels.Bands('s', 'activations', 'last/unit'),
    tables.Bars({'name': 'final', 'metric': 'test_accuracy'}),
    tables.HeatMap(
      's', 'seed', 'batch_size', {'name': 'final', 'metric': 'test_accuracy'}
    ),
    settings.Settings('seed', {'name': 'final', 'metric': 'test_accuracy'}),
  ],
  ids=lambda panel: type(panel).__name__,
)
def test_a_series_that_diverged_is_drawn_as_such(five_seeds, panel):
  others = series_of(five_seeds, WITHOUT, 'done')
  gone = dataclasses.replace(
    others, label='s', runs=(), diverged=five_seeds[:2]
  )
  axes = drawn(panel, others, gone)
  texts = [text.get_text() for text in axes.texts]
  names = axes.get_legend_handles_labels()[1]
  assert 's (2 diverged)' in ' '.join([*texts, *names])


def test_settings_at_which_all_diverged_are_marked(fake_run, tmp_path):
  fake_run('none', 0)
  fake_run('none', 1, batch_size=120, status=workdir.DIVERGED)
  done, diverged = runs.load(str(tmp_path))
  panel = settings.Settings(
    'batch_size', {'name': 'final', 'metric': 'test_accuracy'}
  )
  axes = drawn(panel, panels.Series('s', [done], [diverged], 'C0', '-'))
  assert list(axes.get_xticks()) == [60, 120]
  (mark,) = [line for line in axes.lines if line.get_marker() == 'x']
  assert mark.get_xdata() == [120]


def test_runs_of_different_lengths_are_no_series(fake_run, tmp_path):
  fake_run('none', 0)
  fake_run('none', 1, num_steps=50)
  found = runs.load(str(tmp_path))
  with pytest.raises(errors.UserError, match='at different steps'):
    drawn(panels.Curves('test_accuracy'), series_of(found, WITHOUT))


def test_a_curve_has_the_common_steps_of_its_runs(fake_run, tmp_path):
  fake_run('none', 0)
  # An extended run has other rows up to the old end.
  path = fake_run('none', 1)
  lines = (path / workdir.METRICS).read_text().splitlines(keepends=True)
  kept = [line for line in lines if json.loads(line)['step'] % 50 == 0]
  (path / workdir.METRICS).write_text(''.join(kept))
  workdir.write_status(path, workdir.Status(workdir.DONE, 1000))
  found = runs.load(str(tmp_path))
  axes = drawn(panels.Curves('test_accuracy'), series_of(found, WITHOUT))
  x, y = axes.lines[0].get_data()
  np.testing.assert_array_equal(x, range(0, 1001, 50))
  columns = [run.columns('step', 'test_accuracy') for run in found]
  of_runs = [dict(zip(*both, strict=True)) for both in columns]
  np.testing.assert_allclose(y, [np.mean([r[k] for r in of_runs]) for k in x])


def test_bands_are_the_percentiles_of_the_first_seed(five_seeds):
  panel = panels.Bands('s', 'activations', 'last/unit', title='(b)')
  axes = drawn(panel, series_of(five_seeds[::-1], WITH))
  first = next(run for run in five_seeds if run.matches({**WITH, 'seed': 0}))
  arrays = workdir.read_probe(first.path, 'activations')
  lines = np.asarray([line.get_ydata() for line in axes.lines])
  np.testing.assert_array_equal(lines, arrays['last/unit'].T)
  np.testing.assert_array_equal(band(axes, 0), arrays['last/unit'].T[[0, 2]])
  texts = [text.get_text() for text in axes.texts]
  assert texts == ['15%', '50%', '85%']
  assert axes.get_title() == '(b), seed 0'


def test_bands_share_their_axis_and_curves_keep_theirs(five_seeds):
  pair = [
    panels.Curves('test_accuracy', ylim=(0.7, 1.0)),
    panels.Bands('none', 'activations', 'last/unit'),
    panels.Bands('norm', 'activations', 'last/unit'),
  ]
  all_axes = Canvas().subplots(1, 3)
  series = [
    series_of(five_seeds, WITHOUT, 'none'),
    series_of(five_seeds, WITH, 'norm'),
  ]
  for panel, axes in zip(pair, all_axes, strict=True):
    panel.draw(axes, series)
  wide = all_axes[1].get_ylim()
  assert wide[0] < all_axes[2].get_ylim()[0]
  panels.share_y(pair, all_axes)
  assert [axes.get_ylim() for axes in all_axes] == [(0.7, 1.0), wide, wide]


def test_the_files_are_figures_and_the_same_each_time(five_seeds, tmp_path):
  digests = []
  for folder in ('one', 'two'):
    paths = FIGURE.draw(five_seeds, tmp_path / folder)
    assert [path.name for path in paths] == ['figure.png', 'figure.pdf']
    digests.append(
      [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    )
  assert digests[0] == digests[1]
  with PIL.Image.open(tmp_path / 'one' / 'figure.png') as image:
    assert image.size == (1440, 520)
    assert (
      len(np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0))
      > 50
    )
  assert (tmp_path / 'one' / 'figure.pdf').read_bytes().startswith(b'%PDF')


@pytest.mark.parametrize(
  ('panel', 'message'),
  [
    ({'name': 'curve'}, "'curve' is unknown .*; there are bands, bars, curves"),
    ({'name': 'curves'}, 'give a metric, or a probe and an array'),
    (
      {'name': 'curves', 'metric': 'a', 'log': 1},
      "has no option 'log'",
    ),
    (
      {'name': 'curves', 'metric': 'a'},
      'has no metric a; there are seconds, step',
    ),
    (
      {'name': 'bands', 'series': 'x', 'probe': 'p', 'array': 'a'},
      "unknown series 'x'; there are without, with",
    ),
  ],
)
def test_a_wrong_panel_is_one_line(panel, message, five_seeds, tmp_path):
  figure = dataclasses.replace(FIGURE, panels=[panel])
  with pytest.raises(errors.UserError, match=message):
    figure.draw(five_seeds, tmp_path)


MEASURE = {'name': 'final', 'metric': 'test_accuracy'}


@pytest.mark.parametrize(
  'panel',
  [
    {'name': 'curves', 'metric': 'test_accuracy'},
    {'name': 'bars', 'measure': MEASURE},
    {'name': 'settings', 'setting': 'seed', 'measure': MEASURE},
  ],
  ids=lambda panel: panel['name'],
)
@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'ylim': (float('nan'), 1.0)}, r'ylim=\(nan, 1.0\) is not a pair of'),
    ({'ylim': (0, 1, 2)}, r'ylim=\(0, 1, 2\) is not a pair of'),
    ({'ylim': 'ab'}, "ylim='ab' is not a pair of"),
    ({'yscale': 'lgo'}, "figure 'figure': 'lgo' is not a valid value"),
    ({'title': r'$\frac{$'}, r"figure 'figure': .*\\frac"),
    ({'ylabel': '$x_$'}, "figure 'figure': .*x_"),
  ],
  ids=str,
)
def test_what_matplotlib_refuses_is_one_line(
  options, message, panel, five_seeds, tmp_path
):
  figure = dataclasses.replace(FIGURE, panels=[panel | options])
  with pytest.raises(errors.UserError, match=message) as caught:
    figure.draw(five_seeds, tmp_path)
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.glob('figure.*'))


def test_an_error_outside_of_matplotlib_stays(
  five_seeds, tmp_path, monkeypatch
):
  def fail(*_):
    raise RuntimeError('a mistake of ours')

  monkeypatch.setattr(panels, 'share_y', fail)
  with pytest.raises(RuntimeError, match='of ours'):
    FIGURE.draw(five_seeds, tmp_path)


def test_the_series_differ_in_color_and_in_line_style(five_seeds, monkeypatch):
  drawn_series = []
  monkeypatch.setattr(
    panels.Curves,
    'draw',
    lambda self, axes, series: drawn_series.extend(series),
  )
  specs = [{'label': str(i), 'where': {'seed': i % 5}} for i in range(28)]
  panel = {'name': 'curves', 'metric': 'test_accuracy'}
  figure = dataclasses.replace(FIGURE, series=specs, panels=[panel])
  figure.draw(five_seeds, five_seeds[0].path / 'report')
  assert len({(s.color, s.linestyle) for s in drawn_series}) == 28
  assert len({s.color for s in drawn_series[:7]}) == 7
  assert len({s.linestyle for s in drawn_series[:4]}) == 4


@pytest.mark.parametrize(
  ('counts', 'text'),
  [
    ([0, 5], 'mean and range, 0 or 5 seeds'),
    ([4, 5], 'mean and runs, 4 or 5 seeds'),
    ([0, 0], 'no run is done'),
  ],
)
def test_a_title_says_what_is_drawn(counts, text):
  assert drawing.sample(counts) == text


def test_a_series_without_runs_is_one_line(five_seeds, tmp_path):
  series = [{'label': 'layer', 'where': {'model.norm.name': 'layer_norm'}}]
  figure = dataclasses.replace(FIGURE, series=series)
  with pytest.raises(errors.UserError, match="of the series 'layer'"):
    figure.draw(five_seeds, tmp_path)


def test_missing_matplotlib_is_one_line(five_seeds, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[plots\]'"):
    FIGURE.draw(five_seeds, tmp_path)
