"""An engine that trains many runs in one process."""

import copy
import json
import pathlib
import subprocess
import sys

import pytest

from bn_research import experiment, workdir
from bn_research.sweeps import packs, points, pool, processes

ROOT = pathlib.Path(__file__).parents[2]


def point(tmp_path, name, **changes):
  config = experiment.base().to_dict()
  for key, value in changes.items():
    section, _, last = key.rpartition('__')
    (config[section] if section else config)[last] = value
  config = json.loads(json.dumps(config))
  return points.Point(name, tmp_path / name, ('train', name), config)


@pytest.mark.parametrize(
  ('changes', 'is_same'),
  [
    ({'seed': 3}, True),
    ({'optimizer__learning_rate': 0.2}, True),
    ({'label_smoothing': 0.1, 'checkpoint_seconds': 1.0}, True),
    ({'num_steps': 999}, False),
    ({'batch_size': 61}, False),
    ({'optimizer__name': 'adam'}, False),
    ({'optimizer__momentum': 0.9}, False),
    ({'model__widths': [3, 4]}, False),
    ({'data__binarize': 0.5}, False),
  ],
)
def test_which_configs_may_be_a_pack(tmp_path, changes, is_same):
  one, two = point(tmp_path, 'a'), point(tmp_path, 'b', **changes)
  assert (packs.form(one.config) == packs.form(two.config)) == is_same


def test_numbers_of_data_and_true_are_no_numbers(tmp_path):
  one, two = (
    point(tmp_path, 'a', data__binarize=value) for value in (0.5, 0.6)
  )
  assert packs.form(one.config) != packs.form(two.config)
  config = copy.deepcopy(one.config)
  config['model']['bias'] = True
  other = copy.deepcopy(config)
  other['model']['bias'] = False
  assert packs.form(config) != packs.form(other)


def test_what_cannot_be_in_a_pack_is_told(tmp_path, capsys):
  given = [
    point(tmp_path, 'fits'),
    point(tmp_path, 'two', num_devices=2),
    point(tmp_path, 'stream', data__stream={'threads': 2}),
  ]
  packed, rest = packs.divide(given)
  assert (packed, rest) == (given[:1], given[1:])
  assert capsys.readouterr().out.splitlines() == [
    'not in a pack: two: config.num_devices=2, and a pack gives 1',
    'not in a pack: stream: config.data.stream, and a pack has the data in'
    ' memory',
  ]


# A process in the place of `bn_research.pack`: ends runs as their names say.
FAKE = """
import json, os, pathlib, signal, sys
path = pathlib.Path(sys.argv[1])
request = json.loads(path.read_text())
runs = [run for group in request['groups'] for run in group]
with open(sys.argv[2], 'a') as file:
  print([run['workdir'].rsplit('/', 1)[1] for run in runs], file=file)
for run in runs:
  end = run['workdir'].rsplit('/', 1)[1].split('-')[1]
  status = {'good': 'done', 'nan': 'diverged'}.get(end)
  if status:
    pathlib.Path(run['workdir'], 'status.json').write_text(
      json.dumps({'status': status, 'step': 1000})
    )
  code = {'good': 0, 'nan': 3, 'mistake': 2}.get(end)
  if code == 2:
    with open(run['log'], 'a') as file:
      print('error: a wrong value', file=file)
  if code is not None:
    with open(path.with_suffix('.ended'), 'a') as file:
      print(json.dumps([run['workdir'], code]), file=file)
if 'kill' in str(runs):
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
  """Trains points by fake processes; returns outcomes, and runs by process."""
  (tmp_path / 'fake.py').write_text(FAKE)
  start, notes = processes.start, tmp_path / 'notes.txt'

  def fake(command, environment, log):
    program = (sys.executable, str(tmp_path / 'fake.py'))
    return start((*program, command[-1], str(notes)), environment, log)

  monkeypatch.setattr(processes, 'start', fake)

  def run(todo, count=1):
    folder = tmp_path / 'requests'
    folder.mkdir()
    request = {'folder': str(tmp_path), 'data_dir': None}
    engine = packs.Engine(todo, [{}] * count, request, folder)
    outcomes = []
    pool.run(todo, [{}] * len(todo), outcomes.append, start=engine.start)
    lines = notes.read_text().splitlines()
    return (
      {outcome.point.name: outcome for outcome in outcomes},
      [json.loads(line.replace("'", '"')) for line in lines],
    )

  return run


def test_each_run_has_its_own_outcome(tmp_path, train):
  names = ('a-good', 'b-nan', 'c-mistake', 'd-good')
  outcomes, calls = train([point(tmp_path, name) for name in names])
  assert calls == [list(names)]
  assert {name: one.status for name, one in outcomes.items()} == {
    'a-good': workdir.DONE,
    'b-nan': workdir.DIVERGED,
    'c-mistake': workdir.FAILED,
    'd-good': workdir.DONE,
  }
  assert outcomes['c-mistake'].reason == 'a wrong value'


def test_runs_of_a_killed_process_start_again_without_those_that_ended(
  tmp_path, train
):
  todo = [point(tmp_path, name) for name in ('a-good', 'b-kill', 'c-kill')]
  outcomes, calls = train(todo)
  assert calls == [['a-good', 'b-kill', 'c-kill'], *[['b-kill', 'c-kill']] * 2]
  assert outcomes['a-good'].status == workdir.DONE
  assert outcomes['b-kill'].status == pool.LOST
  assert 'SIGKILL 3 times' in outcomes['c-kill'].reason


def test_processes_share_the_runs_and_keep_alike_runs_together(tmp_path, train):
  todo = [point(tmp_path, f'{k}-good', batch_size=60 + k % 2) for k in range(6)]
  _, calls = train(todo, 2)
  assert sorted(calls) == [
    ['0-good', '2-good', '4-good'],
    ['1-good', '3-good', '5-good'],
  ]


CONFIG = """
from bn_research import experiment

def get_config(arg=''):
  return experiment.config(
    {'num_steps': 400, 'model.widths': (8,), 'eval.num_points': 4}
  )

def sweep():
  rates = [{'optimizer.learning_rate': 0.1 * k} for k in (1, 2)]
  return [*rates, {'num_devices': 2}, {'optimizer.learning_rate': -1.0}]
"""


@pytest.mark.slow
def test_a_sweep_of_packs(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(CONFIG)

  def sweep(*flags):
    command = [sys.executable, '-m', 'bn_research.sweep', *flags]
    given = [f'--config={config}', f'--workdir={tmp_path / "runs"}']
    return subprocess.run(
      [*command, *given], cwd=ROOT, capture_output=True, text=True, check=False
    )

  wrong = sweep('--pack')
  assert wrong.returncode == 2
  assert 'learning_rate=-1.0' in wrong.stderr
  assert not list(tmp_path.glob('runs/*/status.json'))
  result = sweep('--pack', '--only=*0.*')
  assert result.returncode == 0, result.stderr
  assert '2 done' in result.stdout
  for path in tmp_path.glob('runs/*/config.json'):
    start = json.loads(path.read_text())['starts'][0]
    assert start['pack']['width'] == 2
    assert start['command'][1:3] == ['-m', 'bn_research.train']
  assert len(list(tmp_path.glob('runs/*/events*'))) == 2
  rest = sweep('--pack', '--only=num_devices*')
  assert 'not in a pack: num_devices=2' in rest.stdout
  assert '1 done' in rest.stdout
