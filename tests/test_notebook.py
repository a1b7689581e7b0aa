"""docs/results.ipynb, from its first cell to its last."""

import json
import pathlib
import subprocess
import sys

import matplotlib
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'docs' / 'results.ipynb'


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bn_research.train'),
      f'--config={ROOT}/configs/covariate_shift.py:quick',
      '--config.model.norm.name=batch_norm',
      f'--workdir={tmp_path}/runs/covariate_shift/batch_norm',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  monkeypatch.chdir(tmp_path)
  matplotlib.use('agg')
  names = {}
  for cell in json.loads(NOTEBOOK.read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), names)
  assert (tmp_path / 'percentiles.png').stat().st_size > 1000
  assert (tmp_path / 'runs.csv').read_text().startswith('run,status,')
