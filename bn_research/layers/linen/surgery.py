"""Transfers variables to a linen model with a different normalization.

To change a linen model, make the model again with a different normalization,
such as the result of `norms.freeze`, of `norms.sync` or of a factory. The
functions in this module then convert the variables.
"""

from bn_research.layers.linen.carrying import carry
from bn_research.layers.linen.folding import fold

__all__ = ['carry', 'fold']
