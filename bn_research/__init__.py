"""Normalization, measured: Section 2 of the Batch Normalization paper."""

__version__ = '0.1.0'
