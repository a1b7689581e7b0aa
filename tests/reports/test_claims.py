"""Measures, intervals and verdicts against hand-made numbers."""

import dataclasses
import types

import numpy as np
import pytest
import rich.console

from bn_research import errors, workdir
from bn_research.reports import claims, measures, runs

CLAIM = claims.Claim(
  claim='batch norm is better',
  source='paper',
  published='plot',
  measured='accuracy',
  measure={'name': 'final', 'metric': 'test_accuracy'},
  this={'model.norm.name': 'batch_norm'},
  that={'model.norm.name': 'none'},
  expected='higher',
)


def run_of(steps, values):
  """A run that has one metric and one probe."""
  return types.SimpleNamespace(
    columns=lambda *names: [
      np.asarray(steps if name == 'step' else values) for name in names
    ],
    probe=lambda name, array: (np.asarray(steps), np.asarray(values)),
  )


def test_measures_on_numbers_done_by_hand():
  run = run_of([0, 10, 20, 50, 100], [0.0, 0.4, 0.8, 0.9, 1.0])
  assert measures.final(run, 'm') == 1.0
  assert measures.early(run, 'm', part=0.2) == pytest.approx(0.4)
  assert measures.early(run, 'm', part=1.0) == pytest.approx(3.1 / 5)


def test_an_error_is_what_an_accuracy_lacks():
  run = run_of([0, 10, 20], [0.0, 0.4, 0.75])
  assert measures.final(run, 'test_error') == 0.25
  assert measures.best(run, 'test_error') == 1.0
  assert measures.best(run, 'test_accuracy') == 0.75


def test_the_first_step_that_reaches_a_level():
  run = run_of([0, 10, 20, 50, 100], [0.0, 0.4, 0.8, 0.7, 1.0])
  assert measures.reach(run, 'm', level=0.8) == 20
  assert measures.reach(run, 'm', level=0.81) == 100
  assert measures.reach(run, 'm', level=0.0) == 0
  assert np.isnan(measures.reach(run, 'm', level=1.1))
  assert np.isnan(measures.reach(run_of([0, 1], [np.nan] * 2), 'm', level=0.1))


def test_drift_counts_shift_and_width_and_nothing_else():
  still = np.asarray([[-1, 0, 1]] * 4)
  assert measures.drift(run_of(range(4), still), 'p', 'a') == 0
  shift = still + np.asarray([0, 2, 0, 2])[:, None]
  assert measures.drift(run_of(range(4), shift), 'p', 'a') == pytest.approx(1)
  # Percentiles at +-1 and +-3 by turns: variances 1, 0, 1.
  width = still * np.asarray([1, 3, 1, 3])[:, None]
  drift = measures.drift(run_of(range(4), width), 'p', 'a')
  assert drift == pytest.approx((2 / 3) ** 0.5)


def test_the_interval_is_students():
  # t(0.975; 4) = 2.776445 in the tables; s = sqrt(2.5).
  half = 2.776445 * 2.5**0.5 / 5**0.5
  low, high = claims.mean_interval(np.asarray([1.0, 2, 3, 4, 5]))
  assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
  assert np.isnan(claims.mean_interval(np.asarray([1.0]))).all()


def test_the_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  ends = [claims.mean_interval(x) for x in rng.normal(7, 2, (2000, 5))]
  covered = np.mean([low <= 7 <= high for low, high in ends])
  assert 0.935 < covered < 0.965  # 3 standard errors of 0.005


def with_finals(five_seeds, differences):
  """The runs with final accuracies that differ by `differences`."""
  found = []
  for run in five_seeds:
    seed = run.config['seed']
    if seed < len(differences):
      value = 0.5 + seed / 10  # a spread over seeds that pairing removes
      if run.config['model.norm.name'] == 'batch_norm':
        value += differences[seed]
      found.append(dataclasses.replace(run))
      found[-1].__dict__['_rows'] = [{'step': 1000, 'test_accuracy': value}]
  return found


@pytest.mark.parametrize(
  ('differences', 'expected', 'verdict'),
  [
    ([0.02, 0.01, 0.02, 0.03, 0.02], 'higher', claims.HOLDS),
    ([0.02, 0.01, 0.02, 0.03, 0.02], 'lower', claims.DOES_NOT_HOLD),
    ([-0.02, -0.01, -0.02, -0.03, -0.02], 'lower', claims.HOLDS),
    ([-0.02, -0.01, -0.02, -0.03, -0.02], 'higher', claims.DOES_NOT_HOLD),
    ([0.02, -0.01, 0.02, -0.03, 0.02], 'higher', claims.UNDECIDED),
    ([0.02, 0.02, 0.02, 0.02], 'higher', claims.TOO_FEW),
    ([0.02], 'higher', claims.TOO_FEW),
    ([0.0] * 5, 'higher', claims.DOES_NOT_HOLD),
  ],
)
def test_verdicts(differences, expected, verdict, five_seeds):
  found = with_finals(five_seeds, differences)
  claim = dataclasses.replace(CLAIM, expected=expected)
  finding = claims.check(claim, found)
  assert finding.verdict == verdict
  np.testing.assert_allclose(finding.differences, differences, atol=1e-12)
  assert finding.this - finding.that == pytest.approx(np.mean(differences))


