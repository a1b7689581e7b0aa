"""The runs of a pack, and what is told at the end of each."""

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bn_research import disk, errors

_FAILED = 1


@dataclasses.dataclass(frozen=True)
class Member:
  """A run of a pack.

  Attributes:
    config: The config. All members of a group have configs that differ in real
      numbers and in the seed only.
    directory: The workdir.
    log: The file of the printed lines, in a folder that exists.
    about: What `config.json` tells about the start of the run besides.
  """

  config: dict[str, Any]
  directory: disk.PathLike
  log: disk.PathLike
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Ends:
  """Tells the end of each run, once, and why runs are no pack.

  Attributes:
    say: A function of a line about runs that are no pack.
  """

  def __init__(
    self,
    ended: Callable[[Member, int], None],
    say: Callable[[str], None],
  ):
    """Starts without an end.

    Args:
      ended: A function of a run, and of the exit status that the command of the
        run alone would have.
      say: A function of a line about runs that are no pack.
    """
    self._ended = ended
    self.say = say
    self._told: set[str] = set()

  def tell(self, member: Member, exit_status: int) -> None:
    """Tells the end of a run, if the end was not told before."""
    name = str(member.directory)
    if name not in self._told:
      self._told.add(name)
      self._ended(member, exit_status)

  @contextlib.contextmanager
  def on_error(self, *members: Member) -> Iterator[None]:
    """Ends runs after an error, whose message comes into the log of each."""
    try:
      yield
      return
    except errors.UserError as error:
      status, text = error.exit_status, f'error: {error}'
    except Exception:
      status, text = _FAILED, traceback.format_exc()
    for member in members:
      if str(member.directory) not in self._told:
        with open(member.log, 'a') as file:
          print(text, file=file)
        self.tell(member, status)
