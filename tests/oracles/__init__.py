"""Normalizations as their papers write them: float64 NumPy, one set at a time.

An oracle takes (x, mask, epsilon, past) and what is learned by name, and
returns the normalized activations, 0 where masked out, before scale and bias.
Nothing here is quick, and nothing is taken from the library.
"""

from typing import NamedTuple

import numpy as np


class Past(NamedTuple):
  """What a population remembers when a batch comes."""

  mean: np.ndarray
  var: np.ndarray
  steps: int = 0
