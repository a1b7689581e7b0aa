"""Checks of the configs of a sweep, in a process that may import JAX."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research import errors


def check(
  configs: Sequence[Mapping[str, Any]], folder: str, data_dir: str | None
) -> None:
  """Checks configs before any of them is trained.

  Args:
    configs: The configs of the runs.
    folder: The folder of the config file, where modules of the user are.
    data_dir: Where datasets are kept; None for the default.

  Raises:
    UserError: If a config has a mistake.
  """
  request = {'configs': configs, 'folder': folder, 'data_dir': data_dir}
  result = subprocess.run(
    [sys.executable, '-m', 'bn_research.check'],
    input=json.dumps(request),
    capture_output=True,
    text=True,
    check=False,
  )
  if result.returncode:
    last = result.stderr.strip().splitlines()[-1:] or ['no message']
    if result.returncode != 2:  # a mistake of ours
      print(result.stderr, file=sys.stderr)
    raise errors.UserError(last[0].removeprefix('error: '))
