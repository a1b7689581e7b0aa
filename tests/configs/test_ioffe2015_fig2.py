"""Figure 2 of the paper: learning rates, lines, seeds, report."""

import functools

import pytest

from bn_research.reports import claims, figures, summary
from tests.configs import experiments

# The learning rate of Inception, the number of seeds.
VARIANTS = {
  'quick': (0.005, 1),
  'cifar10': (0.005, 3),
  'gpu': (0.0015, 3),
  'pod': (0.0015, 3),
}
# Section 4.2.2: the multiple of the learning rate, and what changed with it.
LINES = {
  'Inception': (1, 'none', 'relu'),
  'BN-Baseline': (1, 'batch_norm', 'relu'),
  'BN-x5': (5, 'batch_norm', 'relu'),
  'BN-x30': (30, 'batch_norm', 'relu'),
  'BN-x5-Sigmoid': (5, 'batch_norm', 'sigmoid'),
}


module = functools.partial(experiments.module, 'ioffe2015_fig2')
resolved = functools.partial(experiments.resolved, 'ioffe2015_fig2')


def of_line(variant, label):
  where = module().lines(variant)[label]
  return [c for c in resolved(variant) if where.items() <= c.items()]


@pytest.mark.parametrize('variant', VARIANTS)
def test_each_line_has_the_published_changes(variant):
  rate, seeds = VARIANTS[variant]
  assert len(resolved(variant)) == seeds * len(LINES)
  for label, (factor, norm, nonlinearity) in LINES.items():
    runs = of_line(variant, label)
    assert [run['seed'] for run in runs] == list(range(seeds))
    is_accelerated = 'x' in label
    for run in runs:
      assert run['optimizer.learning_rate'] == pytest.approx(factor * rate)
      assert run['model.norm.name'] == norm
      assert run['model.nonlinearity'] == nonlinearity
      assert run['model.local_response_norm'] is not is_accelerated
      assert (run['model.dropout'] == 0) is is_accelerated
      parts = ('full', 'shards', 1.0, 1)
      if is_accelerated:
        parts = ('reduced', 'within_shards', 1 / 5, 6)
      distort, shuffle, of_decay, power = parts
      assert run['data.stream.distort'] == distort
      assert run['data.stream.shuffle'] == shuffle
      decay = run['optimizer.weight_decay']
      assert decay == pytest.approx(1e-4 * of_decay)
      assert run['optimizer.schedule.decay'] == pytest.approx(0.5**power)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_report_is_of_the_lines_of_the_variant(variant):
  report = module().report(variant)
  (figure,) = (figures.Figure(**spec) for spec in report['figures'])
  (table,) = (summary.Table(**spec) for spec in report['tables'])
  for series in (figure.series, table.series):
    for one in series:
      assert one['where'] == module().lines(variant)[one['label']]
  for spec in report['claims']:
    claim = claims.Claim(**spec)
    assert claim.that == module().lines(variant)['Inception']
    assert claim.this in module().lines(variant).values()


def test_an_unknown_variant_is_told():
  for function in (module().get_config, module().sweep, module().report):
    with pytest.raises(ValueError, match=r'there are .*quick'):
      function('digits')
