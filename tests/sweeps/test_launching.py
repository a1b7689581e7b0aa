"""Launches by a template: what is filled, what is launched again."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from bn_research import errors, locking, workdir
from bn_research.sweeps import launching, points

ROOT = pathlib.Path(__file__).parents[2]
NOTE = (
  'import json, pathlib, sys; '
  'file = open(sys.argv[1], "a"); print(json.dumps(sys.argv[2:]), file=file)'
)


@pytest.fixture
def notes(tmp_path):
  """A launcher that notes its arguments, and a function that reads them."""
  path = tmp_path / 'notes'

  def read():
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]

  return [sys.executable, '-c', NOTE, str(path)], read


def point(tmp_path, name, *command):
  return points.Point(name, tmp_path / name, command, {'num_steps': 1})


def test_a_template_is_split_first_and_filled_then(tmp_path, notes):
  launcher, read = notes
  run = point(tmp_path, "it's,$HOME", 'python', '-m', 'x', '--a=b c', "--d='1'")
  template = launching.split(
    f'{shlex.join(launcher)} --name={{name}} --wrap="cd /tmp && {{command}}"'
    ' {arguments} {workdir} {{{{literal}}}}'
  )
  assert launching.launch([run], launching.command(template), 0) == 0
  ((name, wrap, arguments, folder, braces),) = read()
  assert re.fullmatch('--name=it-s-home-[0-9a-f]{8}', name)
  assert wrap == f'--wrap=cd /tmp && {shlex.join(run.command)}'
  assert shlex.split(arguments) == list(run.command[1:])
  assert folder == str(run.workdir)
  assert braces == '{{literal}}'


def test_only_what_nothing_trains_is_launched(tmp_path, notes, capsys):
  launcher, read = notes
  runs = [
    point(tmp_path, name)
    for name in ('done', 'diverged', 'failed', 'left', 'held', 'new')
  ]
  for run in runs[:3]:
    workdir.write_status(run.workdir, workdir.Status(run.name, 1))
  workdir.write_status(runs[3].workdir, workdir.Status())
  call = launching.command([*launcher, '{workdir}'])

  def launch(seconds, **options):
    assert launching.launch(runs, call, seconds, **options) == 0
    return [pathlib.Path(folder).name for (folder,) in read()]

  with locking.exclusive(runs[4].workdir):
    assert launch(3600) == ['left', 'new']
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == '2 launched, 1 training; 3 of 6 over'
    # They wait in the queue of the scheduler.
    assert launch(3600) == []
    out = capsys.readouterr().out
    assert out.splitlines() == ['2 queued, 1 training; 3 of 6 over']
    assert launch(0) == ['left', 'new']
  assert launch(3600, retry=True) == ['failed', 'held']


def test_a_launch_that_fails_is_told_and_tried_again(tmp_path, notes, capsys):
  run = point(tmp_path, 'run')
  missing = launching.command(['/no/such/launcher'])
  failing = [sys.executable, '-c', 'raise SystemExit("no partition x")']
  assert launching.launch([run], launching.command(failing), 3600) == 1
  assert 'failed to launch run: no partition x' in capsys.readouterr().out
  assert launching.launch([run], missing, 3600) == 1
  out = capsys.readouterr().out
  assert 'failed to launch run: /no/such/launcher: No such file' in out
  launcher, read = notes
  assert launching.launch([run], launching.command(launcher), 3600) == 0
  assert len(read()) == 1


def test_runs_that_are_launched_together_succeed_or_fail_together(
  tmp_path, capsys
):
  runs = [point(tmp_path, name) for name in 'abc']
  workdir.write_status(runs[1].workdir, workdir.Status(workdir.DONE, 1))
  calls = []

  def launch(reason):
    def launcher(points):
      calls.append([point.name for point in points])
      return reason

    return launching.launch(runs, launcher, 3600, together=True)

  assert launch('no room') == 1
  assert 'failed to launch c: no room' in capsys.readouterr().out
  assert [launch(''), launch('')] == [0, 0]
  assert calls == [['a', 'c'], ['a', 'c']]
  assert capsys.readouterr().out.splitlines()[-1] == '2 queued; 1 of 3 over'


TEMPLATES = {
  'sbatch': 'sbatch --job-name={name} --time=1:00:00 --wrap="{command}"',
  'xpk': (
    'xpk workload create --workload {name} --cluster C --tpu-type=v6e-1'
    ' --docker-image IMG --storage=shared --command "python {arguments}"'
  ),
  'sky': (
    'sky jobs launch docs/cluster/sky.yaml --yes --detach-run --name {name}'
    ' --env "ARGUMENTS={arguments}"'
  ),
  'kubectl': (
    'kubectl create job {name} --image=IMG -- bash -c "python {arguments}"'
  ),
}


@pytest.mark.parametrize('name', TEMPLATES)
def test_the_templates_of_schedulers_fit(name, tmp_path, monkeypatch):
  # A program of this name is first in the path.
  program = tmp_path / name
  program.write_text(
    f'#!{sys.executable}\nimport json, sys\n'
    f'json.dump(sys.argv[1:], open({str(tmp_path / "found")!r}, "w"))\n'
  )
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  run = point(tmp_path, 'seed=0', sys.executable, '-m', 'x', "--a='1'")
  call = launching.command(launching.split(TEMPLATES[name]))
  assert launching.launch([run], call, 0) == 0
  found = json.loads((tmp_path / 'found').read_text())
  whole = ' '.join(found)
  assert '{' not in whole
  # The whole command is within a single argument.
  arguments = shlex.join(run.command[1:])
  assert sum(arguments in argument for argument in found) == 1


@pytest.mark.parametrize(
  ('text', 'seconds'), [('90s', 90), ('1.5m', 90), ('1h', 3600), ('2d', 172800)]
)
def test_times(text, seconds):
  assert launching.seconds_of(text) == seconds


@pytest.mark.parametrize(
  ('function', 'text', 'message'),
  [
    (launching.split, 'sbatch run.sh', 'no {command}; for example'),
    (launching.split, 'a {command} {nam}', 'has {nam}; the fields are {name}'),
    (launching.split, 'a {command} {}', 'has {}; the fields'),
    (launching.split, 'a "{command}', 'No closing quotation'),
    (launching.split, 'a {command', "expected '}'"),
    (launching.seconds_of, '1 hour', 'give a time such as 30m'),
    (launching.seconds_of, '10', 'give a time such as 30m'),
  ],
)
def test_mistakes_are_one_line(function, text, message):
  with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
    function(text)
  assert '\n' not in str(caught.value)


def test_names_of_jobs_are_those_of_kubernetes_and_xpk():
  long = 'model.norm.name=batch_norm,' * 9
  names = [
    launching.job_name(name)
    for name in ('a=1', 'a=1.0', 'A=1', '___', '1-a', long, f'{long}x')
  ]
  assert len(set(names)) == len(names)
  for name in names:
    assert len(name) < 40
    assert re.fullmatch('[a-z]([a-z0-9-]*[a-z0-9])?', name)


_CONFIG = """
from bn_research import experiment, grid

