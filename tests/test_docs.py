"""The documentation builds without a warning, and its code runs."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(path.name for path in DOCS.glob('*.md'))
# A page with fragments of code begins with a hidden block, which gives names
# to the fragments.
BLOCK = re.compile(
  r'^(?:```python|<!-- hidden)\n(.*?)^(?:```|-->)', re.M | re.S
)


@pytest.mark.parametrize('page', PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {'__name__': 'page'}
  text = (DOCS / page).read_text()
  for block in BLOCK.finditer(text):
    # Blank lines in front: an error names the line of the page.
    above = '\n' * text.count('\n', 0, block.start(1))
    exec(compile(above + block[1], DOCS / page, 'exec'), names)


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('sphinx', reason='the extra [docs] is not installed')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going'),
      *('-d', tmp_path / 'doctrees', DOCS, tmp_path / 'site'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'site' / 'index.html').exists()
