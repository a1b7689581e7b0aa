"""The names of the files of a run."""

from bn_research import errors

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
STATUS = 'status.json'
PROBES = 'probes'
CHECKPOINTS = 'checkpoints'


class Damaged(errors.UserError):
  """A file of a run cannot be read, or has a different digest."""
