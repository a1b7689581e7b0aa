"""The files of a run: names, contents, reading and writing.

The package imports only the standard library and NumPy, because sweeps and
reports must read workdirs without the time for an import of JAX.
"""

from bn_research.workdir.configs import (
  FORMAT,
  has_config,
  read_config,
  read_record,
)
from bn_research.workdir.files import (
  CHECKPOINTS,
  CONFIG,
  METRICS,
  PROBES,
  STATUS,
  Damaged,
)
from bn_research.workdir.finding import find
from bn_research.workdir.probes import probe_files, read_probe, write_probe
from bn_research.workdir.rows import read_metrics, truncate_metrics
from bn_research.workdir.states import (
  DIVERGED,
  DONE,
  FAILED,
  INCOMPLETE,
  Status,
)
from bn_research.workdir.status import (
  has_whole_metrics,
  read_status,
  standing,
  towards,
  write_status,
)

__all__ = [
  'CHECKPOINTS',
  'CONFIG',
  'DIVERGED',
  'DONE',
  'FAILED',
  'FORMAT',
  'INCOMPLETE',
  'METRICS',
  'PROBES',
  'STATUS',
  'Damaged',
  'Status',
  'find',
  'has_config',
  'has_whole_metrics',
  'probe_files',
  'read_config',
  'read_metrics',
  'read_probe',
  'read_record',
  'read_status',
  'standing',
  'towards',
  'truncate_metrics',
  'write_probe',
  'write_status',
]
