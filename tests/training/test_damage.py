"""Damage to the files of a run: noticed, told, and mended without a loss.

Each row damages a file of a run at random: a flipped bit, a cut, a block of
zeros, or a file that is gone. Then the same command goes on. The rows, the
probes and the parameters must equal the results of an undamaged run.
"""

import copy
import random
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import bn_research
from bn_research import data, errors, training, workdir
from bn_research.training import pace
from bn_research.training.programs import Programs
from tests.damage import HARMS
from tests.quick import some
from tests.training.conftest import CONFIG

pytestmark = pytest.mark.usefixtures('loaded')


@pytest.fixture(scope='module')
def originals(dataset, tmp_path_factory):
  """A run that is done, and one that was stopped with two checkpoints."""
  config = copy.deepcopy(CONFIG) | {'checkpoint_seconds': 0.0}
  whole, stopped = (tmp_path_factory.mktemp(name) for name in ('whole', 'cut'))
  take = Programs.train

  def take_and_stop(self, state, start, stop):
    if start >= 30:
      raise KeyboardInterrupt
    return take(self, state, start, stop)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'load', lambda config, data_dir, splits: dataset)
    patch.setattr(pace, '_FIRST', 5)
    training.train(config, whole)
    patch.setattr(Programs, 'train', take_and_stop)
    with pytest.raises(KeyboardInterrupt):
      training.train(config, stopped)
  assert len(checkpoint_steps(stopped)) == 2
  return whole, stopped


@pytest.fixture
def runs(originals, tmp_path):
  """Copies of the originals."""
  return [
    shutil.copytree(run, tmp_path / f'original {k}')
    for k, run in enumerate(originals)
  ]


def checkpoint_steps(run):
  names = (path.name for path in (run / workdir.CHECKPOINTS).iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def files_of(folder):
  return sorted(
    path for path in folder.rglob('*') if path.is_file() and path.stat().st_size
  )


def damaged(run, target, where, how, rng):
  """Copies a run, with damage to one file below `where`."""
  shutil.rmtree(target, ignore_errors=True)
  shutil.copytree(run, target)
  path = rng.choice(files_of(target / where) or [target / where])
  HARMS[how](path, rng)
  return path


@pytest.mark.parametrize('how', some(['zero'], HARMS))
def test_a_damaged_checkpoint_is_told_and_not_used(
  config, runs, results, tmp_path, capsys, how
):
  whole, stopped = runs
  folder = stopped / workdir.CHECKPOINTS / str(checkpoint_steps(stopped)[-1])
  rng = random.Random(how)
  for path in (folder / 'state' / '_METADATA', *(folder / 'run').glob('m*')):
    HARMS[how](path, rng)
  training.train(config, stopped)
  assert f'checkpoint {folder.name} is damaged' in capsys.readouterr().out
  assert results(stopped) == results(whole)


def outcome(run):
  """All results of a run, as a user reads these."""
  loaded = bn_research.load(run)
  rows = workdir.read_metrics(run)
  for row in rows:
    assert row.pop('seconds') >= 0
  leaves = jax.tree.leaves(nnx.state(loaded.model()))
  probe = loaded.probes['activations']
  return (
    rows,
    [np.asarray(leaf).tobytes() for leaf in leaves],
    {name: array.tobytes() for name, array in probe.items()},
  )


FILES = (
  workdir.CONFIG,
  workdir.METRICS,
  workdir.STATUS,
  f'{workdir.PROBES}/activations.npz',
)


@pytest.mark.parametrize('which', some([1], [0]))
@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', some(['zero'], HARMS))
def test_a_damaged_file_is_restored(
  config, runs, results, tmp_path, name, how, which
):
  run = tmp_path / 'again'
  damaged(runs[which], run, name, how, random.Random(f'{name} {how}'))
  training.train(config, run)
  assert results(run) == results(runs[0])
  assert workdir.read_record(run)['config']['seed'] == 0
  assert bn_research.load(run).metrics['step'][-1] == 60


def test_a_reader_does_not_believe_damaged_files(runs):
  whole, _ = runs
  path = whole / workdir.METRICS
  path.write_text(path.read_text().replace('0.9', '0.8', 1))
  with pytest.raises(errors.UserError, match=r'metrics.jsonl is damaged'):
    bn_research.load(whole).metrics  # noqa: B018
  path = whole / workdir.CONFIG
  path.write_bytes(
    path.read_bytes().replace(b'"batch_size": 16', b'"batch_size": 18')
  )
  with pytest.raises(errors.UserError, match=r'config.json is damaged'):
    bn_research.load(whole)


def test_a_damaged_config_without_a_checkpoint_is_told(config, runs):
  whole, _ = runs
  shutil.rmtree(whole / workdir.CHECKPOINTS)
  (whole / workdir.CONFIG).write_text('{')
  with pytest.raises(errors.UserError, match='no checkpoint; remove'):
    training.train(config, whole)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(200))
def test_no_damage_is_silent(config, runs, tmp_path, seed):
  rng = random.Random(seed)
  run = tmp_path / 'again'
  original = rng.choice(runs)
  newest = f'{workdir.CHECKPOINTS}/{checkpoint_steps(original)[-1]}'
  # Most files are small, and most damage should be to arrays and copies.
  where = rng.choice(['.', f'{newest}/state', f'{newest}/files'])
  damaged(original, run, where, rng.choice([*HARMS]), rng)
  training.train(config, run)
  try:
    found = outcome(run)
  except errors.UserError:
    # A run that is done does not read its checkpoint again. The message of the
    # reader says what to do.
    with pytest.raises(errors.UserError, match=r'damaged .*; remove .*status'):
      outcome(run)
    (run / workdir.STATUS).unlink()
    training.train(config, run)
    found = outcome(run)
  assert found == outcome(runs[0])
