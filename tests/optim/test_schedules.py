"""Learning rates against formulas in float64, at every step of a run."""

import numpy as np
import pytest

from bn_research import errors, optim
from bn_research.optim import rates
from bn_research.optim.durations import Clock

NUM_STEPS, STEPS_PER_EPOCH = 40, 2.5
CLOCK = Clock(NUM_STEPS, STEPS_PER_EPOCH)
T = np.arange(NUM_STEPS + 5, dtype=np.float64)


def line(t, length, start, stop):
  return start + (stop - start) * np.clip(t / length, 0, 1)


def half_wave(t, length, alpha):
  return (
    alpha + (1 - alpha) * (1 + np.cos(np.pi * np.clip(t / length, 0, 1))) / 2
  )


def stairs(t, boundaries, factor):
  return factor ** np.sum([t >= b for b in boundaries], axis=0, dtype=float)


ROWS = {
  'a number is constant': ('constant', np.ones_like(T)),
  'line': ('linear', line(T, 40, 1, 0)),
  'line to a part': (
    {'name': 'linear', 'alpha': 0.2},
    line(T, 40, 1, 0.2),
  ),
  'cosine': ({'name': 'cosine', 'alpha': 0.1}, half_wave(T, 40, 0.1)),
  'exponential': (
    {'name': 'exponential', 'decay': 0.01},
    0.01 ** (T / 40),
  ),
  'boundaries in steps': (
    {'name': 'step', 'boundaries': (10, 30)},
    stairs(T, (10, 30), 0.1),
  ),
  'boundaries in every unit': (
    # 4.2 epochs are 10.5 steps, and round to the even number.
    {
      'name': 'step',
      'boundaries': ('3 steps', '4.2 epochs', '50%'),
      'factor': 0.2,
    },
    stairs(T, (3, 10, 20), 0.2),
  ),
  'one cycle, straight': (
    {'name': 'one_cycle', 'peak': '25%', 'initial': 0.2, 'alpha': 0.05},
    np.where(T < 10, line(T, 10, 0.2, 1), line(T - 10, 30, 1, 0.05)),
  ),
  'one cycle, cosine': (
    {'name': 'one_cycle', 'peak': '4 epochs', 'descent': 'cosine'},
    np.where(T < 10, line(T, 10, 0.04, 1), half_wave(T - 10, 30, 0)),
  ),
  'warm-up without a name': ({'warmup': '2 epochs'}, line(T, 5, 0, 1)),
  'warm-up from a part, then a cosine of the rest': (
    {'name': 'cosine', 'warmup': '10%', 'warmup_from': 0.25},
    np.where(T < 4, line(T, 4, 0.25, 1), half_wave(T - 4, 36, 0)),
  ),
  'boundaries count from the start of the run, not of the schedule': (
    {'name': 'step', 'boundaries': (10, '75%'), 'warmup': 5},
    line(T, 5, 0, 1) * stairs(T, (10, 30), 0.1),
  ),
  'a peak counts from the start of the run, too': (
    {'name': 'one_cycle', 'peak': 10, 'initial': 0.5, 'warmup': 4},
    np.select(
      [T < 4, T < 10],
      [line(T, 4, 0, 0.5), line(T - 4, 6, 0.5, 1)],
      line(T - 10, 30, 1, 0),
    ),
  ),
}


@pytest.mark.parametrize('case', ROWS)
def test_a_schedule_is_its_formula(case):
  section, expected = ROWS[case]
  rate = rates.create(section, 0.3, CLOCK)
  found = [float(rate(int(t)) if callable(rate) else rate) for t in T]
  np.testing.assert_allclose(found, 0.3 * expected, rtol=2e-5, atol=1e-8)


