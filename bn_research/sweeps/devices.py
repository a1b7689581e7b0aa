"""The accelerators of this machine, and a share of them for each job.

Every process of JAX sees all accelerators and takes most of the memory of each.
Jobs of a sweep thus need shares that do not overlap. Environment variables give
a process the share, before the process imports JAX.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bn_research import errors

# The part of the memory that JAX takes by default.
_MEMORY = 0.75


class Found(NamedTuple):
  """The accelerators of a machine.

  Attributes:
    kind: 'GPU' or 'TPU'; '' for a machine without accelerators.
    names: The names of the accelerators, as the environment variable of the
      kind has the names.
  """

  kind: str = ''
  names: tuple[str, ...] = ()


def find(environ: Mapping[str, str] = os.environ) -> Found:
  """Returns the accelerators that a process of this machine would see.

  Args:
    environ: The environment variables.
  """
  for kind, variable, pattern in (
    ('GPU', 'CUDA_VISIBLE_DEVICES', '/proc/driver/nvidia/gpus/*'),
    ('TPU', 'TPU_VISIBLE_CHIPS', '/dev/accel[0-9]*'),
  ):
    if variable in environ:
      names = tuple(filter(None, environ[variable].split(',')))
      # -1 is a usual way to hide all GPUs.
      names = names[: names.index('-1')] if '-1' in names else names
    else:
      names = tuple(str(k) for k in range(len(glob.glob(pattern))))
    if names:
      return Found(kind, names)
  return Found()


def shares(
  found: Found, jobs: int, jobs_a_device: int = 1
) -> list[dict[str, str]]:
  """Returns the environment variables of each job.

  With more accelerators than jobs, a job has several. Otherwise, and with
  `jobs_a_device` above 1, jobs share an accelerator and its memory.

  Args:
    found: The accelerators.
    jobs: The number of jobs at the same time.
    jobs_a_device: The largest number of jobs on an accelerator.

  Raises:
    UserError: If there are too many jobs, or if jobs would share a TPU.
  """
  count = len(found.names)
  # A single job has all accelerators without a word.
  if not count or jobs == 1:
    return [{} for _ in range(jobs)]
  if jobs > count * jobs_a_device:
    raise errors.UserError(
      f'--jobs={jobs}, and there is room for {count * jobs_a_device} on'
      f' {count} {found.kind}s; give fewer jobs'
      + ('' if found.kind == 'TPU' else ', or --jobs_a_device')
    )
  if found.kind == 'TPU':
    if jobs_a_device > 1:
      raise errors.UserError(
        f'--jobs_a_device={jobs_a_device}: a single process can use a TPU'
      )
    return _of_tpus(found.names, jobs)
  here = [found.names[k * count // jobs] for k in range(jobs)]
  result = []
  for k in range(jobs):
    last = max(k * count // jobs + 1, (k + 1) * count // jobs)
    names = found.names[k * count // jobs : last]
    share = {'CUDA_VISIBLE_DEVICES': ','.join(names)}
    if (sharing := here.count(here[k])) > 1:
      share |= memory(1 / sharing)
    result.append(share)
  return result


def memory(part: float) -> dict[str, str]:
  """Returns the variable of a process that has a part of a GPU.

  Args:
    part: The part of the memory that JAX takes by default.
  """
  return {'XLA_CLIENT_MEM_FRACTION': f'{_MEMORY * part:.3f}'}


def _of_tpus(names: Sequence[str], jobs: int) -> list[dict[str, str]]:
  """Returns the variables of each job, which has one TPU chip."""
  return [
    {
      'TPU_VISIBLE_CHIPS': name,
      'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
      'TPU_PROCESS_BOUNDS': '1,1,1',
    }
    for name in names[:jobs]
  ]
