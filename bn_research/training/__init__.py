"""A training run: state, step, loop, checkpoints, metrics and device mesh."""

from bn_research.training.loop import Interrupted, train

__all__ = ['Interrupted', 'train']
