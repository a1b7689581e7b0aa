"""Tables of measures against hand-made numbers."""

import io

import numpy as np
import pytest
import rich.console

from bn_research import errors, registry, workdir
from bn_research.reports import measures, runs, summary, writing

WITHOUT = {'model.norm.name': 'none'}
WITH = {'model.norm.name': 'batch_norm'}
SPEC = {
  'name': 'figure3',
  'series': [
    {'label': 'without', 'where': WITHOUT},
    {'label': 'with', 'where': WITH},
  ],
  'columns': {
    'steps': {
      'name': 'reach',
      'metric': 'test_accuracy',
      'level': {'series': 'without', 'name': 'best', 'metric': 'test_accuracy'},
    },
    'best': {'name': 'best', 'metric': 'test_accuracy'},
  },
  'published': {'with': {'steps': '2.1e6 (paper)'}},
}


def table(**changes):
  return registry.call('report()', summary.Table, 'table', {**SPEC, **changes})


def rows_of(curves, monkeypatch, tmp_path, fake_run):
  """The rows of a table for curves by norm and seed, at steps 0, 10, 20, 30."""
  for norm, by_seed in curves.items():
    for seed in range(len(by_seed)):
      fake_run(norm, seed)

  def metric(run, *args):
    del args
    values = curves[run.value('model.norm.name')][run.value('seed')]
    return np.asarray([0, 10, 20, 30]), np.asarray(values)

  monkeypatch.setattr(measures, 'series', metric)
  return table().fill(runs.load(str(tmp_path)))


def test_the_level_is_of_another_series_with_the_same_seed(
  monkeypatch, tmp_path, fake_run
):
  curves = {
    # The levels are 0.7 and 0.5.
    'none': [[0.1, 0.2, 0.7, 0.4], [0.1, 0.3, 0.5, 0.5]],
    'batch_norm': [
      [0.1, 0.6, 0.7, 0.9],
      [0.1, 0.5, 0.59, 0.61],
      [0.1, 0.2, 0.3, 0.4],  # No run of this seed is without a norm.
    ],
  }
  rows = rows_of(curves, monkeypatch, tmp_path, fake_run)
  assert rows == [
    {
      'figure3': 'without',
      'steps': '20 [20, 20]',
      'steps, published': '',
      'best': '0.6 [0.5, 0.7]',
      'best, published': '',
    },
    {
      'figure3': 'with',
      'steps': '15 [10, 20], 1 without a level',
      'steps, published': '2.1e6 (paper)',
      'best': '0.6367 [0.4, 0.9]',
      'best, published': '',
    },
  ]


def test_a_series_that_never_reaches_the_level_says_so(
  monkeypatch, tmp_path, fake_run
):
  curves = {
    'none': [[0.1, 0.2, 0.7, 0.4]],
    'batch_norm': [[0.1, 0.2, 0.3, 0.4]],
  }
  rows = rows_of(curves, monkeypatch, tmp_path, fake_run)
  assert rows[1]['steps'] == 'none of 1 runs'


def test_a_missing_level_is_not_a_missed_level(monkeypatch, tmp_path, fake_run):
  curves = {'none': [[0.1, 0.2, 0.7, 0.4]], 'batch_norm': [[0, 0, 0, 0]] * 2}
  rows = rows_of(curves, monkeypatch, tmp_path, fake_run)
  assert rows[1]['steps'] == 'none of 1 runs, 1 without a level'


def test_runs_without_numbers_are_counted(tmp_path, fake_run):
  for seed in range(2):
    fake_run('none', seed)
  fake_run('batch_norm', 0, status=workdir.DIVERGED)
  rows = table(published={}).fill(runs.load(str(tmp_path)))
  assert rows[1]['figure3'] == 'with (1 diverged)'
  assert rows[1]['steps'] == rows[1]['best'] == 'no run is done'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'a/b'}, 'no name of a file'),
    ({'name': 'claims'}, 'another export'),
    ({'published': {'wiht': {'steps': '1'}}}, "did you mean 'with'"),
    ({'published': {'with': {'step': '1'}}}, "did you mean 'steps'"),
    ({'series': [{'label': 'x'}]}, 'no dict with a text'),
  ],
)
def test_mistakes_in_a_table_are_told(changes, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    table(**changes)
  assert '\n' not in str(caught.value)


def test_a_level_of_an_unknown_series_is_told_before_a_run():
  level = {'series': 'witout', 'name': 'best', 'metric': 'test_accuracy'}
  columns = {'steps': {**SPEC['columns']['steps'], 'level': level}}
  with pytest.raises(errors.UserError, match="did you mean 'without'"):
    table(columns=columns, published={})


def test_a_report_prints_and_exports_its_tables(fake_run, tmp_path, capsys):
  points = []
  for norm in ('none', 'batch_norm'):
    for seed in range(2):
      path = fake_run(norm, seed)
      points.append(workdir.read_record(path)['config'])
  swept = {'seed', 'model.norm.name'}
  writing.write({'tables': [SPEC]}, str(tmp_path), points, swept, ['csv'])
  out = capsys.readouterr().out
  assert 'figure3' in out
  assert '2.1e6 (paper)' in out
  text = (tmp_path / 'report' / 'figure3.csv').read_text()
  assert text.startswith('figure3,steps,"steps, published",best')
  with pytest.raises(errors.UserError, match='two tables'):
    writing.write({'tables': [SPEC] * 2}, str(tmp_path), points, swept)


def test_brackets_are_no_markup():
  file = io.StringIO()
  console = rich.console.Console(file=file, width=80)
  console.print(summary.of_terminal([{'a': '1 [2, 3]'}]))
  assert '1 [2, 3]' in file.getvalue()
