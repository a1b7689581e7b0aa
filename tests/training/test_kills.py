"""SIGKILL at random moments: a run ends as the undisturbed run ends.

Real commands train on the digits, and save a checkpoint after every chunk of
steps. A third of the kills comes at a random time after the start: while Python
starts, and while programs are compiled or loaded. A third comes at a random
time after a new checkpoint. The rest waits for a checkpoint that is being
written, and comes a random moment later. The numbers of kills are printed.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from bn_research import workdir

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not pathlib.Path('/proc/self/cmdline').exists(),
    reason='finds the process of a pack in /proc',
  ),
]

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'ioffe2015_fig1.py'
WRITING = 'orbax-checkpoint-tmp'
START, STEP, WRITE = 'start', 'step', 'write'
HALF = 'a checkpoint was half written'
TIMEOUT = 300


class Commands:
  """Starts commands on the same data, with a cache of programs."""

  def __init__(self, folder):
    self._folder = folder
    self._started = []

  def start(self, module, directory, *flags):
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', f'bn_research.{module}'),
        *(f'--config={CONFIG}:quick', f'--workdir={directory}'),
        *(f'--data_dir={self._folder}/data', *flags),
        '--config.checkpoint_seconds=0',
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=ROOT,
      # The request of a pack is a temporary file, whose path names the folder.
      env={
        **os.environ,
        'JAX_NUM_CPU_DEVICES': '1',
        'TMPDIR': str(self._folder),
        'XDG_CACHE_HOME': str(self._folder),
        'JAX_COMPILATION_CACHE_DIR': '',
      },
    )
    self._started.append(process)
    return process

  def packs(self):
    """Returns the processes that train packs."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
      with contextlib.suppress(OSError):  # The process has ended.
        words = pathlib.Path('/proc', pid, 'cmdline').read_text().split('\0')
        if 'bn_research.pack' in words and str(self._folder) in words[-2]:
          found.append(int(pid))
    return found

  def close(self):
    for process in self._started:
      process.kill()
      process.communicate()


@pytest.fixture
def commands(tmp_path):
  found = Commands(tmp_path)
  yield found
  found.close()


def checkpoints(folder):
  """Returns the checkpoints of a run, or of all runs of a sweep."""
  found = set()
  for run in (folder, *folder.glob('*')):
    with contextlib.suppress(OSError):  # Orbax removes folders meanwhile.
      found |= {
        f'{run.name}/{name}' for name in os.listdir(run / workdir.CHECKPOINTS)
      }
  return found


class Killer:
  """Waits for a random moment of a process, and sends SIGKILL."""

  def __init__(self, seed, folder, startup):
    """`startup` are the seconds from a start to the first checkpoint."""
    self._rng = random.Random(seed)
    self._folder = folder
    # The longest wait in seconds, after the event that a kill waits for.
    self._most = {START: startup, STEP: 0.3, WRITE: 0.1}
    self.number = 0
    self.hits = collections.Counter()

  def kill(self, pid, has_ended):
    """Kills a process; returns whether the process lived until then."""
    what = self._rng.choice([START, STEP, WRITE])
    if not self._wait_for(what, has_ended):
      return False
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      return False
    self.number += 1
    self.hits[what] += 1
    # Before the first save, the folder may hold what an earlier kill left.
    if what != START and any(WRITING in n for n in checkpoints(self._folder)):
      self.hits[HALF] += 1
    return True

  def _wait_for(self, what, has_ended):
    before = checkpoints(self._folder)
    seconds = self._rng.uniform(0, self._most[what])

    def is_there():
      new = checkpoints(self._folder) - before
      return what == START or any(
        (WRITING in name) == (what == WRITE) for name in new
      )

    while not is_there():
      if has_ended():
        return False
      time.sleep(0.002)
    time.sleep(seconds)
    return not has_ended()


def assert_whole(run):
  """Asserts that a run is done, with each row once and nothing half written."""
  assert workdir.read_status(run).status == workdir.DONE
  lines = (run / workdir.METRICS).read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == sorted(set(steps))
  names = {pathlib.Path(name).name for name in checkpoints(run)}
  assert len(names) == 2
  assert all(name.isdigit() for name in names)
  assert not list(run.glob('**/*.tmp*'))


def finish(process):
  """Returns the exit status and the output of a process."""
  out, _ = process.communicate(timeout=TIMEOUT)
  return process.returncode, out


def undisturbed(commands, module, directory, *flags):
  """Trains, and returns the seconds of a second start to its first checkpoint.

  The second start finds the compiled programs, as the starts after a kill do.
  """
  status, out = finish(commands.start(module, directory, *flags))
  assert status == 0, out
  again = directory.with_name('again')
  start = time.monotonic()
  process = commands.start(module, again, *flags)
  while not checkpoints(again):
    assert process.poll() is None, process.communicate()[0]
    if module == 'sweep' and not commands.packs():
      start = time.monotonic()
    time.sleep(0.01)
  process.terminate()
  process.communicate(timeout=TIMEOUT)
  return time.monotonic() - start


def test_a_run(commands, results, tmp_path):
  flags = '--config.num_steps=3000', '--config.eval.num_points=300'
  alone, killed = tmp_path / 'alone', tmp_path / 'killed'
  startup = undisturbed(commands, 'train', alone, *flags)
  killer, count = Killer(0, killed, startup), 36
  said = ''
  for _ in range(count):
    process = commands.start('train', killed, *flags)
    is_killed = killer.kill(process.pid, lambda: process.poll() is not None)  # noqa: B023
    status, out = finish(process)
    assert is_killed, f'{status}, {killer.hits}: {out}'
    said += out
  status, out = finish(commands.start('train', killed, *flags))
  assert status == 0, out
  assert 'damaged' not in said + out
  print(dict(killer.hits))
  assert_whole(killed)
  assert results(killed) == results(alone)
  assert killer.hits[HALF] > count / 6


def test_a_pack(commands, results, tmp_path):
  flags = (
    *('--pack', '--seeds=0:2', '--config.num_steps=800'),
    '--config.eval.num_points=80',
  )
  alone, killed = tmp_path / 'alone', tmp_path / 'killed'
  startup = undisturbed(commands, 'sweep', alone, *flags)
  killer, count = Killer(0, killed, startup), 24
  sweeps = 0
  while killer.number < count:
    process = commands.start('sweep', killed, *flags)
    sweeps += 1
    while process.poll() is None:
      for pid in commands.packs():
        killer.kill(pid, lambda: pid not in commands.packs())  # noqa: B023
      time.sleep(0.01)
    status, out = finish(process)
    assert status != 0, f'{killer.hits}: {out}'
    assert 'lost to SIGKILL 3 times' in out
  status, out = finish(commands.start('sweep', killed, *flags))
  assert status == 0, out
  print({'sweeps': sweeps, **killer.hits})
  runs = [path for path in alone.iterdir() if (path / workdir.STATUS).exists()]
  assert len(runs) == 4
  for run in runs:
    assert_whole(killed / run.name)
    assert results(killed / run.name) == results(run)
  assert killer.hits[HALF] > count / 6
