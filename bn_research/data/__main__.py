"""`python -m bn_research.data NAME` prepares a dataset, without TensorFlow."""

import argparse
import sys
from typing import NoReturn

from bn_research import arguments, errors, interrupt
from bn_research.data import builders, prepare


class _Parser(argparse.ArgumentParser):
  # argparse prints the usage and ends the process. A UserError lets `main`
  # print a single line, as for every mistake of the user.
  def error(self, message: str) -> NoReturn:
    raise errors.UserError(f'{message}; --help shows the arguments')


def main() -> int:
  """Prepares the dataset of the command line.

  Returns:
    The exit status: 0, 2 after a mistake of the user, or 130 after Ctrl-C.
  """
  interrupt.raise_an_exception()
  try:
    print(_prepare())
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    # Nothing is left behind: a dataset gets its name when it is complete.
    return 130
  return 0


def _prepare() -> str:
  """Prepares the dataset, and returns a line that describes the dataset."""
  parser = _Parser(
    prog='python -m bn_research.data',
    description='Prepares a dataset for TFDS, without TensorFlow.',
  )
  parser.add_argument('name', help=', '.join(builders.OWN))
  parser.add_argument(
    '--data_dir', help="directory of the datasets; TFDS's own where not given"
  )
  parser.add_argument(
    '--from',
    dest='source',
    metavar='FOLDER',
    help='folder of the original files; downloaded where not given',
  )
  given = parser.parse_args(arguments.tidy(sys.argv[1:]))
  builder = prepare.prepare(given.name, given.data_dir, given.source)
  counts = ', '.join(
    f'{name} {split.num_examples}'
    for name, split in builder.info.splits.items()
  )
  return f'{builder.name} {builder.version} ({counts}) in {builder.data_path}'


if __name__ == '__main__':
  sys.exit(main())
