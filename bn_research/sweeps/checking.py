"""Checks the configs of a sweep, in a child process that imports JAX."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research import errors


def check(
  configs: Sequence[Mapping[str, Any]], folder: str, data_dir: str | None
) -> None:
  """Checks all configs of a sweep before the first run starts.

  Args:
    configs: The configs of the runs.
    folder: The folder of the config file, for imports of modules of the user.
    data_dir: The folder of the datasets; None for the default of TFDS.

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
    # Exit status 2 means a mistake of the user, told in the last line. Any
    # further status means an error in this package, and needs the traceback.
    if result.returncode != 2:
      print(result.stderr, file=sys.stderr)
    raise errors.UserError(last[0].removeprefix('error: '))
