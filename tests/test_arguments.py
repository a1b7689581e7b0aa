import pytest

from bn_research import arguments, errors


@pytest.fixture(autouse=True)
def home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/ada')


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('--workdir=~/runs/a=~', '--workdir=/home/ada/runs/a=~'),
    ('--data_dir=~', '--data_dir=/home/ada'),
    ('-config=~/a.py:digits', '-config=/home/ada/a.py:digits'),
    ('--from=~/raw', '--from=/home/ada/raw'),
    ('--workdir=runs/~', '--workdir=runs/~'),
    ('--config.name=~/a', '--config.name=~/a'),
    ('~/a=~/b', '~/a=~/b'),
    ('--dry_run', '--dry_run'),
  ],
)
def test_a_tilde_that_the_shell_left(argument, expected):
  assert arguments.tidy(['command', argument]) == ['command', expected]


@pytest.mark.parametrize('argument', ['--workdir=\udcff', 'a\nb'])
def test_what_cannot_be_written_is_refused(argument):
  with pytest.raises(errors.UserError, match='not one line of UTF-8') as caught:
    arguments.tidy([argument])
  assert str(caught.value).isascii()
  assert '\n' not in str(caught.value)
