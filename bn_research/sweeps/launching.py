"""Launches the runs of a sweep by a scheduler, and does not wait.

A template of a command, such as

    sbatch --job-name={name} --wrap="{command}"

is split into arguments as a shell would split the text, and then each argument
is filled. No shell reads the filled text, so quotes and spaces in a command do
no harm.

A call launches each run that is neither over nor trained by a process at the
moment. A later call thus launches again what was lost. The file `launched.json`
in a workdir has the time of the last launch: a run that waits in the queue of
the scheduler is left out for some time.
"""

import json
import re
import shlex
import string
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping, Sequence

from bn_research import disk, errors, locking, workdir
from bn_research.sweeps.points import Point

FILE = 'launched.json'

_FIELDS = ('name', 'command', 'arguments', 'workdir')
_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}
# With a hash 39 characters, the longest name of a workload of xpk.
_LONGEST_NAME = 30


def split(template: str) -> list[str]:
  """Returns the arguments of a template, with fields to fill.

  Args:
    template: A command line with `{command}`, the command of a run as one
      text, or with `{arguments}`, the same without the Python interpreter in
      front. `{name}` is a short name of the run, and `{workdir}` the folder.
      `{{` stands for a brace.

  Raises:
    UserError: If the text is no command line, or has neither a command nor
      arguments, or has an unknown field.
  """
  try:
    arguments = shlex.split(template)
    fields = {
      field
      for argument in arguments
      for _, field, _, _ in string.Formatter().parse(argument)
      if field is not None
    }
  except ValueError as error:
    raise errors.UserError(f'--launch={template}: {error}') from error
  if unknown := sorted(fields.difference(_FIELDS)):
    raise errors.UserError(
      f'--launch has {{{unknown[0]}}}; the fields are'
      f' {", ".join(f"{{{name}}}" for name in _FIELDS)}, and {{{{ is a brace'
    )
  if fields.isdisjoint(('command', 'arguments')):
    raise errors.UserError(
      "--launch has no {command}; for example --launch='sbatch --wrap="
      '"{command}"\''
    )
  return arguments


def seconds_of(text: str) -> float:
  """Returns the seconds of a time such as `'90s'`, `'15m'`, `'1h'` or `'2d'`.

  Args:
    text: A number and a unit.

  Raises:
    UserError: If the text is no time.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?)([smhd])', text)
  if match is None:
    raise errors.UserError(f'--queued={text}; give a time such as 30m or 1h')
  return float(match[1]) * _UNITS[match[2]]


def job_name(name: str) -> str:
  """Returns a name of letters, digits and hyphens, at most 39 characters long.

  The name begins with a letter. Kubernetes, xpk and most schedulers accept such
  names. A hash keeps names apart that differ in further characters only.

  Args:
    name: The name of a run.
  """
  plain = re.sub(r'[^a-z0-9]+', '-', name.lower()).lstrip('-0123456789')
  plain = plain[:_LONGEST_NAME].strip('-')
  return f'{plain or "run"}-{zlib.crc32(name.encode()):08x}'


# A function that launches points together, and returns the reason of a failure
# in one line, or ''.
Launcher = Callable[[Sequence[Point]], str]


def launch(
  points: Sequence[Point],
  launcher: Launcher,
  queued_seconds: float,
  retry: bool = False,
  together: bool = False,
) -> int:
  """Launches the runs that nothing trains, and prints a line for each launch.

  Args:
    points: The points of a sweep.
    launcher: The launcher, such as the result of `command`.
    queued_seconds: The time after a launch without a further launch, unless the
      run is over.
    retry: Whether runs with the status failed are launched again.
    together: Whether the launcher is called once, with all runs.

  Returns:
    The exit status: 0, or 1 if a launch failed.
  """
  counts = {'launched': 0, 'failed to launch': 0, 'queued': 0, 'training': 0}
  over, ready = 0, []
  for point in points:
    status = point.read_status().status
    if status == workdir.FAILED and retry:
      point.retry()
    elif status != workdir.INCOMPLETE:
      over += 1
      continue
    if locking.is_held(point.workdir):
      counts['training'] += 1
    elif _age(point) < queued_seconds:
      counts['queued'] += 1
    else:
      ready.append(point)
  for batch in _batches(ready, together):
    is_launched = _launch(batch, launcher)
    counts['launched' if is_launched else 'failed to launch'] += len(batch)
  print(
    ', '.join(f'{number} {what}' for what, number in counts.items() if number)
    or 'nothing to launch',
    f'; {over} of {len(points)} over',
    sep='',
    flush=True,
  )
  return 1 if counts['failed to launch'] else 0


def command(arguments: Sequence[str]) -> Launcher:
  """Returns a launcher of single points by a command.

  Args:
    arguments: The result of `split`.
  """

  def call(points: Sequence[Point]) -> str:
    (point,) = points
    fields = {
      'name': job_name(point.name),
      'command': shlex.join(point.command),
      'arguments': shlex.join(point.command[1:]),
      'workdir': str(point.workdir),
    }
    filled = [argument.format(**fields) for argument in arguments]
    try:
      done = subprocess.run(
        filled, stdin=subprocess.DEVNULL, capture_output=True, text=True
      )
    except OSError as error:
      return f'{filled[0]}: {error.strerror}'
    output = (done.stderr or done.stdout).strip().splitlines()
    silent = f'exit status {done.returncode}'
    return [silent, *output][-1] if done.returncode else ''

  return call


def _batches(ready: Sequence[Point], together: bool) -> list[Sequence[Point]]:
  """Returns the points of each call of a launcher."""
  if together:
    return [ready] if ready else []
  return [[point] for point in ready]


def _launch(points: Sequence[Point], launcher: Launcher) -> bool:
  """Calls the launcher, and returns whether the call succeeded."""
  # The time is written before the call: if this process is killed in between,
  # a run is launched late rather than twice.
  for point in points:
    disk.write_json(point.workdir / FILE, {'time': time.time()})
  reason = launcher(points)
  for point in points:
    if reason:
      disk.remove(point.workdir / FILE)
      print(f'failed to launch {point.name}: {reason}', flush=True)
    else:
      print(f'launched {point.name}', flush=True)
  return not reason


def _age(point: Point) -> float:
  """Returns the seconds since the last launch; infinite without a launch."""
  try:
    content = disk.read_bytes(point.workdir / FILE)
    record: Mapping[str, float] = json.loads(content)
    return time.time() - float(record['time'])
  except (OSError, ValueError, KeyError, TypeError):
    return float('inf')
