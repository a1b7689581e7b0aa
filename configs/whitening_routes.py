"""The routes of Section 2 to whitened activations, on one network.

S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, Section 2: "We could consider
whitening activations at every training step or at some interval, either by
modifying the network directly or by changing the parameters of the optimization
algorithm to depend on the network activation values".

* nothing: plain SGD;
* batch norm (Ioffe and Szegedy, 2015), DBN (Huang et al., 2018) and IterNorm
  (Huang et al., 2019): at every step, in the network, differentiated through,
  the latter two in blocks of 16 units;
* PRONG (Desjardins et al., 2015): at an interval, in the network, in new
  coordinates that leave what it computes as it is;
* input covariance (the input's factor of K-FAC; Martens and Grosse, 2015): at
  an interval, in the optimizer. In exact arithmetic the same as PRONG.

The network is that of Figure 1, with σ = 0.1. Learning rates are those with the
lower training loss after 600 steps of seed 0, of few that were tried: 2 for
nothing (of 2 and 4), 1 for batch norm, 2 for DBN and for IterNorm (of 1 and 2),
0.1 for the other two (of 0.1, 0.3 and 1). The ε of 0.003 of the latter is added
to all variances: in units of the mean variance, even 0.1 of it let the loss
explode at 0.01, for sigmoids behind small weights hardly vary at first.

    python -m bn_research.sweep --config=configs/whitening_routes.py:digits \\
        --workdir=runs/whitening_routes --jobs=1
    python -m bn_research.report --config=configs/whitening_routes.py:digits \\
        --workdir=runs/whitening_routes

Curves by seconds mean something only where runs do not share a machine: hence
one job at a time. Compiling is not counted.

Variants: `digits`, the 8x8 images of scikit-learn, 1,000 steps; `mnist`, 10,000
steps; `quick`, 50 steps of the digits.
"""

from typing import Any

from bn_research import experiment

NOTHING = {
  'model.norm.name': 'none',
  'model.dense.name': 'dense',
  'optimizer.precondition.name': 'none',
}
NORMS: dict[str, dict[str, Any]] = {
  'batch norm': {'model.norm.name': 'batch_norm'},
  'DBN': {'model.norm.name': 'decorrelated_batch_norm'},
  'IterNorm': {'model.norm.name': 'iter_norm', 'model.norm.group_size': 16},
}
PRONG = {'model.dense.name': 'prong'}
INPUT_COVARIANCE = {'optimizer.precondition.name': 'input_covariance'}
ROUTES = {
  'nothing': NOTHING,
  'PRONG': PRONG,
  'input covariance': INPUT_COVARIANCE,
  **NORMS,
}

HOPE = ('paper, Section 2', 'a hope, no number (paper)')
FASTER = (
  ('batch norm', 'nothing', 'paper, Section 4.1', 'a plot, no number (paper)'),
  ('DBN', 'nothing', *HOPE),
  ('DBN', 'batch norm', 'Huang et al. (2018)', 'no number (abstract)'),
  ('IterNorm', 'nothing', *HOPE),
  ('PRONG', 'nothing', 'Desjardins et al. (2015)', 'no number (abstract)'),
  (
    *('input covariance', 'nothing', 'Martens and Grosse (2015)'),
    'of both factors and against momentum, no number (abstract)',
  ),
)
ITER_NORM = {'source': 'Huang et al. (2019)', 'this': NORMS['IterNorm']}


SETTING = {
  **NOTHING,
  'model.widths': (100, 100, 100),
  'model.nonlinearity': 'sigmoid',
  'model.init_scale': 0.1,
  'model.dense_bias': False,
  'optimizer.learning_rate': 2.0,
}
VARIANTS = {
  'digits': {'num_steps': 1_000},
  'mnist': {'num_steps': 10_000, 'data.name': 'mnist'},
  'quick': {'num_steps': 50, 'eval.num_points': 5},
}


def get_config(arg='digits'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))


def sweep():
  rate, has_bias = 'optimizer.learning_rate', {'model.dense_bias': True}
  every, epsilon = 20, 0.003
  dense = {'model.dense.every': every, 'model.dense.epsilon': epsilon}
  precondition = {
    'optimizer.precondition.every': every,
    'optimizer.precondition.epsilon': epsilon,
  }
  points = [
    {**NOTHING, rate: 2.0},
    {**NORMS['batch norm'], rate: 1.0},
    {**NORMS['DBN'], rate: 2.0},
    {**NORMS['IterNorm'], rate: 2.0},
    {**PRONG, **dense, **has_bias, rate: 0.1},
    {**INPUT_COVARIANCE, **precondition, **has_bias, rate: 0.1},
  ]
  return [{**point, 'seed': seed} for point in points for seed in range(5)]


def report():
  loss = {
    'name': 'curves',
    'metric': 'train_loss',
    'ylabel': 'training loss',
    'yscale': 'log',
  }
  accuracy = {
    'name': 'curves',
    'metric': 'test_accuracy',
    'ylabel': 'test accuracy',
    'ylim': (0.8, 1.0),
  }
  seconds = {
    'x': 'seconds',
    'xlabel': 'seconds of training',
    'xscale': 'log',
  }
  series = [{'label': label, 'where': where} for label, where in ROUTES.items()]
  faster = {
    'measured': 'mean training loss over the first fifth of the steps',
    'measure': {'name': 'early', 'metric': 'train_loss', 'part': 0.2},
    'expected': 'lower',
  }
  return {
    'figures': [
      {
        'name': 'whitening_routes_loss',
        'series': series,
        'size': (7.2, 3.0),
        'panels': [loss, {**loss, **seconds}],
      },
      {
        'name': 'whitening_routes_accuracy',
        'series': series,
        'size': (7.2, 3.0),
        'panels': [accuracy, {**accuracy, **seconds}],
      },
    ],
    'claims': [
      {
        **faster,
        'claim': f'With {this} training is faster than with {that}',
        'source': source,
        'published': published,
        'this': ROUTES[this],
        'that': ROUTES[that],
      }
      for this, that, source, published in FASTER
    ]
    + [
      {
        'claim': 'A step with IterNorm takes less time than with DBN',
        **ITER_NORM,
        'published': 'on GPUs, no number (abstract)',
        'measured': 'milliseconds a step',
        'measure': {'name': 'milliseconds_a_step'},
        'that': NORMS['DBN'],
        'expected': 'lower',
      },
      {
        'claim': 'IterNorm ends at a higher test accuracy than batch norm',
        **ITER_NORM,
        'published': 'on CIFAR-10 and ImageNet, no number (abstract)',
        'measured': 'test accuracy after the last step',
        'measure': {'name': 'final', 'metric': 'test_accuracy'},
        'that': NORMS['batch norm'],
        'expected': 'higher',
      },
    ],
  }
