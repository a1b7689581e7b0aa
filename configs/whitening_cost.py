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

import ml_collections
from ml_collections import config_dict

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


def get_config(arg='digits'):
  if arg not in ('digits', 'quick'):
    raise ValueError(f'unknown variant {arg!r}; have: digits, quick')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_steps = {'digits': 200, 'quick': 4}[arg]
  config.batch_size = 1024
  config.num_devices = 1

  config.data = ml_collections.ConfigDict()
  config.data.name = 'digits'
  config.data.train = 'train'
  config.data.test = 'test'
  config.data.binarize = config_dict.placeholder(float)

  config.model = ml_collections.ConfigDict()
  config.model.name = 'mlp'
  config.model.widths = (32, 32)
  config.model.nonlinearity = 'tanh'
  config.model.init_scale = 0.1
  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = 'none'
  config.model.norm.method = config_dict.placeholder(str)
  config.model.dense = ml_collections.ConfigDict()
  config.model.dense.name = 'dense'
  config.model.dense.every = config_dict.placeholder(int)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.001
  config.optimizer.momentum = 0.0
  config.optimizer.precondition = ml_collections.ConfigDict()
  config.optimizer.precondition.name = 'none'
  config.optimizer.precondition.every = config_dict.placeholder(int)

  config.eval = ml_collections.ConfigDict()
  config.eval.num_points = 2 if arg == 'quick' else 5
  config.eval.spacing = 'linear'

  config.probe = ml_collections.ConfigDict()
  config.probe.name = 'activations'
  config.probe.percentiles = (15.0, 50.0, 85.0)
  config.probe.unit = 0
  config.probe.num_examples = 100
  config.probe.num_points = 1
  config.probe.spacing = 'linear'

  config.checkpoint_seconds = 60.0
  return config


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
