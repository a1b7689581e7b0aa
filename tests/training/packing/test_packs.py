"""Runs in a pack are the runs that would train alone."""

import copy
import json
import math

import jax
import numpy as np
import pytest

from bn_research import training, workdir
from bn_research.training import packing, stopping
from bn_research.training.packing import members

pytestmark = pytest.mark.usefixtures('loaded')

CHANGES = (
  {'seed': 3},
  {'optimizer.learning_rate': 0.3, 'model.norm.epsilon': 1e-2},
  {'seed': 3, 'optimizer.momentum': 0.5, 'model.init_scale': 0.2},
)


def changed(config, changes):
  config = copy.deepcopy(config)
  for key, value in changes.items():
    *sections, name = key.split('.')
    section = config
    for inner in sections:
      section = section[inner]
    section[name] = value
  return config


def pack(configs, folder, stop=None, **options):
  """Trains configs in a pack, and returns the members."""
  group = [
    packing.Member(config, folder / str(k)) for k, config in enumerate(configs)
  ]
  with packing.by_thread():
    packing.train(group, stop or stopping.Stop(), **options)
  return group


@pytest.mark.parametrize('is_vectorized', [False, True])
def test_a_run_in_a_pack_is_the_run_alone(
  config, results, tmp_path, is_vectorized
):
  config['num_steps'] = 20
  configs = [changed(config, changes) for changes in CHANGES]
  group = pack(configs, tmp_path, is_vectorized=is_vectorized)
  for k, (member, one) in enumerate(zip(group, configs, strict=True)):
    assert member.exit_status == 0
    alone = tmp_path / f'alone {k}'
    training.train(one, alone)
    record = workdir.read_record(member.directory)
    assert record['starts'][0]['pack'] == {'width': 3, 'devices': 3}
    assert record['config'] == workdir.read_config(alone)
    rows, arrays, _ = results(member.directory)
    expected, measured, _ = results(alone)
    assert rows == [pytest.approx(row, rel=1e-4, abs=1e-5) for row in expected]
    assert arrays.keys() == measured.keys()
