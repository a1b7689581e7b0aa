"""Runs in a pack are the runs that would train alone."""

import itertools

import numpy as np
import pytest

from bn_research import dotted, locking, norms, training, workdir
from bn_research.training import packing, stopping
from bn_research.training.packing import room
from bn_research.training.packing.program import Program
from tests.quick import some

pytestmark = pytest.mark.usefixtures('loaded')

CHANGES = (
  {'seed': 3},
  {'optimizer.learning_rate': 0.3, 'model.norm.epsilon': 1e-2},
  {'seed': 3, 'optimizer.momentum': 0.5, 'model.init_scale': 0.2},
)


def members(configs, folder):
  return [
    packing.Member(one, folder / str(k), folder / f'{k}.txt')
    for k, one in enumerate(configs)
  ]


def pack(group, stop=None, **options):
  """Trains members, and returns their exit statuses."""
  ended = {}

  def end(member, exit_status):
    assert str(member.directory) not in ended
    ended[str(member.directory)] = exit_status

  with packing.by_thread():
    packing.train(group, stop or stopping.Stop(), end, print, **options)
  return [ended.get(str(member.directory)) for member in group]


def log(member):
  return member.log.read_text()


def widths(member):
  starts = workdir.read_record(member.directory)['starts']
  return [start['pack']['width'] for start in starts]


@pytest.fixture
def compiled(monkeypatch):
  """The names of all programs that packs compile."""
  compile_, found = Program.compile, []

  def note(program, lowered):
    found.append(program.name)
    compile_(program, lowered)

  monkeypatch.setattr(Program, 'compile', note)
  return found


@pytest.fixture
def same(results):
  """Checks that a run equals the run alone."""

  def check(member, alone, rel):
    rows, arrays, _ = results(member.directory)
    expected, measured, _ = results(alone)
    assert rows == [pytest.approx(row, rel=rel, abs=rel) for row in expected]
    assert arrays.keys() == measured.keys()

  return check


@pytest.mark.parametrize('is_vectorized', some([True], [False]))
def test_a_run_in_a_pack_is_the_run_alone(
  config, same, tmp_path, compiled, is_vectorized
):
  config['num_steps'] = 20
  configs = [dotted.changed(config, changes) for changes in CHANGES]
  group = members(configs, tmp_path)
  assert pack(group, is_vectorized=is_vectorized) == [0, 0, 0]
  assert len(set(compiled)) == len(compiled) == 5
  for k, (member, one) in enumerate(zip(group, configs, strict=True)):
    training.train(one, alone := tmp_path / f'alone {k}')
    same(member, alone, 1e-5)
    record = workdir.read_record(member.directory)
    told = record['starts'][0]['pack']
    assert (told['width'], told['devices']) == (3, 3)
    assert len(told['settings']) == 3
    assert told['settings'][k] == {}
    assert record['config'] == workdir.read_config(alone)
    assert f'{member.directory}: done at step 20\n' in log(member)


DOUBLE = """
import jax
import jax.numpy as jnp
from flax import nnx

class Net(nnx.Module):
  def __init__(
    self, *, input_shape, num_classes, norm, rngs, scale=1.0, dropout=0.0
  ):
    options = {'rngs': rngs, 'param_dtype': jnp.float64}
    self.dense = nnx.Linear(16, 6, **options)
    self.norm = norm('hidden', 6, **options)
    self.dropout = nnx.Dropout(dropout, rngs=rngs)
    self.output = nnx.Linear(6, num_classes, **options)
    self.scale = scale

  def __call__(self, x, *, train, tap=lambda name, value: value):
    h = self.dense(x.reshape(len(x), -1).astype(jnp.float64))
    h = self.norm(self.scale * h, use_running_average=not train)
    h = self.dropout(jax.nn.relu(h), deterministic=not train)
    return self.output(h)
"""
_OPTIONS = {
  'virtual_batch_norm': {'reference_size': 4},
  'decorrelated_batch_norm': {'group_size': 3},
  'evonorm_s0': {'num_groups': 2},
  'group_norm': {'num_groups': 2},
  # Two groups in six features are singular: ε keeps rounding errors small.
  'group_whitening': {'num_groups': 2, 'epsilon': 0.1},
}


