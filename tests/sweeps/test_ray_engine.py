"""The engine of Ray: mistakes without Ray, and runs on real local clusters."""

import importlib.util
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from bn_research import errors, workdir
from bn_research.sweeps import devices, extras, ray_cluster

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', {'CPU': 1}),
    ('GPU=2', {'CPU': 1, 'GPU': 2}),
    ('CPU=0, TPU=4', {'CPU': 0, 'TPU': 4}),
    ('CPU=2,accelerator_type:A=0.01', {'CPU': 2, 'accelerator_type:A': 0.01}),
  ],
)
def test_resources_have_the_names_of_ray(text, expected):
  assert ray_cluster.resources(text) == expected


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('GPU', "--resources=GPU: 'GPU' is no name=value"),
    ('GPU=1,', "'' is no name=value"),
    ('GPU=1,GPU=2', 'has GPU twice'),
    ('GPU=one', 'GPU=one is neither a whole number nor a part of one'),
    ('GPU=1.5', 'GPU=1.5 is neither'),
    ('GPU=0', 'GPU=0 is neither'),
    ('GPU=-1', 'GPU=-1 is neither'),
    ('GPU=inf', 'GPU=inf is neither'),
  ],
)
def test_wrong_resources_are_one_line(text, message):
  with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
    ray_cluster.resources(text)
  assert '\n' not in str(caught.value)


@pytest.fixture
def cluster(monkeypatch):
  """A cluster with a node of two GPUs, one without, and one that died."""
  nodes = [
    {'Alive': alive, 'Resources': {'node:10.0.0.1': 1.0, 'memory': 9e9, **own}}
    for alive, own in (
      (True, {'CPU': 8.0, 'GPU': 2.0}),
      (True, {'CPU': 3.0}),
      (False, {'CPU': 64.0, 'GPU': 8.0}),
    )
  ]
  ray = types.SimpleNamespace(nodes=lambda: nodes)
  monkeypatch.setitem(sys.modules, 'ray', ray)


@pytest.mark.parametrize(
  ('needed', 'count'),
  [
    ({'CPU': 1}, 11),
    ({'CPU': 2}, 5),
    ({'CPU': 1, 'GPU': 1}, 2),
    ({'CPU': 5, 'GPU': 1}, 1),
    ({'CPU': 0, 'GPU': 0.1}, 20),
  ],
)
def test_the_room_of_a_cluster(needed, count, cluster, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert ray_cluster.room(needed) == count


def test_runs_that_would_take_all_gpus_are_refused(cluster, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS')
  with pytest.raises(errors.UserError, match='give GPU=1, or set JAX_PLATFORM'):
    ray_cluster.room({'CPU': 1})
  assert ray_cluster.room({'CPU': 1, 'GPU': 1}) == 2


@pytest.mark.parametrize('needed', [{'CPU': 1, 'GPU': 8}, {'CPU': 1, 'TPU': 4}])
def test_resources_of_no_node_are_refused(needed, cluster):
  with pytest.raises(errors.UserError) as caught:
    ray_cluster.room(needed)
  assert str(caught.value).endswith(
    'no node has as many; the nodes have CPU=3 | CPU=8,GPU=2'
  )


def test_a_part_of_a_gpu_has_a_part_of_the_memory():
  found = devices.Found('GPU', ('0',))
  shared = devices.shares(found, 2, jobs_a_device=2)
  variable = 'XLA_CLIENT_MEM_FRACTION'
  assert devices.memory(0.5)[variable] == shared[0][variable] == '0.375'


def test_a_missing_extra_is_one_line():
  with pytest.raises(errors.UserError) as caught:
    extras.require('no_such_package', 'ray', '--engine=ray')
  assert str(caught.value) == (
    '--engine=ray needs no_such_package, which is not installed: python -m pip'
    " install -c requirements.txt -e '.[ray]'"
  )


def sweep(tmp_path, *flags, **options):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'bn_research.sweep'),
      f'--config={ROOT}/configs/ioffe2015_fig1.py:quick',
      *(f'--workdir={tmp_path / "runs"}', '--only=*seed=[01]', *flags),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def error_of(tmp_path, *flags):
  process = sweep(tmp_path, *flags)
  _, error = process.communicate(timeout=120)
  assert process.returncode == 2
  assert not (tmp_path / 'runs').exists()
  (line,) = error.splitlines()
  return line


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--resources=GPU=1'], '--resources goes with --engine=ray, and not'),
    (['--ray_address=auto'], '--ray_address goes with --engine=ray, and not'),
    (
      ['--engine=ray', '--jobs_a_device=2'],
      '--jobs_a_device goes with --engine=local, and not with --engine=ray',
    ),
    (['--engine=slurm', '--jobs=2'], '--jobs goes with --engine=local or ray'),
    (['--engine=slurm', '--search=2'], '--search goes with --engine=local or'),
  ],
)
def test_a_flag_of_another_engine_is_one_line(flags, message, tmp_path):
  assert message in error_of(tmp_path, *flags)


