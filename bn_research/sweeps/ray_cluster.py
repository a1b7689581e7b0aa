"""Finds a Ray cluster, and compares the cluster with the resources of a run."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from bn_research import errors
from bn_research.sweeps import extras

Resources = Mapping[str, float]

_FLAG = '--engine=ray'
_SECONDS = 5.0  # for the first answer of a cluster
# The head speaks gRPC: a server of HTTP/2 answers this greeting with settings.
_GREETING = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes(
  (0, 0, 0, 4, 0, 0, 0, 0, 0)
)
_SETTINGS = 4
# Ray reserves a third of the memory for objects by default. Runs pass nothing
# but command lines through Ray.
_STORE_BYTES = 80 * 2**20
_EXAMPLE = 'CPU=4,GPU=1'
_KINDS = ('GPU', 'TPU')
_PLATFORMS = 'JAX_PLATFORMS'


def resources(text: str) -> dict[str, float]:
  """Returns the resources of a run, with one CPU if the text has no CPU.

  Args:
    text: Names as Ray knows them, such as `'CPU=4,GPU=1'` or `'TPU=4'`.

  Raises:
    UserError: If the text has no numbers, or numbers that Ray refuses.
  """
  result = {'CPU': 1.0}
  for name, value in extras.pairs('--resources', text, _EXAMPLE).items():
    try:
      number = float(value)
    except ValueError:
      number = -1.0
    is_part = 0 < number < 1 or (name == 'CPU' and number == 0)
    if not (is_part or (number >= 1 and number.is_integer())):
      raise errors.UserError(
        f'--resources={text}: {name}={value} is neither a whole number nor a'
        f' part of one; give numbers such as {_EXAMPLE}'
      )
    result[name] = number
  return result


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
  """Connects this process to a cluster, until the `with` block ends.

  Args:
    address: `'host:port'` of the head of a cluster, or `'auto'` for a cluster
      with a node on this machine. With None, the address is the environment
      variable RAY_ADDRESS, and without the variable Ray starts on this machine
      and ends with the block.

  Raises:
    UserError: If Ray is not installed, or if no cluster answers.
  """
  extras.require('ray', 'ray', _FLAG)
  address = address or os.environ.get('RAY_ADDRESS')
  # Under TLS, only Ray itself can ask.
  if address not in (None, 'auto') and os.environ.get('RAY_USE_TLS') != '1':
    _probe(address)
  # No statistics of the use leave this machine unasked.
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  import ray

  quiet = {'logging_level': 'ERROR', 'log_to_driver': False}
  try:
    if address is None:
      own = {'include_dashboard': False, 'object_store_memory': _STORE_BYTES}
      ray.init('local', **own, **quiet)
    else:
      ray.init(address, **quiet)
  except (ConnectionError, RuntimeError, ValueError) as error:
    ray.shutdown()
    reason = str(error).strip().partition('\n')[0]
    place = f'no Ray cluster at --ray_address={address}'
    raise errors.UserError(
      f'{place if address else "Ray does not start here"}: {reason}'
    ) from error
  try:
    yield
  finally:
    ray.shutdown()


def _probe(address: str) -> None:
  """Raises a UserError if no cluster answers at an address.

  Ray itself would try for minutes.
  """
  host, _, port = address.rpartition(':')
  if not (host and port.isdecimal()) or '/' in host:
    raise errors.UserError(
      f"--ray_address={address}; give host:port of the head, or 'auto' on a"
      ' node of the cluster'
    )
  try:
    place = (host.strip('[]'), int(port))
    with socket.create_connection(place, _SECONDS) as connection:
      connection.sendall(_GREETING)
      if connection.recv(4)[3:] != bytes((_SETTINGS,)):
        raise OSError('the answer is not from Ray')
  except (OSError, OverflowError) as error:
    raise errors.UserError(
      f'no Ray cluster answers at --ray_address={address} ({error}); start Ray'
      f' there with: ray start --head --port={port}'
    ) from error


def room(needed: Resources) -> int:
  """Returns the number of runs that fit the cluster at the same time.

  Args:
    needed: The resources of a run.

  Raises:
    UserError: If no node has the resources of a run, or if each run would see
      all accelerators of its node.
  """
  import ray

  nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
  count = sum(_fit(node, needed) for node in nodes)
  _check_accelerators([n for n in nodes if _fit(n, needed)], needed)
  if not count:
    raise errors.UserError(
      f'--resources={_told(needed)}: no node has as many; the nodes have'
      f' {" | ".join(_all_told(nodes)) or "nothing"}'
    )
  return count


def _check_accelerators(nodes: Sequence[Resources], needed: Resources) -> None:
  """Raises a UserError if a run would see accelerators of other runs."""
  for kind in _KINDS:
    # Ray shows a run its share, and all accelerators to a run without a share.
    is_open = any(node.get(kind) for node in nodes) and kind not in needed
    if is_open and os.environ.get(_PLATFORMS) != 'cpu':
      raise errors.UserError(
        f'--resources={_told(needed)}: a node has {kind}s, and each run would'
        f' take all of them; give {kind}=1, or set {_PLATFORMS}=cpu'
      )


def _fit(node: Resources, needed: Resources) -> int:
  """Returns the number of runs that fit a node."""
  parts = [node.get(key, 0) / n for key, n in needed.items() if n]
  return int(min(parts, default=1))


def _told(values: Resources) -> str:
  return ','.join(f'{name}={value:g}' for name, value in values.items())


def _all_told(nodes: Sequence[Resources]) -> list[str]:
  """Returns the different nodes as texts, without what Ray adds for itself."""
  hidden = ('node:', 'memory', 'object_store_memory')
  return sorted(
    {
      _told({k: n for k, n in sorted(node.items()) if not k.startswith(hidden)})
      for node in nodes
    }
  )
