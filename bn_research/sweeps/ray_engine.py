"""Starts the commands of runs on the nodes of a Ray cluster.

A Ray actor starts the command, and holds the resources of the run. An actor
ends with the node, with the Ray processes of the node, and with the process of
the sweep. The command then gets SIGTERM, and saves a checkpoint, as far as the
node is still there (`guard`).
"""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bn_research.sweeps import (
  child,
  devices,
  guard,
  processes,
  ray_cluster,
)

# An actor answers one call after the other. A signal waits as long for the end
# of the call before.
_WAIT_SECONDS = 0.5
# `guard` needs the standard library only; see `processes`.
_GUARD = (sys.executable, '-I', '-S', guard.__file__, child.__file__)
# Ray names these resources by arguments of their own.
_ARGUMENTS = {'CPU': 'num_cpus', 'GPU': 'num_gpus', 'memory': 'memory'}


class Engine:
  """Starts commands with certain resources, in the cluster of `ray_cluster`.

  Attributes:
    needed: The resources of a run, as `ray_cluster.resources` returns them.
  """

  def __init__(self, needed: ray_cluster.Resources):
    import ray

    self.needed = needed
    options = {_ARGUMENTS[k]: n for k, n in needed.items() if k in _ARGUMENTS}
    others = {k: n for k, n in needed.items() if k not in _ARGUMENTS}
    # A run on a CPU uses all cores of a node, hence the runs spread out.
    self._class = ray.remote(_Runner).options(
      **options, resources=others, scheduling_strategy='SPREAD'
    )

  def start(
    self, command: Sequence[str], environment: Mapping[str, str], log: Any
  ) -> '_Job':
    """Starts a command on a node that has room, now or later.

    Args:
      command: The command, with the path of the program on the node.
      environment: Further environment variables.
      log: The file for the output, on a disk that the nodes see.

    Returns:
      A `pool.Job`.
    """
    part = self.needed.get('GPU', 1)
    variables = {
      # A node has an environment of its own. The settings of JAX in the
      # environment of the sweep are settings of the runs.
      **{k: v for k, v in os.environ.items() if k.startswith(('JAX_', 'XLA_'))},
      **(devices.memory(part) if part < 1 else {}),
      **environment,
    }
    actor = self._class.remote()
    begun = actor.start.remote(command, variables, str(log), os.getcwd())
    return _Job(actor, begun, pathlib.Path(log))


class _Job:
  """The command of an actor, as a `pool.Job`."""

  def __init__(self, actor: Any, reply: Any, log: pathlib.Path):
    self._actor = actor
    self._reply = reply
    self._log = log
    self._code: int | None = None

  def poll(self) -> int | None:
    import ray

    if self._code is None and ray.wait([self._reply], timeout=0)[0]:
      self._code = self._answer()
      if self._code is None:
        self._reply = self._actor.wait.remote(_WAIT_SECONDS)
      else:
        ray.kill(self._actor)  # which gives the resources back
    return self._code

  def _answer(self) -> int | None:
    """Returns the exit status in the last reply; None before the end."""
    import ray

    try:
      return ray.get(self._reply)
    except ray.exceptions.ActorUnavailableError:
      return None  # The network failed, and the actor may be alive.
    except ray.exceptions.RayTaskError as error:
      # The node cannot start the command. The pool reads the reason here.
      with open(self._log, 'a') as file:
        print(f'error: {error.cause}', file=file)
      return 1
    except ray.exceptions.RayError:
      return -signal.SIGKILL  # The actor is lost, perhaps with the node.

  def terminate(self) -> None:
    if self._code is None:
      self._actor.terminate.remote()

  def kill(self) -> None:
    import ray

    if self._code is None:
      ray.kill(self._actor)
      self._code = -signal.SIGKILL


class _Runner:
  """The actor: a process on a node, which starts the command."""

  def __init__(self) -> None:
    self._process: subprocess.Popen | None = None

  def start(
    self,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: str,
    folder: str,
  ) -> None:
    """Starts the command in a folder that the nodes see."""
    os.chdir(folder)
    guarded = (*_GUARD, *command)
    self._process = processes.start(guarded, environment, pathlib.Path(log))

  def wait(self, seconds: float) -> int | None:
    """Returns the exit status; None if the command does not end in time."""
    assert self._process is not None
    try:
      return self._process.wait(seconds)
    except subprocess.TimeoutExpired:
      return None

  def terminate(self) -> None:
    """Sends SIGTERM."""
    assert self._process is not None
    self._process.terminate()