def get_config():
  return experiment.config({
    'model.widths': (4,), 'num_steps': 40, 'checkpoint_seconds': 0.0,
  })

def sweep():
  return grid.seeds(4)
"""
# Every second job dies at its first checkpoint, or before.
_LAUNCHER = """
import os, pathlib, shlex, signal, subprocess, sys, time
counter, workdir, command = sys.argv[1:]
with open(counter, 'a') as file:
  file.write('.')
if os.fork():
  sys.exit(0)
os.setsid()
null = subprocess.DEVNULL
files = dict(stdin=null, stdout=null, stderr=null)
job = subprocess.Popen(shlex.split(command), **files)
if os.stat(counter).st_size % 2:
  folder = pathlib.Path(workdir, 'checkpoints')
  while job.poll() is None and not any(folder.glob('[0-9]*')):
    time.sleep(0.01)
  job.send_signal(signal.SIGKILL)
job.wait()
"""


@pytest.mark.slow
def test_jobs_that_die_are_launched_again_to_the_same_bits(tmp_path):
  config, launcher = tmp_path / 'config.py', tmp_path / 'launcher.py'
  config.write_text(_CONFIG)
  launcher.write_text(_LAUNCHER)
  counter = tmp_path / 'counter'

  def sweep(folder, *flags):
    result = subprocess.run(
      [
        *(sys.executable, '-m', 'bn_research.sweep', f'--config={config}'),
        *(f'--workdir={tmp_path / folder}', *flags),
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

  sweep('local')
  launch = f'{sys.executable} {launcher} {counter} {{workdir}} "{{command}}"'
  deadline = time.monotonic() + 300
  while '4 of 4 over' not in sweep('far', f'--launch={launch}', '--queued=0s'):
    assert time.monotonic() < deadline
    time.sleep(1)
    while any(locking.is_held(path) for path in (tmp_path / 'far').iterdir()):
      time.sleep(0.2)
  assert os.stat(counter).st_size > 4
  for path in (tmp_path / 'local').iterdir():
    rows, others = (
      [
        {key: value for key, value in row.items() if key != 'seconds'}
        for row in workdir.read_metrics(tmp_path / folder / path.name)
      ]
      for folder in ('local', 'far')
    )
    assert rows == others
    assert rows[-1]['step'] == 40