@pytest.mark.skipif(
  importlib.util.find_spec('ray') is not None, reason='Ray is installed'
)
def test_a_sweep_without_ray_is_one_line(tmp_path):
  assert "-e '.[ray]'" in error_of(tmp_path, '--engine=ray')


@pytest.fixture
def closed_port():
  with socket.socket() as bound:  # and does not listen
    bound.bind(('127.0.0.1', 0))
    yield bound.getsockname()[1]


@pytest.mark.parametrize('address', ['ray://head:10001', 'head', 'a:b'])
def test_a_wrong_address_is_one_line(address, tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  flags = ('--engine=ray', f'--ray_address={address}')
  assert 'give host:port of the head' in error_of(tmp_path, *flags)


def test_an_address_that_nobody_answers_is_one_line(closed_port, tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  address = f'--ray_address=127.0.0.1:{closed_port}'
  line = error_of(tmp_path, '--engine=ray', address)
  assert f'no Ray cluster answers at {address}' in line
  assert f'ray start --head --port={closed_port}' in line


@pytest.mark.parametrize('answer', [b'', b'SSH-2.0-OpenSSH', None])
def test_an_address_of_another_service_is_one_line(answer, monkeypatch):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  monkeypatch.setattr(ray_cluster, '_SECONDS', 0.2)
  with socket.create_server(('127.0.0.1', 0)) as server:

    def serve():
      connection, _ = server.accept()
      with connection:
        if answer is None:  # The service waits for more.
          connection.recv(1000)
          time.sleep(0.5)
        else:
          connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    address = f'127.0.0.1:{server.getsockname()[1]}'
    with (
      pytest.raises(errors.UserError, match='no Ray cluster answers at'),
      ray_cluster.connected(address),
    ):
      pass
    thread.join()


@pytest.mark.slow
def test_devices_that_no_node_has_are_one_line(tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  line = error_of(tmp_path, '--engine=ray', '--resources=GPU=64')
  assert '--resources=CPU=1,GPU=64: no node has as many' in line


# A cluster of two nodes with a CPU each, in a process of its own. The process
# prints the address, waits for a line, and then kills the second node with all
# of the processes there.
_CLUSTER = """
import os, pathlib, signal, sys
os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
import ray.cluster_utils

def below(pid):
  for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    for child in map(int, path.read_text().split()):
      yield child
      yield from below(child)

options = dict(num_cpus=1, object_store_memory=80 * 2**20)
cluster = ray.cluster_utils.Cluster(
  initialize_head=True,
  head_node_args={**options, 'include_dashboard': False},
)
try:
  node = cluster.add_node(**options)
  print(cluster.address, flush=True)
  if sys.stdin.readline():
    (raylet,) = node.all_processes['raylet']
    pids = [raylet.process.pid, *below(raylet.process.pid)]
    for pid in pids:
      os.kill(pid, signal.SIGKILL)
    print(len(pids), flush=True)
  sys.stdin.readline()
finally:
  cluster.shutdown()
"""


@pytest.fixture
def two_nodes():
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  with subprocess.Popen(
    [sys.executable, '-c', _CLUSTER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    try:
      yield process, process.stdout.readline().strip()
    finally:
      process.communicate(timeout=60)


def within(seconds, condition):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)


def rows_of(folder):
  return {
    path.name: [
      {key: value for key, value in row.items() if key != 'seconds'}
      for row in workdir.read_metrics(path)
    ]
    for path in folder.iterdir()
  }


@pytest.mark.slow
def test_runs_of_a_node_that_is_killed_go_on_to_the_same_bits(
  two_nodes, tmp_path
):
  process, address = two_nodes
  longer = ('--config.num_steps=4000', '--config.checkpoint_seconds=0.5')
  far = sweep(tmp_path, '--engine=ray', f'--ray_address={address}', *longer)
  runs = tmp_path / 'runs'
  within(120, lambda: len(list(runs.glob('*/metrics.jsonl'))) == 2)
  print('kill', file=process.stdin, flush=True)
  assert int(process.stdout.readline()) > 2
  out, error = far.communicate(timeout=300)
  assert (far.returncode, error) == (0, '')
  assert out.splitlines()[-1] == '4 done'
  starts = [len(workdir.read_record(path)['starts']) for path in runs.iterdir()]
  assert sum(starts) == 5
  here = sweep(tmp_path / 'here', *longer)
  out, _ = here.communicate(timeout=300)
  assert here.returncode == 0
  assert rows_of(runs) == rows_of(tmp_path / 'here' / 'runs')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_sweep_ends_and_saves_the_runs(number, tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  process = sweep(
    tmp_path,
    *('--engine=ray', '--jobs=1', '--config.num_steps=1_000_000'),
    '--config.checkpoint_seconds=1000.0',
  )
  runs = tmp_path / 'runs'
  within(120, lambda: any(runs.glob('*/metrics.jsonl')))
  process.send_signal(number)
  out, error = process.communicate(timeout=60)
  (run,) = runs.iterdir()
  # The run writes the status at the start, and with a checkpoint.
  within(30, lambda: workdir.read_status(run).step > 0)
  assert workdir.read_status(run).status == workdir.INCOMPLETE
  if number == signal.SIGTERM:
    assert (process.returncode, error) == (130, '')
    assert 'the same command goes on' in out


@pytest.mark.slow
def test_each_run_sees_the_gpus_of_its_share(tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  # Ray believes in two GPUs, and gives numbers.
  program = f"""
import pathlib, ray, sys, time
from bn_research.sweeps import ray_cluster, ray_engine
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, logging_level='ERROR')
see = {_SEE!r}
for part in ('1', '0.5'):
  engine = ray_engine.Engine(ray_cluster.resources('GPU=' + part))
  logs = [pathlib.Path({str(tmp_path)!r}, part + name) for name in 'ab']
  jobs = [engine.start([sys.executable, '-c', see], {{}}, log) for log in logs]
  while any(job.poll() is None for job in jobs):
    time.sleep(0.05)
  print(sorted(log.read_text().strip() for log in logs))
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'RAY_USAGE_STATS_ENABLED': '0'},
  )
  assert done.stdout.splitlines() == [
    "['0 None', '1 None']",
    "['0 0.375', '0 0.375']",
  ], done.stderr


_SEE = """
import os, time
time.sleep(3)
print(*map(os.environ.get, ['CUDA_VISIBLE_DEVICES', 'XLA_CLIENT_MEM_FRACTION']))
"""


@pytest.mark.slow
def test_a_node_that_cannot_start_a_command_tells_why(tmp_path):
  pytest.importorskip('ray', reason='the extra [ray] is not installed')
  log = tmp_path / 'log.txt'
  # The folder of the sweep, which a node on another disk does not have.
  program = f"""
import os, pathlib, time
from bn_research.sweeps import ray_cluster, ray_engine
with ray_cluster.connected(None):
  engine = ray_engine.Engine(ray_cluster.resources(''))
  os.getcwd = lambda: '/no/such/folder'
  job = engine.start(['/bin/true'], {{}}, pathlib.Path({str(log)!r}))
  while job.poll() is None:
    time.sleep(0.05)
  print(job.poll())
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ('1\n', '')
  error = "[Errno 2] No such file or directory: '/no/such/folder'"
  assert log.read_text() == f'error: {error}\n'
