"""Residual networks on CIFAR-10 with any normalization: the config to copy.

K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image
Recognition", 2016, arXiv:1512.03385, Section 4.2: networks of depth 6n + 2 with
batch norm after each convolution; SGD with momentum 0.9, batches of 128, weight
decay 0.0001, a learning rate of 0.1 that falls to a tenth after 32,000 and
48,000 of 64,000 steps; images minus the mean of each pixel, padded by 4 pixels,
cropped and mirrored. The paper subtracts the mean only and decays all
parameters; here images also have unit deviation in each channel, and norms and
biases have no decay (`data.normalize.name='centre'`, `data.normalize.per=None`
and `optimizer.decay_mask='all'` for the paper's).

    python -m bn_research.train --config=configs/he2016_resnet.py:cifar10 \\
        --workdir=runs/resnet20
    python -m bn_research.train --config=configs/he2016_resnet.py:gpu \\
        --config.model.norm.name=group_norm --config.model.norm.group_size=4 \\
        --workdir=runs/resnet20_group_norm

The published errors, in % (recalled, Table 6): 8.75 for depth 20, 6.97 for 56,
and 6.43 for the best of five of depth 110.

Variants:

* `quick`: depth 8 and half the width on the 8x8 images of scikit-learn, 300
  steps, a minute on two cores;
* `cifar10`: depth 20, 10 epochs of one cycle of the learning rate (ours): peak
  0.2, Nesterov momentum, weight decay 0.0005. Seed 0 ended at an accuracy of
  87.6 %, with `model.norm.momentum=0.9`, after 71 minutes on two cores that had
  other work beside;
* `gpu`: the recipe of the paper, 64,000 steps; set `model.depth` to 56;
* `pod`: ResNet-50 on ImageNet in bfloat16, batches of 1,024 on 8 devices, 90
  epochs, with the learning rate and the warm-up of Goyal et al. (2017).
"""

from bn_research import experiment

SETTING = {
  'batch_size': 128,
  'data.name': 'cifar10',
  'data.normalize.name': 'standardize',
  'data.normalize.per': 'channel',
  'data.augment.pad_crop.padding': 4,
  'data.augment.flip.name': 'flip',
  'model': {'name': 'resnet', 'depth': 20, 'norm': {'name': 'batch_norm'}},
  'optimizer.learning_rate': 0.1,
  'optimizer.momentum': 0.9,
  'optimizer.weight_decay': 1e-4,
}
PAPER = {
  'num_steps': 64_000,
  'optimizer.schedule.name': 'step',
  'optimizer.schedule.boundaries': (32_000, 48_000),
}
VARIANTS = {
  'quick': {
    'num_steps': 300,
    'data.name': 'digits',
    'data.augment.pad_crop.padding': 1,
    'data.augment.flip': None,
    'model.depth': 8,
    'model.width': 8,
    'eval.num_points': 6,
    'optimizer.schedule.name': 'one_cycle',
  },
  'cifar10': {
    'num_steps': 3_910,
    'eval.num_points': 10,
    'optimizer.learning_rate': 0.2,
    'optimizer.nesterov': True,
    'optimizer.weight_decay': 5e-4,
    'optimizer.schedule.name': 'one_cycle',
    'optimizer.schedule.peak': '25%',
  },
  'gpu': PAPER,
  'pod': {
    'num_steps': 112_590,
    'batch_size': 1_024,
    'num_devices': 8,
    'data.augment.pad_crop': None,
    'data': {
      'name': 'imagenet2012',
      'train': 'train',
      'test': 'validation',
      'stream': {'image_size': 224},
    },
    'model': {
      'name': 'resnet_imagenet',
      'depth': 50,
      'zero_init': True,
      'dtype': 'bfloat16',
      'norm': {'name': 'batch_norm'},
    },
    'eval.num_points': 90,
    'optimizer.learning_rate': 0.4,
    'optimizer.schedule.name': 'step',
    'optimizer.schedule.boundaries': ('30 epochs', '60 epochs', '80 epochs'),
    'optimizer.schedule.warmup': '5 epochs',
    'optimizer.schedule.warmup_from': 0.25,
  },
}


def get_config(arg='cifar10'):
  return experiment.config(SETTING, experiment.variant(arg, VARIANTS))
