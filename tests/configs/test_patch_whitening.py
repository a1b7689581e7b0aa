"""The experiment on whitened patches: variants, sweep, report, points."""

import functools
import pathlib
import re

import jax
import pytest

from bn_research import config_files, dotted, fitting, models, optim, registry
from bn_research.layers import nnx as layers
from bn_research.reports import claims, figures, measures, panels
from bn_research.sweeps import points

PATH = pathlib.Path(__file__).parents[2] / 'configs/patch_whitening.py'
VARIANTS = ('quick', 'cifar10', 'gpu', 'pod')


@functools.cache
def module():
  return config_files.module_of(str(PATH))


def resolved(variant):
  config = module().get_config(variant)
  return [points.resolve(config, point, 'x') for point in module().sweep()]


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_point_is_a_network_and_an_optimizer(variant):
  shape = (8, 8, 1) if variant == 'quick' else (32, 32, 3)
  for config in resolved(variant):
    if config['seed']:
      continue
    create = functools.partial(models.create, config['model'], shape, 10)
    model = jax.eval_shape(create, jax.random.key(0))
    whitens = config['model']['stem']['name'] == 'whitened_patches'
    assert isinstance(model.stem, layers.WhitenedPatches) == whitens
    assert fitting.num_examples(model) == (5000 if whitens else 0)
    assert optim.create(config['optimizer'], config['num_steps'])
    assert config['batch_size'] % config['num_devices'] == 0


def test_an_unknown_variant_is_told():
  with pytest.raises(ValueError, match=r'there are .*quick'):
    module().get_config('digits')


def test_the_points_differ_in_the_first_layer_only():
  others = {
    tuple(
      sorted(
        (key, str(value))
        for key, value in dotted.flatten(config).items()
        if not key.startswith(('model.stem', 'model.norms.stem', 'seed'))
      )
    )
    for config in resolved('quick')
  }
  assert len(others) == 1


def matching(where):
  flat = [dotted.flatten(config) for config in resolved('quick')]
  return [config['seed'] for config in flat if where.items() <= config.items()]


def test_the_report_compares_runs_and_says_how_claims_were_read():
  report = module().report()
  for spec in report['figures']:
    figure = figures.Figure(**spec)
    for panel in figure.panels:
      registry.create('panel', panels.PANELS, panel)
    for one in figure.series:
      assert matching(one['where']) == list(range(5))
  for spec in report['claims']:
    claim = claims.Claim(**spec)
    assert claim.measure['name'] in measures.MEASURES
    for side in (claim.this, claim.that):
      assert matching(side) == list(range(5))
    how = re.search(r'\((.*)\)$', claim.published)[1].split(', ')
    assert set(how) <= {'paper', 'code', 'recalled'}
    if 'recalled' in how:  # a number not looked up has no place beside ours
      assert not re.search(r'\d', claim.published)