@pytest.fixture
def double(config, user_module, x64):
  """A config of a network in float64, with keys in the state."""
  user_module('double_net', DOUBLE)
  config['model'] = {'name': 'double_net:Net', 'norm': {'name': 'none'}}
  config['num_steps'], config['probes'] = 20, {}
  return config


@pytest.mark.parametrize(
  ('name', 'is_vectorized'),
  some([], itertools.product(norms.NAMES, (False, True))),
)
def test_every_norm_in_float64(
  double, same, results, tmp_path, name, is_vectorized
):
  double['model']['norm'] = {'name': name, **_OPTIONS.get(name, {})}
  configs = [
    dotted.changed(double, {'seed': 1, 'optimizer.learning_rate': 0.25}),
    dotted.changed(double, {'optimizer.momentum': 0.5, 'model.scale': 0.5}),
    dotted.changed(double, {'seed': 2, 'model.dropout': 0.2}),
    dotted.changed(double, {'seed': 3, 'model.dropout': 0.1}),
  ]
  group = members(configs, tmp_path)
  assert pack(group, is_vectorized=is_vectorized) == [0] * 4
  for k, (member, one) in enumerate(zip(group, configs, strict=True)):
    training.train(one, alone := tmp_path / f'alone {k}')
    same(member, alone, 1e-6)
    for key, array in results(member.directory)[2].items():
      if 'params' in key:
        mine, expected = map(np.frombuffer, (array, results(alone)[2][key]))
        np.testing.assert_allclose(mine, expected, rtol=1e-8, atol=1e-10)


def test_seeds_need_no_further_trace_and_equal_the_runs_alone_bit_for_bit(
  config, results, tmp_path, created_steps
):
  group = members(
    [dotted.changed(config, {'seed': k}) for k in range(3)], tmp_path
  )
  assert pack(group) == [0, 0, 0]
  assert len(created_steps) == 1
  for k, member in enumerate(group):
    training.train(member.config, alone := tmp_path / f'alone {k}')
    assert results(member.directory) == results(alone)


def test_an_augmentation_of_each_seed(config, results, tmp_path):
  config['num_steps'], config['probes'] = 10, {}
  config['data']['augment'] = {'pad_crop': {'padding': 1}}
  group = members(
    [dotted.changed(config, {'seed': k}) for k in range(2)], tmp_path
  )
  assert pack(group) == [0, 0]
  for k, member in enumerate(group):
    training.train(member.config, alone := tmp_path / f'alone {k}')
    assert results(member.directory) == results(alone)


NAMED = """
import jax
from flax import nnx

_KEY = jax.random.key(7)

class Net(nnx.Module):
  def __init__(self, *, input_shape, num_classes, norm, rngs, scale=1.0):
    self.dense = nnx.Dict({f'at_{scale}': nnx.Linear(16, 4, rngs=rngs)})
    self.norm = norm('hidden', 4, rngs=rngs)
    self.output = nnx.Linear(4, num_classes, rngs=rngs)
    self.scale = scale

  def __call__(self, x, *, train, tap=lambda name, value: value):
    (dense,) = self.dense.values()
    h = self.scale * dense(x.reshape(len(x), -1))
    h = self.norm(h + jax.random.normal(_KEY), use_running_average=not train)
    return self.output(jax.nn.relu(tap('hidden/input', h)))

class Above:
  def __init__(self, threshold=0.5):
    self.threshold = threshold

  def __call__(self, observation):
    return {f'above_{self.threshold}': (observation.x > self.threshold).mean()}
"""


