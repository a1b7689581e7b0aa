"""The table of a terminal, and no table without one."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
import rich.console

from bn_research import disk, workdir
from bn_research.sweeps import live, points
from tests.sweeps import test_pool


def point(tmp_path, name, rows):
  run = points.Point(name, tmp_path / name, (), {'num_steps': 3000})
  disk.write_json(run.workdir / workdir.CONFIG, {'config': {}})
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  (run.workdir / workdir.METRICS).write_text(text)
  return run


def test_rate_and_time_left_follow_the_last_row(tmp_path):
  first = {'step': 0, 'seconds': 0.0, 'test_loss': 2.5}
  row = {'step': 1000, 'seconds': 50.0, 'train_loss': 0.5, 'grad_norm': 3.0}
  runs = [
    point(tmp_path, 'norm=none[1]', [first, row]),
    point(tmp_path, 'new', [first]),
    point(tmp_path, 'no_row', []),
  ]
  os.utime(runs[0].workdir / workdir.METRICS, (1e9, 1e9))
  console = rich.console.Console(width=100)
  with console.capture() as capture:
    # 2,000 steps at 20 a second, of which 10 seconds are over.
    console.print(live.rendered(runs, 1e9 + 10))
  title, *lines = capture.get().splitlines()
  assert title.split() == [
    'run',
    'step',
    'of',
    'steps/s',
    'left',
    'last',
    'row',
  ]
  assert [line.split() for line in lines] == [
    ['norm=none[1]', '1,000', '3,000', '20', '0:01:30', 'train_loss=0.5'],
    ['new', '0', '3,000', 'test_loss=2.5'],
    ['no_row', '0', '3,000'],
  ]


def test_a_narrow_terminal_cuts_texts_and_no_number(tmp_path):
  row = {'step': 123_456, 'seconds': 100.0, 'train_loss': 0.5, 'test_loss': 1.5}
  run = point(tmp_path, 'model.norm.name=batch_norm,' * 3, [row])
  console = rich.console.Console(width=70)
  with console.capture() as capture:
    console.print(live.rendered([run], time.time()))
    console.print(live.rendered([], time.time()))
  _, line, empty = capture.get().splitlines()
  assert len(line) <= 70
  assert '123,456  3,000    1,235  0:00:00' in line
  assert not empty


@pytest.fixture
def program(tmp_path):
  """A program that runs a sweep of a single run, of two seconds."""
  run = test_pool.point(tmp_path, 'one', 'time.sleep(2); end("done")')
  return [
    sys.executable,
    '-c',
    'import pathlib\n'
    'from bn_research.sweeps import driver, points\n'
    f'point = points.Point("one", pathlib.Path({str(run.workdir)!r}),'
    f' {run.command!r}, {{"num_steps": 1}})\n'
    'raise SystemExit(driver.run([point]))\n',
  ]


def test_a_terminal_has_the_table_while_runs_train(program):
  parent, terminal = pty.openpty()
  with subprocess.Popen(
    program,
    stdin=terminal,
    stdout=terminal,
    env={**os.environ, 'TERM': 'xterm'},
  ) as process:
    os.close(terminal)
    output, deadline = b'', time.monotonic() + 60
    while time.monotonic() < deadline:
      try:
        piece = os.read(parent, 4096)
      except OSError:  # The other side is closed.
        break
      if not piece:
        break
      output += piece
    os.close(parent)
  assert process.returncode == 0
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', output.decode())
  assert re.search(r'run +step +of +steps/s +left +last row', text)
  assert re.search(r'one +0 +1', text)
  assert '[1/1] done     one' in text


def test_a_file_has_lines_only(program):
  result = subprocess.run(program, capture_output=True, text=True, check=True)
  first, second, third = result.stdout.splitlines()
  assert first == '1 runs, 1 to do'
  assert second.startswith('[1/1] done     one')
  assert third == '1 done'
