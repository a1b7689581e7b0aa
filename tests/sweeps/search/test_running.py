"""Searches over small programs in place of runs, and one over real runs."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bn_research import errors, grid, locking, workdir
from bn_research.sweeps import points, processes
from bn_research.sweeps.search import running, settings, trials

ROOT = pathlib.Path(__file__).parents[3]

# A run that counts its starts, and writes a row with the square of -x.
_RUN = """
import json, pathlib, sys, time
here, x = pathlib.Path(sys.argv[1]), float(sys.argv[2])
with open(here / 'starts', 'a') as file:
  file.write('.')
def row(step, value):
  with open(here / 'metrics.jsonl', 'a') as file:
    print(json.dumps({'step': step, 'test_accuracy': value}), file=file)
def end(status):
  fields = dict(status=status, step=1, reason='')
  (here / 'status.json').write_text(json.dumps(fields))
"""
_DONE = "row(1, -x * x); end('done')"


def search(directory, script=_DONE, **options):
  given = settings.Settings(
    {'x': grid.Uniform(-3.0, 3.0)}, 'test_accuracy', 'maximize', **options
  )

  def make(trial):
    run = pathlib.Path(directory, trial.name)
    x = str(trial.parameters['x'])
    command = (sys.executable, '-S', '-c', _RUN + script, str(run), x)
    return points.Point(trial.name, run, command, {'num_steps': 1})

  return running.Search(given, str(directory), make)


def run(found, count, jobs=1, **options):
  return running.run(found, count, [{}] * jobs, processes.start, **options)


def values_of(directory):
  return [trial.parameters['x'] for trial in trials.read(directory)]


def starts(directory):
  return [
    (directory / trial.name / 'starts').stat().st_size
    for trial in trials.read(directory)
  ]


@pytest.fixture(autouse=True)
def _optuna():
  pytest.importorskip('optuna', reason='the extra [search] is not installed')
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)


def test_a_search_prints_its_trials_and_the_best(tmp_path, capsys):
  assert run(search(tmp_path), 4) == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0] == '4 trials, 4 to do'
  assert out[-2] == '4 done'
  least = min(values_of(tmp_path), key=abs)
  assert f'test_accuracy={-least * least:.4g} x={least:.4g}' in out[-1]
  assert out[-1].startswith('best: trial=')


def test_the_worst_is_the_best_where_less_is_better(tmp_path):
  found = search(tmp_path)
  run(found, 4)
  less = dict(vars(found.settings), direction='minimize')
  found.settings = settings.Settings(**less)
  assert found.best().value == min(-x * x for x in values_of(tmp_path))


def test_a_search_goes_on_with_the_same_suggestions(tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  run(search(whole), 14)
  for count in (3, 3, 13, 14):
    run(search(parts), count)
  assert values_of(parts) == values_of(whole)
  assert starts(parts) == [1] * 14
  assert '3 trials, 0 to do' in capsys.readouterr().out


def test_a_trial_that_was_drawn_and_not_trained_is_trained_first(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  run(search(whole), 3)
  next(search(parts).new(1))  # and the process is killed
  run(search(parts), 3)
  assert values_of(parts) == values_of(whole)


def test_two_trials_train_at_a_time(tmp_path):
  script = (
    """
for _ in range(400):
  if len(list(here.parent.glob('*/starts'))) > 1: break
  time.sleep(0.025)
else: sys.exit(1)
"""
    + _DONE
  )
  assert run(search(tmp_path, script), 2, jobs=2) == 0


_SLOW = """
import signal
# Two runs are done before they notice the signal.
is_last = here.name == 'trial=2'
signal.signal(
  signal.SIGTERM, (lambda *_: sys.exit(0)) if is_last else signal.SIG_IGN
)
row(1, -x * x)
time.sleep(60 if is_last else 0.5)
end('done')
"""


def test_a_pruned_run_ends_early_and_does_not_start_again(tmp_path, capsys):
  # Each accuracy is below the limit: -3 <= x <= 3, and a limit of 1.
  pruner = {'name': 'ThresholdPruner', 'lower': 1.0, 'n_warmup_steps': 0}
  for _ in range(2):
    assert run(search(tmp_path, _SLOW, pruner=pruner), 3) == 0
  out = capsys.readouterr().out
  assert 'pruned   trial=2' in out
  assert '3 trials, 0 to do' in out
  assert starts(tmp_path) == [1, 1, 1]
  assert [trial.pruned for trial in trials.read(tmp_path)] == [1, 1, 1]
  states = [past.state for past in search(tmp_path, pruner=pruner).past()]
  assert states == [workdir.DONE, workdir.DONE, trials.PRUNED]
  assert len(trials.planned(tmp_path)) == 2


def test_a_trial_that_trains_is_read_again(tmp_path):
  found = search(tmp_path)
  (point,) = found.new(1)
  assert found.state(point.name) == workdir.INCOMPLETE
  (marked,) = trials.read(tmp_path)
  dataclasses.replace(marked, pruned=1).write(tmp_path)
  found.read()
  assert found.state(point.name) == trials.PRUNED
  workdir.write_status(point.workdir, workdir.Status(workdir.DONE, 1))
  assert found.state(point.name) == workdir.DONE


def test_failed_and_diverged_trials_are_told(tmp_path, capsys):
  script = """
