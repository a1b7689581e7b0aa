"""The pool against processes that fail, die, hang or are told to stop."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from bn_research import errors, locking, workdir
from bn_research.sweeps import driver, logs, points, pool

# What a run does to its workdir, without a network: `end(status)` writes it.
_RUN = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def end(status, reason=''):
  fields = dict(status=status, step=1, reason=reason)
  (here / 'status.json').write_text(json.dumps(fields))
with open(here / 'starts', 'a') as file:
  file.write('.')
starts = (here / 'starts').stat().st_size
"""


def point(tmp_path, name, script):
  run = tmp_path / name
  command = (sys.executable, '-S', '-c', _RUN + script, str(run))
  return points.Point(name, run, command, {'num_steps': 1})


def starts(point):
  path = point.workdir / 'starts'
  return path.stat().st_size if path.exists() else 0


def train(*todo, jobs=1):
  outcomes = []
  pool.run(todo, [{}] * jobs, outcomes.append)
  return {outcome.point.name: outcome for outcome in outcomes}


def test_outcomes(tmp_path):
  outcomes = train(
    point(tmp_path, 'done', "end('done')"),
    point(tmp_path, 'diverged', "end('diverged', 'the loss is nan')"),
    point(tmp_path, 'failed', "end('failed', 'no space'); sys.exit(1)"),
    point(tmp_path, 'raised', "raise ValueError('seven')"),
    point(tmp_path, 'user', "print('error: no data'); sys.exit(2)"),
  )
  assert {name: (o.status, o.reason) for name, o in outcomes.items()} == {
    'done': (workdir.DONE, ''),
    'diverged': (workdir.DIVERGED, 'the loss is nan'),
    'failed': (workdir.FAILED, 'no space'),
    'raised': (workdir.FAILED, 'ValueError: seven'),
    'user': (workdir.FAILED, 'no data'),
  }
  for outcome in outcomes.values():
    assert starts(outcome.point) == 1


def test_what_a_run_prints_is_in_its_log_below_its_command(tmp_path):
  script = "print('out'); print('err', file=sys.stderr); end('done')"
  train(point(tmp_path, 'a', script))
  log = logs.path(tmp_path / 'a').read_text()
  assert log.startswith(f'+ {sys.executable}')
  assert {'out', 'err'} <= set(log.splitlines())


def test_a_run_lost_once_to_a_signal_goes_on(tmp_path):
  script = 'if starts == 1: os.kill(os.getpid(), signal.SIGKILL)\n'
  lost = point(tmp_path, 'lost', script + "end('done')")
  assert train(lost)['lost'].status == workdir.DONE
  assert starts(lost) == 2


def test_a_run_that_is_lost_again_and_again_is_given_up(tmp_path):
  lost = point(tmp_path, 'lost', 'os.kill(os.getpid(), signal.SIGKILL)')
  outcome = train(lost)['lost']
  assert outcome.status == pool.LOST
  assert 'SIGKILL 3 times' in outcome.reason
  assert starts(lost) == 3


def test_a_run_that_was_told_to_end_and_saved_goes_on(tmp_path):
  ended = point(tmp_path, 'ended', "if starts == 2: end('done')")
  assert train(ended)['ended'].status == workdir.DONE


def test_jobs_run_side_by_side(tmp_path):
  # Each waits for the other's first sign of life.
  script = """
for _ in range(400):
  if (here.parent / 'other' / 'starts').exists(): end('done'); break
  time.sleep(0.025)
"""
  one = point(tmp_path, 'one', script)
  other = point(tmp_path, 'other', script.replace("'other'", "'one'"))
  outcomes = train(one, other, jobs=2)
  assert {o.status for o in outcomes.values()} == {workdir.DONE}
  assert starts(one) == starts(other) == 1


def test_one_job_is_one_run_at_a_time_in_the_order_of_the_sweep(tmp_path):
  script = """
with open(here.parent / 'order', 'a') as file:
  print('start', here.name, file=file, flush=True)
  time.sleep(0.1)
  print('end', here.name, file=file)
end('done')
"""
  train(*(point(tmp_path, name, script) for name in 'cab'))
  assert (tmp_path / 'order').read_text().splitlines() == [
    f'{what} {name}' for name in 'cab' for what in ('start', 'end')
  ]


def test_a_point_is_taken_when_there_is_room_for_it(tmp_path):
  outcomes, known = [], []

  def todo():
    for name in 'abc':
      known.append(len(outcomes))
      yield point(tmp_path, name, "end('done')")

  pool.run(todo(), [{}], outcomes.append)
  assert known == [0, 1, 2]
  assert len(outcomes) == 3


