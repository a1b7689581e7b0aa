"""One run: state, step, loop, checkpoints, metrics, device mesh."""

from bn_research.training.loop import Interrupted, train

__all__ = ['Interrupted', 'train']
