"""Whitened inputs train faster: Section 2's starting point, measured.

S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, Section 2: "it has been long
known (LeCun et al., 1998b; Wiesler & Ney, 2011) that the network training
converges faster if its inputs are whitened". Neither has a number to compare
with. LeCun et al. advise zero means, equal variances and no correlations, each
for its own sake (recalled).

One hidden layer of tanh units, plain SGD, on inputs that are raw (between 0 and
1), centred, standardized pixel by pixel, or whitened (ZCA), each by statistics
of the whole training set, in float64. What is whitened has other units, so a
learning rate means something else for it: each input is trained at several, and
compared at that of the lowest training loss over the first fifth of the steps.
On the digits, mean over five seeds:

    learning rate     0.5     1.0     2.0     4.0
    raw             0.520   0.436    74.9   169.0
    centred         0.488   0.325   0.228   0.202
    standardized    0.238   0.168   0.144   0.555
    whitened        0.315   0.205   0.154   0.247

Centring and scaling are what counts there: whitening is not better than
standardizing.

    python -m bn_research.sweep --config=configs/whitened_inputs.py:digits \\
        --workdir=runs/whitened_inputs
    python -m bn_research.report --config=configs/whitened_inputs.py:digits \\
        --workdir=runs/whitened_inputs

Variants: `digits`, the 8x8 images of scikit-learn, 500 steps; `mnist`, 5,000
steps; `quick`, 50 steps of the digits.
"""

from bn_research import experiment, grid

RATES = (0.5, 1.0, 2.0, 4.0)
# The best of them, by input, on the digits.
BEST = {'none': 1.0, 'centre': 4.0, 'standardize': 2.0, 'whiten': 2.0}
LABELS = {
  'none': 'raw',
  'centre': 'centred',
  'standardize': 'standardized',
  'whiten': 'whitened',
}

PAPER = {'source': 'paper, Section 2', 'published': 'no number (paper)'}
LECUN = {'source': 'LeCun et al. (1998b)', 'published': 'no number (recalled)'}


SETTING = {
  'data.normalize.name': 'none',
  'model.widths': (100,),
  'model.nonlinearity': 'tanh',
  'model.init_scale': 0.1,
  'optimizer.learning_rate': 1.0,
}
VARIANTS = {
  'digits': {'num_steps': 500},
  'mnist': {'num_steps': 5_000, 'data.name': 'mnist'},
  'quick': {'num_steps': 50, 'eval.num_points': 5},
}


def get_config(arg='digits'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))


def sweep():
  return grid.product(
    {'data.normalize.name': tuple(BEST), 'optimizer.learning_rate': RATES},
    grid.seeds(5),
  )


def report():
  inputs = {name: {'data.normalize.name': name} for name in BEST}
  best = {
    name: {**where, 'optimizer.learning_rate': BEST[name]}
    for name, where in inputs.items()
  }

  def series(wheres):
    return [
      {'label': LABELS[name], 'where': where} for name, where in wheres.items()
    ]

  loss = {'metric': 'train_loss', 'ylabel': 'training loss', 'yscale': 'log'}
  claim = {
    'measured': 'mean training loss over the first fifth of the steps',
    'measure': {'name': 'early', 'metric': 'train_loss', 'part': 0.2},
    'expected': 'lower',
  }
  return {
    'figures': [
      {
        'name': 'whitened_inputs',
        'series': series(best),
        'panels': [
          {'name': 'curves', **loss},
          {
            'name': 'curves',
            'metric': 'test_accuracy',
            'ylabel': 'test accuracy',
            'ylim': (0.9, 1.0),
          },
        ],
      },
      {
        'name': 'whitened_inputs_rates',
        'series': series(inputs),
        'size': (3.6, 2.6),
        'panels': [
          {
            'name': 'settings',
            'setting': 'optimizer.learning_rate',
            'measure': claim['measure'],
            'xlabel': 'learning rate',
            'ylabel': 'early training loss',
          },
        ],
      },
    ],
    'claims': [
      {
        **claim,
        **published,
        'claim': f'Training converges faster on {LABELS[this]} inputs than'
        f' {LABELS[that]}',
        'this': best[this],
        'that': best[that],
      }
      for this, that, published in (
        ('whiten', 'none', PAPER),
        ('centre', 'none', LECUN),
        ('standardize', 'centre', LECUN),
        ('whiten', 'standardize', LECUN),
      )
    ],
  }
