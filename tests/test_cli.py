import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]

CONFIG = """
from ml_collections import config_dict

def get_config(arg='small'):
  if arg not in ('small', 'large'):
    raise ValueError(f'unknown variant {arg!r}; have: small, large')
  config = config_dict.ConfigDict()
  config.seed = 0
  config.optimizer = {'name': 'sgd', 'learning_rate': 0.5}
  config.optimizer.momentum = config_dict.placeholder(float)
  config.widths = (3, 4)
  config.unset = config_dict.placeholder(int)
  return config
"""

COMMAND = '''
"""Shows its flags."""
import sys
from bn_research import cli, config_files, errors

_DATA_DIR = cli.define_data_dir()

def main():
  config = cli.CONFIG.value
  if config.seed == 13:
    raise errors.UserError('13 brings bad luck; choose another seed')
  if config.seed == 14:
    raise ZeroDivisionError('ours')
  assert config.is_locked
  assert 'jax' not in sys.modules
  assert config_files.module_of(cli.config_path()).get_config('large')
  print(cli.config_path(), cli.config_overrides(), cli.WORKDIR.value)
  print(config.widths, _DATA_DIR.value, flush=True)
  return config.seed

if __name__ == '__main__':
  cli.run(main)
'''


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'config.py').write_text(CONFIG)
  (tmp_path / 'command.py').write_text(COMMAND)

  def run(*flags, config='--config=config.py', stdout=subprocess.PIPE):
    first = [config] if config else []
    return subprocess.run(
      [sys.executable, 'command.py', *first, '--workdir=w', *flags],
      cwd=tmp_path,
      env={
        'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
        'HOME': '/home/ada',
      },
      stdout=stdout,
      stderr=subprocess.PIPE,
      text=True,
    )

  return run


def test_flags_reach_the_command(run):
  done = run(
    '--config.seed=3',
    '--config.widths=5,6',
    '--config.optimizer.momentum=0.9',
    '--data_dir=d',
    config='--config=config.py:large',
  )
  assert done.returncode == 3, done.stderr
  overrides = {'seed': 3, 'widths': (5, 6), 'optimizer.momentum': 0.9}
  assert done.stdout == f'config.py:large {overrides} w\n(5, 6) d\n'
  assert done.stderr == ''


def test_a_config_file_runs_once(run, tmp_path):
  (tmp_path / 'config.py').write_text(f'print("runs")\n{CONFIG}')
  done = run('--config.optimizer.b1=0.5')
  assert done.stdout.count('runs') == 1


def test_an_option_of_a_part_need_not_be_listed(run):
  done = run(
    '--config.optimizer.decay=1e-3',
    '--config.optimizer.bounds=(1, 2)',
    '--config.optimizer.limit=inf',
    '--config.optimizer.schedule=cosine',
    '--config.optimizer.schedule.alpha=0.1',
    '--config.optimizer=adam',
    '--config.optimizer.learning_rate=None',
  )
  assert done.returncode == 0, done.stderr
  overrides = {
    'optimizer.decay': 0.001,
    'optimizer.bounds': (1, 2),
    'optimizer.limit': float('inf'),
    'optimizer.schedule.name': 'cosine',
    'optimizer.schedule.alpha': 0.1,
    'optimizer.name': 'adam',
    'optimizer.learning_rate': None,
  }
  assert done.stdout.splitlines()[0] == f'config.py {overrides} w'


def test_a_tilde_is_the_home_directory(run):
  done = run('--workdir=~/w', '--data_dir=~/d')
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'config.py {} /home/ada/w\n(3, 4) /home/ada/d\n'


