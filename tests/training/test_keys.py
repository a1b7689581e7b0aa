"""Each key of a config changes what it names, and nothing else.

A row has a key, a value, and the part of a run that must change: the training,
only the evaluation, only the probe, or nothing.
"""

import copy

import ml_collections
import numpy as np
import pytest

from bn_research import overrides, training, workdir
from tests.quick import some
from tests.training.conftest import CONFIG

pytestmark = pytest.mark.usefixtures('loaded')

_RESIDUAL = {
  'model.width': 2,
  'optimizer.learning_rate': 0.05,
  **dict.fromkeys(('model.widths', 'model.nonlinearity', 'model.init_scale')),
}
BASES = {
  'base': {},
  'scoped': {'model.norm.scope.name': 'batch'},
  'without': {'optimizer.momentum': None},
  'decayed': {'optimizer.schedule.name': 'cosine'},
  'halved': {'optimizer.schedule.name': 'exponential'},
  'stairs': {
    'optimizer.schedule.name': 'step',
    'optimizer.schedule.boundaries': ('30%', '60%'),
  },
  'straight': {'optimizer.schedule.name': 'linear'},
  'cycle': {'optimizer.schedule.name': 'one_cycle'},
  'warm': {'optimizer.schedule.warmup': 4},
  'averaged': {
    'optimizer.average.name': 'ema',
    'eval.population': 'reestimated',
  },
  'evaluated': {
    'optimizer.average.name': 'ema',
    'eval.population': 'reestimated',
    'eval.weights': 'average',
  },
  'ramped': {
    'model.norm.momentum.name': 'ramp',
    'model.norm.momentum.initial': 0.0,
    'model.norm.momentum.final': 0.9,
    'model.norm.momentum.start': 2,
    'model.norm.momentum.stop': 8,
  },
  'decays': {'optimizer.weight_decay': 0.1},
  'short': {
    'optimizer.clip.name': 'global_norm',
    'optimizer.clip.max_norm': 0.1,
  },
  'adaptive': {
    'optimizer.clip.name': 'adaptive',
    'optimizer.clip.clipping': 1e-3,
  },
  'adam': {'optimizer.name': 'adamw', 'optimizer.momentum': None},
  'rmsprop': {'optimizer.name': 'rmsprop', 'optimizer.learning_rate': 0.01},
  'covariance': {'optimizer.precondition.name': 'input_covariance'},
  'prong': {'model.dense.name': 'prong', 'model.dense.every': 3},
  'whitened': {'data.normalize.name': 'whiten'},
  'cropped': {'data.augment.pad_crop.padding': 1},
  'covered': {'data.augment.cutout.size': 2},
  'whitening': {'model.norm.name': 'batch_whitening'},
  'plain': {'model.norm.name': 'none'},
  'patches': {
    'model.name': 'patch_cnn',
    'model.widths': (4,),
    'model.init_scale': None,
    'model.stem.name': 'whitened_patches',
    'probes.activations': None,
  },
  'cnn': {'model.name': 'cnn', 'model.init_scale': None},
  'resnet': _RESIDUAL | {'model.name': 'resnet', 'model.depth': 8},
  'wide': _RESIDUAL | {'model.name': 'wide_resnet', 'model.depth': 10},
}
TRAINING = [
  ('base', 'seed', 1),
  ('base', 'batch_size', 8),
  ('base', 'microbatches', 4),
  ('base', 'label_smoothing', 0.1),
  ('base', 'data.binarize', 0.5),
  ('base', 'data.normalize', 'standardize'),
  ('whitened', 'data.normalize.epsilon', 0.5),
  ('whitened', 'data.normalize.per', 'channel'),
  ('base', 'data.augment.flip', 'flip'),
  ('base', 'data.augment.any', 'flip'),
  ('base', 'data.augment.pad_crop.padding', 1),
  ('cropped', 'data.augment.pad_crop.padding', 2),
  ('cropped', 'data.augment.pad_crop.fill', 'zeros'),
  ('base', 'data.augment.cutout.size', 2),
  ('covered', 'data.augment.cutout.size', 3),
  ('covered', 'data.augment.cutout.fill', 'zeros'),
  ('base', 'model.widths', (12, 9)),
  ('base', 'model.nonlinearity', 'relu'),
  ('base', 'model.init_scale', 0.5),
  ('plain', 'model.dense_bias', True),
  ('base', 'model.norm', 'layer_norm'),
  ('base', 'model.norm.epsilon', 0.1),
  ('base', 'model.norm.group_size', 4),
  ('base', 'model.norm.gradient', 'stopped'),
  ('scoped', 'model.norm.scope.group_size', 4),
  ('base', 'model.norm.map', 'whiten'),
  ('base', 'model.norms.hidden_2', 'none'),
  ('whitening', 'model.norm.method', 'pca'),
  ('whitening', 'model.norm.shrinkage', 0.5),
  ('whitening', 'model.norm.floor', 0.5),
  ('whitening', 'model.norm.every', 2),
  ('whitening', 'model.norm.refinements', 1),
  ('cnn', 'model.widths', (12, 9)),
  ('cnn', 'model.nonlinearity', 'tanh'),
  ('cnn', 'model.dtype', 'bfloat16'),
  ('resnet', 'model.width', 3),
  ('resnet', 'model.preactivation', True),
  ('resnet', 'model.zero_init', True),
  ('resnet', 'model.norms.stage2_block1_norm2', 'none'),
  ('wide', 'model.factor', 9),
  ('wide', 'model.dropout', 0.3),
  ('base', 'model.dense', 'prong'),
  ('prong', 'model.dense.every', 4),
  ('prong', 'model.dense.epsilon', 0.1),
  ('prong', 'model.dense.decay', 0.5),
  ('prong', 'model.dense.relative', True),
  ('patches', 'model.stem', 'learned'),
  ('patches', 'model.stem.kernel_size', 3),
  ('patches', 'model.stem.epsilon', 0.1),
  ('patches', 'model.stem.num_examples', 20),
  ('without', 'optimizer', 'adam'),
  ('base', 'optimizer.learning_rate', 0.4),
  ('base', 'optimizer.momentum', 0.8),
  ('base', 'optimizer.nesterov', True),
  ('base', 'optimizer.schedule', 'cosine'),
  ('decayed', 'optimizer.schedule.alpha', 0.5),
  ('halved', 'optimizer.schedule.decay', 0.5),
  ('stairs', 'optimizer.schedule.boundaries', ('30%', '80%')),
  ('stairs', 'optimizer.schedule.factor', 0.5),
  ('straight', 'optimizer.schedule.alpha', 0.5),
  ('cycle', 'optimizer.schedule.peak', 7),
  ('cycle', 'optimizer.schedule.initial', 0.5),
  ('cycle', 'optimizer.schedule.alpha', 0.5),
  ('cycle', 'optimizer.schedule.descent', 'cosine'),
  ('base', 'optimizer.schedule.warmup', '0.5 epochs'),
  ('warm', 'optimizer.schedule.warmup_from', 0.5),
  ('base', 'optimizer.weight_decay', 0.1),
  ('decays', 'optimizer.decay_mask', 'all'),
  ('short', 'optimizer.clip.max_norm', 0.2),
  ('base', 'optimizer.clip', 'adaptive'),
  ('adaptive', 'optimizer.clip.clipping', 1e-2),
  ('adaptive', 'optimizer.clip.eps', 10.0),
  ('adaptive', 'optimizer.clip.skip', ('output',)),
  ('without', 'optimizer', 'lion'),
  ('adam', 'optimizer.b1', 0.5),
  ('adam', 'optimizer.b2', 0.9),
  ('adam', 'optimizer.eps', 0.1),
  ('adam', 'optimizer.weight_decay', 0.1),
  ('rmsprop', 'optimizer.decay', 0.5),
  ('rmsprop', 'optimizer.eps', 0.1),
  ('rmsprop', 'optimizer.momentum', 0.5),
  ('base', 'optimizer.precondition', 'input_covariance'),
  ('covariance', 'optimizer.precondition.every', 3),
  ('covariance', 'optimizer.precondition.epsilon', 0.1),
  ('covariance', 'optimizer.precondition.decay', 0.5),
  ('covariance', 'optimizer.precondition.covariance', 'diagonal'),
  ('covariance', 'optimizer.precondition.relative', True),
]
EVALUATION = [
  ('base', 'model.norm.momentum', 0.5),
  ('ramped', 'model.norm.momentum.initial', 0.5),
  ('ramped', 'model.norm.momentum.final', 0.5),
  ('ramped', 'model.norm.momentum.start', 6),
  ('ramped', 'model.norm.momentum.stop', 20),
  ('base', 'model.norm.unbiased', False),
  ('base', 'model.norm.population', 'cumulative'),
  ('base', 'eval.population', 'reestimated'),
  ('averaged', 'eval.weights', 'average'),
  ('evaluated', 'optimizer.average.decay', 0.5),
  ('base', 'eval.splits', ('test', 'train')),
  ('base', 'eval.num_points', 3),
]
PROBE = [
  ('base', 'probes.activations.percentiles', (10.0, 50.0)),
  ('base', 'probes.activations.unit', 2),
  ('base', 'probes.activations.nonlinearities', ('hidden_1/input',)),
  ('base', 'probes.activations.num_examples', 20),
  ('base', 'probes.activations.num_points', 3),
  ('base', 'probes.activations.spacing', 'linear'),
  ('base', 'probes.second.name', 'whiteness'),
  ('base', 'probes.activations', None),
]
NOTHING = [
  ('base', 'checkpoint_seconds', 0.0),
  ('base', 'model.norm.epsilon', 1e-5),
  ('base', 'data.normalize', 'none'),
  ('base', 'data.augment.flip', None),
  ('cropped', 'data.augment.pad_crop.fill', 'mean'),
  ('base', 'optimizer.schedule', 'constant'),
  ('base', 'optimizer.average', 'ema'),
  ('base', 'probes.second', None),
]
ROWS = [
  (changes, *row)
  for changes, rows in (
    ('training', TRAINING),
    ('evaluation', EVALUATION),
    ('probe', PROBE),
    ('nothing', NOTHING),
  )
  for row in rows
]
QUICK = [
  ('training', 'base', 'optimizer.nesterov', True),
  ('evaluation', 'base', 'model.norm.momentum', 0.5),
  ('probe', 'base', 'probes.activations.unit', 2),
  ('nothing', 'base', 'checkpoint_seconds', 0.0),
]