def test_a_run_that_is_pruned_saves_and_does_not_start_again(tmp_path):
  script = """
def save(*_):
  (here / 'saved').touch()
  sys.exit(0)
signal.signal(signal.SIGTERM, save)
(here / 'ready').touch()
time.sleep(60 if here.name == 'pruned' else 0)
end('done')
"""
  runs = [point(tmp_path, name, script) for name in ('pruned', 'other')]
  outcomes = []
  pool.run(
    runs,
    [{}],
    outcomes.append,
    prunes=lambda point: (
      point.name == 'pruned' and (point.workdir / 'ready').exists()
    ),
  )
  assert [outcome.status for outcome in outcomes] == [pool.PRUNED, workdir.DONE]
  assert (runs[0].workdir / 'saved').exists()
  assert starts(runs[0]) == 1


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, capsys):
  held = point(tmp_path, 'held', "end('done')")
  free = point(tmp_path, 'free', "end('done')")
  held.workdir.mkdir()
  with contextlib.ExitStack() as stack:
    stack.enter_context(locking.exclusive(held.workdir))

    def release():
      workdir.write_status(held.workdir, workdir.Status(workdir.DONE, 1))
      stack.close()

    timer = threading.Timer(1.0, release)
    timer.start()
    assert driver.run([held, free]) == 0
    timer.join()
  assert [starts(run) for run in (held, free)] == [0, 1]
  out = capsys.readouterr().out
  assert 'waiting for 1 runs that another process trains' in out
  assert out.splitlines()[-1] == '2 done'


def test_a_run_that_is_busy_when_it_starts_is_tried_again(tmp_path):
  script = f"if starts < 2: sys.exit({locking.Busy.exit_status})\nend('done')"
  busy = point(tmp_path, 'busy', script)
  assert train(busy)['busy'].status == workdir.DONE
  assert starts(busy) == 2


def test_finished_runs_are_left_alone(tmp_path, capsys):
  sweep = [
    point(tmp_path, status, "end('done')")
    for status in ('done', 'diverged', 'failed', 'incomplete')
  ]
  for run in sweep:
    workdir.write_status(run.workdir, workdir.Status(run.name, 1, 'of old'))
  assert driver.run(sweep) == 1  # one failed, be it before
  assert [starts(run) for run in sweep] == [0, 0, 0, 1]
  out = capsys.readouterr().out
  assert '4 runs, 1 to do' in out
  assert 'failed: of old; --retry=failed tries again\n' in out
  assert '[4/4] done' in out
  assert driver.run(sweep, retry=True) == 0
  assert '4 runs, 1 to do' in capsys.readouterr().out
  assert [starts(run) for run in sweep] == [0, 0, 1, 1]


@pytest.mark.parametrize(
  ('script', 'code'),
  [("end('done')", 0), ("end('diverged')", 0), ('sys.exit(1)', 1)],
)
def test_the_exit_status_tells_of_failure(script, code, tmp_path):
  assert driver.run([point(tmp_path, 'a', script)]) == code


def test_a_read_only_workdir_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  run = point(tmp_path, 'file/run', '')
  with pytest.raises(errors.UserError, match='choose another --workdir'):
    train(run)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_lets_its_run_save(number, tmp_path):
  driver_process, run = _sweep_that_hangs(tmp_path, saves=True)
  driver_process.send_signal(number)
  out, _ = driver_process.communicate(timeout=20)
  assert driver_process.returncode == 130
  assert 'the same command goes on' in out
  assert (run / 'saved').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_a_killed_sweep_leaves_no_orphan(tmp_path):
  driver_process, run = _sweep_that_hangs(tmp_path, saves=False)
  driver_process.kill()
  driver_process.communicate(timeout=20)
  orphan = int((run / 'pid').read_text())
  assert _within(10, lambda: not _alive(orphan))


def _sweep_that_hangs(tmp_path, saves):
  """Starts a sweep of one run, and waits until that run is on its way."""
  script = """
def save(*_):
  (here / 'saved').touch()
  sys.exit(0)
"""
  if saves:
    script += 'signal.signal(signal.SIGTERM, save)\n'
  script += """
(here / 'pid.part').write_text(str(os.getpid()))
os.rename(here / 'pid.part', here / 'pid')
time.sleep(60)
"""
  run = point(tmp_path, 'hangs', script)
  (tmp_path / 'point.json').write_text(json.dumps([run.name, *run.command]))
  # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
  program = f"""
import json, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from bn_research.sweeps import driver, points
name, *command = json.load(open({str(tmp_path / 'point.json')!r}))
run = pathlib.Path({str(run.workdir)!r})
point = points.Point(name, run, tuple(command), {{'num_steps': 1}})
raise SystemExit(driver.run([point]))
"""
  process = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert _within(20, (run.workdir / 'pid').exists)
  return process, run.workdir


def _within(seconds, condition):
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    time.sleep(0.02)
  return False


def _alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'  # ended, and not yet reaped


@pytest.fixture(autouse=True)
def _keep_the_handler():
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)
