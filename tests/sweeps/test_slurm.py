"""Arrays of Slurm: by stand-ins for its programs, and as local processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from bn_research import errors, workdir
from bn_research.sweeps import launching, points, pool, slurm

ROOT = pathlib.Path(__file__).parents[2]
TIME = 'timeout_min=60'


@pytest.fixture(autouse=True)
def _submitit():
  pytest.importorskip('submitit', reason='the extra [slurm] is not installed')


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """A folder for programs that come first in the path."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)

  def write(name, text):
    (folder / name).write_text(f'#!{sys.executable}\n{text}')
    (folder / name).chmod(0o755)

  return write


@pytest.fixture
def sbatch(programs, tmp_path):
  """A stand-in for Slurm, and a function that reads the last batch file."""
  programs('srun', '')
  programs(
    'sbatch',
    'import pathlib, sys\n'
    f'path = pathlib.Path({str(tmp_path)!r}, "batch")\n'
    'path.write_text(pathlib.Path(sys.argv[1]).read_text())\n'
    'print("Submitted batch job 12")\n',
  )

  def read():
    lines = (tmp_path / 'batch').read_text().splitlines()
    (tmp_path / 'batch').unlink()
    return [line for line in lines if line.startswith('#SBATCH')]

  return read


def array(tmp_path, text=TIME, **options):
  return slurm.Array(text, slurm.folder(str(tmp_path / 'runs')), **options)


def point(tmp_path, name, script='', *arguments):
  run = tmp_path / 'runs' / name
  command = (sys.executable, '-S', '-c', script, str(run), *arguments)
  return points.Point(name, run, command, {'num_steps': 1})


def test_an_array_has_what_nothing_trains(sbatch, tmp_path, capsys):
  runs = [point(tmp_path, name) for name in 'abcd']
  workdir.write_status(runs[1].workdir, workdir.Status(workdir.DONE, 1))
  text = f'{TIME},partition=gpu,gpus_per_node=a100:2,array_parallelism=8'

  def launch(seconds):
    call = array(tmp_path, text).submit
    assert launching.launch(runs, call, seconds, together=True) == 0
    return capsys.readouterr().out.splitlines()

  assert launch(3600)[-1] == '3 launched; 1 of 4 over'
  found = sbatch()
  for option in (
    *('array=0-2%3', 'partition=gpu', 'gpus-per-node=a100:2', 'time=60'),
    *('job-name=runs', 'signal=USR2@90'),
  ):
    assert f'#SBATCH --{option}' in found
  # They wait in the queue.
  assert launch(3600) == ['3 queued; 1 of 4 over']
  assert not (tmp_path / 'batch').exists()
  workdir.write_status(runs[0].workdir, workdir.Status(workdir.DONE, 1))
  assert launch(0)[-1] == '2 launched; 2 of 4 over'
  assert '#SBATCH --array=0-1%2' in sbatch()


def test_an_array_that_slurm_refuses_is_told(
  sbatch, programs, tmp_path, capsys
):
  programs('sbatch', 'raise SystemExit("error: invalid partition: gpx")')
  runs = [point(tmp_path, name) for name in 'ab']
  call = array(tmp_path).submit
  assert launching.launch(runs, call, 3600, together=True) == 1
  out = capsys.readouterr().out.splitlines()
  assert re.fullmatch('failed to launch a: .*invalid partition: gpx.*', out[0])
  assert out[-1] == '2 failed to launch; 0 of 2 over'
  assert not (runs[0].workdir / launching.FILE).exists()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('partition=gpu', 'has no timeout_min, and submitit would end each run'),
    (f'{TIME},partitin=gpu', "partitin=gpu: Unknown argument 'partitin'"),
    (f'{TIME},gpu', "'gpu' is no name=value; give a list such as partition="),
  ],
)
def test_a_wrong_option_is_one_line(text, message, sbatch, tmp_path):
  with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
    array(tmp_path, text)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'runs').exists()


def test_a_machine_without_slurm_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(errors.UserError, match='call it on a login node'):
    array(tmp_path)


# A run that saves at SIGTERM, and dies of any other signal.
_SAVES = """
import json, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
with open(here / 'starts', 'a') as file:
  file.write('.')
def save(*_):
  (here / 'saved').touch()
  sys.exit(0)
signal.signal(signal.SIGTERM, save)
print('begun', flush=True)
if sys.argv[2] == 'wait' and not (here / 'saved').exists(): time.sleep(60)
fields = dict(status='done', step=1, reason='')
(here / 'status.json').write_text(json.dumps(fields))
"""


def within(seconds, condition):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def below(pid):
  for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    for child in map(int, path.read_text().split()):
      yield child
      yield from below(child)


@pytest.fixture
def local(tmp_path, monkeypatch):
  """An array of processes of this machine, which need no package installed."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)
  return array(tmp_path, cluster='local')


@pytest.mark.slow
def test_an_array_of_local_jobs_trains(local, tmp_path):
  runs = [point(tmp_path, name, _SAVES, 'go') for name in 'ab']
  assert launching.launch(runs, local.submit, 3600, together=True) == 0
  for job in local.jobs:
    job.result()
  for run in runs:
    assert run.read_status().status == workdir.DONE
    assert 'begun' in (run.workdir / pool.LOG).read_text()


@pytest.mark.slow
def test_a_job_that_is_preempted_saves_and_is_queued_again(local, tmp_path):
  run = point(tmp_path, 'a', _SAVES, 'wait')
  assert launching.launch([run], local.submit, 3600, together=True) == 0
  log = run.workdir / pool.LOG
  within(60, lambda: log.exists() and 'begun' in log.read_text())
  (job,) = local.jobs
  # Slurm signals all processes of a job.
  for pid in below(job._process.pid):
    line = pathlib.Path(f'/proc/{pid}/cmdline').read_text()
    if 'submitit.core._submit' in line or str(run.workdir) in line:
      os.kill(pid, signal.SIGUSR2)
  job.result()
  assert (run.workdir / 'saved').exists()
  assert (run.workdir / 'starts').stat().st_size == 2
  assert run.read_status().status == workdir.DONE


@pytest.mark.slow
def test_a_job_whose_run_fails_has_failed(local, tmp_path):
  run = point(tmp_path, 'a', 'raise SystemExit(3)')
  assert launching.launch([run], local.submit, 3600, together=True) == 0
  (job,) = local.jobs
  with pytest.raises(Exception, match='exit status 3; see'):
    job.result()


@pytest.mark.slow
def test_the_command_submits_the_points(sbatch, tmp_path):
  config = f'{ROOT}/configs/ioffe2015_fig1.py:quick'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bn_research.sweep', f'--config={config}'),
      *(f'--workdir={tmp_path / "runs"}', '--only=*seed=[01]'),
      *('--engine=slurm', f'--slurm={TIME}'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.splitlines()[-1] == '4 launched; 0 of 4 over'
  assert '#SBATCH --array=0-3%4' in sbatch()
