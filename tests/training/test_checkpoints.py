import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import errors, optim
from bn_research.training import checkpoints, mesh, state

MODEL = {'name': 'mlp', 'widths': (6,), 'norm': {'name': 'batch_norm'}}


def make_state(step, width=6):
  optimizer = optim.create({'name': 'adam', 'learning_rate': 1.0}, 10)
  _, start = state.create(
    jax.random.key(step), MODEL | {'widths': (width,)}, (9,), 4, optimizer
  )
  start = mesh.replicate(start, mesh.create(1, 1))
  return start._replace(step=jnp.int32(step))


def like(train_state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    train_state,
  )


def restored(opened):
  return opened.restore(like(make_state(0))).state


@pytest.fixture
def said():
  return []


@pytest.fixture
def opened(tmp_path, said):
  """Opens the checkpoints of one directory, as a new process does."""
  return functools.partial(
    checkpoints.Checkpoints, tmp_path, 0.0, 1, said.append
  )


def save(opened, *steps):
  saver = opened()
  for step in steps:
    saver.save(make_state(step))
  saver.close()


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_nothing_saved_is_nothing_restored(opened, tmp_path):
  assert opened().restore(like(make_state(0))) is None
  assert not list(tmp_path.iterdir())


def test_the_newest_comes_back_to_the_bit(opened, said):
  save(opened, 3, 7, 12)
  assert_same(restored(opened()), make_state(12))
  assert said == []


def truncate(path):
  for file in path.rglob('*'):
    if file.is_file() and 'state' in file.parts:
      file.write_bytes(file.read_bytes()[:10])


def empty(path):
  for file in sorted(path.rglob('*'), reverse=True):
    file.rmdir() if file.is_dir() else file.unlink()


def lose_metadata(path):
  (path / 'state' / '_METADATA').unlink()


def lose_an_item(path):
  empty(path / 'run')
  (path / 'run').rmdir()


@pytest.mark.parametrize('harm', [truncate, empty, lose_metadata, lose_an_item])
def test_a_damaged_one_is_moved_aside(opened, said, tmp_path, harm):
  save(opened, 3, 7)
  harm(tmp_path / 'checkpoints' / '7')
  saver = opened()
  assert_same(restored(saver), make_state(3))
  assert len(said) == 1
  assert said[0].startswith('checkpoint 7 is damaged (')
  assert len(list((tmp_path / 'checkpoints').glob('damaged-7-*'))) == 1

  # The run goes on, and saves step 7 again.
  saver.save(make_state(7))
  saver.close()
  assert_same(restored(opened()), make_state(7))


def test_where_all_are_damaged_the_run_begins_again(opened, tmp_path):
  save(opened, 7)
  empty(tmp_path / 'checkpoints' / '7')
  saver = opened()
  assert saver.restore(like(make_state(0))) is None
  saver.save(make_state(2))
  saver.close()
  assert_same(restored(opened()), make_state(2))


def test_a_new_scalar_is_not_another_model(opened):
  start = make_state(7)
  saver = opened()
  saver.save(start._replace(sums={'a': jnp.float32(3), 'b': jnp.float32(5)}))
  saver.close()
  more = start._replace(sums={'b': jnp.float32(0), 'new': jnp.float32(0)})
  found = opened().restore(like(more)).state
  assert found.sums.keys() == {'b', 'new'}
  assert found.sums['b'] == 5
  assert np.isnan(found.sums['new'])
  assert_same(found._replace(sums={}), start)


@pytest.mark.parametrize('change', ['width', 'dtype'])
def test_another_model_is_not_taken_for_damage(opened, tmp_path, change):
  save(opened, 7)
  other = like(make_state(0, width=5 if change == 'width' else 6))
  if change == 'dtype':
    other = other._replace(loss=jax.ShapeDtypeStruct((), jnp.float16))
  with pytest.raises(errors.UserError, match=r'another model.*--workdir'):
    opened().restore(other)
  assert (tmp_path / 'checkpoints' / '7').exists()


def test_another_number_of_devices_is_told(opened, said, tmp_path):
  save(opened, 7)
  two = mesh.create(2, 2)
  abstract = like(mesh.replicate(make_state(0), two))
  saver = checkpoints.Checkpoints(tmp_path, 0.0, 2, said.append)
  found = saver.restore(abstract).state
  assert_same(found, make_state(7))
  assert len(found.loss.sharding.device_set) == 2
  assert said == [
    'saved on 1 devices, going on with 2: the same curve, but for rounding'
  ]


def test_the_next_is_due_after_a_time(opened, tmp_path, said, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(checkpoints.time, 'monotonic', lambda: now[0])
  saver = checkpoints.Checkpoints(tmp_path, 30.0, 1, said.append)
  assert not saver.is_due
  now[0] += 30
  assert saver.is_due
  saver.save(make_state(1))
  assert not saver.is_due
  saver.close()
