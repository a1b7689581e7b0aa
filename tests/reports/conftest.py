"""Workdirs as runs leave them, without training."""

import json
import pathlib

import numpy as np
import pytest

from bn_research import disk, workdir
from bn_research.reports import runs


@pytest.fixture
def fake_run(tmp_path):
  """Writes the workdir of a run whose numbers depend on norm and seed."""

  def write(norm, seed, *, status=workdir.DONE, num_steps=1000, batch_size=60):
    path = tmp_path / f'norm={norm},seed={seed}'
    config = {
      'seed': seed,
      'num_steps': num_steps,
      'batch_size': batch_size,
      'model': {'norm': {'name': norm}},
    }
    disk.write_json(path / workdir.CONFIG, {'config': config})
    step = np.linspace(0, num_steps, 101).astype(int)
    rng = np.random.default_rng([seed, norm == 'none'])
    rate, end = (8, 0.97) if norm == 'none' else (20, 0.98)
    accuracy = end - (end - 0.1) * np.exp(-rate * step / num_steps)
    accuracy += rng.normal(0, 0.002, step.size)
    rows = [
      {'step': int(s), 'train_loss': 1.0, 'test_accuracy': a, 'seconds': s / 50}
      for s, a in zip(step, accuracy, strict=True)
    ]
    # Rows of the training loss alone lie between those of the evaluation.
    rows.insert(1, {'step': int(step[1]) - 1, 'train_loss': 2.0})
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    pathlib.Path(path, workdir.METRICS).write_text(text)
    shift = np.sin(step / num_steps * 9)[:, None] * (norm == 'none')
    noise = rng.normal(0, 0.03, (step.size, 3))
    unit = np.asarray([-1, 0, 1]) + shift + noise
    arrays = {'step': step, 'last/unit': unit, 'last/all': unit / 2}
    arrays['percentiles'] = np.asarray([15.0, 50, 85])
    workdir.write_probe(path, 'activations', arrays)
    workdir.write_status(path, workdir.Status(status, num_steps))
    return path

  return write


@pytest.fixture
def five_seeds(fake_run, tmp_path):
  """Five seeds without and five with batch norm, loaded."""
  for norm in ('none', 'batch_norm'):
    for seed in range(5):
      fake_run(norm, seed)
  return runs.load(str(tmp_path))
