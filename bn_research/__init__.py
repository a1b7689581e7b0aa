"""Normalization, measured: Section 2 of the Batch Normalization paper."""

from typing import Any

from bn_research import interrupt

__version__ = '0.1.0'
__all__ = ['load', 'load_all']

interrupt.end_a_starting_command()


def __getattr__(name: str) -> Any:
  # Late, for most of the package needs no results.
  if name in __all__:
    from bn_research import results

    return getattr(results, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
