"""The cost of whole configs, without data."""

import importlib.util
import pathlib

import jax
import pytest

from bn_research import data, errors, experiment
from bn_research.training import costs
from tests.quick import some

CONFIGS = sorted(pathlib.Path('configs').glob('[!_]*.py'))
RESNET = {
  'data.name': 'cifar10',
  'batch_size': 32,
  'num_steps': 1000,
  'model': {'name': 'resnet', 'depth': 20, 'norm': {'name': 'batch_norm'}},
}


def module_of(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


VARIANTS = [
  (path.stem, variant)
  for path in CONFIGS
  for variant in module_of(path).VARIANTS
]


@pytest.mark.parametrize(
  ('stem', 'variant'), some([('ioffe2015_fig1', 'quick')], VARIANTS)
)
def test_every_variant_of_every_config_has_a_cost(stem, variant, tmp_path):
  module = module_of(pathlib.Path(f'configs/{stem}.py'))
  cost = costs.estimate(module.get_config(variant), str(tmp_path))
  assert cost.num_parameters > 0
  assert cost.step_flops > 2 * cost.num_parameters * cost.batch_size
  assert cost.kept_bytes > 0
  assert (cost.collectives.number > 0) == (cost.num_devices > 1)
  assert all(len(line) < 90 for line in costs.lines(cost))


def test_a_residual_network_costs_as_published(tmp_path):
  """He et al. (2016), Table 6: 0.27 M parameters; 41 M products an image."""
  before = jax.live_arrays()
  cost = costs.estimate(experiment.config(RESNET), str(tmp_path))
  assert round(cost.num_parameters / 1e6, 2) == 0.27
  assert cost.example_flops == pytest.approx(2 * 41e6, rel=0.02)
  # The first convolution needs no gradient of the images.
  forward = 32 * cost.example_flops
  assert 2.9 * forward < cost.step_flops < 3.2 * forward
  assert cost.kept_with_remat < cost.kept_bytes / 3
  remat = experiment.config(RESNET, {'model.remat': True})
  other = costs.estimate(remat, str(tmp_path))
  assert other.kept_bytes == cost.kept_bytes
  assert other.kept_with_remat == cost.kept_with_remat
  assert cost.dataset.num_examples is None
  assert len(jax.live_arrays()) <= len(before) + 2  # keys


def test_devices_share_the_work_and_add_collectives(tmp_path):
  small = experiment.config(RESNET, {'model.depth': 8})
  one = costs.estimate(small, str(tmp_path))
  small.num_devices = 8
  eight = costs.estimate(small, str(tmp_path))
  assert eight.step_flops == pytest.approx(one.step_flops, rel=0.01)
  assert eight.kept_bytes == pytest.approx(one.kept_bytes, rel=0.01)
  # 7 norms forward and backward, and the gradients of all kernels.
  assert eight.collectives.number == 2 * 7 + 1
  assert one.collectives == (0, 0, 0)


def test_mistakes_are_told_in_a_line(tmp_path):
  for change, message in (
    ({'model.depth': 9}, 'depth=9'),
    ({'data.name': 'cifar_10'}, 'no such dataset'),
    ({'model.name': 'resnot'}, 'resnot'),
    ({'num_devices': 3}, 'cannot be split evenly over num_devices=3'),
    ({'data.stream.suffle': 'shards'}, "did you mean 'shuffle'"),
    ({'data.stream.image_size': -4}, 'image_size=-4'),
    ({'data.normalize.name': 'standardise'}, "did you mean 'standardize'"),
    ({'probes.p.name': 'no_such_probe'}, 'no_such_probe'),
  ):
    config = experiment.config(RESNET, change)
    with pytest.raises(errors.UserError, match=message) as caught:
      costs.estimate(config, str(tmp_path))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'eval.splits': ('test', 'other')}, "names 'other'"),
    ({'data.test': 'tset'}, "config.data.test='tset'"),
    ({'data.test': 'train[:0]'}, 'is empty'),
  ],
)
def test_a_prepared_dataset_is_asked_for_each_split(change, message, tmp_path):
  small = {'data.name': 'digits', 'model.name': 'mlp'}
  data.load({'name': 'digits'}, str(tmp_path))
  costs.estimate(experiment.config(small), str(tmp_path))
  with pytest.raises(errors.UserError, match=message):
    costs.estimate(experiment.config(small, change), str(tmp_path))


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (0, '0 '),
    (999, '999 '),
    (1000, '1 k'),
    (12_345, '12.3 k'),
    (999_600, '1 M'),
    (1.57e15, '1.57 P'),
    (5e21, '5e+03 E'),
  ],
)
def test_numbers_have_three_digits(value, expected):
  from bn_research.training.costs import table

  assert table.number(value) == expected
