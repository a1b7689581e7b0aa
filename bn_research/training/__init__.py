"""One run: state, step, loop, checkpoints, metrics, device mesh."""

from bn_research.training.loop import train

__all__ = ['train']