if here.name == 'trial=0': end('diverged')
elif here.name == 'trial=1' and (here / 'starts').stat().st_size == 1:
  end('failed'); sys.exit(1)
else: row(1, 1.0); end('done')
"""
  assert run(search(tmp_path, script), 3) == 1
  assert '1 diverged, 1 failed, 1 done' in capsys.readouterr().out
  assert run(search(tmp_path, script), 3) == 1
  assert 'failed before: trial=1' in capsys.readouterr().out
  assert run(search(tmp_path, script), 3, retry=True) == 0
  assert starts(tmp_path) == [1, 2, 1]


def test_a_space_that_is_used_up_ends_the_search(tmp_path, capsys):
  found = search(tmp_path)
  space = {'x': grid.Choice((1.0, 2.0))}
  found.settings = settings.Settings(space, 'test_accuracy', 'maximize')
  assert run(found, 5) == 0
  assert 'no new values after 2 trials' in capsys.readouterr().out


def test_a_second_search_in_the_workdir_is_refused(tmp_path):
  with (
    locking.exclusive(tmp_path),
    pytest.raises(locking.Busy, match='another process is training'),
  ):
    run(search(tmp_path), 1)


@pytest.mark.parametrize(
  'text', ['', '[]', '{"number": 1, "parameters": {}}', '{"number": 0}']
)
def test_a_damaged_trial_is_one_line(text, tmp_path):
  (tmp_path / 'trial=0').mkdir()
  (tmp_path / 'trial=0' / trials.FILE).write_text(text)
  with pytest.raises(errors.UserError, match='remove the folder'):
    search(tmp_path)


def test_other_folders_are_no_trials(tmp_path):
  (tmp_path / 'trial=0,copy').mkdir()
  (tmp_path / 'trial=0,copy' / trials.FILE).write_text('{}')
  assert trials.read(tmp_path) == []


_CONFIG = """
from bn_research import experiment, grid

def get_config():
  return experiment.config({
    'model.widths': (4,), 'num_steps': 300, 'eval.num_points': 3,
    'checkpoint_seconds': 0.2,
  })

def search():
  return {
    'space': {
      'optimizer.learning_rate': grid.LogUniform(0.001, 1.0),
      'model.widths': grid.Choice(((4,), (8, 8))),
    },
    'objective': OBJECTIVE,
    'direction': 'maximize',
    'sampler': {'name': 'TPESampler', 'n_startup_trials': 2},
  }

def report():
  return {'tables': [{
    'name': 'all',
    'series': [{'label': 'all', 'where': {}}],
    'columns': {'best': {'name': 'best', 'metric': 'test_accuracy'}},
  }]}
"""


@pytest.fixture
def command(tmp_path):
  def start(folder, *flags, name='sweep', objective='test_accuracy'):
    config = tmp_path / 'config.py'
    config.write_text(_CONFIG.replace('OBJECTIVE', repr(objective)))
    return subprocess.Popen(
      [
        *(sys.executable, '-m', f'bn_research.{name}', f'--config={config}'),
        *(f'--workdir={tmp_path / folder}', *flags),
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.mark.parametrize(
  ('flags', 'objective', 'message'),
  [
    (['--search=0'], 'test_accuracy', 'flag --search=0'),
    (['--seeds=0:5'], 'test_accuracy', '--seeds is a flag for sweep()'),
    (['--launch={command}'], 'test_accuracy', '--launch is a flag for sweep()'),
    ([], 'tst_accuracy', "objective 'tst_accuracy' (did you mean"),
    (
      ['--config.optimizer.learning_rate=1'],
      'test_accuracy',
      '--config.optimizer.learning_rate is given and swept',
    ),
  ],
)
def test_a_mistake_is_one_line(flags, objective, message, command, tmp_path):
  process = command('a', '--search=2', *flags, objective=objective)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 2
  (line,) = error.splitlines()
  assert message in line
  assert not (tmp_path / 'a').exists()


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_to_the_same_bits(command, tmp_path):
  def end(folder, *flags, **options):
    process = command(folder, *flags, **options)
    out, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, '')
    return out

  whole = end('whole', '--search=5')
  killed = command('killed', '--search=5')
  deadline = time.monotonic() + 120
  while not (tmp_path / 'killed' / 'trial=2' / 'config.json').exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  killed.kill()
  killed.communicate(timeout=60)
  assert end('killed', '--search=5').splitlines()[-1] == whole.splitlines()[-1]
  for number in range(5):
    one, other = (
      [
        {key: value for key, value in row.items() if key != 'seconds'}
        for row in workdir.read_metrics(tmp_path / folder / f'trial={number}')
      ]
      for folder in ('whole', 'killed')
    )
    assert one == other
    assert one[-1]['step'] == 300
  found = [trials.read(tmp_path / folder) for folder in ('whole', 'killed')]
  assert found[0] == found[1]
  assert '5 done' in end('whole', '--search=5', '--status')
  out = end('whole', '--export=json', name='report')
  assert 'left out' not in out
