"""Shares of accelerators: none overlap, and each process gets the share."""

import collections

import pytest

from bn_research import errors
from bn_research.sweeps import devices, pool
from tests.sweeps.test_pool import point

EIGHT = devices.Found('GPU', tuple('01234567'))
FOUR = devices.Found('TPU', tuple('0123'))
VISIBLE = 'CUDA_VISIBLE_DEVICES'


@pytest.mark.parametrize(
  ('value', 'names'),
  [
    ('2,5', ('2', '5')),
    ('GPU-8f2a,GPU-77c1', ('GPU-8f2a', 'GPU-77c1')),
    ('', ()),
    ('-1', ()),
    ('3,-1,4', ('3',)),
  ],
)
def test_hidden_accelerators_are_not_found(value, names):
  found = devices.find({VISIBLE: value, 'TPU_VISIBLE_CHIPS': ''})
  assert found.names == names
  assert found.kind == ('GPU' if names else '')


def test_chips_of_a_tpu_are_found():
  found = devices.find({VISIBLE: '', 'TPU_VISIBLE_CHIPS': '0,1'})
  assert found == ('TPU', ('0', '1'))


@pytest.mark.parametrize('jobs', range(2, 9))
def test_jobs_divide_the_gpus(jobs):
  shares = devices.shares(EIGHT, jobs)
  names = [share[VISIBLE].split(',') for share in shares]
  assert sorted(name for own in names for name in own) == list(EIGHT.names)
  lengths = [len(own) for own in names]
  assert max(lengths) - min(lengths) <= 1
  assert all(share.keys() == {VISIBLE} for share in shares)


@pytest.mark.parametrize('jobs', range(9, 25))
def test_jobs_share_a_gpu_and_its_memory(jobs):
  shares = devices.shares(EIGHT, jobs, jobs_a_device=3)
  counts = collections.Counter(share[VISIBLE] for share in shares)
  assert counts.keys() == set(EIGHT.names)
  assert max(counts.values()) <= 3
  assert max(counts.values()) - min(counts.values()) <= 1
  memory = collections.Counter()
  for share in shares:
    memory[share[VISIBLE]] += float(share.get('XLA_CLIENT_MEM_FRACTION', 0.75))
  assert all(0.74 < part <= 0.75 for part in memory.values())


def test_a_single_job_has_everything():
  assert devices.shares(FOUR, 1) == devices.shares(EIGHT, 1) == [{}]


def test_jobs_on_chips_of_a_tpu():
  shares = devices.shares(FOUR, 3)
  assert [share['TPU_VISIBLE_CHIPS'] for share in shares] == list('012')
  assert {share['TPU_PROCESS_BOUNDS'] for share in shares} == {'1,1,1'}


def test_without_accelerators_there_is_nothing_to_share():
  assert devices.shares(devices.Found(), 9) == [{}] * 9


@pytest.mark.parametrize(
  ('found', 'arguments', 'message'),
  [
    (EIGHT, (9,), '--jobs=9, and there is room for 8 on 8 GPUs; .*_a_device'),
    (EIGHT, (17, 2), '--jobs=17, and there is room for 16 on 8 GPUs'),
    (FOUR, (5,), '--jobs=5, and there is room for 4 on 4 TPUs; give fewer'),
    (FOUR, (5, 2), '--jobs_a_device=2: a single process'),
  ],
)
def test_too_many_jobs_are_one_line(found, arguments, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    devices.shares(found, *arguments)
  assert '\n' not in str(caught.value)


def test_each_process_gets_a_share_that_no_other_process_has(tmp_path):
  # A second run with one share would find the file of the first.
  script = (
    'share = os.environ["SHARE"]\n'
    'mark = here.parent / f"holds {share}"\n'
    'mark.touch(exist_ok=False)\n'
    'time.sleep(0.3)\n'
    'mark.unlink()\n'
    'end("done", share)\n'
  )
  todo = [point(tmp_path, f'run{k}', script) for k in range(5)]
  outcomes = []
  pool.run(todo, [{'SHARE': 'a'}, {'SHARE': 'b'}], outcomes.append)
  assert [outcome.status for outcome in outcomes] == ['done'] * 5
  assert {outcome.reason for outcome in outcomes} == {'a', 'b'}
