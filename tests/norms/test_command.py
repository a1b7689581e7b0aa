"""`python -m bn_research.norms`: what it prints, and how it ends."""

import pathlib
import signal
import subprocess
import sys

from bn_research import norms
from bn_research.norms import __main__ as command

ROOT = pathlib.Path(__file__).parents[2]


def test_a_reader_that_has_gone_is_no_error():
  """As `| head -3` is, when it has its lines."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'bn_research.norms'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ''
  process.stderr.close()
  assert process.wait() == -signal.SIGPIPE


def test_a_row_a_name(capsys):
  assert command.main([]) == 0
  rows = capsys.readouterr().out.splitlines()
  assert [row.split()[0] for row in rows] == ['name', *norms.NAMES]


def test_all_about_a_name_and_an_unknown_one(capsys):
  assert command.main(['layer_norm']) == 0
  assert capsys.readouterr().out.startswith('layer_norm(')
  assert command.main(['layernorm']) == 2
  message = capsys.readouterr().err
  assert message.startswith("error: unknown normalization 'layernorm'")
  assert message.count('\n') == 1
