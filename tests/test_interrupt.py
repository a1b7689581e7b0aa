"""Ctrl-C while a command starts: no traceback, and no lost signal."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bn_research import interrupt

ROOT = pathlib.Path(__file__).parents[1]
CTRL_C = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)\n'
# A shell starts background jobs with an ignored SIGINT, and a process inherits
# the signals of its parent. This program gives SIGINT its default action, and
# becomes the command. A `preexec_fn` needs a fork, and JAX warns of a fork.
WITH_CTRL_C = (
  'import os, signal, sys\n'
  'signal.signal(signal.SIGINT, signal.SIG_DFL)\n'
  'os.execv(sys.argv[1], sys.argv[1:])\n'
)


@pytest.fixture
def interrupted_at(tmp_path):
  """Runs a command that gets Ctrl-C when it imports a module."""

  def run(module, *command):
    (tmp_path / f'{module}.py').write_text(CTRL_C + 'raise ImportError\n')
    return subprocess.run(
      [sys.executable, '-c', WITH_CTRL_C, sys.executable, *command],
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.mark.parametrize(
  ('module', 'command'),
  [
    ('absl', ['train', '--config=configs/ioffe2015_fig1.py']),
    ('jax', ['train', '--config=configs/ioffe2015_fig1.py:quick']),
    ('absl', ['sweep']),
    ('rich', ['report']),
    ('jax', ['data', 'digits']),
    ('jax', ['norms']),
  ],
)
def test_a_starting_command_ends_in_silence(
  module, command, interrupted_at, tmp_path
):
  name, *arguments = command
  if name == 'train':
    arguments.append(f'--workdir={tmp_path}/run')
  done = interrupted_at(module, '-m', f'bn_research.{name}', *arguments)
  assert done.returncode in (-signal.SIGINT, 130)
  assert (done.stdout, done.stderr) == ('', '')


def test_a_program_of_the_user_keeps_its_exceptions(interrupted_at, tmp_path):
  (tmp_path / 'program.py').write_text(
    'import bn_research\ntry:\n  import ctrl_c\n'
    'except KeyboardInterrupt:\n  print("caught")\n'
  )
  (tmp_path / 'a_package').mkdir()
  (tmp_path / 'a_package' / '__init__.py').write_text('import bn_research\n')
  program = (tmp_path / 'program.py').read_text()
  (tmp_path / 'a_package' / 'program.py').write_text(program)
  for command in (
    [str(tmp_path / 'program.py')],
    ['-m', 'program'],
    ['-m', 'a_package.program'],
    ['-c', program],
  ):
    done = interrupted_at('ctrl_c', *command)
    assert (done.returncode, done.stdout) == (0, 'caught\n'), done.stderr


@pytest.mark.parametrize('handler', [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_is_ignored_stays_ignored(handler):
  previous = signal.signal(signal.SIGINT, handler)
  try:
    interrupt.end_the_process()
    assert signal.getsignal(signal.SIGINT) == handler
    interrupt.raise_an_exception()
    is_raised = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert is_raised == (handler == signal.SIG_DFL)
  finally:
    signal.signal(signal.SIGINT, previous)
