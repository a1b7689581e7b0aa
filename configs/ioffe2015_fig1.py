"""Figure 1 of the Batch Normalization paper: one network, with and without.

S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network
Training by Reducing Internal Covariate Shift", 2015, arXiv:1502.03167,
Section 4.1.

The paper gives: binary 28x28 input, 784-100-100-100-10, sigmoid hidden units,
cross-entropy, "small random Gaussian" weights, batch norm before each sigmoid,
50,000 steps of 60 examples. It does not give the optimizer, the learning
rate, the standard deviation of the weights, the rule that makes the input
binary, or epsilon and momentum of batch norm. Chosen here:

* plain SGD at a learning rate of 0.5, no decay, no momentum. At 0.01 the
  network without batch norm stays near chance for most of the run, outside the
  axis of the paper's figure; from 0.5 on, both curves fall inside it;
* weights from N(0, 0.1^2), with which both networks start to learn at once;
* a pixel is 1 where it is above half of the full intensity;
* the defaults of `norms.batch_norm`: epsilon 1e-5, running averages that keep
  0.99 of the old value a step.

The size of the gap depends on the first two: name them beside any number.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg='mnist'):
  if arg not in ('digits', 'mnist', 'quick'):
    raise ValueError(f'unknown variant {arg!r}; have: digits, mnist, quick')

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_steps = {'mnist': 50_000, 'digits': 5_000, 'quick': 200}[arg]
  config.batch_size = 60
  config.num_devices = 1

  config.data = ml_collections.ConfigDict()
  config.data.name = 'mnist' if arg == 'mnist' else 'digits'
  config.data.train = 'train'
  config.data.test = 'test'
  config.data.binarize = config_dict.placeholder(float)
  config.data.binarize = 0.5

  config.model = ml_collections.ConfigDict()
  config.model.name = 'mlp'
  config.model.widths = (100, 100, 100)
  config.model.nonlinearity = 'sigmoid'
  config.model.init_scale = 0.1
  config.model.norm = ml_collections.ConfigDict()
  config.model.norm.name = 'batch_norm'
  config.model.norm.momentum = config_dict.placeholder(float)
  config.model.norm.epsilon = config_dict.placeholder(float)
  config.model.norm.group_size = config_dict.placeholder(int)
  config.model.norm.gradient = config_dict.placeholder(str)
  config.model.norm.unbiased = config_dict.placeholder(bool)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.5
  config.optimizer.momentum = 0.0

  config.eval = ml_collections.ConfigDict()
  config.eval.num_points = 10 if arg == 'quick' else 100
  config.eval.spacing = 'linear'

  config.probe = ml_collections.ConfigDict()
  config.probe.name = 'activations'
  config.probe.percentiles = (15.0, 50.0, 85.0)
  config.probe.unit = 0
  config.probe.num_examples = 1000
  config.probe.num_points = config.eval.num_points
  config.probe.spacing = 'linear'

  config.checkpoint_seconds = 60.0
  return config


def sweep():
  return [
    {'model.norm.name': norm, 'seed': seed}
    for norm in ('none', 'batch_norm')
    for seed in range(5)
  ]


def report():
  without = {'model.norm.name': 'none'}
  batch_norm = {'model.norm.name': 'batch_norm'}
  last = 'hidden_3/input'
  bands = {
    'name': 'bands',
    'probe': 'activations',
    'array': f'{last}/unit',
    'ylabel': 'input of one sigmoid',
  }
  drift = {'name': 'drift', 'probe': 'activations'}
  claim = {
    'source': 'paper, Section 4.1',
    'published': 'a plot, no number',
    'this': batch_norm,
    'that': without,
  }
  return {
    'figures': [
      {
        'name': 'figure1',
        'series': [
          {'label': 'Without BN', 'where': without},
          {'label': 'With BN', 'where': batch_norm},
        ],
        'panels': [
          {
            'name': 'curves',
            'metric': 'test_accuracy',
            'title': '(a)',
            'ylabel': 'test accuracy',
            'ylim': (0.7, 1.0),
          },
          {**bands, 'series': 'Without BN', 'title': '(b) Without BN'},
          {**bands, 'series': 'With BN', 'title': '(c) With BN'},
        ],
      }
    ],
    'claims': [
      {
        **claim,
        'claim': 'Batch normalization trains faster',
        'measured': 'mean test accuracy over the first fifth of the steps',
        'measure': {'name': 'early', 'metric': 'test_accuracy', 'part': 0.2},
        'expected': 'higher',
      },
      {
        **claim,
        'claim': 'Batch normalization ends at a higher test accuracy',
        'measured': 'test accuracy after the last step',
        'measure': {'name': 'final', 'metric': 'test_accuracy'},
        'expected': 'higher',
      },
      {
        **claim,
        'claim': 'Batch normalization keeps the input of a sigmoid more stable',
        'measured': 'drift of their percentiles, one unit of the last layer',
        'measure': {**drift, 'array': f'{last}/unit'},
        'expected': 'lower',
      },
      {
        **claim,
        'claim': 'Batch normalization keeps the inputs of a layer more stable',
        'measured': 'drift of their percentiles, all units of the last layer',
        'measure': {**drift, 'array': f'{last}/all'},
        'expected': 'lower',
      },
    ],
  }
