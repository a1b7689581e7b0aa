"""Double precision where a test asks for it; the same examples every time."""

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
  'norms', derandomize=True, deadline=None, max_examples=12, database=None
)
hypothesis.settings.load_profile('norms')


@pytest.fixture
def x64():
  """Numbers are float64, so that what is exact can be held to 1e-12."""
  with jax.enable_x64(True):
    yield
