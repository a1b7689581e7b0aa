"""What whitening costs: one layer's forward and backward pass, by its units.

S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, Section 2: full whitening "is
expensive, as it requires computing the covariance matrix and its inverse square
root" and "the derivatives of these transforms for backpropagation". No number
is given there.

A network with two hidden layers of d units learns from batches of 1,024 of the
digits: with nothing, batch norm, IterNorm (5 iterations), Newton-Schulz to
rounding, ZCA, PCA and Cholesky at every step, all of the d units in one block;
and with whitening every 20 steps, by PRONG and in the optimizer, with the
renewals in it. What a layer's normalization takes, forward and backward, is
half of what a step takes longer than one with nothing. Its update and its part
in the evaluations, one in 40 steps, are in that; for the last two, so is the
whitening of the 64 pixels.

    python -m bn_research.sweep --config=configs/whitening_cost.py \\
        --workdir=runs/whitening_cost --jobs=1
    python -m bn_research.report --config=configs/whitening_cost.py \\
        --workdir=runs/whitening_cost

On a machine with nothing else to do: one job at a time, and no other program.
Seeds are repetitions: their spread is the noise, and differences within it are
drawn about zero. Whether anything is learned is not asked here. Variants:
`digits`; `quick`, few steps.
"""

from bn_research import experiment

WIDTHS = (32, 64, 128, 256, 512)
NOTHING = {
  'model.norm.name': 'none',
  'model.dense.name': 'dense',
  'optimizer.precondition.name': 'none',
}
METHODS = {
  'nothing': NOTHING,
  'batch norm': {'model.norm.name': 'batch_norm'},
  'IterNorm': {'model.norm.name': 'iter_norm'},
  **{
    label: {'model.norm.name': 'batch_whitening', 'model.norm.method': method}
    for label, method in (
      ('Newton-Schulz', 'newton_schulz'),
      ('ZCA', 'zca'),
      ('PCA', 'pca'),
      ('Cholesky', 'cholesky'),
    )
  },
  'PRONG, every 20': {'model.dense.name': 'prong'},
  'input covariance, every 20': {
    'optimizer.precondition.name': 'input_covariance'
  },
}


SETTING = {
  **NOTHING,
  'batch_size': 1024,
  'model.widths': (32, 32),
  'model.nonlinearity': 'tanh',
  'model.init_scale': 0.1,
  'optimizer.learning_rate': 0.001,
  'eval.num_points': 5,
}
VARIANTS = {
  'digits': {'num_steps': 200},
  'quick': {'num_steps': 4, 'eval.num_points': 2},
}


def get_config(arg='digits'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))


def sweep():
  every = {
    'PRONG, every 20': {'model.dense.every': 20},
    'input covariance, every 20': {'optimizer.precondition.every': 20},
  }
  # Runs that are compared lie close in time: a machine's pace drifts.
  return [
    {
      **method,
      **every.get(label, {}),
      'model.widths': (width, width),
      'seed': seed,
    }
    for seed in range(2)
    for width in WIDTHS
    for label, method in METHODS.items()
  ]


def report():
  panel = {
    'name': 'settings',
    'setting': 'model.widths',
    'xlabel': 'units of a layer, d',
  }
  return {
    'figures': [
      {
        'name': 'whitening_cost',
        'series': [
          {'label': label, 'where': where} for label, where in METHODS.items()
        ],
        'size': (7.2, 3.8),
        'panels': [
          {
            **panel,
            'measure': {'name': 'milliseconds_a_layer'},
            'minus': 'nothing',
            'linear_below': 0.1,
            'title': '(a) One layer:',
            'ylabel': 'ms a layer, forward and backward:\n'
            '(step \N{MINUS SIGN} step with nothing) / 2; linear below 0.1',
          },
          {
            **panel,
            'measure': {'name': 'milliseconds_a_step'},
            'title': '(b) Whole step:',
            'ylabel': 'ms a step',
          },
        ],
      },
    ],
  }
