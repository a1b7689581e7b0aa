"""A run on a stream is the run on the same dataset in memory."""

import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx

from bn_research import errors, training, workdir
from bn_research.training import checking, evaluation, loops, step
from tests.training.conftest import CONFIG

SMALL = {**CONFIG, 'num_steps': 12, 'eval': {**CONFIG['eval'], 'num_points': 2}}


class Blobs(tfds.core.GeneratorBasedBuilder):
  """The images of the fixture `dataset`, in files of TFDS."""

  VERSION = tfds.core.Version('1.0.0')
  examples: typing.ClassVar = {}

  def _info(self):
    image = tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8)
    label = tfds.features.ClassLabel(num_classes=4)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({'image': image, 'label': label}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {k: self._generate_examples(v) for k, v in self.examples.items()}

  def _generate_examples(self, split):
    for k, (image, label) in enumerate(zip(*split, strict=True)):
      yield k, {'image': image, 'label': int(label)}


@pytest.fixture(scope='session')
def data_dir(dataset, tmp_path_factory):
  folder = tmp_path_factory.mktemp('blobs')
  Blobs.examples = {'train': dataset.train, 'test': dataset.test}
  tfds.disable_progress_bar()
  Blobs(data_dir=folder, file_format='array_record').download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=3)
  )
  return str(folder)


@pytest.fixture
def trained(data_dir, tmp_path, monkeypatch):
  """Returns `trained(name, changes, **stream)`, which returns a workdir."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

  def train(name, changes=None, **stream):
    config = copy.deepcopy({**SMALL, **(changes or {})})
    config['data'] = {
      **config['data'],
      **({'stream': stream} if stream else {}),
    }
    training.train(config, tmp_path / name, data_dir)
    return tmp_path / name

  return train


def check_close(first, second, **tolerance):
  rows = [workdir.read_metrics(directory) for directory in (first, second)]
  for a, b in zip(*rows, strict=True):
    assert a.keys() == b.keys()
    for key in a.keys() - {'seconds'}:
      assert a[key] == pytest.approx(b[key], **tolerance), key
  for path in (first / workdir.PROBES).glob('*.npz'):
    arrays = [workdir.read_probe(d, path.stem) for d in (first, second)]
    for key, array in arrays[0].items():
      np.testing.assert_allclose(
        array, arrays[1][key], rtol=1e-3, atol=1e-4, err_msg=key
      )


CLOSE = {'rel': 1e-4, 'abs': 1e-5}
CNN = {'name': 'cnn', 'widths': (4,), 'norm': {'name': 'batch_norm'}}


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param(
      {
        'data': {
          **CONFIG['data'],
          'augment': {'pad_crop': {'padding': 1}, 'flip': {}},
          'normalize': 'standardize',
        },
        'eval': {**SMALL['eval'], 'splits': ('test', 'train')},
      },
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'eval': {**SMALL['eval'], 'population': 'reestimated'}},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'eval': {**SMALL['eval'], 'step_norms': 'mean'}},
      marks=pytest.mark.slow,
    ),
    # With convolutions, both runs take one call for each step.
    {'model': CNN, 'microbatches': 2, 'probes': {}},
    {'model': CNN, 'probes': {}},
    pytest.param({'num_devices': 2}, marks=pytest.mark.slow),
    pytest.param({'num_devices': 8}, marks=pytest.mark.slow),
  ],
)
def test_a_stream_and_a_dataset_in_memory_are_one_run(changes, trained):
  memory = trained('memory', changes)
  stream = trained('stream', changes, shuffle='examples')
  check_close(memory, stream, **CLOSE)


@pytest.mark.parametrize('is_convolutional', [True, False])
def test_micro_batches_of_a_stream_are_unrolled_where_a_loop_is_slow(
  is_convolutional, trained, created_steps
):
  changes = {'microbatches': 2, 'num_steps': 1, 'probes': {}}
  if is_convolutional:
    changes['model'] = CNN
  trained('stream', changes, shuffle='examples')
  (steps,) = created_steps
  assert steps.rule.unroll is is_convolutional


def interrupted(monkeypatch, trained, name, changes, at, **stream):
  """Trains up to a step, and stops there as a process that is killed."""
  call = loops.call_each

  def stop(program, state, arguments):
    def until():
      for k, given in enumerate(arguments, int(state.step)):
        if k == at:
          raise KeyboardInterrupt
        yield given

    return call(program, state, until())

  with monkeypatch.context() as patch:
    patch.setattr(loops, 'call_each', stop)
    with pytest.raises(KeyboardInterrupt):
      trained(name, {**changes, 'checkpoint_seconds': 0.0}, **stream)


@pytest.mark.parametrize(
  'stream',
  [
    {'image_size': 3, 'distort': 'full', 'shuffle': 'within_shards'},
    pytest.param({'shuffle': 'examples'}, marks=pytest.mark.slow),
    pytest.param(
      {'image_size': 3, 'workers': 2, 'shuffle': 'shards'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_stream_goes_on_to_the_same_bits(
  stream, trained, monkeypatch, results
):
  changes = {
    'num_steps': 20,
    'data': {**CONFIG['data'], 'augment': {'flip': {}}},
  }
  whole = trained('whole', changes, **stream)
  interrupted(monkeypatch, trained, 'cut', changes, 13, **stream)
  cut = trained('cut', changes, **stream)
  assert results(cut) == results(whole)


SCRIPT = """
import json, sys
from bn_research import training

