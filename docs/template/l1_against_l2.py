"""An experiment: is the mean absolute deviation better than the variance?

    python -m bn_research.sweep --config=docs/template/l1_against_l2.py \\
        --workdir=runs/template
    python -m bn_research.report --config=docs/template/l1_against_l2.py \\
        --workdir=runs/template
"""

from bn_research import experiment

L1 = {'model.norm.name': 'l1_norm:l1_batch_norm'}
L2 = {'model.norm.name': 'batch_norm'}


def get_config(arg='short'):
  """Returns the config of a variant."""
  setting = {
    'data.name': 'bars:bars',
    'model.name': 'residual_mlp:ResidualMLP',
    'model.depth': 2,
    **L1,
    'model.norm.momentum': 0.9,
    'probes.saturation.name': 'saturation:saturation',
    'probes.saturation.limit': 1.5,
  }
  variants = {'short': {'num_steps': 100}, 'long': {'num_steps': 2000}}
  return experiment.config(setting, experiment.variant(arg, variants))


def sweep():
  """Returns what each run changes."""
  return [{**norm, 'seed': seed} for norm in (L1, L2) for seed in range(5)]


def report():
  """Returns the figures and the claims."""
  best = {'name': 'best:best'}
  return {
    'figures': [
      {
        'name': 'template',
        'series': [
          {'label': 'deviation', 'where': L1},
          {'label': 'variance', 'where': L2},
        ],
        'panels': [
          {'name': 'curves', 'metric': 'train_loss', 'ylabel': 'loss'},
          {'name': 'dots:Dots', 'measure': best, 'ylabel': 'best accuracy'},
        ],
      }
    ],
    'claims': [
      {
        'claim': 'Absolute deviations are better than variances for batch norm',
        'source': 'this template',
        'published': 'nowhere',
        'measured': 'best test accuracy',
        'measure': best,
        'this': L1,
        'that': L2,
        'expected': 'higher',
      }
    ],
  }
