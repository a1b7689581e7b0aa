"""Workdirs as runs leave them, without training."""

import json
import pathlib

import numpy as np
import pytest

from bn_research import workdir


@pytest.fixture
def fake_run(tmp_path):
  """Writes the workdir of a run with curves of a known form."""

  def write(norm, seed, *, num_steps=1000, status=workdir.DONE, **changes):
    path = tmp_path / f'norm={norm},seed={seed}'
    config = {
      'seed': seed,
      'num_steps': num_steps,
      'model': {'norm': {'name': norm}},
      'probe': {'percentiles': [15, 50, 85]},
      **changes,
    }
    workdir.write_json(path / workdir.CONFIG, {'config': config})
    step = np.linspace(0, num_steps, 101).astype(int)
    rng = np.random.default_rng([seed, norm == 'none'])
    rate, end = (8, 0.97) if norm == 'none' else (20, 0.98)
    accuracy = end - (end - 0.1) * np.exp(-rate * step / num_steps)
    accuracy += rng.normal(0, 0.002, step.size)
    rows = [
      {'step': int(s), 'train_loss': 1.0, 'test_accuracy': a, 'seconds': s / 50}
      for s, a in zip(step, accuracy, strict=True)
    ]
    write_rows(path, rows)
    spread = np.asarray([-1.0, 0.0, 1.0])
    shift = np.sin(step / num_steps * 9)[:, None] * (norm == 'none')
    unit = spread + shift + rng.normal(0, 0.03, (step.size, 3))
    arrays = {'step': step, 'hidden_3/input/unit': unit}
    arrays['hidden_3/input/all'] = unit / 2
    workdir.write_probe(path, 'activations', arrays)
    workdir.write_status(path, workdir.Status(status, num_steps))
    return path

  return write


def write_rows(path, rows):
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  pathlib.Path(path, workdir.METRICS).write_text(text)