def test_names_with_numbers_are_those_of_the_run(
  config, results, tmp_path, user_module
):
  user_module('named_net', NAMED)
  config |= {'num_steps': 6}
  config['model'] = {'name': 'named_net:Net', 'norm': {'name': 'batch_norm'}}
  config['probes'] = {
    'above': {'name': 'named_net:Above', 'threshold': 0.5, 'num_points': 2}
  }
  settings = ({}, {'model.scale': 0.5, 'probes.above.threshold': 0.25})
  group = members([dotted.changed(config, some) for some in settings], tmp_path)
  assert pack(group) == [0, 0]
  assert set(widths(group[0])) == {2}
  for k, member in enumerate(group):
    training.train(member.config, alone := tmp_path / f'alone {k}')
    mine, expected = results(member.directory), results(alone)
    assert mine[1] == expected[1]
    assert mine[2].keys() == expected[2].keys()


def test_other_programs_are_other_packs(config, tmp_path, compiled, capsys):
  config['num_steps'] = 10
  settings = ({}, {'optimizer.momentum': None}, {'seed': 1}, {'seed': 2})
  group = members([dotted.changed(config, some) for some in settings], tmp_path)
  assert pack(group) == [0] * 4
  assert [widths(member) for member in group] == [[3], [1], [3], [3]]
  assert len(compiled) == 10
  told = capsys.readouterr().out
  assert 'optimizer.momentum=None makes other programs' in told


def test_convolutions_train_one_after_another_and_compile_once(
  config, results, tmp_path, compiled
):
  config['num_steps'], config['probes'] = 6, {}
  config['model'] = {'name': 'cnn', 'widths': (3,), 'norm': {'name': 'none'}}
  settings = ({}, {'seed': 1}, {'optimizer.learning_rate': 0.25})
  group = members([dotted.changed(config, some) for some in settings], tmp_path)
  assert pack(group) == [0, 0, 0]
  assert sorted(compiled) == ['create', 'evaluate', 'guarded_step']
  for k, member in enumerate(group):
    assert widths(member) == [1]
    training.train(member.config, alone := tmp_path / f'alone {k}')
    assert results(member.directory) == results(alone)


def test_a_run_without_room_takes_a_free_place(config, tmp_path, monkeypatch):
  monkeypatch.setattr(room, 'most', lambda *args: 2)
  config['num_steps'] = 10
  group = members(
    [dotted.changed(config, {'seed': k}) for k in range(5)], tmp_path
  )
  assert pack(group) == [0] * 5
  # The eight devices have a place each.
  assert [widths(member) for member in group] == [[5]] * 5


def test_nan_ends_its_run_alone(config, results, tmp_path):
  config['model'] |= {'nonlinearity': 'relu', 'norm': {'name': 'none'}}
  settings = ({}, {'optimizer.learning_rate': 1e30}, {'seed': 1})
  group = members([dotted.changed(config, some) for some in settings], tmp_path)
  assert pack(group) == [0, 3, 0]
  status = workdir.read_status(group[1].directory)
  assert (status.status, status.step) == (workdir.DIVERGED, 2)
  for k in (0, 2):
    training.train(group[k].config, alone := tmp_path / f'alone {k}')
    assert results(group[k].directory) == results(alone)


def test_a_mistake_ends_its_run_alone(config, tmp_path):
  settings = ({}, {'optimizer.learning_rate': -1.0}, {'seed': 1})
  group = members([dotted.changed(config, some) for some in settings], tmp_path)
  training.train(
    dotted.changed(config, {'seed': 2, 'num_steps': 2}), group[2].directory
  )
  assert pack(group) == [0, 2, 2]
  assert 'learning_rate=-1.0' in log(group[1]).splitlines()[-1]
  assert 'seed' in log(group[2]).splitlines()[-1]