def test_only_seeds_that_both_sides_finished_are_compared(fake_run, tmp_path):
  for seed in range(7):
    fake_run('none', seed)
  for seed in range(1, 8):
    status = workdir.DIVERGED if seed == 3 else workdir.DONE
    fake_run('batch_norm', seed, status=status)
  found = runs.load(str(tmp_path))
  planned = {**found[0].config, 'seed': 9, 'model.norm.name': 'batch_norm'}
  finding = claims.check(
    CLAIM,
    found,
    [
      runs.Absent(planned, runs.MISSING),
      runs.Absent({**planned, 'seed': 10}, runs.UNREADABLE),
    ],
  )
  assert len(finding.differences) == 5
  assert finding.left_out == (
    '1 of 9 diverged on the first side; 1 of 9 missing on the first side; 1 of'
    ' 9 unreadable on the first side; 1 of 6 without a partner on the first'
    ' side; 1 of 7 without a partner on the second side'
  )
  console = rich.console.Console(width=300)
  with console.capture() as capture:
    console.print(claims.table([finding]))
  assert f'{finding.verdict}; but 1 of 9 diverged on the' in capture.get()


def test_a_side_that_diverged_is_a_result(fake_run, tmp_path):
  for seed in range(3):
    fake_run('none', seed)
    fake_run('batch_norm', seed, status=workdir.DIVERGED)
  finding = claims.check(CLAIM, runs.load(str(tmp_path)))
  assert finding.verdict == claims.NOTHING
  assert finding.left_out == '3 of 3 diverged on the first side'
  assert np.isnan([finding.this, *finding.interval]).all()


def test_one_sided_claims_and_ambiguous_ones_are_refused(five_seeds):
  without = [r for r in five_seeds if r.config['model.norm.name'] == 'none']
  with pytest.raises(errors.UserError, match='no run is of the first side'):
    claims.check(CLAIM, without)
  both = dataclasses.replace(CLAIM, this={'batch_size': 60})
  with pytest.raises(errors.UserError, match='of one seed'):
    claims.check(both, five_seeds)
  with pytest.raises(errors.UserError, match='choose higher or lower'):
    dataclasses.replace(CLAIM, expected='more')


def test_the_table_says_all_of_it(five_seeds):
  finding = claims.check(CLAIM, with_finals(five_seeds, [0.01] * 5))
  console = rich.console.Console(width=300)
  with console.capture() as capture:
    console.print(claims.table([finding]))
  for text in (
    'batch norm is better (paper)',
    'accuracy',
    'plot',
    '5 seeds: 0.7100 against 0.7000, difference +0.0100 [+0.0100, +0.0100]',
    'holds',
  ):
    assert text in capture.get()


def test_a_single_seed_has_no_interval(fake_run, tmp_path):
  for norm in ('none', 'batch_norm'):
    fake_run(norm, 0)
  finding = claims.check(CLAIM, runs.load(str(tmp_path)))
  assert np.isnan(finding.interval).all()
  console = rich.console.Console(width=300)
  with console.capture() as capture:
    console.print(claims.table([finding]))
  assert '1 seed: ' in capture.get()
  assert '[' not in capture.get()
  assert 'nan' not in capture.get()


def measured_with(number, user_module):
  user_module(
    'my_measure',
    'def of(run, odd):\n'
    '  seed = run.config["seed"]\n'
    '  is_ours = run.config["model.norm.name"] == "batch_norm"\n'
    '  return odd if seed == 1 and is_ours else float(is_ours + seed / 9)\n',
  )
  measure = {'name': 'my_measure:of', 'odd': number}
  return dataclasses.replace(CLAIM, measure=measure)


@pytest.mark.parametrize('number', [float('nan'), float('inf'), 2.0])
def test_a_run_without_a_number_is_counted(number, five_seeds, user_module):
  finding = claims.check(measured_with(number, user_module), five_seeds)
  if number == 2.0:
    assert (finding.left_out, finding.verdict) == ('', claims.HOLDS)
  else:
    assert finding.left_out == '1 of 5 without a number on the first side'
    assert finding.verdict == claims.TOO_FEW
    assert np.isfinite([finding.this, finding.that, *finding.interval]).all()


@pytest.mark.parametrize('part', [0.0, -1.0, 1.5, float('nan')])
def test_a_part_of_a_run_is_a_fraction(part, five_seeds):
  measure = {'name': 'early', 'metric': 'test_accuracy', 'part': part}
  with pytest.raises(errors.UserError, match=r'part=.*in \(0, 1\]'):
    claims.check(dataclasses.replace(CLAIM, measure=measure), five_seeds)


def test_seeds_without_a_partner_are_counted(fake_run, tmp_path):
  for seed in range(10):
    fake_run('batch_norm', seed)
  for seed in range(5):
    fake_run('none', seed)
  finding = claims.check(CLAIM, runs.load(str(tmp_path)))
  assert len(finding.differences) == 5
  assert finding.left_out == '5 of 10 without a partner on the first side'


def test_no_run_with_a_number_is_no_verdict(five_seeds):
  for run in five_seeds:
    run.__dict__['_rows'] = [{'step': 1000, 'test_accuracy': None}]
  finding = claims.check(CLAIM, five_seeds)
  assert finding.verdict == claims.NOTHING
  assert finding.left_out == (
    '5 of 5 without a number on the first side; 5 of 5 without a number on the'
    ' second side'
  )
