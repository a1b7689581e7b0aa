"""Checks the configs of a sweep: `python -m bn_research.check < REQUEST`.

The check runs in a separate process. The driver of a sweep therefore imports no
JAX and stays small. The request is a JSON dict with three keys: `configs` is a
list of configs, `folder` is the directory of the modules of the user, and
`data_dir` is the directory of the datasets or null. The exit status is 0, or 2
after a mistake of the user, with an error message of a single line.
"""

import json
import os
import sys

from bn_research import cli, config_files


def main() -> None:
  """Checks the configs in the request on the standard input."""
  request = json.load(sys.stdin)
  # The check calls each network on shapes only. Shapes are the same on every
  # device, and a run may hold the accelerator.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  config_files.make_importable(request['folder'])
  cli.import_jax()
  # This module imports JAX, hence the import comes after the platform is set.
  from bn_research.training import checking

  checking.check(request['configs'], request['data_dir'])


if __name__ == '__main__':
  cli.in_one_line(main)
