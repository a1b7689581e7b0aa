"""The maps of docs/statistic_of_your_own.md: its code, run as it stands."""

import pathlib
import re

_PAGE = pathlib.Path(__file__).parents[1] / 'docs/statistic_of_your_own.md'

_names: dict = {'__name__': 'statistic_of_your_own'}
for _block in re.findall(r'```python\n(.*?)```', _PAGE.read_text(), re.S):
  exec(compile(_block, str(_PAGE), 'exec'), _names)

Median, Largest = _names['Median'], _names['Largest']