def test_a_schedule_of_the_user_warms_up_too(user_module):
  user_module(
    'my_schedules',
    'def root(learning_rate, num_steps, power=0.5):\n'
    '  return lambda t: learning_rate * (1 - t / num_steps) ** power\n'
    'def open_(**given):\n'
    '  assert set(given) == {"learning_rate", "num_steps"}\n'
    '  return given["num_steps"]\n'
    'def own(learning_rate, warmup): return learning_rate * warmup\n',
  )
  section = {'name': 'my_schedules:root', 'warmup': 8, 'power': 1.0}
  rate = rates.create(section, 0.3, CLOCK)
  t = T[:NUM_STEPS]
  expected = np.where(t < 8, t / 8, 1 - (t - 8) / 32)
  np.testing.assert_allclose(
    [float(rate(int(step))) for step in t], 0.3 * expected, rtol=1e-5
  )
  assert rates.create('my_schedules:open_', 0.3, CLOCK) == NUM_STEPS
  # The option of the schedule, and no warm-up.
  section = {'name': 'my_schedules:own', 'warmup': 10.0}
  assert rates.create(section, 0.3, CLOCK) == 3.0


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({'warmup': -1}, r"warmup=-1; choose a whole number of steps, '400 st"),
    ({'warmup': '5 parts'}, r"warmup='5 parts'; choose a whole number"),
    ({'warmup': '2.5 steps'}, r"warmup='2\.5 steps'; choose a whole"),
    ({'warmup': 0.5}, r'warmup=0\.5 is not of type int or str'),
    ({'warmup': True}, r'warmup=True is not'),
    ({'warmup': '100%'}, r"warmup='100%' is the whole run"),
    ({'warmup': 41}, r'warmup=41 is longer than the run of 40 steps'),
    ({'warmup_from': 0.1}, r'warmup_from=0\.1 needs a warmup above 0'),
    ({'warmup': 2, 'warmup_from': float('nan')}, r'warmup_from=nan; choose'),
    ({'warm': 2}, r"'constant' has no option 'warm'.*; it has warmup, warm"),
    ({'name': 'step'}, r"'step' needs the option 'boundaries'"),
    ({'name': 'step', 'boundaries': ()}, r'boundaries=\(\); give a list'),
    ({'name': 'step', 'boundaries': '50%'}, r"boundaries='50%'; give a list"),
    ({'name': 'step', 'boundaries': (9, 9)}, r'\(9, 9\) do not increase'),
    ({'name': 'step', 'boundaries': (0,)}, r'boundaries=0 is not after'),
    (
      {'name': 'step', 'boundaries': (9,), 'factor': float('nan')},
      r'factor=nan; choose',
    ),
    (
      {'name': 'step', 'boundaries': (5,), 'warmup': 5},
      r'boundaries=5 is not after the start of the schedule, at step 5',
    ),
    ({'name': 'linear', 'alpha': -1.0}, r'alpha=-1\.0; choose'),
    ({'name': 'one_cycle', 'peak': '100%'}, r"peak='100%' is the end"),
    ({'name': 'one_cycle', 'initial': -1.0}, r'initial=-1\.0; choose'),
    ({'name': 'one_cycle', 'descent': 'sine'}, r"'sine'; choose linear or"),
    ({'name': 'cosine', 'num_steps': 5}, r"no option 'num_steps'"),
    ({'name': 'step', 'clock': 5}, r"'step' has no option 'clock'"),
  ],
)
def test_what_does_not_fit_is_one_line(section, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    rates.create(section, 0.3, CLOCK)
  assert str(caught.value).startswith('config.optimizer.schedule')


def test_an_epoch_has_a_length_only_with_data():
  section = {
    **{'name': 'sgd', 'learning_rate': 0.1},
    'schedule': {'warmup': '1 epoch'},
  }
  optim.create(section, 10, steps_per_epoch=3.2)
  with pytest.raises(errors.UserError, match='an epoch has no length here'):
    optim.create(section, 10)


@pytest.mark.parametrize(
  ('duration', 'expected'), [('30%', 3), ('1.4 epochs', 2), ('10%', 1)]
)
def test_a_duration_with_a_fraction_is_rounded(duration, expected):
  clock = Clock(9, 5 / 3)  # 2.7 steps, 2.33 steps, 0.9 steps
  assert clock.steps('warmup', duration) == expected


def test_an_epoch_of_a_run_is_not_rounded():
  # An epoch has 100 / 60 steps, and three epochs have 5 steps.
  section = {'name': 'step', 'boundaries': ('3 epochs',)}
  optimizer = {'name': 'sgd', 'learning_rate': 1.0, 'schedule': section}
  config = {'optimizer': optimizer, 'num_steps': 20, 'batch_size': 60}
  chain = optim.of_run(config, 100)
  one = np.float32(1)
  state, found = chain.init(one), []
  for _ in range(7):
    update, state = chain.update(one, state, one)
    found.append(-float(update))
  np.testing.assert_allclose(found, [1.0] * 5 + [0.1] * 2, rtol=1e-6)
