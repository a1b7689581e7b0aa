"""Suggestions are functions of the past, and mistakes are one line."""

import math
import re

import pytest

from bn_research import errors, grid, workdir
from bn_research.sweeps import extras
from bn_research.sweeps.search import settings, suggestions, trials

RATE = 'optimizer.learning_rate'
SPACE = {
  RATE: grid.LogUniform(0.001, 10.0),
  'model.widths': grid.Choice(((8,), (16, 16))),
}


def search(space=SPACE, **options):
  return settings.Settings(space, 'test_accuracy', 'maximize', **options)


def past(number, rate, value, state=workdir.DONE, rows=None, attributes=None):
  parameters = {RATE: rate, 'model.widths': [8]}
  trial = trials.Trial(number, parameters, attributes or {})
  return trials.Past(trial, state, value, rows or {})


def climb(count, given, peak=0.1):
  """Returns the trials of a search for a peak on the axis of the rate."""
  found = []
  for number in range(count):
    values = suggestions.suggest(given, found, number)
    value = -abs(math.log10(values[RATE] / peak))
    trial = trials.Trial(number, values)
    found.append(trials.Past(trial, workdir.DONE, value, {}))
  return found


@pytest.fixture(autouse=True)
def _optuna():
  pytest.importorskip('optuna', reason='the extra [search] is not installed')


def test_a_search_comes_closer_than_random_values():
  sampler = {'name': 'TPESampler', 'n_startup_trials': 5}
  closer = climb(30, search(sampler=sampler))[10:]
  random = climb(30, search(sampler='RandomSampler'))[10:]
  mean = lambda found: sum(one.value for one in found) / len(found)
  assert mean(closer) > mean(random) / 2


def test_a_suggestion_depends_on_the_past_and_on_the_seed_alone():
  found = climb(12, search())
  for number, one in enumerate(found):
    again = suggestions.suggest(search(), found[:number], number)
    assert again == one.trial.parameters
  other = suggestions.suggest(search(seed=1), found[:3], 3)
  assert other != found[3].trial.parameters
  # With an empty past, only the number differs.
  first, second = (suggestions.suggest(search(), [], k) for k in (0, 1))
  assert first != second


def test_values_have_the_digits_and_the_types_of_the_space():
  for one in climb(12, search()):
    rate = one.trial.parameters[RATE]
    assert rate == float(f'{rate:.3g}')
    assert one.trial.parameters['model.widths'] in ((8,), (16, 16))


def test_no_values_are_drawn_twice():
  few = search({'seed': grid.Choice((0, 1, 2))})
  found = []
  for number in range(3):
    values = suggestions.suggest(few, found, number)
    trial = trials.Trial(number, values)
    found.append(trials.Past(trial, workdir.DONE, 1.0, {}))
  assert sorted(one.trial.parameters['seed'] for one in found) == [0, 1, 2]
  assert suggestions.suggest(few, found, 3) is None


def test_trials_that_diverged_are_avoided():
  sampler = {'name': 'TPESampler', 'n_startup_trials': 5}
  found = [
    past(k, rate, *ended)
    for k, (rate, ended) in enumerate(
      [(0.01 * 1.2**k, (0.5,)) for k in range(8)]
      + [(3 * 1.1**k, (None, workdir.DIVERGED)) for k in range(8)]
    )
  ]
  space = {RATE: SPACE[RATE], 'model.widths': SPACE['model.widths']}
  given = search(space, sampler=sampler)
  drawn = [suggestions.suggest(given, found, k)[RATE] for k in range(16, 28)]
  assert sum(rate > 1 for rate in drawn) < 4


@pytest.mark.parametrize(
  'state', [workdir.FAILED, workdir.INCOMPLETE, trials.PRUNED, workdir.DONE]
)
def test_trials_without_a_value_are_no_error(state):
  found = [past(0, 0.1, None, state, {10: 0.5})]
  assert suggestions.suggest(search(), found, 1)


def test_a_run_below_the_median_is_pruned():
  found = [past(k, 0.1 + k, 0.9, rows={10: 0.5, 20: 0.9}) for k in range(5)]
  given = search(pruner={'name': 'MedianPruner', 'n_startup_trials': 5})

  def prunes(value):
    current = past(5, 9.0, None, workdir.INCOMPLETE, {10: value})
    return suggestions.prunes(given, found, current)[0]

  assert [prunes(0.4), prunes(0.6)] == [True, False]


def test_a_pruner_remembers_by_the_attributes_of_trials():
  pruner = {'name': 'SuccessiveHalvingPruner', 'min_resource': 10}
  given = search(pruner=pruner)
  first = past(0, 0.1, None, workdir.INCOMPLETE, {10: 0.5})
  is_pruned, attributes = suggestions.prunes(given, [], first)
  assert not is_pruned
  remembered = past(0, 0.1, 0.5, rows={10: 0.5}, attributes=attributes)
  worse = past(1, 0.2, None, workdir.INCOMPLETE, {10: 0.4})
  assert suggestions.prunes(given, [remembered], worse)[0]
  # Without the attributes, the second trial would be the first of its rung.
  forgotten = past(0, 0.1, 0.5, rows={10: 0.5})
  assert not suggestions.prunes(given, [forgotten], worse)[0]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'sampler': 'TPE'}, "sampler='TPE' is unknown; there are RandomSampler"),
    ({'sampler': {'name': 'TPESampler', 'seed': 1}}, "no option 'seed'"),
    ({'pruner': 'Median'}, "pruner='Median' is unknown"),
    ({'pruner': {'name': 'MedianPruner', 'n': 1}}, "no option 'n'"),
    ({'pruner': 'ThresholdPruner'}, 'pruner: Either lower or upper'),
    (
      {'pruner': {'name': 'PercentilePruner', 'percentile': 200.0}},
      'pruner: Percentile must be between 0 and 100',
    ),
  ],
)
def test_a_wrong_sampler_or_pruner_is_one_line(options, message):
  with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
    suggestions.check(search(**options), [])
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('rate', 'widths'), [(100.0, (8,)), (0.1, (9,)), (None, (8,))]
)
def test_trials_of_another_space_are_one_line(rate, widths):
  parameters = {RATE: rate, 'model.widths': widths}
  other = trials.Past(trials.Trial(0, parameters), workdir.DONE, 0.5, {})
  with pytest.raises(errors.UserError, match='give another --workdir'):
    suggestions.check(search(), [other])


def test_a_missing_extra_is_one_line(monkeypatch):
  monkeypatch.setattr(extras.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=re.escape("-e '.[search]'")):
    suggestions.check(search(), [])
