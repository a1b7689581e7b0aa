"""PCA whitening turns axes, ZCA does not: why the rotation counts.

L. Huang, D. Yang, B. Lang and J. Deng, "Decorrelated Batch Normalization",
2018, arXiv:1804.08450: whitened by PCA, a network hardly trains, for
eigenvectors change order and sign from one batch to the next ("stochastic axis
swapping"); whitened by ZCA, it does. Both whiten equally well. The paper shows
curves of an MLP on MNIST. L. Huang, L. Zhao, Y. Zhou, F. Zhu, L. Liu and
L. Shao, "An Investigation into the Stochasticity of Batch Whitening", 2020,
arXiv:2003.12327, add Cholesky's factor to the comparison.

The network of Figure 1 of Ioffe and Szegedy (2015), σ = 0.1, batches of 128,
whitened in groups of 16 units (ε = 0.001 of the mean variance), by PCA, ZCA or
Cholesky's factor, which is no closer to the identity than PCA but continuous;
and batch norm, which only standardizes. The learning rate is 0.5; at 2.0 the
one with PCA was at 80 % after 400 steps of seed 0, and that with ZCA at 98 %.

    python -m bn_research.sweep --config=configs/pca_against_zca.py:digits \\
        --workdir=runs/pca_against_zca
    python -m bn_research.report --config=configs/pca_against_zca.py:digits \\
        --workdir=runs/pca_against_zca

Variants: `digits`, the 8x8 images of scikit-learn, 400 steps; `mnist`, 4,000
steps; `quick`, 40 steps of the digits.
"""

from bn_research import experiment, grid

METHODS = {'pca': 'PCA', 'zca': 'ZCA', 'cholesky': 'Cholesky'}
BATCH_NORM = {'model.norm.name': 'batch_norm'}


SETTING = {
  'batch_size': 128,
  'model.widths': (100, 100, 100),
  'model.nonlinearity': 'sigmoid',
  'model.init_scale': 0.1,
  'model.norm.name': 'batch_norm',
  'model.norm.epsilon': 0.001,
  'optimizer.learning_rate': 0.5,
  'eval.num_points': 40,
}
VARIANTS = {
  'digits': {'num_steps': 400},
  'mnist': {'num_steps': 4_000, 'data.name': 'mnist'},
  'quick': {'num_steps': 40, 'eval.num_points': 5},
}


def get_config(arg='digits'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))


def _whitened(method):
  return {
    'model.norm.name': 'batch_whitening',
    'model.norm.method': method,
    'model.norm.group_size': 16,
  }


def sweep():
  return grid.product((*map(_whitened, METHODS), BATCH_NORM), grid.seeds(5))


def report():
  loss = {
    'measured': 'training loss over the last stretch of steps',
    'measure': {'name': 'final', 'metric': 'train_loss'},
  }
  pca, zca, cholesky = map(_whitened, METHODS)
  return {
    'figures': [
      {
        'name': 'pca_against_zca',
        'series': [
          *(
            {'label': label, 'where': _whitened(method)}
            for method, label in METHODS.items()
          ),
          {'label': 'batch norm', 'where': BATCH_NORM},
        ],
        'size': (7.2, 2.6),
        'panels': [
          {
            'name': 'curves',
            'metric': 'train_loss',
            'ylabel': 'training loss',
            'yscale': 'log',
          },
          {
            'name': 'curves',
            'metric': 'test_accuracy',
            'ylabel': 'test accuracy',
          },
        ],
      }
    ],
    'claims': [
      {
        **loss,
        'claim': 'Whitened by PCA a network trains worse than by ZCA',
        'source': 'Huang et al. (2018)',
        'published': 'a plot, no number (abstract, code)',
        'this': pca,
        'that': zca,
        'expected': 'higher',
      },
      {
        'claim': 'Whitened by PCA a network hardly learns, by ZCA well',
        'source': 'Huang et al. (2020)',
        'published': 'no number (introduction)',
        'measured': 'test accuracy after the last step',
        'measure': {'name': 'final', 'metric': 'test_accuracy'},
        'this': pca,
        'that': zca,
        'expected': 'lower',
      },
      {
        **loss,
        'claim': 'Whitened by ZCA a network trains better than with batch norm',
        'source': 'Huang et al. (2018)',
        'published': 'no number (abstract)',
        'this': zca,
        'that': BATCH_NORM,
        'expected': 'lower',
      },
      {
        **loss,
        'claim': "Whitened by Cholesky's factor a classifier trains worse than"
        ' by ZCA',
        'source': 'Huang et al. (2020)',
        'published': 'slightly, no number (recalled)',
        'this': cholesky,
        'that': zca,
        'expected': 'higher',
      },
    ],
  }
