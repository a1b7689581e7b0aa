"""Checks configs, for a sweep: `python -m bn_research.check < REQUEST`.

A process of its own, so that the driver of a sweep imports no JAX and stays
small. The request is JSON: `configs`, a list; `folder`, where modules of the
user are; `data_dir`. Exit status: 0, or 2 after a mistake of the user, in one
line.
"""

import json
import os
import sys

from bn_research import cli


def main() -> None:
  """Checks the configs of the request on the standard input."""
  request = json.load(sys.stdin)
  # Shapes are the same on every device, and a run may hold the accelerator.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  cli.make_importable(request['folder'])
  from bn_research.training import checking

  checking.check(request['configs'], request['data_dir'])


if __name__ == '__main__':
  cli.in_one_line(main)
