"""Error against batch size: learning rates, steps, ghosts, report."""

import functools

import pytest

from bn_research.reports import claims, figures
from tests.configs import experiments

NORMS = ('batch_norm', 'batch_renorm', 'group_norm', 'layer_norm')
# The batch sizes, the number of seeds, and the batch with a rate of 0.1.
VARIANTS = {
  'quick': ((2, 4, 32), 1, 128),
  'cifar10': ((2, 4, 8, 16, 32, 64), 3, 128),
  'gpu': ((2, 4, 8, 16, 32, 64), 3, 128),
  'pod': ((2, 4, 8, 16, 32, 64), 3, 256),
}


module = functools.partial(experiments.module, 'wu2018_batch_size')
resolved = functools.partial(experiments.resolved, 'wu2018_batch_size')


@pytest.mark.parametrize('variant', VARIANTS)
def test_rate_and_steps_follow_the_batch(variant):
  batches, seeds, unit = VARIANTS[variant]
  runs = resolved(variant)
  examples = module().EXAMPLES[variant]
  for run in runs:
    batch = run['batch_size']
    assert run['optimizer.learning_rate'] == pytest.approx(0.1 * batch / unit)
    assert run['num_steps'] == examples // batch
  for norm in (*NORMS, 'instance_norm'):
    of_norm = [
      (run['batch_size'], run['seed'])
      for run in runs
      if run['model.norm.name'] == norm
      and run.get('model.norm.group_size') != module().GHOST
    ]
    assert sorted(of_norm) == [(b, s) for b in batches for s in range(seeds)]


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_ghost_is_smaller_than_the_batch(variant):
  batches, seeds, _ = VARIANTS[variant]
  where = module().NORMS['ghost batch norm'].items()
  ghosts = [run for run in resolved(variant) if where <= run.items()]
  assert {run['batch_size'] for run in ghosts} == {b for b in batches if b > 16}
  assert len(ghosts) == seeds * len([b for b in batches if b > 16])


@pytest.mark.parametrize('variant', VARIANTS)
def test_renorm_leaves_batch_norm_behind_in_each_run(variant):
  runs = resolved(variant)
  found = [run for run in runs if run['model.norm.name'] == 'batch_renorm']
  for run in found:
    bounds = {
      name: [run[f'model.norm.{name}.{key}'] for key in ('initial', 'final')]
      for name in ('r_max', 'd_max')
    }
    # Ioffe (2017), Section 4.1, for a run of 130,000 steps.
    assert bounds == {'r_max': [1, 3], 'd_max': [0, 5]}
    for name, thousands in (('r_max', 40), ('d_max', 25)):
      for key, of_paper in (('start', 5), ('stop', thousands)):
        part = run[f'model.norm.{name}.{key}'] / run['num_steps']
        assert part == pytest.approx(of_paper / 130, abs=0.02)


@pytest.mark.parametrize('variant', VARIANTS)
def test_each_side_of_a_claim_and_each_line_has_its_runs(variant):
  _, seeds, _ = VARIANTS[variant]
  report = module().report()
  runs = resolved(variant)

  def seeds_of(where):
    return [run['seed'] for run in runs if where.items() <= run.items()]

  for spec in report['claims']:
    claim = claims.Claim(**spec)
    assert seeds_of(claim.this) == seeds_of(claim.that) == list(range(seeds))
  (figure,) = (figures.Figure(**spec) for spec in report['figures'])
  lines = [seeds_of(one['where']) for one in figure.series]
  # No run is in two lines, and none in no line.
  assert sum(map(len, lines)) == len(runs)
  assert all(lines)
