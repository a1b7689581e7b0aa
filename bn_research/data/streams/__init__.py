"""Datasets that do not fit the memory, read by Grain while a run trains."""

from bn_research.data.streams.batches import Batch
from bn_research.data.streams.options import Options
from bn_research.data.streams.stream import Stream, open_stream, options_of

__all__ = ['Batch', 'Options', 'Stream', 'open_stream', 'options_of']
