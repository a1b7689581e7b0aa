"""Whitening by the optimizer: gradients times inverse covariances of inputs.

Section 2 of the Batch Normalization paper names two ways to whiten the inputs
of layers: to modify the network, or to change the parameters of the
optimization algorithm. The packages `norms` and `layers` implement the first
way. This package implements the second way, in two forms that are equal in
exact arithmetic:

* `WhitenedDense` (PRONG) keeps each dense layer in coordinates in which the
  input of the layer is white. Plain gradient descent on the parameters of the
  layer is then preconditioned descent.
* `precondition_by_input_covariance` does not change the layers, and multiplies
  the gradients of the layers by inverse covariances.

Each form has a hook (`bn_research.hooks`). Through the hook, the layer or the
optimizer receives the moments of the layer inputs in every training step.
"""

from bn_research.preconditioning.input_covariance import (
  precondition_by_input_covariance,
)
from bn_research.preconditioning.recording import record_inputs
from bn_research.preconditioning.whitened_dense import WhitenedDense

__all__ = [
  'WhitenedDense',
  'precondition_by_input_covariance',
  'record_inputs',
]
