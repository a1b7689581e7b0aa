"""The documentation builds without a warning, and its code runs."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from bn_research import dotted, experiment, norms

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(path.name for path in DOCS.glob('*.md'))
# A page with fragments of code begins with a hidden block, which gives names
# to the fragments.
BLOCK = re.compile(
  r'^(?:```python|<!-- hidden)\n(.*?)^(?:```|-->)', re.M | re.S
)


def commands():
  """Yields the arguments of every command in the pages that has a config."""
  for path in [ROOT / 'README.md', *DOCS.rglob('*.md')]:
    for block in re.findall(
      r'^```bash\n(.*?)^```', path.read_text(), re.S | re.M
    ):
      for line in block.replace('\\\n', ' ').splitlines():
        found = re.search(r'-m (bn_research\.\w+ .*?--config=\S+\.py.*)', line)
        # A name in capitals stands for a name that the reader chooses.
        if found and not re.search(r'=[A-Z]+\b', found[1]):
          yield re.split(r' [>|&#] ?', found[1])[0]


@pytest.mark.parametrize('command', sorted(set(commands())))
def test_a_command_of_a_page_has_flags_that_there_are(command, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', *shlex.split(command), '--only_check_args'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('page', PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {'__name__': 'page'}
  text = (DOCS / page).read_text()
  for block in BLOCK.finditer(text):
    # Blank lines in front: an error names the line of the page.
    above = '\n' * text.count('\n', 0, block.start(1))
    exec(compile(above + block[1], DOCS / page, 'exec'), names)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('sphinx', reason='the extra [docs] is not installed')
  # Other versions of Python get other versions of Sphinx, with other warnings.
  strict = ('-W', '--keep-going') if sys.version_info[:2] == (3, 11) else ()
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx', '-q', *strict),
      *('-d', tmp_path / 'doctrees', DOCS, tmp_path / 'site'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'site' / 'index.html').exists()
  api = (tmp_path / 'site' / 'api' / 'norms.html').read_text()
  for name in norms.__all__:
    assert f'id="bn_research.norms.{name}"' in api, name
  config = (tmp_path / 'site' / 'config.html').read_text()
  for name in (*norms.NAMES, 'checkpoint_seconds', 'input_covariance'):
    assert name in config


def test_every_key_of_the_base_config_has_a_meaning():
  keys = dotted.flatten(experiment.base().to_dict())
  # The name of a part is described with the part.
  for key in keys:
    assert (
      key in experiment.KEYS or key.removesuffix('.name') in experiment.KEYS
    )
  assert all(text.endswith('.') for text in experiment.KEYS.values())