if __name__ == '__main__':
  training.train(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
def test_a_stream_goes_on_after_kill(data_dir, tmp_path, trained, results):
  changes = {'num_steps': 1000, 'checkpoint_seconds': 0.0}
  stream = {'image_size': 3, 'distort': 'reduced', 'workers': 1}
  config = copy.deepcopy({**SMALL, **changes})
  config['data'] = {**config['data'], 'stream': stream}
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT)
  command = [sys.executable, script, json.dumps(config), tmp_path / 'cut']
  run = subprocess.Popen([*command, data_dir])
  deadline = time.monotonic() + 120
  while workdir.read_status(tmp_path / 'cut').step < 20:
    assert time.monotonic() < deadline
    assert run.poll() is None
    time.sleep(0.05)
  os.kill(run.pid, signal.SIGKILL)
  run.wait()
  assert workdir.read_status(tmp_path / 'cut').status == workdir.INCOMPLETE
  cut = trained('cut', changes, **stream)
  assert results(cut) == results(trained('whole', changes, **stream))


BASE = {'image_size': 3, 'shuffle': 'within_shards'}


@pytest.fixture(scope='module')
def bases():
  """The result of the base stream, computed once."""
  return {}


@pytest.mark.parametrize(
  ('key', 'value', 'changes'),
  [
    ('shuffle', 'shards', 'training'),
    pytest.param('distort', 'reduced', 'training', marks=pytest.mark.slow),
    pytest.param('image_size', 2, 'training', marks=pytest.mark.slow),
    pytest.param('min_area', 0.9, 'training', marks=pytest.mark.slow),
    ('crops', 10, 'evaluation'),
    pytest.param('threads', 1, 'nothing', marks=pytest.mark.slow),
    pytest.param('max_corrupt', 0, 'nothing', marks=pytest.mark.slow),
    pytest.param('workers', 1, 'nothing', marks=pytest.mark.slow),
  ],
)
def test_a_key_changes_what_it_names(key, value, changes, trained, bases):
  if not bases:
    bases.update(measured(trained('base', **BASE)))
  found = measured(trained('changed', **{**BASE, key: value}))
  expected = {
    'training': ['training', 'evaluation'],
    'evaluation': ['evaluation'],
    'nothing': [],
  }
  changed = [part for part in bases if bases[part] != found[part]]
  assert changed == expected[changes]


def measured(directory):
  rows = workdir.read_metrics(directory)
  return {
    'training': [row.get('train_loss') for row in rows],
    'evaluation': [row['test_loss'] for row in rows],
  }


@pytest.mark.slow
def test_the_first_loss_that_is_not_finite_ends_a_run(trained):
  changes = {'optimizer': {'name': 'sgd', 'learning_rate': 3e38}}
  stream = trained('stream', changes, shuffle='examples')
  memory = trained('memory', changes)
  statuses = [workdir.read_status(d) for d in (stream, memory)]
  assert statuses[0] == statuses[1]
  assert statuses[0].status == workdir.DIVERGED


