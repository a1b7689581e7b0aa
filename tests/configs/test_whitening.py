"""The experiments on whitening: variants, sweeps, reports, small real runs."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from bn_research import config_files, data, dotted, models, optim, registry
from bn_research.norms import roots
from bn_research.reports import claims, figures, panels
from bn_research.sweeps import points

ROOT = pathlib.Path(__file__).parents[2]
NAMES = (
  'whitened_inputs',
  'whitening_routes',
  'pca_against_zca',
  'whitening_cost',
)


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


@functools.cache
def module(name):
  return config_files.module_of(str(ROOT / f'configs/{name}.py'))


def changed(name, changes):
  config = module(name).get_config('quick')
  return points.resolve(config, changes, name)


def test_variants_differ_in_length_only(name):
  quick = module(name).get_config('quick')
  full = module(name).get_config('digits')
  assert quick.num_steps < full.num_steps
  assert quick.model == full.model
  with pytest.raises(ValueError, match=r'there are .*quick'):
    module(name).get_config('digit')


def test_every_point_is_a_network_and_an_optimizer(name, tmp_path):
  sweep = module(name).sweep()
  config = module(name).get_config('quick')
  expanded = points.expand(sweep, config, name, str(tmp_path), {})
  assert len(expanded) == len(sweep)
  images = jax.numpy.zeros((3, 8, 8, 1), 'uint8')
  for changes in (point for point in sweep if point.get('seed', 0) == 0):
    config = changed(name, changes)
    x = data.input_function(config['data'], images + 7)(images)
    create = functools.partial(models.create, config['model'], x.shape[1:], 10)
    model = jax.eval_shape(create, jax.random.key(0))
    optimizer = optim.create(config['optimizer'], 10)
    assert jax.eval_shape(optimizer.init, {'kernel': x}) is not None
    assert len(model.norms) == len(config['model']['widths'])


def test_the_report_is_well_formed(name):
  report = module(name).report()
  for spec in report['figures']:
    figure = figures.Figure(**spec)
    for panel in figure.panels:
      registry.create('panel', panels.PANELS, panel)
    wheres = [tuple(sorted(s['where'].items())) for s in figure.series]
    assert len(set(wheres)) == len(wheres)
  for spec in report.get('claims', ()):
    claims.Claim(**spec)


def test_the_cost_is_of_every_method():
  found = {p.get('model.norm.method') for p in module('whitening_cost').sweep()}
  assert found - {None} == set(roots.METHODS)


def matching(name, where):
  """Returns the configs of the sweep that hold `where`."""
  flat = [dotted.flatten(changed(name, c)) for c in module(name).sweep()]
  where = {k: list(v) if type(v) is tuple else v for k, v in where.items()}
  return [c for c in flat if where.items() <= c.items()]


def test_series_share_no_run(name):
  for figure in module(name).report()['figures']:
    found = [matching(name, s['where']) for s in figure['series']]
    assert all(found)
    together = [str(config) for runs in found for config in runs]
    assert len(set(together)) == len(together)


def test_claims_compare_runs_and_say_how_they_were_read(name):
  for claim in module(name).report().get('claims', ()):
    for side in ('this', 'that'):
      seeds = [config['seed'] for config in matching(name, claim[side])]
      assert seeds == list(range(5))
    how = re.search(r'\((.*)\)$', claim['published'])[1].split(', ')
    assert set(how) <= {'paper', 'abstract', 'introduction', 'code', 'recalled'}
    if 'recalled' in how:  # a number not looked up has no place beside ours
      assert not re.search(r'\d', claim['published'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['whitening_routes', 'pca_against_zca'])
def test_from_training_to_the_figures(name, tmp_path):
  """Short runs of one seed by the commands, started as a person would."""
  config = tmp_path / 'short.py'
  config.write_text(f"""
from bn_research import config_files
full = config_files.module_of({str(ROOT / f'configs/{name}.py')!r})
get_config, report = full.get_config, full.report
def sweep():
  return [point for point in full.sweep() if point['seed'] == 0]
""")
  flags = [f'--config={config}:quick', f'--workdir={tmp_path / "runs"}']
  for command in ('sweep', 'report'):
    result = subprocess.run(
      [sys.executable, '-m', f'bn_research.{command}', *flags],
      cwd=ROOT,
      env={**os.environ, 'LC_ALL': 'C.UTF-8'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
  for figure in module(name).report()['figures']:
    for kind in ('png', 'pdf'):
      path = tmp_path / 'runs' / 'report' / f'{figure["name"]}.{kind}'
      assert path.exists()