def test_a_busy_run_is_left_out(config, tmp_path):
  config['num_steps'] = 10
  group = members([config, dotted.changed(config, {'seed': 1})], tmp_path)
  with locking.exclusive(group[1].directory):
    assert pack(group) == [0, 75]
  assert pack(group) == [0, 0]


class StopAfter(stopping.Stop):
  """A request to stop after some looks at it."""

  def __init__(self, looks):
    self.looks = looks

  @property
  def signal(self):
    self.looks -= 1
    return 'SIGTERM' if self.looks < 0 else None


@pytest.mark.parametrize('is_vectorized', some([False], [True]))
def test_a_stopped_pack_goes_on_to_the_same_bits(
  config, results, tmp_path, is_vectorized
):
  configs = [dotted.changed(config, changes) for changes in CHANGES]
  (tmp_path / 'whole').mkdir()
  whole = members(configs, tmp_path / 'whole')
  assert pack(whole, is_vectorized=is_vectorized) == [0, 0, 0]
  group = members(configs, tmp_path)
  for looks in (12, 16, 25):
    pack(group, StopAfter(looks), is_vectorized=is_vectorized)
  # A run that is done is a place without a run from now on.
  pack(group, is_vectorized=is_vectorized)
  for member, twin in zip(group, whole, strict=True):
    assert workdir.read_status(member.directory).status == workdir.DONE
    assert set(widths(member)) == {3}
    assert results(member.directory) == results(twin.directory)


@pytest.mark.parametrize('is_vectorized', some([False], [True]))
def test_a_setting_that_is_over_stays_a_setting(
  config, results, tmp_path, is_vectorized
):
  config['model'] |= {'nonlinearity': 'relu', 'norm': {'name': 'none'}}
  settings = ({'seed': 1}, {'optimizer.learning_rate': 1e30}, {'seed': 2})
  configs = [dotted.changed(config, some) for some in settings]
  (tmp_path / 'whole').mkdir()
  whole = members(configs, tmp_path / 'whole')
  assert pack(whole, is_vectorized=is_vectorized) == [0, 3, 0]
  group = members(configs, tmp_path)
  pack(group, StopAfter(14), is_vectorized=is_vectorized)
  assert workdir.read_status(group[1].directory).status == workdir.DIVERGED
  assert 0 < workdir.read_status(group[0].directory).step < 60
  assert pack(group, is_vectorized=is_vectorized) == [0, 3, 0]
  starts = workdir.read_record(group[0].directory)['starts']
  assert starts[0]['pack'] == starts[1]['pack']
  assert len(starts[1]['pack']['settings']) == 2
  for k in (0, 2):
    mine, expected = group[k].directory, whole[k].directory
    assert results(mine) == results(expected)


@pytest.mark.slow
def test_a_pack_keeps_its_width(config, results, tmp_path):
  configs = [dotted.changed(config, {'seed': k}) for k in range(4)]
  (tmp_path / 'whole').mkdir()
  whole = members(configs, tmp_path / 'whole')
  assert pack(whole) == [0] * 4
  group = members(configs, tmp_path)
  pack(group, StopAfter(14))
  # Three runs go on in another process, and one goes on from its first row.
  pack(group[:1])
  pack(group[2:])
  pack(group)
  for member, twin in zip(group, whole, strict=True):
    assert set(widths(member)) == {4}
    assert results(member.directory) == results(twin.directory)


def test_runs_at_other_steps_catch_up(config, results, tmp_path):
  configs = [dotted.changed(config, {'seed': k}) for k in range(3)]
  (tmp_path / 'whole').mkdir()
  whole = members(configs, tmp_path / 'whole')
  assert pack(whole) == [0] * 3
  group = members(configs, tmp_path)
  pack(group[1:2], StopAfter(5))
  assert 0 < workdir.read_status(group[1].directory).step < 60
  assert pack(group) == [0] * 3
  for member, twin in zip(group, whole, strict=True):
    assert results(member.directory) == results(twin.directory)
