"""The base config of all experiments.

A config file imports this module and `grid`, and no other module of this
package. The file lists the differences of an experiment from the base:

    from bn_research import experiment

    def get_config(arg='digits'):
      return experiment.config(
        {'model.norm.name': 'layer_norm'},
        experiment.variant(arg, {'digits': {}, 'quick': {'num_steps': 50}}),
      )

The module does not import JAX, because a config must load fast.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from bn_research import older, overrides, registry

Changes = Mapping[str, Any]

KEYS = {
  'seed': (
    'The seed of the initial parameters, of the order of the examples and of'
    ' dropout.'
  ),
  'num_steps': 'The number of training steps.',
  'batch_size': 'The number of examples of a step, over all devices together.',
  'num_devices': 'The number of devices, which divides `batch_size`.',
  'microbatches': (
    'The number of parts in which a step computes the gradient, one after'
    ' another, to save memory. Statistics of a batch are then of a part.'
  ),
  'parallel.form': (
    'How a step uses several devices: `jit` over a mesh, `shard_map` or `pmap`.'
    ' The numbers are the same but for rounding.'
  ),
  'parallel.model_devices': (
    'The number of devices that share the columns of each matrix of weights,'
    ' which divides `num_devices`. The other devices share the batch. Only for'
    ' `jit`.'
  ),
  'label_smoothing': (
    'ε in [0, 1): the loss of the training takes the label with the weight'
    ' 1 - ε, and all classes with the weight ε together. The loss of the'
    ' evaluation takes the label alone.'
  ),
  'data': 'The dataset: a part. A dataset of a user takes further options.',
  'data.name': '`digits`, `mnist`, a name in TFDS, or `module:attribute`.',
  'data.train': 'The split of TFDS for the training, such as `train[:50000]`.',
  'data.test': 'The split of TFDS that `eval.splits` calls `test`.',
  'data.binarize': (
    'A threshold in [0, 1]: a brighter pixel becomes 1, and any other pixel 0.'
    ' None for grey values.'
  ),
  'data.augment.KEY': (
    'A random change of the training images in each step: a part, whose name is'
    ' KEY if the section has no `name`. `pad_crop` comes first, then `flip`,'
    ' then `cutout`, then parts of a user in the order of KEY.'
  ),
  'data.normalize': (
    'A normalization of the inputs, fitted on the training split: a part.'
  ),
  'data.stream': (
    'A section of options: a dataset of TFDS is read while the run trains, and'
    ' need not fit the memory.'
  ),
  'model': 'The network: a part.',
  'model.name': 'The name of the network.',
  'model.norm': 'The normalization of every place in the network: a part.',
  'model.norm.name': 'The name of the normalization, or of a combination.',
  'model.norm.scope': 'The activations that normalize: a part.',
  'model.norm.map': 'How the moments change an activation: a part.',
  'model.norm.population': 'The moments to remember for inference: a part.',
  'model.norm.gradient': 'What reaches the gradient: a part.',
  'model.norms.PLACE': (
    'The normalization of a single place, such as `hidden_1`: a part like'
    ' `model.norm`.'
  ),
  'model.dense': 'The dense layers: a part.',
  'model.stem': (
    'The first layer, of a network that has a choice (`patch_cnn`): a part.'
  ),
  'optimizer': 'The optimizer: a part.',
  'optimizer.name': (
    'The name of the optimizer: one below, or a function of optax such as'
    ' `lion`.'
  ),
  'optimizer.learning_rate': 'The learning rate, before the schedule.',
  'optimizer.schedule': 'The schedule of the learning rate: a part.',
  'optimizer.schedule.warmup': (
    'The steps of a straight line up to the learning rate, before the schedule'
    " begins: a number of steps, or a text: '400 steps', '5 epochs', or '5%' of"
    ' the run.'
  ),
  'optimizer.schedule.warmup_from': (
    'The learning rate at the start of the warm-up, in units of the learning'
    ' rate at the end of the warm-up; 0 by default.'
  ),
  'optimizer.clip': 'How to clip the gradient: a part.',
  'optimizer.weight_decay': (
    'λ: the gradient gains λ times the weights, before the optimizer sees the'
    ' gradient. An optimizer with an option of this name, such as `adamw`,'
    ' decays the weights itself.'
  ),
  'optimizer.decay_mask': (
    '`kernels` for a decay without biases and without the parameters of norms,'
    ' by default; or `all`.'
  ),
  'optimizer.average': 'An average of the weights: a part.',
  'optimizer.precondition': 'The preconditioner of `sgd`: a part.',
  'eval.num_points': 'The number of evaluations after the one at step 0.',
  'eval.spacing': (
    '`linear` for equal distances between the evaluations, or `log` for equal'
    ' ratios.'
  ),
  'eval.splits': (
    'The splits of the evaluation: `test`, `train` or further splits of TFDS.'
  ),
  'eval.population': (
    'The moments of the evaluation: `running`, or `reestimated` over the'
    ' training split (Algorithm 2 of Ioffe and Szegedy, 2015). Re-estimation'
    ' takes a forward pass over the split for each normalization, at every row,'
    ' and changes nothing without a population, as in layer norm.'
  ),
  'eval.weights': (
    'The weights of the evaluation: the `last`, or the `average` of'
    ' `optimizer.average`. Averaged weights need `reestimated` moments.'
  ),
  'eval.step_norms': (
    'The norms of gradient, update and parameters in a row: of the `last` step,'
    ' or the `mean` over the steps since the row before.'
  ),
  'probes.KEY': (
    'A probe: a part, whose name is KEY if the section has no `name`. The file'
    ' `probes/KEY.npz` has the measurements.'
  ),
  'probes.KEY.num_examples': (
    'The number of training examples of a measurement; `batch_size` by default.'
  ),
  'probes.KEY.num_points': (
    'The number of measurements after the one at step 0; `eval.num_points` by'
    ' default.'
  ),
  'probes.KEY.spacing': '`linear` or `log`; `eval.spacing` by default.',
  'checkpoint_seconds': 'The least time between two checkpoints, in seconds.',
}
"""The meaning of each key of a config that is not an option of a part."""


def base() -> ml_collections.ConfigDict:
  """Returns the base config, with a value for each key of a run.

  Returns:
    A config of an MLP without normalization, trained on the digits with plain
    SGD. `KEYS` has the meaning of each key.
  """
  return ml_collections.ConfigDict(
    {
      'seed': 0,
      'num_steps': 1000,
      'batch_size': 60,
      'num_devices': 1,
      'microbatches': older.ADDED['microbatches'],
      'label_smoothing': older.ADDED['label_smoothing'],
      'data': {'name': 'digits', 'train': 'train', 'test': 'test'},
      'model': {'name': 'mlp', 'norm': {'name': 'none'}},
      'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
      'eval': {
        'num_points': 50,
        'spacing': 'linear',
        'splits': ('test',),
        'population': older.ADDED['eval.population'],
        'weights': older.ADDED['eval.weights'],
        'step_norms': older.ADDED['eval.step_norms'],
      },
      'parallel': {
        'form': older.ADDED['parallel.form'],
        'model_devices': older.ADDED['parallel.model_devices'],
      },
      'probes': {},
      'checkpoint_seconds': 60.0,
    }
  )


def config(*changes: Changes) -> ml_collections.ConfigDict:
  """Returns the base with changes.

  Args:
    *changes: Values by dotted key. Later changes replace earlier changes. None
      leaves an option to the default of the part.

  Raises:
    UserError: If a key or the type of a value is wrong.
  """
  result = base()
  for some in changes:
    overrides.apply(result, some, 'the config')
  return result


def variant(arg: str, variants: Mapping[str, Any]) -> Changes:
  """Returns the changes of a variant of an experiment.

  Args:
    arg: The text after the colon in `--config=path.py:arg`.
    variants: The changes of each variant, by name.

  Raises:
    ValueError: If no variant has the name `arg`.
  """
  if arg not in variants:
    raise ValueError(
      f'unknown variant {arg!r}{registry.hint(arg, variants)}; there are'
      f' {", ".join(variants)}'
    )
  return variants[arg]
