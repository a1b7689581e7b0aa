"""Shows formulas and shapes of docstrings as they are typed."""

import collections
import re
from typing import Any

from sphinx.application import Sphinx

# In shapes, and not in `(*shape)` with backticks, nor at the start of a line.
_ASTERISK = re.compile(r'(?<!`)(\(|, )\*(?=\w)')


def setup(app: Sphinx) -> dict[str, Any]:
  """Registers `mark`, before napoleon (priority 500) reads the sections."""
  app.setup_extension('sphinx.ext.autodoc')
  app.connect('autodoc-process-docstring', _process, priority=400)
  app.connect('autodoc-skip-member', _skip)
  return {'parallel_read_safe': True}


def _process(
  app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  del app, name, obj, options
  lines[:] = mark(lines)
  if what == 'class':
    # The attributes of a dataclass are the arguments of the class.
    lines[:] = ['Args:' if line == 'Attributes:' else line for line in lines]


def _skip(
  app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
  """Leaves out the fields of a NamedTuple, which the class describes."""
  del app, what, name, skip, options
  return True if isinstance(obj, collections._tuplegetter) else None


def mark(lines: list[str]) -> list[str]:
  """Marks indented blocks in the text of a docstring as literal blocks.

  A formula stands in an indented block between blank lines. Sphinx would read
  the block as a quotation, in which an asterisk begins emphasized text.

  Args:
    lines: The docstring, with the indentation of the first line removed.

  Returns:
    The lines, with `::` in front of each indented block after a blank line,
    except for examples that begin with `>>>`. The asterisk of a shape such as
    (*shape, 2) is escaped.
  """
  marked: list[str] = []
  before = ''  # The last line without indentation: it owns the block.
  for k, line in enumerate(lines):
    is_indented = line.startswith(' ')
    begins = is_indented and k > 0 and not lines[k - 1].strip()
    is_text = not before.endswith(':') or before.endswith('::') or ' ' in before
    is_list = before.startswith(('- ', '* '))
    is_example = line.lstrip().startswith('>>>')
    if begins and is_text and not is_list and not is_example and before:
      marked += ['::', '']
      before = ''  # The block may have blank lines inside.
    marked.append(_ASTERISK.sub(r'\1\\*', line))
    if line.strip() and not is_indented:
      before = line.strip()
  return marked
