"""Datasets by name, as arrays in memory, and the order of mini-batches."""

from bn_research.data import augmentation
from bn_research.data.loading import Dataset, Split, load
from bn_research.data.normalizing import input_function
from bn_research.data.order import batch_indices
from bn_research.data.pipeline import to_input
from bn_research.data.streams import Stream, open_stream

__all__ = [
  'Dataset',
  'Split',
  'Stream',
  'augmentation',
  'batch_indices',
  'input_function',
  'load',
  'open_stream',
  'to_input',
]
