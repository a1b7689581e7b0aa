"""What a checkpoint of Orbax holds: arrays, files, and a sealed description."""

import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bn_research import errors, json_text
from bn_research.training import copies, digests, orbax
from bn_research.training.state import TrainState


class Restored(NamedTuple):
  """The content of a checkpoint.

  Attributes:
    state: The state of the run.
    files: The files of the run up to the step of the state, by path.
    num_devices: The number of devices of the run that saved the checkpoint.
    record: The content of `config.json` of this run, if the run had the file.
  """

  state: TrainState
  files: copies.Files
  num_devices: int
  record: Mapping[str, Any] | None


def describe_run(
  state: TrainState,
  files: copies.Files,
  num_devices: int,
  record: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Returns the description of a checkpoint, with digests.

  Args:
    state: The state.
    files: The files of the run that the checkpoint keeps.
    num_devices: The number of devices of the run.
    record: The content of `config.json`; None for a run without the file.
  """
  run = {
    'num_devices': num_devices,
    'arrays': _describe(state),
    'array_digests': digests.of_arrays(state),
    'files': copies.digests(files),
    'record': record,
  }
  return json_text.sealed(run)


def read_run(manager: Any, step: int) -> dict[str, Any]:
  """Reads the description of a checkpoint, and checks the digest."""
  run = orbax.read_json(manager, step)
  json_text.check_seal(run)
  return run


def read(
  manager: Any, step: int, abstract: TrainState, folder: pathlib.PurePath
) -> Restored:
  """Reads and checks a checkpoint.

  Args:
    manager: A manager of Orbax.
    step: The step of the checkpoint.
    abstract: The shapes, dtypes and shardings of the state.
    folder: The folder of the checkpoints in the workdir, for messages.

  Raises:
    UserError: If the checkpoint is of another model.
    Exception: If the checkpoint is damaged.
  """
  # The digest first: a damaged description would look like another model.
  run = read_run(manager, step)
  saved = _as_saved(abstract, run['arrays'])
  # Orbax casts another dtype in silence.
  if run['arrays'] != _describe(saved):
    raise errors.UserError(
      f'{folder} holds checkpoints of another model; choose another --workdir'
    )
  state = orbax.read_arrays(manager, step, 'state', saved)
  # Older versions wrote no digests, or another kind, and no files.
  found = digests.of_arrays(state)
  if found != run.get('array_digests', found):
    raise ValueError('the digest of an array differs')
  expected = run.get('files', {})
  arrays = orbax.read_arrays(manager, step, 'files') if expected else {}
  files = copies.from_arrays(arrays, expected)
  return Restored(
    _with_sums(state, abstract), files, run['num_devices'], run.get('record')
  )


def _as_saved(abstract: TrainState, arrays: Collection[str]) -> TrainState:
  """Returns a state with the sums that a checkpoint has.

  A checkpoint stays readable after a scalar is added to the rows of metrics.
  """
  scalar = abstract.loss_sum
  found = (re.fullmatch(r"\.sums\['(\w+)'\]", path) for path in arrays)
  return abstract._replace(sums={name[1]: scalar for name in found if name})


def _with_sums(state: TrainState, abstract: TrainState) -> TrainState:
  """Returns a state with all sums; a sum that was not saved is NaN."""
  unknown = jax.device_put(np.float32(np.nan), abstract.loss_sum.sharding)
  sums = {name: state.sums.get(name, unknown) for name in abstract.sums}
  return state._replace(sums=sums)


def _describe(state: TrainState) -> dict[str, str]:
  """Returns dtype and shape of every array of a state, by its path."""
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