def test_help_shows_the_flags(run):
  done = run('--help')
  for flag in ('--config:', '--workdir:', '--data_dir:', 'Shows its flags.'):
    assert flag in done.stdout


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config.sed=1'],
      "unknown config key 'sed' (did you mean 'seed'?); there are optimizer,",
    ),
    (
      ['--config.zzz=1'],
      "unknown config key 'zzz'; there are optimizer, seed, unset, widths",
    ),
    (['--config.seed.x=1'], "unknown config key 'seed.x'"),
    (
      ['--config.seed=abc'],
      "flag --config.seed=abc: invalid literal for int() with base 10: 'abc'",
    ),
    (
      ['--config.optimizer.learning_rate=fast'],
      'flag --config.optimizer.learning_rate=fast:',
    ),
    (
      ['--config.my-part.name=x'],
      "'my-part.name' is no key of a config; a key is made of letters",
    ),
    (
      ["--config.optimizer={'name': 'adam'}"],
      "optimizer={'name': 'adam'} is a section; give its keys one by one",
    ),
    (['--flagfile=none.txt'], 'Unable to open flagfile: [Errno 2]'),
    (['--wordkir=x'], "Unknown command line flag 'wordkir'"),
    (['left.py'], "unexpected argument 'left.py'"),
    (['--config.seed=13'], '13 brings bad luck; choose another seed'),
    (['--workdir='], '--workdir is required'),
    ([b'--workdir=\xff'], r"'--workdir=\udcff' is not one line of UTF-8"),
  ],
)
def test_a_mistake_is_one_line(run, flags, message):
  done = run(*flags)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.startswith(f'error: {message}')
  assert done.stderr.count('\n') == 1


def test_a_flagfile_is_as_if_it_were_typed(run, tmp_path):
  (tmp_path / 'flags.txt').write_text(
    '--config.optimizer=adam\n--config.optimizer.b1=0.5\n--config.seed=3\n'
  )
  done = run('--flagfile=flags.txt')
  assert done.returncode == 3, done.stderr
  expected = {'optimizer.name': 'adam', 'optimizer.b1': 0.5, 'seed': 3}
  assert str(expected) in done.stdout


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (None, '--config is required'),
    ('--config=none.py', 'no config file none.py'),
    (f'--config={"a" * 300}.py', 'no config file aaa'),
    ('--config=~/none.py', 'no config file /home/ada/none.py'),
    ('--config=', 'no config file'),
    ('--config=.', 'no config file'),
    (
      '--config=config.py:huge',
      "config.py:6: ValueError: unknown variant 'huge'; have: small, large",
    ),
    ('--config=broken.py', 'broken.py:2: SyntaxError'),
    ('--config=raises.py', 'raises.py:3: NameError'),
    ('--config=leaves.py', 'leaves.py:2: SystemExit: 3'),
    ('--config=empty.py', 'empty.py has no function get_config'),
    ('--config=none_returned.py', 'none_returned.py: get_config must return'),
    ('--config=text.txt', 'text.txt is not a Python file'),
  ],
)
def test_a_bad_config_file_is_one_line(run, tmp_path, config, message):
  files = {
    'broken.py': '\ndef get_config(:',
    'raises.py': '\ndef get_config():\n  return a_name',
    'leaves.py': 'def get_config():\n  raise SystemExit(3)',
    'empty.py': '',
    'none_returned.py': 'def get_config(): pass',
    'text.txt': 'hello',
  }
  for name, text in files.items():
    (tmp_path / name).write_text(textwrap.dedent(text))
  done = run(config=config)
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {message}')
  assert done.stderr.count('\n') == 1


def test_output_that_nobody_takes_is_no_traceback(run, tmp_path):
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'w') as closed, open('/dev/full', 'w') as full:
    results = [run('--config.seed=0', stdout=out) for out in (closed, full)]
  assert [(done.returncode, done.stderr) for done in results] == [
    (141, ''),
    (
      2,
      'error: cannot write: No space left on device; mend that and run the same'
      ' command again\n',
    ),
  ]


@pytest.mark.parametrize('stream', ['1', '2'])
def test_a_closed_stream_is_no_traceback(stream, tmp_path):
  done = subprocess.run(
    [
      *('bash', '-c', f'exec {stream}>&-; exec "$@"', 'bash'),
      *(sys.executable, '-m', 'bn_research.report', f'--workdir={tmp_path}'),
      f'--config={ROOT}/configs/ioffe2015_fig1.py:quick',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  lines = (done.stdout + done.stderr).splitlines()
  assert len(lines) == (stream == '1')


def test_a_run_that_could_not_be_compiled_is_told(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bn_research.train', f'--workdir={tmp_path}/run'),
      f'--config={ROOT}/configs/ioffe2015_fig1.py:quick',
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_DISABLE_JIT': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == (
    'error: JAX_DISABLE_JIT is set, and a run is compiled; unset the variable\n'
  )


def test_a_mistake_of_ours_keeps_its_traceback(run):
  done = run('--config.seed=14')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert done.stderr.endswith('ZeroDivisionError: ours\n')
