"""Internal covariate shift, by three definitions, with and without norms.

S. Ioffe and C. Szegedy, 2015, arXiv:1502.03167, Sections 1 and 4.1: internal
covariate shift is "the change in the distribution of network activations due to
the change in network parameters during training"; Figure 1(b, c) shows it for
one unit of the last hidden layer. S. Santurkar, D. Tsipras, A. Ilyas and
A. Madry, "How Does Batch Normalization Help Optimization?", 2018,
arXiv:1805.11604, Definition 2.1: the shift of a layer is the difference of its
gradient before and after the preceding layers take their step; they find that
batch norm does not reduce it.

Here both, for every layer of the network of Figure 1, and the whiteness of the
inputs of layers: without a norm, with batch norm, layer norm, and whitened
(DBN, in groups of 16). The learning rate is 1.0 for all, so the steps that
layers take differ in size between norms; the cosine of the two gradients does
not depend on the size of the gradients.

    python -m bn_research.sweep --config=configs/covariate_shift.py:digits \\
        --workdir=runs/covariate_shift
    python -m bn_research.report --config=configs/covariate_shift.py:digits \\
        --workdir=runs/covariate_shift

On the digits, five seeds, the definitions agree: with batch norm the
percentiles of activations drift less (0.07 against 0.60 in layer 1), and the
two gradients are closer (cosines of 0.99, 0.98 and 0.98 against 0.96, 0.70 and
0.60). The finding of Santurkar et al., on other networks, does not hold here:
of this small network of sigmoids, at a learning rate of 1.0. With layer norm
gradients shift as much as without a norm.

Variants: `digits`, the 8x8 images of scikit-learn, 2,000 steps; `mnist`, 20,000
steps; `quick`, 40 steps of the digits.
"""

from bn_research import experiment, grid

NORMS = {
  'without': {'model.norm.name': 'none'},
  'batch norm': {'model.norm.name': 'batch_norm'},
  'layer norm': {'model.norm.name': 'layer_norm'},
  'DBN': {'model.norm.name': 'decorrelated_batch_norm'},
}
LAYERS = {'dense/1': 'layer 2', 'dense/2': 'layer 3', 'output': 'output'}
SETTING = {
  'data.binarize': 0.5,
  'model.widths': (100, 100, 100),
  'model.init_scale': 0.1,
  'optimizer.learning_rate': 1.0,
  'probes.activations.num_examples': 300,
  'probes.covariate_shift.num_examples': 300,
  'probes.whiteness.num_examples': 300,
}
VARIANTS = {
  'digits': {'num_steps': 2_000},
  'mnist': {'num_steps': 20_000, 'data.name': 'mnist'},
  'quick': {'num_steps': 40, 'eval.num_points': 4},
}


def get_config(arg='digits'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))


def sweep():
  return grid.product(NORMS.values(), grid.seeds(5))


def report():
  shift = {'name': 'curves', 'probe': 'covariate_shift'}
  cosine = {'name': 'early', 'probe': 'covariate_shift', 'part': 1.0}
  correlation = {'name': 'early', 'probe': 'whiteness', 'part': 1.0}
  drift = {'name': 'drift', 'probe': 'activations'}
  series = [{'label': label, 'where': where} for label, where in NORMS.items()]
  claim = {'this': NORMS['batch norm'], 'that': NORMS['without']}
  santurkar = {
    **claim,
    'source': 'Santurkar et al. (2018)',
    'published': 'a plot, no number (recalled)',
  }
  return {
    'figures': [
      {
        'name': 'covariate_shift_curves',
        'series': series,
        'size': (7.2, 2.8),
        'panels': [
          {
            **shift,
            'array': f'{layer}/cosine',
            'title': f'{label}:',
            'ylabel': 'cosine of gradients' if layer == 'dense/1' else '',
          }
          for layer, label in LAYERS.items()
        ],
      },
      {
        'name': 'covariate_shift_means',
        'series': series,
        'size': (7.2, 3.2),
        'panels': [
          {
            'name': 'bars',
            'title': '(a)',
            'ylabel': 'drift of percentiles, all units',
            'measure': {
              f'layer {i}': {**drift, 'array': f'hidden_{i}/input/all'}
              for i in (1, 2, 3)
            },
          },
          *(
            {
              'name': 'bars',
              'title': title,
              'ylabel': ylabel,
              'measure': {
                label: {**measure, 'array': f'{layer}/{array}'}
                for layer, label in LAYERS.items()
              },
            }
            for title, measure, array, ylabel in (
              ('(b)', cosine, 'cosine', 'cosine of gradients, 1 without shift'),
              ('(c)', correlation, 'correlation', 'correlation of inputs'),
            )
          ),
        ],
      },
    ],
    'claims': [
      {
        **claim,
        'claim': f'Batch norm keeps the inputs of layer {i} more stable',
        'source': 'paper, Section 4.1',
        'published': 'a plot, no number (paper)',
        'measured': 'drift of their percentiles, all units',
        'measure': {**drift, 'array': f'hidden_{i}/input/all'},
        'expected': 'lower',
      }
      for i in (1, 2, 3)
    ]
    + [
      {
        **santurkar,
        'claim': f'Batch norm does not lower the shift of gradients of {label}',
        'measured': 'cosine of gradients, mean over the run',
        'measure': {**cosine, 'array': f'{layer}/cosine'},
        'expected': 'lower',
      }
      for layer, label in LAYERS.items()
    ],
  }
