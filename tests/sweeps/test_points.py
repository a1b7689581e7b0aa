"""Names, command lines and checks of the points of a sweep."""

import ml_collections
import pytest

from bn_research import disk, errors, workdir
from bn_research.sweeps import points


def config(**changes):
  config = ml_collections.ConfigDict(
    {'seed': 0, 'widths': (2, 3), 'rate': 0.1, 'norm': {'name': 'batch_norm'}}
  )
  config.update(changes)
  return config


def expand(sweep, directory, overrides=None, **changes):
  return points.expand(
    sweep, config(**changes), 'file.py:arg', str(directory), overrides or {}
  )


def test_a_point_is_the_command_line_a_person_would_type(tmp_path):
  sweep = [{'norm.name': 'none', 'seed': 1}]
  (point,) = expand(sweep, tmp_path, {'widths': (4,)}, widths=(4,))
  assert point.name == 'norm.name=none,seed=1'
  assert point.workdir == tmp_path / point.name
  assert point.command[1:] == (
    '-m',
    'bn_research.train',
    '--config=file.py:arg',
    '--config.widths=(4,)',
    '--config.norm.name=none',
    '--config.seed=1',
    f'--workdir={point.workdir}',
  )


def test_values_that_are_no_file_names_still_give_distinct_names():
  names = [
    points.name_of({'path': value})
    for value in ('a/b', 'a b', 'a:b', '../a', 'a' * 300, 'a' * 299 + 'b', 'ä')
  ]
  assert len(set(names)) == len(names)
  for name in names:
    assert len(name) < 140
    assert not set(name) & set('/: ')
  assert names[0] == points.name_of({'path': 'a/b'})


def test_an_empty_override_has_a_name():
  assert points.name_of({})


@pytest.mark.parametrize(
  ('sweep', 'overrides', 'message'),
  [
    ([{'sede': 0}], {}, "unknown config key 'sede'"),
    ([{'norm.name.x': 0}], {}, "unknown config key 'norm.name.x'"),
    ([{'seed': 0.5}], {}, "gives 'seed' the value 0.5"),
    ([{'seed': 0}, {'seed': 0}], {}, 'the run seed=0 twice'),
    ([{'seed': 0}], {'seed': 3}, '--config.seed is given and swept'),
  ],
)
def test_a_wrong_sweep_is_told_before_anything_runs(
  sweep, overrides, message, tmp_path
):
  with pytest.raises(errors.UserError, match=message):
    expand(sweep, tmp_path, overrides)
  assert not list(tmp_path.iterdir())


def test_an_integer_is_a_fine_learning_rate(tmp_path):
  (point,) = expand([{'rate': 1}], tmp_path)
  assert '--config.rate=1' in point.command


def test_a_workdir_of_another_config_is_not_taken_for_finished(tmp_path):
  sweep = [{'seed': 1}]
  (point,) = expand(sweep, tmp_path)
  record = {'config': config(seed=1).to_dict()}
  disk.write_json(point.workdir / workdir.CONFIG, record)
  assert expand(sweep, tmp_path) == [point]
  with pytest.raises(errors.UserError, match=r'rate=0\.1 there and 0\.2 here'):
    expand(sweep, tmp_path, {'rate': 0.2}, rate=0.2)
