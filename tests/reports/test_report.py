"""The command, from its flags to its files, on workdirs of fake runs."""

import os
import pathlib
import subprocess
import sys

import pytest
import rich.console

from bn_research import errors
from bn_research.reports import claims, writing

NAN = float('nan')
ROOT = pathlib.Path(__file__).parents[2]

_CONFIG = """
import ml_collections

def get_config(arg='short'):
  return ml_collections.ConfigDict({
    'seed': 0,
    'num_steps': {'short': 1000, 'long': 2000}[arg],
    'batch_size': 60,
    'model': {'norm': {'name': 'batch_norm'}},
  })

def sweep():
  return [{'model.norm.name': 'none', 'seed': 0}]

def report():
  none = {'model.norm.name': 'none'}
  return {
    'figures': [{
      'name': 'plot',
      'series': [{'label': 'none', 'where': none}],
      'panels': [{'name': 'curves', 'metric': 'test_accuracy'}],
    }],
    'claims': [{
      'claim': 'a thing', 'source': 'paper', 'published': 'plot',
      'measured': 'accuracy', 'this': none, 'that': none, 'expected': 'higher',
      'measure': {'name': 'final', 'metric': 'test_accuracy'},
    }],
  }
"""


@pytest.fixture
def command(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(_CONFIG)

  def run(directory, *flags, variant='short'):
    return subprocess.run(
      [
        *(sys.executable, '-m', 'bn_research.report'),
        *(f'--config={config}:{variant}', f'--workdir={directory}', *flags),
      ],
      cwd=ROOT,
      env={**os.environ, 'LC_ALL': 'C.UTF-8'},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def test_the_command_says_where_it_put_what(command, fake_run, tmp_path):
  for seed in range(5):
    fake_run('none', seed)
  result = command(tmp_path)
  assert result.returncode == 0, result.stderr
  for kind in ('png', 'pdf'):
    path = tmp_path / 'report' / f'plot.{kind}'
    assert path.stat().st_size > 1000
    assert str(path) in result.stdout.splitlines()
  assert 'does not hold' in result.stdout  # nothing is above itself


def test_an_empty_workdir_is_one_line(command, tmp_path):
  result = command(tmp_path)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith(f'error: {tmp_path} has no runs; train some with')


def test_runs_of_another_variant_are_one_line(command, fake_run, tmp_path):
  path = fake_run('none', 0)
  result = command(tmp_path, variant='long')
  assert (result.returncode, result.stdout) == (2, '')
  (line,) = result.stderr.splitlines()
  assert line.startswith(
    f'error: {path} holds a run of another config'
    ' (num_steps=1000 there and 2000 here); give the --config'
  )
  result = command(tmp_path, '--config.num_steps=1000', variant='long')
  assert result.returncode == 0, result.stderr


def figure(name, *labels):
  """A figure whose series have the labels."""
  where = {'seed': 0}
  return {
    'name': name,
    'series': [{'label': label, 'where': where} for label in labels],
    'panels': [{'name': 'curves', 'metric': 'test_accuracy'}],
  }


def with_option(**options):
  return {'figures': [{**figure('a', 'x'), **options}]}


def of_series(spec):
  return with_option(series=[spec])


def of_claim(**changes):
  claim = {
    **{'claim': 'a', 'source': 'b', 'published': 'c', 'measured': 'd'},
    **{'measure': {'name': 'final'}, 'this': {}, 'that': {}},
    'expected': 'higher',
  }
  return {'claims': [claim | changes]}


@pytest.mark.parametrize(
  ('report', 'message'),
  [
    ({'figure': []}, "report.. returns 'figure'; it may return"),
    ({'figures': [{'name': 'a'}]}, "'figure' needs the option 'series'"),
    ({'claims': [{'claim': 'a', 'by': 1}]}, r'claim.*'),
    ({'claims': None}, 'claims is a NoneType; give a list'),
    ({'figures': {'name': 'a'}}, 'figures is a dict; give a list'),
    ({'figures': [figure('../../evil', 'x')]}, 'is no name of a file'),
    ({'figures': [figure('', 'x')]}, 'is no name of a file'),
    (
      {'figures': [figure('a', 'x'), figure('a', 'x')]},
      "two figures have the name 'a'",
    ),
    ({'figures': [figure('a')]}, 'has no series, or no panel'),
    ({'figures': [figure('a', 'x', 'x')]}, "two series have the label 'x'"),
    ({'claims': {}}, 'claims is a dict; give a list'),
    ({'claims': 'abc'}, 'claims is a str; give a list'),
    ({'claims': [None]}, 'claims has None in its list; give a dict'),
    ({'figures': ['abc']}, "figures has 'abc' in its list; give a dict"),
    ({'figures': [figure('a/b', 'x')]}, 'is no name of a file'),
    ({'figures': [figure('a', None)]}, 'no dict with a text `label`'),
    (of_series({'label': 'x'}), 'and a dict `where`'),
    (of_series({'label': 'x', 'where': 'seed'}), 'and a dict `where`'),
    (of_series({'where': {}}), 'no dict with a text `label`'),
    (of_series('x'), "the series 'x' is no dict"),
    (with_option(panels=[]), 'has no series, or no panel'),
    (with_option(size=(1, 2, 3)), r'size=\(1, 2, 3\) is not 2 positive'),
    (with_option(size=(NAN, 2)), r'size=\(nan, 2\) is not 2 positive'),
    (with_option(size=(0, 2)), r'size=\(0, 2\) is not 2 positive'),
    (with_option(size=3), 'size=3 is not 2 positive'),
    (with_option(width_ratios=(1, 2)), 'is not 1 positive'),
    (with_option(width_ratios=(NAN,)), 'is not 1 positive'),
    (of_claim(this='none'), "this='none' in a claim is no dict"),
    (of_claim(measure=['final']), r"measure=\['final'\] in a claim is no dict"),
  ],
)
def test_a_wrong_report_is_one_line(report, message, five_seeds, tmp_path):
  del five_seeds
  with pytest.raises(errors.UserError, match=message):
    writing.write(report, str(tmp_path), [{}], set())


def test_brackets_in_a_claim_are_text(five_seeds):
  claim = claims.Claim(
    'a [/b] claim',
    's',
    'p',
    'm',
    {'name': 'final', 'metric': 'test_accuracy'},
    {'model.norm.name': 'batch_norm'},
    {'model.norm.name': 'none'},
    'higher',
  )
  console = rich.console.Console(width=200)
  with console.capture() as capture:
    console.print(claims.table([claims.check(claim, five_seeds)]))
  assert 'a [/b] claim' in capture.get()
