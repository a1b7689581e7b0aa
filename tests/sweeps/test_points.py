"""Names, command lines and checks of the points of a sweep."""

import ml_collections
import numpy as np
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
    ([{'norm': 'none'}], {'norm.name': 'x'}, 'norm.name is given and swept'),
    ([{'norm': None}], {'norm.name': 'x'}, 'norm.name is given and swept'),
    ([{'norm': {'name': 'a'}}], {'norm.name': 'x'}, 'name is given and swept'),
    ([{'norm.a.name': 'b'}], {'norm.a': 'x'}, 'norm.a is given and swept'),
    ([{'seed': 10**400}], {}, "gives 'seed' a number of 1329 bits; give a sm"),
    ([{'seed': 10**5000}], {}, "gives 'seed' a number of 16610 bits"),
    ([{'norm.x': ({1},)}], {}, "gives 'norm.x' a set; give a number, a text"),
    ([{'seed': np.int64(0)}], {}, r"gives 'seed' a int64; give int\(\.\.\.\)"),
  ],
)
def test_a_wrong_sweep_is_told_before_anything_runs(
  sweep, overrides, message, tmp_path
):
  with pytest.raises(errors.UserError, match=message):
    expand(sweep, tmp_path, overrides)
  assert not list(tmp_path.iterdir())


def test_an_override_beside_a_swept_key_is_kept(tmp_path):
  sweep = [{'norm': 'none'}]
  (point,) = expand(sweep, tmp_path, {'norm.names': 1, 'norms': 2})
  assert {'--config.norm.names=1', '--config.norms=2'} <= {*point.command}


def test_a_file_must_hold_the_whole_config(tmp_path):
  for value, message in (({1}, 'a set'), (10**400, 'a number of 1329 bits')):
    with pytest.raises(errors.UserError, match=f"config gives 'x' {message}"):
      expand([{'seed': 1}], tmp_path, x=value)


def test_the_workdir_of_a_run_holds_no_sweep(tmp_path):
  disk.write_json(tmp_path / workdir.CONFIG, {})
  message = f'^{tmp_path} holds a run; choose another --workdir$'
  with pytest.raises(errors.UserError, match=message):
    expand([{'seed': 1}], tmp_path)


def test_true_is_not_the_number_1(tmp_path):
  assert len(expand([{'norm.x': True}, {'norm.x': 1}], tmp_path)) == 2
  with pytest.raises(errors.UserError, match=r'as norm.x=1 and as norm.x=1.0'):
    expand([{'norm.x': 1}, {'norm.x': 1.0}], tmp_path)


@pytest.mark.parametrize(
  ('key', 'value', 'flag'),
  [
    *(
      ('norm.x', text, repr(text))
      for text in ('1', 'true', 'None', 'nan', '(1, 2)', "'a'", '1e3')
    ),
    *(('norm.x', text, text) for text in ('a', 'a b', '1.0.0', '', 'True x')),
    ('norm.x', 1, '1'),
    ('norm.x', None, 'None'),
    ('norm.name', '1', '1'),
    ('norm', '1', '1'),
    ('given', '1', "'1'"),
  ],
)
def test_a_text_that_reads_as_a_number_has_quotes(key, value, flag, tmp_path):
  base, after = config(), config(given='0')
  (point,) = points.expand(
    [{key: value}], after, 'file.py', str(tmp_path), {}, base=base
  )
  assert f'--config.{key}={flag}' in point.command


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
