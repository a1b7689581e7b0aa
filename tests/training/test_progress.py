import sys

import pytest

from bn_research.training import progress

ROW = {'step': 20, 'train_loss': 0.25, 'test_accuracy': 0.875}


@pytest.fixture
def now(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
  return clock


def test_lines_tell_the_rate_and_the_time_left(now, capsys):
  shown = progress.Progress(1000)
  shown.start(100)
  now[0] = 20.0
  shown.update(300, ROW)
  shown.close()
  assert capsys.readouterr().out == (
    'step 300 of 1,000  10 steps/s  70 s left  loss 0.2500  accuracy 0.8750\n'
  )


def test_lines_are_few(now, capsys):
  shown = progress.Progress(1000)
  for step in range(100):
    now[0] = float(step)
    shown.update(step, {})
  assert len(capsys.readouterr().out.splitlines()) == 9


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  shown = progress.Progress(1000)
  shown.start(0)
  shown.update(300, ROW)
  shown.say('a line [with] brackets')
  shown.close()
  out = capsys.readouterr().out
  assert 'a line [with] brackets\n' in out
  assert ' 300/1000' in out
