"""Double precision where a test asks for it; which rows are quick to test."""

import hypothesis
import jax
import pytest

from tests import rows

hypothesis.settings.register_profile(
  'norms', derandomize=True, deadline=None, max_examples=12, database=None
)
hypothesis.settings.load_profile('norms')


@pytest.fixture
def x64():
  """Numbers are float64, so that what is exact can be held to 1e-12."""
  with jax.enable_x64(True):
    yield


# Moments over examples, and moments in each example. Whitening has the tests of
# test_whiten.py, and test_product.py pairs all choices. All other rows are
# tested by `scripts/test -m slow`.
QUICK = {'batch_norm', 'group_norm'}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  for item in items:
    parameters = item.callspec.params if hasattr(item, 'callspec') else {}
    row = parameters.get('row')
    if isinstance(row, rows.Row) and row.name not in QUICK:
      item.add_marker(pytest.mark.slow)
