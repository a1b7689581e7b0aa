"""The experiment's config: variants, sweep, report, and a small real run."""

import os
import pathlib
import subprocess
import sys

import pytest

from bn_research import config_files, norms, registry, workdir
from bn_research.models import normalization
from bn_research.reports import claims, figures, panels
from bn_research.sweeps import points

ROOT = pathlib.Path(__file__).parents[2]
PATH = 'configs/ioffe2015_fig1.py'
EXPERIMENT = config_files.module_of(str(ROOT / PATH))
VARIANTS = ('digits', 'mnist', 'quick')


@pytest.mark.parametrize('variant', VARIANTS)
def test_what_the_paper_says(variant):
  config = EXPERIMENT.get_config(variant)
  assert config.batch_size == 60
  assert config.model.widths == (100, 100, 100)
  assert config.model.nonlinearity == 'sigmoid'
  assert config.probes.activations.percentiles == (15, 50, 85)
  assert 'momentum' not in config.optimizer


def test_mnist_is_as_long_as_in_the_paper():
  config = EXPERIMENT.get_config('mnist')
  assert (config.data.name, config.num_steps) == ('mnist', 50_000)


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match='there are digits, mnist, quick'):
    EXPERIMENT.get_config('minst')


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_point_of_the_sweep_fits_the_config(variant, tmp_path):
  config = EXPERIMENT.get_config(variant)
  sweep = EXPERIMENT.sweep()
  expanded = points.expand(sweep, config, PATH, str(tmp_path), {})
  assert len(expanded) == 10
  for changes in sweep:
    resolved = points.resolve(config, changes, PATH)
    norm = normalization.create('config.model.norm', resolved['model']['norm'])
    assert isinstance(norm, norms.Normalization)


def test_the_report_is_well_formed():
  report = EXPERIMENT.report()
  (figure,) = (figures.Figure(**spec) for spec in report['figures'])
  labels = {series['label'] for series in figure.series}
  a, b, c = (
    registry.create('panel', panels.PANELS, spec) for spec in figure.panels
  )
  assert a.ylim == (0.7, 1.0)
  assert {b.series, c.series} == labels
  assert [claims.Claim(**spec) for spec in report['claims']]


@pytest.mark.slow
def test_from_training_to_the_figure(tmp_path):
  """Two short runs by the three commands, started as a person would."""
  config = tmp_path / 'short.py'
  config.write_text(f"""
from bn_research import config_files
full = config_files.module_of({str(ROOT / PATH)!r})
get_config, report = full.get_config, full.report
def sweep():
  return [point for point in full.sweep() if point['seed'] == 0]
""")
  flags = [f'--config={config}:quick', f'--workdir={tmp_path / "runs"}']

  def command(name, *more):
    result = subprocess.run(
      [sys.executable, '-m', f'bn_research.{name}', *flags, *more],
      cwd=ROOT,
      env={**os.environ, 'LC_ALL': 'C.UTF-8'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

  assert '2 done' in command('sweep', '--config.num_steps=20', '--jobs=2')
  assert '2 runs, 0 to do' in command('sweep', '--config.num_steps=20')
  assert 'too few seeds' in command('report', '--config.num_steps=20')
  for kind in ('png', 'pdf'):
    assert (tmp_path / 'runs' / 'report' / f'figure1.{kind}').exists()
  for changes in EXPERIMENT.sweep()[::5]:  # of seed 0
    run = tmp_path / 'runs' / points.name_of(changes)
    assert workdir.read_status(run) == workdir.Status(workdir.DONE, 20)