@pytest.fixture(scope='module')
def bases():
  """The results of the base configs, computed once."""
  return {}


@pytest.mark.parametrize(('changes', 'base', 'key', 'value'), some(QUICK, ROWS))
def test_a_key_changes_what_it_names(
  changes, base, key, value, bases, tmp_path
):
  if base not in bases:
    bases[base] = trained(BASES[base], tmp_path / 'base')
  found = trained({**BASES[base], key: value}, tmp_path / 'changed')
  parts = ('training', 'evaluation', 'probe')
  changed = [part for part in parts if found[part] != bases[base][part]]
  # A change of the training may change all that follows.
  assert changed[:1] == [part for part in parts if part == changes]
  if changes in ('evaluation', 'probe'):
    assert changed == [changes]


def trained(changes, directory):
  """Trains ten steps; returns the parts of the run that a key may change."""
  config = ml_collections.ConfigDict(copy.deepcopy(CONFIG))
  small = {'num_steps': 10, 'eval.num_points': 2}
  overrides.apply(config, {**small, **changes}, 'the test')
  training.train(config, directory)
  rows = workdir.read_metrics(directory)
  losses = {row['step']: row['train_loss'] for row in rows if row['step']}
  for row in rows:
    del row['seconds']
    for name in ('train_loss', 'grad_norm', 'update_norm', 'param_norm'):
      row.pop(name, None)
  probes = {
    (path.stem, name): (array.shape, np.asarray(array).tobytes())
    for path in (directory / workdir.PROBES).glob('*.npz')
    for name, array in workdir.read_probe(directory, path.stem).items()
  }
  # The last loss is a mean over the steps since the row before, and the rows
  # are a matter of the evaluation.
  total, before = 0.0, 0
  for step, loss in losses.items():
    total += loss * (step - before)
    before = step
  return {'training': round(total, 5), 'evaluation': rows, 'probe': probes}
