"""Trains many runs in one process: `python -m bn_research.pack REQUEST`.

`bn_research.sweep --pack` writes the request and starts this command. The
request is a JSON file with the keys `groups`, `folder` and `data_dir`. `groups`
is a list of lists of runs, each with `config`, `workdir`, `log` (the file of
the output) and `command`, the command that trains the run alone. `folder` is
the directory of the modules of the user, and `data_dir` is the directory of the
datasets or null.

A run ends as its own command would end, with its own files, status and log. The
workdir and the exit status of a run that ended are a line of a second file,
beside the request and with the suffix `.ended`. Lines about runs that are no
pack are in a third file, with the suffix `.told`.
"""

import functools
import json
import os
import pathlib
import sys

from bn_research import cli, config_files, interrupt


def main() -> None:
  """Trains the runs of the request."""
  interrupt.end_the_process()
  path = pathlib.Path(sys.argv[1])
  request = json.loads(path.read_text())
  config_files.make_importable(request['folder'])
  # The runs are divided among the devices, and each core is a device of a CPU.
  os.environ.setdefault('JAX_NUM_CPU_DEVICES', str(_num_cores()))
  cli.import_jax()
  from bn_research.training import compilation, packing, stopping

  compilation.enable_cache()
  groups = [
    [
      packing.Member(
        run['config'], run['workdir'], run['log'], {'command': run['command']}
      )
      for run in runs
    ]
    for runs in request['groups']
  ]

  def append(suffix: str, line: str) -> None:
    with open(path.with_suffix(suffix), 'a') as file:
      print(line, file=file)

  def ended(member: packing.Member, exit_status: int) -> None:
    append('.ended', json.dumps([member.directory, exit_status]))

  say = functools.partial(append, '.told')

  with stopping.on_signals() as stop, packing.by_thread():
    for group in groups:
      if stop.signal is None:
        packing.train(group, stop, ended, say, request['data_dir'])


def _num_cores() -> int:
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # Only Linux knows the cores of a process.
    return os.cpu_count() or 1


if __name__ == '__main__':
  cli.in_one_line(main)