def test_the_check_of_a_sweep(data_dir):
  config = copy.deepcopy(SMALL)
  config['data']['stream'] = {'image_size': 3, 'crops': 144}
  checking.check([config], data_dir)
  config['batch_size'] = 101
  with pytest.raises(errors.UserError, match=r'batch_size=101 .* 100'):
    checking.check([config], data_dir)
  config['data']['stream'] = {'crops': 11}
  with pytest.raises(errors.UserError, match=r'config\.data\.stream'):
    checking.check([config], data_dir)


def test_a_probe_of_more_examples_than_there_are(trained):
  changes = {'probes': {'activations': {'num_examples': 101}}}
  with pytest.raises(errors.UserError, match=r'num_examples=101.* 100'):
    trained('stream', changes, shuffle='examples')


def test_a_run_goes_on_with_other_threads(trained):
  first = trained('run', {'num_steps': 4}, shuffle='examples', threads=1)
  found = trained('run', {'num_steps': 8}, shuffle='examples', max_corrupt=99)
  assert found == first
  assert workdir.read_status(found).step == 8
  with pytest.raises(errors.UserError, match=r'data\.stream\.shuffle=examples'):
    trained('run', {'num_steps': 8}, shuffle='shards')


class Linear(nnx.Module):
  def __init__(self, kernel):
    self.kernel = nnx.Param(kernel)

  def __call__(self, x, *, train):
    assert not train
    return x.reshape(len(x), -1) @ self.kernel[...]


@pytest.mark.parametrize('crops', [None, 3])
def test_an_evaluation_averages_the_probabilities_of_windows(crops):
  rng = np.random.default_rng(0)
  kernel = rng.normal(0, 0.05, (12, 5)).astype(np.float32)
  shape = (7, 2, 3, 2) if crops is None else (7, crops, 2, 3, 2)
  images = rng.integers(0, 256, shape, np.uint8)
  labels = np.array([0, 4, -1, 2, 3, -1, 1], np.int32)
  graphdef, params = nnx.split(Linear(jnp.asarray(kernel)))
  state = type('State', (), {'params': params, 'rest': nnx.State({})})
  parts = {
    'graphdef': graphdef,
    'to_input': lambda x: x.astype(jnp.float32),
    'num_classes': 5,
  }
  examples = step.Examples(jnp.asarray(images), jnp.asarray(labels))
  found = jax.jit(lambda: evaluation.evaluate_batch(state, examples, **parts))()
  logits = images.reshape(7, crops or 1, 12).astype(np.float64) @ kernel
  logits -= logits.max(-1, keepdims=True)
  p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(1)
  real = labels >= 0
  assert int(found.number) == real.sum() == 5
  assert int(found.correct) == (p.argmax(-1) == labels)[real].sum()
  loss = -np.log(p[np.arange(7), labels])[real].sum()
  assert float(found.loss) == pytest.approx(loss, rel=1e-5)
  whole = evaluation.means([found, found])
  assert whole['loss'] == pytest.approx(loss / 5, rel=1e-5)


def test_small_batches_of_many_windows():
  assert evaluation.batches(50_000, 1, 224 * 224 * 3).shape[1] == 128
  rows = evaluation.batches(50_000, 4, 144 * 224 * 224 * 3, 144)
  assert rows.shape[1] == 4
  assert evaluation.batches(50_000, 1, 10 * 224 * 224 * 3, 10).shape[1] == 12


def test_an_unreadable_example_is_told(data_dir, trained, caplog, monkeypatch):
  from bn_research.data.streams import records

  read = records.Records._checked

  def damaged(self, stored):
    found = read(self, stored)
    if stored['image'][0, 0, 0] % 50 == 7:
      return records.Unreadable('damaged by the test')
    return found

  monkeypatch.setattr(records.Records, '_checked', damaged)
  with caplog.at_level(logging.WARNING):
    trained('stream', shuffle='examples', max_corrupt=50)
  told = [r for r in caplog.records if 'damaged by the test' in r.message]
  assert 0 < len(told) == len({record.message for record in told})
